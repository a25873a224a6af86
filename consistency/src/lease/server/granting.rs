//! Decides what a finished operation's reply may carry, and takes grants back.

use super::queue::Need;
use super::{Action, Claimed, Op, Server, State};
use crate::lease::mutant::Mutant;
use crate::wire::lease::{Grant, Mode};
use crate::{InodeNo, LeaseId, SessionId};
use std::collections::BTreeSet;

impl Server {
    pub(super) fn fresh_lease(&mut self) -> LeaseId {
        self.last_lease.0 += 1;
        self.last_lease
    }

    /// Grants to a finished operation what its reply may carry; the operation has left the queues.
    pub(super) fn grant(&mut self, op: &Op, ino: InodeNo, want: Mode) -> Option<Grant> {
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
        self.note(ino, op.session, held);
        self.granted(ino, op.session);
        // The reply says what its facts are good for. What the session holds besides stays good until it is broken,
        // and the client does not lower it.
        Some(Grant {
            lease,
            mode: allowed,
        })
    }

    /// Returns the strongest mode up to `want` that the facts of an operation deserve.
    pub(super) fn allowed(&self, op: &Op, ino: InodeNo, want: Mode) -> Mode {
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
        if want == Mode::Exclusive && self.is_left_alone(ino, op.session) {
            return Mode::Exclusive;
        }
        let free = turn || !(self.change_pending(ino) || self.contention.contended(self.now, ino));
        if free && !self.held_elsewhere(op.session, ino) {
            Mode::Shared
        } else {
            Mode::Known
        }
    }

    /// Returns whether nobody but a session asks for an inode or caches anything of it. Others that know of it have not
    /// been in the way of a change for a while: they will not take back at once what is granted now.
    fn is_left_alone(&self, ino: InodeNo, session: SessionId) -> bool {
        let mut others = self.grants.foreign(ino, session).peekable();
        if self.queues.contains_key(&ino) {
            return false;
        }
        others.peek().is_none()
            || others.all(|(_, held)| held.mode < Mode::Shared && held.breaking.is_none())
                && self.contention.is_quiet(self.now, ino)
    }

    /// Returns whether an unfinished operation changes an inode or is about to.
    pub(super) fn change_pending(&self, ino: InodeNo) -> bool {
        // L1
        let changes = |claim: &Claimed| match claim.need {
            Need::Exclusive | Need::Change(_) | Need::Flush => !claim.bypass,
            Need::Peek | Need::Share => false,
        };
        self.claims_on(ino).any(|(_, claim)| changes(claim))
            && !self.mutation.is(Mutant::GrantDuringChange)
    }

    pub(super) fn conflicts(&self, ino: InodeNo, session: SessionId, mode: Mode) -> bool {
        self.grants
            .foreign(ino, session)
            .any(|(_, held)| match mode {
                Mode::Known => false,
                Mode::Shared => held.mode == Mode::Exclusive,
                Mode::Exclusive => held.mode >= Mode::Shared,
            })
    }

    /// Takes a grant away from a session that is sure not to use it any more.
    pub(super) fn revoke(&mut self, ino: InodeNo, session: SessionId) {
        let Some(held) = self.grants.remove(ino, session) else {
            return;
        };
        self.note(ino, session, Some(held.mode));
        if let Some(breaking) = held.breaking {
            self.overdue.remove(&(breaking.deadline, session, ino));
        }
        self.clear_way(ino, session, &BTreeSet::new());
        if !self.known(ino) {
            self.actions.push_back(Action::Forgotten(ino));
        }
    }
}
