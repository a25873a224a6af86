//! The lease state of a leader: sessions, their grants, and the operations that want something.
//!
//! # An operation's way
//! [`begin`](Server::begin) enters all its claims into the queues of their inodes at once, so that all operations
//! have one order and no two wait for each other.
//! * **waiting** - an earlier claim on one of its inodes is not compatible (L5), or the reign is in its grace
//!   (L6);
//! * **active** - its turn; the grants in its way are being broken;
//! * **ready** - they are out of the way (L1). The driver reads or commits, then calls
//!   [`finish`](Server::finish), which grants what the reply may carry.
//!
//! Every handler takes the time, ends what has run out, does its work, and puts what follows into the list that
//! [`poll_action`](Server::poll_action) empties: the driver calls it after every handler until it is empty.

mod contention;
mod grants;
mod queue;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) use queue::compatible as claims_are_compatible;
pub use queue::{Claim, Need};

use super::crossings::{Crossings, Mark};
use super::lease_floor;
use super::mutant::{Mutant, Mutation};
use crate::wire::lease::{Break, BreakAck, Grant, Mode};
use crate::{Duration, Epoch, InodeNo, Instant, LeaseId, OpId, SessionId};
use contention::Contention;
use grants::{Breaking, Grants};
use queue::{compatible, demand};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Unfinished operations of one session: a node has at most some hundred requests of its kernel and its own
/// flushes under way; who has more is broken.
pub const OPS_PER_SESSION_MAX: usize = 4096;

/// What may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a session lives without renewal.
    pub term: Duration,
    /// How long a live session may owe an ack before it gets no more renewals.
    pub break_timeout: Duration,
}

/// Orders the operations of all sessions and grants leases.
#[derive(Debug)]
pub struct Server {
    config: Config,
    reign: Epoch,
    now: Instant,
    last_lease: LeaseId,
    sessions: BTreeMap<SessionId, Session>,
    /// When sessions end, in order.
    expiries: BTreeSet<(Instant, SessionId)>,
    /// Sessions of the last reign that have not told what they hold; the grace lasts while there are any (L6).
    reclaiming: BTreeSet<SessionId>,
    grants: Grants,
    /// When unanswered breaks are overdue, in order.
    overdue: BTreeSet<(Instant, SessionId, InodeNo)>,
    ops: BTreeMap<OpId, Op>,
    /// Unfinished operations that claim an inode, in order of arrival.
    queues: BTreeMap<InodeNo, Vec<OpId>>,
    /// Changes that finished while other operations were between ready and finished (L7).
    changes: Crossings<()>,
    contention: Contention,
    /// Operations to look at again before the handler returns.
    agenda: VecDeque<OpId>,
    actions: VecDeque<Action>,
    pub(super) mutation: Mutation,
}

#[derive(Debug)]
struct Session {
    expires_at: Instant,
    /// It owes an ack for too long and gets no more time.
    condemned: bool,
    ops: usize,
}

#[derive(Debug)]
struct Op {
    session: SessionId,
    claims: BTreeMap<InodeNo, Claimed>,
    state: State,
}

#[derive(Debug)]
struct Claimed {
    need: Need,
    /// F1, or a flush without the grant: neither waits nor holds anybody up.
    bypass: bool,
}

#[derive(Debug)]
enum State {
    Waiting,
    /// Grants that are still in its way.
    Active(BTreeSet<(InodeNo, SessionId)>),
    Ready(Mark),
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a callback to a session, again and again while [`Server::unanswered`] returns it.
    Break(SessionId, Break),
    /// Read for an operation or commit it, then finish it.
    Ready(OpId),
    /// Answer an operation that its session has ended; it is not known here any more.
    Dropped(OpId),
    /// Record that a session has ended: it was not renewed in time.
    Ended(SessionId),
    /// Nobody knows an inode any more: free it if it has no name.
    Forgotten(InodeNo),
    /// What nobody has reclaimed nobody knows: free the inodes without a name that are not
    /// [known](Server::known).
    GraceOver,
}

/// A renewed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// It has to tell what it holds first, and got no time yet.
    pub reclaim: bool,
}

/// The session is not known: it ended, or never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session has ended; open a new one")]
pub struct SessionEnded;

/// Why a reclaim was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReclaimError {
    /// The session has ended.
    #[error("the session has ended; open a new one")]
    SessionEnded,
    /// It was meant for another leader; the present reign is this.
    #[error("the reign is {0} now; renew and reclaim again")]
    OtherReign(Epoch),
}

/// Why an operation was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    /// Its session has ended.
    #[error("the session has ended; open a new one")]
    SessionEnded,
    /// Its session has [`OPS_PER_SESSION_MAX`] unfinished operations.
    #[error("the session has {OPS_PER_SESSION_MAX} unfinished operations; wait for replies")]
    TooManyOps,
}

impl Server {
    /// Starts a reign. `reign` is larger than that of every leader before and below 2^24; `previous` are all
    /// sessions that may live under the last one: nothing runs until each has reclaimed or ended (L6).
    pub fn new(
        config: Config,
        reign: Epoch,
        now: Instant,
        previous: impl IntoIterator<Item = SessionId>,
    ) -> Self {
        let mut server = Self {
            config,
            reign,
            now,
            last_lease: lease_floor(reign),
            sessions: BTreeMap::new(),
            expiries: BTreeSet::new(),
            reclaiming: BTreeSet::new(),
            grants: Grants::default(),
            overdue: BTreeSet::new(),
            ops: BTreeMap::new(),
            queues: BTreeMap::new(),
            changes: Crossings::default(),
            contention: Contention::default(),
            agenda: VecDeque::new(),
            actions: VecDeque::new(),
            mutation: Mutation::default(),
        };
        for session in previous {
            server.open_session(now, session);
            server.reclaiming.insert(session);
        }
        if server.reclaiming.is_empty() {
            server.actions.push_back(Action::GraceOver);
        }
        server
    }

    /// Takes a new session; one that is known already stays as it is.
    pub fn open_session(&mut self, now: Instant, session: SessionId) {
        self.tick(now);
        let expires_at = self.now + self.config.term;
        self.sessions.entry(session).or_insert_with(|| {
            self.expiries.insert((expires_at, session));
            Session {
                expires_at,
                condemned: false,
                ops: 0,
            }
        });
        self.run();
    }

    /// Renews a session, unless it has ended or owes an ack for too long.
    ///
    /// The leader must have confirmed its reign after the request came: a deposed one would give time that its
    /// successor does not know of (L3).
    ///
    /// # Errors
    /// [`SessionEnded`]: the client must forget everything and open a new session.
    pub fn renew(&mut self, now: Instant, session: SessionId) -> Result<Renewal, SessionEnded> {
        self.tick(now);
        self.run();
        match self.sessions.get(&session) {
            Some(live) if !live.condemned => {}
            Some(_) | None => return Err(SessionEnded),
        }
        let reclaim = self.reclaiming.contains(&session);
        if !reclaim {
            self.extend(session);
        }
        Ok(Renewal { reclaim })
    }

    /// Ends a session: the driver has recorded it. Its grants go, its operations that are not ready are dropped; those
    /// that are hold their claims until they are finished (L8).
    pub fn end_session(&mut self, now: Instant, session: SessionId) {
        self.tick(now);
        self.end(session);
        self.run();
    }

    /// Takes what a session of the last reign holds; returns the new names, `None` for what another session
    /// reclaimed first. Without effect on grants after the session's last part, so that a repeated message gets the
    /// same answer. `reign` is the one that the client means to tell: a late part of what it told another leader is
    /// not all it holds.
    ///
    /// # Errors
    /// [`ReclaimError`].
    pub fn reclaim(
        &mut self,
        now: Instant,
        session: SessionId,
        reign: Epoch,
        leases: &[(InodeNo, Mode)],
        last: bool,
    ) -> Result<Vec<Option<LeaseId>>, ReclaimError> {
        self.tick(now);
        self.run();
        if reign != self.reign {
            return Err(ReclaimError::OtherReign(self.reign));
        }
        if !self.sessions.contains_key(&session) {
            return Err(ReclaimError::SessionEnded);
        }
        let open = self.reclaiming.contains(&session);
        let names = leases.iter().map(|&(ino, mode)| {
            if let Some(held) = self.grants.get(ino, session) {
                return Some(held.lease);
            }
            if !open || self.conflicts(ino, session, mode) {
                return None;
            }
            let lease = self.fresh_lease();
            self.grants.insert(ino, session, lease, mode);
            Some(lease)
        });
        let names = names.collect();
        if open && last {
            self.extend(session);
            self.end_grace_of(session);
            self.run();
        }
        Ok(names)
    }

    /// Takes inodes back that a session has forgotten. A grant with another name is younger and stays (L4).
    pub fn release(&mut self, now: Instant, session: SessionId, leases: &[(InodeNo, LeaseId)]) {
        self.tick(now);
        for &(ino, lease) in leases {
            let named = self.grants.get(ino, session).map(|held| held.lease);
            if named == Some(lease) {
                self.revoke(ino, session);
            }
        }
        self.run();
    }

    /// Takes an operation: enters its claims into the queues.
    ///
    /// # Errors
    /// [`BeginError`]; the operation is not known then.
    pub fn begin(
        &mut self,
        now: Instant,
        id: OpId,
        session: SessionId,
        claims: Vec<Claim>,
    ) -> Result<(), BeginError> {
        self.tick(now);
        self.run();
        let live = self
            .sessions
            .get_mut(&session)
            .ok_or(BeginError::SessionEnded)?;
        if live.ops == OPS_PER_SESSION_MAX {
            return Err(BeginError::TooManyOps);
        }
        live.ops += 1;
        let mut merged: BTreeMap<InodeNo, Need> = BTreeMap::new();
        for Claim { ino, need } in claims {
            let need = match merged.remove(&ino) {
                Some(before) => before.merge(need),
                None => need,
            };
            merged.insert(ino, need);
        }
        let claim = |(ino, need)| {
            self.queues.entry(ino).or_default().push(id);
            // Whether a flush is void shows at its turn: a reclaim may still come.
            let bypass = need == Need::Share && self.bypasses(ino, session, &need);
            (ino, Claimed { need, bypass })
        };
        let op = Op {
            session,
            claims: merged.into_iter().map(claim).collect(),
            state: State::Waiting,
        };
        let before = self.ops.insert(id, op);
        assert!(before.is_none(), "operation {id} began twice");
        self.agenda.push_back(id);
        self.run();
        Ok(())
    }

    /// Ends an operation without granting anything. One that may be in the log must be finished instead (L8). An
    /// unknown one is ignored.
    pub fn cancel(&mut self, now: Instant, id: OpId) {
        self.tick(now);
        drop(self.conclude(id, &[]));
        self.run();
    }

    /// Takes a holder's ack.
    pub fn handle_break_ack(&mut self, now: Instant, session: SessionId, ack: BreakAck) {
        self.tick(now);
        let any_name = self.mutation.is(Mutant::AckAnyName);
        let Some(held) = self.grants.get_mut(ack.ino, session) else {
            return self.run();
        };
        // L4
        if held.lease == ack.lease || any_name {
            if let Some(breaking) = held.breaking.take() {
                held.mode = held.mode.min(ack.kept).min(breaking.demand.keep);
                self.overdue.remove(&(breaking.deadline, session, ack.ino));
                self.clear_way(ack.ino, session, &breaking.ops);
            }
        }
        self.run();
    }

    /// Ends a ready operation and returns the grants for its reply, one for each wanted. `None`: the session has
    /// ended. The grant says what the reply's facts are good for: a mode below shared means they must not be
    /// cached, whatever the session may hold besides.
    ///
    /// The facts were read, or made by the change itself, since the operation became ready. Facts of inodes that
    /// it did not claim (children in a listing, say) must be read in one piece with this call, and left out where
    /// [`held_elsewhere`](Self::held_elsewhere) says that somebody else is their master.
    ///
    /// # Panics
    /// If the operation is known but not ready.
    pub fn finish(&mut self, id: OpId, wants: &[(InodeNo, Mode)]) -> Vec<Option<Grant>> {
        if let Some(op) = self.ops.get(&id) {
            let ready = matches!(op.state, State::Ready(_));
            assert!(ready, "operation {id} is finished before it is ready");
        }
        let grants = self.conclude(id, wants);
        self.run();
        grants
    }

    /// Returns what a session holds of an inode, also while it is broken.
    #[must_use]
    pub fn mode(&self, session: SessionId, ino: InodeNo) -> Option<Mode> {
        self.grants.get(ino, session).map(|held| held.mode)
    }

    /// Returns whether some session holds anything of an inode. Not complete before [`Action::GraceOver`].
    #[must_use]
    pub fn known(&self, ino: InodeNo) -> bool {
        self.grants.of_inode(ino).next().is_some()
    }

    /// Returns whether another session is the master of an inode: what the leader knows of it is old.
    #[must_use]
    pub fn held_elsewhere(&self, session: SessionId, ino: InodeNo) -> bool {
        self.grants
            .foreign(ino, session)
            .any(|(_, held)| held.mode == Mode::Exclusive)
    }

    /// Returns the break that a session has not acknowledged.
    #[must_use]
    pub fn unanswered(&self, session: SessionId, ino: InodeNo) -> Option<Break> {
        self.grants.get(ino, session)?.request(ino)
    }

    /// Returns the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.expiries.first().map(|&(at, _)| at);
        let overdue = self.overdue.first().map(|&(at, ..)| at);
        expiry.into_iter().chain(overdue).min()
    }

    /// Ends sessions whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick(now);
        self.run();
    }
}

/// Sessions and time.
impl Server {
    fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
        while let Some(&(at, session, ino)) = self.overdue.first() {
            if self.now < at {
                break;
            }
            self.overdue.remove(&(at, session, ino));
            // Its grants stay until its term is over: it may be serving under them (L3).
            if let Some(live) = self.sessions.get_mut(&session) {
                live.condemned = true;
            }
        }
        while let Some(&(at, session)) = self.expiries.first() {
            if self.now < at {
                break;
            }
            self.end(session);
            self.actions.push_back(Action::Ended(session));
        }
    }

    fn extend(&mut self, session: SessionId) {
        let live = self
            .sessions
            .get_mut(&session)
            .expect("the caller looked it up");
        self.expiries.remove(&(live.expires_at, session));
        live.expires_at = self.now + self.config.term;
        self.expiries.insert((live.expires_at, session));
    }

    fn end(&mut self, session: SessionId) {
        let Some(ended) = self.sessions.remove(&session) else {
            return;
        };
        self.expiries.remove(&(ended.expires_at, session));
        let drop_all = self.mutation.is(Mutant::EndDropsInFlight);
        let waits = |op: &Op| drop_all || !matches!(op.state, State::Ready(_));
        let dropped: Vec<OpId> = self
            .ops
            .iter()
            .filter(|(_, op)| op.session == session && waits(op))
            .map(|(&id, _)| id)
            .collect();
        for id in dropped {
            drop(self.leave(id));
            self.actions.push_back(Action::Dropped(id));
        }
        for ino in self.grants.of_session(session) {
            self.revoke(ino, session);
        }
        self.end_grace_of(session);
    }

    fn end_grace_of(&mut self, session: SessionId) {
        if self.reclaiming.remove(&session) && self.reclaiming.is_empty() {
            self.actions.push_back(Action::GraceOver);
            self.agenda.extend(self.ops.keys());
        }
    }

    fn in_grace(&self) -> bool {
        // L6
        !self.reclaiming.is_empty() && !self.mutation.is(Mutant::NoGrace)
    }
}

/// Grants.
impl Server {
    fn fresh_lease(&mut self) -> LeaseId {
        self.last_lease.0 += 1;
        self.last_lease
    }

    /// Grants to a finished operation what its reply may carry; the operation has left the queues.
    fn grant(&mut self, op: &Op, ino: InodeNo, want: Mode) -> Option<Grant> {
        if !self.sessions.contains_key(&op.session) {
            return None;
        }
        let held = self.grants.get(ino, op.session);
        if let Some(held) = held
            && held.breaking.is_some()
        {
            // L4: the ack will name this grant. F1: what the holder is forgetting must not come back.
            let grants = self.mutation.is(Mutant::BypassGrants);
            return Some(Grant {
                lease: held.lease,
                mode: if grants { held.mode } else { Mode::Known },
            });
        }
        let held = held.map(|held| held.mode);
        let allowed = self.allowed(op, ino, want);
        let mode = held.map_or(allowed, |held| held.max(allowed));
        let lease = self.fresh_lease();
        self.grants.insert(ino, op.session, lease, mode);
        // The master of an inode stays it. A shared holder may not cache this reply if a change is under way, but
        // what it has besides stays good until it is broken.
        let mode = if mode == Mode::Exclusive {
            mode
        } else {
            allowed
        };
        Some(Grant { lease, mode })
    }

    /// Returns the strongest mode up to `want` that the facts of an operation deserve.
    fn allowed(&self, op: &Op, ino: InodeNo, want: Mode) -> Mode {
        let crossed = match op.state {
            State::Ready(mark) => self.changes.crossed(mark, ino),
            State::Waiting | State::Active(_) => true,
        };
        // L7
        if want == Mode::Known || (crossed && !self.mutation.is(Mutant::IgnoreCrossing)) {
            return Mode::Known;
        }
        let claim = op.claims.get(&ino).filter(|claim| !claim.bypass);
        let turn = match claim.map(|claim| &claim.need) {
            Some(Need::Exclusive) if want == Mode::Exclusive => return Mode::Exclusive,
            // L5: what waits behind breaks this grant next.
            Some(Need::Exclusive | Need::Share) => true,
            Some(Need::Peek | Need::Change(_) | Need::Flush) | None => false,
        };
        let nobody = self.grants.foreign(ino, op.session).next().is_none()
            && !self.queues.contains_key(&ino);
        if nobody && want == Mode::Exclusive {
            return Mode::Exclusive;
        }
        let free = turn || !(self.change_pending(ino) || self.contention.contended(self.now, ino));
        if free && !self.held_elsewhere(op.session, ino) {
            Mode::Shared
        } else {
            Mode::Known
        }
    }

    /// Returns whether an unfinished operation changes an inode or is about to.
    fn change_pending(&self, ino: InodeNo) -> bool {
        // L1
        let changes = |claim: &Claimed| match claim.need {
            Need::Exclusive | Need::Change(_) | Need::Flush => !claim.bypass,
            Need::Peek | Need::Share => false,
        };
        self.claims_on(ino).any(|(_, claim)| changes(claim))
            && !self.mutation.is(Mutant::GrantDuringChange)
    }

    fn conflicts(&self, ino: InodeNo, session: SessionId, mode: Mode) -> bool {
        self.grants
            .foreign(ino, session)
            .any(|(_, held)| match mode {
                Mode::Known => false,
                Mode::Shared => held.mode == Mode::Exclusive,
                Mode::Exclusive => held.mode >= Mode::Shared,
            })
    }

    /// Takes a grant away from a session that is sure not to use it any more.
    fn revoke(&mut self, ino: InodeNo, session: SessionId) {
        let Some(held) = self.grants.remove(ino, session) else {
            return;
        };
        if let Some(breaking) = held.breaking {
            self.overdue.remove(&(breaking.deadline, session, ino));
        }
        self.clear_way(ino, session, &BTreeSet::new());
        if !self.known(ino) {
            self.actions.push_back(Action::Forgotten(ino));
        }
    }
}

/// Operations.
impl Server {
    /// Ends an operation and grants what it deserves.
    fn conclude(&mut self, id: OpId, wants: &[(InodeNo, Mode)]) -> Vec<Option<Grant>> {
        let Some(op) = self.leave(id) else {
            return vec![None; wants.len()];
        };
        let grants = wants
            .iter()
            .map(|&(ino, want)| self.grant(&op, ino, want))
            .collect();
        if let State::Ready(mark) = op.state {
            self.changes.close(mark);
            for (&ino, claim) in &op.claims {
                if claim.need.changes() {
                    self.changes.note(ino, ());
                }
            }
        }
        grants
    }

    /// Looks at the operations on the agenda until nothing moves.
    fn run(&mut self) {
        while let Some(id) = self.agenda.pop_front() {
            if self.its_turn(id) {
                self.activate(id);
            }
            if self.free_to_run(id)
                && let Some(op) = self.ops.get_mut(&id)
            {
                op.state = State::Ready(self.changes.open());
                self.actions.push_back(Action::Ready(id));
            }
        }
    }

    fn claims_on(&self, ino: InodeNo) -> impl Iterator<Item = (&Op, &Claimed)> {
        let queue = self.queues.get(&ino).map_or(&[][..], Vec::as_slice);
        queue.iter().map(move |id| {
            let op = &self.ops[id];
            (op, &op.claims[&ino])
        })
    }

    /// Returns whether a waiting operation has come to the front of all its queues (L5).
    fn its_turn(&self, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else {
            return false;
        };
        let overtake = self.mutation.is(Mutant::Overtake);
        matches!(op.state, State::Waiting)
            && !self.in_grace()
            && op.claims.iter().all(|(ino, claim)| {
                let earlier = self.queues[ino].iter().take_while(|other| **other != id);
                claim.bypass
                    || !claim.need.queues()
                    || earlier.map(|other| &self.ops[other]).all(|other| {
                        let theirs = &other.claims[ino];
                        let waits = matches!(other.state, State::Waiting);
                        theirs.bypass
                            || (waits && overtake)
                            || compatible(&theirs.need, &claim.need)
                    })
            })
    }

    /// Finds the grants that are in an operation's way, and breaks them.
    fn activate(&mut self, id: OpId) {
        let op = &self.ops[&id];
        let bypassed: Vec<InodeNo> = op
            .claims
            .iter()
            .filter(|(ino, claim)| self.bypasses(**ino, op.session, &claim.need))
            .map(|(&ino, _)| ino)
            .collect();
        let op = self.ops.get_mut(&id).expect("looked up above");
        for ino in bypassed {
            op.claims.get_mut(&ino).expect("listed above").bypass = true;
        }
        let op = &self.ops[&id];
        let mut way = BTreeSet::new();
        for (&ino, claim) in op.claims.iter().filter(|(_, claim)| !claim.bypass) {
            for (session, held) in self.grants.of_inode(ino) {
                // An exclusive grant has a name of its own, so the session's own ack must come first.
                let own = session == op.session;
                let owes = own && claim.need == Need::Exclusive && held.breaking.is_some();
                if owes || (!own && demand(&claim.need, held.mode, false).is_some()) {
                    way.insert((ino, session));
                }
            }
        }
        let ignore = self.mutation.is(Mutant::RunWithoutAck);
        let op = self.ops.get_mut(&id).expect("looked up above");
        let session = op.session;
        op.state = State::Active(if ignore { BTreeSet::new() } else { way.clone() });

        let mut broken = BTreeSet::new();
        for (ino, holder) in way.into_iter().filter(|(_, holder)| *holder != session) {
            if self.demand_break(id, ino, holder) {
                broken.insert(ino);
            }
        }
        for ino in broken {
            self.contention.note_break(self.now, ino);
        }
    }

    /// Lets an active operation wait for a holder's ack; returns whether a break was sent for it. If one is under
    /// way that asks for less, its ack brings the operation back here.
    fn demand_break(&mut self, id: OpId, ino: InodeNo, holder: SessionId) -> bool {
        let contended = self.contention.contended(self.now, ino);
        let need = &self.ops[&id].claims[&ino].need;
        let name = if self.mutation.is(Mutant::BreakKeepsName) {
            None
        } else {
            Some(self.last_lease)
        };
        let held = self
            .grants
            .get_mut(ino, holder)
            .expect("a grant in the way");
        let demand = demand(need, held.mode, contended).expect("a grant in the way");
        if let Some(breaking) = &mut held.breaking {
            if breaking.demand.covers(&demand) {
                breaking.ops.insert(id);
            }
            return false;
        }
        if let Some(LeaseId(last)) = name {
            // L4: a doubled ack of this holder's last break must not pass for the ack of this one.
            held.lease = LeaseId(last + 1);
            self.last_lease = held.lease;
        }
        let deadline = self.now + self.config.break_timeout;
        held.breaking = Some(Box::new(Breaking {
            demand,
            ops: BTreeSet::from([id]),
            deadline,
        }));
        let request = held.request(ino).expect("just set");
        self.overdue.insert((deadline, holder, ino));
        self.actions.push_back(Action::Break(holder, request));
        self.bypass_all(ino, holder);
        true
    }

    /// Returns whether a claim neither waits nor holds anybody up: a read of a session that owes an ack (F1), a
    /// flush without the grant.
    fn bypasses(&self, ino: InodeNo, session: SessionId, need: &Need) -> bool {
        let held = self.grants.get(ino, session);
        match need {
            Need::Share => {
                held.is_some_and(|held| held.breaking.is_some())
                    && !self.mutation.is(Mutant::NoBypass)
            }
            Need::Flush => held.is_none_or(|held| held.mode < Mode::Exclusive),
            Need::Peek | Need::Exclusive | Need::Change(_) => false,
        }
    }

    /// Frees the queued reads of a session that has just been asked for an ack (F1).
    fn bypass_all(&mut self, ino: InodeNo, session: SessionId) {
        for &id in &self.queues[&ino] {
            let op = &self.ops[&id];
            let need = &op.claims[&ino].need;
            if op.session != session || *need != Need::Share || !self.bypasses(ino, session, need) {
                continue;
            }
            let op = self.ops.get_mut(&id).expect("queued");
            if let State::Ready(_) = op.state {
                continue;
            }
            if let State::Active(way) = &mut op.state {
                way.retain(|(other, _)| *other != ino);
            }
            op.claims.get_mut(&ino).expect("queued").bypass = true;
            self.agenda.push_back(id);
        }
    }

    /// Takes a grant out of the way of the operations on an inode, after its holder answered or is gone; for
    /// those to whom the answer was not enough the next break goes out.
    fn clear_way(&mut self, ino: InodeNo, holder: SessionId, answered: &BTreeSet<OpId>) {
        let held = self.grants.get(ino, holder).map(|held| held.mode);
        let queue = self.queues.get(&ino).cloned().unwrap_or_default();
        for id in queue {
            let op = self.ops.get_mut(&id).expect("queued");
            let State::Active(way) = &mut op.state else {
                continue;
            };
            let need = &op.claims[&ino].need;
            let own = op.session == holder;
            let stays = held.is_some_and(|held| demand(need, held, false).is_some());
            if !way.contains(&(ino, holder)) {
                continue;
            }
            if own || answered.contains(&id) || !stays {
                way.remove(&(ino, holder));
                self.agenda.push_back(id);
            } else {
                self.demand_break(id, ino, holder);
            }
        }
    }

    /// Returns whether nothing is in an active operation's way, nor a foreign flush on its way to the log (L8).
    fn free_to_run(&self, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else {
            return false;
        };
        let State::Active(way) = &op.state else {
            return false;
        };
        let flushing = |ino: &InodeNo| {
            self.claims_on(*ino).any(|(other, claim)| {
                other.session != op.session && claim.need == Need::Flush && !claim.bypass
            })
        };
        let own_flush = op.claims.values().all(|claim| claim.need == Need::Flush);
        way.is_empty() && (own_flush || !op.claims.keys().any(flushing))
    }

    /// Takes an operation out of the queues and wakes who stood behind it.
    fn leave(&mut self, id: OpId) -> Option<Op> {
        let op = self.ops.remove(&id)?;
        if let Some(session) = self.sessions.get_mut(&op.session) {
            session.ops -= 1;
        }
        for ino in op.claims.keys() {
            let queue = self.queues.get_mut(ino).expect("queued");
            queue.retain(|other| *other != id);
            self.agenda.extend(queue.iter());
            if queue.is_empty() {
                self.queues.remove(ino);
            }
        }
        Some(op)
    }
}
