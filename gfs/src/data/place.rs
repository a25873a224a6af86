//! Which nodes get a chunk: near the writer first, then where nothing fails together with what has it, and there where
//! room is.

use consistency::wire::request::NodeStatus;
use consistency::{ChunkId, NodeId};
use std::collections::BTreeSet;

/// A disk with less than this share of it free gets chunks only if the others do not take them.
const RESERVE_PERCENT: u64 = 5;

/// Returns the nodes that are up in the order in which they should get a chunk. `first` is the writer, if it stores
/// chunks; `there` have the chunk already: they are not returned, and nodes that do not fail with them come before others.
#[must_use]
pub fn order(
    chunk: ChunkId,
    first: Option<NodeId>,
    there: &[NodeId],
    nodes: &[NodeStatus],
) -> Vec<NodeId> {
    let mut used: BTreeSet<Domain<'_>> = nodes
        .iter()
        .filter(|status| there.contains(&status.node))
        .map(domain)
        .collect();
    let mut left: Vec<&NodeStatus> = nodes
        .iter()
        .filter(|status| status.up && !there.contains(&status.node))
        .collect();
    let mut ordered = Vec::with_capacity(left.len());
    while let Some(at) = best(chunk, first, &used, &left) {
        let status = left.swap_remove(at);
        used.insert(domain(status));
        ordered.push(status.node);
    }
    ordered
}

/// What fails together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Domain<'a> {
    Node(NodeId),
    Named(&'a str),
}

/// Returns what a node fails with.
pub(crate) fn domain(status: &NodeStatus) -> Domain<'_> {
    match status.report.domain.as_str() {
        "" => Domain::Node(status.node),
        name => Domain::Named(name),
    }
}

/// Returns whether a disk has room to speak of. One that has not reported yet has, for all we know.
pub(crate) fn has_room(status: &NodeStatus) -> bool {
    let report = &status.report;
    report.disk_total == 0 || report.disk_free > report.disk_total / 100 * RESERVE_PERCENT
}

/// Returns the place of the best of the nodes that are left.
fn best(
    chunk: ChunkId,
    first: Option<NodeId>,
    used: &BTreeSet<Domain<'_>>,
    left: &[&NodeStatus],
) -> Option<usize> {
    let rank = |status: &NodeStatus| {
        (
            status.draining,
            !has_room(status),
            Some(status.node) != first,
            used.contains(&domain(status)),
        )
    };
    let worse = |(_, a): &(usize, &&NodeStatus), (_, b): &(usize, &&NodeStatus)| {
        rank(a)
            .cmp(&rank(b))
            .then_with(|| weight(chunk, b).total_cmp(&weight(chunk, a)))
    };
    let best = left.iter().enumerate().min_by(worse);
    best.map(|(at, _)| at)
}

/// Weighted rendezvous hashing: over many chunks a node is first as often as it has a share of the free bytes.
#[allow(clippy::cast_precision_loss, reason = "a weight need not be exact")]
fn weight(chunk: ChunkId, status: &NodeStatus) -> f64 {
    // splitmix64
    let mut z = chunk.0 ^ u64::from(status.node.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let uniform = ((z >> 11) + 1) as f64 / ((1_u64 << 53) + 1) as f64;
    -(status.report.disk_free.max(1) as f64) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::request::NodeReport;
    use std::collections::BTreeMap;

    const GIB: u64 = 1 << 30;

    fn node(id: u16, domain: &str, free_gib: u64) -> NodeStatus {
        let report = NodeReport {
            disk_total: 100 * GIB,
            disk_free: free_gib * GIB,
            domain: domain.to_owned(),
            ..NodeReport::default()
        };
        NodeStatus::new(NodeId(id), true, report)
    }

    fn ids(nodes: &[u16]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn near_the_writer_then_elsewhere() {
        let nodes = [
            node(1, "a", 50),
            node(2, "a", 50),
            node(3, "b", 50),
            node(4, "b", 50),
        ];
        for chunk in 0..100 {
            let order = order(ChunkId(chunk), Some(NodeId(1)), &[], &nodes);
            assert_eq!(order[0], NodeId(1));
            assert!(ids(&[3, 4]).contains(&order[1]), "{order:?}");
            assert_eq!(order.len(), 4);
        }
    }

    #[test]
    fn away_from_where_it_is() {
        let nodes = [node(1, "a", 50), node(2, "a", 90), node(3, "b", 10)];
        for chunk in 0..100 {
            let order = order(ChunkId(chunk), None, &ids(&[1]), &nodes);
            assert_eq!(order, ids(&[3, 2]), "the rack counts more than room");
        }
    }

    #[test]
    fn full_and_draining_disks_come_last() {
        let mut draining = node(2, "", 90);
        draining.draining = true;
        let mut down = node(5, "", 90);
        down.up = false;
        let nodes = [node(1, "", 4), draining, node(3, "", 10), down];
        for chunk in 0..100 {
            let order = order(ChunkId(chunk), Some(NodeId(1)), &[], &nodes);
            assert_eq!(order, ids(&[3, 1, 2]));
        }
    }

    #[test]
    fn by_share_of_the_free_bytes() {
        let nodes = [node(1, "", 60), node(2, "", 30), node(3, "", 10)];
        let mut firsts: BTreeMap<NodeId, u32> = BTreeMap::new();
        for chunk in 0..10_000 {
            *firsts
                .entry(order(ChunkId(chunk), None, &[], &nodes)[0])
                .or_default() += 1;
        }
        for (id, share) in [(1, 6_000_u32), (2, 3_000), (3, 1_000)] {
            let got = firsts[&NodeId(id)];
            assert!(got.abs_diff(share) < 300, "node {id} got {got}");
        }
    }
}
