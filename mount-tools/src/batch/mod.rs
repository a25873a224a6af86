//! `glubatch` and `glupart`: jobs that wait for their turn.
//!
//! The queue is a directory of the cluster's tree, `.glu/batch` at its root: what keeps the tree keeps the queue, over the
//! loss of any node. Every node has a *scheduler*, a child of its daemon; the one that holds the lock of the queue's
//! file works, the others wait for it (docs/decisions/0011-batch.md).
//!
//! - [`job`]: what a job is; [`rules`]: partitions and reservations.
//! - [`queue`]: what is decided (pure: time and nodes are told).
//! - [`spool`]: the directory, as the scheduler and as users see it.
//! - [`scheduler`]: the process beside the daemon, whose children are the `glurun`s of the jobs that run.
//! - [`submit`], [`tool`], [`part`]: the commands.

mod job;
mod part;
mod queue;
mod rules;
pub mod scheduler;
mod spool;
mod submit;
mod tool;

pub use part::main as part_main;
pub(crate) use part::{Uses, uses};
pub(crate) use rules::Reservations;
pub(crate) use spool::{RULES, read_json, write_json};
pub use tool::main as batch_main;
