//! Messages of the service of exported directories. Variants are part of the protocol: append, never reorder.
//!
//! A [`Request`] is a call. A file is opened by a stream: the user's node sends [`OpenFile`], the owner answers
//! [`FileOpened`], and the rest is a session as with devices ([`crate::wire::session`]).

use crate::path::FilePath;
use crate::wire::User;
use bytes::Bytes;
use consistency::Timestamp;
use consistency::wire::meta::{Attr, FileKind, Name, NewNode, RenameMode, StatFs, XattrMode};
use serde::{Deserialize, Serialize};

/// The version of the protocol since which nodes have exported directories.
pub const EXPORTS_SINCE: u32 = 11;
/// Upper limit of the entries in one page of a listing.
pub const PAGE_ENTRIES_MAX: u32 = 1024;
/// Upper limit of an extended attribute's value, the kernel's own.
pub const XATTR_BYTES_MAX: usize = 65_536;

/// What makes two files one, on their node: device, inode, and time of birth, since inodes are used again.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Ident {
    /// Device; 0 for a directory that is made up.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Nanoseconds; 0 where the file system does not tell.
    pub born: u64,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    /// Where it was seen.
    pub path: FilePath,
    /// Which one was seen there; ESTALE if it is another. `None`: whatever there is.
    pub ident: Option<Ident>,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Which one.
    pub ident: Ident,
    /// As on its node; the inode's number is that of its node.
    pub attr: Attr,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// What it stands for.
    pub ident: Ident,
    /// Its true type.
    pub kind: FileKind,
    /// Where a listing goes on behind it.
    pub cookie: u64,
}

/// What is asked, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// For whom.
    pub who: User,
    /// What.
    pub what: What,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Finds a name; answered by [`Reply::Stat`].
    Lookup {
        /// In which directory.
        dir: At,
        /// Which name.
        name: Name,
    },
    /// Answered by [`Reply::Stat`].
    Stat(At),
    /// Changes attributes; answered by [`Reply::Stat`].
    Change {
        /// Of what.
        at: At,
        /// How.
        change: Change,
    },
    /// Answered by [`Reply::Data`].
    Readlink(At),
    /// Lists a directory; answered by [`Reply::Listing`].
    List {
        /// Which.
        dir: At,
        /// A cookie; 0 at first.
        after: u64,
        /// So many entries, at most [`PAGE_ENTRIES_MAX`].
        limit: u32,
    },
    /// Makes what is no opened file; answered by [`Reply::Stat`].
    Make {
        /// In which directory.
        dir: At,
        /// Its name.
        name: Name,
        /// What; devices are refused.
        node: NewNode,
        /// Permission bits.
        mode: Mode,
    },
    /// Adds a name; answered by [`Reply::Stat`].
    Link {
        /// To what.
        at: At,
        /// In which directory.
        dir: At,
        /// Which name.
        name: Name,
    },
    /// Removes a name; answered by [`Reply::Done`].
    Unlink {
        /// From which directory.
        dir: At,
        /// Which name.
        name: Name,
        /// Of an empty directory.
        is_dir: bool,
    },
    /// Moves a name; answered by [`Reply::Done`].
    Rename {
        /// From which directory.
        dir: At,
        /// Which name.
        name: Name,
        /// To which directory.
        to: At,
        /// As what.
        to_name: Name,
        /// How.
        mode: RenameMode,
    },
    /// Makes a directory durable; answered by [`Reply::Done`].
    SyncDir(At),
    /// Room; answered by [`Reply::StatFs`].
    StatFs(At),
    /// Reads an extended attribute; answered by [`Reply::Data`].
    Getxattr {
        /// Of what.
        at: At,
        /// Which.
        name: Name,
    },
    /// Names of extended attributes; answered by [`Reply::Names`].
    Listxattr(At),
    /// Answered by [`Reply::Done`].
    Setxattr {
        /// Of what.
        at: At,
        /// Which.
        name: Name,
        /// At most [`XATTR_BYTES_MAX`].
        value: Bytes,
        /// How.
        mode: XattrMode,
    },
    /// Answered by [`Reply::Done`].
    Removexattr {
        /// Of what.
        at: At,
        /// Which.
        name: Name,
    },
}

/// Permission bits of what is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// As asked for.
    pub mode: u32,
    /// What the caller's umask takes away, unless the directory has a default ACL.
    pub umask: u32,
}

/// New attributes; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size.
    pub size: Option<u64>,
    /// Access.
    pub atime: Option<NewTime>,
    /// Change of content.
    pub mtime: Option<NewTime>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewTime {
    /// The owner's clock.
    Now,
    /// This.
    At(Timestamp),
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Refused or failed, as an errno of Linux.
    Failed(i32),
    /// Done.
    Done,
    /// What there is (now).
    Stat(Stat),
    /// Bytes.
    Data(Bytes),
    /// Names; none at the end.
    Listing(Vec<Entry>),
    /// Names of attributes.
    Names(Vec<Name>),
    /// Room.
    StatFs(StatFs),
}

/// The first message of a session: opens a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// For whom.
    pub who: User,
    /// Which; with [`Self::create`] the directory it is in.
    pub at: At,
    /// How.
    pub how: FileHow,
    /// Makes it, if it is not there.
    pub create: Option<Create>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHow {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// To execute: who may do so need not be able to read it.
    pub execute: bool,
    /// Writes are durable when they are answered.
    pub durable: bool,
    /// Reads leave the time of access as it is.
    pub noatime: bool,
}

/// A file that is made as it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Its name.
    pub name: Name,
    /// Permission bits.
    pub mode: Mode,
    /// It must not be there.
    pub exclusive: bool,
}

/// Answer to [`OpenFile`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOpened {
    /// It is not, and the session is over: an errno of Linux.
    Refused(i32),
    /// It is open.
    Opened(Stat),
}

/// A lock on an open file, as fcntl(2) and flock(2) have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLock {
    /// Of the whole file, by flock(2).
    pub flock: bool,
    /// First byte.
    pub start: u64,
    /// How many; 0: to the end.
    pub len: u64,
    /// What.
    pub kind: LockKind,
}

/// What a lock lets others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Read.
    Shared,
    /// Nothing.
    Exclusive,
    /// Everything: it is given back.
    None,
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::samples;
