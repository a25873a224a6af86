//! The process tree of the cluster and remote execution.

pub mod job;
