//! What the replicated log needs from the state it drives.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A deterministic state machine: same commands in the same order, same state and replies on every node.
///
/// No clock, no I/O, no randomness, no iteration over hash maps: the leader puts time and ids into the command.
///
/// Commands wait while it is cloned, for each snapshot: what is large about it is shared with the clone until it changes.
pub trait StateMachine: Clone + Default + Send + Sync + 'static {
    /// A change, stamped by the leader.
    type Command: Serialize + DeserializeOwned + Clone + Debug + Send + Sync + 'static;
    /// Its outcome.
    type Reply: Clone + Debug + Send + Sync + 'static;

    /// Applies a committed command.
    fn apply(&mut self, command: &Self::Command) -> Self::Reply;

    /// Writes the whole state, with its format version first.
    fn snapshot(&self) -> Vec<u8>;

    /// Reads a snapshot.
    ///
    /// # Errors
    /// [`Unreadable`]
    fn restore(bytes: &[u8]) -> Result<Self, Unreadable>;
}

/// Why something on a disk cannot be read, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A newer program wrote it: nothing is wrong with it.
    #[error("{0}")]
    Newer(String),
    /// It is damaged, or none.
    #[error("{0}")]
    Damaged(String),
}

impl Unreadable {
    /// Says that a newer program wrote it.
    pub(crate) fn newer(what: &str, found: impl std::fmt::Display, known: u32) -> Self {
        Self::Newer(format!(
            "{what} has format {found}, this program reads up to {known}: use the newer program again"
        ))
    }
}

impl From<String> for Unreadable {
    fn from(why: String) -> Self {
        Self::Damaged(why)
    }
}

impl From<&str> for Unreadable {
    fn from(why: &str) -> Self {
        Self::Damaged(why.to_owned())
    }
}
