//! The way of an operation from waiting to ready, and who stands in it.

use super::grants::Breaking;
use super::queue::{Need, compatible, demand};
use super::{Action, Claimed, Op, Server, State};
use crate::lease::mutant::Mutant;
use crate::wire::lease::{Grant, Mode};
use crate::{InodeNo, LeaseId, OpId, SessionId};
use std::collections::BTreeSet;

impl Server {
    /// Ends an operation and grants what it deserves.
    pub(super) fn conclude(&mut self, id: OpId, wants: &[(InodeNo, Mode)]) -> Vec<Option<Grant>> {
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
    pub(super) fn run(&mut self) {
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

    pub(super) fn claims_on(&self, ino: InodeNo) -> impl Iterator<Item = (&Op, &Claimed)> {
        let queue = self.queues.get(&ino).map_or(&[][..], Vec::as_slice);
        queue.iter().map(move |id| {
            let op = &self.ops[id];
            (op, &op.claims[&ino])
        })
    }

    /// Returns whether a waiting operation has come to the front of all its queues (L5).
    pub(super) fn its_turn(&self, id: OpId) -> bool {
        let Some(op) = self.ops.get(&id) else {
            return false;
        };
        let overtake = self.mutation.is(Mutant::Overtake);
        matches!(op.state, State::Waiting)
            && (!self.in_grace() || self.needs_no_grace(op))
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

    /// Returns whether what is not told yet can make no difference: the session has told that it is the master of
    /// all that it writes back, so that nobody else holds more than known of that (L6, L1).
    fn needs_no_grace(&self, op: &Op) -> bool {
        op.claims.iter().all(|(ino, claim)| {
            claim.need == Need::Flush
                && (self.mode(op.session, *ino) == Some(Mode::Exclusive)
                    || self.mutation.is(Mutant::FlushUntold))
        })
    }

    /// Finds the grants that are in an operation's way, and breaks them.
    pub(super) fn activate(&mut self, id: OpId) {
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
                if owes || (!own && demand(&claim.need, held.mode).is_some()) {
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
    pub(super) fn demand_break(&mut self, id: OpId, ino: InodeNo, holder: SessionId) -> bool {
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
        let demand = demand(need, held.mode).expect("a grant in the way");
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
    pub(super) fn bypasses(&self, ino: InodeNo, session: SessionId, need: &Need) -> bool {
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
    pub(super) fn bypass_all(&mut self, ino: InodeNo, session: SessionId) {
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
    pub(super) fn clear_way(&mut self, ino: InodeNo, holder: SessionId, answered: &BTreeSet<OpId>) {
        let held = self.grants.get(ino, holder).map(|held| held.mode);
        let queue = self.queues.get(&ino).cloned().unwrap_or_default();
        for id in queue {
            let op = self.ops.get_mut(&id).expect("queued");
            let State::Active(way) = &mut op.state else {
                continue;
            };
            let need = &op.claims[&ino].need;
            let own = op.session == holder;
            let stays = held.is_some_and(|held| demand(need, held).is_some());
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
    pub(super) fn free_to_run(&self, id: OpId) -> bool {
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
    pub(super) fn leave(&mut self, id: OpId) -> Option<Op> {
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
