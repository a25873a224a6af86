//! Inode numbers of the process tree. They can be taken apart again and are the same on every node:
//!
//! ```text
//! PROC_BASE | class (2 bits) | body (58 bits)
//!   0 fixed      0 the root, 1 cluster, 256 and more a file of cluster, 512 and more one below the root
//!   1 node       own view (1) | node (16) | row (8): 0 the directory, 1 and more a file
//!   2 process    cluster pid (31) | tag (19) | row (8): 0 the directory, 1 and more a file
//!   3 self       0 (1) | own view (1) | thread (22) | cluster pid (31) of the caller
//!     deep       1 (1) | a number that `deep` has given out
//! ```
//! The *tag* tells apart the processes that have had the same pid; `known` makes sure that it does. Its upper bit is
//! set in a node's *own view*, where processes have the numbers of the node's kernel.
//!
//! `self` has an inode for each process that looks at it: the kernel caches the targets of links.

use crate::pids::{ClusterPid, KERNEL_PID_MAX};
use consistency::{InodeNo, NodeId};
use gfs::tree::{DEV_BASE, PROC_BASE};

/// A file's position in its table.
pub(super) type Row = u8;

/// See the module. 19 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tag(u32);

impl Tag {
    const BITS: u32 = 19;
    const OWN: u32 = 1 << (Self::BITS - 1);

    /// Returns the tag with the lowest bits of `bits`.
    pub(super) const fn new(bits: u64, own: bool) -> Self {
        // Narrower than that.
        #[allow(clippy::cast_possible_truncation)]
        let bits = (bits & (Self::OWN as u64 - 1)) as u32;
        Self(if own { bits | Self::OWN } else { bits })
    }

    pub(super) const fn next(self) -> Self {
        Self::new(self.0 as u64 + 1, self.own())
    }

    const fn read(bits: u64) -> Self {
        Self::new(bits, bits & Self::OWN as u64 != 0)
    }

    /// Returns whether it is seen in its node's own view.
    pub(super) const fn own(self) -> bool {
        self.0 & Self::OWN != 0
    }
}

/// What an inode number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ino {
    Root,
    RootFile(Row),
    Cluster,
    ClusterFile(Row),
    Node(NodeId),
    NodeFile(NodeId, Row),
    /// A node's own view.
    Own(NodeId),
    OwnFile(NodeId, Row),
    Process(ClusterPid, Tag),
    ProcessFile(ClusterPid, Tag, Row),
    SelfLink(Asker),
    Deep(u64),
}

/// Whom a link leads to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) pid: ClusterPid,
    /// The kernel's number of its thread, 0 for the process.
    pub(super) thread: u32,
    pub(super) own: bool,
}

const CLASS_SHIFT: u32 = 58;
const CLUSTER_ROWS: u64 = 256;
const ROOT_ROWS: u64 = 512;
const OWN_NODE: u64 = 1 << 24;
const PID_BITS: u32 = 31;
const OWN_SELF: u64 = 1 << 56;
const DEEP: u64 = 1 << 57;
const _: () = assert!(PROC_BASE + (1 << (CLASS_SHIFT + 2)) <= DEV_BASE);
const _: () = assert!((KERNEL_PID_MAX as u64) << PID_BITS <= OWN_SELF);

impl Ino {
    pub(super) const fn number(self) -> InodeNo {
        let (class, body) = match self {
            Self::Root => (0, 0),
            Self::Cluster => (0, 1),
            Self::ClusterFile(row) => (0, CLUSTER_ROWS + row as u64),
            Self::RootFile(row) => (0, ROOT_ROWS + row as u64),
            Self::Node(node) => (1, (node.0 as u64) << 8),
            Self::NodeFile(node, row) => (1, (node.0 as u64) << 8 | (row as u64 + 1)),
            Self::Own(node) => (1, OWN_NODE | (node.0 as u64) << 8),
            Self::OwnFile(node, row) => (1, OWN_NODE | (node.0 as u64) << 8 | (row as u64 + 1)),
            Self::Process(pid, tag) => (2, process(pid, tag)),
            Self::ProcessFile(pid, tag, row) => (2, process(pid, tag) | (row as u64 + 1)),
            Self::SelfLink(Asker { pid, thread, own }) => {
                let own = if own { OWN_SELF } else { 0 };
                (3, own | (thread as u64) << PID_BITS | pid.number() as u64)
            }
            Self::Deep(number) => (3, DEEP | number),
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
                CLUSTER_ROWS..ROOT_ROWS => {
                    Some(Self::ClusterFile(u8::try_from(body - CLUSTER_ROWS).ok()?))
                }
                _ => {
                    let row = body.checked_sub(ROOT_ROWS)?;
                    Some(Self::RootFile(u8::try_from(row).ok()?))
                }
            },
            1 => {
                let node = NodeId(u16::try_from((body & !OWN_NODE) >> 8).ok()?);
                Some(match (body & OWN_NODE != 0, row) {
                    (false, None) => Self::Node(node),
                    (false, Some(row)) => Self::NodeFile(node, row),
                    (true, None) => Self::Own(node),
                    (true, Some(row)) => Self::OwnFile(node, row),
                })
            }
            2 => {
                let (pid, tag) = (pid(body >> (8 + Tag::BITS))?, Tag::read(body >> 8));
                let file = |row| Self::ProcessFile(pid, tag, row);
                Some(row.map_or(Self::Process(pid, tag), file))
            }
            _ if body & DEEP != 0 => Some(Self::Deep(body & !DEEP)),
            _ => {
                let thread = (body & !OWN_SELF) >> PID_BITS;
                Some(Self::SelfLink(Asker {
                    pid: pid(body & ((1 << PID_BITS) - 1))?,
                    thread: u32::try_from(thread).ok()?,
                    own: body & OWN_SELF != 0,
                }))
            }
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
        let asker = |pid, thread, own| Ino::SelfLink(Asker { pid, thread, own });
        for ino in [
            Ino::Root,
            Ino::Cluster,
            Ino::ClusterFile(0),
            Ino::ClusterFile(254),
            Ino::Node(NodeId(9999)),
            Ino::NodeFile(NodeId(1), 254),
            Ino::Own(NodeId(9999)),
            Ino::OwnFile(NodeId(1), 254),
            Ino::RootFile(0),
            Ino::RootFile(254),
            Ino::Process(pid(1, 65_536), Tag::new(0, false)),
            Ino::Process(pid(511, 4_194_303), Tag::new(u64::MAX, true)),
            Ino::ProcessFile(pid(2, 1), Tag::new(77, false), 3),
            asker(pid(511, 4_194_303), 4_194_303, true),
            asker(pid(511, 4_194_303), 0, false),
            Ino::Deep(0),
            Ino::Deep((1 << 57) - 1),
        ] {
            assert_eq!(Ino::of(ino.number()), Some(ino));
            assert!((PROC_BASE..DEV_BASE).contains(&ino.number().0));
        }
        for own in [false, true] {
            assert_eq!(Tag::new(u64::MAX, own).next(), Tag::new(0, own));
        }
    }

    #[test]
    fn other_numbers() {
        for body in [2, 255, 768, 1 << 57, 1 << 58 | 1 << 40, 2 << 58, 3 << 58] {
            assert_eq!(Ino::of(InodeNo(PROC_BASE | body)), None, "{body:#x}");
        }
        assert_eq!(Ino::of(InodeNo(1)), None);
        assert_eq!(Ino::of(InodeNo(DEV_BASE | Ino::Root.number().0)), None);
    }
}
