//! Moving a name, over another one or in exchange for it.

use super::unlink::victim_scope;
use super::{Plan, is_reserved};
use crate::server::state::{Dirent, MetaState};
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FileKind, FsError, Name, OpReply, RenameMode};
use consistency::{InodeNo, Timestamp};

/// The request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rename<'a> {
    pub(super) parent: InodeNo,
    pub(super) name: &'a Name,
    pub(super) new_parent: InodeNo,
    pub(super) new_name: &'a Name,
    pub(super) mode: RenameMode,
}

/// What the request comes to in the present state.
enum Step {
    /// Both names stand for one inode: rename(2) demands that nothing happens.
    Nothing,
    Move {
        moved: Dirent,
        victim: Option<Dirent>,
    },
    Exchange {
        moved: Dirent,
        back: Dirent,
    },
}

impl Rename<'_> {
    pub(super) fn plan(&self, state: &MetaState) -> Result<Plan, FsError> {
        let names = Plan::default()
            .name(self.parent, self.name)
            .name(self.new_parent, self.new_name);
        Ok(match self.resolve(state)? {
            Step::Nothing => names,
            Step::Move { moved, victim } => {
                let plan = names.claim(moved.ino, Scope::Attr);
                match victim {
                    Some(victim) => plan.claim(victim.ino, victim_scope(victim.kind)),
                    None => plan,
                }
            }
            Step::Exchange { moved, back } => names
                .claim(moved.ino, Scope::Attr)
                .claim(back.ino, Scope::Attr),
        })
    }

    pub(super) fn apply(&self, state: &mut MetaState, now: Timestamp) -> Result<OpReply, FsError> {
        let dirs = [self.parent, self.new_parent];
        Ok(match self.resolve(state)? {
            Step::Nothing => OpReply::Changed(Vec::new()),
            Step::Move { moved, victim } => {
                state.dir_mut(self.parent).remove(self.name);
                state
                    .dir_mut(self.new_parent)
                    .set(self.new_name, moved.ino, moved.kind);
                if let Some(victim) = victim {
                    state.drop_name(victim.ino);
                    if victim.kind == FileKind::Dir {
                        state.inode_mut(self.new_parent).attr.nlink -= 1;
                    }
                }
                Self::adopt(state, moved, self.parent, self.new_parent);
                let victim = victim.map_or(moved.ino, |victim| victim.ino);
                state.changed(now, &dirs, &[moved.ino, victim])
            }
            Step::Exchange { moved, back } => {
                state
                    .dir_mut(self.parent)
                    .set(self.name, back.ino, back.kind);
                state
                    .dir_mut(self.new_parent)
                    .set(self.new_name, moved.ino, moved.kind);
                Self::adopt(state, moved, self.parent, self.new_parent);
                Self::adopt(state, back, self.new_parent, self.parent);
                state.changed(now, &dirs, &[moved.ino, back.ino])
            }
        })
    }

    /// Turns the `..` of a directory that was moved to its new parent.
    fn adopt(state: &mut MetaState, moved: Dirent, from: InodeNo, to: InodeNo) {
        if moved.kind == FileKind::Dir && from != to {
            state.dir_mut(moved.ino).parent = to;
            state.inode_mut(from).attr.nlink -= 1;
            state.inode_mut(to).attr.nlink += 1;
        }
    }

    /// The order of the checks is that of Linux, so that a request wrong in two ways fails in the same one.
    fn resolve(&self, state: &MetaState) -> Result<Step, FsError> {
        let old_dir = state.dir_alive(self.parent)?;
        let new_dir = state.dir_alive(self.new_parent)?;
        let moved = old_dir.entry(self.name).ok_or(FsError::NotFound)?;
        let there = new_dir.entry(self.new_name);
        if is_reserved(self.new_parent, self.new_name) {
            return Err(FsError::NotPermitted);
        }
        match (self.mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(FsError::Exists),
            (RenameMode::Exchange, None) => return Err(FsError::NotFound),
            (RenameMode::Replace | RenameMode::NoReplace | RenameMode::Exchange, _) => {}
        }
        let swallows =
            |entry: Dirent, dir| entry.kind == FileKind::Dir && state.is_within(dir, entry.ino);
        if swallows(moved, self.new_parent) {
            return Err(FsError::Invalid);
        }
        state.quotas.check_name(self.new_parent, moved.ino)?;
        let Some(there) = there else {
            self.check_room(state, moved, None)?;
            return Ok(Step::Move {
                moved,
                victim: None,
            });
        };
        if swallows(there, self.parent) {
            return Err(match self.mode {
                RenameMode::Exchange => FsError::Invalid,
                RenameMode::Replace | RenameMode::NoReplace => FsError::NotEmpty,
            });
        }
        if moved.ino == there.ino {
            return Ok(Step::Nothing);
        }
        if self.mode == RenameMode::Exchange {
            state.quotas.check_name(self.parent, there.ino)?;
            self.check_room(state, moved, Some(there))?;
            return Ok(Step::Exchange { moved, back: there });
        }
        match (moved.kind == FileKind::Dir, there.kind == FileKind::Dir) {
            (true, false) => Err(FsError::NotDir),
            (false, true) => Err(FsError::IsDir),
            (true, true) if !state.dir(there.ino)?.is_empty() => Err(FsError::NotEmpty),
            (true, true) | (false, false) => Ok(Step::Move {
                moved,
                victim: Some(there),
            }),
        }
    }

    /// Refuses a subdirectory more than a link count can count. One that takes the place of another is no more.
    fn check_room(
        &self,
        state: &MetaState,
        moved: Dirent,
        back: Option<Dirent>,
    ) -> Result<(), FsError> {
        let is_dir = |entry: Dirent| entry.kind == FileKind::Dir;
        let grows = match (is_dir(moved), back.is_some_and(is_dir)) {
            (true, false) => self.new_parent,
            (false, true) => self.parent,
            (true, true) | (false, false) => return Ok(()),
        };
        if self.parent != self.new_parent && state.inode(grows)?.attr.nlink == u32::MAX {
            return Err(FsError::TooManyLinks);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};

    #[test]
    fn moves_names() {
        check("touch f", "mv f g", "g");
        check("touch f; mkdir d", "mv f d/f", "d/ d/f");
        check("mkdir d; touch d/f", "mv d e", "e/ e/f");
        check("mkdir d; mkdir e; touch d/f", "mv d e/d", "e/ e/d/ e/d/f");
        check("touch f", "mv-n f g", "g");
        check("symlink x l", "mv l m", "m");
    }

    #[test]
    fn replaces_what_is_there() {
        check("touch f; touch g", "mv f g", "g !1");
        check("touch f; touch g; ln g h", "mv f g", "g h");
        check("touch f; symlink x l", "mv f l", "l !1");
        check("mkfifo p; touch f", "mv p f", "f !1");
        check("mkdir d; mkdir e; touch d/f", "mv d e", "e/ e/f !1");
        check("mkdir d; mkdir d/e; mkdir d/f", "mv d/e d/f", "d/ d/f/ !1");
        check("mkdir d; mkdir d/e; mkdir f", "mv d/e f", "d/ f/ !1");
    }

    #[test]
    fn kinds_must_match() {
        check("mkdir d; touch f", "mv d f", "NotDir");
        check("mkdir d; touch f", "mv f d", "IsDir");
        check("mkdir d; touch d/g; touch f", "mv f d", "IsDir");
        check("mkdir d; mkdir e; touch e/f", "mv d e", "NotEmpty");
    }

    #[test]
    fn a_directory_does_not_go_into_itself() {
        check("mkdir d", "mv d d/e", "Invalid");
        check("mkdir d; mkdir d/e", "mv d d/e", "Invalid");
        check("mkdir d; mkdir d/e; mkdir d/e/f", "mv d d/e/f/g", "Invalid");
        check("mkdir d; mkdir d/e", "mv d/e d", "NotEmpty");
        check("mkdir d; touch d/f", "mv d/f d", "NotEmpty");
        check("mkdir d; mkdir d/e; touch d/e/f", "mv d/e/f d", "NotEmpty");
        check("mkdir d; mkdir d/e", "swap d/e d", "Invalid");
        check("mkdir d; mkdir d/e", "swap d d/e", "Invalid");
        check("mkdir d; mkdir d/e", "mv-n d d/f", "Invalid");
    }

    #[test]
    fn one_inode_under_both_names_stays() {
        check("touch f; ln f g", "mv f g", "f*2 g*2");
        check("touch f", "mv f f", "f");
        check("mkdir d", "mv d d", "d/");
        check("touch f; ln f g", "swap f g", "f*2 g*2");
        check("touch f; ln f g", "mv-n f g", "Exists");
        check_stamps("touch f; ln f g", "mv f g", "");
        check_stamps("mkdir d", "mv d d", "");
    }

    #[test]
    fn what_is_not_there() {
        check("", "mv f g", "NotFound");
        check("touch g", "mv f g", "NotFound");
        check("touch f", "swap f g", "NotFound");
        check("touch f; touch g", "mv-n f g", "Exists");
        check("touch f; mkdir d; rmdir d", "mv f d/f", "NotFound");
        check("touch f; mkdir d; rmdir d", "mv d/f f", "NotFound");
        check("touch f; mkdir d; rmdir d; reap d", "mv f d/f", "Stale");
        check("touch f; touch g", "mv f g/h", "NotDir");
        check("touch f; touch g", "mv g/h f", "NotDir");
        check("touch f", "mv f proc", "NotPermitted");
        check("mkdir d", "mv d node1", "NotPermitted");
    }

    #[test]
    fn exchanges() {
        check("touch f; mkdir d; touch d/g", "swap f d", "d f/ f/g");
        check(
            "mkdir d; touch d/f; mkdir e; mkdir e/g",
            "swap d/f e/g",
            "d/ d/f/ e/ e/g",
        );
        check(
            "mkdir d; mkdir d/f; mkdir e; mkdir e/g",
            "swap d/f e/g",
            "d/ d/f/ e/ e/g/",
        );
        let mut world = World::new("mkdir d; mkdir d/f; mkdir e; mkdir e/g");
        let (f, g) = (world.ino("d/f"), world.ino("e/g"));
        world.setup("swap d/f e/g");
        assert_eq!((world.ino("d/f"), world.ino("e/g")), (g, f));
    }

    #[test]
    fn stamps() {
        check_stamps("touch f", "mv f g", "/:mc f:c");
        check_stamps("touch f; mkdir d", "mv f d/f", "/:mc d:mc f:c");
        check_stamps("mkdir e; mkdir d", "mv e d/e", "/:mcn d:mcn e:c");
        check_stamps("mkdir e; mkdir d", "mv e d", "/:mcn d:cn e:c");
        check_stamps(
            "mkdir d; mkdir d/e; mkdir f",
            "mv d/e f",
            "/:mc d/e:c d:mcn f:cn",
        );
        check_stamps("touch f; touch g", "mv f g", "/:mc f:c g:cn");
        check_stamps(
            "touch f; mkdir d; mkdir d/e",
            "swap f d/e",
            "/:mcn d/e:c d:mcn f:c",
        );
        check_stamps(
            "mkdir f; mkdir d; mkdir d/e",
            "swap f d/e",
            "/:mc d/e:c d:mc f:c",
        );
    }

    #[test]
    fn plans() {
        check_plan("touch f", "mv f g", "/[f,g] f");
        check_plan("touch f; touch g", "mv f g", "/[f,g] f g");
        check_plan("touch f; mkdir d", "mv f d/g", "/[f] d[g] f");
        check_plan("mkdir d; mkdir e", "mv d e", "/[d,e] d e[*]");
        check_plan(
            "mkdir d; mkdir e; mkdir e/f",
            "swap d e/f",
            "/[d] e[f] d e/f",
        );
        check_plan("touch f; ln f g", "mv f g", "/[f,g]");
        check_plan("mkdir d", "mv d d/e", "Invalid");
    }
}
