//! Chooses the node for a job. Pure: the caller brings the time and what is known about the nodes.
//!
//! The best node is the one where a new job gets most of a core: least (runnable + placed + 1) / (cpus x speed).
//! *Placed* are the jobs this node has sent there that its report cannot show yet: those younger than [`FELT_AFTER`]
//! that have not ended. Ties go to the node with the fewest placements, then to the one that was chosen longest ago.
//! The node where the same work was last is taken instead while it gives [`FAMILIAR_SHARE`] of what the best one would:
//! what it read is cached there.

use consistency::wire::node::NodeLoad;
use consistency::wire::request::NodeStatus;
use consistency::{Duration, Instant, NodeId};
use lru::LruCache;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

/// Age at which a job shows in its node's own report: the average of a second, and the way of the report.
pub const FELT_AFTER: Duration = Duration::from_millis(3_000);

/// A node with less memory than this for new processes gets no job.
pub const MEMORY_KIB_MIN: u64 = 64 << 10;

/// What a node that knows the work may give less than the best: reading a few files anew costs a short job some tenths of its
/// time, and a longer one next to nothing.
pub const FAMILIAR_SHARE: f64 = 0.8;

/// Of so many pieces of work it is remembered where they were: the recipes of a large build.
const FAMILIAR_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not 0");

/// Names what a job does and with what: one that does the same again has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work(pub u64);

/// Why there is no node for a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// A node that was asked for is no node of the cluster.
    #[error("node {0} is not in the cluster; `glu status` lists its nodes")]
    Unknown(NodeId),
    /// No node in question is up.
    #[error("{0} up; `glu status` shows the nodes")]
    Down(Asked),
    /// Nodes in question are up, but have no memory.
    #[error("no node in question has {} MiB of memory free", MEMORY_KIB_MIN >> 10)]
    Memory,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked(Vec<NodeId>);

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0[..] {
            [] => f.write_str("no node of the cluster is"),
            [node] => write!(f, "node {node} is not"),
            _ => f.write_str("none of the nodes asked for is"),
        }
    }
}

/// Names one placement, for [`Placer::finished`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Remembers the placements that no report shows yet.
#[derive(Debug)]
pub struct Placer {
    next: u64,
    placed: BTreeMap<Ticket, (NodeId, Instant)>,
    history: BTreeMap<NodeId, History>,
    /// Where work was done last.
    familiar: LruCache<Work, NodeId>,
}

impl Default for Placer {
    fn default() -> Self {
        Self {
            next: 0,
            placed: BTreeMap::new(),
            history: BTreeMap::new(),
            familiar: LruCache::new(FAMILIAR_MAX),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Placements ever.
    count: u64,
    /// The last one.
    last: Option<Ticket>,
}

impl Placer {
    /// Chooses among `asked` (empty: all nodes) and counts the job as placed there.
    ///
    /// # Errors
    /// [`PlaceError`] if no node fits.
    pub fn place(
        &mut self,
        now: Instant,
        nodes: &[NodeStatus],
        asked: &[NodeId],
        work: Work,
    ) -> Result<(NodeId, Ticket), PlaceError> {
        let known = |node: &NodeId| nodes.iter().any(|status| status.node == *node);
        if let Some(unknown) = asked.iter().find(|node| !known(node)) {
            return Err(PlaceError::Unknown(*unknown));
        }
        self.placed
            .retain(|_, (_, since)| now.since(*since) < FELT_AFTER);

        let up: Vec<&NodeStatus> = nodes
            .iter()
            .filter(|status| status.up && (asked.is_empty() || asked.contains(&status.node)))
            .collect();
        if up.is_empty() {
            return Err(PlaceError::Down(Asked(asked.to_vec())));
        }
        let fit = up.iter().filter(|status| has_memory(&status.report.load));
        let scores: Vec<(f64, NodeId)> = fit
            .map(|status| (self.score(status), status.node))
            .collect();
        let order = |node: NodeId| {
            let history = self.history.get(&node).copied().unwrap_or_default();
            (history.count, history.last, node)
        };
        let best = scores.iter().min_by(|a, b| {
            a.0.total_cmp(&b.0)
                .then_with(|| order(a.1).cmp(&order(b.1)))
        });
        let (least, best) = *best.ok_or(PlaceError::Memory)?;
        let familiar = self.familiar.get(&work).copied();
        let is_good =
            |of: &&(f64, NodeId)| Some(of.1) == familiar && of.0 * FAMILIAR_SHARE <= least;
        let node = scores.iter().find(is_good).map_or(best, |(_, node)| *node);
        self.familiar.put(work, node);

        let ticket = Ticket(self.next);
        self.next += 1;
        self.placed.insert(ticket, (node, now));
        let history = self.history.entry(node).or_default();
        history.count += 1;
        history.last = Some(ticket);
        Ok((node, ticket))
    }

    /// Forgets a placement whose job has ended.
    pub fn finished(&mut self, ticket: Ticket) {
        self.placed.remove(&ticket);
    }

    fn score(&self, status: &NodeStatus) -> f64 {
        let placed = self.placed.values();
        let placed = placed.filter(|(node, _)| *node == status.node).count();
        #[expect(
            clippy::cast_precision_loss,
            reason = "far fewer than 2^52 jobs are placed at a time"
        )]
        let placed = placed as f64;
        score(&status.report.load, placed)
    }
}

/// Returns how little of a core a new job would get, beside so many that the load does not show yet.
pub(super) fn score(load: &NodeLoad, placed: f64) -> f64 {
    // A report may be nonsense; it must not win by that.
    let runnable = if load.runnable.is_finite() {
        f64::from(load.runnable.max(0.0))
    } else {
        f64::MAX
    };
    (runnable + placed + 1.0) / (f64::from(load.cpus.max(1)) * f64::from(load.speed.max(1)))
}

/// A node that has just joined has not reported yet: it is asked last, and not refused.
const fn has_memory(load: &NodeLoad) -> bool {
    load.mem_total_kib == 0 || load.mem_available_kib > MEMORY_KIB_MIN
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::request::NodeReport;

    fn node(id: u16, runnable: f32, cpus: u32, speed: u32) -> NodeStatus {
        let load = NodeLoad {
            runnable,
            cpus,
            speed,
            mem_total_kib: 1 << 20,
            mem_available_kib: 1 << 20,
            ..NodeLoad::default()
        };
        let report = NodeReport {
            load,
            ..NodeReport::default()
        };
        NodeStatus::new(NodeId(id), true, report)
    }

    fn down(mut status: NodeStatus) -> NodeStatus {
        status.up = false;
        status
    }

    fn full(mut status: NodeStatus) -> NodeStatus {
        status.report.load.mem_available_kib = MEMORY_KIB_MIN;
        status
    }

    #[test]
    fn a_node_without_a_report_is_asked_last() {
        let silent = NodeStatus::new(NodeId(1), true, NodeReport::default());
        let mut placer = Placer::default();
        let nodes = [silent, node(2, 1.0, 1, 1_000)];
        let placed = placer
            .place(Instant(0), &nodes, &[], Work(1))
            .expect("there are two");
        assert_eq!(placed.0, NodeId(2));
        let placed = placer
            .place(Instant(0), &nodes, &ids(&[1]), Work(2))
            .expect("it is up");
        assert_eq!(placed.0, NodeId(1));
    }

    fn ids(ids: &[u16]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Places as many jobs as `expected` has, all at once.
    #[track_caller]
    fn check(nodes: &[NodeStatus], asked: &[u16], expected: &[u16]) {
        let mut placer = Placer::default();
        let chosen: Vec<u16> = (0..expected.len() as u64)
            .map(|work| placer.place(Instant(0), nodes, &ids(asked), Work(work)))
            .map(|placed| placed.expect("there is a node").0.0)
            .collect();
        assert_eq!(chosen, expected);
    }

    #[track_caller]
    fn check_refused(nodes: &[NodeStatus], asked: &[u16], message: &str) {
        let refused = Placer::default().place(Instant(0), nodes, &ids(asked), Work(0));
        assert_eq!(refused.expect_err("no node").to_string(), message);
    }

    #[test]
    fn the_least_loaded_node_wins() {
        check(&[node(1, 2.0, 2, 1000), node(2, 0.5, 2, 1000)], &[], &[2]);
        check(&[node(1, 2.0, 8, 1000), node(2, 0.5, 1, 1000)], &[], &[1]);
        check(&[node(1, 1.0, 2, 1000), node(2, 1.0, 2, 3000)], &[], &[2]);
        check(&[node(1, 0.0, 1, 1000), node(2, 0.0, 8, 1000)], &[], &[2]);
        check(
            &[node(1, f32::NAN, 2, 1000), node(2, 90.0, 2, 1000)],
            &[],
            &[2],
        );
        check(&[node(1, 5.0, 0, 0), node(2, 9.0, 1, 1)], &[], &[1]);
    }

    #[test]
    fn jobs_placed_at_once_spread() {
        let equal = [
            node(1, 0.0, 2, 1000),
            node(2, 0.0, 2, 1000),
            node(3, 0.0, 2, 1000),
        ];
        check(&equal, &[], &[1, 2, 3, 1, 2, 3]);
        check(&equal, &[3, 1], &[1, 3, 1, 3]);
        let unequal = [node(1, 0.0, 1, 1000), node(2, 0.0, 3, 1000)];
        let mut placer = Placer::default();
        let on_2 = (0..40)
            .map(|work| placer.place(Instant(0), &unequal, &[], Work(work)))
            .map(|placed| placed.expect("fits").0)
            .filter(|node| *node == NodeId(2))
            .count();
        assert_eq!(on_2, 30, "shares follow the number of cores");
    }

    #[test]
    fn ties_go_round() {
        let equal = [node(1, 0.0, 2, 1000), node(2, 0.0, 2, 1000)];
        let mut placer = Placer::default();
        for (work, expected) in [(1, 1), (2, 2), (3, 1), (4, 2)] {
            let placed = placer.place(Instant(0), &equal, &[], Work(work));
            let (node, ticket) = placed.expect("fits");
            assert_eq!(node, NodeId(expected));
            placer.finished(ticket);
        }
    }

    #[test]
    fn work_goes_where_it_was_while_that_costs_little() {
        let mut placer = Placer::default();
        let mut place = |work, loads: [f32; 2]| {
            let nodes = [node(1, loads[0], 2, 1000), node(2, loads[1], 2, 1000)];
            let placed = placer.place(Instant(0), &nodes, &[], Work(work));
            let (node, ticket) = placed.expect("fits");
            placer.finished(ticket);
            node.0
        };
        for work in 1..=4 {
            let first = place(work, [0.0, 0.0]);
            assert_eq!(place(work, [0.0, 0.0]), first, "no turn of the other");
        }
        assert_eq!(place(7, [0.0, 1.0]), 1);
        assert_eq!(place(7, [0.2, 0.0]), 1, "it gives 0.8 of the best");
        assert_eq!(place(7, [0.3, 0.0]), 2, "it gives less");
        assert_eq!(place(7, [0.0, 0.0]), 2, "now it was there");

        // At once they spread, whatever they did before.
        let nodes = [node(1, 0.0, 2, 1000), node(2, 0.0, 2, 1000)];
        let mut at_once = || placer.place(Instant(0), &nodes, &[], Work(7));
        let chosen = [at_once(), at_once()].map(|placed| placed.expect("fits").0.0);
        assert_eq!(chosen, [2, 1]);
    }

    #[test]
    fn a_placement_counts_until_the_report_shows_it() {
        let nodes = [node(1, 0.0, 1, 1000), node(2, 0.5, 1, 1000)];
        let mut placer = Placer::default();
        let mut place = |at_ms: u64| {
            let now = Instant(at_ms * 1_000);
            let placed = placer.place(now, &nodes, &[], Work(at_ms));
            placed.expect("fits").0.0
        };
        assert_eq!(place(0), 1);
        assert_eq!(place(2_999), 2);
        assert_eq!(
            place(3_000),
            1,
            "the placement of 0 ms is in the report by now"
        );
    }

    #[test]
    fn nodes_that_cannot_take_a_job_are_left_out() {
        check(
            &[down(node(1, 0.0, 2, 1000)), node(2, 9.0, 2, 1000)],
            &[],
            &[2, 2],
        );
        check(
            &[full(node(1, 0.0, 2, 1000)), node(2, 9.0, 2, 1000)],
            &[],
            &[2],
        );
    }

    #[test]
    fn refusals_say_why() {
        let nodes = [
            down(node(1, 0.0, 2, 1000)),
            down(node(2, 0.0, 2, 1000)),
            full(node(3, 0.0, 2, 1000)),
        ];
        check_refused(
            &nodes,
            &[9],
            "node 9 is not in the cluster; `glu status` lists its nodes",
        );
        check_refused(
            &nodes,
            &[2],
            "node 2 is not up; `glu status` shows the nodes",
        );
        check_refused(
            &nodes,
            &[1, 2],
            "none of the nodes asked for is up; `glu status` shows the nodes",
        );
        check_refused(
            &nodes[..2],
            &[],
            "no node of the cluster is up; `glu status` shows the nodes",
        );
        check_refused(&nodes, &[], "no node in question has 64 MiB of memory free");
    }
}
