//! Gangs: commands whose processes take turns with those of other gangs, all of one at a time (J10, J11).
//!
//! Words: a *gang* is all processes of one `glurun --gang`. A *turn* is a second of the clock, which all nodes number alike.
//! Who is not to run in a turn is *held*: the kernel gives it what nobody else wants of the processors (`cpu.idle`), which no
//! system call of it shows (freezing would: epoll_wait(2) ends with EINTR then). No node is asked before a turn: each works it
//! out from the clock and the list of all gangs, which is read from the record of jobs (J8) now and then.
//!
//! | a gang here is | and it is its turn | another's turn | not in the list, or not yet | the list is too old |
//! | --- | --- | --- | --- | --- |
//! | running | - | it is held | - | - |
//! | held | it goes on | - | it goes on | it goes on |
//!
//! The rules, pure here; [`driver`] does what they say. The mutex of the driver is a leaf.

pub(super) mod driver;
#[cfg(test)]
mod worlds;

use consistency::{Instant, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Number of a turn.
pub type Turn = u64;

/// How long a turn takes, in milliseconds.
pub(super) const TURN_MS: u64 = 1000;

/// So many turns after its start a gang begins to take part. By then all nodes have it in their lists, and begin at once.
const ENTERS_AFTER: Turn = 4;

/// A list that is older than this holds nobody: its nodes, or who tells of them, may be lost.
const LIST_AGE_MAX: consistency::Duration = consistency::Duration::from_millis(5000);

/// A gang, as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gang {
    /// The number of its command.
    pub npid: u32,
    /// Its first turn.
    pub since: Turn,
    /// Its processes that run: node and pid.
    pub processes: BTreeSet<(NodeId, u32)>,
}

impl Gang {
    fn shares_node(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.nodes().any(|node| nodes.contains(&node))
    }

    fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.processes.iter().map(|(node, _)| *node)
    }
}

/// Returns the turn at a time, and how long it goes on. `now`: since 1970.
pub(super) fn turn_at(now: Duration) -> (Turn, Duration) {
    let ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let left = TURN_MS - ms % TURN_MS;
    (ms / TURN_MS, Duration::from_millis(left))
}

/// Returns the first turn of a gang that starts now.
pub(super) fn first_turn(now: Duration) -> Turn {
    turn_at(now).0 + ENTERS_AFTER
}

/// What one node knows of the gangs of all.
#[derive(Debug)]
pub(super) struct Turns {
    node: NodeId,
    list: Vec<Gang>,
    told: Option<Instant>,
    #[cfg(test)]
    mutant: Option<worlds::Mutant>,
}

impl Turns {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            list: Vec::new(),
            told: None,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Takes the list, as somebody began to read it at this time.
    pub(super) fn handle_list(&mut self, asked: Instant, list: Vec<Gang>) {
        self.list = list;
        self.told = Some(asked);
    }

    /// Returns the processes here that are held in a turn.
    pub(super) fn held(&self, now: Instant, turn: Turn) -> BTreeSet<u32> {
        let fresh = self
            .told
            .is_some_and(|told| now.since(told) <= LIST_AGE_MAX);
        #[cfg(test)]
        let fresh = fresh || self.mutant == Some(worlds::Mutant::HoldsForEver);
        if !fresh {
            return BTreeSet::new();
        }
        let in_turn = |gang: &&Gang| gang.since <= turn;
        #[cfg(test)]
        let in_turn = |gang: &&Gang| {
            let here = gang.nodes().any(|node| node == self.node);
            match self.mutant {
                Some(worlds::Mutant::EntersAtOnce) => true,
                Some(worlds::Mutant::KnowsItsOwn) => in_turn(gang) && here,
                _ => in_turn(gang),
            }
        };
        let gangs: Vec<&Gang> = self.list.iter().filter(in_turn).collect();
        #[cfg(test)]
        let turn = match self.mutant {
            Some(worlds::Mutant::StandsStill) => 0,
            _ => turn,
        };
        let run = plan(turn, &gangs);
        #[cfg(test)]
        let run = match self.mutant {
            Some(worlds::Mutant::OneOfAll) => run.into_iter().take(1).collect(),
            _ => run,
        };
        let held = gangs.iter().filter(|gang| !run.contains(&gang.npid));
        let processes = held.flat_map(|gang| &gang.processes);
        processes
            .filter(|(node, _)| *node == self.node)
            .map(|(_, pid)| *pid)
            .collect()
    }
}

/// Returns the gangs that run in a turn.
///
/// Those that share nodes, directly or by others, are put into rows in the order of their first turns, each into the first row
/// where none shares a node with it (Ousterhout's matrix). The rows take turns (J11). What would be idle nodes then goes to
/// those of the next rows that fit.
fn plan(turn: Turn, gangs: &[&Gang]) -> BTreeSet<u32> {
    let mut run = BTreeSet::new();
    for mut group in groups(gangs) {
        group.sort_unstable_by_key(|gang| (gang.since, gang.npid));
        let rows = rows(&group);
        let first = usize::try_from(turn % rows.len() as u64).expect("less than a length");
        let mut taken = BTreeSet::new();
        let (before, from) = rows.split_at(first);
        for gang in from.iter().chain(before).flatten() {
            if !gang.shares_node(&taken) {
                taken.extend(gang.nodes());
                run.insert(gang.npid);
            }
        }
    }
    run
}

/// Returns the gangs in groups that have no node in common.
fn groups<'a>(gangs: &[&'a Gang]) -> Vec<Vec<&'a Gang>> {
    let mut groups: Vec<(BTreeSet<NodeId>, Vec<&Gang>)> = Vec::new();
    for gang in gangs.iter().filter(|gang| !gang.processes.is_empty()) {
        let (mut nodes, mut all): (BTreeSet<NodeId>, _) = (gang.nodes().collect(), vec![*gang]);
        let (joined, apart): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|(others, _)| gang.shares_node(others));
        groups = apart;
        for (others, members) in joined {
            nodes.extend(others);
            all.extend(members);
        }
        groups.push((nodes, all));
    }
    groups.into_iter().map(|(_, all)| all).collect()
}

/// Puts gangs into rows, in each of which no two share a node; at least one row.
fn rows<'a>(gangs: &[&'a Gang]) -> Vec<Vec<&'a Gang>> {
    let mut rows: BTreeMap<usize, (BTreeSet<NodeId>, Vec<&Gang>)> = BTreeMap::new();
    for gang in gangs {
        let free = (0..).find(|at| {
            let row = rows.get(at);
            row.is_none_or(|(nodes, _)| !gang.shares_node(nodes))
        });
        let (nodes, all) = rows.entry(free.expect("there is no last one")).or_default();
        nodes.extend(gang.nodes());
        all.push(gang);
    }
    rows.into_values().map(|(_, all)| all).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gang(npid: u32, since: Turn, nodes: &[u16]) -> Gang {
        let processes = nodes.iter().map(|node| (NodeId(*node), npid * 10));
        Gang {
            npid,
            since,
            processes: processes.collect(),
        }
    }

    /// Checks which gangs run in turns 0 to 3.
    #[track_caller]
    fn check(gangs: &[(u32, &[u16])], expected: [&[u32]; 4]) {
        let gangs: Vec<Gang> = gangs
            .iter()
            .map(|(npid, nodes)| gang(*npid, 0, nodes))
            .collect();
        let gangs: Vec<&Gang> = gangs.iter().collect();
        for (turn, expected) in (0..).zip(expected) {
            let run: Vec<u32> = plan(turn, &gangs).into_iter().collect();
            assert_eq!(run, expected, "turn {turn}");
        }
    }

    #[test]
    fn who_runs_in_which_turn() {
        // Who is alone on its nodes is never held.
        check(&[(1, &[1, 2])], [&[1]; 4]);
        check(&[(1, &[1, 2]), (2, &[3])], [&[1, 2]; 4]);
        check(&[(1, &[1, 2]), (2, &[2, 3])], [&[1], &[2], &[1], &[2]]);
        // The third and the first have nothing in common but the second.
        let three: [(u32, &[u16]); 3] = [(1, &[1, 2]), (2, &[2, 3]), (3, &[3, 4])];
        check(&three, [&[1, 3], &[2], &[1, 3], &[2]]);
        // Where the one whose turn it is leaves a node free, another one goes on.
        let fills: [(u32, &[u16]); 3] = [(1, &[1]), (2, &[1, 2]), (3, &[2])];
        check(&fills, [&[1, 3], &[2], &[1, 3], &[2]]);
        let crowd: [(u32, &[u16]); 4] = [(1, &[1]), (2, &[1]), (3, &[1, 2]), (4, &[2])];
        check(&crowd, [&[1, 4], &[2, 4], &[3], &[1, 4]]);
        // One whose processes have all ended is in nobody's way.
        check(&[(1, &[1]), (2, &[])], [&[1]; 4]);
    }

    #[test]
    fn turns_are_seconds_of_the_clock() {
        let at = |ms| turn_at(Duration::from_millis(ms));
        assert_eq!(at(41_000), (41, Duration::from_millis(1000)));
        assert_eq!(at(41_999), (41, Duration::from_millis(1)));
        assert_eq!(first_turn(Duration::from_millis(41_999)), 45);
    }

    #[test]
    fn who_holds_whom() {
        let mut turns = Turns::new(NodeId(1));
        let at = |ms: u64| Instant(ms * 1000);
        assert!(turns.held(at(0), 10).is_empty(), "nothing is known");
        turns.handle_list(at(100), vec![gang(1, 0, &[1, 2]), gang(2, 5, &[1])]);
        assert!(turns.held(at(200), 4).is_empty(), "it is alone until then");
        assert_eq!(turns.held(at(200), 6), BTreeSet::from([20]));
        assert_eq!(turns.held(at(200), 7), BTreeSet::from([10]));
        assert_eq!(turns.held(at(5100), 7), BTreeSet::from([10]));
        assert!(turns.held(at(5101), 7).is_empty(), "the list is too old");
    }
}
