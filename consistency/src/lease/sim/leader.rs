//! The leader's side of the driver, and the replicated state behind it.

use super::model::{Fact, Message, Op, Part, Register, Request};
use super::voter::{Inherited, VOTERS};
use super::{Event, FAULTS_UNTIL, TERM, World};
use crate::lease::server::claims_are_compatible;
use crate::lease::{Action, BeginError, Config, Need, ReclaimError, Server};
use crate::wire::lease::Mode;
use crate::{Duration, Epoch, InodeNo, LeaseId, NodeId, OpId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Longer than a healthy holder takes, shorter than the term.
const BREAK_TIMEOUT: Duration = Duration(60_000);
const RESEND: u64 = 10_000;
/// So few that much happens before the last one.
const SWEEP_LEN: usize = 1;

/// What survives a change of leader.
#[derive(Debug, Default)]
pub(super) struct State {
    registers: BTreeMap<Register, u64>,
    sessions: BTreeMap<SessionId, NodeId>,
    last_session: u64,
    /// The last attempt of each node that was granted, and its session.
    opened: BTreeMap<NodeId, (u64, SessionId)>,
    /// Operations that have been done, per session.
    done: BTreeSet<(SessionId, u64)>,
    done_below: BTreeMap<SessionId, u64>,
}

impl State {
    fn value(&self, register: Register) -> u64 {
        self.registers.get(&register).copied().unwrap_or(0)
    }
}

#[derive(Debug)]
pub(super) struct Leader {
    pub(super) server: Server,
    pub(super) reign: Epoch,
    /// The node that it runs on.
    pub(super) host: NodeId,
    /// The session of the last leader's node, if its notes were there.
    inherited: Option<SessionId>,
    /// Replies to the host that wait until the voters are told (L10).
    pub(super) withheld: Vec<(u64, Message)>,
    /// The number of the last call to each voter, while it is under way.
    pub(super) telling: BTreeMap<NodeId, u64>,
    pub(super) tells: u64,
    pub(super) jobs: BTreeMap<OpId, Job>,
    last_op: u64,
    next_timeout: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Job {
    node: NodeId,
    session: SessionId,
    seq: u64,
    op: Op,
    bypass: bool,
    /// It is on its way into the log.
    proposed: bool,
    /// What the reply says, once read or done; `None` inside: refused.
    outcome: Option<Option<Vec<Told>>>,
}

/// What a reply says of an inode.
type Told = (InodeNo, Vec<(Part, u64)>);

/// What goes through the log.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Open(NodeId, u64),
    End(SessionId),
    Do(OpId),
}

impl World {
    pub(super) fn new_leader(&mut self, reign: Epoch, host: NodeId, noted: Option<Inherited>) {
        let config = Config {
            term: TERM,
            break_timeout: BREAK_TIMEOUT,
            sweep_len: SWEEP_LEN,
        };
        let now = self.clock(NodeId(0));
        let previous = self.state.sessions.keys().copied();
        let mut server = Server::new(config, reign, now, previous);
        server.mutation = self.mutation;
        if let Some((session, held)) = &noted {
            server.inherit(*session, held);
        }
        server.tell_voters(host, &VOTERS);
        let own = self.state.sessions.iter().find(|(_, node)| **node == host);
        if let Some((&session, _)) = own {
            server.own_session(session);
        }
        self.leader = Some(Leader {
            server,
            reign,
            host,
            inherited: noted.map(|(session, _)| session),
            withheld: Vec::new(),
            telling: BTreeMap::new(),
            tells: 0,
            jobs: BTreeMap::new(),
            last_op: 0,
            next_timeout: None,
        });
        self.drive_leader();
    }

    /// The leader dies; of what was on its way into the log a part is committed, the rest never will be.
    pub(super) fn change_leader(&mut self) {
        let leader = self.leader.as_ref().expect("there is one");
        let (next, old) = (Epoch(leader.reign.0 + 1), leader.host);
        // Its node is silent from then on, or restarts, or nothing has happened to it.
        match self.rng.below(4) {
            0..2 => {
                let until = (self.now + self.rng.below(2 * TERM.0)).min(FAULTS_UNTIL);
                self.nodes.get_mut(&old).expect("a node").paused_until = until;
            }
            2 => self.restart(old),
            _ => {}
        }
        let host = self.any_voter();
        let events = std::mem::take(&mut self.events);
        let mut commands = Vec::new();
        for (key, event) in events {
            if let Event::Commit(_, command) = event {
                commands.push(command);
            } else {
                self.events.insert(key, event);
            }
        }
        for command in commands {
            if self.rng.chance(50) {
                self.apply(&command);
            }
        }
        let noted = self.close(old, host, next);
        self.new_leader(next, host, noted);
    }

    pub(super) fn request(&mut self, from: NodeId, request: Request) {
        let now = self.clock(NodeId(0));
        let leader = self.leader.as_mut().expect("there is one");
        let server = &mut leader.server;
        match request {
            Request::Open { attempt } => self.open(from, attempt),
            Request::Renew { session, sent_at } => {
                let message = match server.renew(now, session) {
                    Ok(renewal) => Message::Renewed {
                        session,
                        sent_at,
                        reign: leader.reign,
                        reclaim: renewal.reclaim,
                    },
                    Err(_) => {
                        self.session_refused(from, session, "its renewal");
                        return;
                    }
                };
                self.send(from, message);
            }
            Request::Reclaim {
                session,
                reign,
                part,
                leases,
                last,
            } => match server.reclaim(now, session, reign, &leases, last) {
                Ok(names) => self.send(
                    from,
                    Message::Reclaimed {
                        session,
                        reign,
                        part,
                        names,
                    },
                ),
                Err(ReclaimError::SessionEnded) => {
                    self.session_refused(from, session, "its reclaim");
                }
                Err(ReclaimError::OtherReign(_)) => {}
            },
            Request::Release {
                session,
                ino,
                lease,
            } => server.release(now, session, &[(ino, lease)]),
            Request::Ack { session, ack } => server.handle_break_ack(now, session, ack),
            Request::Op {
                session,
                seq,
                done_below,
                op,
            } => self.begin(from, session, seq, done_below, op),
        }
        self.drive_leader();
    }

    fn open(&mut self, from: NodeId, attempt: u64) {
        match self.state.opened.get(&from) {
            // Late: the node has gone on since. Ending its session for this would end it while it serves.
            Some((last, _)) if attempt < *last => {}
            Some(&(last, session)) if attempt == last => {
                if self.state.sessions.contains_key(&session) {
                    let opened = Message::Opened {
                        attempt,
                        session,
                        fresh: false,
                    };
                    self.send(from, opened);
                } else {
                    self.send(from, Message::Ended { session });
                }
            }
            Some(_) | None => self.propose(Command::Open(from, attempt)),
        }
    }

    fn begin(&mut self, from: NodeId, session: SessionId, seq: u64, done_below: u64, op: Op) {
        let now = self.clock(NodeId(0));
        if !self.state.sessions.contains_key(&session) {
            self.send(from, Message::Ended { session });
            return;
        }
        let below = self.state.done_below.entry(session).or_default();
        *below = done_below.max(*below);
        if seq < *below {
            return;
        }
        if self.state.done.contains(&(session, seq)) {
            // What it told is old by now: no grants.
            let facts = Some(Vec::new());
            self.send(
                from,
                Message::Reply {
                    session,
                    seq,
                    facts,
                },
            );
            return;
        }
        let leader = self.leader.as_mut().expect("there is one");
        let twice = |job: &Job| (job.session, job.seq) == (session, seq);
        if leader.jobs.values().any(twice) {
            return;
        }
        leader.last_op += 1;
        let id = OpId(leader.last_op);
        match leader.server.begin(now, id, session, op.claims()) {
            Ok(()) => {
                let job = Job {
                    node: from,
                    session,
                    seq,
                    op,
                    bypass: false,
                    proposed: false,
                    outcome: None,
                };
                leader.jobs.insert(id, job);
            }
            Err(BeginError::SessionEnded) => self.send(from, Message::Ended { session }),
            Err(error @ BeginError::TooManyOps) => self.oracle.fail(error.to_string()),
        }
    }

    pub(super) fn drive_leader(&mut self) {
        while let Some(action) = self.leader.as_mut().and_then(|l| l.server.poll_action()) {
            match action {
                Action::Break(session, request) => {
                    self.resend(session, request.ino, request.lease);
                }
                Action::Ready(id) => self.ready(id),
                Action::Dropped(id) => {
                    let leader = self.leader.as_mut().expect("there is one");
                    let job = &leader.jobs[&id];
                    let (node, session, proposed) = (job.node, job.session, job.proposed);
                    // What is in the log may be committed whatever the lease server thinks of it.
                    if !proposed {
                        leader.jobs.remove(&id);
                    }
                    self.send(node, Message::Ended { session });
                }
                Action::Ended(session) => {
                    if let Some(&node) = self.state.sessions.get(&session) {
                        self.lose_unflushed(node, session);
                        self.session_refused(node, session, "its term");
                    }
                    self.propose(Command::End(session));
                }
                // Files of this world are never freed.
                Action::Forgotten(_) | Action::GraceOver => {}
            }
        }
        self.tell_voters();
        let timeout = self.leader.as_ref().and_then(|l| l.server.poll_timeout());
        let at = timeout.map(|at| self.real_time(NodeId(0), at).max(self.now + 1));
        let leader = self.leader.as_mut().expect("there is one");
        if leader.next_timeout != at {
            leader.next_timeout = at;
            if let Some(at) = at {
                self.schedule(at, Event::LeaderTimeout);
            }
        }
    }

    fn ready(&mut self, id: OpId) {
        self.check_order(id);
        let leader = self.leader.as_mut().expect("there is one");
        let reign = leader.reign;
        let job = leader.jobs.get_mut(&id).expect("began");
        if job.op.writes() {
            // The grant is looked at when the flush goes into the log; L8 holds the rest up until it is out.
            if let Op::Flush(ino, _) = job.op
                && leader.server.mode(job.session, ino) != Some(Mode::Exclusive)
            {
                job.outcome = Some(None);
                self.schedule(self.now + 1, Event::Finish(reign, id));
                return;
            }
            job.proposed = true;
            self.propose(Command::Do(id));
            return;
        }
        let facts = job.op.facts();
        let read = |(ino, _, parts): (InodeNo, Mode, Vec<Part>)| {
            let values = parts
                .iter()
                .map(|&part| (part, self.state.value((ino, part))));
            (ino, values.collect())
        };
        job.outcome = Some(Some(facts.into_iter().map(read).collect()));
        let at = self.now + 1 + self.rng.below(3_000);
        self.schedule(at, Event::Finish(reign, id));
    }

    /// L5, and the half of L1 that is about operations at the same time.
    fn check_order(&mut self, id: OpId) {
        let leader = self.leader.as_mut().expect("there is one");
        let job = &leader.jobs[&id];
        let mut bypass = false;
        let mut passed = None;
        for claim in job.op.claims() {
            if claim.need == Need::Share
                && leader.server.unanswered(job.session, claim.ino).is_some()
            {
                bypass = true;
                continue;
            }
            for (earlier, other) in leader.jobs.range(..id).filter(|(_, other)| !other.bypass) {
                let theirs = other.op.claims();
                let mut same = theirs.iter().filter(|theirs| theirs.ino == claim.ino);
                if !same.all(|theirs| claims_are_compatible(&theirs.need, &claim.need)) {
                    passed = Some(format!(
                        "L5: {id:?} {:?} ran before {earlier:?} {:?}",
                        job.op, other.op
                    ));
                }
            }
        }
        leader.jobs.get_mut(&id).expect("began").bypass = bypass;
        if let Some(passed) = passed {
            self.oracle.fail(passed);
        }
    }

    pub(super) fn finish(&mut self, reign: Epoch, id: OpId) {
        let leader = self.leader.as_mut().expect("there is one");
        if leader.reign != reign {
            return;
        }
        let Some(job) = leader.jobs.remove(&id) else {
            return;
        };
        let facts = job.op.facts();
        let wants: Vec<_> = facts.iter().map(|&(ino, want, _)| (ino, want)).collect();
        let grants = leader.server.finish(id, &wants);
        let outcome = job.outcome.expect("read or done before it is finished");
        let facts = outcome.map(|outcome| {
            let facts = outcome.into_iter().zip(grants);
            facts
                .map(|((ino, values), grant)| Fact { ino, grant, values })
                .collect()
        });
        let message = Message::Reply {
            session: job.session,
            seq: job.seq,
            facts,
        };
        match leader.server.untold(job.session) {
            Some(number) => leader.withheld.push((number, message)),
            None => self.send(job.node, message),
        }
        self.drive_leader();
    }

    fn propose(&mut self, command: Command) {
        let reign = self.leader.as_ref().expect("there is one").reign;
        let slow = self.rng.chance(20);
        let at = self.now + 100 + self.rng.below(if slow { 20_000 } else { 3_000 });
        self.schedule(at, Event::Commit(reign, command));
    }

    /// A command of this reign is committed.
    pub(super) fn commit(&mut self, reign: Epoch, command: &Command) {
        let now = self.clock(NodeId(0));
        let before = match command {
            Command::Open(node, _) => self.state.opened.get(node).copied(),
            Command::End(_) | Command::Do(_) => None,
        };
        self.apply(command);
        match command {
            Command::Open(node, attempt) => {
                let (last, session) = self.state.opened[node];
                if last == *attempt && before.map(|(_, session)| session) != Some(session) {
                    let leader = self.leader.as_mut().expect("there is one");
                    if let Some((_, before)) = before {
                        leader.server.end_session(now, before);
                    }
                    leader.server.open_session(now, session);
                    if *node == leader.host {
                        leader.server.own_session(session);
                    } else {
                        leader.server.look_after(*node);
                    }
                    let opened = Message::Opened {
                        attempt: *attempt,
                        session,
                        fresh: true,
                    };
                    self.send(*node, opened);
                }
            }
            Command::End(_) => {}
            Command::Do(id) => {
                let at = self.now + 1 + self.rng.below(2_000);
                self.schedule(at, Event::Finish(reign, *id));
            }
        }
        self.drive_leader();
    }

    fn apply(&mut self, command: &Command) {
        match command {
            Command::Open(node, attempt) => {
                let before = self.state.opened.get(node).copied();
                if before.is_some_and(|(last, _)| *attempt <= last) {
                    return;
                }
                if let Some((_, session)) = before {
                    self.state.sessions.remove(&session);
                }
                self.state.last_session += 1;
                let session = SessionId(self.state.last_session);
                self.state.sessions.insert(session, *node);
                self.state.opened.insert(*node, (*attempt, session));
            }
            Command::End(session) => drop(self.state.sessions.remove(session)),
            Command::Do(id) => self.apply_op(*id),
        }
    }

    fn apply_op(&mut self, id: OpId) {
        let leader = self.leader.as_mut().expect("there is one");
        let Some(job) = leader.jobs.get_mut(&id) else {
            return;
        };
        let (session, seq) = (job.session, job.seq);
        job.outcome = Some(None);
        if !self.state.sessions.contains_key(&session) || !self.state.done.insert((session, seq)) {
            return;
        }
        let order = match job.op {
            Op::Flush(_, order) => order,
            Op::Change(_) | Op::Look(_) | Op::List(_) | Op::Load(..) => self.oracle.next_write(),
        };
        let written = match &job.op {
            Op::Flush(ino, _) => vec![(*ino, Mode::Known, vec![Part::Data])],
            op @ (Op::Change(_) | Op::Look(_) | Op::List(_) | Op::Load(..)) => op.facts(),
        };
        let mut outcome = Vec::new();
        for (ino, _, parts) in written {
            for &part in &parts {
                let before = self.state.registers.insert((ino, part), order);
                if before.is_some_and(|before| order < before) {
                    self.oracle.fail(format!(
                        "{:?} of {session:?} overwrote {before:?}, which is younger",
                        job.op
                    ));
                }
            }
            outcome.push((ino, parts.iter().map(|&part| (part, order)).collect()));
        }
        job.outcome = Some(Some(outcome));
    }

    /// Sends a break, and again until it is answered.
    pub(super) fn resend(&mut self, session: SessionId, ino: InodeNo, lease: LeaseId) {
        let leader = self.leader.as_ref().expect("there is one");
        let request = leader.server.unanswered(session, ino);
        let Some(request) = request.filter(|request| request.lease == lease) else {
            return;
        };
        // A session that has ended in the log but not here cannot be: its grants go first.
        if let Some(&node) = self.state.sessions.get(&session) {
            self.send(node, Message::Break { session, request });
            let again = Event::Resend(session, ino, lease);
            self.schedule(self.now + RESEND, again);
        }
    }

    fn session_refused(&mut self, node: NodeId, session: SessionId, what: &str) {
        if self.healed() && self.nodes[&node].client.session() == Some(session) {
            self.oracle.fail(format!(
                "liveness: {session:?} of {node:?} lost {what} without a fault"
            ));
        }
        self.send(node, Message::Ended { session });
    }

    pub(super) fn check_belief(&mut self) {
        let leader = self.leader.as_ref().expect("there is one");
        for (id, node) in &self.nodes {
            let Some(session) = node.client.session() else {
                continue;
            };
            // What is not known in the grace cannot be compared.
            let known = node.reigns_with(leader.reign) || leader.inherited == Some(session);
            let serves = known && self.clock(*id) < node.client.valid_until();
            for (ino, mode) in node.client.leases() {
                let granted = leader.server.mode(session, ino);
                if serves && mode >= Mode::Shared && granted.is_none_or(|granted| granted < mode) {
                    self.oracle.fail(format!(
                        "belief: {id:?} holds {ino:?} {mode:?}, granted is {granted:?}"
                    ));
                }
            }
        }
    }
}
