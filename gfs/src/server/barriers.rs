//! The lease core behind a mutex, with operations that wait for it.
//!
//! [`lease::Server`] decides; this module gives it a clock, wakes the operations it declares ready, and hands the
//! breaks it wants sent to the driver in `service`. See there for M2 and M3.

use super::locks::{self, Entered, Locks};
use super::notes::Inherited;
use consistency::lease::{self, Action, BeginError, Claim, LockNotes, ReclaimError};
use consistency::wire::lease::{Break, BreakAck, Grant, Mode};
use consistency::wire::lock::{Held, LocalOwner};
use consistency::wire::meta::{FlushFile, FsError};
use consistency::wire::notes::{Tell, Told};
use consistency::{Duration, Epoch, InodeNo, Instant, LeaseId, NodeId, OpId, OpSeq, SessionId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

/// How long the voters may take to note something: a leader that they do not follow is none.
const TOLD_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// How many grants of ended sessions are cleared away in one go: all others wait for that, some 0.5 ms.
const SWEEP_LEN: usize = 512;

#[cfg(test)]
mod tests;

/// Why an operation cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The session has ended.
    Session,
    /// This node does not lead (any more).
    Reign,
    /// The session has more unfinished operations than any sound client.
    TooManyOps,
}

/// See the module page.
#[derive(Debug)]
pub(super) struct Barriers {
    core: Mutex<Option<Core>>,
    /// The driver has something to do.
    work: Notify,
    /// The grace period or the reign is over.
    settled: Notify,
    /// There is something to tell the voters, or they have been told, or the reign is over (L10).
    notes: Notify,
    config: lease::Config,
    started: std::time::Instant,
}

/// Lease state of one reign.
#[derive(Debug)]
pub(super) struct Core {
    epoch: Epoch,
    /// This node.
    me: NodeId,
    now: Instant,
    leases: lease::Server,
    /// Notes for the voters, when it was looked last.
    notes: u64,
    locks: Locks,
    nodes: BTreeMap<SessionId, NodeId>,
    next_op: OpId,
    waiting: HashMap<OpId, oneshot::Sender<()>>,
    running: HashMap<(SessionId, OpSeq), OpId>,
    breaks: Vec<(SessionId, NodeId, Break)>,
    ended: Vec<SessionId>,
    /// M2: sessions whose end is being committed, and the operations that may go on after that.
    ending: BTreeSet<SessionId>,
    ready_later: Vec<OpId>,
    /// What no session has told by now, no session knows (L6).
    grace_over: bool,
    /// When the driver looks next by itself.
    due: Option<Instant>,
}

/// An operation's place in the lease core: its claims are met, and stay so until it is finished or dropped.
#[derive(Debug)]
pub(super) struct Barrier<'a> {
    barriers: &'a Barriers,
    epoch: Epoch,
    op: OpId,
    running: (SessionId, OpSeq),
    finished: bool,
}

/// What the driver has to do.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) breaks: Vec<(SessionId, NodeId, Break)>,
    pub(super) ended: Vec<SessionId>,
}

impl Barriers {
    pub(super) fn new(term: Duration, break_timeout: Duration) -> Self {
        Self {
            core: Mutex::new(None),
            work: Notify::new(),
            settled: Notify::new(),
            notes: Notify::new(),
            config: lease::Config {
                term,
                break_timeout,
                sweep_len: SWEEP_LEN,
            },
            started: std::time::Instant::now(),
        }
    }

    /// Returns the epoch of the reign, `None` if this node does not lead.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.lock().as_ref().map(|core| core.epoch)
    }

    /// Starts a reign of this node, `me`; `sessions` lived under the leader before and may still hold leases (L6). What
    /// one of them holds may be known; what this node's holds is told to the `voters` (L10), or
    /// to nobody.
    pub(super) fn start_reign(
        &self,
        epoch: Epoch,
        me: NodeId,
        sessions: &[(SessionId, NodeId)],
        inherited: Option<&Inherited>,
        voters: &[NodeId],
    ) {
        let now = self.now();
        let previous = sessions.iter().map(|(session, _)| *session);
        let mut leases = lease::Server::new(
            self.config,
            epoch,
            now,
            previous.clone().filter(|_| !missing!(NoGrace)),
        );
        if missing!(NoGrace) {
            previous
                .clone()
                .for_each(|old| leases.open_session(now, old));
        }
        if let Some((session, held)) = inherited {
            leases.inherit(*session, held);
        }
        if !voters.is_empty() {
            leases.tell_voters(me, voters);
        }
        if let Some((session, _)) = sessions.iter().find(|(_, node)| *node == me) {
            leases.own_session(*session);
        }
        let mut locks = Locks::new(previous);
        if let Some((session, held)) = inherited {
            locks.inherit(*session, LockNotes::of(held));
        }
        *self.lock() = Some(Core {
            epoch,
            me,
            now,
            leases,
            notes: 0,
            locks,
            nodes: sessions.iter().copied().collect(),
            next_op: OpId(0),
            waiting: HashMap::new(),
            running: HashMap::new(),
            breaks: Vec::new(),
            ended: Vec::new(),
            ending: BTreeSet::new(),
            ready_later: Vec::new(),
            grace_over: false,
            due: None,
        });
        self.work.notify_one();
    }

    /// Ends the reign: every operation that waits is told so.
    pub(super) fn end_reign(&self) {
        // It may be large, and takes its time to go, for which nobody shall wait.
        let _ended = self.lock().take();
        self.settled.notify_waiters();
        self.notes.notify_waiters();
    }

    /// Checks that `session` is alive and belongs to `from`.
    pub(super) fn check(&self, from: NodeId, session: SessionId) -> Result<(), Ended> {
        self.with_core(|core| core.check(from, session))
    }

    /// Takes a session that the log has opened; earlier ones of its node have ended with that. `new`: it was not there
    /// before.
    pub(super) fn open_session(
        &self,
        from: NodeId,
        session: SessionId,
        new: bool,
    ) -> Result<(), Ended> {
        self.with_core(|core| {
            // A late copy of the request that opened it changes nothing of a session: neither of one that lives, nor
            // of one that has ended here, whose end is on the way to the log. And what the log did one after the other
            // may be told in another order.
            let known = core.nodes.contains_key(&session);
            let mut sessions = core.nodes.iter();
            if (!new && !known) || sessions.any(|(id, node)| *node == from && *id > session) {
                return Err(Ended::Session);
            }
            let earlier: Vec<_> = core
                .nodes
                .iter()
                .filter(|(id, node)| **node == from && **id < session)
                .map(|(id, _)| *id)
                .collect();
            for old in earlier {
                core.leases.end_session(core.now, old);
                core.drop_session(old);
                core.locks.end_session(old);
            }
            core.nodes.insert(session, from);
            core.leases.open_session(core.now, session);
            if from == core.me {
                core.leases.own_session(session);
            } else {
                core.leases.look_after(from);
                self.notes.notify_waiters();
            }
            Ok(())
        })
    }

    pub(super) fn renew(&self, from: NodeId, session: SessionId) -> Result<bool, Ended> {
        self.with_core(|core| {
            core.check(from, session)?;
            let renewal = core
                .leases
                .renew(core.now, session)
                .map_err(|_| Ended::Session)?;
            Ok(renewal.reclaim)
        })
    }

    pub(super) fn reclaim(
        &self,
        from: NodeId,
        session: SessionId,
        epoch: Epoch,
        leases: &[(InodeNo, Mode)],
        last: bool,
    ) -> Result<Vec<Option<LeaseId>>, Ended> {
        self.with_core(|core| {
            core.check(from, session)?;
            core.leases
                .reclaim(core.now, session, epoch, leases, last)
                .map_err(|error| match error {
                    ReclaimError::SessionEnded => Ended::Session,
                    ReclaimError::OtherReign(_) => Ended::Reign,
                })
                .inspect(|_| {
                    if last {
                        core.locks.told(session);
                        self.settled.notify_waiters();
                    }
                })
        })
    }

    /// Takes the locks that a session held under the reign before (LK6).
    pub(super) fn reclaim_locks(
        &self,
        from: NodeId,
        session: SessionId,
        epoch: Epoch,
        locks: &[(InodeNo, LocalOwner, Held)],
    ) -> Result<(), Ended> {
        self.with_core(|core| {
            core.check_reign(from, session, epoch)?;
            for (ino, ..) in locks {
                core.leases.note_locks(*ino, session);
            }
            if core.locks.reclaim(session, locks) {
                Ok(())
            } else {
                tracing::error!(%session, "its locks are in the way of others: it must start anew");
                Err(Ended::Session)
            }
        })
    }

    /// L10: notes that a session may get locks on an inode; returns what has to be told before it may.
    pub(super) fn note_locks(
        &self,
        from: NodeId,
        session: SessionId,
        ino: InodeNo,
    ) -> Result<Option<(Epoch, u64)>, Ended> {
        self.with_core(|core| {
            core.check(from, session)?;
            core.leases.note_locks(ino, session);
            Ok(core.untold(session))
        })
    }

    /// Enters a request to lock.
    pub(super) fn lock_request(
        &self,
        from: NodeId,
        epoch: Epoch,
        request: locks::Request,
    ) -> Result<Entered, Ended> {
        self.with_core(|core| {
            core.check_reign(from, request.session, epoch)?;
            Ok(core.locks.enter(request))
        })
    }

    /// Waits until it is known what locks there are on an inode (LK6), or the reign is over; false if that takes longer.
    pub(super) async fn may_lock(
        &self,
        session: SessionId,
        ino: InodeNo,
        until: tokio::time::Instant,
    ) -> bool {
        let passed = async {
            loop {
                let mut settled = std::pin::pin!(self.settled.notified());
                settled.as_mut().enable();
                let waits = |core: &Core| !core.grace_over && !core.locks.may_enter(session, ino);
                if !self.lock().as_ref().is_some_and(waits) {
                    return;
                }
                settled.await;
            }
        };
        tokio::time::timeout_at(until, passed).await.is_ok()
    }

    /// Waits for something to tell a voter under a reign.
    pub(super) async fn next_tell(&self, reign: Epoch, voter: NodeId) -> Result<Tell, Ended> {
        loop {
            let mut news = std::pin::pin!(self.notes.notified());
            news.as_mut().enable();
            let tell = self.with_core(|core| {
                core.check_epoch(reign)?;
                Ok(core.leases.next_tell(voter))
            });
            match tell? {
                Some(tell) => return Ok(tell),
                None => news.await,
            }
        }
    }

    pub(super) fn handle_told(&self, reign: Epoch, voter: NodeId, told: Told) {
        self.if_leading(|core| {
            if core.epoch == reign {
                core.leases.handle_told(voter, told);
            }
        });
        self.notes.notify_waiters();
    }

    /// Waits until the voters have noted enough for a reply to this node's own session (L10).
    pub(super) async fn told(&self, (reign, number): (Epoch, u64)) -> Result<(), Ended> {
        let until = tokio::time::Instant::now() + TOLD_WITHIN;
        loop {
            let mut news = std::pin::pin!(self.notes.notified());
            news.as_mut().enable();
            let told = self.with_core(|core| {
                core.check_epoch(reign)?;
                Ok(core.leases.is_told(number))
            });
            if told? {
                return Ok(());
            }
            if tokio::time::timeout_at(until, news).await.is_err() {
                tracing::warn!("no majority notes what this node is to hold");
                return Err(Ended::Reign);
            }
        }
    }

    pub(super) fn release(
        &self,
        from: NodeId,
        session: SessionId,
        leases: &[(InodeNo, LeaseId)],
    ) -> Result<(), Ended> {
        self.with_core(|core| {
            core.check(from, session)?;
            core.leases.release(core.now, session, leases);
            Ok(())
        })
    }

    /// Enters an operation and waits until its claims are met.
    pub(super) async fn begin(
        &self,
        session: SessionId,
        seq: OpSeq,
        claims: Vec<Claim>,
    ) -> Result<Barrier<'_>, Ended> {
        let (barrier, ready) = {
            let mut guard = self.lock();
            let core = guard.as_mut().ok_or(Ended::Reign)?;
            if !core.nodes.contains_key(&session) {
                return Err(Ended::Session);
            }
            core.now = self.now();
            let op = core.next_op;
            core.next_op.0 += 1;
            let (sender, ready) = oneshot::channel();
            core.leases
                .begin(core.now, op, session, claims)
                .map_err(|error| match error {
                    BeginError::SessionEnded => Ended::Session,
                    BeginError::TooManyOps => Ended::TooManyOps,
                })?;
            core.waiting.insert(op, sender);
            core.running.insert((session, seq), op);
            self.drain(core);
            let barrier = Barrier {
                barriers: self,
                epoch: core.epoch,
                op,
                running: (session, seq),
                finished: false,
            };
            (barrier, ready)
        };
        match ready.await {
            Ok(()) => Ok(barrier),
            // The sender goes when the session ends, the operation is cancelled, or the reign is over.
            Err(_) if self.epoch() == Some(barrier.epoch) => Err(Ended::Session),
            Err(_) => Err(Ended::Reign),
        }
    }

    /// Abandons an operation that still waits, or the wait for a lock.
    pub(super) fn cancel(&self, from: NodeId, session: SessionId, seq: OpSeq) {
        self.if_leading(|core| {
            // Nobody ends the waits of another node.
            if core.check(from, session).is_err() {
                return;
            }
            if let Some(op) = core.running.get(&(session, seq)).copied()
                && core.waiting.remove(&op).is_some()
            {
                core.leases.cancel(core.now, op);
            }
            core.locks.cancel(session, seq);
        });
    }

    pub(super) fn handle_break_ack(&self, session: SessionId, ack: BreakAck) {
        self.if_leading(|core| core.leases.handle_break_ack(core.now, session, ack));
    }

    /// Returns whether the answer to a break is still waited for.
    pub(super) fn awaits(&self, session: SessionId, request: &Break) -> bool {
        let guard = self.lock();
        let unanswered = guard
            .as_ref()
            .and_then(|core| core.leases.unanswered(session, request.ino));
        unanswered.is_some_and(|open| open.lease == request.lease)
    }

    /// M2: the end of a session is committed; what waited for its leases may go on.
    pub(super) fn end_committed(&self, session: SessionId) {
        self.if_leading(|core| {
            core.ending.remove(&session);
            core.locks.end_session(session);
        });
        self.settled.notify_waiters();
    }

    /// Returns the live sessions.
    pub(super) fn sessions(&self) -> BTreeSet<SessionId> {
        self.lock()
            .as_ref()
            .map(|core| core.nodes.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Returns the nodes with a live session.
    pub(super) fn nodes_up(&self) -> BTreeSet<NodeId> {
        self.lock()
            .as_ref()
            .map(|core| core.nodes.values().copied().collect())
            .unwrap_or_default()
    }

    /// Takes the files out of a flush that the session does not hold exclusively; returns their places.
    pub(super) fn refuse_stale(
        &self,
        session: SessionId,
        files: &mut Vec<FlushFile>,
    ) -> Vec<usize> {
        let guard = self.lock();
        let holds = |ino| {
            guard
                .as_ref()
                .is_some_and(|core| core.leases.mode(session, ino) == Some(Mode::Exclusive))
        };
        let (mut place, mut stale) = (0, Vec::new());
        files.retain(|file| {
            let fresh = holds(file.ino);
            if !fresh {
                stale.push(place);
            }
            place += 1;
            fresh
        });
        stale
    }

    /// Returns whether a session holds all these inodes exclusively.
    pub(super) fn holds(
        &self,
        session: SessionId,
        mut inodes: impl Iterator<Item = InodeNo>,
    ) -> bool {
        self.lock().as_ref().is_some_and(|core| {
            inodes.all(|ino| core.leases.mode(session, ino) == Some(Mode::Exclusive))
        })
    }

    /// Returns the node of a session.
    pub(super) fn node_of(&self, session: SessionId) -> Option<NodeId> {
        self.lock().as_ref()?.nodes.get(&session).copied()
    }

    /// Runs `f` with the lease core locked, then carries out what it led to.
    pub(super) fn with_core<R>(
        &self,
        f: impl FnOnce(&mut Core) -> Result<R, Ended>,
    ) -> Result<R, Ended> {
        let mut guard = self.lock();
        let core = guard.as_mut().ok_or(Ended::Reign)?;
        core.now = self.now();
        let result = f(core);
        self.drain(core);
        result
    }

    /// As [`with_core`](Self::with_core), for what is void when there is no reign.
    fn if_leading(&self, f: impl FnOnce(&mut Core)) {
        if let Some(core) = self.lock().as_mut() {
            core.now = self.now();
            f(core);
            self.drain(core);
        }
    }

    /// Waits for something to do; lets leases expire meanwhile.
    pub(super) async fn next_work(&self) -> Work {
        loop {
            let timeout = {
                let mut guard = self.lock();
                match guard.as_mut() {
                    None => None,
                    Some(core) => {
                        core.now = self.now();
                        core.leases.handle_timeout(core.now);
                        self.drain(core);
                        if !core.breaks.is_empty() || !core.ended.is_empty() {
                            return Work {
                                breaks: std::mem::take(&mut core.breaks),
                                ended: std::mem::take(&mut core.ended),
                            };
                        }
                        core.leases.poll_timeout().map(|at| at.since(core.now))
                    }
                }
            };
            let woken = self.work.notified();
            match timeout {
                // One millisecond more than asked for: a timer that fires early would spin.
                Some(Duration(us)) => {
                    let pause = std::time::Duration::from_micros(us + 1_000);
                    // Either way the loop looks again.
                    drop(tokio::time::timeout(pause, woken).await);
                }
                None => woken.await,
            }
        }
    }

    /// Hands on what the lease core wants done.
    fn drain(&self, core: &mut Core) {
        let mut wake = false;
        while let Some(action) = core.leases.poll_action() {
            tracing::trace!(?action, "lease core");
            match action {
                Action::Break(session, request) => {
                    if let Some(node) = core.nodes.get(&session) {
                        core.breaks.push((session, *node, request));
                        wake = true;
                    }
                }
                Action::Ready(op) => core.ready_later.push(op),
                Action::Ended(session) => {
                    core.drop_session(session);
                    core.ending.insert(session);
                    core.ended.push(session);
                    wake = true;
                }
                // Dropping the sender tells the one that waits.
                Action::Dropped(op) => drop(core.waiting.remove(&op)),
                // The reaper looks at all nameless inodes from time to time.
                Action::Forgotten(_) => {}
                Action::GraceOver => {
                    core.grace_over = true;
                    self.settled.notify_waiters();
                }
            }
        }
        if core.ending.is_empty() {
            for op in std::mem::take(&mut core.ready_later) {
                if let Some(sender) = core.waiting.remove(&op) {
                    // A receiver that is gone cancels the operation when its barrier drops.
                    let _gone = sender.send(());
                }
            }
        }
        let notes = core.leases.notes();
        if notes != core.notes {
            core.notes = notes;
            self.notes.notify_waiters();
        }
        let due = core.leases.poll_timeout();
        if wake || due != core.due {
            core.due = due;
            self.work.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Core>> {
        self.core.lock().expect("no holder panics")
    }

    /// Returns this node's own time, which leases count by.
    pub(super) fn now(&self) -> Instant {
        Instant(u64::try_from(self.started.elapsed().as_micros()).expect("not that old"))
    }
}

impl Core {
    /// Returns whether a session may know the inode.
    pub(super) fn known(&self, ino: InodeNo) -> bool {
        !self.grace_over || self.leases.known(ino)
    }

    /// Returns what the session holds.
    pub(super) fn mode(&self, session: SessionId, ino: InodeNo) -> Option<Mode> {
        self.leases.mode(session, ino)
    }

    /// Returns whether another session is the master of the inode.
    pub(super) fn held_elsewhere(&self, session: SessionId, ino: InodeNo) -> bool {
        self.leases.held_elsewhere(session, ino)
    }

    /// Returns what has to be told before a reply to a session may go out (L10).
    pub(super) fn untold(&self, session: SessionId) -> Option<(Epoch, u64)> {
        Some((self.epoch, self.leases.untold(session)?))
    }

    /// Ends an operation with grants.
    pub(super) fn finish(
        &mut self,
        barrier: &mut Barrier<'_>,
        wants: &[(InodeNo, Mode)],
    ) -> Vec<Option<Grant>> {
        if barrier.epoch != self.epoch || std::mem::replace(&mut barrier.finished, true) {
            return vec![None; wants.len()];
        }
        self.running.remove(&barrier.running);
        self.leases.finish(barrier.op, wants)
    }

    fn check(&self, from: NodeId, session: SessionId) -> Result<(), Ended> {
        match self.nodes.get(&session) {
            Some(node) if *node == from => Ok(()),
            _ => Err(Ended::Session),
        }
    }

    fn check_reign(&self, from: NodeId, session: SessionId, epoch: Epoch) -> Result<(), Ended> {
        self.check(from, session)?;
        self.check_epoch(epoch)
    }

    fn check_epoch(&self, epoch: Epoch) -> Result<(), Ended> {
        if epoch == self.epoch {
            Ok(())
        } else {
            Err(Ended::Reign)
        }
    }

    fn drop_session(&mut self, session: SessionId) {
        self.nodes.remove(&session);
        self.running.retain(|(of, _), _| *of != session);
    }
}

impl Barrier<'_> {
    /// Returns the session whose operation this is.
    pub(super) const fn session(&self) -> SessionId {
        self.running.0
    }
}

impl Drop for Barrier<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let (op, running, epoch) = (self.op, self.running, self.epoch);
        self.barriers.if_leading(|core| {
            if core.epoch == epoch {
                core.waiting.remove(&op);
                if core.running.get(&running) == Some(&op) {
                    core.running.remove(&running);
                }
                core.leases.cancel(core.now, op);
            }
        });
    }
}

/// Puts the refusals of [`Barriers::refuse_stale`] back in their places.
pub(super) fn with_stale<T>(
    done: Vec<Result<T, FsError>>,
    stale: &[usize],
) -> Vec<Result<T, FsError>> {
    let mut all = done;
    for place in stale {
        all.insert(*place, Err(FsError::Stale));
    }
    all
}
