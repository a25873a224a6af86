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
//!
//! What programs on the leader's node may have locked is told in the same way, under inode numbers that no inode has
//! ([`LockNotes`]): before a lock is taken, and to the end of the session. It may be too much, and never is too little.

use super::Server;
use super::grants::Grants;
use crate::lease::mutant::Mutant;
use crate::lease::notes::enough;
use crate::wire::lease::Mode;
use crate::wire::notes::{Note, Part, Tell, Told};
use crate::{Epoch, InodeNo, NodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is noted of locks on an inode stands under its number and this bit, which no inode's number has.
const LOCKS: u64 = 1 << 63;
/// So many inodes with locks are noted; with more the next leader waits for the session.
const LOCKED_MAX: usize = 4096;
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
    /// What else is told as held: see [`LockNotes`].
    locked: BTreeSet<InodeNo>,
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

/// On which inodes a session may have locks, as voters have noted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockNotes(BTreeSet<InodeNo>);

impl LockNotes {
    /// Says that what is not noted is not locked; a leader of an older version does not.
    const ALL_ARE_NOTED: InodeNo = InodeNo(LOCKS);

    const fn under(ino: InodeNo) -> InodeNo {
        InodeNo(ino.0 | LOCKS)
    }

    /// Takes what is noted of locks from all that is noted as held.
    #[must_use]
    pub fn of(held: &[(InodeNo, Mode)]) -> Self {
        let inodes = held.iter().map(|&(ino, _)| ino);
        Self(inodes.filter(|ino| Self::has(*ino)).collect())
    }

    /// Returns whether a note is of locks.
    pub(super) const fn has(ino: InodeNo) -> bool {
        ino.0 & LOCKS != 0
    }

    /// Returns whether the session may have locks on an inode.
    #[must_use]
    pub fn may_be_locked(&self, ino: InodeNo) -> bool {
        !self.0.contains(&Self::ALL_ARE_NOTED) || self.0.contains(&Self::under(ino))
    }
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
            locked: BTreeSet::new(),
            kept: VecDeque::new(),
            number: 0,
        });
    }

    /// Notes that a session may have locks on an inode, if the next leader needs to know: to be called before it gets
    /// them. They are in the way of others as soon as they are noted, so that [`Self::untold`] says when it may.
    pub fn note_locks(&mut self, ino: InodeNo, session: SessionId) {
        if let Some(telling) = &mut self.telling
            && telling.own.is_some_and(|own| own.session == session)
        {
            telling.note_locks(ino);
        }
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
        if !same {
            self.locked.clear();
            self.lock(LockNotes::ALL_ARE_NOTED);
        }
        for voter in self.others.values_mut().filter(|_| !same) {
            if matches!(voter.next, Next::Page { .. }) {
                voter.next = Next::New;
            }
        }
    }

    fn note_locks(&mut self, ino: InodeNo) {
        let is_full = self.locked.len() > LOCKED_MAX;
        if self.locked.contains(&LockNotes::under(ino)) || self.locked.is_empty() {
            return;
        }
        if !is_full {
            return self.lock(LockNotes::under(ino));
        }
        // From here on the next leader must not rely on them.
        for ino in std::mem::take(&mut self.locked) {
            self.push(Note::Holds { ino, mode: None });
        }
    }

    fn lock(&mut self, ino: InodeNo) {
        self.locked.insert(ino);
        let mode = Some(Mode::Shared);
        self.push(Note::Holds { ino, mode });
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
                let mut held: Vec<(InodeNo, Mode)> = self
                    .own
                    .map(|own| grants.behind(own.session, *after, NOTES_LEN))
                    .unwrap_or_default();
                // They come last, for their numbers are the largest.
                let locked = self.locked.iter().filter(|ino| Some(**ino) > *after);
                let room = NOTES_LEN - held.len();
                held.extend(locked.take(room).map(|ino| (*ino, Mode::Shared)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Config, Notes};
    use crate::{Duration, Instant};

    const ME: NodeId = NodeId(1);
    const VOTER: NodeId = NodeId(2);
    const OWN: SessionId = SessionId(5);

    /// Has a voter take everything; returns what it has noted of locks.
    fn noted(server: &mut Server, notes: &mut Notes) -> LockNotes {
        while let Some(tell) = server.next_tell(VOTER) {
            let told = notes.take(ME, tell);
            server.handle_told(VOTER, told);
        }
        LockNotes::of(&notes.page(Epoch(7), None))
    }

    /// LK6
    #[test]
    fn l10_locks_are_noted_before_they_are_taken_and_all_or_none() {
        let config = Config {
            term: Duration::from_millis(4_000),
            break_timeout: Duration::from_millis(4_000),
            sweep_len: 512,
        };
        let now = Instant(0);
        let mut server = Server::new(config, Epoch(7), now, []);
        server.tell_voters(ME, &[ME, VOTER, NodeId(3)]);
        server.open_session(now, OWN);
        server.own_session(OWN);
        let mut notes = Notes::new(1);
        let first = noted(&mut server, &mut notes);
        assert!(!first.may_be_locked(InodeNo(9)));
        server.note_locks(InodeNo(9), SessionId(6));
        assert_eq!(server.untold(OWN), None, "others tell for themselves");
        server.note_locks(InodeNo(9), OWN);
        assert!(server.untold(OWN).is_some(), "no lock before that");
        let one = noted(&mut server, &mut notes);
        assert_eq!(server.untold(OWN), None);
        assert!(one.may_be_locked(InodeNo(9)) && !one.may_be_locked(InodeNo(8)));
        // A voter that was started again is told all of it, in pages.
        for ino in 10..5_000 {
            server.note_locks(InodeNo(ino), OWN);
            if ino == 4_000 {
                notes = Notes::new(2);
                server.look_after(VOTER);
                let many = noted(&mut server, &mut notes);
                assert!(many.may_be_locked(InodeNo(ino)) && many.may_be_locked(InodeNo(9)));
                assert!(!many.may_be_locked(InodeNo(ino + 1)));
            }
        }
        // Of so many none is noted, and nothing is said of any.
        let too_many = noted(&mut server, &mut notes);
        assert_eq!(too_many, LockNotes::default());
        assert!(too_many.may_be_locked(InodeNo(1)));
        // The next session begins anew.
        server.own_session(SessionId(8));
        assert!(!noted(&mut server, &mut notes).may_be_locked(InodeNo(9)));
    }
}
