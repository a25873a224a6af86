//! What each operation does to the tree, one file each: pure functions of the state.
//!
//! A reading operation is a method of [`MetaState`]. A changing one has a `plan`, which says what it would
//! change (the driver turns that into claims on leases and waits for them), and an `apply`, which the log
//! runs later on every voter. Between the two other changes may be applied: `apply` looks at everything
//! again, and both go through the same resolving function, so that they cannot disagree on one state.
//!
//! Rules: on an error nothing has changed; a changed inode gets one new version and `ctime` per operation.
//! Permissions are the kernel's to check (`default_permissions`), not ours.

mod accessed;
mod acl;
mod chunks;
mod copies;
mod create;
mod flush;
mod getattr;
mod link;
#[cfg(test)]
mod linux;
mod load;
mod lookup;
mod make;
mod quota;
mod readdir;
mod readlink;
mod rename;
mod setattr;
mod statfs;
#[cfg(test)]
pub(crate) mod testing;
mod unlink;
mod xattrs;

pub(crate) use copies::copies_in;
pub(crate) use make::{held_by_session, is_foreseeable};
pub(crate) use quota::limits_in;
pub(crate) use statfs::within_quota;

use super::state::MetaState;
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FsError, Name, Op, OpReply};
use consistency::{InodeNo, SessionId, Timestamp};

/// Which inodes a change will touch, and what of each: what others must have forgotten before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Each inode once.
    pub claims: Vec<(InodeNo, Scope)>,
}

impl Plan {
    /// Adds a claim; a second one on the same inode widens the first.
    fn claim(mut self, ino: InodeNo, scope: Scope) -> Self {
        match self.claims.iter_mut().find(|(claimed, _)| *claimed == ino) {
            Some((_, held)) => widen(held, scope),
            None => self.claims.push((ino, scope)),
        }
        self
    }

    fn name(self, dir: InodeNo, name: &Name) -> Self {
        self.claim(dir, Scope::Names(vec![name.clone()]))
    }
}

/// Makes `held` cover `more` as well.
fn widen(held: &mut Scope, more: Scope) {
    match (&mut *held, more) {
        (_, Scope::Flush) | (Scope::All, Scope::Names(_)) => {}
        (Scope::Attr | Scope::Data | Scope::Names(_) | Scope::All, Scope::Attr) => {}
        (Scope::Names(names), Scope::Names(more)) => {
            for name in more {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        // Names and content never meet: an inode is a directory or a file.
        (_, more) => *held = more,
    }
}

impl MetaState {
    /// Says what an operation would change in the present state; nothing for one that only reads, for
    /// `AllocateChunks`, and for `Flush`, `Make` and `Names`, whose sender holds what they change exclusively already.
    ///
    /// # Errors
    /// What the operation would fail with.
    pub fn plan(&self, op: &Op) -> Result<Plan, FsError> {
        match op {
            Op::Create {
                parent,
                name,
                node,
                mode,
                umask,
                uid,
                gid,
                exclusive,
            } => create::Create {
                parent: *parent,
                name: name.as_ref(),
                node,
                mode: *mode,
                umask: *umask,
                uid: *uid,
                gid: *gid,
                exclusive: *exclusive,
            }
            .plan(self),
            Op::Link { ino, parent, name } => link::plan(self, *ino, *parent, name),
            Op::Unlink { parent, name, dir } => unlink::plan(self, *parent, name, *dir),
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
            } => rename::Rename {
                parent: *parent,
                name,
                new_parent: *new_parent,
                new_name,
                mode: *mode,
            }
            .plan(self),
            Op::SetAttr { ino, set } => setattr::plan(self, *ino, set),
            Op::SetXattr {
                ino,
                name,
                value,
                mode,
                kill_sgid: _,
            } => xattrs::plan_set(self, *ino, name, value, *mode),
            Op::RemoveXattr { ino, name } => xattrs::plan_remove(self, *ino, name),
            Op::Accessed(times) => accessed::plan(self, times),
            Op::Lookup { .. }
            | Op::GetAttr { .. }
            | Op::Load { .. }
            | Op::ReadDir { .. }
            | Op::ReadLink { .. }
            | Op::GetXattrs { .. }
            | Op::StatFs { .. }
            | Op::Flush(_)
            | Op::Make(_)
            | Op::Names(_)
            | Op::AllocateChunks { .. } => Ok(Plan::default()),
        }
    }

    /// Answers an operation that only reads, without grants.
    ///
    /// # Errors
    /// Those of the operation; [`FsError::Invalid`] for one that changes something.
    pub fn read(&self, op: &Op) -> Result<OpReply, FsError> {
        match op {
            Op::Lookup { parent, name } => lookup::reply(self, *parent, name),
            Op::GetAttr { ino } => getattr::reply(self, *ino),
            Op::Load { ino, mode: _ } => load::reply(self, *ino),
            Op::ReadDir { ino, after, limit } => readdir::reply(self, *ino, *after, *limit),
            Op::ReadLink { ino } => readlink::reply(self, *ino),
            Op::GetXattrs { ino } => xattrs::reply(self, *ino),
            Op::StatFs { ino } => Ok(statfs::reply(self, *ino)),
            Op::Create { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::SetAttr { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Flush(_)
            | Op::Make(_)
            | Op::Names(_)
            | Op::AllocateChunks { .. }
            | Op::Accessed(_) => Err(FsError::Invalid),
        }
    }
}

/// Makes a change.
pub(crate) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    session: SessionId,
    op: &Op,
) -> Result<OpReply, FsError> {
    match op {
        Op::Create {
            parent,
            name,
            node,
            mode,
            umask,
            uid,
            gid,
            exclusive,
        } => create::Create {
            parent: *parent,
            name: name.as_ref(),
            node,
            mode: *mode,
            umask: *umask,
            uid: *uid,
            gid: *gid,
            exclusive: *exclusive,
        }
        .apply(state, now),
        Op::Link { ino, parent, name } => link::apply(state, now, *ino, *parent, name),
        Op::Unlink { parent, name, dir } => unlink::apply(state, now, *parent, name, *dir),
        Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        } => rename::Rename {
            parent: *parent,
            name,
            new_parent: *new_parent,
            new_name,
            mode: *mode,
        }
        .apply(state, now),
        Op::SetAttr { ino, set } => setattr::apply(state, now, *ino, set),
        Op::SetXattr {
            ino,
            name,
            value,
            mode,
            kill_sgid,
        } => xattrs::apply_set(state, now, *ino, name, value, (*mode, *kill_sgid)),
        Op::RemoveXattr { ino, name } => xattrs::apply_remove(state, now, *ino, name),
        Op::Flush(files) => Ok(flush::apply(state, now, session, files)),
        Op::Make(made) => make::apply(state, now, session, made),
        Op::Names(changes) => make::apply_all(state, now, session, changes),
        Op::AllocateChunks { count } => chunks::apply(state, session, *count),
        Op::Accessed(times) => accessed::apply(state, times),
        Op::Lookup { .. }
        | Op::GetAttr { .. }
        | Op::Load { .. }
        | Op::ReadDir { .. }
        | Op::ReadLink { .. }
        | Op::GetXattrs { .. }
        | Op::StatFs { .. } => Err(FsError::Invalid),
    }
}

/// Returns true for the names under which the root joins the other trees (`proc`, `node<N>`): no file can
/// have one of them.
fn is_reserved(parent: InodeNo, name: &Name) -> bool {
    let name = name.as_bytes();
    let digits = name.strip_prefix(b"node").unwrap_or_default();
    parent == InodeNo::ROOT
        && (name == b"proc" || !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
}

/// Refuses a stamp that is none.
const fn check_time(time: Timestamp) -> Result<(), FsError> {
    if time.nanos < 1_000_000_000 {
        Ok(())
    } else {
        Err(FsError::Invalid)
    }
}

/// Refuses permission bits that are none.
const fn check_mode(mode: u32) -> Result<(), FsError> {
    if mode & !0o7777 == 0 {
        Ok(())
    } else {
        Err(FsError::Invalid)
    }
}

/// Refuses the user or group -1, which stands for "leave as it is" in system calls.
const fn check_owner(uid: u32, gid: u32) -> Result<(), FsError> {
    if uid == u32::MAX || gid == u32::MAX {
        Err(FsError::Invalid)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names() {
        for (parent, name, expected) in [
            (1, "proc", true),
            (1, "node1", true),
            (1, "node9999", true),
            (1, "node", false),
            (1, "node1a", false),
            (1, "nodes", false),
            (1, "proc2", false),
            (2, "proc", false),
            (2, "node1", false),
        ] {
            let name = Name::new(name).expect("valid");
            assert_eq!(
                is_reserved(InodeNo(parent), &name),
                expected,
                "{name:?} in {parent}"
            );
        }
    }

    #[test]
    fn claims_on_one_inode_widen() {
        let names = |names: &[&'static str]| {
            Scope::Names(
                names
                    .iter()
                    .map(|name| Name::new(*name).expect("valid"))
                    .collect(),
            )
        };
        for (first, second, expected) in [
            (Scope::Attr, Scope::Attr, Scope::Attr),
            (Scope::Attr, names(&["a"]), names(&["a"])),
            (names(&["a"]), Scope::Attr, names(&["a"])),
            (names(&["a"]), names(&["b"]), names(&["a", "b"])),
            (names(&["a"]), names(&["a"]), names(&["a"])),
            (names(&["a"]), Scope::All, Scope::All),
            (Scope::All, names(&["a"]), Scope::All),
            (Scope::All, Scope::Attr, Scope::All),
            (Scope::Data, Scope::Attr, Scope::Data),
            (Scope::Attr, Scope::Data, Scope::Data),
        ] {
            let plan = Plan::default()
                .claim(InodeNo(7), first)
                .claim(InodeNo(7), second);
            assert_eq!(plan.claims, [(InodeNo(7), expected)]);
        }
    }
}
