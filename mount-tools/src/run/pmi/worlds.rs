//! Commands of several nodes, with barriers, late starts, ends and a lost node in an order that a seed makes (J9).

use super::{Do, Pmi};
use gproc::job::gather::{Gathered, Gathering, Mutant};
use std::collections::VecDeque;

/// Barriers that each process goes through.
const ROUNDS: u32 = 5;

/// From a host to the owner, on the line of one process.
enum Up {
    Entered(u32, Vec<u32>),
    /// Of a node that does not gather.
    Line,
    Ended,
}

/// Back.
enum Down {
    Passed(u32),
    Line,
}

#[derive(Default)]
struct Process {
    node: usize,
    came: bool,
    alive: bool,
    inside: bool,
    /// Barriers that it has entered.
    entered: u32,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
}

struct World {
    pmi: Pmi,
    /// Nothing: its node is of an older revision.
    nodes: Vec<Option<Gathering>>,
    processes: Vec<Process>,
    over: bool,
    /// Somebody has ended before its time.
    harmed: bool,
    messages: usize,
    state: u64,
}

/// What a world may have in it.
#[derive(Clone, Copy, Default)]
struct Kind {
    late: bool,
    old: bool,
    harm: bool,
    mutant: Option<Mutant>,
}

impl World {
    fn new(seed: u64, kind: Kind) -> Self {
        let mut world = Self {
            pmi: Pmi::new(0),
            nodes: Vec::new(),
            processes: Vec::new(),
            over: false,
            harmed: false,
            messages: 0,
            state: seed.wrapping_mul(2).wrapping_add(1),
        };
        for _ in 0..=world.dice(3) {
            let old = kind.old && world.dice(3) == 0;
            let gathering = (!old).then(|| Gathering::mutant(kind.mutant));
            world.nodes.push(gathering);
        }
        for at in 0..world.nodes.len() + world.dice(6) {
            let process = Process {
                node: at % world.nodes.len(),
                alive: true,
                ..Process::default()
            };
            world.processes.push(process);
        }
        let size = u32::try_from(world.processes.len()).expect("few");
        world.pmi = Pmi::new(size);
        if !kind.late {
            (0..world.processes.len()).for_each(|at| world.come(at));
        }
        world
    }

    fn dice(&mut self, sides: usize) -> usize {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.state >> 33).expect("31 bits") % sides
    }

    fn come(&mut self, at: usize) {
        let process = &mut self.processes[at];
        process.came = true;
        if let Some(gathering) = &mut self.nodes[process.node] {
            gathering.come(at as u64);
        }
    }

    fn enter(&mut self, at: usize) -> Result<(), String> {
        let process = &mut self.processes[at];
        (process.inside, process.entered) = (true, process.entered + 1);
        match &mut self.nodes[process.node] {
            Some(gathering) => {
                let todo = gathering.enter(at as u64);
                self.act(todo)
            }
            None => {
                process.up.push_back(Up::Line);
                Ok(())
            }
        }
    }

    fn act(&mut self, todo: Option<Gathered>) -> Result<(), String> {
        let number = |process: &u64| u32::try_from(*process).expect("few");
        match todo {
            None => Ok(()),
            Some(Gathered::Send {
                through,
                token,
                processes,
            }) => {
                self.messages += 1;
                let processes = processes.iter().map(number).collect();
                let line = &mut self.processes[number(&through) as usize].up;
                line.push_back(Up::Entered(token, processes));
                Ok(())
            }
            Some(Gathered::Release(processes)) => processes
                .iter()
                .try_for_each(|process| self.release(number(process) as usize)),
        }
    }

    fn release(&mut self, at: usize) -> Result<(), String> {
        let round = self.processes[at].entered;
        self.processes[at].inside = false;
        match self.processes.iter().position(|of| of.entered < round) {
            Some(other) => Err(format!(
                "{at} goes on, and {other} is not in barrier {round}"
            )),
            None => Ok(()),
        }
    }

    fn end(&mut self, at: usize, harm: bool) -> Result<(), String> {
        self.harmed |= harm;
        let process = &mut self.processes[at];
        process.alive = false;
        process.inside = false;
        let came = process.came;
        let todo = match &mut self.nodes[process.node] {
            Some(gathering) if came => gathering.end(at as u64),
            _ => None,
        };
        self.act(todo)?;
        self.processes[at].up.push_back(Up::Ended);
        Ok(())
    }

    /// All of a node ends, and what it has sent may be lost.
    fn lose(&mut self, node: usize) {
        self.harmed = true;
        self.nodes[node] = None;
        for process in self.processes.iter_mut().filter(|of| of.node == node) {
            if process.alive {
                process.up.clear();
                process.up.push_back(Up::Ended);
            }
            process.alive = false;
            process.inside = false;
            process.down.clear();
        }
    }

    fn hear(&mut self, at: usize) {
        let process = u32::try_from(at).expect("few");
        let todo = match self.processes[at].up.pop_front() {
            None => return,
            Some(Up::Entered(token, processes)) => self.pmi.entered(process, token, &processes),
            Some(Up::Line) => self.pmi.take(process, b"cmd=barrier_in\n"),
            Some(Up::Ended) => self.pmi.ended(process),
        };
        for todo in todo {
            match todo {
                Do::Tell(to, _) => self.processes[to as usize].down.push_back(Down::Line),
                Do::Pass(to, token) => {
                    let line = &mut self.processes[to as usize].down;
                    line.push_back(Down::Passed(token));
                }
                Do::End(_) => self.over = true,
            }
        }
    }

    fn told(&mut self, at: usize) -> Result<(), String> {
        let process = &mut self.processes[at];
        let told = process.down.pop_front().filter(|_| process.alive);
        match (told, &mut self.nodes[process.node]) {
            (None, _) | (Some(Down::Passed(_)), None) => Ok(()),
            (Some(Down::Line), _) => self.release(at),
            (Some(Down::Passed(token)), Some(gathering)) => {
                let todo = gathering.pass(token);
                self.act(todo)
            }
        }
    }

    /// Runs until nothing is left to happen.
    fn run(&mut self, kind: Kind) -> Result<(), String> {
        while !self.over {
            let mut can = Vec::new();
            for (at, of) in self.processes.iter().enumerate() {
                let wants = of.alive && !of.inside;
                can.extend((wants && !of.came).then_some((0, at)));
                can.extend((wants && of.came && of.entered < ROUNDS).then_some((1, at)));
                can.extend((wants && of.came && of.entered == ROUNDS).then_some((2, at)));
                can.extend((!of.up.is_empty()).then_some((3, at)));
                can.extend((!of.down.is_empty()).then_some((4, at)));
            }
            if can.is_empty() {
                break;
            }
            if kind.harm && self.dice(40) == 0 {
                let at = self.dice(self.processes.len());
                match self.dice(2) {
                    0 => self.lose(self.processes[at].node),
                    _ if self.processes[at].alive => self.end(at, true)?,
                    _ => {}
                }
                continue;
            }
            let (what, at) = can[self.dice(can.len())];
            match what {
                0 => self.come(at),
                1 => self.enter(at)?,
                2 => self.end(at, false)?,
                3 => self.hear(at),
                _ => self.told(at)?,
            }
        }
        match self.processes.iter().position(|of| of.inside) {
            _ if self.over && !self.harmed => Err("all are ended, and nobody was gone".into()),
            Some(at) if !self.over => Err(format!("{at} waits for ever")),
            _ => Ok(()),
        }
    }
}

fn world(seed: u64, kind: Kind) -> Result<World, String> {
    let mut world = World::new(seed, kind);
    world.run(kind)?;
    Ok(world)
}

const ALL: Kind = Kind {
    late: true,
    old: true,
    harm: true,
    mutant: None,
};

#[test]
fn all_go_through_a_barrier_or_none() {
    for seed in 0..5_000 {
        for harm in [false, true] {
            let kind = Kind { harm, ..ALL };
            if let Err(why) = world(seed, kind) {
                panic!("SEED={seed} harm={harm}: {why}");
            }
        }
    }
}

#[test]
fn a_node_says_once_that_its_processes_are_in() {
    for seed in 0..1_000 {
        let world = world(seed, Kind::default()).unwrap_or_else(|why| panic!("SEED={seed}: {why}"));
        assert_eq!(
            world.messages,
            world.nodes.len() * ROUNDS as usize,
            "SEED={seed}"
        );
    }
}

#[test]
fn mutants_are_caught() {
    for mutant in [Mutant::ForgetsTokens, Mutant::AwaitsEnded] {
        let kind = Kind {
            mutant: Some(mutant),
            ..ALL
        };
        let caught = (0..5_000).any(|seed| world(seed, kind).is_err());
        assert!(caught, "{mutant:?}");
    }
}
