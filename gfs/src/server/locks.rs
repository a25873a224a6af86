//! The locks of programs, for the time of one reign: the lock core with those who wait for it.
//!
//! [`lock::Server`] decides. A request that waits is a call that is answered when it is granted, or after [`POLL`] by
//! `Waiting`: then it is asked again and joins its place in the queue.
//!
//! * **LK6 reign** - a request is refused unless it means this reign, and waits until every session of the reign
//!   before has told its locks or has ended; but not for that of the last leader's node where the voters have noted that
//!   it can have none on that inode (L10). The other half is in `client::locks`.
//! * **LK7 once** - of a request that was sent more than once only a younger copy than the one that was answered is
//!   carried out.

use consistency::lease::LockNotes;
use consistency::lock::{Acquired, Refused, Server, WaitId};
use consistency::wire::lock::{Held, LocalOwner, LockOp, LockOwner, LockReply};
use consistency::wire::meta::FsError;
use consistency::{InodeNo, OpSeq, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a request waits for its lock before it is asked again; shorter than a client waits for one answer.
pub(super) const POLL: Duration = Duration::from_secs(5);
/// Requests of one session that were sent repeatedly and are remembered (LK7): copies are late by seconds at most.
const REPEATED_MAX: usize = 4096;

pub(super) type Answer = Result<LockReply, FsError>;

/// A request to lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) session: SessionId,
    pub(super) seq: OpSeq,
    pub(super) attempt: u32,
    pub(super) ino: InodeNo,
    pub(super) owner: LocalOwner,
    pub(super) op: LockOp,
}

/// What becomes of it.
#[derive(Debug)]
pub(super) enum Entered {
    Answered(Answer),
    Waits(oneshot::Receiver<Answer>),
}

#[derive(Debug, Default)]
pub(super) struct Locks {
    table: Server,
    calls: BTreeMap<WaitId, Call>,
    repeated: BTreeMap<SessionId, BTreeMap<OpSeq, u32>>,
    /// Sessions of the reign before that may still tell what they hold.
    telling: BTreeSet<SessionId>,
    /// What is known of one of them.
    noted: Option<(SessionId, LockNotes)>,
}

/// A call that waits.
#[derive(Debug)]
struct Call {
    request: Request,
    answer: oneshot::Sender<Answer>,
}

impl Locks {
    pub(super) fn new(earlier: impl Iterator<Item = SessionId>) -> Self {
        Self {
            telling: earlier.collect(),
            ..Self::default()
        }
    }

    /// Takes what voters have noted of a session of the reign before.
    pub(super) fn inherit(&mut self, session: SessionId, noted: LockNotes) {
        self.noted = Some((session, noted));
    }

    /// LK6: returns whether a request of a session can be decided by now: nobody can still tell of locks on that inode, and
    /// it has told its own.
    pub(super) fn may_enter(&self, session: SessionId, ino: InodeNo) -> bool {
        self.telling.iter().all(|telling| {
            let noted = self.noted.as_ref().filter(|(noted, _)| noted == telling);
            *telling != session && noted.is_some_and(|(_, noted)| !noted.may_be_locked(ino))
        })
    }

    /// Carries a request out, or lets it wait. It must be that it may enter.
    pub(super) fn enter(&mut self, request: Request) -> Entered {
        let id = (request.session, request.seq);
        let answered = self.repeated.get(&request.session);
        let answered = answered.and_then(|repeated| repeated.get(&request.seq));
        let waiting = self.calls.get(&id).map(|call| &call.request.attempt);
        // LK7: nobody listens to this answer any more.
        if answered.max(waiting) >= Some(&request.attempt) {
            return Entered::Answered(Ok(LockReply::Waiting));
        }
        let owner = LockOwner {
            session: request.session,
            local: request.owner,
        };
        let outcome = match request.op {
            LockOp::Test(lock) if !lock.range.is_valid() => Err(FsError::Invalid),
            LockOp::Test(lock) => {
                let found = self.table.test(request.ino, owner, &lock);
                Ok(LockReply::InTheWay(found.map(|(_, held)| held)))
            }
            LockOp::Acquire { lock, wait } => {
                let acquired = self
                    .table
                    .acquire(request.ino, owner, lock, wait.then_some(id));
                match acquired {
                    Ok(Acquired::Now) => Ok(self.done(&request)),
                    Ok(Acquired::Waiting) => {
                        let (answer, waits) = oneshot::channel();
                        self.calls.insert(id, Call { request, answer });
                        self.wake();
                        return Entered::Waits(waits);
                    }
                    Err(refused) => Err(refusal(refused)),
                }
            }
            LockOp::Clear(range) => match self.table.clear(request.ino, owner, range) {
                Ok(()) => Ok(self.done(&request)),
                Err(refused) => Err(refusal(refused)),
            },
        };
        self.answered(&request);
        self.wake();
        Entered::Answered(outcome)
    }

    /// Takes a waiter out of the queue.
    pub(super) fn cancel(&mut self, session: SessionId, seq: OpSeq) {
        let id = (session, seq);
        if self.table.cancel(id) {
            self.answer(id, Err(FsError::Interrupted));
        }
    }

    /// Takes locks of the reign before. False: they are in the way of others, or cannot have been granted.
    pub(super) fn reclaim(
        &mut self,
        session: SessionId,
        locks: &[(InodeNo, LocalOwner, Held)],
    ) -> bool {
        // A late copy.
        if !self.telling.contains(&session) {
            return true;
        }
        locks.iter().all(|&(ino, local, lock)| {
            let owner = LockOwner { session, local };
            self.table.reclaim(ino, owner, lock).is_ok()
        })
    }

    /// A session has told everything.
    pub(super) fn told(&mut self, session: SessionId) {
        self.telling.remove(&session);
    }

    /// LK5
    pub(super) fn end_session(&mut self, session: SessionId) {
        self.telling.remove(&session);
        self.repeated.remove(&session);
        self.calls.retain(|(of, _), _| *of != session);
        self.table.end_session(session);
        self.wake();
    }

    fn wake(&mut self) {
        while let Some(id) = self.table.poll_granted() {
            let reply = self.calls.get(&id).map(|call| self.done(&call.request));
            if let Some(reply) = reply {
                self.answer(id, Ok(reply));
            }
        }
    }

    fn answer(&mut self, id: WaitId, answer: Answer) {
        if let Some(call) = self.calls.remove(&id) {
            self.answered(&call.request);
            // Whoever does not listen any more asks again under the same number.
            let _gone = call.answer.send(answer);
        }
    }

    fn done(&self, request: &Request) -> LockReply {
        let owner = LockOwner {
            session: request.session,
            local: request.owner,
        };
        let (version, held) = self.table.held(request.ino, owner);
        LockReply::Done {
            version,
            held: held.to_vec(),
        }
    }

    fn answered(&mut self, request: &Request) {
        // What was sent once has no copies.
        if request.attempt > 1 {
            let repeated = self.repeated.entry(request.session).or_default();
            repeated.insert(request.seq, request.attempt);
            if repeated.len() > REPEATED_MAX {
                repeated.pop_first();
            }
        }
    }
}

const fn refusal(refused: Refused) -> FsError {
    match refused {
        Refused::InTheWay => FsError::Locked,
        Refused::Deadlock => FsError::Deadlock,
        Refused::TooMany => FsError::TooManyLocks,
        Refused::Invalid => FsError::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::lock::{LockKind, LockMode, LockRange};

    const LOCK: Held = Held {
        range: LockRange { start: 0, end: 9 },
        mode: LockMode::Write,
        pid: 1,
    };

    fn request(session: u64, seq: u64, attempt: u32, op: LockOp) -> Request {
        Request {
            session: SessionId(session),
            seq: OpSeq(seq),
            attempt,
            ino: InodeNo(7),
            owner: LocalOwner {
                kind: LockKind::Posix,
                id: 1,
            },
            op,
        }
    }

    const ACQUIRE: LockOp = LockOp::Acquire {
        lock: LOCK,
        wait: true,
    };

    #[track_caller]
    fn check(entered: Entered, holds: bool) {
        let Entered::Answered(Ok(LockReply::Done { held, .. })) = entered else {
            panic!("{entered:?} is not done");
        };
        assert_eq!(!held.is_empty(), holds);
    }

    #[track_caller]
    fn waits(entered: Entered) -> oneshot::Receiver<Answer> {
        match entered {
            Entered::Waits(answer) => answer,
            Entered::Answered(answer) => panic!("{answer:?} though it must wait"),
        }
    }

    #[test]
    fn lk7_a_late_copy_does_nothing() {
        let mut locks = Locks::default();
        check(locks.enter(request(1, 1, 1, ACQUIRE)), true);
        // The reply is lost.
        check(locks.enter(request(1, 1, 2, ACQUIRE)), true);
        check(
            locks.enter(request(1, 2, 1, LockOp::Clear(LockRange::ALL))),
            false,
        );
        let late = locks.enter(request(1, 1, 1, ACQUIRE));
        assert!(matches!(late, Entered::Answered(Ok(LockReply::Waiting))));
        check(locks.enter(request(2, 1, 1, ACQUIRE)), true);
    }

    #[test]
    fn a_repeated_request_joins_its_place_in_the_queue() {
        let mut locks = Locks::default();
        check(locks.enter(request(1, 1, 1, ACQUIRE)), true);
        let mut first = waits(locks.enter(request(2, 1, 1, ACQUIRE)));
        let mut second = waits(locks.enter(request(3, 1, 1, ACQUIRE)));
        let mut again = waits(locks.enter(request(2, 1, 2, ACQUIRE)));
        assert!(first.try_recv().is_err());
        check(
            locks.enter(request(1, 2, 1, LockOp::Clear(LockRange::ALL))),
            false,
        );
        assert!(matches!(again.try_recv(), Ok(Ok(LockReply::Done { .. }))));
        assert!(second.try_recv().is_err());
        locks.cancel(SessionId(3), OpSeq(1));
        assert_eq!(second.try_recv(), Ok(Err(FsError::Interrupted)));
    }

    #[test]
    fn lk6_who_may_be_lost_is_waited_for_where_voters_have_noted_locks() {
        use consistency::wire::lease::Mode;
        // As a leader tells voters: all is noted, and inode 7.
        let held = [1 << 63, 1 << 63 | 7, 9].map(|ino| (InodeNo(ino), Mode::Shared));
        let locks = |held: &[(InodeNo, Mode)]| {
            let mut locks = Locks::new([SessionId(1), SessionId(2)].into_iter());
            locks.inherit(SessionId(1), LockNotes::of(held));
            locks
        };
        let may = |locks: &Locks, session, ino| locks.may_enter(SessionId(session), InodeNo(ino));
        let mut noted = locks(&held);
        assert!(!may(&noted, 3, 9), "session 2 has not told");
        noted.told(SessionId(2));
        assert!(may(&noted, 3, 9) && may(&noted, 2, 9));
        assert!(!may(&noted, 3, 7), "session 1 may have locks there");
        assert!(!may(&noted, 1, 9), "it has not told its own");
        noted.end_session(SessionId(1));
        assert!(may(&noted, 3, 7));
        // Of a leader that notes no locks nothing is known.
        let mut unknown = locks(&held[2..]);
        unknown.told(SessionId(2));
        assert!(!may(&unknown, 3, 8));
        unknown.told(SessionId(1));
        assert!(may(&unknown, 3, 8));
    }

    #[test]
    fn lk6_only_sessions_of_the_reign_before_tell_and_only_until_they_have() {
        let mine = |session| {
            let Request { ino, owner, .. } = request(session, 1, 1, ACQUIRE);
            vec![(ino, owner, LOCK)]
        };
        let mut locks = Locks::new([SessionId(1), SessionId(2)].into_iter());
        assert!(locks.reclaim(SessionId(1), &mine(1)));
        assert!(!locks.reclaim(SessionId(2), &mine(2)));
        locks.told(SessionId(1));
        check(
            locks.enter(request(1, 1, 1, LockOp::Clear(LockRange::ALL))),
            false,
        );
        assert!(locks.reclaim(SessionId(1), &mine(1)));
        check(locks.enter(request(3, 1, 1, ACQUIRE)), true);
    }
}
