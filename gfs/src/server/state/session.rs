//! Sessions, and the results of their changes: what makes a change happen exactly once.

use super::Reply;
use super::check::Faults;
use consistency::wire::meta::{FsError, OpReply};
use consistency::{ChunkId, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Upper limit of the results kept for one session (some 20 MB). A client drops results as it receives
/// replies; it can only come here by keeping one operation open while tens of thousands pass it.
pub const RESULTS_MAX: usize = 65_536;

/// All sessions that have not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sessions {
    next: SessionId,
    live: BTreeMap<SessionId, Session>,
}

/// One life of a node's client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    node: NodeId,
    /// Of the request that opened it.
    attempt: u64,
    /// Every result below this was received and is dropped.
    done_below: OpSeq,
    results: BTreeMap<OpSeq, Outcome>,
    /// Chunk numbers given to it: first number to one past the last, adjacent ranges merged.
    chunks: BTreeMap<ChunkId, ChunkId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Outcome {
    now: Timestamp,
    result: Result<OpReply, FsError>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            next: SessionId(1),
            live: BTreeMap::new(),
        }
    }
}

impl Sessions {
    /// Opens a session and ends the node's earlier ones; returns whether it is new. A repeated attempt gets its
    /// session again, one that is older than the node's live session gets none.
    pub(super) fn open(&mut self, node: NodeId, attempt: u64) -> Option<(SessionId, bool)> {
        let live = self.live.iter().find(|(_, session)| session.node == node);
        if let Some((id, live)) = live
            && attempt <= live.attempt
        {
            return (attempt == live.attempt).then_some((*id, false));
        }
        self.live.retain(|_, session| session.node != node);
        let id = self.next;
        self.next = SessionId(id.0 + 1);
        self.live.insert(
            id,
            Session {
                node,
                attempt,
                done_below: OpSeq(0),
                results: BTreeMap::new(),
                chunks: BTreeMap::new(),
            },
        );
        Some((id, true))
    }

    #[cfg(test)]
    pub(super) const fn next_number(&self) -> u64 {
        self.next.0
    }

    /// Damage, for the checker to find.
    #[cfg(test)]
    pub(super) const fn set_next(&mut self, next: SessionId) {
        self.next = next;
    }

    /// Damage, for the checker to find.
    #[cfg(test)]
    pub(super) fn take_for(&mut self, node: NodeId) {
        for session in self.live.values_mut() {
            session.node = node;
        }
    }

    pub(super) fn end(&mut self, id: SessionId) {
        self.live.remove(&id);
    }

    /// Ends all sessions, and gives no number out again that may have been given out since; `skipped` of them at most.
    pub(crate) fn end_all(&mut self, skipped: u64) {
        self.live.clear();
        self.next = SessionId(self.next.0 + skipped);
    }

    pub(super) fn record(&self, id: SessionId) -> Option<&Session> {
        self.live.get(&id)
    }

    pub(crate) fn record_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.live.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, NodeId)> {
        self.live.iter().map(|(id, session)| (*id, session.node))
    }

    /// Returns whose session it is.
    pub(super) fn node_of(&self, id: SessionId) -> Option<NodeId> {
        self.live.get(&id).map(|session| session.node)
    }

    /// Returns true if a result that was not received, as far as is known, tells of the making of this inode.
    pub(super) fn keeps_birth_of(&self, ino: InodeNo) -> bool {
        let mut results = self.live.values().flat_map(|s| s.results.values());
        results.any(|outcome| match &outcome.result {
            Ok(OpReply::Created { entry, .. }) => entry.attr.ino == ino,
            _ => false,
        })
    }

    /// Returns true if a session that has not ended was given this chunk number.
    pub(super) fn owns(&self, chunk: ChunkId) -> bool {
        self.live.values().any(|session| session.owns(chunk))
    }

    /// Returns true if this session was given this chunk number.
    pub(crate) fn owns_in(&self, id: SessionId, chunk: ChunkId) -> bool {
        self.live
            .get(&id)
            .is_some_and(|session| session.owns(chunk))
    }

    /// Notes what is wrong with the records (M4, M5); see [`super::MetaState::check`].
    pub(super) fn check(&self, chunks_below: ChunkId, faults: &mut Faults) {
        let mut nodes = BTreeSet::new();
        for (id, session) in &self.live {
            let mut note = |rule, why: String| faults.note(rule, format!("session {id} {why}"));
            if *id >= self.next {
                note("M5", format!("is beyond the next number {}", self.next));
            }
            if !nodes.insert(session.node) {
                note(
                    "M5",
                    format!("is not the only one of node {}", session.node),
                );
            }
            if let Some((seq, _)) = session.results.range(..session.done_below).next() {
                note("M4", format!("keeps result {seq}, which was received"));
            }
            if session.results.len() > RESULTS_MAX {
                note("M4", format!("keeps {} results", session.results.len()));
            }
            let mut end = ChunkId(0);
            for (&first, &after) in &session.chunks {
                if first < end || after <= first || after > chunks_below {
                    note("M8", format!("owns odd chunks {first}..{after}"));
                }
                end = after;
            }
        }
    }
}

impl Session {
    /// Returns the reply to a change made before; `now` is the present time.
    pub(super) fn answer(&self, seq: OpSeq, now: Timestamp) -> Option<Reply> {
        if seq < self.done_below {
            // A late duplicate: its reply was received long ago, so nobody waits for this one. What matters
            // is that the change does not happen again.
            return Some(Reply::Op {
                now,
                result: Err(FsError::Stale),
                again: true,
            });
        }
        self.results.get(&seq).map(|outcome| Reply::Op {
            now: outcome.now,
            result: outcome.result.clone(),
            again: true,
        })
    }

    pub(super) fn forget_below(&mut self, done_below: OpSeq) {
        if done_below > self.done_below {
            self.done_below = done_below;
            while let Some(first) = self.results.first_entry()
                && *first.key() < done_below
            {
                first.remove();
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.results.len() >= RESULTS_MAX
    }

    pub(super) fn keep(&mut self, seq: OpSeq, now: Timestamp, result: Result<OpReply, FsError>) {
        self.results.insert(seq, Outcome { now, result });
    }

    /// Notes that the numbers from `first` to before `end` are this session's to use.
    pub(crate) fn own(&mut self, first: ChunkId, end: ChunkId) {
        match self.chunks.last_entry() {
            Some(mut last) if *last.get() == first => *last.get_mut() = end,
            _ => {
                self.chunks.insert(first, end);
            }
        }
    }

    fn owns(&self, chunk: ChunkId) -> bool {
        self.chunks
            .range(..=chunk)
            .next_back()
            .is_some_and(|(_, &end)| chunk < end)
    }
}
