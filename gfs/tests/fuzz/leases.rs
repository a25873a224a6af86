//! The lease core of the leader, driven as the metadata service does, by clients that keep to nothing.

use crate::dice::{Dice, cases};
use consistency::lease::{Action, Claim, Config, Need, Server};
use consistency::wire::lease::{BreakAck, Mode, Scope};
use consistency::wire::meta::Name;
use consistency::{Duration, Epoch, InodeNo, Instant, LeaseId, OpId, SessionId};
use std::collections::BTreeSet;

const REQUESTS_PER_SERVER: u64 = 500;
const MODES: &[Mode] = &[Mode::Known, Mode::Shared, Mode::Exclusive];
const TERM: Duration = Duration(1_000_000);

fn need(dice: &mut Dice) -> Need {
    match dice.below(8) {
        0 => Need::Peek,
        1 => Need::Share,
        2 | 3 => Need::Exclusive,
        4 => Need::Flush,
        5 => Need::Change(Scope::Attr),
        6 => {
            let name = |_| Name::new(dice.pick(&["a", "b"])).expect("valid");
            Need::Change(Scope::Names((0..2).map(name).collect()))
        }
        _ => Need::Change(dice.pick(&[Scope::Data, Scope::All])),
    }
}

struct World {
    server: Server,
    now: Instant,
    next_op: u64,
    next_session: u64,
    /// Operations that may be finished, and all that have begun.
    ready: BTreeSet<OpId>,
    begun: Vec<OpId>,
    /// Breaks sent, and the names of grants heard of.
    breaks: Vec<(SessionId, InodeNo, LeaseId)>,
    leases: Vec<LeaseId>,
}

impl World {
    fn new(dice: &mut Dice) -> Self {
        let config = Config {
            term: TERM,
            break_timeout: Duration(300_000),
            sweep_len: 1,
        };
        let previous = (1..=dice.below(3)).map(SessionId);
        let mut world = Self {
            server: Server::new(config, Epoch(1), Instant(0), previous),
            now: Instant(0),
            next_op: 0,
            next_session: 4,
            ready: BTreeSet::new(),
            begun: vec![OpId(0)],
            breaks: Vec::new(),
            leases: vec![LeaseId(0)],
        };
        for session in 1..=3 {
            world.server.open_session(world.now, SessionId(session));
        }
        world
    }

    /// Takes what the core wants done.
    fn drain(&mut self) {
        while let Some(action) = self.server.poll_action() {
            match action {
                Action::Break(session, request) => {
                    let asked = self.server.unanswered(session, request.ino).is_some();
                    self.breaks.push((session, request.ino, request.lease));
                    self.leases.push(request.lease);
                    assert!(asked || self.server.mode(session, request.ino).is_none());
                }
                Action::Ready(op) => {
                    assert!(self.ready.insert(op), "{op:?} became ready twice");
                }
                Action::Dropped(op) => {
                    assert!(!self.ready.contains(&op), "{op:?} was dropped when ready");
                }
                Action::Ended(_) | Action::Forgotten(_) | Action::GraceOver => {}
            }
        }
    }

    fn finish(&mut self, op: OpId, wants: &[(InodeNo, Mode)]) {
        self.ready.remove(&op);
        let grants = self.server.finish(op, wants);
        assert_eq!(grants.len(), wants.len());
        self.leases
            .extend(grants.into_iter().flatten().map(|grant| grant.lease));
    }

    fn step(&mut self, dice: &mut Dice) {
        let ino = |dice: &mut Dice| match dice.below(20) {
            0 => InodeNo(dice.u64()),
            _ => InodeNo(1 + dice.below(4)),
        };
        let session = match dice.below(20) {
            0 => SessionId(dice.u64()),
            _ => SessionId(1 + dice.below(self.next_session)),
        };
        self.now = Instant(self.now.0 + dice.pick(&[0, 1, 1_000, 30_000]));
        match dice.below(16) {
            0..=4 => {
                self.next_op += 1;
                let op = OpId(self.next_op);
                let claims = (0..dice.below(4)).map(|_| Claim {
                    ino: ino(dice),
                    need: need(dice),
                });
                let claims = claims.collect();
                if self.server.begin(self.now, op, session, claims).is_ok() {
                    self.begun.push(op);
                }
            }
            5 | 6 => {
                if let Some(op) = self.ready.first().copied() {
                    let wants: Vec<_> = (0..dice.below(4))
                        .map(|_| (ino(dice), dice.pick(MODES)))
                        .collect();
                    self.finish(op, &wants);
                }
            }
            7 => {
                let op = dice.pick(&self.begun);
                self.ready.remove(&op);
                self.server.cancel(self.now, op);
            }
            8..=10 => {
                let (to, ino, lease) = match self.breaks.len() {
                    0 => (session, ino(dice), dice.pick(&self.leases)),
                    len => self.breaks[dice.len(len as u64)],
                };
                let session = if dice.one_in(8) { session } else { to };
                let lease = if dice.one_in(8) {
                    LeaseId(dice.u64())
                } else {
                    lease
                };
                let kept = dice.pick(MODES);
                let ack = BreakAck { ino, lease, kept };
                self.server.handle_break_ack(self.now, session, ack);
            }
            11 => {
                let leases: Vec<_> = (0..dice.below(4))
                    .map(|_| (ino(dice), dice.pick(&self.leases)))
                    .collect();
                self.server.release(self.now, session, &leases);
            }
            12 => {
                let leases: Vec<_> = (0..dice.below(4))
                    .map(|_| (ino(dice), dice.pick(MODES)))
                    .collect();
                let reign = Epoch(if dice.one_in(5) { dice.u64() } else { 1 });
                // Refused or not: neither may harm.
                drop(
                    self.server
                        .reclaim(self.now, session, reign, &leases, dice.one_in(2)),
                );
            }
            13 => drop(self.server.renew(self.now, session)),
            14 => self.server.handle_timeout(self.now),
            _ => {
                if dice.one_in(3) {
                    self.server.end_session(self.now, session);
                    self.next_session += 1;
                    let opened = SessionId(self.next_session);
                    self.server.open_session(self.now, opened);
                }
            }
        }
        self.drain();
        for ino in (1..=4).map(InodeNo) {
            let sessions = (1..=self.next_session).map(SessionId);
            let masters = sessions
                .filter(|session| self.server.mode(*session, ino) == Some(Mode::Exclusive))
                .count();
            assert!(masters <= 1, "{masters} masters of inode {ino} (L1)");
        }
    }

    /// After the term of all sessions nothing waits for anybody.
    fn end(mut self) {
        self.now = self.now + TERM + TERM;
        self.server.handle_timeout(self.now);
        self.drain();
        while let Some(op) = self.ready.first().copied() {
            self.finish(op, &[]);
            self.drain();
        }
        for _step in 0..1_000 {
            self.server.handle_timeout(self.now);
        }
        assert_eq!(self.server.poll_timeout(), None, "something still waits");
        for ino in (1..=4).map(InodeNo) {
            assert!(
                !self.server.known(ino),
                "{ino} is held by nobody that lives"
            );
        }
    }
}

#[test]
fn clients_that_keep_to_nothing() {
    let mut dice = Dice::new("clients_that_keep_to_nothing");
    let mut left = cases(100_000);
    while left > 0 {
        let mut world = World::new(&mut dice);
        for _ in 0..REQUESTS_PER_SERVER.min(left) {
            world.step(&mut dice);
        }
        world.end();
        left = left.saturating_sub(REQUESTS_PER_SERVER);
    }
}
