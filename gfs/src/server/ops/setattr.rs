//! Changing mode, owner and times.

use super::acl::Acl;
use super::{Plan, acl, check_mode, check_owner, check_time};
use crate::server::state::{Inode, MetaState};
use consistency::wire::lease::Scope;
use consistency::wire::meta::{FsError, OpReply, SetAttr, SetTime};
use consistency::{InodeNo, Timestamp};

pub(super) fn plan(state: &MetaState, ino: InodeNo, set: &SetAttr) -> Result<Plan, FsError> {
    resolve(state, ino, set)?;
    Ok(Plan::default().claim(ino, Scope::Attr))
}

pub(super) fn apply(
    state: &mut MetaState,
    now: Timestamp,
    ino: InodeNo,
    set: &SetAttr,
) -> Result<OpReply, FsError> {
    resolve(state, ino, set)?;
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    let inode = state.inode_mut(ino);
    if let Some(mode) = set.mode {
        inode.set_mode(mode);
    }
    inode.set_owner(set.uid, set.gid);
    let attr = &mut inode.attr;
    attr.atime = set.atime.map_or(attr.atime, time);
    attr.mtime = set.mtime.map_or(attr.mtime, time);
    Ok(state.changed(now, &[], &[ino]))
}

fn resolve(state: &MetaState, ino: InodeNo, set: &SetAttr) -> Result<(), FsError> {
    state.inode(ino)?;
    check_mode(set.mode.unwrap_or(0))?;
    check_owner(set.uid.unwrap_or(0), set.gid.unwrap_or(0))?;
    for time in [set.atime, set.mtime] {
        if let Some(SetTime::At(time)) = time {
            check_time(time)?;
        }
    }
    Ok(())
}

impl Inode {
    /// Sets the permission bits, also in the ACL that holds them.
    pub(super) fn set_mode(&mut self, mode: u32) {
        self.attr.mode = mode;
        if let Some(value) = self.xattrs.get_mut(&*acl::ACCESS) {
            let mut acl = Acl::decode(value).expect("only a valid ACL is ever stored");
            acl.set_mode(mode);
            *value = acl.encode();
        }
    }

    /// Sets owner and group. The capabilities of a program do not outlive a change of its owner.
    pub(super) fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        if uid.is_some() || gid.is_some() {
            self.drop_capabilities();
        }
        self.attr.uid = uid.unwrap_or(self.attr.uid);
        self.attr.gid = gid.unwrap_or(self.attr.gid);
    }

    /// Takes a program's capabilities away: the kernel leaves that to the file system (HANDLE_KILLPRIV_V2).
    pub(super) fn drop_capabilities(&mut self) {
        self.xattrs.remove(&*acl::CAPABILITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::{World, check, check_plan, check_stamps};
    use consistency::wire::meta::{Attr, Op};

    #[test]
    fn changes_what_is_asked_for() {
        #[track_caller]
        fn changed(command: &str, expected: impl FnOnce(&mut Attr)) {
            let mut world = World::new("touch f");
            let mut attr = world.attr("f");
            world.setup(command);
            expected(&mut attr);
            let got = world.attr("f");
            let (ctime, version) = (got.ctime, got.version);
            assert_eq!(
                got,
                Attr {
                    ctime,
                    version,
                    ..attr
                },
                "{command}"
            );
        }
        changed("chmod 4711 f", |attr| attr.mode = 0o4711);
        changed("chmod 0 f", |attr| attr.mode = 0);
        changed("chown 1:2 f", |attr| (attr.uid, attr.gid) = (1, 2));
        changed("chown :2 f", |attr| attr.gid = 2);
        changed("chown : f", |_| {});
    }

    #[test]
    fn stamps_and_plan() {
        check_stamps("touch f", "chmod 600 f", "f:c");
        check_stamps("touch f", "chown : f", "f:c");
        check_plan("mkdir d; touch d/f", "chmod 600 d/f", "d/f");
        check("touch f; rm f", "chmod 600 f", "!1");
        check("touch f; rm f; reap f", "chmod 600 f", "Stale");
        check("touch f", "chmod 10000 f", "Invalid");
        check("touch f", &format!("chown {}: f", u32::MAX), "Invalid");
    }

    #[test]
    fn times() {
        let mut world = World::new("touch f");
        let at = |secs, nanos| Some(SetTime::At(Timestamp { secs, nanos }));
        let ino = world.ino("f");
        let mut set = |atime, mtime| {
            let times = SetAttr {
                atime,
                mtime,
                ..SetAttr::default()
            };
            world.run(&Op::SetAttr { ino, set: times })?;
            let attr = world.attr("f");
            Ok::<_, FsError>((attr.atime, attr.mtime, attr.ctime))
        };
        // Before 1970 and far ahead of the clock: both are the caller's affair.
        let (early, late) = (
            Timestamp { secs: -5, nanos: 3 },
            Timestamp {
                secs: 1 << 40,
                nanos: 0,
            },
        );
        let (atime, mtime, _) = set(at(-5, 3), at(1 << 40, 0)).expect("sets");
        assert_eq!((atime, mtime), (early, late));
        let (atime, mtime, ctime) = set(None, Some(SetTime::Now)).expect("sets");
        assert_eq!((atime, mtime), (early, ctime));
        assert_eq!(set(at(0, 1_000_000_000), None), Err(FsError::Invalid));
        assert_eq!(set(None, at(0, u32::MAX)), Err(FsError::Invalid));
    }

    #[test]
    fn a_new_owner_gets_no_capabilities() {
        let kept = |command: &str| {
            let mut world = World::new("touch f; chattr security.capability=x f");
            world.setup(command);
            !world
                .state
                .xattrs(world.ino("f"))
                .expect("there")
                .is_empty()
        };
        assert!(kept("chmod 711 f"));
        assert!(!kept("chown 1: f"));
        assert!(!kept("chown :1 f"));
    }
}
