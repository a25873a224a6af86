//! The voters: they note what the leader's own node holds, and tell its successor (L10).

use super::model::Message;
use super::{Event, RETRY, World};
use crate::lease::mutant::{Mutant, Mutation};
use crate::lease::notes::{Notes, longest};
use crate::wire::lease::Mode;
use crate::wire::notes::{Noted, Tell, Told};
use crate::{Epoch, InodeNo, NodeId, SessionId};
use std::collections::BTreeMap;

pub(super) const VOTERS: [NodeId; 5] = [NodeId(1), NodeId(2), NodeId(3), NodeId(11), NodeId(12)];
/// Voters that are nodes of this world as well; only they lead.
const HOSTS: usize = 3;

/// A session and what it holds at most.
pub(super) type Inherited = (SessionId, Vec<(InodeNo, Mode)>);

#[derive(Debug)]
pub(super) struct Voters {
    notes: BTreeMap<NodeId, Notes>,
    lives: u64,
    mutation: Mutation,
}

impl Voters {
    pub(super) fn new(mutation: Mutation) -> Self {
        let mut voters = Self {
            notes: BTreeMap::new(),
            lives: 0,
            mutation,
        };
        for voter in VOTERS {
            voters.restart(voter);
        }
        voters
    }

    /// A voter loses its notes.
    pub(super) fn restart(&mut self, voter: NodeId) {
        self.lives += 1;
        let mut notes = Notes::new(self.lives);
        notes.mutation = self.mutation;
        self.notes.insert(voter, notes);
    }
}

impl World {
    pub(super) fn any_voter(&mut self) -> NodeId {
        VOTERS[self.rng.index(HOSTS)]
    }

    /// Asks the voters what the node of the last leader may hold; some do not answer.
    pub(super) fn close(&mut self, old: NodeId, host: NodeId, by: Epoch) -> Option<Inherited> {
        let of = Epoch(by.0 - 1);
        let mut answers: Vec<(NodeId, Noted)> = Vec::new();
        for voter in VOTERS.into_iter().filter(|voter| *voter != old) {
            if (voter == host || self.rng.chance(85))
                && let Some(noted) = self.voters.notes.get_mut(&voter)?.close(by, of)
            {
                answers.push((voter, noted));
            }
        }
        let (voter, noted) = if self.mutation.is(Mutant::FirstNotes) {
            answers.first().map(|(voter, noted)| (*voter, noted))?
        } else {
            longest(&answers)?
        };
        let (notes, mut held) = (&self.voters.notes[&voter], Vec::new());
        loop {
            let after = held.last().map(|&(ino, _)| ino);
            let page = notes.page(of, after);
            if page.is_empty() {
                return Some((noted.session?, held));
            }
            held.extend(page);
        }
    }

    /// Tells each voter what it does not know, one call at a time.
    pub(super) fn tell_voters(&mut self) {
        let leader = self.leader.as_mut().expect("there is one");
        let mut calls = Vec::new();
        for voter in leader.server.told_voters().collect::<Vec<_>>() {
            if !leader.telling.contains_key(&voter)
                && let Some(tell) = leader.server.next_tell(voter)
            {
                leader.tells += 1;
                leader.telling.insert(voter, leader.tells);
                calls.push((voter, tell, leader.tells));
            }
        }
        for (voter, tell, call) in calls {
            let again = Event::TellAgain(tell.reign, voter, call);
            for at in self.arrivals() {
                self.schedule(at, Event::ToVoter(voter, tell.clone()));
            }
            self.schedule(self.now + RETRY, again);
        }
    }

    pub(super) fn tell(&mut self, to: NodeId, tell: Tell) {
        let leader = self.leader.as_ref().expect("there is one");
        // A late copy of what an old leader told comes from its node.
        let from = if leader.reign == tell.reign {
            leader.host
        } else {
            NodeId(0)
        };
        let reign = tell.reign;
        let notes = self.voters.notes.get_mut(&to).expect("a voter");
        let told = notes.take(from, tell);
        for at in self.arrivals() {
            self.schedule(at, Event::FromVoter(reign, to, told));
        }
    }

    pub(super) fn told(&mut self, reign: Epoch, from: NodeId, told: Told) {
        let leader = self.leader.as_mut().expect("there is one");
        if leader.reign != reign {
            return;
        }
        leader.server.handle_told(from, told);
        leader.telling.remove(&from);
        let (server, host) = (&leader.server, leader.host);
        let ready: Vec<Message> = leader
            .withheld
            .extract_if(.., |(number, _)| server.is_told(*number))
            .map(|(_, message)| message)
            .collect();
        for message in ready {
            self.send(host, message);
        }
        self.drive_leader();
    }

    pub(super) fn tell_again(&mut self, reign: Epoch, to: NodeId, call: u64) {
        let leader = self.leader.as_mut().expect("there is one");
        if leader.reign == reign && leader.telling.get(&to) == Some(&call) {
            leader.telling.remove(&to);
            self.drive_leader();
        }
    }
}
