//! SETATTR: locally on a file that is owned (sizes always so), else at the leader.

use super::unexpected;
use crate::client::facts::Change;
use crate::client::node::State;
use crate::client::pages::Asking;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::{AttrReply, SetAttrRequest, TimeOrNow};
use consistency::wire::meta::{Attr, FILE_BYTES_MAX, Op, OpReply, SetAttr, SetTime};
use consistency::{InodeNo, Timestamp};
use std::sync::Arc;

pub(super) async fn setattr(
    core: &Arc<Core>,
    ino: InodeNo,
    set: SetAttrRequest,
) -> Result<AttrReply, Errno> {
    let node = core.pin(ino);
    let attr = if let Some(size) = set.size {
        if size > FILE_BYTES_MAX {
            return Err(Errno(libc::EFBIG));
        }
        core.wait_for_room().await?;
        // With a dirty mapped page the kernel's invalidation waits for this request.
        let mapped = node.state().rw_opens > 0;
        core.change_owned(&node, mapped, |state| {
            if let Some(handle) = set.fh {
                core.locks.check(handle)?;
            }
            if let Some(content) = &mut state.content {
                content.dirty.truncate(size);
            }
            Ok(apply(core, state, &set))
        })
        .await?
    } else {
        set_attributes(core, &node, set).await?
    };
    Ok(core
        .cached_attr(&node)
        .unwrap_or_else(|| AttrReply::uncached(attr)))
}

async fn set_attributes(core: &Arc<Core>, node: &Pin, set: SetAttrRequest) -> Result<Attr, Errno> {
    loop {
        let local = core.try_change(node, false, |state| Ok(apply(core, state, &set)));
        if let Some(attr) = local {
            return attr;
        }
        let task = {
            let mut state = node.state();
            let owned = core.owned(node.ino) && state.breaking.is_none();
            let known = state.attr.is_some() && state.content.is_some();
            if state.asking || (owned && known) {
                None
            } else {
                state.asking = true;
                drop(state);
                Some(set_at_leader(Arc::clone(core), Asking(node.clone()), set))
            }
        };
        match task {
            Some(task) => return core.detached_change(&[node.ino], task).await,
            None => {
                let idle = node.wait(|state| (!state.asking).then_some(()));
                let within = core.config.request_deadline;
                let waited = tokio::time::timeout(within, idle).await;
                waited.map_err(|_| Errno::EIO)?;
            }
        }
    }
}

async fn set_at_leader(
    core: Arc<Core>,
    asking: Asking,
    set: SetAttrRequest,
) -> Result<Attr, Errno> {
    let node = &asking.0;
    let ino = node.ino;
    if node.state().is_dirty() {
        // A break is taking the file away: what was changed before must be at the leader before this is.
        core.flush_node(node).await?;
    }
    let mut change = Change::begin(&core, &[], &[node]);
    if changes_xattrs(set) {
        node.state().xattrs = None;
    }
    let mode = match set.mode {
        None if set.kill_suidgid => {
            let (reply, _) = core.op(Op::GetAttr { ino }).await?;
            let OpReply::Attr(fact) = reply else {
                return Err(unexpected(&reply));
            };
            Some(without_suidgid(fact.attr.mode)).filter(|&mode| mode != fact.attr.mode)
        }
        mode => mode,
    };
    let time = |time| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::At(at) => SetTime::At(at),
    };
    let set = SetAttr {
        mode: mode.map(|mode| mode & 0o7777),
        uid: set.uid,
        gid: set.gid,
        atime: set.atime.map(time),
        mtime: set.mtime.map(time),
    };
    let (reply, ticket) = core.op(Op::SetAttr { ino, set }).await?;
    let OpReply::Changed(facts) = reply else {
        return Err(unexpected(&reply));
    };
    change.changed(&ticket, &facts);
    let own = facts.into_iter().find(|fact| fact.attr.ino == ino);
    own.map(|fact| fact.attr).ok_or(Errno::ESTALE)
}

/// Changes attributes of an owned file.
fn apply(core: &Core, state: &mut State, set: &SetAttrRequest) -> Attr {
    let now = core.clock.stamp();
    let attr = state
        .attr
        .as_mut()
        .expect("an owned file's attributes are known");
    let time = |time: TimeOrNow| match time {
        TimeOrNow::Now => now,
        TimeOrNow::At(at) => at,
    };
    if let Some(size) = set.size {
        attr.size = size;
        // Also if the size was the same: O_TRUNC of an empty file makes it newer, build tools rely on it.
        attr.mtime = now;
    }
    if changes_xattrs(*set) {
        state.xattrs = None;
    }
    if set.kill_suidgid {
        attr.mode = without_suidgid(attr.mode);
    }
    if let Some(mode) = set.mode {
        attr.mode = mode & 0o7777;
    }
    attr.uid = set.uid.unwrap_or(attr.uid);
    attr.gid = set.gid.unwrap_or(attr.gid);
    attr.atime = set.atime.map_or(attr.atime, time);
    attr.mtime = set.mtime.map_or(attr.mtime, time);
    changed(state, now)
}

/// Tells whether the access ACL (by the mode) or the capabilities (by the owner) change as well.
const fn changes_xattrs(set: SetAttrRequest) -> bool {
    set.mode.is_some() || set.uid.is_some() || set.gid.is_some()
}

/// Notes that an owned file's attributes were changed.
pub(super) fn changed(state: &mut State, now: Timestamp) -> Attr {
    state.attr_dirty = true;
    let attr = state
        .attr
        .as_mut()
        .expect("an owned file's attributes are known");
    attr.ctime = now;
    if let Some(content) = state.content.as_ref().filter(|content| content.is_dirty()) {
        attr.blocks = content.blocks(attr.size);
    }
    attr.clone()
}

/// Returns a mode without setuid, and without setgid if the group may execute.
pub(super) const fn without_suidgid(mode: u32) -> u32 {
    let setgid = if mode & 0o010 == 0 { 0 } else { 0o2000 };
    mode & !(0o4000 | setgid)
}
