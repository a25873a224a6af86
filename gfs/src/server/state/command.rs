//! What goes through the replicated log, and what comes back.

use super::Step;
use consistency::wire::meta::{FsError, Op, OpReply};
use consistency::{ChunkId, Epoch, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use serde::{Deserialize, Serialize};

/// A change, stamped by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The leader's clock. Where it is behind the last stamp given out, the state goes on from that (S6).
    pub now: Timestamp,
    /// What to do.
    pub body: Body,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Opens a session and ends all earlier ones of the node; answered by [`Reply::Session`].
    OpenSession {
        /// For which node.
        node: NodeId,
        /// Which attempt of the node.
        attempt: u64,
    },
    /// Begins the reign of a leader; answered by [`Reply::Reign`].
    BeginReign,
    /// Ends a session with the results kept for it; one that has ended already is ignored. Answered by
    /// [`Reply::Done`].
    EndSession(SessionId),
    /// Changes the tree, once however often it is sent under its (session, seq); answered by [`Reply::Op`] or
    /// [`Reply::SessionEnded`]. An operation that only reads has no business here and fails with `Invalid`.
    Change {
        /// Which session.
        session: SessionId,
        /// Number of the operation.
        seq: OpSeq,
        /// The session has all replies below this: their results are dropped.
        done_below: OpSeq,
        /// What to change.
        op: Op,
    },
    /// No session knows these inodes any more: frees those without a name. Answered by [`Reply::Dead`].
    Reap(Vec<InodeNo>),
    /// All their replicas are deleted: forgets these dead chunks. Answered by [`Reply::Done`].
    ForgetDead(Vec<ChunkId>),
    /// Changes lists of copies; one of an earlier reign does nothing (D4). Answered by [`Reply::Repaired`].
    Repair {
        /// Under which it was decided.
        reign: Epoch,
        /// One after the other.
        steps: Vec<Step>,
    },
    /// A node is gone, and dead chunks wait for it in vain: what it has of them is deleted when it comes back (D3).
    /// Answered by [`Reply::Done`].
    ForgetDeadOn(NodeId),
    /// Begins or ends the emptying of a node. Answered by [`Reply::Done`].
    Drain {
        /// Which node.
        node: NodeId,
        /// Ends it if false.
        drain: bool,
    },
    /// All voters speak this version: from here on the log may have what it has added. Since version 7; the first that a
    /// cluster hears of it. Answered by [`Reply::Done`].
    RaiseVersion(u32),
    /// Some node watches something, or none does any more: the voters keep what happens, for whoever leads next. Since
    /// version 10. Answered by [`Reply::Done`].
    Watched(bool),
    /// The last writers of these files have closed, for those who watch them. Since version 10. Answered by
    /// [`Reply::Done`].
    Closed {
        /// Whose writers.
        session: SessionId,
        /// The files.
        files: Vec<InodeNo>,
    },
    /// The certificates of a node that were issued up to now are not good any more. Since version 10. Answered by
    /// [`Reply::Done`].
    Revoke(NodeId),
}

/// Outcome of a [`Command`]. Facts come without grants: those are the driver's to fill in.
#[allow(clippy::large_enum_variant, reason = "handed on one at a time")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// OpenSession: the session, and whether this attempt made it. A late copy of an attempt that was followed by
    /// another is answered by [`Reply::SessionEnded`].
    Session {
        /// The session.
        session: SessionId,
        /// It did not exist before.
        new: bool,
    },
    /// BeginReign: its number, which grows by one with each leader.
    Reign(Epoch),
    /// Change.
    Op {
        /// The cluster's time when the operation was done (S6).
        now: Timestamp,
        /// Its outcome.
        result: Result<OpReply, FsError>,
        /// It was done earlier and this is the record of it: what it tells may have changed since.
        again: bool,
    },
    /// Change: the session has ended, nothing was done.
    SessionEnded,
    /// Reap: the chunks that died.
    Dead(Vec<ChunkId>),
    /// Repair: which steps were made.
    Repaired(Vec<bool>),
    /// EndSession, ForgetDead, ForgetDeadOn, Drain, RaiseVersion, Watched, Closed and Revoke.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::{decode, encode};

    /// What is in the logs of the voters is read by each version that comes after: append, never reorder.
    #[test]
    fn golden_bytes() {
        let check = |body: Body, golden: &[u8]| {
            let now = Timestamp::from_nanos(0);
            let command = Command { now, body };
            let bytes = encode(&command);
            assert_eq!(bytes, [&[0, 0], golden].concat(), "{command:?} changed");
            assert_eq!(decode::<Command>(&bytes).expect("decodes"), command);
        };
        let (session, node) = (SessionId(3), NodeId(2));
        check(Body::OpenSession { node, attempt: 9 }, &[0, 2, 9]);
        check(Body::BeginReign, &[1]);
        check(Body::EndSession(session), &[2, 3]);
        let change = Body::Change {
            session,
            seq: OpSeq(4),
            done_below: OpSeq(1),
            op: Op::AllocateChunks { count: 7 },
        };
        check(change, &[3, 3, 4, 1, 15, 7]);
        check(Body::Reap(vec![InodeNo(5)]), &[4, 1, 5]);
        check(Body::ForgetDead(vec![ChunkId(6)]), &[5, 1, 6]);
        let copied = Step::Copied {
            chunk: ChunkId(6),
            source: NodeId(1),
            to: node,
            instead: Some(NodeId(3)),
        };
        let dropped = Step::Drop {
            chunk: ChunkId(6),
            node,
        };
        let repair = Body::Repair {
            reign: Epoch(8),
            steps: vec![copied, dropped],
        };
        check(repair, &[6, 8, 2, 0, 6, 1, 2, 1, 3, 1, 6, 2]);
        check(Body::ForgetDeadOn(node), &[7, 2]);
        check(Body::Drain { node, drain: true }, &[8, 2, 1]);
        check(Body::RaiseVersion(7), &[9, 7]);
        check(Body::Watched(true), &[10, 1]);
        let files = vec![InodeNo(5)];
        check(Body::Closed { session, files }, &[11, 3, 1, 5]);
        check(Body::Revoke(node), &[12, 2]);
    }
}
