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
