//! Which files are made of a chunk: for an administrator who has lost it.

use super::{FileContent, MetaState, Payload};
use consistency::wire::meta::{FileKind, Name};
use consistency::{ChunkId, InodeNo};
use std::collections::{BTreeMap, BTreeSet};

/// A file that refers to a chunk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileOf {
    /// Its inode.
    pub ino: InodeNo,
    /// One of its names, from the root of the tree on; `None` if it has none, or no way leads there.
    pub path: Option<String>,
}

impl MetaState {
    /// Returns the files that refer to these chunks. Looks at every inode once, however many chunks are asked for.
    #[must_use]
    pub fn files_of(&self, chunks: &BTreeSet<ChunkId>) -> BTreeMap<ChunkId, Vec<FileOf>> {
        if chunks.is_empty() {
            return BTreeMap::new();
        }
        let mut users: BTreeMap<InodeNo, BTreeSet<ChunkId>> = BTreeMap::new();
        for (ino, inode) in &self.inodes {
            if let Payload::File(FileContent::Extents(extents)) = &inode.payload {
                let used = extents.iter().map(|piece| piece.chunk);
                let used: BTreeSet<_> = used.filter(|id| chunks.contains(id)).collect();
                if !used.is_empty() {
                    users.insert(*ino, used);
                }
            }
        }
        let mut names: BTreeMap<InodeNo, (InodeNo, &Name)> = BTreeMap::new();
        for (dir, inode) in &self.inodes {
            for (name, entry) in inode.dir().into_iter().flat_map(super::Directory::iter) {
                if entry.kind == FileKind::Dir || users.contains_key(&entry.ino) {
                    names.insert(entry.ino, (*dir, name));
                }
            }
        }
        let mut files: BTreeMap<ChunkId, Vec<FileOf>> = BTreeMap::new();
        for (ino, used) in users {
            let path = path_of(ino, &names);
            for chunk in used {
                let path = path.clone();
                files.entry(chunk).or_default().push(FileOf { ino, path });
            }
        }
        files
    }
}

fn path_of(ino: InodeNo, names: &BTreeMap<InodeNo, (InodeNo, &Name)>) -> Option<String> {
    let mut parts = Vec::new();
    let mut at = ino;
    while at != InodeNo::ROOT {
        let (parent, name) = names.get(&at)?;
        parts.push(String::from_utf8_lossy(name.as_bytes()));
        // Damaged directories may lead round and round.
        if parts.len() > names.len() {
            return None;
        }
        at = *parent;
    }
    parts.reverse();
    Some(format!("/{}", parts.join("/")))
}
