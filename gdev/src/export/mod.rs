//! Directories that a node exports: `/cluster/node<N>/root`.
//!
//! `[root]` of a node's configuration names directories ([`RootConfig`]), none by default. Every node sees them at their
//! own path below `root` (`/home` of node 2 is `/cluster/node2/root/home`), and what is on the way to them as made-up
//! directories. Everything is done by the owner's node, in its own file system, as the caller.
//!
//! # What is seen
//! - One file system for each exported directory: what is mounted below it is not shown, unless it is exported itself.
//! - Nothing is cached: names and attributes have no time-outs in the kernel, and open files are read and written past its
//!   cache. So what is changed beside, by whomever, is seen by the next system call, as on the node itself. (A lookup's
//!   attributes answer the GETATTR of the same system call.)
//! - Symbolic links are what they are; they are followed by the reader's kernel, from where they are for the reader.
//! - Devices are shown as files that cannot be opened, with the attribute `user.glu.device`; pipes and sockets as what they
//!   are, which join processes of one node. Bits that change user or group of who executes a file are neither shown nor set.
//!
//! # Rights
//! | id | statement |
//! | --- | --- |
//! | NR1 as the caller | what is done to a file is done by a thread with the caller's user, groups and no capability that he does not have |
//! | NR2 beneath | no path leads out of its exported directory: by no name, no link and no mount |
//! | NR3 the same one | what is done is done to the file that was looked up, or to none (ESTALE) |
//! | NR4 told in time | a call or a session ends with its nodes' connection; nothing is tried again by itself |
//!
//! Nodes believe each other who the caller is: root on one node is root to what the others export.
//!
//! # Open files
//! An open file is a session with its node ([`crate::wire::session`]), of which the end is EIO, and ENODEV afterwards. It
//! outlives its names. Locks are those of the owner's open file: they are between open files (as OFD locks), also with
//! processes of the owner; who waits for one asks again and again.

mod agent;
mod config;
mod file;
mod hands;
mod opening;
mod ops;
mod place;
mod sys;
mod tree;
pub mod wire;

pub use agent::{ExportAgent, FILES_MAX};
pub use config::{EXPORTS_MAX, RootConfig};
pub use tree::ExportTree;

use gfs::net::{Router, ServiceId};
use std::sync::Arc;

/// Offers what a node exports to the others.
pub fn register(router: &Router, agent: Arc<ExportAgent>) {
    router.register(ServiceId::Export, agent);
}

#[cfg(test)]
mod tests;
