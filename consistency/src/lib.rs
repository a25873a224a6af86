//! Ids, wire types, leases and sessions of a Glu cluster: messages and state machines, no I/O.
//!
//! Nothing here opens a socket, spawns a task or reads a clock. A driver feeds events in with
//! `handle_*` and takes what to do next out with `poll_*`; see [`lease::Server`] and
//! [`lease::Client`]. The dependency list of this crate is that rule.
#![forbid(unsafe_code)]
#![warn(
    missing_docs,
    clippy::iter_over_hash_type,
    clippy::wildcard_enum_match_arm
)]
#![warn(clippy::unwrap_used, clippy::disallowed_methods)]

mod ids;
pub mod lease;
pub mod lock;
mod time;
pub mod wire;

pub use ids::{ChunkId, Epoch, InodeNo, LeaseId, NodeId, OpId, OpSeq, SessionId, Version};
pub use time::{Duration, Instant, Timestamp};
