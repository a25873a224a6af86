//! FUSE: the kernel's side of the trees. Nothing outside this module names it.
//!
//! ```text
//! /dev/fuse -> device -> request (decode) -> session -> adapter -> Tree
//!                 ^                             |          |
//!                 +------ reply (encode) <------+----------+
//! /dev/fuse <- device <- notify (tree::Kernel) <- the client's callbacks
//! ```
//! A loop of its own over `/dev/fuse` instead of a library's: `docs/decisions/0004-fuse-session.md` says why.
//!
//! # Words
//! *Request*: what the kernel asks, named by its *unique* number. *Notification*: what the daemon tells the kernel.
//! *Worker*: a thread that reads requests. *Waiting*: a request whose future is not finished; see [`waits`].
//!
//! # Rules
//! - K1: a reply's `Hold` ends after the reply is with the kernel, so that no invalidation overtakes it.
//! - K2: a size that the kernel shows is one that it keeps ([`crossing`]).
//! - Policy A: attributes are cached from GETATTR and STATX replies alone, never from entries or SETATTR.
//! - Each request is answered once, whatever happens to its task; one that cannot be answered is taken back.
//! - A worker never waits: not for the network, not for a notification, not for a process.

mod abi;
mod adapter;
mod asker;
mod crossing;
mod device;
mod init;
mod interrupt;
mod mount;
mod notify;
mod reply;
mod request;
mod session;
mod sys;
pub mod table;
mod waits;
mod watchers;
mod watches;

pub use abi::Opcode;
pub use mount::{MountError, MountOptions, abort_files_below};
pub use notify::{Notifier, STORE_BYTES_MAX};
pub use session::{Connection, Mounted};
pub use waits::Waiting;

/// Workers unless configured: one that reads while the other is at work.
pub const WORKERS: usize = 2;

/// How a tree is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How it is mounted.
    pub mount: MountOptions,
    /// Threads that read requests, at least 1.
    pub workers: usize,
    /// Locks (fcntl and flock) go to the tree; otherwise they hold on this node only.
    pub locks: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mount: MountOptions::default(),
            workers: WORKERS,
            locks: false,
        }
    }
}
