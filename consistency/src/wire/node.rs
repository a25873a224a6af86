//! Messages between nodes that are about the nodes themselves.

use serde::{Deserialize, Serialize};

/// Load and size of a node, as placement and `/cluster/proc/cluster/node<N>/` show them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Processes that run or want to, averaged over a second.
    pub runnable: f32,
    /// Jobs of other nodes that run here.
    pub guests: u32,
    /// Cores that processes may use.
    pub cpus: u32,
    /// Relative speed of one core, 1000 for the reference.
    pub speed: u32,
    /// Memory in KiB.
    pub mem_total_kib: u64,
    /// Memory that new processes could have, in KiB.
    pub mem_available_kib: u64,
}
