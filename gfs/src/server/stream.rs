//! Long answers of the metadata service: a stream of frames, each a length in four bytes and a message.

use consistency::NodeId;
use consistency::wire::{self, MESSAGE_BYTES_MAX};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What is asked. Part of the protocol: append, never reorder. Who does not know one ends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Sends a message.
///
/// # Errors
/// Of the stream.
pub async fn send<T: Serialize + Sync>(
    stream: &mut (impl AsyncWrite + Unpin + Send),
    message: &T,
) -> io::Result<()> {
    let bytes = wire::encode(message);
    let length = u32::try_from(bytes.len()).expect("a message is far below 4 GiB");
    stream.write_u32_le(length).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Receives a message that was sent with [`send`].
///
/// # Errors
/// Of the stream; `InvalidData` if that is none.
pub async fn receive<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin + Send),
) -> io::Result<T> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let length = stream.read_u32_le().await? as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(invalid(format!("a message of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    wire::decode(&bytes).map_err(|error| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, golden: &[u8]) {
        assert_eq!(wire::encode(message), golden, "{message:?} changed");
        assert_eq!(&wire::decode::<T>(golden).expect("decodes"), message);
    }

    #[test]
    fn golden_bytes() {
        check(&StreamRequest::Backup, &[0]);
        check(&StreamRequest::SumAt { index: 300 }, &[1, 251, 44, 1]);
        check(&StreamRequest::Check { data: true }, &[2, 1]);
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
        check(&StreamReply::Failed("x".into()), &[7, 1, b'x']);
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_refused() {
        let mut bytes = &[255, 255, 255, 255, 0][..];
        let error = receive::<StreamReply>(&mut bytes)
            .await
            .expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
