//! The processes of the cluster, and the jobs that run on it ([`job`]).
//!
//! Every node has a [`ProcAgent`] that reads its procfs; a [`ProcTree`] asks the agents and shows what they say as
//! `/cluster/proc`.
//!
//! - A *cluster pid* numbers a process cluster-wide ([`pids`]); a node's [`keeper`] makes its kernel give out pids
//!   that are cluster pids.
//! - An *identity* is a cluster pid together with the birth of its process: a pid given out again is another process
//!   and never taken for the old one.
//! - A *snapshot* is all that readers of the whole table want to know, for all processes of a node, in one message.
#![warn(missing_docs)]

mod agent;
mod boots;
mod cluster;
pub mod events;
mod files;
pub mod job;
pub mod keeper;
mod level;
pub mod load;
pub mod pids;
mod procfs;
mod reading;
pub mod signal;
mod silent;
mod sys;
mod text;
mod totals;
pub mod tree;
mod view;
mod wait;
pub mod wire;

pub use agent::{Forward, Metrics, ProcAgent, READ_PATIENCE, READS_MAX, TellLock, WAITS_MAX};
pub use cluster::{LONG_DEADLINE, PAGE_DEADLINE, PAGES_MAX, PATIENCE};
pub use events::Events;
pub use load::measure;
pub use silent::SILENCE_MAX;
pub use tree::{ProcTree, Switch, Switches, TellDraining};
pub use wait::WAIT_MAX;

use gfs::net::{Router, ServiceId};
use std::sync::Arc;

/// Returns whether this node's procfs hides processes of other users from a user.
#[must_use]
pub fn hides_processes() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text::hidden(&mounts, "/proc").is_some()
}

/// Offers a node's processes to the others.
pub fn register(router: &Router, agent: Arc<ProcAgent>) {
    router.register(ServiceId::Process, agent);
}
