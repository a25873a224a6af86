//! The locks of one owner on one inode.

use super::{Fault, Faults};
use crate::wire::lock::{Held, LockMode, LockRange};

/// Ranges in ascending order that do not overlap; neighbours of one mode are one range (LK2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Held>);

impl Ranges {
    /// Returns ranges that a [`Ranges`] told.
    #[must_use]
    pub fn from_told(held: Vec<Held>) -> Self {
        Self(held)
    }

    /// Returns the ranges.
    #[must_use]
    pub fn as_slice(&self) -> &[Held] {
        &self.0
    }

    /// Returns whether nothing is locked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Locks the bytes of `lock` as it says, whatever they were.
    pub fn acquire(&mut self, lock: Held) {
        self.cut(lock.range, Faults::default());
        let at = self.0.partition_point(|held| held.range < lock.range);
        self.0.insert(at, lock);
        self.0.dedup_by(|next, held| {
            let joined = held.mode == next.mode && held.range.end + 1 == next.range.start;
            if joined {
                held.range.end = next.range.end;
            }
            joined
        });
    }

    /// Unlocks bytes.
    pub fn clear(&mut self, range: LockRange) {
        self.cut(range, Faults::default());
    }

    pub(super) fn cut(&mut self, range: LockRange, faults: Faults) {
        let mut kept = Vec::with_capacity(self.0.len() + 1);
        for held in &self.0 {
            if !held.range.overlaps(range) {
                kept.push(*held);
                continue;
            }
            let LockRange { start, end } = held.range;
            if start < range.start {
                let end = range.start - 1;
                kept.push(Held {
                    range: LockRange { start, end },
                    ..*held
                });
            }
            if end > range.end && !faults.is(Fault::LoseTheRest) {
                let start = range.end + 1;
                kept.push(Held {
                    range: LockRange { start, end },
                    ..*held
                });
            }
        }
        self.0 = kept;
    }

    /// Keeps of these bytes at most what `mode` is: what is told of them while a request for that mode is under way,
    /// for the leader may have carried it out already.
    pub fn weaken(&mut self, range: LockRange, mode: Option<LockMode>) {
        let present: Vec<Held> = self.within(range).collect();
        for held in present {
            match mode {
                None => self.clear(held.range),
                Some(LockMode::Read) => self.acquire(Held {
                    mode: LockMode::Read,
                    ..held
                }),
                Some(LockMode::Write) => {}
            }
        }
    }

    /// Returns what is locked of these bytes.
    pub fn within(&self, range: LockRange) -> impl Iterator<Item = Held> + '_ {
        let inside = self.0.iter().filter(move |held| held.range.overlaps(range));
        inside.map(move |held| Held {
            range: LockRange {
                start: held.range.start.max(range.start),
                end: held.range.end.min(range.end),
            },
            ..*held
        })
    }

    /// Returns the first range that is in the way of another owner's `lock`.
    pub(super) fn conflict(&self, lock: &Held) -> Option<Held> {
        let writes = |held: &&Held| held.mode == LockMode::Write || lock.mode == LockMode::Write;
        let mut overlapping = self.0.iter().filter(|held| held.range.overlaps(lock.range));
        overlapping.find(writes).copied()
    }
}
