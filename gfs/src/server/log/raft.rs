//! The types openraft works with.

use bytes::Bytes;
use consistency::{Epoch, NodeId};
use openraft::{EmptyNode, TokioRuntime, Vote};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Cursor;
use std::sync::atomic::{AtomicU64, Ordering};

openraft::declare_raft_types!(
    /// Openraft's view of the log: it carries encoded commands, so that none of it is generic over
    /// the state machine, and a command is encoded once for disk and network.
    pub(super) Types:
        D = Batch,
        R = (),
        NodeId = u16,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        Responder = openraft::impls::OneshotResponder<Types>,
        AsyncRuntime = TokioRuntime,
);

pub(super) type Entry = openraft::Entry<Types>;
pub(super) type LogId = openraft::LogId<u16>;
pub(super) type Raft = openraft::Raft<Types>;
pub(super) type Membership = openraft::StoredMembership<u16, EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<u16, EmptyNode>;

/// The commands that share one log entry and one fsync.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Batch {
    /// The life of the node that proposed it: [`Life::id`].
    pub life: u64,
    /// Counts the batches of one life from 1.
    pub number: u64,
    /// Encoded commands in the order of their application.
    pub commands: Vec<Bytes>,
}

impl Batch {
    pub(super) fn bytes(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, bytes) = (self.commands.len(), self.bytes());
        write!(f, "batch {} ({count} commands, {bytes} bytes)", self.number)
    }
}

/// One life of the proposing node, from open to crash. It tells a batch of this life, whose callers
/// wait here, from one of an earlier life that comes back out of the log.
#[derive(Debug)]
pub(super) struct Life {
    pub id: u64,
    appended: AtomicU64,
}

impl Life {
    pub(super) fn new() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        // The standard library's one source of random bits; a repeat would answer a caller with the
        // reply to another command, so a counter that a restored backup sets back will not do.
        Self {
            id: RandomState::new().build_hasher().finish(),
            appended: AtomicU64::new(0),
        }
    }

    /// Notes that an entry went into this node's log: from then on it may be committed, even after
    /// this node was told to drop it, because a copy may survive elsewhere.
    pub(super) fn note_appended(&self, entry: &Entry) {
        if let openraft::EntryPayload::Normal(batch) = &entry.payload
            && batch.life == self.id
        {
            self.appended.fetch_max(batch.number, Ordering::Relaxed);
        }
    }

    /// Returns whether a batch may be in some log. Batches are appended in the order of their numbers.
    pub(super) fn is_appended(&self, number: u64) -> bool {
        self.appended.load(Ordering::Relaxed) >= number
    }
}

/// Returns the number of a leader's reign.
///
/// Openraft lets a second node win in the same term, if its id is higher, so the term alone does not
/// name a reign; term and node do, in this order.
pub(super) fn epoch(vote: &Vote<u16>) -> Epoch {
    Epoch((vote.leader_id.term << 16) | u64::from(vote.leader_id.node_id))
}

pub(super) fn node(id: u16) -> NodeId {
    NodeId(id)
}
