//! Finds the inodes that several sessions fight for, where caching costs more than it saves: nothing new is granted there.

use crate::{Duration, InodeNo, Instant};
use std::collections::{BTreeMap, VecDeque};

/// So many changes that had to break somebody's grant ...
pub(super) const BREAKS: usize = 16;
/// ... within this time make an inode contended. A break costs its writer a round trip; a look without a grant costs
/// every reader one, each time: a directory in which several nodes build is read far more often than it is changed.
pub(super) const WINDOW: Duration = Duration::from_millis(100);
/// It stays contended for this long after the last break. Long enough to be worth it, short enough that nobody
/// who comes to look notices: caching returns by itself.
pub(super) const REST: Duration = Duration::from_millis(200);

const _: () = assert!(
    WINDOW.0 < REST.0,
    "an entry is forgotten after REST and must outlive WINDOW"
);

/// The recent breaks of each inode.
#[derive(Debug, Default)]
pub(super) struct Contention {
    inodes: BTreeMap<InodeNo, Recent>,
    /// When to look whether an entry can go; one per break.
    due: VecDeque<(Instant, InodeNo)>,
}

#[derive(Debug, Default)]
struct Recent {
    breaks: VecDeque<Instant>,
    until: Option<Instant>,
}

impl Contention {
    /// Notes that a change broke grants of others.
    pub(super) fn note_break(&mut self, now: Instant, ino: InodeNo) {
        self.prune(now);
        let recent = self.inodes.entry(ino).or_default();
        if recent.breaks.len() == BREAKS {
            recent.breaks.pop_front();
        }
        recent.breaks.push_back(now);
        let first = *recent.breaks.front().expect("just pushed");
        let often = recent.breaks.len() == BREAKS && now.since(first) <= WINDOW;
        if often || recent.until.is_some_and(|until| now < until) {
            recent.until = Some(now + REST);
        }
        self.due.push_back((now + REST, ino));
    }

    /// Returns whether an inode is fought for.
    pub(super) fn contended(&self, now: Instant, ino: InodeNo) -> bool {
        let until = self.inodes.get(&ino).and_then(|recent| recent.until);
        until.is_some_and(|until| now < until)
    }

    /// Returns whether no change broke anybody's grant lately.
    pub(super) fn is_quiet(&self, now: Instant, ino: InodeNo) -> bool {
        let last = self.inodes.get(&ino).and_then(|r| r.breaks.back());
        last.is_none_or(|&last| last + REST <= now)
    }

    fn prune(&mut self, now: Instant) {
        while let Some(&(at, ino)) = self.due.front() {
            if now < at {
                break;
            }
            self.due.pop_front();
            let last = self.inodes.get(&ino).and_then(|r| r.breaks.back());
            if last.is_some_and(|&last| last + REST <= now) {
                self.inodes.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Breaks at these times, the first of them `BREAKS - 4` times more.
    #[track_caller]
    fn check(breaks_ms: &[u64], at_ms: u64, expected: bool) {
        let at = |ms| Instant(0) + Duration::from_millis(ms);
        let mut contention = Contention::default();
        let first = std::iter::repeat_n(&breaks_ms[0], BREAKS - 4);
        for &ms in first.chain(breaks_ms) {
            contention.note_break(at(ms), InodeNo(1));
        }
        let contended = contention.contended(at(at_ms), InodeNo(1));
        assert_eq!(contended, expected, "{breaks_ms:?} seen at {at_ms} ms");
    }

    #[test]
    fn many_breaks_in_a_tenth_of_a_second() {
        check(&[0, 1, 2], 3, false);
        check(&[0, 1, 2, 3], 3, true);
        check(&[0, 50, 99, 100], 100, true);
        check(&[0, 50, 99, 101], 101, false);
        check(&[50, 60, 140, 145], 145, true);
    }

    #[test]
    fn it_heals() {
        check(&[0, 1, 2, 3], 202, true);
        check(&[0, 1, 2, 3], 203, false);
        check(&[0, 1, 2, 3, 150], 349, true);
        check(&[0, 1, 2, 3, 150], 350, false);
        check(&[0, 1, 2, 3, 210], 211, false);
    }

    #[test]
    fn entries_go() {
        let mut contention = Contention::default();
        contention.note_break(Instant(0), InodeNo(1));
        contention.note_break(Instant(0) + REST, InodeNo(2));
        assert_eq!(contention.inodes.keys().collect::<Vec<_>>(), [&InodeNo(2)]);
    }
}
