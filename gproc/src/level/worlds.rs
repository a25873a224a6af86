//! Seeded worlds: nodes that level by the real policy, with reports that come late and are not exact, moves that take their
//! time and fail, jobs that start and end, and switches that are thrown. For a while everything changes; then nothing does
//! any more for longer than a second, and within [`SETTLES`] no job moves. `SEED` asks for one world, `SEEDS` for more of
//! them.

mod mutants;
mod scenes;

use super::*;
use ::tests::Dice;
use mutants::Mutant;
use std::collections::{BTreeMap, VecDeque};

/// Seconds in which everything changes.
const CHANGES: u64 = 120;
/// Seconds until the last move after that, and in which none may follow.
const SETTLES: u64 = 180;
const STILL: u64 = 180;
/// A job with a slowness this much below that of where it is must not be left over.
const GROSS: f64 = 0.5;

#[derive(Clone, Debug)]
struct Process {
    home: NodeId,
    /// Its owner is not on its home.
    lent: bool,
    at: NodeId,
    since: Instant,
    started: Instant,
    came: bool,
    demand: f64,
    memory_kib: u64,
    standing: Standing,
}

struct Machine {
    leveller: Leveller,
    cpus: u32,
    speed: u32,
    memory_kib: u64,
    state: State,
    /// What it reported, the newest last: others see the first.
    reports: VecDeque<NodeLoad>,
    moving: Option<Moving>,
    /// What is wrong with its measurements; it changes as long as anything does.
    error: (f64, f64),
    /// What it has to do for this second more, or less.
    gust: f64,
    /// Until when there is no other.
    calm_until: Instant,
    /// When it has begun moves.
    begun: Vec<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Moving {
    go: Go,
    ends: Instant,
}

struct World {
    dice: Dice,
    now: Instant,
    nodes: BTreeMap<NodeId, Machine>,
    processes: BTreeMap<i32, Process>,
    next_pid: i32,
    mutant: Option<Mutant>,
    last_move: Instant,
    moves: u32,
    /// Moves after all changes.
    late: Vec<(Instant, NodeId, Go)>,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut dice = Dice::new(seed);
        let count = 2 + dice.below(6);
        let mut nodes = BTreeMap::new();
        let equal = dice.below(2) == 0;
        for number in 1..=count {
            let (cpus, speed) = if equal {
                (2, 1_000)
            } else {
                let cpus = [1, 2, 4, 8][dice.below(4_usize)];
                (cpus, 500 + 100 * dice.below(20_u32))
            };
            let node = NodeId(u16::try_from(number).expect("few"));
            nodes.insert(node, machine(cpus, speed, mutant));
        }
        let mut world = Self {
            dice,
            now: Instant(1_000_000_000),
            nodes,
            processes: BTreeMap::new(),
            next_pid: 1,
            mutant,
            last_move: Instant(0),
            moves: 0,
            late: Vec::new(),
        };
        let jobs = world.dice.below(60);
        for _ in 0..jobs {
            let at = world.any_node();
            let at = if world.dice.below(2) == 0 {
                NodeId(1)
            } else {
                at
            };
            world.start(at);
        }
        world
    }

    fn any_node(&mut self) -> NodeId {
        let place = self.dice.below(self.nodes.len());
        NodeId(1 + u16::try_from(place).expect("few"))
    }

    fn start(&mut self, at: NodeId) {
        let demand = match self.dice.below(4) {
            0 => 0.0,
            1 => 0.1 * (1 + self.dice.below(30)) as f64,
            _ => 1.0,
        };
        let standing = match self.dice.below(8) {
            0 => Standing::Locked,
            1 => Standing::NotListed,
            2 => Standing::Tied("terminal".into()),
            _ => Standing::Levelled,
        };
        let hog = self.dice.below(12) == 0;
        let memory_kib = if hog {
            300 << 10
        } else {
            1 + self.dice.below(20 << 10)
        };
        let process = Process {
            home: at,
            lent: self.next_pid % 3 == 0,
            at,
            since: self.now,
            started: self.now,
            came: false,
            demand,
            memory_kib,
            standing,
        };
        self.processes.insert(self.next_pid, process);
        self.next_pid += 1;
    }

    fn load(&self, node: NodeId, exact: bool) -> NodeLoad {
        let machine = &self.nodes[&node];
        let here = self.processes.values().filter(|it| it.at == node);
        let (mut demand, mut memory) = (0.0, 0);
        for process in here {
            demand += process.demand;
            memory += process.memory_kib;
        }
        let (cpus, speed, memory_kib) = (machine.cpus, machine.speed, machine.memory_kib);
        if !exact {
            let (factor, more) = machine.error;
            demand = (demand * factor + more + machine.gust).max(0.0);
        }
        #[allow(clippy::cast_possible_truncation)]
        NodeLoad {
            runnable: demand as f32,
            guests: 0,
            cpus,
            speed,
            mem_total_kib: memory_kib,
            mem_available_kib: memory_kib.saturating_sub(memory),
        }
    }

    fn change(&mut self) {
        for machine in self.nodes.values_mut() {
            let factor = 0.98 + 0.0004 * self.dice.below(100) as f64;
            let more = 0.001 * self.dice.below(100) as f64;
            machine.error = (factor, more);
        }
        if self.dice.below(4) == 0 {
            let at = self.any_node();
            self.start(at);
        }
        let pids: Vec<i32> = self.processes.keys().copied().collect();
        if self.dice.below(5) == 0 && !pids.is_empty() {
            let at = self.dice.below(pids.len());
            self.processes.remove(&pids[at]);
        }
        if self.dice.below(10) == 0 {
            let node = self.any_node();
            let bit = self.dice.below(6);
            let state = &mut self.nodes.get_mut(&node).expect("one of them").state;
            match bit {
                0 => state.drains ^= true,
                1 => state.blocks ^= true,
                2 => state.in_use ^= true,
                3 => state.off ^= true,
                _ => *state = State::default(),
            }
        }
        if self.dice.below(10) == 0 && !pids.is_empty() {
            let at = self.dice.below(pids.len());
            if let Some(process) = self.processes.get_mut(&pids[at]) {
                process.standing = Standing::Locked;
            }
        }
    }

    /// Has some nodes be busier or less busy for a second than they were, and will be; this does not end.
    fn blow(&mut self) {
        for machine in self.nodes.values_mut() {
            machine.gust = 0.0;
            if self.now >= machine.calm_until && self.dice.below(8) == 0 {
                machine.gust = 0.1 * self.dice.below(60) as f64 - 3.0;
                machine.calm_until = self.now + Duration::from_millis(5_000);
            }
        }
    }

    fn view(&self, here: NodeId) -> View {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let nodes = ids.into_iter().map(|node| {
            let own = self.load(here, false);
            let machine = &self.nodes[&node];
            let reported = machine.reports.front().copied().unwrap_or_default();
            let mut load = if node == here { own } else { reported };
            let mut state = machine.state;
            if self.mutant == Some(Mutant::IgnoresStates) {
                state = State::default();
            }
            if node != here && self.mutant == Some(Mutant::Blind) {
                load.runnable = 0.0;
            }
            if node != here && self.mutant == Some(Mutant::NoHysteresis) {
                load.runnable = (load.runnable - 1.0).max(0.0);
            }
            if self.mutant == Some(Mutant::IgnoresMemory) {
                load.mem_available_kib = load.mem_total_kib;
            }
            Node { node, load, state }
        });
        let nodes = nodes.collect();
        let jobs = self.processes.iter().filter(|(_, it)| it.at == here);
        let jobs = jobs.map(|(pid, it)| Job {
            pid: *pid,
            home: it.home,
            guest: it.lent || it.home != here,
            since: it.since,
            came: it.came,
            demand: it.demand,
            memory_kib: it.memory_kib,
            standing: match self.mutant {
                Some(Mutant::IgnoresStandings) => Standing::Levelled,
                _ => it.standing.clone(),
            },
        });
        View {
            here,
            nodes,
            jobs: jobs.collect(),
        }
    }

    /// A second passes.
    fn round(&mut self) -> Result<(), String> {
        self.blow();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for node in &ids {
            let load = self.load(*node, false);
            let reports = &mut self.nodes.get_mut(node).expect("one of them").reports;
            reports.push_back(load);
            if reports.len() > 2 {
                reports.pop_front();
            }
        }
        for node in ids {
            self.end_move(node);
            let moves = self.nodes[&node].moving.is_some();
            if moves || self.mutant == Some(Mutant::Asleep) {
                continue;
            }
            let (now, view) = (self.now, self.view(node));
            let machine = self.nodes.get_mut(&node).expect("one of them");
            let answers = machine.leveller.decide(now, &view);
            if answers.len() != view.jobs.len() {
                return Err(format!("jobs without an answer: {answers:?}"));
            }
            let goes = answers.into_values().filter_map(|answer| match answer {
                Answer::Goes(go) => Some(go),
                Answer::Stays(_) => None,
            });
            let goes: Vec<Go> = goes.collect();
            if let [go] = goes[..] {
                self.check(node, go)?;
                let ends = self.now + Duration::from_millis(200 + self.dice.below(2_500));
                let machine = self.nodes.get_mut(&node).expect("one of them");
                machine.moving = Some(Moving { go, ends });
                machine.begun.push(self.now);
            } else if !goes.is_empty() {
                return Err(format!("more than one move at a time: {goes:?}"));
            }
        }
        self.now = self.now + Duration::from_millis(1_000);
        Ok(())
    }

    fn end_move(&mut self, node: NodeId) {
        let now = self.now;
        let changes = self.last_change();
        let fails = now < changes && self.dice.below(10) == 0;
        let machine = self.nodes.get_mut(&node).expect("one of them");
        let Some(Moving { go, ends }) = machine.moving else {
            return;
        };
        if now < ends {
            return;
        }
        machine.moving = None;
        let Some(process) = self.processes.get_mut(&go.pid) else {
            return machine.leveller.not_moved(now, go.pid, NotMoved::Ended);
        };
        let closed = self.nodes[&go.to].state.blocks || self.nodes[&go.to].state.in_use;
        let leveller = &mut self.nodes.get_mut(&node).expect("one of them").leveller;
        if closed {
            leveller.not_moved(now, go.pid, NotMoved::Refused);
        } else if fails {
            leveller.not_moved(now, go.pid, NotMoved::Failed("it does".into()));
        } else {
            leveller.moved(now, go.pid);
            (process.at, process.since, process.came) = (go.to, now, true);
            self.last_move = now;
            self.moves += 1;
            if now > changes {
                self.late.push((now, node, go));
            }
        }
    }

    fn last_change(&self) -> Instant {
        Instant(1_000_000_000) + Duration::from_millis(CHANGES * 1_000)
    }

    /// Checks a move that begins.
    fn check(&self, from: NodeId, go: Go) -> Result<(), String> {
        let process = &self.processes[&go.pid];
        let told = || format!("{from} -> {go:?}, {process:?}");
        if process.standing != Standing::Levelled || self.nodes[&from].state.off {
            return Err(format!("LV4: it may not move: {}", told()));
        }
        let to = &self.nodes[&go.to];
        if !to.state.takes() || go.to == from {
            return Err(format!("LV4: no node for it: {}: {:?}", told(), to.state));
        }
        if matches!(go.because, Because::Crowded | Because::Faster) {
            let rules = Rules::default();
            if self.now.since(process.started) < rules.age_min {
                return Err(format!("LV2: too young: {}", told()));
            }
            if process.came && self.now.since(process.since) < rules.residence {
                return Err(format!("LV2: again at once: {}", told()));
            }
        }
        let recent = &self.nodes[&from].begun;
        let minute = Duration::from_millis(60_000);
        let recent = recent.iter().filter(|at| self.now.since(**at) < minute);
        if recent.count() >= Rules::default().moves_per_minute {
            return Err(format!("LV3: too many moves: {}", told()));
        }
        let memory_kib = process.memory_kib;
        let (to, text) = (go.to, told());
        let reported = self.nodes[&to].reports.front();
        let room = reported.map_or(0, |load| load.mem_available_kib);
        if room < memory_kib {
            return Err(format!("LV5: no memory for it: {text}"));
        }
        Ok(())
    }

    /// Returns whether a job is left that would be much better off.
    fn left_over(&self) -> Option<String> {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let loads: BTreeMap<NodeId, NodeLoad> =
            ids.iter().map(|id| (*id, self.load(*id, true))).collect();
        let slowness = |node: NodeId, more: f64| {
            let load = loads[&node];
            let sharing = (f64::from(load.runnable) + more) / f64::from(load.cpus);
            sharing.max(1.0) * 1_000.0 / f64::from(load.speed)
        };
        for (pid, process) in &self.processes {
            let state = self.nodes[&process.at].state;
            let guest = process.lent || process.home != process.at;
            let leaves = state.drains || state.in_use && guest;
            if process.standing != Standing::Levelled
                || state.off
                || !leaves && process.demand < 0.5
            {
                continue;
            }
            for node in &ids {
                let (machine, load) = (&self.nodes[node], loads[node]);
                let room = load.mem_available_kib.saturating_sub(process.memory_kib);
                let open = machine.state.takes() && room > load.mem_total_kib / 4;
                let (now, then) = (slowness(process.at, 0.0), slowness(*node, process.demand));
                if open && *node != process.at && (leaves || then < now * GROSS) {
                    return Some(format!(
                        "{pid} {process:?} stays, {then} for {now} at {node}"
                    ));
                }
            }
        }
        None
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..CHANGES {
            self.change();
            self.round()?;
        }
        for _ in 0..SETTLES {
            self.round()?;
        }
        let settled = self.now;
        for _ in 0..STILL {
            self.round()?;
        }
        if self.last_move > settled {
            return Err(format!(
                "LV1: it does not settle: {} moves, {:?}",
                self.moves, self.late
            ));
        }
        match self.left_over() {
            Some(left) => Err(format!("it sleeps: {left}")),
            None => Ok(()),
        }
    }
}

fn machine(cpus: u32, speed: u32, mutant: Option<Mutant>) -> Machine {
    Machine {
        leveller: Leveller::with_rules(mutants::rules(mutant)),
        cpus,
        speed,
        memory_kib: 1 << 20,
        state: State::default(),
        reports: VecDeque::new(),
        moving: None,
        error: (1.0, 0.0),
        gust: 0.0,
        calm_until: Instant(0),
        begun: Vec::new(),
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SEEDS").unwrap_or(40)).collect(),
    }
}

#[test]
fn worlds_settle_and_keep_the_rules() {
    let mut moves = 0;
    for seed in seeds() {
        let mut world = World::new(seed, None);
        if let Err(why) = world.run() {
            panic!("SEED={seed} cargo test -p gproc level::worlds: {why}");
        }
        moves += world.moves;
    }
    println!("{moves} moves");
}
