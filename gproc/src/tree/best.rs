//! Which node a process runs best on: what `goto` -1 asks for.
//!
//! MOSIX's rule in its simplest form: it moves only where it is clearly better off than where it is, for a move costs
//! something and loads change all the time. Memory comes first: where there is none to spare nobody is sent.

use consistency::NodeId;
use consistency::wire::node::NodeLoad;

/// A node is better if a process is held up there by less than this part of what it is where it is.
const GAIN: f64 = 0.8;
/// A node takes no more if less than one part in this many of its memory is free.
const SPARE_PART: u64 = 10;

/// Returns the best node for a process that runs `at`, which may be that one.
pub(super) fn best(loads: &[(NodeId, NodeLoad)], at: NodeId) -> NodeId {
    let here = loads.iter().find(|(node, _)| *node == at);
    let here = here.map_or(f64::INFINITY, |(_, load)| slowness(load, 0.0));
    let others = loads
        .iter()
        .filter(|(node, load)| *node != at && spares(load));
    let others = others.map(|(node, load)| (slowness(load, 1.0), *node));
    let best = others.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let better = best.filter(|(there, _)| *there < here * GAIN);
    better.map_or(at, |(_, node)| node)
}

/// Returns how long a process takes for a second's work of the reference's core, with so many more beside it.
fn slowness(load: &NodeLoad, more: f64) -> f64 {
    let sharing = (f64::from(load.runnable) + more) / f64::from(load.cpus.max(1));
    sharing.max(1.0) * 1_000.0 / f64::from(load.speed.max(1))
}

fn spares(load: &NodeLoad) -> bool {
    load.mem_available_kib >= load.mem_total_kib / SPARE_PART
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn load(runnable: f32, cpus: u32, speed: u32) -> NodeLoad {
        NodeLoad {
            runnable,
            guests: 0,
            cpus,
            speed,
            mem_total_kib: 1_000,
            mem_available_kib: 500,
        }
    }

    #[track_caller]
    fn check(loads: &[NodeLoad], at: u16, expected: u16) {
        let loads: Vec<_> = (1..).map(NodeId).zip(loads.iter().copied()).collect();
        assert_eq!(best(&loads, NodeId(at)), NodeId(expected), "{loads:?}");
    }

    #[test]
    fn who_is_well_off_stays() {
        let idle = load(0.0, 2, 1_000);
        check(&[load(1.0, 2, 1_000), idle], 1, 1);
        check(&[load(2.0, 2, 1_000), idle], 1, 1);
        check(&[load(2.4, 2, 1_000), idle], 1, 1);
        check(&[load(4.0, 2, 1_000), load(3.0, 2, 1_000)], 1, 1);
    }

    #[test]
    fn who_is_crowded_goes_where_there_is_room_or_it_is_faster() {
        let crowded = load(4.0, 2, 1_000);
        check(&[crowded, load(0.0, 2, 1_000)], 1, 2);
        check(&[crowded, load(3.0, 2, 1_000), load(1.0, 2, 1_000)], 1, 3);
        check(&[load(1.0, 2, 1_000), load(1.0, 2, 2_000)], 1, 2);
        check(&[crowded, crowded, load(6.0, 8, 1_000)], 2, 3);
        check(&[crowded, load(0.0, 2, 1_000), load(0.0, 2, 1_000)], 1, 2);
    }

    #[test]
    fn memory_comes_first() {
        let mut full = load(0.0, 8, 1_000);
        full.mem_available_kib = 99;
        check(&[load(9.0, 2, 1_000), full], 1, 1);
    }

    #[test]
    fn a_node_that_tells_nothing_is_left() {
        check(&[load(9.0, 2, 1_000)], 7, 1);
    }
}
