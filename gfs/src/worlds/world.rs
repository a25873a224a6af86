//! A world: its nodes, the faults that it draws for them, and how it ends.

use super::copies::{Copies, unfinished};
use super::life::{Life, VOTERS, run_until_idle, runtime};
use super::model::{File, Who};
use super::net::arrive;
use super::points::{Here, Mutant, enter};
use super::shared::{Host, Phase, Shared, State};
use super::sys;
use crate::data::simulated::{ChunkFault, SimulatedStore};
use crate::server::log::{DiskFault, SimulatedDisk};
use crate::server::machine::StateMachine;
use consistency::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tests::Dice;
use tests::linear::models::Names;
use tests::linear::{Verdict, check, check_each};
use tokio::runtime::Runtime;

pub(super) const NODES: u16 = 4;
pub(super) const MS: u64 = 1_000_000;
/// How long the files may take to be made, while nothing goes wrong.
const SET_UP_MAX: u64 = 20_000 * MS;
/// How long everything may go wrong, at most.
const FAULTS_MAX: u64 = 6_000 * MS;
/// How long programs go on after that.
const HEALED: u64 = 500 * MS;
/// By then, after the faults, everything must have answered: the clients of dead nodes have to be waited for.
const ANSWERED_MAX: u64 = 30_000 * MS;
/// How long the voters may take to agree in the end.
const AGREED_MAX: u64 = 5_000 * MS;
/// How long it may take until each chunk has its copies, and orphans are gone.
const WHOLE_MAX: u64 = 30_000 * MS;
/// The clocks of nodes start here at the earliest.
const BEGINNING: u64 = 1_000_000_000_000;
const YEAR_2026: u64 = 1_767_225_600_000_000_000;

/// What is going to happen to a node, or to the whole.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan {
    Fault,
    Start(NodeId),
    /// All ways are open again.
    Connect,
    Kill(NodeId),
    /// The disk works again.
    Mend(NodeId),
    /// That of the chunks.
    MendChunks(NodeId),
}

/// A node as it runs.
pub(super) struct Running {
    pub(super) runtime: Option<Runtime>,
    /// Its clock reads `offset + now * rate / 1000`, its time of day is `skew` later.
    offset: u64,
    rate: u64,
    skew: u64,
    pub(super) paused_until: u64,
}

/// How a world ended.
#[derive(Debug)]
pub(super) struct End {
    /// The first broken promise.
    pub(super) broken: Option<String>,
    /// Tells one run from another.
    pub(super) trace: u64,
    /// Places where a node died, and all that were passed.
    pub(super) deaths: BTreeSet<&'static str>,
    pub(super) points: BTreeMap<&'static str, u32>,
    /// A history was too entangled to be judged.
    pub(super) undecided: bool,
}

/// See the module page.
pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) copies: Copies,
    pub(super) nodes: BTreeMap<NodeId, Running>,
    pub(super) plans: BTreeMap<(u64, u64), Plan>,
    /// Draws what happens, apart from the shared dice: a mutant does not change it.
    pub(super) dice: Dice,
    mutant: Option<Mutant>,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>, told: bool) -> Self {
        sys::seed(seed);
        let mut dice = Dice::new(seed);
        let shared = Shared::new(Dice::new(dice.below(u64::MAX)), told);
        let mut nodes = BTreeMap::new();
        for node in (1..=NODES).map(NodeId) {
            let running = Running {
                runtime: None,
                offset: BEGINNING + dice.below(1_000_000) * MS,
                rate: rate(node, dice.below(21_u64), mutant),
                skew: dice.below(3_600_000) * MS,
                paused_until: 0,
            };
            nodes.insert(node, running);
            let host = Host {
                life: 0,
                up: false,
                router: Arc::default(),
                disk: Arc::new(SimulatedDisk::new(Dice::new(dice.below(u64::MAX)))),
                chunks: Arc::new(SimulatedStore::new(Dice::new(dice.below(u64::MAX)))),
                troubled: 0,
                refused: false,
                log: None,
                client: None,
                session: None,
                ran: 0,
                done: false,
            };
            shared.state().hosts.insert(node, host);
        }
        Self {
            shared,
            copies: Copies::default(),
            nodes,
            plans: BTreeMap::new(),
            dice,
            mutant,
        }
    }

    /// Runs to the end or to the first broken promise.
    pub(super) fn run(mut self) -> End {
        for node in self.ids() {
            self.start(node);
        }
        let lived = self.live();
        let ids = self.ids();
        for node in ids {
            self.stop(node);
        }
        let mut state = self.shared.state();
        if let Err(why) = lived {
            state.fail(why);
        }
        let undecided = judge(&mut state);
        End {
            broken: state.broken.clone(),
            trace: state.trace(),
            deaths: state.deaths.clone(),
            points: state.points.clone(),
            undecided,
        }
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn live(&mut self) -> Result<(), String> {
        let set_up = |state: &State| state.phase != Phase::SetUp;
        self.until(SET_UP_MAX, "the files are made", set_up)?;

        let begun = self.now();
        let faults = begun + FAULTS_MAX / 4 + self.dice.below(FAULTS_MAX / 4 * 3);
        self.plan(begun, Plan::Fault);
        while self.now() < faults && !self.is_broken() {
            self.step();
        }
        self.heal();
        let healed = self.now() + HEALED;
        while self.now() < healed && !self.is_broken() {
            self.step();
        }
        self.shared.state().phase = Phase::LastLook;
        let done = |state: &State| state.hosts.values().all(|host| host.done);
        self.until(ANSWERED_MAX, "every node has answered", done)?;
        let agreed = self.until(AGREED_MAX, "the voters agree", agree);
        agreed.map_err(|why| format!("{why}: {}", voters(&self.shared.state())))?;
        let whole = |state: &State| unfinished(state).is_none();
        let whole = self.until(WHOLE_MAX, "all chunks are in order", whole);
        whole.map_err(|why| format!("{why}: {:?}", unfinished(&self.shared.state())))?;
        let state = self.shared.state();
        let log = state.hosts.values().find_map(|host| host.log.as_ref());
        log.map_or(Ok(()), |log| log.read(|meta| meta.check()))
    }

    fn until(
        &mut self,
        most: u64,
        what: &str,
        holds: impl Fn(&State) -> bool,
    ) -> Result<(), String> {
        let end = self.now() + most;
        while !holds(&self.shared.state()) {
            if self.is_broken() {
                return Ok(());
            }
            if self.now() > end {
                let ms = most / MS;
                return Err(format!("liveness: waited {ms} ms in vain until {what}"));
            }
            self.step();
        }
        Ok(())
    }

    pub(super) fn now(&self) -> u64 {
        self.shared.state().now
    }

    fn is_broken(&self) -> bool {
        self.shared.state().broken.is_some()
    }

    /// Lets a little time pass.
    fn step(&mut self) {
        let passed = 200_000 + self.dice.below(4 * MS);
        let now = {
            let mut state = self.shared.state();
            state.now += passed;
            state.now
        };
        while let Some(entry) = self.plans.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let plan = entry.remove();
            self.carry_out(plan);
        }
        loop {
            let packet = self.shared.state().due();
            let Some(packet) = packet else { break };
            let to = packet.to;
            let paused_until = self.nodes[&to].paused_until;
            if paused_until > now {
                self.shared.state().put(paused_until, packet);
                continue;
            }
            let router = Arc::clone(&self.shared.state().hosts[&to].router);
            self.set_clock(to);
            if let Some(runtime) = &self.nodes[&to].runtime {
                let _here = runtime.enter();
                arrive(&self.shared, &router, packet);
            }
        }
        for node in self.ids() {
            if self.nodes[&node].paused_until <= now {
                self.run_node(node);
            }
        }
        self.look_at_chunks();
    }

    fn look_at_chunks(&mut self) {
        let mut state = self.shared.state();
        let now = state.now;
        let State {
            hosts,
            cuts,
            weather,
            ..
        } = &mut *state;
        let bad_weather = weather.lost_per_mille > 0 || weather.late_per_mille > 0;
        for (node, host) in hosts {
            let cut = cuts.iter().any(|(from, to)| from == node || to == node);
            let stopped = self.nodes[node].paused_until > now;
            let away = !host.up || host.session.is_none();
            if bad_weather || cut || stopped || away || host.chunks.is_failing() {
                host.troubled = now;
            }
        }
        if let Err(why) = self.copies.check(&state) {
            state.fail(why);
        }
    }

    fn set_clock(&self, node: NodeId) {
        let now = self.now();
        let running = &self.nodes[&node];
        let monotonic = running.offset + now / 1_000 * running.rate;
        sys::set_clock(monotonic, YEAR_2026 + running.skew + now);
    }

    fn enter(&self, node: NodeId) {
        enter(Some(Here {
            shared: Arc::clone(&self.shared),
            node,
            mutant: self.mutant,
        }));
    }

    fn run_node(&mut self, node: NodeId) {
        self.set_clock(node);
        self.enter(node);
        if let Some(runtime) = &self.nodes[&node].runtime {
            run_until_idle(runtime);
        }
        enter(None);
        let mut state = self.shared.state();
        let host = &state.hosts[&node];
        let life = host.life;
        if host.up {
            let client = host.client.as_ref().and_then(std::sync::Weak::upgrade);
            let session = client.as_ref().and_then(|client| client.session());
            let in_term = client.as_ref().is_some_and(|client| client.in_term());
            // L3: the rates are such that none has any.
            if let Some(trouble) = client.and_then(|client| client.clock_trouble()) {
                state.fail(format!("the clock of node {node}: {trouble}"));
                return;
            }
            if host.session.is_some() && session != host.session {
                // Its changes went with the session, at some time before it was looked at.
                let who = Who { node: node.0, life };
                state.tell(node, || "has lost its session".into());
                state.lose(who);
            } else if session.is_some()
                && in_term
                && let Some(why) = state.own.goes_on(node.0)
            {
                state.fail(why);
            }
            let ran = state.next_event();
            let host = state.hosts.get_mut(&node).expect("a node");
            host.session = session;
            host.ran = ran;
        } else if self.nodes[&node].runtime.is_some() {
            drop(state);
            self.stop(node);
            let after = self.dice.below(3_000 * MS);
            self.plan(self.now() + after, Plan::Start(node));
        }
    }

    /// Ends what runs on a node.
    fn stop(&mut self, node: NodeId) {
        self.set_clock(node);
        let (log, client) = {
            let mut state = self.shared.state();
            let host = state.hosts.get_mut(&node).expect("a node");
            host.router = Arc::default();
            host.session = None;
            (host.log.take(), host.client.take())
        };
        let running = self.nodes.get_mut(&node).expect("a node");
        running.paused_until = 0;
        drop(running.runtime.take());
        drop((log, client));
    }

    pub(super) fn plan(&mut self, at: u64, plan: Plan) {
        let event = self.shared.state().next_event();
        self.plans.insert((at, event), plan);
    }

    fn carry_out(&mut self, plan: Plan) {
        self.shared.state().note(&[self.plans.len() as u64]);
        match plan {
            Plan::Fault => {
                self.fault();
                let next = self.now() + self.dice.below(500 * MS);
                self.plan(next, Plan::Fault);
            }
            Plan::Start(node) => self.start(node),
            Plan::Connect => self.shared.state().cuts.clear(),
            Plan::Kill(node) => self.kill(node),
            Plan::Mend(node) => self.shared.state().hosts[&node].disk.fail(DiskFault::None),
            Plan::MendChunks(node) => {
                let state = self.shared.state();
                state.hosts[&node].chunks.fail(ChunkFault::None);
                state.hosts[&node].chunks.slow_down(Duration::ZERO);
            }
        }
    }

    fn start(&mut self, node: NodeId) {
        let (who, disk, chunks, router) = {
            let mut state = self.shared.state();
            let host = state.hosts.get_mut(&node).expect("a node");
            if host.up {
                return;
            }
            host.up = true;
            host.life += 1;
            let life = host.life;
            let who = Who { node: node.0, life };
            let (disk, router) = (Arc::clone(&host.disk), Arc::clone(&host.router));
            let chunks = Arc::clone(&host.chunks);
            state.tell(node, || "starts".into());
            (who, disk, chunks, router)
        };
        let life = Life {
            shared: Arc::clone(&self.shared),
            chunks,
            who,
            disk,
            router,
            dice: Dice::new(self.dice.below(u64::MAX)),
        };
        self.set_clock(node);
        let runtime = runtime();
        drop(runtime.spawn(life.run()));
        self.nodes.get_mut(&node).expect("a node").runtime = Some(runtime);
    }
}

/// Returns how fast a node's clock runs, in thousandths: two differ by at most 1 part in DRIFT.
fn rate(node: NodeId, draw: u64, mutant: Option<Mutant>) -> u64 {
    if mutant == Some(Mutant::SlowClock) && node == NodeId(NODES) {
        900
    } else {
        990 + draw
    }
}

/// Says how far each voter is.
fn voters(state: &State) -> String {
    let say = |(node, host): (&NodeId, &Host)| {
        let log = host.log.as_ref()?;
        let (index, fault) = (log.applied_index(), log.fault());
        let hash = log.read(|meta| crc32fast::hash(&meta.snapshot()));
        Some(format!(
            "node {node} is at {index} with {hash:x}, {fault:?}; "
        ))
    };
    state.hosts.iter().filter_map(say).collect()
}

/// Returns whether there is a leader, and all of its voters have the same state.
fn agree(state: &State) -> bool {
    let mut logs = state.hosts.values().filter_map(|host| host.log.as_ref());
    let Some(leader) = logs.find(|log| log.leadership().borrow().leading) else {
        return false;
    };
    let voters = leader.voters();
    let logs = voters.iter().map(|voter| state.hosts[voter].log.as_ref());
    let states: Option<Vec<Vec<u8>>> = logs
        .map(|log| log.map(|log| log.read(|meta| meta.snapshot())))
        .collect();
    voters.len() == usize::from(VOTERS)
        && states.is_some_and(|states| states.windows(2).all(|pair| pair[0] == pair[1]))
}

/// Looks for an order of all that was seen; returns whether that was given up.
fn judge(state: &mut State) -> bool {
    let mut undecided = false;
    match check_each(&File, state.files.clone(), |of| of.file) {
        Verdict::Linearizable => {}
        Verdict::Violation(why) => state.fail(format!("files: {why}")),
        Verdict::Undecided => undecided = true,
    }
    match check(&Names, &state.names) {
        Verdict::Linearizable => {}
        Verdict::Violation(why) => state.fail(format!("names: {why}")),
        Verdict::Undecided => undecided = true,
    }
    undecided
}
