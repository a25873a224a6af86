//! What always holds of the metadata at rest, as a function.

use super::{FileContent, Inode, MetaState, Payload};
use consistency::wire::meta::{FileKind, INLINE_BYTES_MAX};
use consistency::{ChunkId, InodeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most contradictions that are told: what is wrong everywhere need not be told of everything.
pub const FAULTS_MAX: usize = 1_000;

/// A contradiction between the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which rule is broken, as docs/protocol.md numbers it.
    pub rule: &'static str,
    /// What does not fit, in one line.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.rule)
    }
}

/// Collects contradictions.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn note(&mut self, rule: &'static str, what: String) {
        if self.0.len() < FAULTS_MAX {
            self.0.push(Fault { rule, what });
        }
    }
}

/// What the names and extents of the whole tree add up to.
#[derive(Default)]
struct Sums {
    names: BTreeMap<InodeNo, u32>,
    subdirs: BTreeMap<InodeNo, u32>,
    /// References to a chunk, and the end of the furthest one.
    chunks: BTreeMap<ChunkId, (u32, u64)>,
}

impl MetaState {
    /// Checks everything that must hold between the records: link counts are the names there are, listings
    /// mirror the names, the directories form one tree, orphans are exactly the inodes without a name, chunk
    /// references are the extents there are, quotas count what is there (Q1, Q2), no stamp lies ahead of the clock.
    ///
    /// Reads the whole state: for tests, and for an administrator who asks.
    ///
    /// # Errors
    /// The first contradiction found, in one line.
    pub fn check(&self) -> Result<(), String> {
        match self.faults().first() {
            None => Ok(()),
            Some(fault) => Err(fault.to_string()),
        }
    }

    /// Returns all contradictions that [`Self::check`] looks for, at most [`FAULTS_MAX`]. Whatever the records say, it
    /// comes to an end and does not panic: they may have been damaged before their checksum was made.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        let mut sums = Sums::default();
        for (ino, inode) in &self.inodes {
            self.check_inode(*ino, inode, &mut faults);
            self.check_payload(*ino, inode, &mut sums, &mut faults);
        }
        for (ino, inode) in &self.inodes {
            if let Err(why) = self.check_links(*ino, inode, &sums) {
                faults.note("T3", format!("inode {ino}: {why}"));
            }
        }
        self.check_nameless(&mut faults);
        self.check_reachable(&mut faults);
        self.chunks.check(&sums.chunks, &mut faults);
        self.check_quotas(&mut faults);
        self.sessions.check(self.chunks.next(), &mut faults);
        faults.0
    }

    /// Checks the attributes of an inode (T1, S6).
    fn check_inode(&self, ino: InodeNo, inode: &Inode, faults: &mut Faults) {
        let attr = &inode.attr;
        let mut note = |rule, why: String| faults.note(rule, format!("inode {ino}: {why}"));
        let given = ino
            .number_of_session()
            .map_or(ino < self.next_ino, |number| number < self.chunks.next());
        if attr.ino != ino || !given {
            note(
                "T1",
                format!("has the number {} of {}", attr.ino, self.next_ino),
            );
        }
        if attr.ctime > self.now {
            note(
                "S6",
                format!("changed at {:?}, after {:?}", attr.ctime, self.now),
            );
        }
        let copies = crate::server::ops::copies_in(&inode.xattrs);
        if copies.is_some_and(|copies| copies != inode.copies) {
            note("T1", format!("has {} copies, not {copies:?}", inode.copies));
        }
        let kind_fits = match &inode.payload {
            Payload::Dir(_) => attr.kind == FileKind::Dir,
            Payload::File(_) => attr.kind == FileKind::File,
            Payload::Symlink(target) => {
                attr.kind == FileKind::Symlink && attr.size == target.len() as u64
            }
            Payload::Special => matches!(
                attr.kind,
                FileKind::Fifo | FileKind::Socket | FileKind::Char | FileKind::Block
            ),
        };
        if !kind_fits {
            note("T1", format!("is no {:?}", attr.kind));
        }
    }

    /// Checks names and content (T1, T2) and adds them up.
    fn check_payload(&self, ino: InodeNo, inode: &Inode, sums: &mut Sums, faults: &mut Faults) {
        let mut note = |rule, why: String| faults.note(rule, format!("inode {ino}: {why}"));
        match &inode.payload {
            Payload::Dir(dir) => {
                if let Err(why) = dir.check() {
                    note("T2", why);
                }
                for (name, entry) in dir.iter() {
                    let child = self.inodes.get(&entry.ino).map(|child| &child.attr);
                    if child.map(|child| child.kind) != Some(entry.kind) {
                        note("T2", format!("{name:?} stands for {child:?}"));
                    }
                    *sums.names.entry(entry.ino).or_default() += 1;
                    if entry.kind == FileKind::Dir {
                        *sums.subdirs.entry(ino).or_default() += 1;
                        let parent = self.dir(entry.ino).map(|dir| dir.parent);
                        if parent != Ok(ino) {
                            note("T2", format!("{name:?} has {parent:?} as its parent"));
                        }
                    }
                }
            }
            Payload::File(content) => {
                if content.end() > inode.attr.size || content.blocks() != inode.attr.blocks {
                    note("T1", format!("{content:?} does not fit {:?}", inode.attr));
                }
                match content {
                    FileContent::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
                        note("T1", format!("{} bytes are inline", bytes.len()));
                    }
                    FileContent::Inline(_) => {}
                    FileContent::Extents(extents) => {
                        if let Err(why) = extents.check() {
                            note("T1", why);
                        }
                        for piece in extents.iter() {
                            let (refs, end) = sums.chunks.entry(piece.chunk).or_default();
                            *refs += 1;
                            *end = (*end).max(u64::from(piece.chunk_offset) + u64::from(piece.len));
                        }
                    }
                }
            }
            Payload::Symlink(_) | Payload::Special => {}
        }
    }

    fn check_links(&self, ino: InodeNo, inode: &Inode, sums: &Sums) -> Result<(), String> {
        let names = sums.names.get(&ino).copied().unwrap_or(0);
        let nlink = match inode.dir() {
            Some(_) if ino == InodeNo::ROOT || names == 1 => {
                2 + sums.subdirs.get(&ino).copied().unwrap_or(0)
            }
            Some(dir) if names == 0 && dir.is_empty() => 0,
            Some(_) => return Err(format!("is a directory with {names} names")),
            None => names,
        };
        if inode.attr.nlink != nlink {
            return Err(format!("counts {} links of {nlink}", inode.attr.nlink));
        }
        if self.orphans.contains(&ino) != (nlink == 0) {
            return Err(format!("with {nlink} links is wrongly (no) orphan"));
        }
        Ok(())
    }

    /// What counts as nameless is there and has no name (T3).
    fn check_nameless(&self, faults: &mut Faults) {
        for ino in &self.orphans {
            if !self.inodes.contains_key(ino) {
                faults.note("T3", format!("orphan {ino} does not exist"));
            }
        }
        for ino in self.unnamed.difference(&self.orphans) {
            faults.note(
                "T3",
                format!("inode {ino} counts as never named and is no orphan"),
            );
        }
    }

    /// Every directory with a name is reached from the root: there is no cycle beside the tree (T4).
    fn check_reachable(&self, faults: &mut Faults) {
        let mut seen = BTreeSet::new();
        let mut todo = vec![InodeNo::ROOT];
        while let Some(ino) = todo.pop() {
            // A name that stands for nothing is told above.
            let Ok(dir) = self.dir(ino) else { continue };
            if seen.insert(ino) {
                let subdirs = dir.iter().filter(|(_, entry)| entry.kind == FileKind::Dir);
                todo.extend(subdirs.map(|(_, entry)| entry.ino));
            }
        }
        if !seen.contains(&InodeNo::ROOT) {
            faults.note("T4", "there is no root directory".to_owned());
        }
        for (ino, inode) in &self.inodes {
            if inode.dir().is_some() && inode.attr.nlink > 0 && !seen.contains(ino) {
                faults.note(
                    "T4",
                    format!("directory {ino} is not reached from the root"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
