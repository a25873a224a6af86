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
mod ended;
mod granting;
mod grants;
mod inherit;
mod ops;
mod queue;
mod telling;
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
use grants::Grants;
use inherit::Inherited;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
pub use telling::LockNotes;
use telling::Telling;

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
    /// How many grants of ended sessions are cleared away in one step (L11).
    pub sweep_len: usize,
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
    /// Sessions of the last reign that have not told what they hold.
    reclaiming: BTreeSet<SessionId>,
    /// Those of them of which it is not known otherwise either; the grace lasts while there are any (L6).
    unknown: BTreeSet<SessionId>,
    /// What the voters had noted of one of them.
    inherited: Option<Inherited>,
    /// L10; `None` while there is nobody to tell.
    telling: Option<Telling>,
    grants: Grants,
    /// When unanswered breaks are overdue, in order.
    overdue: BTreeSet<(Instant, SessionId, InodeNo)>,
    /// When the next step clears away what ended sessions held.
    sweep_at: Option<Instant>,
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
    /// sessions that may live under the last one: until each has reclaimed or ended nothing runs but what writes back
    /// under an exclusive grant that was told (L6).
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
            unknown: BTreeSet::new(),
            inherited: None,
            telling: None,
            grants: Grants::default(),
            overdue: BTreeSet::new(),
            sweep_at: None,
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
            server.unknown.insert(session);
        }
        if server.reclaiming.is_empty() {
            server.actions.push_back(Action::GraceOver);
        }
        server
    }

    /// Takes a new session; one that is known already stays as it is, also if its term is over by now.
    pub fn open_session(&mut self, now: Instant, session: SessionId) {
        let known = self.sessions.contains_key(&session);
        self.tick(now);
        if !known {
            let again = self.grants.has_ended(session);
            assert!(!again, "session {session} begins after its end");
            let expires_at = self.now + self.config.term;
            self.expiries.insert((expires_at, session));
            let new = Session {
                expires_at,
                condemned: false,
                ops: 0,
            };
            self.sessions.insert(session, new);
        }
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

    /// Ends a session: the driver has recorded it. Its grants go (L11), its operations that are not ready are dropped; those
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
            if open {
                self.correct_notes(ino, session, mode);
            }
            if let Some(held) = self.grants.get(ino, session) {
                return Some(held.lease);
            }
            if !open || self.conflicts(ino, session, mode) {
                return None;
            }
            let lease = self.fresh_lease();
            self.grants.insert(ino, session, lease, mode);
            self.note(ino, session, None);
            Some(lease)
        });
        let names = names.collect();
        // Of those that wait, some need no more than this.
        self.agenda.extend(self.ops.keys());
        self.run();
        if open && last {
            self.extend(session);
            self.drop_notes(session);
            self.reclaimed(session);
            self.note_complete(session);
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
        if (held.lease == ack.lease || any_name)
            && let Some(breaking) = held.breaking.take()
        {
            let before = held.mode;
            held.mode = before.min(ack.kept).min(breaking.demand.keep);
            self.note(ack.ino, session, Some(before));
            self.overdue.remove(&(breaking.deadline, session, ack.ino));
            self.clear_way(ack.ino, session, &breaking.ops);
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
        expiry.into_iter().chain(overdue).chain(self.sweep_at).min()
    }

    /// Ends sessions whose time is over, and clears away a part of what ended ones held.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tick(now);
        if self.sweep_at.is_some_and(|at| at <= self.now) {
            self.sweep();
        }
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

    /// What a session holds is known, or nothing.
    fn end_grace_of(&mut self, session: SessionId) {
        if self.unknown.remove(&session) && self.unknown.is_empty() {
            self.agenda.extend(self.ops.keys());
        }
    }

    /// A session has told everything, or has ended.
    fn reclaimed(&mut self, session: SessionId) {
        self.end_grace_of(session);
        if self.reclaiming.remove(&session) && self.reclaiming.is_empty() {
            self.actions.push_back(Action::GraceOver);
        }
    }

    fn in_grace(&self) -> bool {
        // L6
        !self.unknown.is_empty() && !self.mutation.is(Mutant::NoGrace)
    }
}
