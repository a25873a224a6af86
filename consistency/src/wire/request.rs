//! What nodes ask the metadata leader, and its answers: sessions, operations, locks, watches, copies of chunks.

use super::lease::Mode;
use super::lock::{Held, LocalOwner, LockOp, LockReply};
use super::meta::{FsError, Op, OpReply};
use super::node::NodeLoad;
use super::watch::{Event, Place};
use crate::{ChunkId, Duration, Epoch, InodeNo, LeaseId, NodeId, OpSeq, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// What a node tells with each renewal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Load for placement.
    pub load: NodeLoad,
    /// Size of the chunk store's disk in bytes.
    pub disk_total: u64,
    /// Free bytes there.
    pub disk_free: u64,
    /// What fails together with the nodes that say the same (a rack, a room); empty: nothing but the node.
    pub domain: String,
}

/// A node as the leader sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which node.
    pub node: NodeId,
    /// It has a live session.
    pub up: bool,
    /// Its last report.
    pub report: NodeReport,
    /// Chunks in use that are listed there.
    pub chunks: u64,
    /// Sum of their lengths.
    pub chunk_bytes: u64,
    /// It is being emptied: it gets no new chunks.
    pub draining: bool,
}

impl NodeStatus {
    /// Returns a node without chunks.
    #[must_use]
    pub fn new(node: NodeId, up: bool, report: NodeReport) -> Self {
        Self {
            node,
            up,
            report,
            chunks: 0,
            chunk_bytes: 0,
            draining: false,
        }
    }
}

/// How the repair of chunks stands, as far as the leader has looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairStatus {
    /// The leader has looked at every chunk since a node came or went last.
    pub complete: bool,
    /// Chunks with fewer copies than there should be, on nodes that are there or not away for long.
    pub lacking: u64,
    /// Chunks without a copy on a node that is up.
    pub unreachable: u64,
    /// Copies under way.
    pub copying: u64,
}

/// Most chunks in a [`MetaRequest::BadCopies`] or [`MetaRequest::Inventory`].
pub const COPIES_PER_MESSAGE: usize = 20_000;

/// The version of the protocol that has brought [`MetaRequest::WatchSince`].
pub const WATCH_SINCE: u32 = 10;

/// The version of the protocol that has brought [`MetaRequest::Voters`], and logs on all nodes.
pub const VOTERS_SINCE: u32 = 10;

/// The version of the protocol that has brought [`MetaRequest::Revoked`], and revocations in the log.
pub const REVOKED_SINCE: u32 = 10;

/// The version of the protocol that has brought [`MetaRequest::Clock`].
pub const CLOCK_SINCE: u32 = 11;

/// A request to the metadata leader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaRequest {
    /// Opens a session for the calling node and ends all its earlier ones.
    OpenSession {
        /// Grows with every new attempt of the node, over its restarts too, and stays the same when one is
        /// repeated: so that a late copy cannot end the session that came after it.
        attempt: u64,
    },
    /// Renews the session; all its leases live as long as it does. Sent every third of the term.
    Renew {
        /// Which session.
        session: SessionId,
        /// News of the node.
        report: NodeReport,
    },
    /// After a change of leader: tells what the session holds, so that the new leader honours it.
    Reclaim {
        /// Which session.
        session: SessionId,
        /// The reign that is meant; another one's leader refuses.
        epoch: Epoch,
        /// All inodes with the mode held.
        leases: Vec<(InodeNo, Mode)>,
        /// No further message with leases follows.
        last: bool,
    },
    /// Gives inodes back that the kernel has forgotten. A grant younger than the one named stays.
    Release {
        /// Which session.
        session: SessionId,
        /// Inodes with the youngest grant seen.
        leases: Vec<(InodeNo, LeaseId)>,
    },
    /// An operation. A change is done once however often it is sent under its (session, seq).
    Op {
        /// Which session.
        session: SessionId,
        /// Number of the operation.
        seq: OpSeq,
        /// All replies below this were received: their results may be forgotten.
        done_below: OpSeq,
        /// What to do.
        op: Op,
    },
    /// Abandons an operation that has not been answered; it may or may not happen.
    Cancel {
        /// Which session.
        session: SessionId,
        /// Number of the operation.
        seq: OpSeq,
    },
    /// Asks for the nodes and their reports.
    Nodes,
    /// Tests, takes or gives back a lock. Taking one may be answered by [`LockReply::Waiting`] again and again; it is
    /// asked under one `seq` until it is answered otherwise, and abandoned by `Cancel`.
    Lock {
        /// Which session.
        session: SessionId,
        /// Number of the request; of the same counter as those of operations.
        seq: OpSeq,
        /// Counts the times it was sent, from 1: a late copy does nothing (LK7).
        attempt: u32,
        /// The reign that is meant; another one's leader refuses (LK6).
        epoch: Epoch,
        /// Which inode.
        ino: InodeNo,
        /// Who.
        owner: LocalOwner,
        /// What.
        op: LockOp,
    },
    /// Before `Reclaim`: tells which locks the session holds, so that the new leader honours them.
    ReclaimLocks {
        /// Which session.
        session: SessionId,
        /// The reign that is meant; another one's leader refuses.
        epoch: Epoch,
        /// The locks; repeating the message changes nothing.
        locks: Vec<(InodeNo, LocalOwner, Held)>,
    },
    /// Asks what has happened to what the session's node watches; answered by [`MetaReply::Events`], after some
    /// seconds also if nothing has.
    Watch {
        /// Which session.
        session: SessionId,
        /// Number of the set of watched inodes; a copy of a request that comes late does not bring an older one back.
        set: u64,
        /// All watched inodes, if they have changed or the leader does not know them.
        inodes: Option<Vec<InodeNo>>,
        /// Events up to this number were received: they may be forgotten.
        after: u64,
    },
    /// Files whose last writer has closed since their content was flushed. For watchers; not sent where nobody watches.
    Closed {
        /// Which session.
        session: SessionId,
        /// The files.
        files: Vec<InodeNo>,
    },
    /// Asks where the copies of a chunk are by now; answered by [`MetaReply::Located`].
    Locate(ChunkId),
    /// The asking node found its copies of these chunks damaged or missing. The leader asks it again before it
    /// believes that: this may be late.
    BadCopies(Vec<ChunkId>),
    /// What the asking node has; answered by [`MetaReply::Inventory`].
    Inventory {
        /// It has told of all chunks below this before.
        from: ChunkId,
        /// It has told of all its chunks up to this one, included.
        to: ChunkId,
        /// What it has from `from` to `to`, in ascending order.
        chunks: Vec<ChunkId>,
    },
    /// Begins or ends the emptying of a node.
    Drain {
        /// Which node.
        node: NodeId,
        /// Ends it if false.
        drain: bool,
    },
    /// Asks how the repair of chunks stands; answered by [`MetaReply::Repair`].
    Repair,
    /// Asks who keeps the metadata; answered by [`MetaReply::Voters`].
    Voters,
    /// As Watch, of a node that watches on under whichever leader; answered by [`MetaReply::EventsUpTo`].
    WatchSince {
        /// Which session.
        session: SessionId,
        /// As in Watch.
        set: u64,
        /// As in Watch.
        inodes: Option<Vec<InodeNo>>,
        /// As in Watch: events up to this number were received from this leader.
        after: u64,
        /// The node has had all events up to here; `None` if it has not watched before.
        since: Option<Place>,
    },
    /// Asks whose certificates are not good any more; answered by [`MetaReply::Revoked`].
    Revoked,
    /// Asks for the leader's own clock, to compare rates; answered by [`MetaReply::Clock`].
    Clock,
}

/// Answer to a [`MetaRequest`].
#[allow(
    clippy::large_enum_variant,
    reason = "made, encoded and dropped one at a time"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaReply {
    /// OpenSession.
    Opened {
        /// The new session.
        session: SessionId,
        /// How long it lives without renewal, counted from when the request was sent.
        term: Duration,
        /// Leader's epoch.
        epoch: Epoch,
        /// Leader's clock.
        now: Timestamp,
    },
    /// Renew.
    Renewed {
        /// How long it lives, counted from when the request was sent.
        term: Duration,
        /// Leader's epoch; a new one asks for a `Reclaim`.
        epoch: Epoch,
        /// Leader's clock.
        now: Timestamp,
        /// The leader has not heard yet what this session holds.
        reclaim: bool,
    },
    /// Reclaim: the new name of each grant, in the order of the request; `None`: it could not be honoured.
    Reclaimed(Vec<Option<LeaseId>>),
    /// Release, Cancel, ReclaimLocks, Closed, BadCopies and Drain.
    Done,
    /// Op.
    Op {
        /// Leader's clock when the operation was done (S6).
        now: Timestamp,
        /// Its outcome.
        result: Result<OpReply, FsError>,
        /// Some node watches something, and wants to hear of closes.
        watched: bool,
    },
    /// Nodes.
    Nodes(Vec<NodeStatus>),
    /// This node does not lead; ask that one, if known.
    NotLeader(Option<NodeId>),
    /// The session has ended: everything it cached is void.
    SessionEnded,
    /// Lock.
    Lock(Result<LockReply, FsError>),
    /// Watch.
    Events {
        /// The leader knows what the session watches; otherwise it has to be told.
        known: bool,
        /// What happened after the number in the request, in order.
        events: Vec<(u64, Event)>,
    },
    /// Locate: its copies; none: no file has such a chunk.
    Located(Vec<NodeId>),
    /// Inventory.
    Inventory {
        /// What the node may delete, unless it has been put there since it made the list (D3).
        orphans: Vec<ChunkId>,
        /// The leader has looked up to here; the next list begins behind it.
        upto: ChunkId,
    },
    /// Repair.
    Repair(RepairStatus),
    /// Voters, in ascending order.
    Voters(Vec<NodeId>),
    /// WatchSince.
    EventsUpTo {
        /// As in Events.
        known: bool,
        /// As in Events.
        events: Vec<(u64, Event)>,
        /// With these the node has had all events up to here.
        upto: Place,
        /// Some of those since the place in the request are not known any more.
        lost: bool,
    },
    /// Revoked: certificates of these nodes are good if they were issued later than this.
    Revoked(Vec<(NodeId, Timestamp)>),
    /// Clock.
    Clock {
        /// Whose clock it is: that of this reign's leader.
        epoch: Epoch,
        /// What it says, since some moment of its own.
        since: Duration,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lock::{LockKind, LockMode, LockRange};
    use crate::wire::meta::Name;
    use crate::wire::{check_golden, check_golden as check};

    #[test]
    fn golden_bytes() {
        let name = Name::new("a").expect("valid");
        check(&MetaRequest::OpenSession { attempt: 7 }, &[0, 7]);
        let op = Op::Lookup {
            parent: InodeNo::ROOT,
            name,
        };
        let request = MetaRequest::Op {
            session: SessionId(300),
            seq: OpSeq(2),
            done_below: OpSeq(1),
            op,
        };
        check(&request, &[4, 251, 44, 1, 2, 1, 0, 1, 1, b'a']);
        let owner = LocalOwner {
            kind: LockKind::Flock,
            id: 9,
        };
        let lock = Held {
            range: LockRange { start: 2, end: 5 },
            mode: LockMode::Write,
            pid: 77,
        };
        let request = MetaRequest::Lock {
            session: SessionId(3),
            seq: OpSeq(4),
            attempt: 1,
            epoch: Epoch(6),
            ino: InodeNo(8),
            owner,
            op: LockOp::Acquire { lock, wait: true },
        };
        check(&request, &[7, 3, 4, 1, 6, 8, 1, 9, 1, 2, 5, 1, 77, 1]);
        let request = MetaRequest::ReclaimLocks {
            session: SessionId(3),
            epoch: Epoch(6),
            locks: vec![(InodeNo(8), owner, lock)],
        };
        check(&request, &[8, 3, 6, 1, 8, 1, 9, 2, 5, 1, 77]);
    }

    #[test]
    fn golden_bytes_of_replies() {
        let held = Held {
            range: LockRange { start: 2, end: 5 },
            mode: LockMode::Read,
            pid: 77,
        };
        let done = LockReply::Done {
            version: 3,
            held: vec![held],
        };
        let check = |reply: LockReply, golden: &[u8]| {
            check_golden(&MetaReply::Lock(Ok(reply)), golden);
        };
        check(done, &[8, 0, 1, 3, 1, 2, 5, 0, 77]);
        check(LockReply::InTheWay(Some(held)), &[8, 0, 0, 1, 2, 5, 0, 77]);
        check(LockReply::Waiting, &[8, 0, 2]);
    }
}
