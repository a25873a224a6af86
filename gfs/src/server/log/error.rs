//! What can go wrong with the log, as one line each: what, where, why, what to do.

use crate::server::machine::Unreadable;
use consistency::NodeId;
use openraft::error::{ClientWriteError, ForwardToLeader};
use openraft::{EmptyNode, StorageError, StorageIOError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a log could not be opened. Nothing is changed on disk beyond what a crash would have left.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle of this one, has the directory.
    #[error("log {}: another process uses it; stop that one first", dir.display())]
    InUse {
        /// The log's directory.
        dir: PathBuf,
    },
    /// What was once durable is not there, or not as it was written.
    #[error(
        "log: {} is corrupt: {why}; restore it from a backup, or take this voter out of the set, \
         empty its directory and add it again so that the others fill it",
        path.display()
    )]
    Corrupt {
        /// The file or directory at fault.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// A newer glud wrote it. Nothing is wrong with it, and nothing was changed.
    #[error("log: {}: {why}", path.display())]
    Newer {
        /// The file or directory.
        path: PathBuf,
        /// What it has, and what this program reads.
        why: String,
    },
    /// The directory belongs to another node.
    #[error("log {}: it belongs to node {found}, not to node {expected}; check the data directory", dir.display())]
    Foreign {
        /// The log's directory.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who opens it.
        expected: NodeId,
    },
    /// Where a new log is to be made there is something.
    #[error(
        "log {}: there is one; if it is to be replaced, move it away first",
        dir.display()
    )]
    Exists {
        /// The log's directory.
        dir: PathBuf,
    },
    /// The operating system refused something.
    #[error("log: cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The configuration contradicts itself.
    #[error("log: {0}; correct the configuration")]
    Config(String),
    /// The raft core did not start.
    #[error("log {}: raft did not start: {why}", dir.display())]
    Raft {
        /// The log's directory.
        dir: PathBuf,
        /// What it said.
        why: String,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// Tells what a newer program wrote from what is damaged.
    pub(super) fn unreadable(path: &Path, error: Unreadable) -> Self {
        match error {
            Unreadable::Newer(why) => Self::Newer {
                path: path.to_owned(),
                why,
            },
            Unreadable::Damaged(why) => Self::corrupt(path, why),
        }
    }

    pub(super) fn corrupt(path: &Path, why: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            why: why.into(),
        }
    }
}

/// Why a command got no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Refused before it entered any log: another node leads, if known which.
    #[error("this node does not lead the metadata{}", hint(*.0))]
    NotLeader(Option<NodeId>),
    /// Refused before it entered any log: the log does not work, or not now.
    #[error("the metadata log takes no commands: {0}")]
    Unavailable(String),
    /// It may or may not be applied: ask again with the same (session, sequence).
    #[error("the outcome of the command is unknown: {0}")]
    Unknown(String),
    /// Larger than a command may be.
    #[error("a command of {bytes} bytes is larger than the log takes (at most {max})")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

fn hint(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |leader| format!("; node {leader} does"))
}

impl From<ForwardToLeader<u16, EmptyNode>> for ProposeError {
    fn from(forward: ForwardToLeader<u16, EmptyNode>) -> Self {
        Self::NotLeader(forward.leader_id.map(NodeId))
    }
}

impl From<ClientWriteError<u16, EmptyNode>> for ProposeError {
    fn from(error: ClientWriteError<u16, EmptyNode>) -> Self {
        match error {
            ClientWriteError::ForwardToLeader(forward) => forward.into(),
            ClientWriteError::ChangeMembershipError(error) => Self::Unavailable(error.to_string()),
        }
    }
}

/// Wraps a failure of a write for openraft, which then stops the node rather than let it lie.
pub(super) fn write_failed(error: &io::Error) -> StorageError<u16> {
    StorageIOError::write_logs(openraft::AnyError::new(error)).into()
}

/// Wraps a failure of a read for openraft.
pub(super) fn read_failed(error: &io::Error) -> StorageError<u16> {
    StorageIOError::read_logs(openraft::AnyError::new(error)).into()
}
