//! Adding a name to an inode.

use super::{Plan, is_reserved};
use crate::server::state::MetaState;
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FileKind, FsError, Name, OpReply};
use consistency::{InodeNo, Timestamp};

/// Most names of one inode that is no directory, as on ext4.
pub(super) const LINKS_MAX: u32 = 65_000;

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
    if state.unnamed.remove(&ino) {
        state.orphans.remove(&ino);
    }
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
    if attr.nlink == 0 && !state.unnamed.contains(&ino) {
        // It lost its last name while the caller was on the way; a deleted file does not come back.
        return Err(FsError::NotFound);
    }
    if attr.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks);
    }
    state.quotas.check_name(parent, ino)?;
    Ok(attr.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};

    #[test]
    fn adds_names() {
        check("touch f", "ln f g", "f*2 g*2");
        check("touch f; mkdir d", "ln f d/f", "d/ d/f*2 f*2");
        check("symlink x l", "ln l m", "l*2 m*2");
        check("mkfifo p", "ln p q", "p*2 q*2");
    }

    #[test]
    fn where_it_cannot_be() {
        check("touch f; touch g", "ln f g", "Exists");
        check("touch f", "ln f f", "Exists");
        check("mkdir d", "ln d e", "NotPermitted");
        check("mkdir d; touch e", "ln d e", "Exists");
        check("touch f; touch g", "ln f g/h", "NotDir");
        check("touch f; mkdir d; rmdir d", "ln f d/f", "NotFound");
        check("touch f; rm f", "ln f g", "NotFound");
        check("touch f; rm f; reap f", "ln f g", "Stale");
        check("touch f", "ln f proc", "Exists");
        check("touch f", "ln f node12", "Exists");
    }

    #[test]
    fn a_file_made_without_a_name_may_get_one() {
        check("tmpfile t", "ln t f", "f");
        check("tmpfile t; mkdir d; ln t d/f", "ln t g", "d/ d/f*2 g*2");
        check_stamps("tmpfile t", "ln t f", "/:mc t:cn");
        check_plan("tmpfile t", "ln t f", "/[f] t");
        // It had one: then it is like any other.
        check("tmpfile t; ln t f; rm f", "ln t g", "NotFound");
        check("tmpfile t; reap t", "ln t g", "Stale");
        check("tmpfile t; ln t f; reap t", "ln t g", "f*2 g*2");
    }

    #[test]
    fn stamps_and_plan() {
        check_stamps("touch f; mkdir d", "ln f d/g", "d:mc f:cn");
        check_plan("touch f; mkdir d", "ln f d/g", "d[g] f");
        check_plan("touch f; mkdir d", "ln f d/f", "d[f] f");
    }

    #[test]
    fn link_counts_have_a_limit() {
        let mut world = World::new("touch f");
        let ino = world.ino("f");
        // As if it had all those names: making them one by one would take long.
        world.state.inode_mut(ino).attr.nlink = LINKS_MAX - 1;
        let name = |name: &'static str| Name::new(name).expect("valid");
        let link =
            |state: &mut MetaState, to| apply(state, state.now, ino, InodeNo::ROOT, &name(to));
        assert!(link(&mut world.state, "g").is_ok());
        assert_eq!(link(&mut world.state, "h"), Err(FsError::TooManyLinks));
    }
}
