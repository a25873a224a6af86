//! What the replicated log needs from the state it drives.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A deterministic state machine: same commands in the same order, same state and replies on every node.
///
/// No clock, no I/O, no randomness, no iteration over hash maps: the leader puts time and ids into the command.
pub trait StateMachine: Default + Send + Sync + 'static {
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
    /// One line that says what is wrong with it (truncated, from a newer version, ...).
    fn restore(bytes: &[u8]) -> Result<Self, String>;
}
