//! Long answers of the metadata service, as [`crate::net::frames`].

pub use crate::net::frames::{receive, send};

use consistency::NodeId;
use serde::{Deserialize, Serialize};

/// What is asked. Part of the protocol: append, never reorder. Who does not know one ends the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamRequest {
    /// The leader: the state as it is now. After [`StreamReply::Backup`] its bytes follow.
    Backup,
    /// A voter: the sum of its state as of an entry that it has not applied yet. Answered by [`StreamReply::Waiting`],
    /// then [`StreamReply::Sum`]; by [`StreamReply::Passed`] if it has.
    SumAt {
        /// Which entry.
        index: u64,
    },
    /// The leader: checks the metadata and the copies of all chunks. Answered by [`StreamReply::Checking`] from time to
    /// time, then [`StreamReply::Checked`].
    Check {
        /// Reads all data, not one block of each copy.
        data: bool,
    },
    /// As Check, and compares what each node's store has with what is listed there. Answered by
    /// [`StreamReply::Checking`] from time to time, then [`StreamReply::CheckedStores`].
    CheckStores {
        /// Reads all data, not one block of each copy.
        data: bool,
    },
    /// The leader: makes these nodes the voters, all others none. Answered by [`StreamReply::Voters`], or
    /// [`StreamReply::Failed`].
    SetVoters(Vec<NodeId>),
    /// The leader: the certificates of a node that were issued up to now are not good any more. Answered by
    /// [`StreamReply::Revoked`], or [`StreamReply::Failed`].
    Revoke(NodeId),
}

/// The answers. Part of the protocol: append, never reorder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamReply {
    /// Backup: the state follows.
    Backup {
        /// The last entry of the log that is in it.
        index: u64,
        /// Inodes in it.
        inodes: u64,
        /// Its length.
        bytes: u64,
    },
    /// This node does not lead; ask that one, if known.
    NotLeader(Option<NodeId>),
    /// SumAt: the entry is still to come.
    Waiting,
    /// SumAt: the entry is applied already.
    Passed,
    /// SumAt.
    Sum(StateSum),
    /// Check: how many copies were looked at.
    Checking(u64),
    /// Check: it is over.
    Checked(Checked),
    /// Check: another one is under way, or the leader could not go on, and why.
    Failed(String),
    /// CheckStores: it is over.
    CheckedStores(Checked, Vec<CheckedStore>),
    /// SetVoters: they are now.
    Voters(Vec<NodeId>),
    /// Revoke: so it is.
    Revoked,
}

/// Two states with the same sum are the same, but for one chance in four billion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSum {
    /// CRC-32 of the state as a snapshot has it.
    pub crc: u32,
    /// Its length.
    pub bytes: u64,
}

impl StateSum {
    /// Sums a snapshot up.
    #[must_use]
    pub fn of(state: &[u8]) -> Self {
        Self {
            crc: crc32fast::hash(state),
            bytes: state.len() as u64,
        }
    }
}

/// What a check of the cluster found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The entry of the log whose state was checked.
    pub index: u64,
    /// Inodes in it.
    pub inodes: u64,
    /// The voters with the sums of their states there, or why one has told none.
    pub voters: Vec<(NodeId, Result<StateSum, String>)>,
    /// The nodes on which chunks are listed.
    pub nodes: Vec<CheckedNode>,
    /// What is wrong, in one line each: part, rule, what.
    pub faults: Vec<(String, String, String)>,
}

/// What a check found on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedNode {
    /// Which node.
    pub node: NodeId,
    /// Copies that are listed there.
    pub copies: u64,
    /// Those that were looked at and are good.
    pub good: u64,
    /// Those that are damaged or missing.
    pub bad: u64,
}

/// What a node's store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedStore {
    /// Whose.
    pub node: NodeId,
    /// How many of its chunks no file has there, or why it has not told. The next sweep deletes them; what a sweep
    /// should have deleted is a fault.
    pub unlisted: Result<u64, String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::frames::check_golden as check;

    #[test]
    fn golden_bytes() {
        check(&StreamRequest::Backup, &[0]);
        check(&StreamRequest::SumAt { index: 300 }, &[1, 251, 44, 1]);
        check(&StreamRequest::Check { data: true }, &[2, 1]);
        check(&StreamRequest::CheckStores { data: true }, &[3, 1]);
        let voters = vec![NodeId(1), NodeId(300)];
        check(
            &StreamRequest::SetVoters(voters.clone()),
            &[4, 2, 1, 251, 44, 1],
        );
        check(&StreamReply::Voters(voters), &[9, 2, 1, 251, 44, 1]);
        check(&StreamRequest::Revoke(NodeId(3)), &[5, 3]);
        check(&StreamReply::Revoked, &[10]);
        let backup = StreamReply::Backup {
            index: 1,
            inodes: 2,
            bytes: 3,
        };
        check(&backup, &[0, 1, 2, 3]);
        check(&StreamReply::NotLeader(Some(NodeId(2))), &[1, 1, 2]);
        check(&StreamReply::Waiting, &[2]);
        check(&StreamReply::Passed, &[3]);
        let sum = StateSum { crc: 5, bytes: 6 };
        check(&StreamReply::Sum(sum), &[4, 5, 6]);
        check(&StreamReply::Checking(7), &[5, 7]);
        let checked = Checked {
            index: 1,
            inodes: 2,
            voters: vec![(NodeId(1), Ok(sum)), (NodeId(2), Err("x".into()))],
            nodes: vec![CheckedNode {
                node: NodeId(3),
                copies: 4,
                good: 5,
                bad: 6,
            }],
            faults: vec![("a".into(), "b".into(), "c".into())],
        };
        let golden = [
            6, 1, 2, 2, 1, 0, 5, 6, 2, 1, 1, b'x', 1, 3, 4, 5, 6, 1, 1, b'a', 1, b'b', 1, b'c',
        ];
        check(&StreamReply::Checked(checked), &golden);
        let stores = vec![
            CheckedStore {
                node: NodeId(2),
                unlisted: Ok(3),
            },
            CheckedStore {
                node: NodeId(4),
                unlisted: Err("x".into()),
            },
        ];
        check(
            &StreamReply::CheckedStores(Checked::default(), stores),
            &[8, 0, 0, 0, 0, 0, 2, 2, 0, 3, 4, 1, 1, b'x'],
        );
        check(&StreamReply::Failed("x".into()), &[7, 1, b'x']);
    }
}
