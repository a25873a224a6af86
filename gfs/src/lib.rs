//! The cluster file system.
//!
//! A file operation travels one way: [`fuse`] (decode) -> `root` (which tree) -> `client` (lease check, call) ->
//! transport -> `server` (claims, breaks, log) -> reply -> client (install if the stamp holds). Callbacks travel
//! the other way: break -> `client::callback` (flush, forget) -> [`tree::Kernel`] -> ack.
#![warn(missing_docs)]

pub mod client;
pub mod data;
pub mod error;
pub mod fsck;
pub mod fuse;
pub mod net;
pub mod root;
pub mod server;
pub mod tree;
