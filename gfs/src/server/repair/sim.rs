//! Seeded worlds in which chunks are written, copied, damaged and swept away at once: the real state machine, book,
//! planner and sweeps, over stores and a network in memory whose messages come late, in any order, or not at all.
//!
//! What must hold after every step:
//! - a listed copy is there unless the world has damaged or taken it;
//! - a live chunk has a good copy that is listed. (The world damages no second copy before the first is made good.)
//!
//! At last everything is healed: then every chunk must get its copies, and nothing else may be left.

use super::book::{Book, Outcome};
use super::compare;
use super::plan::{Job, View};
use crate::data::sweep::Sweep;
use crate::server::machine::StateMachine;
use crate::server::state::tests::Dice;
use crate::server::state::{Body, Command, Listed, MetaState, Reply, Step};
use consistency::wire::meta::Name;
use consistency::wire::meta::{
    Extent, FileKind, FlushContent, FlushFile, NewNode, Op, OpReply, REPLICAS, XattrMode,
};
use consistency::wire::request::NodeReport;
use consistency::wire::request::NodeStatus;
use consistency::{ChunkId, Epoch, InodeNo, NodeId, OpSeq, SessionId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NODES: u16 = 4;
const STEPS: u64 = 600;
/// A message waits as long as it is not drawn; one in so many is lost.
const LOST_ONE_IN: u64 = 12;

/// A rule that the world breaks, to show that it would be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// D1: a copy is listed as soon as it is asked for.
    ListAtOnce,
    /// D2: a spare copy is dropped although nobody has looked at the others.
    TrimUnverified,
    /// D2: a bad copy is dropped although nobody has looked at another one.
    DropUnverified,
    /// D3: a node deletes what was put again since its sweep began.
    ForgetPuts,
    /// D3: what is being copied counts as an orphan.
    IgnoreBusy,
    /// D3: what a live session may still enter counts as an orphan.
    IgnoreSessions,
    /// D3: the leader answers from what it knew some time ago.
    AnswerFromThePast,
    /// D4: what an earlier leader has decided is done.
    AnyReign,
    /// D5: what a node once said of its copies is believed, and that is enough.
    BelieveReports,
}

#[derive(Clone, Debug)]
enum Message {
    /// From a writer to a node.
    Put {
        session: SessionId,
        chunk: ChunkId,
        to: NodeId,
    },
    /// A job's step at the node that has to do it.
    Ask {
        reign: Epoch,
        number: u64,
    },
    /// Its answer.
    Answer {
        reign: Epoch,
        number: u64,
        good: Result<Vec<ChunkId>, ()>,
    },
    /// Copies were found bad: whether others are good.
    Vouch {
        reign: Epoch,
        number: u64,
        bad: Vec<ChunkId>,
    },
    /// A node's list, and when its sweep began.
    Inventory {
        node: NodeId,
        sweep: u64,
        ids: Vec<ChunkId>,
    },
    Orphans {
        node: NodeId,
        sweep: u64,
        ids: Vec<ChunkId>,
    },
    Report {
        node: NodeId,
        chunk: ChunkId,
    },
    /// Of a dead chunk.
    Delete {
        node: NodeId,
        chunk: ChunkId,
    },
    /// A proposal on its way through the log.
    Commit {
        number: Option<(Epoch, u64)>,
        body: Body,
    },
}

#[derive(Debug, Default)]
struct Store {
    up: bool,
    /// Its copies are as they are, but cannot be read now.
    unreadable: bool,
    /// Copies, and whether they are good.
    chunks: BTreeMap<ChunkId, bool>,
    sweep: Sweep,
    sweeps: u64,
}

/// A chunk that is being written.
#[derive(Debug)]
struct Write {
    session: SessionId,
    on: BTreeSet<NodeId>,
}

struct World {
    dice: Dice,
    mutant: Option<Mutant>,
    now: Instant,
    state: MetaState,
    past: MetaState,
    book: Book,
    stores: BTreeMap<NodeId, Store>,
    network: Vec<Message>,
    sessions: Vec<SessionId>,
    seq: u64,
    writes: BTreeMap<ChunkId, Write>,
    files: Vec<(InodeNo, String)>,
    /// Jobs of any reign, by their number.
    jobs: BTreeMap<u64, (Epoch, Job)>,
    next_job: u64,
    /// What the world has damaged or taken and nobody has made good.
    faults: BTreeMap<ChunkId, NodeId>,
    deleted: BTreeMap<ChunkId, BTreeSet<NodeId>>,
    calm: bool,
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let store = || Store {
            up: true,
            ..Store::default()
        };
        let mut world = Self {
            dice: Dice::new(seed),
            mutant,
            now: Instant::now(),
            state: MetaState::default(),
            past: MetaState::default(),
            book: Book::default(),
            stores: (1..=NODES).map(|id| (NodeId(id), store())).collect(),
            network: Vec::new(),
            sessions: Vec::new(),
            seq: 0,
            writes: BTreeMap::new(),
            files: Vec::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            faults: BTreeMap::new(),
            deleted: BTreeMap::new(),
            calm: false,
        };
        world.reign();
        world.open_session();
        world
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.dice.below(n) == 0
    }

    fn node(&mut self) -> NodeId {
        NodeId(u16::try_from(1 + self.dice.below(u64::from(NODES))).expect("small"))
    }

    fn apply(&mut self, body: Body) -> Reply {
        let now = Timestamp::from_nanos(1_000_000_000);
        self.state.apply(&Command { now, body })
    }

    fn change(&mut self, session: SessionId, op: Op) -> Option<OpReply> {
        self.seq += 1;
        let reply = self.apply(Body::Change {
            session,
            seq: OpSeq(self.seq),
            done_below: OpSeq(self.seq),
            op,
        });
        match reply {
            Reply::Op { result, .. } => result.ok(),
            _ => None,
        }
    }

    fn reign(&mut self) {
        if let Reply::Reign(reign) = self.apply(Body::BeginReign) {
            self.book.begin(Some(reign));
        }
    }

    fn open_session(&mut self) {
        // Of nodes without a store: their lives have nothing to do with those of the stores.
        let node = NodeId(100 + u16::try_from(self.seq % 50).expect("small"));
        self.seq += 1;
        let attempt = self.seq;
        if let Reply::Session { session, .. } = self.apply(Body::OpenSession { node, attempt }) {
            self.sessions.push(session);
        }
    }

    fn view(&self) -> View {
        let status = |(node, store): (&NodeId, &Store)| NodeStatus {
            draining: self.state.draining().contains(node),
            ..NodeStatus::new(*node, store.up, NodeReport::default())
        };
        View {
            nodes: self.stores.iter().map(status).collect(),
            gone: BTreeSet::new(),
            copies: 2,
        }
    }

    fn step(&mut self) {
        match self.dice.below(28) {
            0 => self.begin_write(),
            1 | 2 => self.flush(),
            3 => self.unlink(),
            4 if self.one_in(4) => self.end_session(),
            5 => self.set_copies(),
            6 if self.one_in(3) => {
                let (node, drain) = (self.node(), self.one_in(2));
                self.apply(Body::Drain { node, drain });
            }
            7 if self.one_in(3) => self.reign(),
            8 => self.power(),
            9 if self.one_in(3) => self.hide(),
            9 => self.damage(),
            10 | 11 => self.begin_sweep(),
            12 => self.scrub(),
            13 => self.reap(),
            14 if self.one_in(4) => self.past = self.state.clone(),
            15..=18 => self.plan(),
            _ => self.deliver(),
        }
        self.now += Duration::from_millis(200);
    }

    fn begin_write(&mut self) {
        let Some(session) = self.sessions.last().copied() else {
            return self.open_session();
        };
        let Some(OpReply::ChunkIds(chunk)) = self.change(session, Op::AllocateChunks { count: 1 })
        else {
            return;
        };
        let on = BTreeSet::new();
        self.writes.insert(chunk, Write { session, on });
        for _ in 0..3 {
            let to = self.node();
            self.network.push(Message::Put { session, chunk, to });
        }
    }

    /// Enters a chunk that some nodes have.
    fn flush(&mut self) {
        let ready = self.writes.iter().find(|(_, write)| !write.on.is_empty());
        let Some((chunk, session)) = ready.map(|(chunk, write)| (*chunk, write.session)) else {
            return;
        };
        let write = self.writes.remove(&chunk).expect("found");
        let name = format!("f{}", chunk.0);
        let create = Op::Create {
            parent: InodeNo::ROOT,
            name: Some(Name::new(name.clone()).expect("valid")),
            node: NewNode::File,
            mode: 0o644,
            umask: 0,
            uid: 0,
            gid: 0,
            exclusive: true,
        };
        let Some(OpReply::Created { entry, .. }) = self.change(session, create) else {
            return;
        };
        assert_eq!(entry.attr.kind, FileKind::File);
        let extent = Extent {
            offset: 0,
            len: 100_000,
            chunk,
            chunk_offset: 0,
            replicas: write.on.iter().copied().take(2).collect(),
        };
        let file = FlushFile {
            ino: entry.attr.ino,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 100_000,
            atime: entry.attr.atime,
            mtime: entry.attr.mtime,
            ctime: entry.attr.ctime,
            content: FlushContent::Extents {
                cut: None,
                add: vec![extent],
                chunks: vec![(chunk, 100_000)],
            },
            written: false,
        };
        self.change(session, Op::Flush(vec![file]));
        self.files.push((entry.attr.ino, name));
    }

    fn unlink(&mut self) {
        let Some(session) = self.sessions.last().copied() else {
            return;
        };
        if self.files.len() < 6 {
            return;
        }
        let at = usize::try_from(self.dice.below(self.files.len() as u64)).expect("small");
        let (ino, name) = self.files.swap_remove(at);
        let unlink = Op::Unlink {
            parent: InodeNo::ROOT,
            name: Name::new(name).expect("valid"),
            dir: false,
        };
        if self.change(session, unlink).is_some() {
            self.apply(Body::Reap(vec![ino]));
        }
    }

    fn end_session(&mut self) {
        if let Some(session) = self.sessions.pop() {
            self.apply(Body::EndSession(session));
        }
    }

    fn set_copies(&mut self) {
        let Some(session) = self.sessions.last().copied() else {
            return;
        };
        let copies = 1 + self.dice.below(3);
        self.change(
            session,
            Op::SetXattr {
                ino: InodeNo::ROOT,
                name: Name::new(REPLICAS).expect("valid"),
                value: copies.to_string().into(),
                mode: XattrMode::Any,
                kill_sgid: false,
            },
        );
    }

    fn power(&mut self) {
        let node = self.node();
        let down = self.stores.values().filter(|store| !store.up).count();
        let store = self.stores.get_mut(&node).expect("known");
        if store.up && down == 0 {
            store.up = false;
            store.sweep = Sweep::default();
        } else {
            store.up = true;
        }
    }

    /// Damages or takes a copy of a chunk that has another good one.
    fn damage(&mut self) {
        let node = self.node();
        let listed: Vec<Listed> = self.state.listed_from(ChunkId(0)).collect();
        let good = |chunk: &Listed| {
            let good = chunk
                .replicas
                .iter()
                .filter(|on| self.is_good(chunk.id, **on));
            good.count() == chunk.replicas.len() && chunk.replicas.len() > 1
        };
        // What is damaged between the look at it and the drop of another copy nobody can know of.
        let busy = self.book.busy();
        let looked_at = |chunk: ChunkId| {
            let looks = |job: &Job| match job {
                Job::Trim { chunk: trimmed, .. } => *trimmed == chunk,
                Job::Check { chunks, .. } => chunks.contains(&chunk),
                Job::Copy { .. } => false,
            };
            busy.contains(&chunk) && self.jobs.values().any(|(_, job)| looks(job))
        };
        let hit = listed
            .iter()
            .find(|chunk| good(chunk) && chunk.replicas.contains(&node) && !looked_at(chunk.id));
        let Some(chunk) = hit.map(|chunk| chunk.id) else {
            return;
        };
        let take = self.one_in(2);
        let store = self.stores.get_mut(&node).expect("known");
        if take {
            store.chunks.remove(&chunk);
        } else {
            store.chunks.insert(chunk, false);
        }
        self.faults.insert(chunk, node);
    }

    /// A disk cannot be read for a while, or can again.
    fn hide(&mut self) {
        let node = self.node();
        let store = self.stores.get_mut(&node).expect("known");
        store.unreadable = !store.unreadable;
    }

    fn is_good(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.stores[&node].chunks.get(&chunk) == Some(&true)
    }

    /// Returns whether a node finds its copy good.
    fn finds_good(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.is_good(chunk, node) && !self.stores[&node].unreadable
    }

    fn begin_sweep(&mut self) {
        let node = self.node();
        let store = self.stores.get_mut(&node).expect("known");
        if store.up {
            store.sweep.begin();
            store.sweeps += 1;
            let (sweep, ids) = (store.sweeps, store.chunks.keys().copied().collect());
            self.network.push(Message::Inventory { node, sweep, ids });
        }
    }

    fn scrub(&mut self) {
        let node = self.node();
        let store = &self.stores[&node];
        let bad = |good: bool| store.up && (store.unreadable || !good);
        let bad = store.chunks.iter().filter(|(_, good)| bad(**good));
        let reports = bad.map(|(chunk, _)| Message::Report {
            node,
            chunk: *chunk,
        });
        self.network.extend(reports.collect::<Vec<_>>());
        // As a reader with an old list does, sometimes.
        let ids: Vec<ChunkId> = self.state.listed_from(ChunkId(0)).map(|c| c.id).collect();
        for chunk in ids {
            if !self.stores[&node].chunks.contains_key(&chunk) && self.one_in(3) {
                self.network.push(Message::Report { node, chunk });
            }
        }
    }

    /// The reaper, and who is gone.
    fn reap(&mut self) {
        let dead: Vec<_> = self.state.dead_chunks().collect();
        for (chunk, replicas) in dead {
            for node in replicas {
                if self.book.is_gone(node) {
                    self.apply(Body::ForgetDeadOn(node));
                } else {
                    self.network.push(Message::Delete { node, chunk });
                }
            }
        }
    }

    fn plan(&mut self) {
        let mut view = self.view();
        let gone_after = Duration::from_secs(10);
        let nobody = BTreeSet::new();
        self.book
            .note_nodes(self.now, &mut view, gone_after, &nobody);
        let mut jobs = self.book.checks(self.now, &view);
        let chunks: Vec<Listed> = self.state.listed_from(self.book.cursor()).take(7).collect();
        let end = chunks.len() < 7;
        jobs.extend(self.book.plan(self.now, &view, chunks, end));
        for job in jobs {
            self.next_job += 1;
            let (number, reign) = (self.next_job, self.book.reign().expect("reigns"));
            self.jobs.insert(number, (reign, job.clone()));
            if let (Some(Mutant::ListAtOnce), Job::Copy { .. }) = (self.mutant, &job) {
                self.propose(reign, number, steps(&job, &[]));
            }
            let good = match (&job, self.mutant) {
                (Job::Trim { .. }, Some(Mutant::TrimUnverified)) => Ok(Vec::new()),
                (Job::Check { chunks, .. }, Some(Mutant::BelieveReports)) => Ok(chunks.clone()),
                _ => {
                    self.network.push(Message::Ask { reign, number });
                    continue;
                }
            };
            self.network.push(Message::Answer {
                reign,
                number,
                good,
            });
        }
    }

    fn propose(&mut self, reign: Epoch, number: u64, steps: Vec<Step>) {
        let body = Body::Repair { reign, steps };
        let number = Some((reign, number));
        self.network.push(Message::Commit { number, body });
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(self.network.len() as u64)).expect("small");
        let message = self.network.swap_remove(at);
        let lost = !self.calm && self.one_in(LOST_ONE_IN);
        match message {
            Message::Commit { number, body } if !lost => self.commit(number, body),
            // Its fate is unknown to the leader: the chunk stays busy under this reign.
            Message::Commit { number, .. } => {
                if let Some((reign, number)) = number {
                    self.end(reign, number, Outcome::Unknown);
                }
            }
            Message::Vouch { reign, number, .. } if lost => {
                self.end(reign, number, Outcome::Failed);
            }
            Message::Ask { reign, number } if lost => {
                self.network.push(Message::Answer {
                    reign,
                    number,
                    good: Err(()),
                });
            }
            _ if lost => {}
            Message::Put { session, chunk, to } => self.put(session, chunk, to),
            Message::Ask { reign, number } => {
                let good = self.ask(number);
                self.network.push(Message::Answer {
                    reign,
                    number,
                    good,
                });
            }
            Message::Answer {
                reign,
                number,
                good,
            } => self.answer(reign, number, good),
            Message::Vouch { reign, number, bad } => self.vouch(reign, number, bad),
            Message::Inventory { node, sweep, ids } => self.inventory(node, sweep, &ids),
            Message::Orphans { node, sweep, ids } => {
                let mutant = self.mutant == Some(Mutant::ForgetPuts);
                let store = self.stores.get_mut(&node).expect("known");
                if !store.up || sweep != store.sweeps {
                    return;
                }
                for id in ids {
                    if mutant || store.sweep.may_delete(id) {
                        store.chunks.remove(&id);
                    }
                }
            }
            Message::Report { node, chunk } => self.book.report(node, [chunk]),
            Message::Delete { node, chunk } => {
                let store = self.stores.get_mut(&node).expect("known");
                if store.up {
                    store.chunks.remove(&chunk);
                    let deleted = self.deleted.entry(chunk).or_default();
                    deleted.insert(node);
                    let dead = self.state.dead_chunks().find(|(id, _)| *id == chunk);
                    if dead.is_some_and(|(_, on)| on.iter().all(|node| deleted.contains(node))) {
                        self.apply(Body::ForgetDead(vec![chunk]));
                    }
                }
            }
        }
    }

    fn put(&mut self, session: SessionId, chunk: ChunkId, to: NodeId) {
        let store = self.stores.get_mut(&to).expect("known");
        if !store.up {
            return;
        }
        store.sweep.put(chunk);
        store.chunks.insert(chunk, true);
        if let Some(write) = self.writes.get_mut(&chunk)
            && write.session == session
        {
            write.on.insert(to);
        }
    }

    /// Does a job at the nodes; returns what they found bad.
    fn ask(&mut self, number: u64) -> Result<Vec<ChunkId>, ()> {
        let job = self.jobs[&number].1.clone();
        let up = |world: &Self, node: NodeId| world.stores[&node].up;
        match job {
            Job::Copy {
                chunk, source, to, ..
            } => {
                if !up(self, source) || !up(self, to) || !self.finds_good(chunk, source) {
                    return Err(());
                }
                let store = self.stores.get_mut(&to).expect("known");
                store.sweep.put(chunk);
                store.chunks.insert(chunk, true);
                Ok(Vec::new())
            }
            Job::Trim { chunk, keep, .. } => {
                let all = keep.iter().all(|node| up(self, *node));
                let bad = keep.iter().any(|node| !self.finds_good(chunk, *node));
                all.then(|| if bad { vec![chunk] } else { Vec::new() })
                    .ok_or(())
            }
            Job::Check { node, chunks } => {
                let listed = |chunk: &ChunkId| {
                    let listed = self.state.listed(*chunk);
                    listed.is_some_and(|listed| listed.replicas.contains(&node))
                };
                let bad = |chunk: &ChunkId| listed(chunk) && !self.finds_good(*chunk, node);
                let bad = chunks.into_iter().filter(bad).collect();
                up(self, node).then_some(bad).ok_or(())
            }
        }
    }

    fn answer(&mut self, reign: Epoch, number: u64, good: Result<Vec<ChunkId>, ()>) {
        let job = self.jobs[&number].1.clone();
        match good {
            Err(()) => {
                if let Job::Copy { chunk, source, .. } = job {
                    self.book.report(source, [chunk]);
                }
                self.end(reign, number, Outcome::Failed);
            }
            Ok(bad) => match &job {
                Job::Trim { .. } if !bad.is_empty() => self.end(reign, number, Outcome::Failed),
                Job::Check { .. } if bad.is_empty() => self.end(reign, number, Outcome::Done),
                Job::Check { .. } if !self.asks_nobody_else() => {
                    self.network.push(Message::Vouch { reign, number, bad });
                }
                Job::Copy { .. } | Job::Trim { .. } | Job::Check { .. } => {
                    self.propose(reign, number, steps(&job, &bad));
                }
            },
        }
    }

    fn asks_nobody_else(&self) -> bool {
        matches!(
            self.mutant,
            Some(Mutant::DropUnverified | Mutant::BelieveReports)
        )
    }

    /// D2: proposes to drop the bad copies beside which another one is found good.
    fn vouch(&mut self, reign: Epoch, number: u64, mut bad: Vec<ChunkId>) {
        let job = self.jobs[&number].1.clone();
        let Job::Check { node, .. } = &job else {
            unreachable!("only checks are followed by such a question");
        };
        let good = |on: &&NodeId| *on != node && self.stores[*on].up;
        bad.retain(|chunk| {
            let listed = self.state.listed(*chunk);
            listed.is_some_and(|listed| {
                let mut others = listed.replicas.iter().filter(good);
                others.any(|on| self.finds_good(*chunk, *on))
            })
        });
        if bad.is_empty() {
            self.end(reign, number, Outcome::Failed);
        } else {
            self.propose(reign, number, steps(&job, &bad));
        }
    }

    fn commit(&mut self, number: Option<(Epoch, u64)>, mut body: Body) {
        if let (Some(Mutant::AnyReign), Body::Repair { reign, .. }) = (self.mutant, &mut body) {
            *reign = self.state.reign();
        }
        let reply = self.apply(body);
        if let (Reply::Repaired(made), Some((reign, number))) = (reply, number) {
            let outcome = if made.contains(&false) {
                Outcome::Failed
            } else {
                Outcome::Done
            };
            self.end(reign, number, outcome);
        }
    }

    fn end(&mut self, reign: Epoch, number: u64, outcome: Outcome) {
        if self.book.reign() == Some(reign) {
            let job = self.jobs[&number].1.clone();
            self.book.end(self.now, &job, outcome);
        }
    }

    fn inventory(&mut self, node: NodeId, sweep: u64, ids: &[ChunkId]) {
        let (first, last) = (ChunkId(0), ChunkId(u64::MAX));
        let busy = match self.mutant {
            Some(Mutant::IgnoreBusy) => BTreeSet::new(),
            _ => self.book.busy(),
        };
        let state = match self.mutant {
            Some(Mutant::AnswerFromThePast) => &self.past,
            _ => &self.state,
        };
        let compared = compare(state, &busy, node, first, last, ids);
        let mut orphans = compared.orphans;
        if self.mutant == Some(Mutant::IgnoreSessions) {
            let listed = |id: &ChunkId| self.state.listed(*id).is_some();
            orphans.extend(ids.iter().filter(|id| !listed(id)));
        }
        self.book.report(node, compared.missing);
        self.network.push(Message::Orphans {
            node,
            sweep,
            ids: orphans,
        });
    }

    /// Says what should not be.
    fn check(&mut self) -> Result<(), String> {
        let listed: Vec<Listed> = self.state.listed_from(ChunkId(0)).collect();
        for chunk in listed {
            let on = &chunk.replicas;
            let good = |node: &&NodeId| self.is_good(chunk.id, **node);
            let goods = on.iter().filter(good).count();
            if goods == 0 {
                return Err(format!("{chunk:?} has no good copy"));
            }
            let fault = self.faults.get(&chunk.id).copied();
            for node in on {
                if !self.is_good(chunk.id, *node) && fault != Some(*node) {
                    return Err(format!("{chunk:?}: the copy on node {node} is gone"));
                }
            }
            if goods == on.len() {
                self.faults.remove(&chunk.id);
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for step in 0..STEPS {
            self.step();
            self.check().map_err(|why| format!("step {step}: {why}"))?;
        }
        self.state.check()
    }

    /// Everything is well again: all chunks must get their copies, and orphans must go.
    fn heal(&mut self) -> Result<(), String> {
        self.calm = true;
        for store in self.stores.values_mut() {
            store.up = true;
            store.unreadable = false;
        }
        for node in self.state.draining().clone() {
            self.apply(Body::Drain { node, drain: false });
        }
        while !self.sessions.is_empty() {
            self.end_session();
        }
        self.reign();
        for _ in 0..600 {
            match self.dice.below(5) {
                0 => self.begin_sweep(),
                1 => self.scrub(),
                2 => self.reap(),
                _ => self.plan(),
            }
            while !self.network.is_empty() {
                self.deliver();
            }
            self.now += Duration::from_millis(200);
            self.check().map_err(|why| format!("healing: {why}"))?;
            if self.is_whole().is_ok() {
                return Ok(());
            }
        }
        self.is_whole()
    }

    fn is_whole(&self) -> Result<(), String> {
        let mut listed: BTreeMap<NodeId, BTreeSet<ChunkId>> = BTreeMap::new();
        for chunk in self.state.listed_from(ChunkId(0)) {
            let wanted = match chunk.copies {
                0 => 2,
                copies => usize::from(copies),
            };
            if chunk.replicas.len() != wanted {
                return Err(format!("{chunk:?} should have {wanted} copies"));
            }
            for node in &chunk.replicas {
                if !self.is_good(chunk.id, *node) {
                    return Err(format!("{chunk:?} is not good on node {node}"));
                }
                listed.entry(*node).or_default().insert(chunk.id);
            }
        }
        for (node, store) in &self.stores {
            let there: BTreeSet<ChunkId> = store.chunks.keys().copied().collect();
            let listed = listed.remove(node).unwrap_or_default();
            if there != listed {
                return Err(format!("node {node} has {there:?}, listed are {listed:?}"));
            }
        }
        Ok(())
    }
}

/// Returns what is committed once a job is done.
fn steps(job: &Job, bad: &[ChunkId]) -> Vec<Step> {
    match job {
        Job::Copy {
            chunk,
            source,
            to,
            instead,
        } => vec![Step::Copied {
            chunk: *chunk,
            source: *source,
            to: *to,
            instead: *instead,
        }],
        Job::Trim { chunk, node, .. } => vec![Step::Drop {
            chunk: *chunk,
            node: *node,
        }],
        Job::Check { node, .. } => {
            let drop = |chunk: &ChunkId| Step::Drop {
                chunk: *chunk,
                node: *node,
            };
            bad.iter().map(drop).collect()
        }
    }
}

/// How many worlds a test runs; more for a long run.
fn worlds() -> u64 {
    let number = std::env::var("REPAIR_WORLDS").ok();
    number.and_then(|number| number.parse().ok()).unwrap_or(150)
}

#[test]
fn nothing_is_lost() {
    for seed in 0..worlds() {
        let mut world = World::new(seed, None);
        if let Err(why) = world.run().and_then(|()| world.heal()) {
            panic!("seed {seed}: {why}");
        }
    }
}

/// A rule less, and something is lost.
#[track_caller]
fn check_caught(mutant: Mutant) {
    for seed in 0..3000 {
        if let Err(why) = World::new(seed, Some(mutant)).run() {
            println!("{mutant:?} is caught by seed {seed}: {why}");
            return;
        }
    }
    panic!("{mutant:?} is not caught");
}

#[test]
fn every_rule_is_needed() {
    for mutant in [
        Mutant::ListAtOnce,
        Mutant::TrimUnverified,
        Mutant::DropUnverified,
        Mutant::ForgetPuts,
        Mutant::IgnoreBusy,
        Mutant::IgnoreSessions,
        Mutant::AnswerFromThePast,
        Mutant::AnyReign,
        Mutant::BelieveReports,
    ] {
        check_caught(mutant);
    }
}
