//! The node daemon, the transport between nodes and the command line tools.
#![warn(missing_docs)]

pub mod batch;
pub mod cli;
pub mod config;
mod daemon;
pub mod dev;
mod devices;
pub mod identity;
mod jobs;
pub mod kill;
pub mod mount;
pub mod moves;
pub mod node;
mod nodes;
pub mod ps;
pub mod run;
pub mod shell;
pub mod stat;
mod table;
mod top;
pub mod transport;
