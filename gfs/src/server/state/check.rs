//! What always holds, as a function.

use super::{FileContent, Inode, MetaState, Payload};
use consistency::wire::meta::{FileKind, INLINE_BYTES_MAX};
use consistency::{ChunkId, InodeNo};
use std::collections::BTreeMap;

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
        let mut sums = Sums::default();
        for (ino, inode) in &self.inodes {
            self.check_inode(*ino, inode, &mut sums)
                .map_err(|why| format!("inode {ino}: {why}"))?;
        }
        for (ino, inode) in &self.inodes {
            self.check_links(*ino, inode, &sums)
                .map_err(|why| format!("inode {ino}: {why}"))?;
        }
        self.check_reachable()?;
        self.chunks.check(&sums.chunks)?;
        self.check_quotas()?;
        self.sessions.check(self.chunks.next())
    }

    fn check_inode(&self, ino: InodeNo, inode: &Inode, sums: &mut Sums) -> Result<(), String> {
        let attr = &inode.attr;
        if attr.ino != ino || ino >= self.next_ino {
            return Err(format!("has the number {} of {}", attr.ino, self.next_ino));
        }
        if attr.ctime > self.now {
            return Err(format!("changed at {:?}, after {:?}", attr.ctime, self.now));
        }
        let copies = crate::server::ops::copies_in(&inode.xattrs);
        if copies.is_some_and(|copies| copies != inode.copies) {
            return Err(format!("has {} copies, not {copies:?}", inode.copies));
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
            return Err(format!("is no {:?}", attr.kind));
        }
        match &inode.payload {
            Payload::Dir(dir) => {
                dir.check()?;
                for (name, entry) in dir.iter() {
                    let child = self.inodes.get(&entry.ino).map(|child| &child.attr);
                    if child.map(|child| child.kind) != Some(entry.kind) {
                        return Err(format!("{name:?} stands for {child:?}"));
                    }
                    *sums.names.entry(entry.ino).or_default() += 1;
                    if entry.kind == FileKind::Dir {
                        *sums.subdirs.entry(ino).or_default() += 1;
                        let parent = self.dir(entry.ino).map(|dir| dir.parent);
                        if parent != Ok(ino) {
                            return Err(format!("{name:?} has {parent:?} as its parent"));
                        }
                    }
                }
            }
            Payload::File(content) => {
                if content.end() > attr.size || content.blocks() != attr.blocks {
                    return Err(format!("{content:?} does not fit {attr:?}"));
                }
                match content {
                    FileContent::Inline(bytes) if bytes.len() > INLINE_BYTES_MAX => {
                        return Err(format!("{} bytes are inline", bytes.len()));
                    }
                    FileContent::Inline(_) => {}
                    FileContent::Extents(extents) => {
                        extents.check()?;
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
        Ok(())
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
        if nlink > 0 && self.unnamed.contains(&ino) {
            return Err(format!("with {nlink} links counts as never named"));
        }
        Ok(())
    }

    /// Every directory with a name is reached from the root: there is no cycle beside the tree.
    fn check_reachable(&self) -> Result<(), String> {
        if let Some(ino) = self
            .orphans
            .iter()
            .find(|ino| !self.inodes.contains_key(ino))
        {
            return Err(format!("orphan {ino} does not exist"));
        }
        let mut seen = 0;
        let mut todo = vec![InodeNo::ROOT];
        while let Some(ino) = todo.pop() {
            seen += 1;
            let dir = self
                .dir(ino)
                .map_err(|error| format!("directory {ino}: {error}"))?;
            let subdirs = dir.iter().filter(|(_, entry)| entry.kind == FileKind::Dir);
            todo.extend(subdirs.map(|(_, entry)| entry.ino));
        }
        let live = self
            .inodes
            .values()
            .filter(|inode| inode.dir().is_some() && inode.attr.nlink > 0);
        let live = live.count();
        if seen == live {
            Ok(())
        } else {
            Err(format!(
                "{seen} of {live} directories are reached from the root"
            ))
        }
    }
}
