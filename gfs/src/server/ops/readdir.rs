//! Listing a directory, page by page.

use crate::server::state::{MetaState, fact};
use consistency::InodeNo;
use consistency::wire::meta::{DirEntry, FsError, OpReply, READDIR_ENTRIES_MAX};

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Parent of the directory.
    pub parent: InodeNo,
    /// Entries in order of cookies, each with its attributes.
    pub entries: Vec<DirEntry>,
    /// Nothing follows.
    pub end: bool,
}

impl MetaState {
    /// Returns up to `limit` (1 to [`READDIR_ENTRIES_MAX`]) entries of a directory after the cookie `after`.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such inode, [`FsError::NotDir`], [`FsError::Invalid`] for another limit.
    pub fn readdir(&self, ino: InodeNo, after: u64, limit: u32) -> Result<Listing, FsError> {
        if !(1..=READDIR_ENTRIES_MAX).contains(&limit) {
            return Err(FsError::Invalid);
        }
        let dir = self.dir(ino)?;
        let mut rest = dir.after(after);
        let mut entries = Vec::new();
        for (name, entry) in rest.by_ref().take(limit as usize) {
            entries.push(DirEntry {
                cookie: entry.cookie,
                name: name.clone(),
                ino: entry.ino,
                kind: entry.kind,
                fact: Some(fact(&self.inode(entry.ino)?.attr)),
            });
        }
        Ok(Listing {
            parent: dir.parent,
            end: rest.next().is_none(),
            entries,
        })
    }
}

pub(super) fn reply(
    state: &MetaState,
    ino: InodeNo,
    after: u64,
    limit: u32,
) -> Result<OpReply, FsError> {
    let listing = state.readdir(ino, after, limit)?;
    Ok(OpReply::Listing {
        dir: None,
        parent: listing.parent,
        entries: listing.entries,
        end: listing.end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;

    /// Lists `d` in pages of two; after the first page runs a command.
    #[track_caller]
    fn check(setup: &str, between: &str, expected: &str) {
        let mut world = World::new(setup);
        let (ino, mut after, mut pages) = (world.ino("d"), 0, Vec::new());
        loop {
            let page = world.state.readdir(ino, after, 2).expect("lists");
            let names = page
                .entries
                .iter()
                .map(|entry| String::from_utf8_lossy(entry.name.as_bytes()).into_owned());
            pages.push(names.collect::<Vec<_>>().join(" "));
            after = page.entries.last().map_or(after, |entry| entry.cookie);
            if page.end {
                break;
            }
            if pages.len() == 1 {
                world.setup(between);
            }
        }
        assert_eq!(pages.join(" | "), expected);
    }

    #[test]
    fn pages_follow_the_order_of_creation() {
        check("mkdir d", "", "");
        check("mkdir d; touch d/b; touch d/a", "", "b a");
        check("mkdir d; touch d/c; touch d/b; touch d/a", "", "c b | a");
    }

    #[test]
    fn a_name_keeps_its_place() {
        let setup = "mkdir d; touch d/c; touch d/b; touch d/a; touch d/x";
        // Replaced: at the place of the target; what was seen is not seen again.
        check(setup, "mv d/x d/b", "c b | a");
        check(setup, "mv d/c d/a", "c b | a x");
        check(setup, "swap d/c d/a", "c b | a x");
        // A new name comes at the end, a removed one is not missed.
        check(setup, "mv d/c d/n", "c b | a x | n");
        check(setup, "rm d/b", "c b | a x");
        check(setup, "rm d/a", "c b | x");
    }

    #[test]
    fn knows_the_parent_and_refuses_nonsense() {
        let world = World::new("mkdir d; mkdir d/e; touch f");
        let list = |path: &str, limit| world.state.readdir(world.ino(path), 0, limit);
        assert_eq!(list("d/e", 1).expect("lists").parent, world.ino("d"));
        assert_eq!(list("/", 1).expect("lists").parent, InodeNo::ROOT);
        assert_eq!(list("f", 1), Err(FsError::NotDir));
        assert_eq!(list("#99", 1), Err(FsError::Stale));
        assert_eq!(list("d", 0), Err(FsError::Invalid));
        assert_eq!(list("d", READDIR_ENTRIES_MAX + 1), Err(FsError::Invalid));
    }
}
