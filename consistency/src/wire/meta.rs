//! Operations on the tree and their replies; [`super::request`] has the messages that carry them.
//!
//! Every fact in a reply (attributes, names, absence, content) says by its [`Grant`] whether it may
//! be cached; see `docs/protocol.md` for the rules (L1 to L6).

use super::lease::{Grant, Mode};
use crate::{ChunkId, InodeNo, NodeId, Timestamp, Version};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Longest name in bytes, as on Linux.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link in bytes.
pub const TARGET_BYTES_MAX: usize = 4095;
/// Files up to this size live in their inode record.
pub const INLINE_BYTES_MAX: usize = 16 << 10;
/// Most extents of one file, so that its map fits in one message: with whole chunks enough for 480 GB.
pub const EXTENTS_MAX: usize = 120_000;
/// Largest file: 2^63 - 1 bytes.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// One component of a path: 1 to 255 bytes without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Name(Bytes);

impl Name {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`FsError::NameTooLong`] above 255 bytes, [`FsError::Invalid`] for what is no name at all.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, FsError> {
        let bytes = bytes.into();
        if bytes.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        if matches!(&bytes[..], b"" | b"." | b"..") || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(FsError::Invalid);
        }
        Ok(Self(bytes))
    }

    /// Returns the bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Bytes> for Name {
    type Error = FsError;

    fn try_from(bytes: Bytes) -> Result<Self, FsError> {
        Self::new(bytes)
    }
}

impl From<Name> for Bytes {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// Why an operation was refused; `gfs::error` maps each to its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum FsError {
    /// ENOENT
    #[error("no such file or directory")]
    NotFound,
    /// EEXIST
    #[error("file exists")]
    Exists,
    /// ENOTDIR
    #[error("not a directory")]
    NotDir,
    /// EISDIR
    #[error("is a directory")]
    IsDir,
    /// ENOTEMPTY
    #[error("directory not empty")]
    NotEmpty,
    /// EINVAL
    #[error("invalid argument")]
    Invalid,
    /// ENAMETOOLONG
    #[error("name too long")]
    NameTooLong,
    /// EMLINK
    #[error("too many links")]
    TooManyLinks,
    /// EFBIG
    #[error("file too large")]
    TooLarge,
    /// EPERM
    #[error("operation not permitted")]
    NotPermitted,
    /// EACCES
    #[error("permission denied")]
    Access,
    /// ENODATA
    #[error("no such attribute")]
    NoData,
    /// E2BIG or ENOSPC of xattrs
    #[error("attribute too large")]
    AttrTooLarge,
    /// ENOSPC
    #[error("no space left")]
    NoSpace,
    /// EDQUOT
    #[error("quota exceeded")]
    Quota,
    /// EROFS
    #[error("read-only")]
    ReadOnly,
    /// EBUSY
    #[error("busy")]
    Busy,
    /// EXDEV
    #[error("crosses trees")]
    CrossDevice,
    /// EOPNOTSUPP
    #[error("not supported")]
    NotSupported,
    /// ESTALE: the inode is gone, or a flush came from a session that lost its lease, or shares a chunk that is gone.
    #[error("stale")]
    Stale,
    /// EINTR: the caller was interrupted before anything happened.
    #[error("interrupted")]
    Interrupted,
    /// EIO: see the log of the node that answered.
    #[error("input/output error")]
    Io,
    /// EAGAIN: a lock is in the way.
    #[error("locked by somebody else")]
    Locked,
    /// EDEADLK: the holder of the lock waits for the one who asks.
    #[error("waiting for the lock would never end")]
    Deadlock,
    /// ENOLCK: a bound on locks is reached.
    #[error("too many locks")]
    TooManyLocks,
}

/// Type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// How old a time of access may be before a read renews it.
const ACCESS_EVERY_SECS: i64 = 24 * 3600;

/// Attributes of an inode, as stat(2) shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Which inode.
    pub ino: InodeNo,
    /// Type.
    pub kind: FileKind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Number of names (of a directory: 2 + subdirectories).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte units.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Birth.
    pub btime: Timestamp,
    /// Counts the committed changes of this inode, content included.
    pub version: Version,
}

impl Attr {
    /// Returns whether a read at `at` changes the time of access, by the rule of `relatime` in mount(8): if it is not
    /// later than the last change, or a day old.
    #[must_use]
    pub fn is_access_due(&self, at: Timestamp) -> bool {
        let changed = self.mtime.max(self.ctime);
        // Anybody may set any time: it must not overflow.
        let old = at.secs.saturating_sub(self.atime.secs) >= ACCESS_EVERY_SECS;
        at > self.atime && (self.atime <= changed || old)
    }
}

/// Attributes together with the right to cache them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The attributes.
    pub attr: Attr,
    /// Covers the attributes (for a directory: also the names this reply tells about).
    pub grant: Option<Grant>,
}

/// Content of a regular file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// All bytes of the file, at most [`INLINE_BYTES_MAX`]; bytes up to the size that are not there are zero.
    Inline(Bytes),
    /// Sorted by offset, not overlapping; what lies between is zero.
    Extents(Vec<Extent>),
}

impl Default for Content {
    fn default() -> Self {
        Self::Inline(Bytes::new())
    }
}

/// A range of a file and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Length in bytes, 1 to 4 MiB.
    pub len: u32,
    /// Chunk that holds the bytes.
    pub chunk: ChunkId,
    /// First byte in the chunk.
    pub chunk_offset: u32,
    /// Nodes that hold the chunk.
    pub replicas: Vec<NodeId>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The leader's clock.
    Now,
    /// This time.
    At(Timestamp),
}

/// What a new inode is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// Empty regular file.
    File,
    /// Empty directory.
    Dir,
    /// Symbolic link with its target, 1 to 4,095 bytes.
    Symlink(Bytes),
    /// Fifo, socket or device node.
    Special {
        /// One of `Fifo`, `Socket`, `Char`, `Block`.
        kind: FileKind,
        /// Device number.
        rdev: u32,
    },
}

impl NewNode {
    /// Returns its type.
    #[must_use]
    pub const fn kind(&self) -> FileKind {
        match self {
            Self::File => FileKind::File,
            Self::Dir => FileKind::Dir,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Special { kind, .. } => *kind,
        }
    }
}

/// Flags of rename(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replaces what is there.
    Replace,
    /// RENAME_NOREPLACE
    NoReplace,
    /// RENAME_EXCHANGE
    Exchange,
}

/// How setxattr(2) treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Sets it in any case.
    Any,
    /// XATTR_CREATE
    Create,
    /// XATTR_REPLACE
    Replace,
}

/// New attribute values; `None` leaves one as it is. The size changes by [`Op::Flush`] alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// Changes that an exclusive holder made to one file, in one piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushFile {
    /// Which file; the session must hold it exclusively.
    pub ino: InodeNo,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Access time.
    pub atime: Timestamp,
    /// Modification time.
    pub mtime: Timestamp,
    /// Change time; the record keeps the later one.
    pub ctime: Timestamp,
    /// Changed content.
    pub content: FlushContent,
    /// Somebody has it open for writing, so that watchers are not told yet that it was closed.
    pub written: bool,
}

/// An inode that a session has made by itself, under a name that it knew to be free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Directory; the session must hold it exclusively, or have made it in the same operation.
    pub parent: InodeNo,
    /// Name in it.
    pub name: Name,
    /// Its number, see [`InodeNo::by_session`].
    pub ino: InodeNo,
    /// What it is.
    pub node: NewNode,
    /// Permission bits asked for.
    pub mode: u32,
    /// Permission bits to leave out, see [`Op::Create`].
    pub umask: u32,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory is setgid.
    pub gid: u32,
    /// When.
    pub time: Timestamp,
}

/// A name that a session has removed by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Directory; the session must hold it exclusively, or have made it in the same operation.
    pub parent: InodeNo,
    /// Name in it.
    pub name: Name,
    /// What it stands for; held like the directory.
    pub ino: InodeNo,
    /// A directory must be empty.
    pub kind: FileKind,
    /// When.
    pub time: Timestamp,
}

/// Something that a session has done by itself to the names of directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NameChange {
    /// It made one.
    Made(Made),
    /// It removed one.
    Removed(Removed),
}

impl NameChange {
    /// Returns the directory.
    #[must_use]
    pub const fn parent(&self) -> InodeNo {
        match self {
            Self::Made(made) => made.parent,
            Self::Removed(removed) => removed.parent,
        }
    }

    /// Returns the name.
    #[must_use]
    pub const fn name(&self) -> &Name {
        match self {
            Self::Made(made) => &made.name,
            Self::Removed(removed) => &removed.name,
        }
    }

    /// Returns what the name stands for, or stood for.
    #[must_use]
    pub const fn ino(&self) -> InodeNo {
        match self {
            Self::Made(made) => made.ino,
            Self::Removed(removed) => removed.ino,
        }
    }
}

/// The version of the protocol that has brought [`Op::Names`].
pub const NAMES_SINCE: u32 = 9;

/// Upper limit of inodes in [`Op::Make`], and of changes in [`Op::Names`].
pub const MADE_MAX: usize = 256;

/// Changed content of a flushed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlushContent {
    /// As it was.
    Same,
    /// All of it; zero from its end to the size.
    Inline(Bytes),
    /// In this order: everything from `cut` on is dropped, then the extents replace what they cover.
    /// If the file was inline its old bytes are dropped; the flush brings them anew as extents.
    Extents {
        /// Smallest size the file had since the last flush.
        cut: Option<u64>,
        /// New extents. They name `chunks`, or what other files have as well; a chunk that no file has any more is
        /// refused as [`FsError::Stale`] (M8).
        add: Vec<Extent>,
        /// Chunks that became durable for this flush, with their lengths.
        chunks: Vec<(ChunkId, u32)>,
    },
}

/// An operation on the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Finds a name; answered by [`OpReply::Found`].
    Lookup {
        /// Directory.
        parent: InodeNo,
        /// Name in it.
        name: Name,
    },
    /// Asks for attributes; answered by [`OpReply::Attr`].
    GetAttr {
        /// Which inode.
        ino: InodeNo,
    },
    /// Asks for a file's attributes and content map; answered by [`OpReply::Loaded`]. In `Shared` mode it
    /// waits for changes that came before it and then grants, unless a break to this session is unanswered:
    /// then it answers at once, without a grant (rule F1). `Exclusive` always grants.
    Load {
        /// Which file.
        ino: InodeNo,
        /// `Shared` to read, `Exclusive` to change.
        mode: Mode,
    },
    /// Lists a directory; answered by [`OpReply::Listing`].
    ReadDir {
        /// Directory.
        ino: InodeNo,
        /// Cookie of the last entry seen, 0 for the first page.
        after: u64,
        /// Upper limit of entries, 1 to [`READDIR_ENTRIES_MAX`].
        limit: u32,
    },
    /// Reads the target of a symbolic link; answered by [`OpReply::Target`]. Targets never change.
    ReadLink {
        /// Which link.
        ino: InodeNo,
    },
    /// Asks for all extended attributes; answered by [`OpReply::Xattrs`].
    GetXattrs {
        /// Which inode.
        ino: InodeNo,
    },
    /// Asks for room and counts; answered by [`OpReply::StatFs`].
    StatFs {
        /// Whose: those of its tree if that has a quota, else those of everything.
        ino: InodeNo,
    },
    /// Makes an inode under a new name; answered by [`OpReply::Created`]. A new regular file comes with an
    /// exclusive grant.
    Create {
        /// Directory.
        parent: InodeNo,
        /// New name. `None` (O_TMPFILE) makes a regular file that lives while a session knows it, unless `Link`
        /// gives it a name.
        name: Option<Name>,
        /// What to make.
        node: NewNode,
        /// Permission bits asked for.
        mode: u32,
        /// Permission bits to leave out, unless the directory has a default ACL: that decides then.
        umask: u32,
        /// Owner.
        uid: u32,
        /// Group, unless the directory is setgid.
        gid: u32,
        /// Fail with `Exists` if the name is taken (always so except for files); else answer with what is there.
        exclusive: bool,
    },
    /// Adds a name; answered by [`OpReply::Changed`].
    Link {
        /// Inode that gets the name.
        ino: InodeNo,
        /// Directory.
        parent: InodeNo,
        /// New name.
        name: Name,
    },
    /// Removes a name; answered by [`OpReply::Changed`].
    Unlink {
        /// Directory.
        parent: InodeNo,
        /// Name.
        name: Name,
        /// rmdir(2) instead of unlink(2).
        dir: bool,
    },
    /// Moves a name; answered by [`OpReply::Changed`].
    Rename {
        /// Old directory.
        parent: InodeNo,
        /// Old name.
        name: Name,
        /// New directory.
        new_parent: InodeNo,
        /// New name.
        new_name: Name,
        /// Treatment of what is there.
        mode: RenameMode,
    },
    /// Changes attributes; answered by [`OpReply::Changed`].
    SetAttr {
        /// Which inode.
        ino: InodeNo,
        /// New values.
        set: SetAttr,
    },
    /// Sets an extended attribute; answered by [`OpReply::Changed`].
    SetXattr {
        /// Which inode.
        ino: InodeNo,
        /// Full name with its namespace.
        name: Name,
        /// Value, up to 64 KiB.
        value: Bytes,
        /// Treatment of what is there.
        mode: XattrMode,
        /// An access ACL takes the setgid bit away, for who sets it is not in the file's group.
        kill_sgid: bool,
    },
    /// Removes an extended attribute; answered by [`OpReply::Changed`].
    RemoveXattr {
        /// Which inode.
        ino: InodeNo,
        /// Full name with its namespace.
        name: Name,
    },
    /// Commits what an exclusive holder changed; answered by [`OpReply::Flushed`], file by file.
    Flush(Vec<FlushFile>),
    /// Asks for `count` unused chunk numbers; answered by [`OpReply::ChunkIds`].
    AllocateChunks {
        /// How many, 1 to 65,536.
        count: u32,
    },
    /// Tells when inodes were read, at most [`ACCESSES_MAX`] of them; answered by [`OpReply::Changed`], with those whose
    /// time of access it took: what was changed or read since keeps its own.
    Accessed(Vec<(InodeNo, Timestamp)>),
    /// Commits what was made in directories that the session holds exclusively, in this order, at most [`MADE_MAX`];
    /// answered by [`OpReply::Made`]. Since version 8.
    Make(Vec<Made>),
    /// Commits what was made and removed in directories that the session holds exclusively, in this order, at most
    /// [`MADE_MAX`]; answered by [`OpReply::Made`]. Since version 9.
    Names(Vec<NameChange>),
}

/// Upper limit of inodes in [`Op::Accessed`].
pub const ACCESSES_MAX: usize = 256;

impl Op {
    /// Returns whether the operation goes through the log.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::GetAttr { .. }
            | Self::Load { .. }
            | Self::ReadDir { .. }
            | Self::ReadLink { .. }
            | Self::GetXattrs { .. }
            | Self::StatFs { .. } => false,
            Self::Create { .. }
            | Self::Link { .. }
            | Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::SetAttr { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. }
            | Self::Flush(_)
            | Self::AllocateChunks { .. }
            | Self::Accessed(_)
            | Self::Make(_)
            | Self::Names(_) => true,
        }
    }
}

/// Upper limit of [`Op::ReadDir`]'s `limit`.
pub const READDIR_ENTRIES_MAX: u32 = 4096;

/// One entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Position; stays the same as long as the name exists; entries come in its order.
    pub cookie: u64,
    /// Name.
    pub name: Name,
    /// Inode.
    pub ino: InodeNo,
    /// Type.
    pub kind: FileKind,
    /// Attributes, unless another session holds the inode exclusively.
    pub fact: Option<Fact>,
}

/// Extended attribute of a directory that limits the allocated bytes of its tree, in decimal.
pub const QUOTA_BYTES: &str = "user.glu.quota.bytes";
/// Extended attribute of a directory that limits the inodes of its tree, in decimal.
pub const QUOTA_INODES: &str = "user.glu.quota.inodes";

/// Extended attribute of a directory: copies of each chunk of its tree, in decimal.
pub const REPLICAS: &str = "user.glu.replicas";

/// Returns true for the extended attributes that root alone sets and removes.
#[must_use]
pub fn is_policy(name: &Name) -> bool {
    is_quota(name) || name.as_bytes() == REPLICAS.as_bytes()
}

/// Returns true for the extended attributes that limit a tree.
#[must_use]
pub fn is_quota(name: &Name) -> bool {
    [QUOTA_BYTES, QUOTA_INODES]
        .iter()
        .any(|limit| name.as_bytes() == limit.as_bytes())
}

/// What a successful [`Op`] returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpReply {
    /// Lookup.
    Found {
        /// Covers the name (or its absence).
        dir: Option<Grant>,
        /// What the name stands for; `None`: there is no such name.
        entry: Option<Fact>,
    },
    /// GetAttr.
    Attr(Fact),
    /// Load.
    Loaded {
        /// Attributes; the grant covers the content too.
        file: Fact,
        /// Content.
        content: Content,
        /// Bytes that a quota leaves for it; `None`: no quota limits it.
        room: Option<u64>,
        /// Copies to make of its chunks; 0: as many as the cluster makes of everything.
        copies: u8,
    },
    /// ReadDir.
    Listing {
        /// Covers the names of this page and their completeness.
        dir: Option<Grant>,
        /// Parent of the directory, for `..`.
        parent: InodeNo,
        /// Entries in order of cookies.
        entries: Vec<DirEntry>,
        /// Nothing follows.
        end: bool,
    },
    /// ReadLink.
    Target(Bytes),
    /// GetXattrs.
    Xattrs {
        /// Covers them.
        grant: Option<Grant>,
        /// All of them.
        xattrs: BTreeMap<Name, Bytes>,
    },
    /// StatFs.
    StatFs(StatFs),
    /// Create.
    Created {
        /// The directory; its grant covers the name.
        dir: Fact,
        /// The inode.
        entry: Fact,
        /// Bytes that a quota leaves for it; `None`: no quota limits it.
        room: Option<u64>,
        /// Copies to make of its chunks; 0: as many as the cluster makes of everything.
        copies: u8,
        /// False: it was there already (`exclusive` was not asked for).
        new: bool,
    },
    /// Link, Unlink, Rename, SetAttr, SetXattr, RemoveXattr: every inode whose attributes changed and that
    /// still exists. The grant of a directory covers the names that the operation touched.
    Changed(Vec<Fact>),
    /// Flush: the new attributes or the refusal, in the order of the request.
    Flushed(Vec<Result<Attr, FsError>>),
    /// AllocateChunks: the first of the consecutive numbers.
    ChunkIds(ChunkId),
    /// Make, Names.
    Made {
        /// What became of each, in the order of the request. What is new, or has lost its name, comes exclusively.
        made: Vec<Result<Fact, FsError>>,
        /// The directories, those made by the same operation left out.
        dirs: Vec<Fact>,
    },
}

/// Room and counts of the whole tree, or of one with a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatFs {
    /// Bytes of all chunk stores.
    pub bytes_total: u64,
    /// Free bytes of all chunk stores.
    pub bytes_free: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that a quota leaves; `None`: as many as fit.
    pub inodes_free: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{decode, encode};

    #[test]
    fn names_are_checked_on_the_way_in() {
        assert!(decode::<Name>(&encode(&Bytes::from_static(b"a/b"))).is_err());
        assert!(decode::<Name>(&encode(&Bytes::from_static(b".."))).is_err());
        assert_eq!(Name::new(vec![b'x'; 256]), Err(FsError::NameTooLong));
        assert!(Name::new(vec![b'x'; 255]).is_ok());
    }
}
