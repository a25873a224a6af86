//! A voter's notes of what the leader's own node holds (L10).
//!
//! Every other node outlives a leader and tells its successor what it holds. The leader's own may be lost with it, so
//! what it is granted is noted by other voters before it is used. The leader's side is `server::telling`.
//!
//! | state | event | condition | next | answer |
//! | --- | --- | --- | --- | --- |
//! | any | Tell of reign r | r is older than what is noted, or closed | unchanged | Closed |
//! | nothing of r | Whole, page 0 | meant for this life | paging, or noted up to base if it is the last | Page, At |
//! | nothing of r | any other | - | unchanged | Lost |
//! | paging | Whole | the next page | paging, or noted up to base if it is the last | Page, At |
//! | paging | Next | - | unchanged | Lost |
//! | noted up to n | Next behind m | m <= n | noted up to the last of them | At |
//! | noted up to n | Next behind m | m > n | unchanged | Lost |
//! | noted up to n | Whole from b | b <= n: a late copy | unchanged | At |
//! | any | Close of r by s | - | closed below s | what is noted of r, if not paging |
//!
//! Notes are in memory: a voter that has lost them has nothing to say, which counts as no answer.

use super::mutant::{Mutant, Mutation};
use crate::wire::lease::Mode;
use crate::wire::notes::{Note, Noted, Part, Tell, Told};
use crate::{Epoch, InodeNo, NodeId, SessionId};
use std::collections::BTreeMap;

/// Inodes in one answer to `Page`.
const PAGE_LEN: usize = 65_536;

/// See the module page.
#[derive(Debug)]
pub struct Notes {
    life: u64,
    /// Reigns before this take no more notes.
    closed: Epoch,
    of: Option<Reign>,
    pub(super) mutation: Mutation,
}

#[derive(Debug)]
struct Reign {
    reign: Epoch,
    leader: NodeId,
    voters: Vec<NodeId>,
    progress: Progress,
    session: Option<(SessionId, bool)>,
    held: BTreeMap<InodeNo, Mode>,
}

#[derive(Clone, Copy, Debug)]
enum Progress {
    Paging { base: u64, next: u32 },
    At(u64),
}

impl Notes {
    /// Starts with nothing; `life` is another number than that of every earlier start of this voter.
    #[must_use]
    pub fn new(life: u64) -> Self {
        Self {
            life,
            closed: Epoch(0),
            of: None,
            mutation: Mutation::default(),
        }
    }

    /// Takes notes from the leader `from`.
    pub fn take(&mut self, from: NodeId, tell: Tell) -> Told {
        let noted = self.of.as_ref().map_or(Epoch(0), |of| of.reign);
        let open = self.mutation.is(Mutant::NoteClosed);
        if tell.reign < noted || (tell.reign < self.closed && !open) {
            return Told::Closed;
        }
        let lost = Told::Lost { life: self.life };
        let of = self.of.as_mut().filter(|of| of.reign == tell.reign);
        if of.as_ref().is_some_and(|of| of.leader != from) {
            return Told::Closed;
        }
        match (tell.part, of) {
            (Part::Next { from }, Some(of)) => of.follow(from, &tell.notes).unwrap_or(lost),
            (Part::Next { .. }, None) => lost,
            (Part::Whole { life, .. }, _) if life != self.life => lost,
            (Part::Whole { base, .. }, Some(of)) if of.is_at(base) => of.told(),
            (
                Part::Whole {
                    base, page, last, ..
                },
                Some(of),
            ) if page > 0 => of.page(base, page, last, &tell.notes).unwrap_or(lost),
            (
                Part::Whole {
                    voters,
                    base,
                    page: 0,
                    last,
                    ..
                },
                _,
            ) => {
                let of = self.of.insert(Reign {
                    reign: tell.reign,
                    leader: from,
                    voters,
                    progress: Progress::Paging { base, next: 0 },
                    session: None,
                    held: BTreeMap::new(),
                });
                of.page(base, 0, last, &tell.notes).unwrap_or(lost)
            }
            (Part::Whole { .. }, _) => lost,
        }
    }

    /// Takes no more notes of reigns before `by`; returns what is noted of `of`, `None` if it is not all.
    pub fn close(&mut self, by: Epoch, of: Epoch) -> Option<Noted> {
        self.closed = self.closed.max(by);
        let noted = self.of.as_ref().filter(|noted| noted.reign == of)?;
        let Progress::At(number) = noted.progress else {
            return None;
        };
        let session = noted.session.filter(|(_, complete)| *complete);
        Some(Noted {
            leader: noted.leader,
            voters: noted.voters.clone(),
            number,
            session: session.map(|(session, _)| session),
        })
    }

    /// Returns a part of what is held under a reign that was closed.
    #[must_use]
    pub fn page(&self, of: Epoch, after: Option<InodeNo>) -> Vec<(InodeNo, Mode)> {
        let from = after.map_or(InodeNo(0), |after| InodeNo(after.0.saturating_add(1)));
        let noted = self.of.as_ref().filter(|noted| noted.reign == of);
        let held = noted.into_iter().flat_map(|noted| noted.held.range(from..));
        held.map(|(&ino, &mode)| (ino, mode))
            .take(PAGE_LEN)
            .collect()
    }
}

impl Reign {
    fn is_at(&self, number: u64) -> bool {
        matches!(self.progress, Progress::At(at) if number <= at)
    }

    const fn told(&self) -> Told {
        match self.progress {
            Progress::At(number) => Told::At(number),
            Progress::Paging { base, next } => Told::Page { base, next },
        }
    }

    fn follow(&mut self, from: u64, notes: &[Note]) -> Option<Told> {
        let Progress::At(at) = self.progress else {
            return None;
        };
        let known = at.checked_sub(from)?;
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        for note in notes.iter().skip(known) {
            self.note(note);
        }
        let number = at.max(from.saturating_add(notes.len() as u64));
        self.progress = Progress::At(number);
        Some(Told::At(number))
    }

    fn page(&mut self, base: u64, page: u32, last: bool, notes: &[Note]) -> Option<Told> {
        let Progress::Paging { base: ours, next } = self.progress else {
            return None;
        };
        if base != ours || page > next {
            return None;
        }
        if page == next {
            notes.iter().for_each(|note| self.note(note));
            self.progress = if last {
                Progress::At(base)
            } else {
                Progress::Paging {
                    base,
                    next: next.saturating_add(1),
                }
            };
        }
        Some(self.told())
    }

    fn note(&mut self, note: &Note) {
        match *note {
            Note::Session { session, complete } => {
                if self.session.is_none_or(|(before, _)| before != session) {
                    self.held.clear();
                }
                self.session = Some((session, complete));
            }
            Note::Holds {
                ino,
                mode: Some(mode),
            } => drop(self.held.insert(ino, mode)),
            Note::Holds { ino, mode: None } => drop(self.held.remove(&ino)),
        }
    }
}

/// How many others than the leader must have noted something before it is used: a majority of the voters then knows.
pub(super) fn enough(voters: &[NodeId], leader: NodeId) -> usize {
    (voters.len() / 2 + 1).saturating_sub(usize::from(voters.contains(&leader)))
}

/// Picks the longest of the notes that voters returned when they were asked to close a reign: who noted what the
/// leader's node used is surely among so many. `None` if too few have answered, or the leader's node had not told all.
#[must_use]
pub fn longest(answers: &[(NodeId, Noted)]) -> Option<(NodeId, &Noted)> {
    let (_, any) = answers.first()?;
    let others = any.voters.iter().filter(|voter| **voter != any.leader);
    let others = others.count();
    let counts = |voter: &NodeId| *voter != any.leader && any.voters.contains(voter);
    let heard = answers.iter().filter(|(voter, _)| counts(voter));
    if heard.clone().count() + enough(&any.voters, any.leader) <= others {
        return None;
    }
    let longest = heard.max_by_key(|(_, noted)| noted.number);
    let (voter, noted) = longest?;
    noted.session.is_some().then_some((*voter, noted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: NodeId = NodeId(1);
    const SESSION: SessionId = SessionId(7);
    const INO: InodeNo = InodeNo(9);

    fn voters(count: u16) -> Vec<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    fn whole(life: u64, base: u64, page: u32, last: bool) -> Part {
        Part::Whole {
            life,
            voters: voters(3),
            base,
            page,
            last,
        }
    }

    fn take(notes: &mut Notes, part: Part, list: &[Note]) -> Told {
        let tell = Tell {
            reign: Epoch(3),
            part,
            notes: list.to_vec(),
        };
        notes.take(LEADER, tell)
    }

    fn holds(mode: Option<Mode>) -> Note {
        Note::Holds { ino: INO, mode }
    }

    fn begun() -> Note {
        Note::Session {
            session: SESSION,
            complete: true,
        }
    }

    #[test]
    fn notes_follow_each_other_or_everything_is_told_again() {
        let mut notes = Notes::new(5);
        let lost = Told::Lost { life: 5 };
        assert_eq!(take(&mut notes, Part::Next { from: 0 }, &[]), lost);
        assert_eq!(take(&mut notes, whole(4, 1, 0, true), &[begun()]), lost);
        let paging = Told::Page { base: 1, next: 1 };
        let first = whole(5, 1, 0, false);
        assert_eq!(take(&mut notes, first.clone(), &[begun()]), paging);
        assert_eq!(notes.close(Epoch(3), Epoch(3)), None, "it is a part");
        assert_eq!(take(&mut notes, whole(5, 1, 2, true), &[]), lost);
        assert_eq!(take(&mut notes, whole(5, 1, 1, true), &[]), Told::At(1));
        let shared = holds(Some(Mode::Shared));
        let next = Part::Next { from: 1 };
        assert_eq!(take(&mut notes, next.clone(), &[shared]), Told::At(2));
        assert_eq!(take(&mut notes, Part::Next { from: 3 }, &[shared]), lost);
        // Late copies change nothing.
        let two = [shared, holds(None)];
        assert_eq!(take(&mut notes, next.clone(), &two), Told::At(3));
        assert_eq!(take(&mut notes, next, &[shared]), Told::At(3));
        assert_eq!(take(&mut notes, first, &[begun()]), Told::At(3));
        assert_eq!(notes.page(Epoch(3), None), []);
    }

    #[test]
    fn who_lost_its_notes_has_none() {
        let mut notes = Notes::new(5);
        take(&mut notes, whole(5, 1, 0, true), &[begun()]);
        let mut later = Notes::new(6);
        let told = take(&mut later, whole(5, 1, 0, true), &[begun()]);
        assert_eq!(told, Told::Lost { life: 6 });
        assert_eq!(later.close(Epoch(4), Epoch(3)), None);
        assert!(notes.close(Epoch(4), Epoch(3)).is_some());
    }

    /// The new leader has read the notes: what the old one tells now must not count.
    fn notes_after_the_close(mutant: Option<Mutant>) -> Told {
        let mut notes = Notes::new(5);
        notes.mutation = Mutation(mutant);
        take(&mut notes, whole(5, 1, 0, true), &[begun()]);
        assert!(notes.close(Epoch(4), Epoch(3)).is_some());
        take(
            &mut notes,
            Part::Next { from: 1 },
            &[holds(Some(Mode::Shared))],
        )
    }

    #[test]
    fn l10_a_closed_reign_takes_no_notes() {
        assert_eq!(notes_after_the_close(None), Told::Closed);
        assert_eq!(
            notes_after_the_close(Some(Mutant::NoteClosed)),
            Told::At(2),
            "the mutant is caught"
        );
    }

    /// Whoever has noted something, and whoever answers: if the notes are taken at all, it is in them.
    #[test]
    fn l10_enough_answers_have_whatever_was_used() {
        for count in 1..=7_u16 {
            let all = voters(count);
            let enough = enough(&all, LEADER);
            let noted = |number| Noted {
                leader: LEADER,
                voters: all.clone(),
                number,
                session: Some(SESSION),
            };
            let mut taken = 0;
            for knows in 0..1_u32 << count {
                let others = knows & !1;
                if (others.count_ones() as usize) < enough {
                    continue;
                }
                for answers in 0..1_u32 << count {
                    let answered = all.iter().filter(|v| answers >> (v.0 - 1) & 1 == 1);
                    let answers: Vec<_> = answered
                        .map(|v| (*v, noted(u64::from(others >> (v.0 - 1) & 1))))
                        .collect();
                    if let Some((_, longest)) = longest(&answers) {
                        taken += 1;
                        assert!(enough == 0 || longest.number == 1, "{count}: {answers:?}");
                    }
                }
            }
            assert_eq!(taken > 0, count > 1, "{count} voters");
        }
    }
}
