//! The lock core of the leader, asked for anything, and requests to lock that were spoilt on their way.

use crate::dice::{Dice, cases};
use consistency::lock::{Acquired, Server, WaitId};
use consistency::wire::lock::{
    Held, LocalOwner, LockKind, LockMode, LockOp, LockOwner, LockRange, RANGE_END,
};
use consistency::wire::request::MetaRequest;
use consistency::wire::{decode, encode};
use consistency::{Epoch, InodeNo, OpSeq, SessionId};
use std::collections::BTreeSet;

const REQUESTS_PER_SERVER: u64 = 500;
const SESSIONS: u64 = 3;

fn byte(dice: &mut Dice) -> u64 {
    match dice.below(10) {
        0 => dice.u64(),
        1 => dice.pick(&[RANGE_END - 1, RANGE_END, RANGE_END + 1, u64::MAX]),
        _ => dice.below(12),
    }
}

fn held(dice: &mut Dice) -> Held {
    Held {
        range: range(dice),
        mode: dice.pick(&[LockMode::Read, LockMode::Write]),
        pid: dice.u32(),
    }
}

fn range(dice: &mut Dice) -> LockRange {
    let (start, end) = (byte(dice), byte(dice));
    if dice.one_in(8) {
        LockRange { start, end }
    } else {
        LockRange {
            start: start.min(end),
            end: start.max(end),
        }
    }
}

fn ino(dice: &mut Dice) -> InodeNo {
    match dice.below(20) {
        0 => InodeNo(dice.u64()),
        _ => InodeNo(1 + dice.below(2)),
    }
}

fn owner(dice: &mut Dice) -> LocalOwner {
    LocalOwner {
        kind: dice.pick(&[LockKind::Posix, LockKind::Flock]),
        id: dice.below(3),
    }
}

fn op(dice: &mut Dice) -> LockOp {
    match dice.below(8) {
        0 => LockOp::Test(held(dice)),
        1..=5 => LockOp::Acquire {
            lock: held(dice),
            wait: dice.one_in(2),
        },
        _ => LockOp::Clear(range(dice)),
    }
}

fn request(dice: &mut Dice) -> MetaRequest {
    let session = SessionId(1 + dice.below(SESSIONS));
    if dice.one_in(20) {
        return MetaRequest::ReclaimLocks {
            session,
            epoch: Epoch(1),
            locks: (0..dice.below(4))
                .map(|_| (ino(dice), owner(dice), held(dice)))
                .collect(),
        };
    }
    MetaRequest::Lock {
        session,
        // Numbers are used again by who keeps to nothing.
        seq: OpSeq(dice.below(40)),
        attempt: dice.u32(),
        epoch: Epoch(1),
        ino: ino(dice),
        owner: owner(dice),
        op: op(dice),
    }
}

#[derive(Default)]
struct World {
    server: Server,
    /// Whom the core has told to wait, and not yet granted.
    waiting: BTreeSet<WaitId>,
    /// Whoever was heard of.
    owners: BTreeSet<(InodeNo, LockOwner)>,
}

impl World {
    /// Does what the leader does with a request.
    fn handle(&mut self, request: MetaRequest) {
        match request {
            MetaRequest::Lock {
                session,
                seq,
                ino,
                owner,
                op,
                ..
            } => {
                let owner = LockOwner {
                    session,
                    local: owner,
                };
                self.owners.insert((ino, owner));
                let id = (session, seq);
                match op {
                    LockOp::Test(lock) => {
                        let _found = self.server.test(ino, owner, &lock);
                    }
                    LockOp::Acquire { lock, wait } => {
                        let wait = wait.then_some(id);
                        if self.server.acquire(ino, owner, lock, wait) == Ok(Acquired::Waiting) {
                            self.waiting.insert(id);
                        }
                    }
                    // Refused or not: neither may harm.
                    LockOp::Clear(range) => {
                        let _refused = self.server.clear(ino, owner, range);
                    }
                }
            }
            MetaRequest::ReclaimLocks { session, locks, .. } => {
                for (ino, local, lock) in locks {
                    let owner = LockOwner { session, local };
                    self.owners.insert((ino, owner));
                    let _refused = self.server.reclaim(ino, owner, lock);
                }
            }
            MetaRequest::Cancel { session, seq } => {
                let waited = self.waiting.remove(&(session, seq));
                assert_eq!(self.server.cancel((session, seq)), waited);
            }
            _ => {}
        }
        self.drain();
    }

    fn end_session(&mut self, session: SessionId) {
        self.server.end_session(session);
        self.waiting.retain(|(of, _)| *of != session);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(id) = self.server.poll_granted() {
            assert!(self.waiting.remove(&id), "{id:?} is granted unasked");
        }
    }

    /// LK1 and LK2
    fn check(&self) {
        for &(ino, owner) in &self.owners {
            let held = self.server.held(ino, owner).1;
            for pair in held.windows(2) {
                assert!(pair[0].range.end < pair[1].range.start, "{held:?} overlap");
            }
            for lock in held {
                assert!(lock.range.is_valid(), "{lock:?} is no range");
                let in_the_way = self.server.test(ino, owner, lock);
                assert_eq!(in_the_way, None, "with {lock:?} of {owner:?}");
            }
        }
    }

    fn end(mut self) {
        let sessions: BTreeSet<_> = self.owners.iter().map(|(_, owner)| owner.session).collect();
        for session in sessions {
            self.end_session(session);
        }
        assert!(self.waiting.is_empty(), "{:?} still wait", self.waiting);
        for (ino, owner) in self.owners {
            assert_eq!(self.server.held(ino, owner).1, []);
        }
    }
}

fn run(test: &str, spoilt: bool) {
    let mut dice = Dice::new(test);
    let mut left = cases(100_000);
    while left > 0 {
        let mut world = World::default();
        for _ in 0..REQUESTS_PER_SERVER.min(left) {
            match dice.below(30) {
                0 => world.end_session(SessionId(1 + dice.below(SESSIONS))),
                1 => world.handle(MetaRequest::Cancel {
                    session: SessionId(1 + dice.below(SESSIONS)),
                    seq: OpSeq(dice.below(40)),
                }),
                _ => {
                    let mut bytes = encode(&request(&mut dice));
                    if spoilt {
                        dice.spoil(&mut bytes);
                    }
                    if let Ok(request) = decode::<MetaRequest>(&bytes) {
                        world.handle(request);
                    }
                }
            }
            world.check();
        }
        world.end();
        left = left.saturating_sub(REQUESTS_PER_SERVER);
    }
}

#[test]
fn programs_that_lock_anything() {
    run("programs_that_lock_anything", false);
}

#[test]
fn spoilt_lock_requests() {
    run("spoilt_lock_requests", true);
}
