//! Locks on the wire: flock(2) and the byte ranges of fcntl(2).

use crate::SessionId;
use serde::{Deserialize, Serialize};

/// Last byte of a lock "to the end of the file".
pub const RANGE_END: u64 = i64::MAX as u64;

/// The two families of locks, which never see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// fcntl(2): byte ranges of a process (POSIX) or of an open file (OFD).
    Posix,
    /// flock(2): whole files, of an open file.
    Flock,
}

/// How much a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockMode {
    /// Excludes writers: F_RDLCK, LOCK_SH.
    Read,
    /// Excludes everybody: F_WRLCK, LOCK_EX.
    Write,
}

/// Whose a lock is, within one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LocalOwner {
    /// Family; the same number in another one is another owner.
    pub kind: LockKind,
    /// The number that the node's kernel gave: a table of descriptors or an open file.
    pub id: u64,
}

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    /// Session of the node.
    pub session: SessionId,
    /// Owner on that node.
    pub local: LocalOwner,
}

/// Bytes `start` to `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, at most [`RANGE_END`].
    pub end: u64,
}

impl LockRange {
    /// The whole file, also what it may grow to.
    pub const ALL: Self = Self {
        start: 0,
        end: RANGE_END,
    };

    /// Returns whether the range is one at all.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.start <= self.end && self.end <= RANGE_END
    }

    /// Returns whether both have a byte in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// A lock that is held or wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Bytes locked.
    pub range: LockRange,
    /// How.
    pub mode: LockMode,
    /// Process that asked, for F_GETLK; 0 if its node could not tell.
    pub pid: u32,
}

/// What to do with the locks of an owner on an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockOp {
    /// Tells of a lock in the way of this one; changes nothing.
    Test(Held),
    /// Takes a lock; it replaces what the owner holds of these bytes.
    Acquire {
        /// The lock.
        lock: Held,
        /// Wait until nothing is in the way.
        wait: bool,
    },
    /// Gives back what the owner holds of these bytes.
    Clear(LockRange),
}

/// What became of a [`LockOp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockReply {
    /// Test: the lock in the way.
    InTheWay(Option<Held>),
    /// Acquire, Clear: done.
    Done {
        /// Counts the changes of all locks of this reign: of two replies the larger one tells the present.
        version: u64,
        /// Everything the owner now holds on the inode.
        held: Vec<Held>,
    },
    /// Acquire: still in the queue; ask again under the same number.
    Waiting,
}
