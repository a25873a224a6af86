//! Attributes and content map of a file, in one piece.

use crate::server::state::{FileContent, MetaState, Payload, fact};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, Content, Extent, FsError, OpReply};

impl MetaState {
    /// Returns a file's attributes and content.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such inode, [`FsError::IsDir`] for a directory, [`FsError::Invalid`] for
    /// anything else that is no regular file.
    pub fn load(&self, ino: InodeNo) -> Result<(Attr, Content), FsError> {
        let inode = self.inode(ino)?;
        let content = match &inode.payload {
            Payload::File(FileContent::Inline(bytes)) => Content::Inline(bytes.clone()),
            Payload::File(FileContent::Extents(extents)) => {
                let extent = |piece: &crate::server::state::Piece| Extent {
                    offset: piece.offset,
                    len: piece.len,
                    chunk: piece.chunk,
                    chunk_offset: piece.chunk_offset,
                    replicas: self.chunks.replicas(piece.chunk),
                };
                Content::Extents(extents.iter().map(extent).collect())
            }
            Payload::Dir(_) => return Err(FsError::IsDir),
            Payload::Symlink(_) | Payload::Special => return Err(FsError::Invalid),
        };
        Ok((inode.attr.clone(), content))
    }
}

impl MetaState {
    /// Returns the bytes that a quota leaves for a file; `None`: no quota limits it.
    pub(super) fn bytes_left(&self, ino: InodeNo) -> Option<u64> {
        self.quotas.of(ino)?.bytes_left()
    }
}

pub(super) fn reply(state: &MetaState, ino: InodeNo) -> Result<OpReply, FsError> {
    let (attr, content) = state.load(ino)?;
    Ok(OpReply::Loaded {
        file: fact(&attr),
        content,
        room: state.bytes_left(ino),
        copies: state.inode(ino)?.copies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;

    #[test]
    fn only_files_have_content() {
        let world = World::new("mkdir d; touch f; symlink f l; mkfifo p");
        let load = |path: &str| {
            world
                .state
                .load(world.ino(path))
                .map(|(_, content)| content)
        };
        assert_eq!(load("f"), Ok(Content::default()));
        assert_eq!(load("d"), Err(FsError::IsDir));
        assert_eq!(load("l"), Err(FsError::Invalid));
        assert_eq!(load("p"), Err(FsError::Invalid));
        assert_eq!(load("#99"), Err(FsError::Stale));
    }
}
