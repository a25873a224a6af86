//! A node's side of the driver: its caches, its requests, and the programs that use them.

use super::model::{DIRS, FILES, Fact, Message, NAMES, Op, Part, Register, Request, name};
use super::oracle::Moment;
use super::session::Reclaim;
use super::{Event, RETRY, TERM, World};
use crate::lease::mutant::Mutation;
use crate::lease::{Client, Stamp};
use crate::wire::lease::{Break, Mode, Scope};
use crate::{Epoch, InodeNo, Instant, NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Programs wait while a node has so many requests under way.
const REQUESTS_MAX: usize = 6;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) client: Client,
    /// Counts the node's starts; timers of an earlier one are void.
    pub(super) life: u32,
    pub(super) paused_until: u64,
    /// Its renewals get lost until then, nothing else does.
    pub(super) muted_until: u64,
    pub(super) cache: BTreeMap<InodeNo, BTreeMap<Part, u64>>,
    pub(super) dirty: BTreeMap<InodeNo, Dirty>,
    /// Inodes that the kernel knows.
    pub(super) known: BTreeSet<InodeNo>,
    pub(super) requests: BTreeMap<u64, Pending>,
    pub(super) last_seq: u64,
    /// Breaks being carried out, with the page reads that they wait for.
    pub(super) breaks: BTreeMap<InodeNo, (Break, Vec<u64>)>,
    pub(super) attempt: u64,
    pub(super) opening: Option<Instant>,
    pub(super) reclaim: Option<Reclaim>,
    /// The reign whose leader knows what this node holds.
    pub(super) reign: Epoch,
}

/// Local writes that the leader does not have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    pub(super) flushed: u64,
    pub(super) value: u64,
}

#[derive(Debug)]
pub(super) struct Pending {
    stamp: Stamp,
    pub(super) op: Op,
    began: Moment,
    purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Read(Register),
    Write,
    Change,
    Flush,
}

#[derive(Clone, Debug)]
pub(super) enum Timer {
    Renew,
    RetryOpen(u64),
    RetryOp(u64),
    RetryReclaim(Epoch, usize),
    Break(Break),
}

impl Node {
    pub(super) fn new(life: u32, attempt: u64, mutation: Mutation) -> Self {
        let mut client = Client::new();
        client.mutation = mutation;
        Self {
            client,
            life,
            paused_until: 0,
            muted_until: 0,
            cache: BTreeMap::new(),
            dirty: BTreeMap::new(),
            known: BTreeSet::new(),
            requests: BTreeMap::new(),
            last_seq: 0,
            breaks: BTreeMap::new(),
            attempt,
            opening: None,
            reclaim: None,
            reign: Epoch(0),
        }
    }

    pub(super) fn reigns_with(&self, reign: Epoch) -> bool {
        self.reign == reign
    }

    pub(super) fn idle(&self) -> bool {
        self.requests.is_empty() && self.breaks.is_empty() && self.opening.is_none()
    }

    fn cached(&self, now: Instant, (ino, part): Register) -> Option<u64> {
        let mode = self.client.mode(now, ino)?;
        // While it is broken the master still has the only true content.
        let master = part == Part::Data && self.client.held(ino) == Some(Mode::Exclusive);
        if mode < Mode::Shared && !master {
            return None;
        }
        self.cache.get(&ino)?.get(&part).copied()
    }

    fn store(&mut self, ino: InodeNo, values: &[(Part, u64)]) {
        self.cache
            .entry(ino)
            .or_default()
            .extend(values.iter().copied());
    }

    fn drop_parts(&mut self, ino: InodeNo, scope: &Scope) {
        if let Some(cache) = self.cache.get_mut(&ino) {
            for part in super::model::parts(scope) {
                cache.remove(&part);
            }
        }
    }
}

/// Programs.
impl World {
    /// Some program on a node does something.
    pub(super) fn program(&mut self, id: NodeId) {
        let file = FILES[self.rng.index(2)];
        let dir = DIRS[self.rng.index(2)];
        let n = u8::try_from(self.rng.below(u64::from(NAMES))).expect("few names");
        match self.rng.below(100) {
            0..25 => self.read(id, (file, Part::Data)),
            25..35 => self.read(id, (file, Part::Attr)),
            35..55 => self.read(id, (dir, Part::Name(n))),
            55..60 => self.list(id, dir),
            60..72 => self.write(id, file),
            72..77 => self.change(id, vec![(file, Scope::Attr)]),
            77..87 => self.change(id, vec![(dir, Scope::Names(vec![name(n)]))]),
            87..91 => {
                let two = Scope::Names(vec![name(n), name((n + 1) % NAMES)]);
                self.change(id, vec![(dir, two), (file, Scope::Attr)]);
            }
            91..93 => self.change(id, vec![(dir, Scope::All)]),
            93..96 => self.sync(id, file),
            _ => self.forget(id),
        }
    }

    pub(super) fn read(&mut self, id: NodeId, register: Register) {
        let now = self.clock(id);
        let began = self.oracle.moment();
        let node = &self.nodes[&id];
        if let Some(value) = node.cached(now, register) {
            self.saw(id, register, value, began, "its cache");
            return;
        }
        let op = match register.1 {
            Part::Data => Op::Load(register.0, Mode::Shared),
            Part::Attr | Part::Name(_) => Op::Look(register),
        };
        self.call(id, op, Purpose::Read(register));
    }

    /// A read ends. What it saw stays seen, unless it is the node's own and not flushed yet.
    fn saw(&mut self, id: NodeId, register: Register, value: u64, began: Moment, from: &str) {
        let who = format!("{id:?}, from {from},");
        self.oracle.saw(&who, register, value, began);
        let own = register.1 == Part::Data && self.nodes[&id].dirty.contains_key(&register.0);
        if !own {
            self.oracle.promise(register, value);
        }
    }

    fn list(&mut self, id: NodeId, dir: InodeNo) {
        self.call(id, Op::List(dir), Purpose::Read((dir, Part::Attr)));
    }

    fn write(&mut self, id: NodeId, file: InodeNo) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.client.mode(now, file) != Some(Mode::Exclusive) {
            self.call(id, Op::Load(file, Mode::Exclusive), Purpose::Write);
            return;
        }
        let value = self.oracle.next_write();
        let before = node
            .cache
            .get(&file)
            .and_then(|c| c.get(&Part::Data))
            .copied();
        let flushed = before.unwrap_or(0);
        let dirty = node.dirty.entry(file).or_insert(Dirty { flushed, value });
        dirty.value = value;
        node.store(file, &[(Part::Data, value)]);
        self.oracle.promise((file, Part::Data), value);
    }

    /// Changes something; now and then programs everywhere look at it meanwhile.
    pub(super) fn change(&mut self, id: NodeId, scopes: Vec<(InodeNo, Scope)>) {
        if self.rng.chance(30) {
            let (ino, scope) = &scopes[0];
            let register = (*ino, super::model::parts(scope)[0]);
            for _ in 0..6 {
                let (at, who) = (self.now + self.rng.below(12_000), self.any_node());
                self.schedule(at, Event::Read(who, register));
            }
        }
        self.call(id, Op::Change(scopes), Purpose::Change);
    }

    fn sync(&mut self, id: NodeId, file: InodeNo) {
        let Some(dirty) = self.nodes[&id].dirty.get(&file).copied() else {
            return;
        };
        // One flush of a file at a time: two could reach the log in the wrong order.
        let flushing = |pending: &Pending| matches!(pending.op, Op::Flush(ino, _) if ino == file);
        if !self.nodes[&id].requests.values().any(flushing) {
            self.call(id, Op::Flush(file, dirty.value), Purpose::Flush);
        }
    }

    /// The kernel drops an inode.
    fn forget(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let known: Vec<InodeNo> = node
            .known
            .iter()
            .filter(|ino| !node.dirty.contains_key(ino))
            .copied()
            .collect();
        if !known.is_empty() {
            let ino = known[self.rng.index(known.len())];
            self.give_back(id, ino);
        }
    }

    fn give_back(&mut self, id: NodeId, ino: InodeNo) {
        let node = self.nodes.get_mut(&id).expect("a node");
        node.known.remove(&ino);
        node.cache.remove(&ino);
        node.breaks.remove(&ino);
        if let (Some(lease), Some(session)) = (node.client.forget(ino), node.client.session()) {
            let release = Request::Release {
                session,
                ino,
                lease,
            };
            self.send_leader(id, release);
        }
    }
}

/// Requests.
impl World {
    fn call(&mut self, id: NodeId, op: Op, purpose: Purpose) {
        let began = self.oracle.moment();
        let node = self.nodes.get_mut(&id).expect("a node");
        let full = node.requests.len() >= REQUESTS_MAX && purpose != Purpose::Flush;
        if full || node.client.session().is_none() {
            return;
        }
        node.last_seq += 1;
        let seq = node.last_seq;
        let changed = op.changed();
        let stamp = if changed.is_empty() {
            node.client.begin_request()
        } else {
            node.client.begin_change(changed)
        };
        let pending = Pending {
            stamp,
            op,
            began,
            purpose,
        };
        node.requests.insert(seq, pending);
        self.transmit(id, seq);
    }

    fn transmit(&mut self, id: NodeId, seq: u64) {
        let node = &self.nodes[&id];
        let Some(session) = node.client.session() else {
            return;
        };
        let done_below = node.requests.keys().next().copied().unwrap_or(seq);
        let op = node.requests[&seq].op.clone();
        let request = Request::Op {
            session,
            seq,
            done_below,
            op,
        };
        self.send_leader(id, request);
        self.set_timer(id, RETRY, Timer::RetryOp(seq));
    }

    /// Reads are given up now and then; a change is not, as long as it may still happen.
    fn retry(&mut self, id: NodeId, seq: u64) {
        let give_up = self.rng.chance(20);
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(pending) = node.requests.get(&seq) else {
            return;
        };
        if give_up && !pending.op.writes() {
            node.client.end_request(pending.stamp);
            node.requests.remove(&seq);
        } else {
            self.transmit(id, seq);
        }
    }

    fn reply(&mut self, id: NodeId, seq: u64, facts: Option<Vec<Fact>>) {
        let now = self.clock(id);
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(pending) = node.requests.remove(&seq) else {
            return;
        };
        let refused = facts.is_none();
        let facts = facts.unwrap_or_default();
        let mut cached = BTreeSet::new();
        for fact in &facts {
            let Some(grant) = fact.grant else { continue };
            let master = node.client.held(fact.ino) == Some(Mode::Exclusive);
            if node.client.install(now, pending.stamp, fact.ino, grant) {
                let mut values = fact.values.clone();
                values.retain(|(part, _)| !(master && *part == Part::Data));
                node.store(fact.ino, &values);
                cached.insert(fact.ino);
            }
            if node.client.held(fact.ino).is_some() {
                node.known.insert(fact.ino);
            }
        }
        // L9: what an own change touched and may not be cached must go before it is served again.
        if let Op::Change(scopes) = &pending.op {
            for (ino, scope) in scopes.iter().filter(|(ino, _)| !cached.contains(ino)) {
                node.drop_parts(*ino, scope);
            }
        }
        node.client.end_request(pending.stamp);

        match pending.purpose {
            Purpose::Read(register) => {
                let fact = facts.iter().find(|fact| fact.ino == register.0);
                let value = fact.and_then(|fact| fact.values.iter().find(|v| v.0 == register.1));
                let master = self.nodes[&id].client.held(register.0) == Some(Mode::Exclusive);
                // What the leader says of a file that this node writes is old.
                if let Some(&(_, value)) = value
                    && !(master && register.1 == Part::Data)
                {
                    self.saw(id, register, value, pending.began, "a reply");
                }
            }
            Purpose::Write => {
                let Op::Load(file, _) = pending.op else {
                    unreachable!("writes load first")
                };
                if self.nodes[&id].client.mode(now, file) == Some(Mode::Exclusive) {
                    self.write(id, file);
                }
            }
            Purpose::Change => {
                for fact in &facts {
                    for &(part, value) in &fact.values {
                        self.oracle.promise((fact.ino, part), value);
                    }
                }
            }
            Purpose::Flush => {
                let Op::Flush(file, value) = pending.op else {
                    unreachable!("flushes flush")
                };
                self.flushed(id, file, value, refused);
            }
        }
    }

    fn flushed(&mut self, id: NodeId, file: InodeNo, value: u64, refused: bool) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some(dirty) = node.dirty.get_mut(&file) else {
            return;
        };
        if refused {
            self.oracle.fail(format!("{id:?} could not flush {file:?}"));
            return;
        }
        dirty.flushed = value;
        if dirty.value == value {
            node.dirty.remove(&file);
        }
    }
}

/// Messages and timers.
impl World {
    pub(super) fn message(&mut self, id: NodeId, message: Message) {
        self.check_lapse(id);
        let current = self.nodes[&id].client.session();
        let ours = |session: SessionId| current == Some(session);
        match message {
            Message::Opened {
                attempt,
                session,
                fresh,
            } => {
                let node = self.nodes.get_mut(&id).expect("a node");
                if attempt == node.attempt
                    && let Some(sent_at) = node.opening.take()
                {
                    let term = if fresh { TERM } else { crate::Duration(0) };
                    let from = if fresh { sent_at } else { Instant(0) };
                    node.client.session_opened(from, session, term);
                    self.renew(id);
                }
            }
            Message::Renewed {
                session,
                sent_at,
                reign,
                reclaim,
            } if ours(session) => self.renewed(id, sent_at, reign, reclaim),
            Message::Reclaimed {
                session,
                reign,
                part,
                names,
            } if ours(session) => self.part_told(id, reign, part, &names),
            Message::Reply {
                session,
                seq,
                facts,
            } if ours(session) => self.reply(id, seq, facts),
            Message::Break { session, request } if ours(session) => self.take_break(id, request),
            Message::Ended { session } => {
                // Also the answer to an attempt whose session has ended meanwhile.
                if ours(session) || (current.is_none() && self.nodes[&id].opening.is_some()) {
                    self.lose_all(id);
                    self.open_session(id);
                }
            }
            Message::Renewed { .. }
            | Message::Reclaimed { .. }
            | Message::Reply { .. }
            | Message::Break { .. } => {}
        }
    }

    pub(super) fn timer(&mut self, id: NodeId, timer: Timer) {
        self.check_lapse(id);
        match timer {
            Timer::Renew => {
                self.renew(id);
                self.set_timer(id, TERM.0 / 3, Timer::Renew);
            }
            Timer::RetryOpen(attempt) => {
                let node = &self.nodes[&id];
                if node.attempt == attempt && node.opening.is_some() {
                    self.send_leader(id, Request::Open { attempt });
                    self.set_timer(id, RETRY, Timer::RetryOpen(attempt));
                }
            }
            Timer::RetryOp(seq) => self.retry(id, seq),
            Timer::RetryReclaim(reign, part) => {
                let reclaim = self.nodes[&id].reclaim.as_ref();
                if reclaim.is_some_and(|r| (r.reign, r.part) == (reign, part)) {
                    self.tell_part(id);
                }
            }
            Timer::Break(request) => self.carry_out(id, request),
        }
    }

    fn take_break(&mut self, id: NodeId, request: Break) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let running = node.breaks.get(&request.ino);
        if running.is_some_and(|(other, _)| other.lease == request.lease) {
            return;
        }
        if !node.client.handle_break(&request) {
            self.acknowledge(id, &request, Mode::Known);
            return;
        }
        let reads = |pending: &Pending| matches!(pending.op, Op::Load(ino, Mode::Shared) if ino == request.ino);
        let pages = node.requests.iter().filter(|(_, pending)| reads(pending));
        let pages = pages.map(|(&seq, _)| seq).collect();
        node.breaks.insert(request.ino, (request.clone(), pages));
        let after = 1 + self.rng.below(3_000);
        self.set_timer(id, after, Timer::Break(request));
    }

    /// Ends a break when nothing is dirty and no page is locked by a read that was there before (F1), else looks
    /// again later.
    fn carry_out(&mut self, id: NodeId, request: Break) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let Some((running, pages)) = node.breaks.get(&request.ino) else {
            return;
        };
        if running.lease != request.lease {
            return;
        }
        let dirty = node.dirty.contains_key(&request.ino);
        if dirty || pages.iter().any(|seq| node.requests.contains_key(seq)) {
            if dirty {
                self.sync(id, request.ino);
            }
            self.set_timer(id, 500, Timer::Break(request));
            return;
        }
        node.breaks.remove(&request.ino);
        node.drop_parts(request.ino, &request.scope);
        let kept = if self.rng.chance(25) {
            Mode::Known
        } else {
            request.keep
        };
        self.acknowledge(id, &request, kept);
        let node = self.nodes.get_mut(&id).expect("a node");
        if node.client.held(request.ino) < Some(Mode::Shared) {
            node.cache.remove(&request.ino);
        }
        if !node.known.contains(&request.ino) {
            self.give_back(id, request.ino);
        }
    }

    fn acknowledge(&mut self, id: NodeId, request: &Break, kept: Mode) {
        let node = self.nodes.get_mut(&id).expect("a node");
        let ack = node.client.finish_break(request, kept);
        let session = node.client.session().expect("a break has a session");
        self.send_leader(id, Request::Ack { session, ack });
    }
}
