//! Removing a name: unlink(2) and rmdir(2).

use super::Plan;
use crate::server::state::{Dirent, MetaState};
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FileKind, FsError, Name, OpReply};
use consistency::{InodeNo, Timestamp};

pub(super) fn plan(
    state: &MetaState,
    parent: InodeNo,
    name: &Name,
    dir: bool,
) -> Result<Plan, FsError> {
    let victim = resolve(state, parent, name, dir)?;
    Ok(Plan::default()
        .name(parent, name)
        .claim(victim.ino, victim_scope(victim.kind)))
}

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    parent: InodeNo,
    name: &Name,
    dir: bool,
) -> Result<OpReply, FsError> {
    let victim = resolve(state, parent, name, dir)?;
    state.dir_mut(parent).remove(name);
    state.drop_name(victim.ino);
    if victim.kind == FileKind::Dir {
        state.inode_mut(parent).attr.nlink -= 1;
    }
    Ok(state.changed(now, &[parent], &[victim.ino]))
}

fn resolve(state: &MetaState, parent: InodeNo, name: &Name, dir: bool) -> Result<Dirent, FsError> {
    let victim = state
        .dir_alive(parent)?
        .entry(name)
        .ok_or(FsError::NotFound)?;
    match (victim.kind, dir) {
        (FileKind::Dir, false) => Err(FsError::IsDir),
        (FileKind::Dir, true) if !state.dir(victim.ino)?.is_empty() => Err(FsError::NotEmpty),
        (FileKind::Dir, true) => Ok(victim),
        (_, true) => Err(FsError::NotDir),
        (_, false) => Ok(victim),
    }
}

/// Returns what others must have forgotten of an inode that loses a name. Of a directory it is everything:
/// nobody may go on to believe in the absence of names where none can be made any more.
pub(super) const fn victim_scope(kind: FileKind) -> Scope {
    match kind {
        FileKind::Dir => Scope::All,
        FileKind::File
        | FileKind::Symlink
        | FileKind::Fifo
        | FileKind::Socket
        | FileKind::Char
        | FileKind::Block => Scope::Attr,
    }
}
