//! What is to be done about the copies of one chunk. Pure functions of what the leader knows.
//!
//! | copies on nodes that are | what is done |
//! | --- | --- |
//! | fewer than wanted, not counting nodes that are gone or being emptied | one more is made, instead of one there |
//! | enough, and others on nodes that are gone or being emptied | those are dropped, once the rest is verified |
//! | more than wanted, all up | one is dropped, once the rest is verified |
//! | as wanted, two in one failure domain though there is another one | one moves there |
//! | as wanted, on a node with more than its share while another has less | one moves there |
//!
//! The bucket is always up, and one copy there is enough: nothing is made of it, and nothing moves (decision 9).
//!
//! A node that is down but not gone yet counts as if it were up, but nothing is copied from or to it.

use crate::data::place::{domain, has_room, order};
use crate::server::state::{Listed, REPLICAS_MAX};
use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::request::NodeStatus;
use consistency::{ChunkId, NodeId};
use std::collections::BTreeSet;

/// How far from its share a node's load may be until chunks are moved, in percent.
const TOLERANCE_PERCENT: i128 = 10;
/// Less than this is not worth moving, whatever it is in percent.
const SLACK_BYTES: i128 = 8 * CHUNK_BYTES_MAX as i128;

/// The nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) nodes: Vec<NodeStatus>,
    /// Nodes that are down for so long that they are not waited for.
    pub(crate) gone: BTreeSet<NodeId>,
    /// Copies of a chunk whose tree says nothing.
    pub(crate) copies: u8,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// A copy is made.
    Copy {
        chunk: ChunkId,
        source: NodeId,
        to: NodeId,
        /// The copy that it replaces.
        instead: Option<NodeId>,
    },
    /// A copy is dropped if those to keep are good.
    Trim {
        chunk: ChunkId,
        node: NodeId,
        keep: Vec<NodeId>,
    },
    /// A node has said that its copies are bad; it is asked again (D5).
    Check { node: NodeId, chunks: Vec<ChunkId> },
}

/// How a chunk is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Fewer copies than wanted are on nodes that are up.
    pub(crate) lacking: bool,
    /// No copy is on a node that is up.
    pub(crate) unreachable: bool,
    /// There is something to do, now or once somebody has time.
    pub(crate) todo: bool,
    pub(crate) job: Option<Job>,
}

impl View {
    fn status(&self, node: NodeId) -> Option<&NodeStatus> {
        self.nodes.iter().find(|status| status.node == node)
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        node == NodeId::BUCKET || self.status(node).is_some_and(|status| status.up)
    }

    /// Returns whether a copy there counts: the node stays, as far as is known.
    fn stays(&self, node: NodeId) -> bool {
        let known = self.status(node).is_some_and(|status| !status.draining);
        node == NodeId::BUCKET || (known && !self.gone.contains(&node))
    }

    /// Returns how many copies a chunk should have: no more than there are nodes.
    fn wanted(&self, chunk: &Listed) -> usize {
        if chunk.replicas.contains(&NodeId::BUCKET) {
            return 1;
        }
        let copies = match chunk.copies {
            0 => self.copies,
            copies => copies,
        };
        usize::from(copies).clamp(1, REPLICAS_MAX.min(self.nodes.len().max(1)))
    }

    /// Returns the nodes that could get one more copy, best first.
    fn targets(&self, chunk: &Listed, staying: &[NodeId]) -> Vec<NodeId> {
        let fits = |node: &NodeId| {
            let status = self.status(*node);
            status.is_some_and(|status| !status.draining && has_room(status))
                && !chunk.replicas.contains(node)
        };
        let mut nodes = order(chunk.id, None, staying, &self.nodes);
        nodes.retain(fits);
        nodes
    }

    /// Returns how many failure domains the nodes are in.
    fn domains(&self, nodes: impl IntoIterator<Item = NodeId>) -> usize {
        let named = nodes.into_iter().filter_map(|node| self.status(node));
        named.map(domain).collect::<BTreeSet<_>>().len()
    }

    /// Looks at a chunk. `free` tells whether a node has time for one more job.
    pub(crate) fn look(&self, chunk: &Listed, free: impl Fn(NodeId) -> bool) -> Finding {
        let part = |fits: &dyn Fn(NodeId) -> bool| {
            let nodes = chunk.replicas.iter().copied();
            nodes.filter(|node| fits(*node)).collect::<Vec<_>>()
        };
        let wanted = self.wanted(chunk);
        let up = part(&|node| self.is_up(node));
        let staying = part(&|node| self.stays(node));
        let keep = part(&|node| self.stays(node) && self.is_up(node));
        let mut finding = Finding {
            lacking: up.len() < wanted,
            unreachable: up.is_empty(),
            ..Finding::default()
        };
        if staying.len() < wanted {
            let targets = self.targets(chunk, &staying);
            finding.todo = !targets.is_empty() && !up.is_empty();
            let to = targets.into_iter().find(|node| free(*node));
            let source = up.iter().copied().find(|node| free(*node));
            // Of those that do not count, first one that cannot be read anyway.
            let mut others = part(&|node| !self.stays(node));
            others.sort_by_key(|node| self.is_up(*node));
            if let (Some(source), Some(to)) = (source, to) {
                finding.job = Some(Job::Copy {
                    chunk: chunk.id,
                    source,
                    to,
                    instead: others.first().copied(),
                });
            }
            return finding;
        }
        let spare = match part(&|node| !self.stays(node)).first() {
            Some(spare) => (keep.len() >= wanted).then_some(*spare),
            None if keep.len() > wanted => self.least_useful(&keep),
            None => None,
        };
        if let Some(spare) = spare {
            finding.todo = true;
            let keep = keep.into_iter().filter(|node| *node != spare);
            finding.job = Some(Job::Trim {
                chunk: chunk.id,
                node: spare,
                keep: keep.collect(),
            });
        }
        finding
    }

    /// Returns the node whose copy is missed least: one that others fail with, then the one with the least room.
    fn least_useful(&self, nodes: &[NodeId]) -> Option<NodeId> {
        let without = |node: &NodeId| {
            nodes
                .iter()
                .copied()
                .filter(|other| other != node)
                .collect()
        };
        let cost = |node: &NodeId| {
            let lost: Vec<NodeId> = without(node);
            let room = self
                .status(*node)
                .map_or(0, |status| status.report.disk_free);
            (std::cmp::Reverse(self.domains(lost)), room)
        };
        nodes.iter().copied().min_by_key(cost)
    }

    /// Returns a move that makes a chunk lie better, if all its copies are where they should be.
    pub(crate) fn improve(&self, chunk: &Listed, free: impl Fn(NodeId) -> bool) -> Option<Job> {
        let replicas = &chunk.replicas;
        let settled = |node: &NodeId| self.stays(*node) && self.is_up(*node) && free(*node);
        let in_bucket = replicas.contains(&NodeId::BUCKET);
        if in_bucket || replicas.len() != self.wanted(chunk) || !replicas.iter().all(settled) {
            return None;
        }
        let moved = |from: NodeId, to: NodeId| Job::Copy {
            chunk: chunk.id,
            source: from,
            to,
            instead: Some(from),
        };
        let domains_with = |from: NodeId, to: NodeId| {
            let others = replicas.iter().copied().filter(|node| *node != from);
            self.domains(others.chain([to]))
        };
        let now = self.domains(replicas.iter().copied());
        let targets: Vec<NodeId> = self
            .targets(chunk, replicas)
            .into_iter()
            .filter(|node| free(*node))
            .collect();
        for to in &targets {
            let better = replicas.iter().find(|from| domains_with(**from, *to) > now);
            if let Some(from) = better {
                return Some(moved(*from, *to));
            }
        }
        let from = replicas
            .iter()
            .copied()
            .max_by_key(|node| self.excess(*node).bytes)?;
        let fits = |to: &NodeId| domains_with(from, *to) >= now;
        let to = targets
            .into_iter()
            .filter(fits)
            .min_by_key(|node| self.excess(*node).bytes)?;
        let (more, less) = (self.excess(from), self.excess(to));
        let worth = more.bytes > more.tolerated || less.bytes < -less.tolerated;
        (worth && more.bytes > 0 && less.bytes < 0).then(|| moved(from, to))
    }

    /// Compares what is on a node with its share: as much as its disk is of all disks.
    fn excess(&self, node: NodeId) -> Excess {
        let takes = |status: &&NodeStatus| status.up && !status.draining;
        let sum = |what: fn(&NodeStatus) -> u64| {
            let nodes = self.nodes.iter().filter(takes);
            nodes.map(|status| i128::from(what(status))).sum::<i128>()
        };
        let disks = sum(|status| status.report.disk_total);
        let (Some(status), 1..) = (self.status(node), disks) else {
            return Excess::default();
        };
        let bytes = sum(|status| status.chunk_bytes);
        let share = bytes * i128::from(status.report.disk_total) / disks;
        Excess {
            bytes: i128::from(status.chunk_bytes) - share,
            tolerated: (share * TOLERANCE_PERCENT / 100).max(SLACK_BYTES),
        }
    }
}

/// How far a node is from its share.
#[derive(Clone, Copy, Debug, Default)]
struct Excess {
    bytes: i128,
    tolerated: i128,
}

#[cfg(test)]
mod tests;
