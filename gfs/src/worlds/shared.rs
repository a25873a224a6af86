//! What the nodes of a world share: time, the network, the agenda of faults, and what was seen.

use super::made::Own;
use super::model::{FileOp, Of, Who};
use super::program::FILES;
use crate::client::Client;
use crate::data::simulated::SimulatedStore;
use crate::error::Errno;
use crate::net::{NetError, Router, ServiceId};
use crate::server::log::{Replicated, SimulatedDisk};
use crate::server::state::MetaState;
use bytes::Bytes;
use consistency::{NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tests::Dice;
use tests::linear::Operation;
use tests::linear::models::{NamesOp, NamesRet};
use tokio::sync::oneshot;

/// What the programs of all nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// One makes the files.
    SetUp,
    /// All work, whatever happens.
    Work,
    /// Nothing happens any more; each looks at everything once more.
    LastLook,
}

/// What becomes of messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) lost_per_mille: u32,
    pub(super) late_per_mille: u32,
    /// How late at most, in milliseconds.
    pub(super) late_ms: u32,
}

/// A message on its way.
#[derive(Debug)]
pub(super) enum Message {
    Request {
        call: u64,
        service: ServiceId,
        body: Bytes,
    },
    Reply {
        call: u64,
        reply: Result<Bytes, NetError>,
    },
}

/// A message with its way.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// The life of the receiver that it was sent to: a connection ends with it.
    pub(super) life: u32,
    pub(super) message: Message,
}

/// Who will die, and where.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doomed {
    /// This one, wherever it is.
    Any(NodeId),
    /// Whoever passes this place.
    At(&'static str),
}

/// Death at a place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doom {
    pub(super) who: Doomed,
    /// How often that is passed before.
    pub(super) left: u32,
}

/// A node as the others see it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) life: u32,
    pub(super) up: bool,
    pub(super) router: Arc<Router>,
    pub(super) disk: Arc<SimulatedDisk>,
    pub(super) chunks: Arc<SimulatedStore>,
    /// When it was in trouble last: down, stopped, out of reach of some, or with a disk of chunks that fails.
    pub(super) troubled: u64,
    /// A chunk of this node has found no room anywhere.
    pub(super) refused: bool,
    pub(super) log: Option<Replicated<MetaState>>,
    pub(super) client: Option<Weak<Client>>,
    pub(super) session: Option<SessionId>,
    /// When it ran last.
    pub(super) ran: u64,
    /// It has looked at everything.
    pub(super) done: bool,
}

/// See the module page.
pub(super) struct Shared(Mutex<State>);

/// A call that was not answered.
struct Call {
    from: NodeId,
    to: NodeId,
    answer: oneshot::Sender<Result<Bytes, NetError>>,
}

/// By then a transport finds out that a connection is dead, in milliseconds.
const IDLE_MS: u64 = 1_500;

pub(super) struct State {
    /// Nanoseconds since the world began.
    pub(super) now: u64,
    pub(super) dice: Dice,
    pub(super) phase: Phase,
    pub(super) weather: Weather,
    pub(super) hosts: BTreeMap<NodeId, Host>,
    /// Ways that are cut.
    pub(super) cuts: BTreeSet<(NodeId, NodeId)>,
    pub(super) dooms: Vec<Doom>,
    pub(super) files: Vec<Operation<Of, u64>>,
    pub(super) names: Vec<Operation<NamesOp, NamesRet>>,
    pub(super) own: Own,
    /// Where nodes died, and how often a place was passed.
    pub(super) points: BTreeMap<&'static str, u32>,
    pub(super) deaths: BTreeSet<&'static str>,
    /// The first broken promise.
    pub(super) broken: Option<String>,
    packets: BTreeMap<(u64, u64), Packet>,
    calls: BTreeMap<u64, Call>,
    /// Counts whatever happens, in its order.
    events: u64,
    trace: u64,
    told: bool,
}

/// Puts a number into a trace.
fn stir(trace: u64, number: u64) -> u64 {
    (trace.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Shared {
    /// `told`: what happens is printed.
    pub(super) fn new(dice: Dice, told: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            now: 0,
            dice,
            phase: Phase::SetUp,
            weather: Weather::default(),
            hosts: BTreeMap::new(),
            cuts: BTreeSet::new(),
            dooms: Vec::new(),
            files: Vec::new(),
            names: Vec::new(),
            own: Own::default(),
            points: BTreeMap::new(),
            deaths: BTreeSet::new(),
            broken: None,
            packets: BTreeMap::new(),
            calls: BTreeMap::new(),
            events: 0,
            trace: 0,
            told,
        })))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Returns whether a node still lives this life.
    pub(super) fn lives(&self, who: Who) -> bool {
        self.state().lives(who)
    }

    /// Notes that a node passes a place where it may die.
    pub(super) fn reached(&self, node: NodeId, point: &'static str) {
        let mut state = self.state();
        *state.points.entry(point).or_default() += 1;
        if !state.hosts[&node].up {
            return;
        }
        let mut dies = false;
        for doom in &mut state.dooms {
            let here = match doom.who {
                Doomed::Any(doomed) => doomed == node,
                Doomed::At(place) => place == point,
            };
            if here {
                dies |= doom.left == 0;
                doom.left = doom.left.wrapping_sub(1);
            }
        }
        if dies {
            // One that was met is as large as can be.
            state.dooms.retain(|doom| doom.left != u32::MAX);
            state.deaths.insert(point);
            state.tell(node, || format!("dies at \"{point}\""));
            state.kill(node);
        }
    }

    /// Sends a request; the answer comes through the receiver, if at all.
    pub(super) fn ask(
        &self,
        from: Who,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
    ) -> (u64, oneshot::Receiver<Result<Bytes, NetError>>) {
        let mut state = self.state();
        let call = state.next_event();
        let (answer, answered) = oneshot::channel();
        if state.lives(from) {
            let caller = NodeId(from.node);
            let waiting = Call {
                from: caller,
                to,
                answer,
            };
            state.calls.insert(call, waiting);
            let message = Message::Request {
                call,
                service,
                body,
            };
            state.send(NodeId(from.node), to, message);
        }
        (call, answered)
    }

    /// Nobody waits for this answer any more.
    pub(super) fn give_up(&self, call: u64) {
        let waiting = self.state().calls.remove(&call);
        drop(waiting);
    }

    /// Sends the answer to a request.
    pub(super) fn answer(&self, from: Who, to: NodeId, call: u64, reply: Option<Bytes>) {
        let mut state = self.state();
        if state.lives(from) {
            let node = NodeId(from.node);
            let why = "the connection was closed".into();
            let reply = reply.ok_or(NetError::Unreachable { to: node, why });
            state.send(node, to, Message::Reply { call, reply });
        }
    }

    /// Hands an answer to who waits for it.
    pub(super) fn answered(&self, call: u64, reply: Result<Bytes, NetError>) {
        let waiting = self.state().calls.remove(&call);
        if let Some(waiting) = waiting {
            // It may just have given up.
            let _gone = waiting.answer.send(reply);
        }
    }

    /// Notes the beginning of an operation; returns its place.
    pub(super) fn call_file(&self, of: Of) -> usize {
        let mut state = self.state();
        state.tell(NodeId(of.who.node), || format!("{of:?}"));
        let called = state.next_event();
        state.push_file(of, called);
        state.files.len() - 1
    }

    /// Notes the outcome of an operation; of one that is not known there is none.
    pub(super) fn return_file(&self, who: Who, place: usize, ret: u64) {
        let mut state = self.state();
        if state.lives(who) {
            let now = state.next_event();
            let operation = &mut state.files[place];
            operation.returned = Some(now);
            operation.ret = Some(ret);
            let op = operation.op;
            state.note(&[ret]);
            state.tell(NodeId(who.node), || format!("{op:?} -> {ret}"));
        }
    }

    /// As [`Self::call_file`].
    pub(super) fn call_name(&self, who: Who, op: NamesOp) -> usize {
        let mut state = self.state();
        let called = state.next_event();
        state.tell(NodeId(who.node), || format!("{op:?}"));
        state.names.push(Operation {
            actor: format!("node{}", who.node),
            called,
            returned: None,
            op,
            ret: None,
        });
        state.names.len() - 1
    }

    /// As [`Self::return_file`].
    pub(super) fn return_name(&self, who: Who, place: usize, ret: NamesRet) {
        let mut state = self.state();
        if state.lives(who) {
            let now = state.next_event();
            state.note(&[now]);
            let operation = &mut state.names[place];
            operation.returned = Some(now);
            let op = operation.op;
            operation.ret = Some(ret.clone());
            state.tell(NodeId(who.node), || format!("{op:?} -> {ret:?}"));
        }
    }

    pub(super) fn fail(&self, why: String) {
        self.state().fail(why);
    }

    /// A chunk was not stored anywhere: what it was of may be lost. D7: that no disk has room is said only if no other
    /// node could have taken it, of those that were `known` to be up when that began.
    pub(super) fn unwritten(&self, who: Who, begun: u64, known: &[NodeId], errno: Errno) {
        let mut state = self.state();
        if !state.lives(who) {
            return;
        }
        let node = NodeId(who.node);
        state.tell(node, || format!("a chunk is not stored: {errno}"));
        state.lose(who);
        if errno == Errno(libc::ENOSPC) {
            let able = |node: &&NodeId| state.hosts[*node].troubled < begun;
            if let Some(other) = known.iter().find(able) {
                let why = format!("node {node} finds no room, node {other} has some");
                state.fail(why);
            }
            state.hosts.get_mut(&node).expect("a node").refused = true;
        }
    }

    /// Notes that a node has looked at everything.
    pub(super) fn finished(&self, node: NodeId) {
        let mut state = self.state();
        let host = state.hosts.get_mut(&node).expect("a node of this world");
        host.done = true;
    }
}

impl State {
    pub(super) fn lives(&self, who: Who) -> bool {
        let host = &self.hosts[&NodeId(who.node)];
        host.up && host.life == who.life
    }

    /// Returns the hash of all that has happened.
    pub(super) const fn trace(&self) -> u64 {
        self.trace
    }

    /// Returns the next number; later things have larger ones. They pass for nanoseconds in a history.
    pub(super) fn next_event(&mut self) -> u64 {
        self.events += 1_000;
        self.events
    }

    pub(super) fn note(&mut self, numbers: &[u64]) {
        let numbers = numbers.iter().chain([&self.now]);
        self.trace = numbers.fold(self.trace, |trace, number| stir(trace, *number));
    }

    pub(super) fn tell(&self, node: NodeId, what: impl FnOnce() -> String) {
        if self.told {
            let ms = self.now / 1_000_000;
            println!("{ms:>6} ms  node {node}: {}", what());
        }
    }

    pub(super) fn fail(&mut self, why: String) {
        self.broken.get_or_insert(why);
    }

    fn push_file(&mut self, of: Of, called: u64) {
        self.files.push(Operation {
            actor: format!("node{}", of.who.node),
            called,
            returned: None,
            op: of,
            ret: None,
        });
    }

    /// A node loses what it alone knows, at some time since it ran last: while it is stopped others find out first.
    pub(super) fn lose(&mut self, who: Who) {
        self.own.end(who.node);
        let since = self.hosts[&NodeId(who.node)].ran;
        for file in 0..FILES {
            let op = FileOp::Lose;
            self.push_file(Of { file, who, op }, since);
        }
    }

    /// Ends the life of a node at this moment: what it does from now on reaches nobody.
    pub(super) fn kill(&mut self, node: NodeId) {
        let host = self.hosts.get_mut(&node).expect("a node of this world");
        host.up = false;
        host.disk = Arc::new(host.disk.crash());
        host.chunks.crash();
        host.refused = false;
        let life = host.life;
        let who = Who { node: node.0, life };
        self.note(&[u64::from(node.0)]);
        self.tell(node, || "dies".into());
        self.lose(who);
        let open = self.calls.iter().filter(|(_, waiting)| waiting.to == node);
        let open: Vec<u64> = open.map(|(call, _)| *call).collect();
        for call in open {
            let after = self.dice.below(IDLE_MS);
            self.hang_up(call, after);
        }
    }

    /// Tells a caller after so many milliseconds that its connection is dead, unless it was answered by then.
    fn hang_up(&mut self, call: u64, after: u64) {
        let Some(waiting) = self.calls.get(&call) else {
            return;
        };
        let (caller, to) = (waiting.from, waiting.to);
        let why = "the connection is dead".into();
        let reply = Err(NetError::Unreachable { to, why });
        let packet = Packet {
            from: caller,
            to: caller,
            life: self.hosts[&caller].life,
            message: Message::Reply { call, reply },
        };
        self.put(self.now + after * 1_000_000, packet);
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let weather = self.weather;
        if self.dice.below(1_000) < weather.lost_per_mille || self.cuts.contains(&(from, to)) {
            let (Message::Request { call, .. } | Message::Reply { call, .. }) = message;
            return self.hang_up(call, IDLE_MS);
        }
        let late = self.dice.below(1_000) < weather.late_per_mille;
        let most = if late {
            u64::from(weather.late_ms.max(1)) * 1_000_000
        } else {
            2_000_000
        };
        let at = self.now + 100_000 + self.dice.below(most);
        let life = self.hosts[&to].life;
        let packet = Packet {
            from,
            to,
            life,
            message,
        };
        self.put(at, packet);
    }

    /// Has a message arrive then.
    pub(super) fn put(&mut self, at: u64, packet: Packet) {
        let event = self.next_event();
        self.packets.insert((at, event), packet);
    }

    /// Returns the next message that is due, unless its way is cut or its connection is gone.
    pub(super) fn due(&mut self) -> Option<Packet> {
        loop {
            let entry = self.packets.first_entry()?;
            if entry.key().0 > self.now {
                return None;
            }
            let packet = entry.remove();
            let host = &self.hosts[&packet.to];
            let lost = self.cuts.contains(&(packet.from, packet.to));
            if lost {
                let (Message::Request { call, .. } | Message::Reply { call, .. }) = packet.message;
                self.hang_up(call, IDLE_MS);
                continue;
            }
            if host.up && host.life == packet.life {
                let (kind, body) = match &packet.message {
                    Message::Request { service, body, .. } => (*service as u64, Some(body)),
                    Message::Reply { reply, .. } => (0, reply.as_ref().ok()),
                };
                let body = body.map_or(0, |body| u64::from(crc32fast::hash(body)));
                let (from, to) = (packet.from.0.into(), packet.to.0.into());
                self.note(&[from, to, kind, body]);
                return Some(packet);
            }
            // Its machine may say that nobody is there, or not.
            if let Message::Request { call, .. } = packet.message {
                let after = self.dice.below(2_u64) * IDLE_MS;
                self.hang_up(call, after);
            }
        }
    }
}
