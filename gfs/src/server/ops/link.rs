//! Adding a name to an inode.

use super::{Plan, is_reserved};
use crate::server::state::MetaState;
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FileKind, FsError, Name, OpReply};
use consistency::{InodeNo, Timestamp};

/// Most names of one inode that is no directory, as on ext4.
pub const LINKS_MAX: u32 = 65_000;

pub(super) fn plan(
    state: &MetaState,
    ino: InodeNo,
    parent: InodeNo,
    name: &Name,
) -> Result<Plan, FsError> {
    resolve(state, ino, parent, name)?;
    Ok(Plan::default().name(parent, name).claim(ino, Scope::Attr))
}

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    ino: InodeNo,
    parent: InodeNo,
    name: &Name,
) -> Result<OpReply, FsError> {
    let kind = resolve(state, ino, parent, name)?;
    state.dir_mut(parent).set(name, ino, kind);
    state.inode_mut(ino).attr.nlink += 1;
    Ok(state.changed(now, &[parent], &[ino]))
}

fn resolve(
    state: &MetaState,
    ino: InodeNo,
    parent: InodeNo,
    name: &Name,
) -> Result<FileKind, FsError> {
    let attr = &state.inode(ino)?.attr;
    let dir = state.dir_alive(parent)?;
    if is_reserved(parent, name) || dir.entry(name).is_some() {
        return Err(FsError::Exists);
    }
    if attr.kind == FileKind::Dir {
        return Err(FsError::NotPermitted);
    }
    if attr.nlink == 0 {
        // It lost its last name while the caller was on the way; a deleted file does not come back.
        return Err(FsError::NotFound);
    }
    if attr.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks);
    }
    Ok(attr.kind)
}
