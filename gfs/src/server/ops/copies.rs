//! The extended attribute of a directory that says how many copies there are of its tree's chunks.
//!
//! Every inode has the number of the directory that it was made in, as with the limits of a quota, so that no walk up
//! finds it out. A directory with the attribute has its own, and so has all below it up to the next such directory.
//! A name that moves elsewhere keeps what its inode has.

use crate::server::state::{Directory, FileContent, MetaState, Payload, REPLICAS_MAX};
use bytes::Bytes;
use consistency::wire::meta::{FileKind, FsError, Name, REPLICAS};
use consistency::{ChunkId, InodeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Most inodes of a tree: all are changed in one step, in which nothing else goes on.
const TREE_INODES_MAX: usize = 1_000_000;

static NAME: LazyLock<Name> = LazyLock::new(|| Name::new(REPLICAS).expect("a valid name"));

/// What a change of the number comes to.
pub(super) struct Change {
    copies: u8,
    inodes: BTreeSet<InodeNo>,
}

impl Change {
    /// Checks a change of the attribute; `None`: it is removed.
    ///
    /// # Errors
    /// [`FsError::Invalid`] for a value that is no possible number, [`FsError::NotDir`], [`FsError::AttrTooLarge`] for
    /// a tree of more than [`TREE_INODES_MAX`] inodes.
    pub(super) fn resolve(
        state: &MetaState,
        root: InodeNo,
        value: Option<&Bytes>,
    ) -> Result<Self, FsError> {
        let parent = state.dir(root)?.parent;
        let copies = match value {
            Some(value) => parse(value).ok_or(FsError::Invalid)?,
            None if root == InodeNo::ROOT => 0,
            None => state.inode(parent).map_or(0, |parent| parent.copies),
        };
        let mut inodes = BTreeSet::from([root]);
        let mut todo = vec![root];
        while let Some(dir) = todo.pop() {
            for (_, entry) in state.dir(dir).map(Directory::iter)? {
                if entry.kind == FileKind::Dir {
                    if state.inode(entry.ino)?.xattrs.contains_key(&*NAME) {
                        continue;
                    }
                    todo.push(entry.ino);
                }
                if inodes.insert(entry.ino) && inodes.len() > TREE_INODES_MAX {
                    return Err(FsError::AttrTooLarge);
                }
            }
        }
        Ok(Self { copies, inodes })
    }

    pub(super) fn apply(self, state: &mut MetaState) {
        for ino in self.inodes {
            let inode = state.inode_mut(ino);
            inode.copies = self.copies;
            let Payload::File(FileContent::Extents(extents)) = &inode.payload else {
                continue;
            };
            let chunks: BTreeSet<ChunkId> = extents.iter().map(|piece| piece.chunk).collect();
            for chunk in chunks {
                state.chunks.set_copies(chunk, self.copies);
            }
        }
    }
}

/// Returns true for the attribute's name.
pub(super) fn is_name(name: &Name) -> bool {
    *name == *NAME
}

/// Returns the number that the attributes of an inode say.
pub(crate) fn copies_in(xattrs: &BTreeMap<Name, Bytes>) -> Option<u8> {
    parse(xattrs.get(&*NAME)?)
}

/// Takes a single digit, from 1 to as many copies as a chunk may have.
fn parse(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'1'..=b'9'] => {
            let copies = digit - b'0';
            (usize::from(copies) <= REPLICAS_MAX).then_some(copies)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};

    const THREE: &str = "chattr user.glu.replicas=3 d";

    fn copies(world: &World, path: &str) -> u8 {
        world.state.inodes[&world.ino(path)].copies
    }

    #[test]
    fn inherited_by_what_is_there_and_what_comes() {
        let mut world = World::new(&format!(
            "mkdir d; mkdir d/e; touch d/e/f; touch g; {THREE}"
        ));
        world.setup("touch d/e/h; mkdir d/i; tmpfile t");
        for path in ["d", "d/e", "d/e/f", "d/e/h", "d/i"] {
            assert_eq!(copies(&world, path), 3, "{path}");
        }
        assert_eq!(copies(&world, "g"), 0);
        // The nearest directory counts, whatever is said above it.
        world.setup("chattr user.glu.replicas=1 d/e; chattr user.glu.replicas=4 d");
        assert_eq!([copies(&world, "d/e/f"), copies(&world, "d/i")], [1, 4]);
        world.setup("mv d/e/f d/f; chattr-d user.glu.replicas d/e");
        assert_eq!([copies(&world, "d/f"), copies(&world, "d/e/h")], [1, 4]);
        world.setup("chattr-d user.glu.replicas d");
        for path in ["d", "d/e", "d/f"] {
            assert_eq!(copies(&world, path), 0, "{path}");
        }
    }

    #[test]
    fn values() {
        for (value, expected) in [
            ("1", "d/"),
            ("4", "d/"),
            ("5", "Invalid"),
            ("0", "Invalid"),
            ("", "Invalid"),
            ("02", "Invalid"),
            ("-1", "Invalid"),
            ("many", "Invalid"),
        ] {
            let set = format!("chattr user.glu.replicas={value} d");
            check("mkdir d", &set, expected);
        }
        check("touch f", "chattr user.glu.replicas=1 f", "NotDir");
        check_plan("touch f", "chattr user.glu.replicas=1 f", "NotDir");
        check("mkdir d", "chattr-d user.glu.replicas d", "NoData");
        check_stamps("mkdir d; touch d/f", THREE, "d:c");
    }
}
