//! Messages of the device service. Variants are part of the protocol: append, never reorder.

pub mod session;

use crate::path::DevPath;
use bytes::Bytes;
use consistency::Timestamp;
use consistency::wire::meta::{FileKind, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the protocol since which nodes know sizes, reasons, and sessions with open devices.
pub const SESSIONS_SINCE: u32 = 10;
/// Upper limit of what one call reads or writes.
pub const IO_BYTES_MAX: u32 = 1 << 20;
/// Upper limit of the entries in one page of a listing.
pub const PAGE_ENTRIES_MAX: usize = 1024;
/// Upper limit of the supplementary groups of a user, the kernel's own.
pub const GROUPS_MAX: usize = 65_536;
/// Upper limit of the content that is read when a device is opened.
pub const RECORDS_BYTES_MAX: usize = 4 << 20;

/// A device by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Device {
    /// Block device; else a character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// As `ls` and the attribute `user.glu.device` show it: `c 1:3`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{}", self.major, self.minor)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What there is at a path of a node's `/dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its true type.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub device: Option<Device>,
    /// Target of a symbolic link.
    pub target: Option<Bytes>,
    /// Last access, change of content, change of the inode; by the owner's clock.
    pub times: [Timestamp; 3],
}

/// What there is, with the size of a disk in bytes; 0 for all else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// As in [`DevReply::Node`].
    pub node: Node,
    /// Bytes.
    pub size: u64,
}

/// Who asks, for nodes before [`SESSIONS_SINCE`]: the primary group alone counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Who asks, with all groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// The others, at most [`GROUPS_MAX`].
    pub groups: Vec<u32>,
}

impl User {
    /// Returns whether this is a member of a group.
    #[must_use]
    pub fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.groups.contains(&group)
    }
}

impl From<Who> for User {
    fn from(who: Who) -> Self {
        Self {
            uid: who.uid,
            gid: who.gid,
            groups: Vec::new(),
        }
    }
}

/// A request to the owner of devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevRequest {
    /// Asks what is there; answered by [`DevReply::Node`].
    Stat(DevPath),
    /// Lists a directory in the order of names; answered by [`DevReply::Listing`].
    List {
        /// Which directory.
        dir: DevPath,
        /// Last name seen.
        after: Option<Name>,
    },
    /// Opens a device; answered by [`DevReply::Opened`].
    Open {
        /// Where it is.
        path: DevPath,
        /// Which one the caller saw there.
        device: Device,
        /// For whom.
        who: Who,
        /// To read.
        read: bool,
        /// To write.
        write: bool,
    },
    /// Reads from a device opened as [`Opening::Live`]; answered by [`DevReply::Data`].
    Read {
        /// Where it is.
        path: DevPath,
        /// Which one was opened.
        device: Device,
        /// For whom.
        who: Who,
        /// Upper limit of bytes, at most [`IO_BYTES_MAX`].
        size: u32,
    },
    /// Writes to a device; answered by [`DevReply::Written`].
    Write {
        /// Where it is.
        path: DevPath,
        /// Which one was opened.
        device: Device,
        /// For whom.
        who: Who,
        /// At most [`IO_BYTES_MAX`].
        data: Bytes,
    },
    /// Asks what is there; answered by [`DevReply::Seen`].
    Look(DevPath),
    /// Lists a directory in the order of names; answered by [`DevReply::Survey`].
    Survey {
        /// Which directory.
        dir: DevPath,
        /// Last name seen.
        after: Option<Name>,
    },
    /// Asks why a device cannot be opened; answered by [`DevReply::Why`].
    Why {
        /// Where it is.
        path: DevPath,
        /// For whom.
        who: User,
    },
}

/// How an opened device is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opening {
    /// By calls.
    Live,
    /// This is all there was: one record after the other, then the end.
    Records(Vec<Bytes>),
}

/// Answer to a [`DevRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevReply {
    /// Stat.
    Node(Node),
    /// List.
    Listing {
        /// In ascending order of names.
        entries: Vec<(Name, Node)>,
        /// More names follow.
        more: bool,
    },
    /// Open.
    Opened(Opening),
    /// Read.
    Data(Bytes),
    /// Write: how many bytes were taken.
    Written(u32),
    /// Refused or failed, as an errno of Linux.
    Failed(i32),
    /// Look.
    Seen(Seen),
    /// Survey.
    Survey {
        /// In ascending order of names.
        entries: Vec<(Name, Seen)>,
        /// More names follow.
        more: bool,
    },
    /// Why: what keeps the asker from reading or writing; `None` if nothing does.
    Why(Option<String>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::{decode, encode};

    #[track_caller]
    fn check(message: &DevRequest, golden: &[u8]) {
        assert_eq!(encode(message), golden, "{message:?} changed on the wire");
        assert_eq!(&decode::<DevRequest>(golden).expect("decodes"), message);
    }

    #[test]
    fn golden_bytes() {
        let path = DevPath::try_from(Bytes::from_static(b"null")).expect("a path");
        let device = Device {
            block: false,
            major: 1,
            minor: 3,
        };
        let who = Who { uid: 5, gid: 6 };
        check(&DevRequest::Stat(path.clone()), b"\0\x04null");
        check(
            &DevRequest::List {
                dir: DevPath::default(),
                after: None,
            },
            &[1, 0, 0],
        );
        let open = DevRequest::Open {
            path: path.clone(),
            device,
            who,
            read: true,
            write: false,
        };
        check(&open, b"\x02\x04null\0\x01\x03\x05\x06\x01\0");
        let read = DevRequest::Read {
            path: path.clone(),
            device,
            who,
            size: 9,
        };
        check(&read, b"\x03\x04null\0\x01\x03\x05\x06\x09");
        let write = DevRequest::Write {
            path,
            device,
            who,
            data: Bytes::from_static(b"x"),
        };
        check(&write, b"\x04\x04null\0\x01\x03\x05\x06\x01x");
        let path = DevPath::try_from(Bytes::from_static(b"sda")).expect("a path");
        check(&DevRequest::Look(path.clone()), b"\x05\x03sda");
        let survey = DevRequest::Survey {
            dir: DevPath::default(),
            after: None,
        };
        check(&survey, &[6, 0, 0]);
        let why = DevRequest::Why {
            path,
            who: User {
                uid: 5,
                gid: 6,
                groups: vec![7],
            },
        };
        check(&why, b"\x07\x03sda\x05\x06\x01\x07");
    }

    #[test]
    fn paths_are_checked_on_the_way_in() {
        for bad in [&b"\0\x02.."[..], b"\0\x05/null", b"\0\x04a/.."] {
            assert!(decode::<DevRequest>(bad).is_err(), "{bad:?}");
        }
    }
}
