//! The names of a directory, by name and in listing order.

use consistency::InodeNo;
use consistency::wire::meta::{FileKind, Name};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// Lower cookies are free for the adapter's own entries (`.`, `..`).
const COOKIE_FIRST: u64 = 16;

/// Names of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directory {
    /// Where `..` leads; the root is its own parent. Of a removed directory: where it was.
    pub(crate) parent: InodeNo,
    entries: OrdMap<Name, Dirent>,
    /// The same names in listing order; made anew from `entries` when a snapshot is read.
    #[serde(skip)]
    by_cookie: OrdMap<u64, Name>,
    next_cookie: u64,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dirent {
    /// Inode.
    pub(crate) ino: InodeNo,
    /// Its place in listings; kept as long as the name exists, never used again.
    pub(crate) cookie: u64,
    /// Type of the inode.
    pub(crate) kind: FileKind,
}

impl Directory {
    pub(crate) fn new(parent: InodeNo) -> Self {
        Self {
            parent,
            entries: OrdMap::new(),
            by_cookie: OrdMap::new(),
            next_cookie: COOKIE_FIRST,
        }
    }

    pub(crate) fn entry(&self, name: &Name) -> Option<Dirent> {
        self.entries.get(name).copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Dirent)> {
        self.entries.iter()
    }

    /// Returns the entries after a cookie, in listing order.
    pub(crate) fn after(&self, cookie: u64) -> impl Iterator<Item = (&Name, &Dirent)> {
        let range = (Bound::Excluded(cookie), Bound::Unbounded);
        self.by_cookie
            .range(range)
            .map(|(_, name)| (name, &self.entries[name]))
    }

    /// Makes a name stand for an inode. A name that exists keeps its place in listings.
    pub(crate) fn set(&mut self, name: &Name, ino: InodeNo, kind: FileKind) {
        if let Some(entry) = self.entries.get_mut(name) {
            (entry.ino, entry.kind) = (ino, kind);
            return;
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.by_cookie.insert(cookie, name.clone());
        self.entries
            .insert(name.clone(), Dirent { ino, cookie, kind });
    }

    /// Removes a name that exists.
    pub(crate) fn remove(&mut self, name: &Name) {
        let entry = self
            .entries
            .remove(name)
            .expect("the operation has found the name");
        self.by_cookie.remove(&entry.cookie);
    }

    /// Restores the listing order after reading a snapshot.
    pub(super) fn index(&mut self) {
        let place = |(name, entry): (&Name, &Dirent)| (entry.cookie, name.clone());
        let mut places: Vec<_> = self.entries.iter().map(place).collect();
        // Names that were made in another order than they have: a tree is filled faster from one side.
        places.sort_unstable_by_key(|(cookie, _)| *cookie);
        self.by_cookie = places.into_iter().collect();
    }

    /// Damage, for the checker to find.
    #[cfg(test)]
    pub(super) const fn forget_cookies(&mut self) {
        self.next_cookie = COOKIE_FIRST;
    }

    /// Says what is wrong with the names, see [`super::MetaState::check`].
    pub(super) fn check(&self) -> Result<(), String> {
        for (name, entry) in &self.entries {
            if self.by_cookie.get(&entry.cookie) != Some(name) {
                return Err(format!(
                    "{name:?} is not listed at its cookie {}",
                    entry.cookie
                ));
            }
            if !(COOKIE_FIRST..self.next_cookie).contains(&entry.cookie) {
                return Err(format!(
                    "{name:?} has the impossible cookie {}",
                    entry.cookie
                ));
            }
        }
        if self.by_cookie.len() != self.entries.len() {
            return Err("more names are listed than there are".to_owned());
        }
        Ok(())
    }
}
