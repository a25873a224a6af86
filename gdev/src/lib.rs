//! The devices of every node, and the directories that it exports ([`export`]).
//!
//! Every node has a [`DevAgent`] that uses its devices for the others; a [`DevTree`] shows the `/dev` of each node
//! as `/cluster/node<N>/dev`.
//!
//! # How a device is shown
//! Directories and symbolic links are what they are. A device is shown as a *regular file* with the mode and the owner
//! of its node: the kernel would open the reader's own device behind a node of type `c` or `b`, and `/dev/null` of
//! another node would be the wrong one without anybody noticing. What it truly is the extended attribute
//! `user.glu.device` tells (`c 1:3`). The same holds for a named pipe (`p`): the kernel would make one of the reader's
//! own. A symbolic link with an absolute target below `/dev` is shown with a relative one, which stays on its node.
//! What is in `shm`, `mqueue` and `hugepages` is memory, not devices, and not shown.
//!
//! # What can be done
//! A device is opened by a *session*, a stream between the two nodes that lives as long as the open file
//! ([`wire::session`]). Reads and writes go to the owner as they come, at most 1 MiB at a time; there is no cache on
//! the reader's node. So do poll(2), seeking, fsync, fallocate and the ioctls of the table in `controls`. What cannot be
//! done is refused, and the extended attribute `user.glu.why` of a device that cannot be opened says why.
//!
//! - Waits end with the device, with a signal, or with the session; bytes that were read for who has gone are kept for
//!   the next reader.
//! - `kmsg` gives one record for each read, and at its end waits for the next one. Going back to position 0 begins anew.
//! - Disks have their size, and are written by one node at a time (`claims`).
//!
//! # Rights
//! The kernel of the reader checks the mode that is shown. The owner checks, when it is opened, what its configuration
//! grants of the device's class ([`Rules`]), the mode with the caller's user and all groups, and what its kernel would
//! ask root for (`rights`). Nodes believe each other who the caller is: root on one node is root to all devices
//! of the classes that are open.
#![warn(missing_docs)]

mod agent;
mod caller;
mod carried;
mod claims;
mod class;
mod controls;
mod dev;
mod disks;
pub mod export;
mod open;
pub mod path;
mod readiness;
mod record;
mod rights;
mod session;
mod sys;
pub mod tree;
pub mod wire;

pub use agent::{Audit, DevAgent, REQUESTS_MAX, SESSIONS_MAX};
pub use class::{Class, Grant, Rules};
pub use controls::DISK_CLAIMS;
pub use tree::DevTree;

use gfs::net::{Router, ServiceId};
use std::sync::Arc;

/// Offers a node's devices to the others.
pub fn register(router: &Router, agent: Arc<DevAgent>) {
    router.register(ServiceId::Device, agent);
}
