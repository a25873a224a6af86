//! Inode numbers of the process tree. They can be taken apart again and are the same on every node:
//!
//! ```text
//! PROC_BASE | class (2 bits) | body (58 bits)
//!   0 fixed      row: 0 the root, 1 cluster, 256 and more a file of cluster
//!   1 node       node (16) | row (8): 0 the directory, 1 and more a file
//!   2 process    cluster pid (31) | tag (19) | row (8): 0 the directory, 1 and more a file
//!   3 self       cluster pid (31) of the caller
//! ```
//! The *tag* tells apart the processes that have had the same pid; `known` makes sure that it does.
//!
//! `self` has an inode for each process that looks at it: the kernel caches the targets of links.

use crate::pids::ClusterPid;
use consistency::wire::meta::FileKind;
use consistency::{InodeNo, NodeId};
use gfs::tree::{DEV_BASE, PROC_BASE};

/// A file's position in its table.
pub(super) type Row = u8;

/// See the module. 19 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tag(u32);

impl Tag {
    const BITS: u32 = 19;

    /// Returns the tag with the lowest bits of `bits`.
    pub(super) const fn new(bits: u64) -> Self {
        Self((bits & ((1 << Self::BITS) - 1)) as u32)
    }

    pub(super) const fn next(self) -> Self {
        Self::new(self.0 as u64 + 1)
    }
}

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ino {
    Root,
    Cluster,
    ClusterFile(Row),
    Node(NodeId),
    NodeFile(NodeId, Row),
    Process(ClusterPid, Tag),
    ProcessFile(ClusterPid, Tag, Row),
    SelfLink(ClusterPid),
}

const CLASS_SHIFT: u32 = 58;
const CLUSTER_ROWS: u64 = 256;
const _: () = assert!(PROC_BASE + (1 << (CLASS_SHIFT + 2)) <= DEV_BASE);

impl Ino {
    pub(super) const fn kind(self) -> FileKind {
        match self {
            Self::Root | Self::Cluster | Self::Node(_) | Self::Process(..) => FileKind::Dir,
            Self::ClusterFile(_) | Self::NodeFile(..) | Self::ProcessFile(..) => FileKind::File,
            Self::SelfLink(_) => FileKind::Symlink,
        }
    }

    pub(super) const fn number(self) -> InodeNo {
        let (class, body) = match self {
            Self::Root => (0, 0),
            Self::Cluster => (0, 1),
            Self::ClusterFile(row) => (0, CLUSTER_ROWS + row as u64),
            Self::Node(node) => (1, (node.0 as u64) << 8),
            Self::NodeFile(node, row) => (1, (node.0 as u64) << 8 | (row as u64 + 1)),
            Self::Process(pid, tag) => (2, process(pid, tag)),
            Self::ProcessFile(pid, tag, row) => (2, process(pid, tag) | (row as u64 + 1)),
            Self::SelfLink(pid) => (3, pid.number() as u64),
        };
        InodeNo(PROC_BASE | class << CLASS_SHIFT | body)
    }

    /// Takes a number apart; `None` if it is none of ours.
    pub(super) fn of(number: InodeNo) -> Option<Self> {
        if number.0 & !((1 << 60) - 1) != PROC_BASE {
            return None;
        }
        let body = number.0 & ((1 << CLASS_SHIFT) - 1);
        let row = (number.0 & 0xff) as u8;
        let row = row.checked_sub(1);
        let pid = |number: u64| ClusterPid::try_from(i32::try_from(number).ok()?).ok();
        match (number.0 >> CLASS_SHIFT) & 3 {
            0 => match body {
                0 => Some(Self::Root),
                1 => Some(Self::Cluster),
                _ => {
                    let row = body.checked_sub(CLUSTER_ROWS)?;
                    Some(Self::ClusterFile(u8::try_from(row).ok()?))
                }
            },
            1 => {
                let node = NodeId(u16::try_from(body >> 8).ok()?);
                Some(row.map_or(Self::Node(node), |row| Self::NodeFile(node, row)))
            }
            2 => {
                let (pid, tag) = (pid(body >> (8 + Tag::BITS))?, Tag::new(body >> 8));
                let file = |row| Self::ProcessFile(pid, tag, row);
                Some(row.map_or(Self::Process(pid, tag), file))
            }
            _ => Some(Self::SelfLink(pid(body)?)),
        }
    }
}

const fn process(pid: ClusterPid, tag: Tag) -> u64 {
    ((pid.number() as u64) << Tag::BITS | tag.0 as u64) << 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let pid = |node, kernel| ClusterPid::of(NodeId(node), kernel).expect("a pid");
        for ino in [
            Ino::Root,
            Ino::Cluster,
            Ino::ClusterFile(0),
            Ino::ClusterFile(254),
            Ino::Node(NodeId(9999)),
            Ino::NodeFile(NodeId(1), 254),
            Ino::Process(pid(1, 65_536), Tag::new(0)),
            Ino::Process(pid(511, 4_194_303), Tag::new(u64::MAX)),
            Ino::ProcessFile(pid(2, 1), Tag::new(77), 3),
            Ino::SelfLink(pid(511, 4_194_303)),
        ] {
            assert_eq!(Ino::of(ino.number()), Some(ino));
            assert!((PROC_BASE..DEV_BASE).contains(&ino.number().0));
        }
        assert_eq!(Tag::new(u64::MAX).next(), Tag::new(0));
    }

    #[test]
    fn other_numbers() {
        for body in [2, 255, 512, 1 << 57, 1 << 58 | 1 << 40, 2 << 58, 3 << 58] {
            assert_eq!(Ino::of(InodeNo(PROC_BASE | body)), None, "{body:#x}");
        }
        assert_eq!(Ino::of(InodeNo(1)), None);
        assert_eq!(Ino::of(InodeNo(DEV_BASE | Ino::Root.number().0)), None);
    }
}
