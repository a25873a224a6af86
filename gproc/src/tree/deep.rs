//! Inodes of what lies deeper than the files of a process: its threads, their files, and descriptors. They have
//! numbers as long as the kernel knows them. So have links, which get a new one at each look.

use crate::pids::ClusterPid;
use crate::tree::ino::Row;
use crate::wire::{Birth, Identity};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

/// Something of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) identity: Identity,
    /// In its node's own view.
    pub(super) own: bool,
    /// Of a thread.
    pub(super) thread: Option<ClusterPid>,
    pub(super) spot: Spot,
}

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Spot {
    /// The directory of the process or thread.
    Dir,
    /// One of the files that all have.
    File(Row),
    /// A link in `fd`.
    Fd(u32),
    /// A file in `fdinfo`.
    FdInfo(u32),
}

/// All but the owner, which may change.
type Key = (ClusterPid, Birth, bool, Option<ClusterPid>, Spot);

/// The inodes that the kernel knows.
#[derive(Debug, Default)]
pub(super) struct Deep {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_number: HashMap<u64, (At, u64)>,
    numbers: HashMap<Key, u64>,
    last: u64,
}

impl At {
    const fn key(&self) -> Key {
        let Identity { pid, birth, .. } = self.identity;
        (pid, birth, self.own, self.thread, self.spot)
    }
}

impl Deep {
    /// Counts a lookup and returns the number.
    pub(super) fn look_up(&self, at: At) -> u64 {
        let mut known = self.known.lock().expect("no holder panics");
        let next = known.last + 1;
        let number = *known.numbers.entry(at.key()).or_insert(next);
        known.last = known.last.max(number);
        let (kept, lookups) = known.by_number.entry(number).or_insert((at, 0));
        kept.identity = at.identity;
        *lookups += 1;
        number
    }

    /// Gives a number of its own to a look at a link. The kernel keeps where an inode leads, and would tell it to those
    /// who may not know, or when it leads elsewhere.
    pub(super) fn look_at_link(&self, at: At) -> u64 {
        let mut known = self.known.lock().expect("no holder panics");
        known.last += 1;
        let number = known.last;
        known.by_number.insert(number, (at, 1));
        number
    }

    /// Returns what has a number.
    pub(super) fn at(&self, number: u64) -> Option<At> {
        let known = self.known.lock().expect("no holder panics");
        known.by_number.get(&number).map(|(at, _)| *at)
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, number: u64, lookups: u64) {
        let mut known = self.known.lock().expect("no holder panics");
        if let Some((at, left)) = known.by_number.get_mut(&number) {
            *left = left.saturating_sub(lookups);
            if *left == 0 {
                let key = at.key();
                known.by_number.remove(&number);
                if known.numbers.get(&key) == Some(&number) {
                    known.numbers.remove(&key);
                }
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let known = self.known.lock().expect("no holder panics");
        assert!(known.by_number.len() >= known.numbers.len());
        known.by_number.len()
    }
}

/// Returns a number for a listing that makes no inode known.
pub(super) fn listed(at: &At) -> u64 {
    let mut hasher = DefaultHasher::new();
    at.key().hash(&mut hasher);
    hasher.finish() >> 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_thing_while_it_is_known() {
        let identity = Identity {
            pid: ClusterPid::parse(b"65536").expect("a pid"),
            birth: Birth(1),
            uid: 5,
            gid: 5,
            hidden: None,
        };
        let fd = |number, uid| At {
            identity: Identity { uid, ..identity },
            own: false,
            thread: None,
            spot: Spot::Fd(number),
        };
        let deep = Deep::default();
        let (one, two) = (deep.look_up(fd(1, 5)), deep.look_up(fd(2, 5)));
        assert_ne!(one, two);
        assert_eq!(deep.look_up(fd(1, 7)), one);
        assert_eq!(deep.at(one), Some(fd(1, 7)));
        deep.forget(one, 1);
        assert_eq!(deep.at(one), Some(fd(1, 7)));
        deep.forget(one, 1);
        assert_eq!((deep.at(one), deep.len()), (None, 1));
        // A number is never given out again.
        assert!(deep.look_up(fd(1, 5)) > two);
        deep.forget(9, 1);
        // Two looks at a link are at two inodes.
        let looks = [deep.look_at_link(fd(1, 5)), deep.look_at_link(fd(1, 5))];
        assert_ne!(looks[0], looks[1]);
        assert_eq!(deep.len(), 4);
        for look in looks {
            assert_eq!(deep.at(look), Some(fd(1, 5)));
            deep.forget(look, 1);
            assert_eq!(deep.at(look), None);
        }
        assert_eq!(deep.len(), 2);
    }
}
