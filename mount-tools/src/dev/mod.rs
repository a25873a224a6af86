//! The development cluster: several nodes on one machine, each in namespaces of its own.
//!
//! A *node* here is a mount, network, pid, UTS and IPC namespace with a small *init* as pid 1
//! ([`init`]), which mounts what differs between nodes and supervises `glud`. The nodes hang on one
//! *hub*: a network namespace with a bridge, which no process holds, only a mount on `DIR/hub.net`.
//! The *state directory* `DIR` is the whole cluster; two of them never meet:
//!
//! ```text
//! DIR/lock             held (flock) by every command that changes the cluster
//! DIR/cluster.json     the nodes, and their inits with start times
//! DIR/ca/              the cluster's authority
//! DIR/hub.net          the hub's network namespace
//! DIR/node<k>/         bind-mounted onto itself and shared, see below
//!     glud.toml  tls/  state/  glud.log
//!     run/             `/run/glu` inside the node: glud.sock, ready; emptied at every boot
//!     cluster/         the tree; the same mount is `/cluster` inside the node
//! ```
//!
//! How one mount is seen at three places: `DIR/node<k>` is a mount with a peer group of its own, and
//! both its copy in the node and the node's `/cluster` (a bind of `DIR/node<k>/cluster`) are members.
//! So what glud mounts at `DIR/node<k>/cluster` appears outside and at `/cluster` by itself, also
//! after a restart of glud, and one lazy unmount removes it everywhere. Every other mount of the
//! host is a slave inside the node: nothing leaks out, and what the host unmounts disappears inside
//! too, so that no node keeps a dead node's FUSE session alive.
//!
//! Rules:
//! - A process is signalled only through a pidfd whose start time was compared: a reused pid is safe.
//! - Nothing is deleted below a directory under which something is still mounted.
//! - Only the directories `/cluster` and `/run/glu` are made outside `DIR` ([`host_dir`]).
//! - Lock order: `DIR/lock`, then the locks on the host directories.

mod cluster;
mod config;
mod exec;
mod host_dir;
pub mod init;
mod mounts;
mod network;
mod node;
mod process;
mod state;
mod status;
mod sys;

pub use cluster::{Cluster, Progress, Size, down};
pub use exec::{Ended, exec};
pub use node::NODES_MAX;
pub use status::{NodeState, NodeStatus, Status};

/// What the caller asked for cannot be: exit status 2, one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Where the cluster lives if neither `--state` nor `GLU_DEV_STATE` says so.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/glu-dev";
