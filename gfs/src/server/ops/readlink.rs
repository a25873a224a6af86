//! Target of a symbolic link.

use crate::server::state::{MetaState, Payload};
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{FsError, OpReply};

impl MetaState {
    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such inode, [`FsError::Invalid`] if it is no symbolic link.
    pub fn readlink(&self, ino: InodeNo) -> Result<Bytes, FsError> {
        match &self.inode(ino)?.payload {
            Payload::Symlink(target) => Ok(target.clone()),
            Payload::Dir(_) | Payload::File(_) | Payload::Special => Err(FsError::Invalid),
        }
    }
}

pub(super) fn reply(state: &MetaState, ino: InodeNo) -> Result<OpReply, FsError> {
    state.readlink(ino).map(OpReply::Target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;

    #[test]
    fn reads_links_only() {
        let world = World::new("symlink ../x l; touch f; mkdir d");
        let read = |path: &str| world.state.readlink(world.ino(path));
        assert_eq!(read("l"), Ok(Bytes::from("../x")));
        assert_eq!(read("f"), Err(FsError::Invalid));
        assert_eq!(read("d"), Err(FsError::Invalid));
        assert_eq!(read("#99"), Err(FsError::Stale));
    }
}
