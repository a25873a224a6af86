//! What nodes have had to do for a while: a gust of a second is no reason to move a job, nor a lull to send one there.

use consistency::{Duration, Instant, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// Demands of nodes, by when they were looked at, for some time.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    looks: BTreeMap<NodeId, VecDeque<(Instant, f64)>>,
}

impl Lasting {
    /// Takes a look; forgets of that node what is older than `window`.
    pub(super) fn look(&mut self, now: Instant, window: Duration, node: NodeId, demand: f64) {
        let looks = self.looks.entry(node).or_default();
        looks.retain(|(at, _)| now.since(*at) <= window);
        looks.push_back((now, demand));
    }

    /// Returns the least that a node has had to do; infinite if it was not looked at.
    pub(super) fn least(&self, node: NodeId) -> f64 {
        self.demands(node).fold(f64::INFINITY, f64::min)
    }

    /// Returns the most that a node has had to do.
    pub(super) fn most(&self, node: NodeId) -> f64 {
        self.demands(node).fold(0.0, f64::max)
    }

    fn demands(&self, node: NodeId) -> impl Iterator<Item = f64> {
        let looks = self.looks.get(&node).into_iter().flatten();
        looks.map(|(_, demand)| *demand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gusts_and_lulls_pass() {
        let mut lasting = Lasting::default();
        let node = NodeId(1);
        let mut look = |second: u64, demand| {
            let window = Duration::from_millis(3_000);
            lasting.look(Instant(second * 1_000_000), window, node, demand);
            (lasting.least(node), lasting.most(node))
        };
        let seen = [(1, 4.0), (2, 7.0), (3, 1.0), (5, 4.0), (6, 4.0), (7, 5.0)]
            .map(|(at, demand)| look(at, demand));
        let expected = [
            (4.0, 4.0),
            (4.0, 7.0),
            (1.0, 7.0),
            (1.0, 7.0),
            (1.0, 4.0),
            (4.0, 5.0),
        ];
        assert_eq!(seen, expected);
        assert_eq!(lasting.least(NodeId(2)), f64::INFINITY);
    }
}
