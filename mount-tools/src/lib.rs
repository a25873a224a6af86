//! The node daemon, the transport and the command line tools.

pub mod run;
