//! Names that a node makes in directories of its own, where it may do so by itself (G1), what it writes there, and what S1
//! to S4 say of both; and which of these names it removes by itself (G4).
//!
//! They are numbered, and made and committed in this order: of one directory a node loses the youngest, or none. A node
//! that makes a directory makes nothing more in the one before. What is in a file follows from its number and its
//! directory's; it is written once, after the name is made, and may be lost by itself: then the file is empty. The oldest
//! names are removed, in this order, too: of its removals a node loses the youngest, or none.

use super::model::Who;
use bytes::Bytes;
use consistency::InodeNo;
use std::collections::{BTreeMap, BTreeSet};

/// What does not fit into a file's record.
pub(super) const LONG: usize = 20_000;

/// The present directories, by node, and what must be in earlier ones.
#[derive(Debug, Default)]
pub(super) struct Own {
    present: BTreeMap<u16, Dir>,
    /// Of nodes that went on or lost something: what was seen or synced.
    kept: Vec<Dir>,
    /// Names that were not found, or were empty, in directories whose makers are not known to have lost them: by number, and why that
    /// would be wrong.
    missed: BTreeMap<u64, String>,
    last: u64,
}

/// A directory.
#[derive(Clone, Debug)]
pub(super) struct Dir {
    pub(super) number: u64,
    pub(super) ino: InodeNo,
    /// So many have been made.
    pub(super) made: u64,
    /// So many were seen by others, or synced.
    pub(super) safe: u64,
    /// All up to this one were written.
    pub(super) written: u64,
    /// Those whose content was seen by others, or synced.
    pub(super) kept: BTreeSet<u64>,
    /// Names up to this one may have been removed.
    pub(super) unsure: u64,
    /// Names up to this one were removed.
    pub(super) removed: u64,
    /// The same, and others have seen it, or it was synced.
    pub(super) gone: u64,
}

impl Dir {
    pub(super) fn path(number: u64) -> String {
        format!("d{number}")
    }
}

impl Own {
    /// Returns the number of a directory that is about to be made.
    pub(super) const fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// A node has made a directory.
    pub(super) fn begin(&mut self, node: u16, number: u64, ino: InodeNo) {
        self.end(node);
        let dir = Dir {
            number,
            ino,
            made: 0,
            safe: 0,
            written: 0,
            kept: BTreeSet::new(),
            unsure: 0,
            removed: 0,
            gone: 0,
        };
        self.present.insert(node, dir);
    }

    /// A node makes nothing more in its directory, or has lost what it alone knew (S4).
    pub(super) fn end(&mut self, node: u16) {
        if let Some(dir) = self.present.remove(&node) {
            self.missed.remove(&dir.number);
            self.kept.push(dir);
        }
    }

    pub(super) fn present(&self, node: u16) -> Option<&Dir> {
        self.present.get(&node)
    }

    /// Returns the nodes that have one.
    pub(super) fn nodes(&self) -> Vec<u16> {
        self.present.keys().copied().collect()
    }

    /// The node has made name `made` in the directory.
    pub(super) fn made(&mut self, node: u16, number: u64, made: u64) {
        if let Some(dir) = self.at(node, number) {
            dir.made = dir.made.max(made);
        }
    }

    /// The node has written name `written`.
    pub(super) fn written(&mut self, node: u16, number: u64, written: u64) {
        if let Some(dir) = self.at(node, number) {
            dir.written = dir.written.max(written);
        }
    }

    /// Names up to `safe` were seen by others, or synced (S2, S3).
    pub(super) fn safe(&mut self, number: u64, safe: u64) {
        let all = self.present.values_mut().chain(&mut self.kept);
        for dir in all.filter(|dir| dir.number == number) {
            dir.safe = dir.safe.max(safe);
        }
    }

    /// The content of `name`, and so the name, was seen by others, or synced (S2, S3).
    pub(super) fn keep(&mut self, number: u64, name: u64) {
        self.safe(number, name);
        let all = self.present.values_mut().chain(&mut self.kept);
        for dir in all.filter(|dir| dir.number == number) {
            dir.kept.insert(name);
        }
    }

    /// The node is about to remove a name.
    pub(super) fn removing(&mut self, node: u16, number: u64, name: u64) {
        if let Some(dir) = self.at(node, number) {
            dir.unsure = name;
        }
    }

    /// It has.
    pub(super) fn removed(&mut self, node: u16, number: u64, name: u64) {
        if let Some(dir) = self.at(node, number) {
            dir.removed = name;
        }
    }

    /// Others have seen, or it was synced, that names up to this one are not there any more (S2, S3).
    pub(super) fn gone(&mut self, number: u64, name: u64) {
        let all = self.present.values_mut().chain(&mut self.kept);
        for dir in all.filter(|dir| dir.number == number) {
            dir.gone = dir.gone.max(name);
        }
    }

    fn may_be_removed(&self, number: u64, name: u64) -> bool {
        let mut all = self.present.values().chain(&self.kept);
        all.any(|dir| dir.number == number && name <= dir.unsure)
    }

    fn at(&mut self, node: u16, number: u64) -> Option<&mut Dir> {
        let dir = self.present.get_mut(&node);
        dir.filter(|dir| dir.number == number)
    }

    /// A name was not found in what `looked` was before. Returns why that is certainly wrong; else it is if its maker turns
    /// out to have lost nothing: while that is stopped others find out first.
    pub(super) fn miss(&mut self, looked: &Dir, name: u64) -> Option<String> {
        if self.may_be_removed(looked.number, name) {
            return None;
        }
        let why = format!("name {name} is missed in {looked:?}");
        self.note_missed(looked, name <= looked.safe, why)
    }

    /// As [`Self::miss`], of what was written into it.
    pub(super) fn miss_content(&mut self, looked: &Dir, name: u64) -> Option<String> {
        if name > looked.written || self.may_be_removed(looked.number, name) {
            return None;
        }
        let why = format!("the content of name {name} is missed in {looked:?}");
        self.note_missed(looked, looked.kept.contains(&name), why)
    }

    /// As [`Self::miss`], of a name that was there and had been removed.
    pub(super) fn come_back(&mut self, looked: &Dir, name: u64) -> Option<String> {
        let why = format!("name {name} has come back in {looked:?}");
        self.note_missed(looked, name <= looked.gone, why)
    }

    fn note_missed(&mut self, looked: &Dir, is_wrong: bool, why: String) -> Option<String> {
        if is_wrong {
            return Some(why);
        }
        if self.present.values().any(|dir| dir.number == looked.number) {
            self.missed.insert(looked.number, why);
        }
        None
    }

    /// A node has run, and lost nothing. Returns what is wrong then.
    pub(super) fn goes_on(&mut self, node: u16) -> Option<String> {
        self.missed.remove(&self.present.get(&node)?.number)
    }

    /// Returns all directories, for a last look.
    pub(super) fn all(&self) -> Vec<Dir> {
        self.present.values().chain(&self.kept).cloned().collect()
    }
}

/// What a program does with them.
#[derive(Clone, Copy, Debug)]
pub(super) enum OwnOp {
    /// Makes a directory and so many names in it.
    Begin(u8),
    Make,
    /// Removes the oldest name, but for the youngest two.
    Remove,
    Sync,
    /// Syncs the youngest file, and reads it back.
    SyncFile,
    /// Reads the youngest file back.
    Read,
    /// Looks for the youngest name of another node.
    Look(u16),
}

/// The name of a number.
pub(super) fn name(number: u64) -> String {
    format!("m{number}")
}

/// What is in the file of that number: nothing, what fits into its record, or more.
pub(super) fn content(dir: u64, name: u64) -> Bytes {
    let times = [LONG / 8, 0, 1][(name % 3) as usize];
    Bytes::from((dir << 32 | name).to_le_bytes().repeat(times))
}

/// Returns whose directory is worth a look: anyone's but one's own.
pub(super) fn other(nodes: &[u16], who: Who, draw: usize) -> Option<u16> {
    let others: Vec<u16> = nodes.iter().copied().filter(|n| *n != who.node).collect();
    (!others.is_empty()).then(|| others[draw % others.len()])
}
