//! The devices of every node.
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
//! The devices of the table in `carried` can be opened, read and written. All others refuse to be opened with
//! `EOPNOTSUPP`, and the extended attribute `user.glu.why` says why.
//!
//! - Reads and writes go to the owner as they come, at most 1 MiB at a time; there is no cache.
//! - `kmsg` gives the log as it is when it is opened and then ends. A read returns one record, or as much of it as
//!   fits. Waiting for more is not carried.
//!
//! # Rights
//! The kernel of the reader checks the mode that is shown. The owner of the device checks it again, at each call, with
//! the caller's user and primary group; supplementary groups are not told by FUSE and do not count there. Nodes believe
//! each other who the caller is: root on one node is root to all devices that are carried.
#![warn(missing_docs)]

mod agent;
mod carried;
mod dev;
pub mod path;
pub mod tree;
pub mod wire;

pub use agent::{DevAgent, REQUESTS_MAX};
pub use tree::DevTree;

use gfs::net::{Router, ServiceId};
use std::sync::Arc;

/// Offers a node's devices to the others.
pub fn register(router: &Router, agent: Arc<DevAgent>) {
    router.register(ServiceId::Device, agent);
}
