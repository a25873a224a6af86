//! Limits on what a directory tree holds, after the project quotas of ext4 and XFS: every inode of a tree with a
//! quota belongs to it from its creation on, so that no walk up finds out whom it counts for.
//!
//! # Rules
//! - Q1: what a tree uses is the number of its inodes, its directory and nameless ones included, and the blocks that
//!   they have allocated.
//! - Q2: an inode belongs to the tree of each directory that names it; the directory with the quota to its own, its
//!   name to none. So trees do not nest, and no name leads from one to another.
//! - Q3: nothing that grows takes a tree over its limit. What shrinks or goes is never refused.

use super::check::Faults;
use super::{Directory, MetaState};
use consistency::InodeNo;
use consistency::wire::meta::{FileKind, FsError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most inodes of a tree when it gets its quota: they are counted in one step, in which nothing else goes on.
pub(crate) const COUNTED_MAX: usize = 1_000_000;
/// Unit of `blocks`.
const BLOCK_BYTES: u64 = 512;

/// All trees with a quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quotas {
    /// By their directories.
    trees: BTreeMap<InodeNo, Tree>,
    /// Which tree an inode belongs to.
    members: BTreeMap<InodeNo, InodeNo>,
}

/// A tree with a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tree {
    pub(crate) limits: Limits,
    pub(crate) used: Used,
}

/// Upper limits; `None` limits nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub(crate) bytes: Option<u64>,
    pub(crate) inodes: Option<u64>,
}

/// What a tree uses (Q1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) inodes: u64,
    pub(crate) blocks: u64,
}

impl Tree {
    /// Returns the bytes that may still be allocated; `None`: there is no limit.
    pub(crate) fn bytes_left(&self) -> Option<u64> {
        let used = self.used.blocks.saturating_mul(BLOCK_BYTES);
        self.limits.bytes.map(|limit| limit.saturating_sub(used))
    }

    /// Returns the inodes that may still be made; `None`: there is no limit.
    pub(crate) fn inodes_left(&self) -> Option<u64> {
        let used = self.used.inodes;
        self.limits.inodes.map(|limit| limit.saturating_sub(used))
    }

    fn has_room(&self, blocks: u64) -> bool {
        let bytes = blocks.saturating_mul(BLOCK_BYTES);
        bytes == 0 || self.bytes_left().is_none_or(|left| bytes <= left)
    }
}

impl Quotas {
    /// Returns the tree that an inode belongs to.
    pub(crate) fn tree_of(&self, ino: InodeNo) -> Option<InodeNo> {
        self.members.get(&ino).copied()
    }

    /// Returns the numbers of the tree that an inode belongs to.
    pub(crate) fn of(&self, ino: InodeNo) -> Option<&Tree> {
        self.trees.get(&self.tree_of(ino)?)
    }

    /// Refuses a name in `parent` for an inode of another tree (Q2).
    ///
    /// # Errors
    /// [`FsError::CrossDevice`].
    pub(crate) fn check_name(&self, parent: InodeNo, ino: InodeNo) -> Result<(), FsError> {
        let outer = self.tree_of(ino).filter(|tree| *tree != ino);
        if outer == self.tree_of(parent) {
            Ok(())
        } else {
            Err(FsError::CrossDevice)
        }
    }

    /// Refuses a new inode in `parent` that there is no room for (Q3).
    ///
    /// # Errors
    /// [`FsError::Quota`].
    pub(crate) fn check_new(&self, parent: InodeNo, blocks: u64) -> Result<(), FsError> {
        match self.of(parent) {
            Some(tree) if tree.inodes_left() == Some(0) || !tree.has_room(blocks) => {
                Err(FsError::Quota)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Refuses an inode's growth that there is no room for (Q3).
    ///
    /// # Errors
    /// [`FsError::Quota`].
    pub(crate) fn check_growth(&self, ino: InodeNo, old: u64, new: u64) -> Result<(), FsError> {
        match self.of(ino) {
            Some(tree) if !tree.has_room(new.saturating_sub(old)) => Err(FsError::Quota),
            Some(_) | None => Ok(()),
        }
    }

    /// Counts a new inode for the tree of `parent`.
    pub(crate) fn enter(&mut self, parent: InodeNo, ino: InodeNo, blocks: u64) {
        if let Some(root) = self.tree_of(parent) {
            self.members.insert(ino, root);
            let used = &mut self.tree_mut(root).used;
            used.inodes += 1;
            used.blocks += blocks;
        }
    }

    /// Counts an inode's change of size.
    pub(crate) fn resize(&mut self, ino: InodeNo, old: u64, new: u64) {
        if let Some(root) = self.tree_of(ino) {
            let used = &mut self.tree_mut(root).used;
            used.blocks = used.blocks - old + new;
        }
    }

    /// Counts an inode out that is gone. The last one takes the tree along: its directory has gone before.
    pub(super) fn leave(&mut self, ino: InodeNo, blocks: u64) {
        if let Some(root) = self.members.remove(&ino) {
            let used = &mut self.tree_mut(root).used;
            used.inodes -= 1;
            used.blocks -= blocks;
            if used.inodes == 0 {
                self.trees.remove(&root);
            }
        }
    }

    fn tree_mut(&mut self, root: InodeNo) -> &mut Tree {
        self.trees
            .get_mut(&root)
            .expect("a tree lives as long as its inodes")
    }
}

impl MetaState {
    /// Checks that a directory may have limits; returns the inodes that belong to them, if they are not counted yet.
    ///
    /// # Errors
    /// - [`FsError::NotDir`].
    /// - [`FsError::Busy`] for a directory in or above a tree with a quota of its own (Q2).
    /// - [`FsError::CrossDevice`] if a file of the tree has another name outside of it (Q2).
    /// - [`FsError::AttrTooLarge`] for more than [`COUNTED_MAX`] inodes.
    pub(crate) fn count_tree(&self, root: InodeNo) -> Result<Option<BTreeSet<InodeNo>>, FsError> {
        self.dir(root)?;
        match self.quotas.tree_of(root) {
            Some(tree) if tree == root => return Ok(None),
            Some(_) => return Err(FsError::Busy),
            None => {}
        }
        let mut members = BTreeSet::from([root]);
        // Names found of files with more than one.
        let mut names: BTreeMap<InodeNo, u32> = BTreeMap::new();
        let mut todo = vec![root];
        while let Some(dir) = todo.pop() {
            for (_, entry) in self.dir(dir).map(Directory::iter)? {
                if self.quotas.tree_of(entry.ino).is_some() {
                    return Err(FsError::Busy);
                }
                if members.insert(entry.ino) && members.len() > COUNTED_MAX {
                    return Err(FsError::AttrTooLarge);
                }
                if entry.kind == FileKind::Dir {
                    todo.push(entry.ino);
                } else if self.inode(entry.ino)?.attr.nlink > 1 {
                    *names.entry(entry.ino).or_default() += 1;
                }
            }
        }
        for (ino, found) in names {
            if self.inode(ino)?.attr.nlink != found {
                return Err(FsError::CrossDevice);
            }
        }
        Ok(Some(members))
    }

    /// Sets the limits of a directory. `members` are those of [`Self::count_tree`].
    pub(crate) fn set_limits(
        &mut self,
        root: InodeNo,
        limits: Limits,
        members: Option<BTreeSet<InodeNo>>,
    ) {
        if limits == Limits::default() {
            self.quotas.trees.remove(&root);
            self.quotas.members.retain(|_, tree| *tree != root);
            return;
        }
        let tree = self.quotas.trees.entry(root).or_default();
        tree.limits = limits;
        for ino in members.into_iter().flatten() {
            tree.used.inodes += 1;
            tree.used.blocks += self.inodes[&ino].attr.blocks;
            self.quotas.members.insert(ino, root);
        }
    }

    /// Returns the limits of a directory.
    pub(crate) fn limits(&self, root: InodeNo) -> Limits {
        let tree = self.quotas.trees.get(&root);
        tree.map_or_else(Limits::default, |tree| tree.limits)
    }

    /// Counts the trees with a quota anew and looks at every name; see [`MetaState::check`].
    pub(super) fn check_quotas(&self, faults: &mut Faults) {
        let quotas = &self.quotas;
        let mut sums: BTreeMap<InodeNo, Used> = BTreeMap::new();
        for (ino, root) in &quotas.members {
            let used = sums.entry(*root).or_default();
            used.inodes += 1;
            match self.inodes.get(ino) {
                Some(inode) => used.blocks = used.blocks.saturating_add(inode.attr.blocks),
                None => faults.note(
                    "Q1",
                    format!("inode {ino} is gone and counts for quota {root}"),
                ),
            }
        }
        let counted: BTreeMap<_, _> = quotas
            .trees
            .iter()
            .map(|(k, tree)| (*k, tree.used))
            .collect();
        if counted != sums {
            faults.note("Q1", format!("quotas count {counted:?} of {sums:?}"));
        }
        for (ino, inode) in &self.inodes {
            let told = crate::server::ops::limits_in(&inode.xattrs);
            if told != self.limits(*ino) {
                faults.note(
                    "Q3",
                    format!("inode {ino} has a quota that is not {told:?}"),
                );
            }
            if told != Limits::default() && quotas.tree_of(*ino) != Some(*ino) {
                faults.note(
                    "Q2",
                    format!("inode {ino} does not count for its own quota"),
                );
            }
            for (name, entry) in inode.dir().into_iter().flat_map(Directory::iter) {
                if quotas.check_name(*ino, entry.ino).is_err() {
                    faults.note(
                        "Q2",
                        format!("inode {ino}: {name:?} leads from a quota to another"),
                    );
                }
            }
        }
    }
}
