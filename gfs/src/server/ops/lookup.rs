//! Finding a name.

use crate::server::state::{MetaState, fact};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, FsError, Name, OpReply};

impl MetaState {
    /// Returns the attributes of what a name stands for; `None` if there is no such name.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such directory, [`FsError::NotDir`] if it is none.
    pub fn lookup(&self, parent: InodeNo, name: &Name) -> Result<Option<Attr>, FsError> {
        match self.dir(parent)?.entry(name) {
            Some(entry) => self.attr(entry.ino).map(Some),
            None => Ok(None),
        }
    }
}

pub(super) fn reply(state: &MetaState, parent: InodeNo, name: &Name) -> Result<OpReply, FsError> {
    Ok(OpReply::Found {
        dir: None,
        entry: state.lookup(parent, name)?.as_ref().map(fact),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;

    #[test]
    fn finds_names_and_their_absence() {
        let world = World::new("mkdir d; touch d/f; mkdir gone; rmdir gone");
        let find = |dir: &str, name: &'static str| {
            let found = world
                .state
                .lookup(world.ino(dir), &Name::new(name).expect("valid"));
            found.map(|attr| attr.map(|attr| attr.ino))
        };
        assert_eq!(find("d", "f"), Ok(Some(world.ino("d/f"))));
        assert_eq!(find("d", "g"), Ok(None));
        assert_eq!(find("gone", "g"), Ok(None));
        assert_eq!(find("d/f", "g"), Err(FsError::NotDir));
        assert_eq!(find("#99", "g"), Err(FsError::Stale));
    }
}
