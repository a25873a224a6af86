//! What the other voters are told of the leader's own session, so that the next leader knows it (L10).
//!
//! | voter | event | next | action |
//! | --- | --- | --- | --- |
//! | new | it may be told something | new | Next without notes: it answers Lost with its life |
//! | any | Lost | paging from the first page, based on the last note | the page |
//! | paging | Page | paging from the next page | the page |
//! | any | At n | told up to n | the notes behind n; new if they are not kept any more |
//! | paging | another session of the leader's node | new | - |
//! | any | its node has another session | new | for it may have been started again, and lost its notes |
//! | any | Closed | closed | - |
//!
//! A page shows what is held when it is made, later than its base: the notes behind the base are told again after it.

use super::Server;
use super::grants::Grants;
use crate::lease::mutant::Mutant;
use crate::lease::notes::enough;
use crate::wire::lease::Mode;
use crate::wire::notes::{Note, Part, Tell, Told};
use crate::{Epoch, InodeNo, NodeId, SessionId};
use std::collections::{BTreeMap, VecDeque};

/// Notes in one message.
const NOTES_LEN: usize = 4096;
/// Notes that are kept for voters that are late; who is later is told everything.
const KEPT: usize = 16_384;

#[derive(Debug)]
pub(super) struct Telling {
    voters: Vec<NodeId>,
    others: BTreeMap<NodeId, Voter>,
    /// How many of the others must have noted something.
    enough: usize,
    own: Option<Own>,
    /// The last notes; the last one has the number `number`.
    kept: VecDeque<Note>,
    number: u64,
}

#[derive(Clone, Copy, Debug)]
struct Own {
    session: SessionId,
    complete: bool,
}

#[derive(Debug)]
struct Voter {
    told: u64,
    next: Next,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    New,
    Page {
        life: u64,
        base: u64,
        page: u32,
        after: Option<InodeNo>,
        /// The last inode of the page.
        until: Option<InodeNo>,
    },
    Behind(u64),
    Closed,
}

/// What counts as held: less makes nobody wait.
fn counts(mode: Option<Mode>) -> Option<Mode> {
    mode.filter(|mode| *mode >= Mode::Shared)
}

impl Server {
    /// Tells the voters of the reign, of which `me` is the leader, what its own session holds.
    pub fn tell_voters(&mut self, me: NodeId, voters: &[NodeId]) {
        let others = voters.iter().filter(|voter| **voter != me);
        let new = |voter: &NodeId| {
            let next = Next::New;
            (*voter, Voter { told: 0, next })
        };
        self.telling = Some(Telling {
            voters: voters.to_vec(),
            others: others.map(new).collect(),
            enough: enough(voters, me),
            own: None,
            kept: VecDeque::new(),
            number: 0,
        });
    }

    /// Names the session of the leader's own node; it holds nothing yet, or has still to tell what.
    pub fn own_session(&mut self, session: SessionId) {
        let complete = !self.reclaiming.contains(&session);
        if let Some(telling) = &mut self.telling {
            telling.own_session(session, complete);
        }
    }

    /// A voter may have been started again: if it has lost its notes it is told everything, now and not when there is
    /// news, for the leader may be lost before that.
    pub fn look_after(&mut self, voter: NodeId) {
        let telling = self.telling.as_mut();
        if let Some(voter) = telling.and_then(|telling| telling.others.get_mut(&voter))
            && !matches!(voter.next, Next::Closed)
        {
            voter.next = Next::New;
        }
    }

    /// Returns up to which number the notes have to be told before a reply to `session` may be sent; `None` if it can
    /// be sent at once.
    #[must_use]
    pub fn untold(&self, session: SessionId) -> Option<u64> {
        let telling = self.telling.as_ref()?;
        let own = telling.own.is_some_and(|own| own.session == session);
        let waits = own && telling.told() < telling.number;
        (waits && !self.mutation.is(Mutant::UseUntold)).then_some(telling.number)
    }

    /// Returns whether enough voters have noted everything up to a number.
    #[must_use]
    pub fn is_told(&self, number: u64) -> bool {
        let told = self.telling.as_ref().map(Telling::told);
        told.is_none_or(|told| number <= told)
    }

    /// Returns the number of the last note.
    #[must_use]
    pub fn notes(&self) -> u64 {
        self.telling.as_ref().map_or(0, |telling| telling.number)
    }

    /// Returns the voters that are told, without the leader.
    pub fn told_voters(&self) -> impl Iterator<Item = NodeId> {
        let others = self.telling.iter().flat_map(|telling| &telling.others);
        others.map(|(voter, _)| *voter)
    }

    /// Returns what a voter is to be told next. It may be sent again until the voter has answered.
    pub fn next_tell(&mut self, voter: NodeId) -> Option<Tell> {
        let reign = self.reign;
        self.telling.as_mut()?.next(reign, voter, &self.grants)
    }

    /// Takes a voter's answer.
    pub fn handle_told(&mut self, voter: NodeId, told: Told) {
        if let Some(telling) = &mut self.telling {
            telling.handle(voter, told);
        }
    }

    /// Notes what a session holds now, if the next leader needs to know.
    pub(super) fn note(&mut self, ino: InodeNo, session: SessionId, before: Option<Mode>) {
        let Some(telling) = &mut self.telling else {
            return;
        };
        let mode = counts(self.grants.get(ino, session).map(|held| held.mode));
        let own = telling.own.is_some_and(|own| own.session == session);
        if own && mode != counts(before) {
            telling.push(Note::Holds { ino, mode });
        }
    }

    /// Notes that a session has told everything.
    pub(super) fn note_complete(&mut self, session: SessionId) {
        if let Some(telling) = &mut self.telling
            && telling.own.is_some_and(|own| own.session == session)
        {
            telling.own_session(session, true);
        }
    }
}

impl Telling {
    fn own_session(&mut self, session: SessionId, complete: bool) {
        let same = self.own.is_some_and(|own| own.session == session);
        self.own = Some(Own { session, complete });
        self.push(Note::Session { session, complete });
        for voter in self.others.values_mut().filter(|_| !same) {
            if matches!(voter.next, Next::Page { .. }) {
                voter.next = Next::New;
            }
        }
    }

    fn push(&mut self, note: Note) {
        self.number += 1;
        self.kept.push_back(note);
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Returns up to which number enough of the others have noted everything.
    fn told(&self) -> u64 {
        let Some(last) = self.enough.checked_sub(1) else {
            return self.number;
        };
        let mut told: Vec<u64> = self.others.values().map(|voter| voter.told).collect();
        told.sort_unstable_by(|a, b| b.cmp(a));
        told.get(last).copied().unwrap_or(0)
    }

    fn next(&mut self, reign: Epoch, voter: NodeId, grants: &Grants) -> Option<Tell> {
        let voter = self.others.get_mut(&voter)?;
        let late = |behind: u64| self.number - behind > self.kept.len() as u64;
        if matches!(voter.next, Next::Behind(behind) if late(behind)) {
            voter.next = Next::New;
        }
        let (part, notes) = match &mut voter.next {
            Next::Closed => return None,
            Next::New => (Part::Next { from: self.number }, Vec::new()),
            Next::Behind(from) => {
                let behind = usize::try_from(self.number - *from).expect("they are kept");
                if behind == 0 {
                    return None;
                }
                let notes = self.kept.iter().skip(self.kept.len() - behind);
                let notes = notes.take(NOTES_LEN).copied().collect();
                (Part::Next { from: *from }, notes)
            }
            Next::Page {
                life,
                base,
                page,
                after,
                until,
            } => {
                let held: Vec<(InodeNo, Mode)> = self
                    .own
                    .map(|own| grants.behind(own.session, *after, NOTES_LEN))
                    .unwrap_or_default();
                *until = held.last().map(|&(ino, _)| ino);
                let session = self.own.filter(|_| *page == 0).map(|own| Note::Session {
                    session: own.session,
                    complete: own.complete,
                });
                let last = held.len() < NOTES_LEN;
                let holds = held.into_iter().filter_map(|(ino, mode)| {
                    let mode = Some(counts(Some(mode))?);
                    Some(Note::Holds { ino, mode })
                });
                let part = Part::Whole {
                    life: *life,
                    voters: self.voters.clone(),
                    base: *base,
                    page: *page,
                    last,
                };
                (part, session.into_iter().chain(holds).collect())
            }
        };
        Some(Tell { reign, part, notes })
    }

    fn handle(&mut self, voter: NodeId, answer: Told) {
        let Some(voter) = self.others.get_mut(&voter) else {
            return;
        };
        match (answer, &mut voter.next) {
            (_, Next::Closed) => {}
            (Told::Closed, next) => *next = Next::Closed,
            (Told::At(number), next) => {
                let number = number.min(self.number);
                voter.told = voter.told.max(number);
                *next = Next::Behind(number);
            }
            (Told::Lost { life }, next) => {
                *next = Next::Page {
                    life,
                    base: self.number,
                    page: 0,
                    after: None,
                    until: None,
                };
            }
            (
                Told::Page {
                    base,
                    next: after_it,
                },
                Next::Page {
                    base: ours,
                    page,
                    after,
                    until,
                    ..
                },
            ) if base == *ours && page.checked_add(1) == Some(after_it) => {
                *page = after_it;
                *after = *until;
            }
            (Told::Page { .. }, _) => {}
        }
    }
}
