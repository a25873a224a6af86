//! The files of exported directories that the kernel knows.
//!
//! ```text
//! EXPORT_BASE | node (16 bits) | hash of the identity on its node (44 bits)
//! ```
//! Number 0 of a node is its `root`. A number is made of what the file is, so that it is the same when the kernel has
//! forgotten the file and looks it up again (tar and git compare them); of two with one hash the later gets the next free
//! number. An inode is kept with the paths that lead to it, as far as they were looked up here: a rename through this node
//! takes along what lies below, of one elsewhere the next lookup tells.

use crate::export::wire::{At, Ident, Stat};
use crate::path::FilePath;
use consistency::wire::meta::{Attr, FileKind};
use consistency::{InodeNo, NodeId};
use gfs::tree::EXPORT_BASE;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

const SERIAL_BITS: u32 = 44;
const SERIALS: u64 = 1 << SERIAL_BITS;
/// Upper limit of the paths kept of one inode.
const PATHS_MAX: usize = 8;
/// How long the attributes of a lookup answer the question that comes with it.
const FRESH_MAX: Duration = Duration::from_millis(50);

/// An inode that the kernel knows.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) owner: NodeId,
    pub(super) ident: Ident,
    /// Its true type.
    pub(super) kind: FileKind,
    /// Its true device number.
    pub(super) rdev: u32,
    /// The one seen last at the end.
    paths: Vec<FilePath>,
    lookups: u64,
    /// What a lookup of a thread has told.
    fresh: Option<(u32, Instant, Attr)>,
}

/// All of them. Pure.
#[derive(Debug, Default)]
pub(super) struct Inodes {
    by_number: HashMap<InodeNo, Inode>,
    by_ident: HashMap<(NodeId, Ident), InodeNo>,
    by_path: BTreeMap<(NodeId, FilePath), InodeNo>,
}

/// Returns the `root` of a node.
pub(super) const fn root(owner: NodeId) -> InodeNo {
    InodeNo(EXPORT_BASE | (owner.0 as u64) << SERIAL_BITS)
}

/// Returns the owner if the number is that of a root.
pub(super) fn owner_of_root(number: InodeNo) -> Option<NodeId> {
    let owner = NodeId(u16::try_from(number.0 >> SERIAL_BITS & 0xffff).ok()?);
    (root(owner) == number).then_some(owner)
}

/// Returns the number of a file, if no other has the same hash.
pub(super) fn number(owner: NodeId, ident: Ident) -> InodeNo {
    // The same in every run: of splitmix64.
    let mixed = [ident.dev, ident.ino, ident.born];
    let mixed = mixed.into_iter().fold(0_u64, |hash, word| {
        let word = (hash ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    });
    InodeNo(root(owner).0 | (mixed % SERIALS).max(1))
}

impl Inode {
    /// Returns where it may be, the likeliest first.
    pub(super) fn places(&self) -> impl Iterator<Item = At> {
        self.paths.iter().rev().map(|path| At {
            path: path.clone(),
            ident: Some(self.ident),
        })
    }

    /// Returns where it was seen last.
    pub(super) fn place(&self) -> Option<At> {
        self.places().next()
    }
}

impl Inodes {
    /// Counts a lookup of what is at `path`, by thread `pid`; returns its number.
    pub(super) fn look_up(
        &mut self,
        owner: NodeId,
        path: FilePath,
        stat: &Stat,
        pid: u32,
        now: Instant,
    ) -> InodeNo {
        let number = match self.by_ident.get(&(owner, stat.ident)) {
            Some(number) => *number,
            None => self.enter(owner, stat),
        };
        let inode = self.by_number.get_mut(&number).expect("it was entered");
        inode.lookups += 1;
        // Of a thread in another pid namespace nothing is known.
        inode.fresh = (pid != 0).then(|| (pid, now, stat.attr.clone()));
        self.at(owner, path, number);
        number
    }

    fn enter(&mut self, owner: NodeId, stat: &Stat) -> InodeNo {
        let mut free = number(owner, stat.ident);
        while self.by_number.contains_key(&free) {
            let next = (free.0 % SERIALS + 1) % SERIALS;
            free = InodeNo(root(owner).0 | next.max(1));
        }
        let inode = Inode {
            owner,
            ident: stat.ident,
            kind: stat.attr.kind,
            rdev: stat.attr.rdev,
            paths: Vec::new(),
            lookups: 0,
            fresh: None,
        };
        self.by_number.insert(free, inode);
        self.by_ident.insert((owner, stat.ident), free);
        free
    }

    /// Notes that a path leads to an inode.
    fn at(&mut self, owner: NodeId, path: FilePath, number: InodeNo) {
        let before = self.by_path.insert((owner, path.clone()), number);
        if let Some(before) = before.filter(|before| *before != number) {
            self.drop_path(before, &path);
        }
        let Some(inode) = self.by_number.get_mut(&number) else {
            self.by_path.remove(&(owner, path));
            return;
        };
        inode.paths.retain(|known| *known != path);
        inode.paths.push(path);
        if inode.paths.len() > PATHS_MAX {
            let oldest = inode.paths.remove(0);
            self.by_path.remove(&(owner, oldest));
        }
    }

    fn drop_path(&mut self, number: InodeNo, path: &FilePath) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.paths.retain(|known| known != path);
        }
    }

    pub(super) fn get(&self, number: InodeNo) -> Option<&Inode> {
        self.by_number.get(&number)
    }

    /// Returns which inode is known at a path.
    pub(super) fn number_at(&self, owner: NodeId, path: &FilePath) -> Option<InodeNo> {
        if path.is_empty() {
            return Some(root(owner));
        }
        self.by_path.get(&(owner, path.clone())).copied()
    }

    /// Takes what a lookup by this thread has just told, once.
    pub(super) fn take_fresh(&mut self, number: InodeNo, pid: u32, now: Instant) -> Option<Attr> {
        let fresh = self.by_number.get_mut(&number)?.fresh.take()?;
        let (by, at, attr) = fresh;
        (by == pid && now.saturating_duration_since(at) < FRESH_MAX).then_some(attr)
    }

    /// Forgets what lookups have told of an inode: it is being changed.
    pub(super) fn changing(&mut self, number: InodeNo) {
        if let Some(inode) = self.by_number.get_mut(&number) {
            inode.fresh = None;
        }
    }

    /// Takes lookups back.
    pub(super) fn forget(&mut self, number: InodeNo, count: u64) {
        let Some(inode) = self.by_number.get_mut(&number) else {
            return;
        };
        inode.lookups = inode.lookups.saturating_sub(count);
        if inode.lookups == 0 {
            let inode = self.by_number.remove(&number).expect("it was there");
            self.by_ident.remove(&(inode.owner, inode.ident));
            for path in inode.paths {
                self.by_path.remove(&(inode.owner, path));
            }
        }
    }

    /// Notes that nothing is at a path any more.
    pub(super) fn unlinked(&mut self, owner: NodeId, path: &FilePath) {
        if let Some(number) = self.by_path.remove(&(owner, path.clone())) {
            self.drop_path(number, path);
            self.changing(number);
        }
    }

    /// Notes that what was at `from`, and below, is at `to`; with `exchange` also the other way round.
    pub(super) fn renamed(
        &mut self,
        owner: NodeId,
        from: &FilePath,
        to: &FilePath,
        exchange: bool,
    ) {
        let moved = self.take_below(owner, from);
        let replaced = self.take_below(owner, to);
        let mut put = |taken: Vec<(FilePath, InodeNo)>, dir: &FilePath| {
            for (below, number) in taken {
                // What has become too long cannot be named.
                if let Ok(path) = dir.with(&below) {
                    self.at(owner, path, number);
                }
                self.changing(number);
            }
        };
        put(moved, to);
        if exchange {
            put(replaced, from);
        }
    }

    /// Takes out the paths of a directory and of what is below, as far as known, and returns them as seen from there.
    fn take_below(&mut self, owner: NodeId, dir: &FilePath) -> Vec<(FilePath, InodeNo)> {
        let (first, last) = dir.range_below();
        let below = self.by_path.range((owner, first)..(owner, last));
        let below = below.map(|((_, path), _)| path.clone());
        let paths = Vec::from_iter([dir.clone()].into_iter().chain(below));
        let mut taken = Vec::new();
        for path in paths {
            if let Some(number) = self.by_path.remove(&(owner, path.clone())) {
                self.drop_path(number, &path);
                taken.extend(path.below(dir).map(|below| (below, number)));
            }
        }
        taken
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.by_ident.len(), self.by_number.len());
        let paths = self.by_number.values().map(|inode| inode.paths.len());
        assert_eq!(self.by_path.len(), paths.sum::<usize>());
        for ((owner, path), number) in &self.by_path {
            let inode = &self.by_number[number];
            assert!(inode.owner == *owner && inode.paths.contains(path));
        }
        self.by_number.len()
    }
}

#[cfg(test)]
mod tests;
