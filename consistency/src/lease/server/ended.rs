//! The end of a session, which may hold millions of grants: with it they count for nothing, all at once, but their
//! entries are cleared away in steps between which others are served (L11).
//!
//! | grant | event | next | action |
//! | --- | --- | --- | --- |
//! | any | its session ends | ended | what waited for its ack goes on |
//! | ended | any other handler | unchanged | as if there were none |
//! | ended | a step comes to it | none | Forgotten if nobody else knows the inode |
//!
//! No voter is told: that a session has ended is in the log, and until then their notes say too much, not too little.

use super::{Action, Op, Server, State};
use crate::lease::mutant::Mutant;
use crate::{OpId, SessionId};

impl Server {
    pub(super) fn end(&mut self, session: SessionId) {
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
        if !self.mutation.is(Mutant::EndedCount) {
            self.end_grants(session);
        }
        self.reclaimed(session);
    }

    /// L11
    fn end_grants(&mut self, session: SessionId) {
        self.grants.end(session);
        for (&id, op) in &mut self.ops {
            if let State::Active(way) = &mut op.state {
                let before = way.len();
                way.retain(|(_, holder)| *holder != session);
                if way.len() < before {
                    self.agenda.push_back(id);
                }
            }
        }
        self.sweep();
    }

    /// Clears away a part of what ended sessions held.
    pub(super) fn sweep(&mut self) {
        let swept = self.grants.sweep(self.config.sweep_len);
        self.sweep_at = (swept.len() == self.config.sweep_len).then_some(self.now);
        for (ino, session, held) in swept {
            if let Some(breaking) = held.breaking {
                self.overdue.remove(&(breaking.deadline, session, ino));
            }
            if !self.known(ino) {
                self.actions.push_back(Action::Forgotten(ino));
            }
        }
    }
}
