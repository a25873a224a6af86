//! Attributes.

use crate::server::state::{MetaState, fact};
use consistency::InodeNo;
use consistency::wire::meta::{Attr, FsError, OpReply};

impl MetaState {
    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// [`FsError::Stale`] if there is no such inode.
    pub fn attr(&self, ino: InodeNo) -> Result<Attr, FsError> {
        Ok(self.inode(ino)?.attr.clone())
    }
}

pub(super) fn reply(state: &MetaState, ino: InodeNo) -> Result<OpReply, FsError> {
    Ok(OpReply::Attr(fact(&state.inode(ino)?.attr)))
}
