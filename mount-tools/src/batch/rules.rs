//! Partitions and reservations: who may use which nodes, when.

use super::job::{Seconds, now};
use crate::nodes::NodeSet;
use consistency::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest name of either, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Nodes under a name, with rules for the jobs that name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Partition {
    /// None: all of the cluster.
    pub(super) nodes: Option<NodeSet>,
    /// Who may use it; empty: everybody.
    #[serde(default)]
    pub(super) users: Vec<u32>,
    /// Who may reserve its nodes.
    #[serde(default)]
    pub(super) owners: Vec<u32>,
    /// Added to the priority of its jobs.
    #[serde(default)]
    pub(super) priority: i32,
    /// How long a job of it may run, in seconds; also the time of those that ask for none.
    #[serde(default)]
    pub(super) time_max: Option<u64>,
    /// So many jobs of one user run in it at a time.
    #[serde(default)]
    pub(super) jobs_per_user: Option<u32>,
}

/// Nodes for some users alone, for a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservation {
    pub(super) nodes: NodeSet,
    pub(super) from: Seconds,
    pub(super) until: Seconds,
    /// For whom.
    pub(super) users: Vec<u32>,
    /// Who made it, and may cancel it.
    pub(super) owner: u32,
}

impl Partition {
    /// Returns whether a node is in it.
    pub(super) fn has(&self, node: NodeId) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
    }

    /// Returns whether a user may use it.
    pub(super) fn admits(&self, uid: u32) -> bool {
        uid == 0 || self.users.is_empty() || self.users.contains(&uid) || self.owners.contains(&uid)
    }
}

impl Reservation {
    /// Returns whether a node is reserved at a time.
    pub(super) fn holds(&self, node: NodeId, now: Seconds) -> bool {
        self.nodes.contains(node) && (self.from..self.until).contains(&now)
    }

    /// Returns whether it keeps a user's job off a node at some time from `from` to `until`.
    pub(super) fn excludes(&self, uid: u32, node: NodeId, from: Seconds, until: Seconds) -> bool {
        self.nodes.contains(node)
            && !self.users.contains(&uid)
            && self.from <= until
            && from < self.until
    }
}

/// Keeps users off nodes; what of the rules the daemon goes by.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Reservations {
    reservations: BTreeMap<String, Reservation>,
}

impl Reservations {
    /// Returns the name of one that keeps a user off a node now.
    pub(crate) fn exclude(&self, uid: u32, node: NodeId) -> Option<&str> {
        let now = now();
        let mut all = self.reservations.iter();
        let this = all.find(|(_, of)| of.excludes(uid, node, now, now));
        this.map(|(name, _)| name.as_str())
    }
}

/// Checks a name of a partition or a reservation.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(known) {
        return Err(format!(
            "`{name}` is no name: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"
        ));
    }
    Ok(())
}
