//! The node daemon, the transport between nodes and the command line tools.
#![warn(missing_docs)]

pub mod config;
pub mod identity;
pub mod transport;
