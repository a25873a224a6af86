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

pub(super) fn resolve(
    state: &MetaState,
    parent: InodeNo,
    name: &Name,
    dir: bool,
) -> Result<Dirent, FsError> {
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

#[cfg(test)]
mod tests {
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};

    #[test]
    fn removes_names() {
        check("touch f; touch g", "rm f", "g !1");
        check("touch f; ln f g", "rm f", "g");
        check("symlink x l", "rm l", "!1");
        check("mkfifo p", "rm p", "!1");
        check("mkdir d; mkdir d/e", "rmdir d/e", "d/ !1");
        check("mkdir d; touch d/f; rm d/f", "rmdir d", "!2");
    }

    #[test]
    fn what_is_not_there_or_of_the_other_kind() {
        check("", "rm f", "NotFound");
        check("", "rmdir d", "NotFound");
        check("mkdir d", "rm d", "IsDir");
        check("touch f", "rmdir f", "NotDir");
        check("symlink x l", "rmdir l", "NotDir");
        check("mkdir d; touch d/f", "rmdir d", "NotEmpty");
        check("mkdir d; mkdir d/e", "rmdir d", "NotEmpty");
        check("mkdir d; touch d/f", "rm d", "IsDir");
        check("touch f", "rm f/g", "NotDir");
        check("mkdir d; rmdir d", "rm d/f", "NotFound");
        check("mkdir d; rmdir d; reap d", "rm d/f", "Stale");
        check("", "rmdir proc", "NotFound");
    }

    #[test]
    fn stamps_and_plan() {
        check_stamps("mkdir d; touch d/f", "rm d/f", "d/f:cn d:mc");
        check_stamps("mkdir d; touch d/f; ln d/f g", "rm d/f", "d/f:cn d:mc");
        check_stamps("mkdir d; mkdir d/e", "rmdir d/e", "d/e:cn d:mcn");
        check_plan("mkdir d; touch d/f", "rm d/f", "d[f] d/f");
        check_plan("mkdir d; mkdir d/e", "rmdir d/e", "d[e] d/e[*]");
        check_plan("mkdir d; touch d/f", "rmdir d/f", "NotDir");
    }

    #[test]
    fn an_orphan_lives_until_it_is_reaped() {
        let mut world = World::new("touch f; touch g; rm f");
        assert_eq!(world.attr("f").nlink, 0);
        // What has a name is not reaped.
        world.setup("reap f; reap g; reap f");
        assert_eq!(world.tree(), "g");
        assert_eq!(world.state.counts().inodes, 2);
    }
}
