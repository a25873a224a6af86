//! Worlds of nodes that hear of gangs at different times, and what must be so in each of their turns.

use super::*;
use ::tests::Dice;

/// Nodes that do not keep to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// A gang takes part as soon as its node has heard of it.
    EntersAtOnce,
    /// Each node looks at its own gangs only.
    KnowsItsOwn,
    /// One gang of the cluster runs at a time, whatever nodes it has.
    OneOfAll,
    /// What was heard once is good for ever.
    HoldsForEver,
    /// Turns do not change.
    StandsStill,
}

/// Each with the rule that it breaks.
const MUTANTS: [(Mutant, &str); 5] = [
    (Mutant::EntersAtOnce, "J10"),
    (Mutant::KnowsItsOwn, "J10"),
    (Mutant::OneOfAll, "J11"),
    (Mutant::HoldsForEver, "J11"),
    (Mutant::StandsStill, "J11"),
];

/// Looks at the nodes in each turn.
const LOOKS: u64 = 4;

struct World {
    dice: Dice,
    /// Milliseconds.
    now: u64,
    /// The record, with what is still on its way there: when it will be on it.
    record: Vec<(u64, Gang)>,
    nodes: BTreeMap<NodeId, Node>,
    next: u32,
    /// When a gang ended, or a node was cut off or back, last: nodes may differ for a turn.
    disturbed: u64,
    /// When each gang has run last.
    ran: BTreeMap<u32, Turn>,
}

struct Node {
    turns: Turns,
    reads_at: u64,
    /// It hears nothing, since then.
    cut: Option<u64>,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut dice = Dice::new(seed);
        let count = 2 + dice.below(4_u16);
        let node = |node| {
            let mut turns = Turns::new(NodeId(node));
            turns.mutant = mutant;
            Node {
                turns,
                reads_at: 0,
                cut: None,
            }
        };
        Self {
            dice,
            now: 100 * TURN_MS,
            record: Vec::new(),
            nodes: (1..=count).map(|at| (NodeId(at), node(at))).collect(),
            next: 0,
            disturbed: 0,
            ran: BTreeMap::new(),
        }
    }

    fn clock(&self) -> Instant {
        Instant(self.now * 1000)
    }

    fn turn(&self) -> Turn {
        turn_at(Duration::from_millis(self.now)).0
    }

    fn begin(&mut self) {
        self.next += 1;
        let nodes: Vec<NodeId> = self.nodes.keys().copied().collect();
        let mut processes = BTreeSet::new();
        for node in nodes {
            if self.dice.below(2) == 0 {
                processes.insert((node, self.next));
            }
        }
        let gang = Gang {
            npid: self.next,
            since: first_turn(Duration::from_millis(self.now)),
            processes,
        };
        // Until it is on record.
        let takes = self.dice.below(2500);
        self.record.push((self.now + takes, gang));
    }

    fn end(&mut self) {
        if !self.record.is_empty() {
            let at = self.dice.below(self.record.len());
            self.record.remove(at);
            self.disturbed = self.now;
        }
    }

    fn cut_or_heal(&mut self) {
        let at = self.dice.below(self.nodes.len());
        let node = self.nodes.values_mut().nth(at).expect("one of them");
        node.cut = node.cut.xor(Some(self.now));
        node.reads_at = self.now;
        self.disturbed = self.now;
    }

    fn read(&mut self) {
        let now = self.clock();
        let list = self.record.iter().filter(|(at, _)| *at <= self.now);
        let list: Vec<Gang> = list.map(|(_, gang)| gang.clone()).collect();
        for node in self.nodes.values_mut() {
            if node.cut.is_none() && node.reads_at <= self.now {
                node.turns.handle_list(now, list.clone());
                node.reads_at = self.now + 300 + self.dice.below(500);
            }
        }
    }

    /// Returns what is not as it must be.
    fn check(&mut self) -> Result<(), String> {
        let (now, turn) = (self.clock(), self.turn());
        let mut runs: BTreeMap<u32, BTreeSet<bool>> = BTreeMap::new();
        let mut here: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        let active = self.record.iter().map(|(_, gang)| gang);
        let active: Vec<&Gang> = active.filter(|gang| gang.since <= turn).collect();
        for (id, node) in &self.nodes {
            let held = node.turns.held(now, turn);
            let late = node.cut.is_some_and(|at| self.now > at + 6000);
            if late && !held.is_empty() {
                return Err(format!("J11: node {id} hears nothing and holds {held:?}"));
            }
            for gang in &active {
                if gang.nodes().any(|of| of == *id) {
                    let goes = !held.contains(&gang.npid);
                    runs.entry(gang.npid).or_default().insert(goes);
                    if goes {
                        here.entry(*id).or_default().push(gang.npid);
                    }
                }
            }
        }
        let cut = self.nodes.values().any(|node| node.cut.is_some());
        if cut || self.now < self.disturbed + 2 * TURN_MS {
            self.ran.clear();
            return Ok(());
        }
        if let Some((npid, _)) = runs.iter().find(|(_, goes)| goes.len() > 1) {
            return Err(format!("J10: gang {npid} runs on a part of its nodes"));
        }
        if let Some((node, gangs)) = here.iter().find(|(_, gangs)| gangs.len() > 1) {
            return Err(format!("J10: gangs {gangs:?} run on node {node}"));
        }
        let goes = |gang: &Gang| runs.get(&gang.npid).is_none_or(|goes| goes.contains(&true));
        for gang in active.iter().filter(|gang| !goes(gang)) {
            let others = active.iter().filter(|other| goes(other));
            let nodes: BTreeSet<NodeId> = others.flat_map(|other| other.nodes()).collect();
            if !gang.shares_node(&nodes) {
                return Err(format!("J11: gang {} is held for nobody", gang.npid));
            }
        }
        // Who has come since begins a count of its own.
        let count = active.len() as u64;
        for gang in &active {
            if gang.since + count > turn || goes(gang) {
                self.ran.insert(gang.npid, turn);
            }
            let last = *self.ran.entry(gang.npid).or_insert(turn);
            if turn - last > 2 * count {
                return Err(format!("J11: gang {} has no turn", gang.npid));
            }
        }
        Ok(())
    }
}

/// Returns the first promise that a world breaks.
fn world(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = World::new(seed, mutant);
    for _ in 0..60 * LOOKS {
        match world.dice.below(8 * LOOKS) {
            0..=3 if world.record.len() < 5 => world.begin(),
            4 | 5 => world.end(),
            6 => world.cut_or_heal(),
            _ => {}
        }
        world.now += TURN_MS / LOOKS;
        world.read();
        world
            .check()
            .map_err(|why| format!("{why} at {}", world.now))?;
    }
    Ok(())
}

#[test]
fn worlds_keep_turns() {
    let seeds = std::env::var("SEEDS").ok();
    let seeds = seeds.map_or(300, |seeds| seeds.parse().expect("a number"));
    for seed in 0..seeds {
        world(seed, None).unwrap_or_else(|why| panic!("SEED={seed}: {why}"));
    }
}

#[test]
fn mutants_are_caught() {
    for (mutant, rule) in MUTANTS {
        let broken = (0..100).filter_map(|seed| world(seed, Some(mutant)).err());
        let broken: Vec<String> = broken.collect();
        assert!(
            broken.iter().any(|why| why.starts_with(rule)),
            "{mutant:?}: {broken:?}"
        );
    }
}
