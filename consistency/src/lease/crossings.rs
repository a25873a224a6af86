//! Remembers what happened to inodes while something else was on its way.

use crate::InodeNo;
use std::collections::{BTreeMap, BTreeSet};

/// A point in the order of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u64);

/// The latest event of each inode, kept only as long as a mark older than it is open: at most one entry per
/// inode, none while nothing is on its way.
#[derive(Debug)]
pub(super) struct Crossings<T> {
    last: u64,
    open: BTreeSet<Mark>,
    events: BTreeMap<InodeNo, (Mark, T)>,
    order: BTreeMap<Mark, InodeNo>,
}

impl<T> Default for Crossings<T> {
    fn default() -> Self {
        Self {
            last: 0,
            open: BTreeSet::new(),
            events: BTreeMap::new(),
            order: BTreeMap::new(),
        }
    }
}

impl<T> Crossings<T> {
    /// Sets a mark: events are remembered from here on until it is closed.
    pub(super) fn open(&mut self) -> Mark {
        let mark = self.next();
        self.open.insert(mark);
        mark
    }

    /// Closes a mark and forgets the events that no open mark can ask for.
    pub(super) fn close(&mut self, mark: Mark) {
        self.open.remove(&mark);
        let oldest = self.open.first().copied();
        while let Some(entry) = self.order.first_entry() {
            if oldest.is_some_and(|oldest| oldest < *entry.key()) {
                break;
            }
            self.events.remove(&entry.remove());
        }
    }

    /// Notes an event.
    pub(super) fn note(&mut self, ino: InodeNo, event: T) {
        if self.open.is_empty() {
            return;
        }
        let mark = self.next();
        if let Some((before, _)) = self.events.insert(ino, (mark, event)) {
            self.order.remove(&before);
        }
        self.order.insert(mark, ino);
    }

    /// Returns whether something happened to an inode since the mark.
    pub(super) fn crossed(&self, mark: Mark, ino: InodeNo) -> bool {
        self.events
            .get(&ino)
            .is_some_and(|(event, _)| mark < *event)
    }

    /// Returns the latest remembered event of an inode.
    pub(super) fn latest(&self, ino: InodeNo) -> Option<&T> {
        self.events.get(&ino).map(|(_, event)| event)
    }

    fn next(&mut self) -> Mark {
        self.last += 1;
        Mark(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_live_as_long_as_an_older_mark() {
        let mut crossings = Crossings::default();
        crossings.note(InodeNo(1), 'a');
        assert_eq!(crossings.latest(InodeNo(1)), None, "nobody could ask");

        let first = crossings.open();
        crossings.note(InodeNo(1), 'b');
        let second = crossings.open();
        crossings.note(InodeNo(2), 'c');
        assert!(crossings.crossed(first, InodeNo(1)));
        assert!(!crossings.crossed(second, InodeNo(1)));
        assert!(crossings.crossed(second, InodeNo(2)));

        crossings.close(first);
        assert_eq!(crossings.latest(InodeNo(1)), None);
        assert_eq!(crossings.latest(InodeNo(2)), Some(&'c'));
        crossings.close(second);
        assert!(crossings.events.is_empty() && crossings.order.is_empty());
    }

    #[test]
    fn an_inode_has_one_entry() {
        let mut crossings = Crossings::default();
        let mark = crossings.open();
        (0..100).for_each(|n| crossings.note(InodeNo(1), n));
        assert_eq!((crossings.events.len(), crossings.order.len()), (1, 1));
        crossings.close(mark);
    }
}
