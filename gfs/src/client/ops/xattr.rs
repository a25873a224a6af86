//! Extended attributes: read all at once and cached, changed at the leader.

use super::unexpected;
use crate::client::facts::Change;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::Caller;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{Name, Op, OpReply, XattrMode, is_policy};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) async fn get(core: &Arc<Core>, ino: InodeNo, name: &Name) -> Result<Bytes, Errno> {
    let absent = Errno(libc::ENODATA);
    with_all(core, ino, |xattrs| xattrs.get(name).cloned().ok_or(absent)).await?
}

pub(super) async fn list(core: &Arc<Core>, ino: InodeNo) -> Result<Vec<Name>, Errno> {
    with_all(core, ino, |xattrs| xattrs.keys().cloned().collect()).await
}

async fn with_all<T>(
    core: &Arc<Core>,
    ino: InodeNo,
    read: impl FnOnce(&BTreeMap<Name, Bytes>) -> T,
) -> Result<T, Errno> {
    let node = core.pin(ino);
    {
        let state = node.state();
        let usable = core.covered(&state, ino) && state.attr_pending == 0;
        if let Some(xattrs) = state.xattrs.as_ref().filter(|_| usable) {
            return Ok(read(xattrs));
        }
    }
    let task = {
        let (core, node) = (Arc::clone(core), node.clone());
        async move {
            if node.state().attr_dirty {
                // The access ACL follows the mode, the capabilities the owner: the leader must know of both.
                core.flush_node(&node).await?;
            }
            let (reply, ticket) = core.op(Op::GetXattrs { ino }).await?;
            let OpReply::Xattrs { grant, xattrs } = reply else {
                return Err(unexpected(&reply));
            };
            let mut covered = false;
            core.learn_page(&node, &ticket, grant, |state| {
                if state.attr_pending == 0 {
                    state.xattrs = Some(Box::new(xattrs.clone()));
                    covered = true;
                }
            });
            if !covered {
                // The kernel keeps an ACL for as long as the attributes, and lets go of one that it is asking for.
                core.kernel.forget_attr(ino).await;
            }
            Ok(xattrs)
        }
    };
    Ok(read(&core.detached(task).await?))
}

/// The kernel lets owners set everything that begins with `user.`; what concerns the whole cluster is not theirs to set.
pub(super) fn check_caller(caller: Caller, name: &Name) -> Result<(), Errno> {
    if caller.uid != 0 && is_policy(name) {
        return Err(Errno::EPERM);
    }
    Ok(())
}

pub(super) async fn set(
    core: &Arc<Core>,
    ino: InodeNo,
    name: &Name,
    value: Bytes,
    mode: XattrMode,
    kill_sgid: bool,
) -> Result<(), Errno> {
    let name = name.clone();
    let op = Op::SetXattr {
        ino,
        name,
        value,
        mode,
        kill_sgid,
    };
    change(core, core.pin(ino), op).await
}

pub(super) async fn remove(core: &Arc<Core>, ino: InodeNo, name: &Name) -> Result<(), Errno> {
    let name = name.clone();
    change(core, core.pin(ino), Op::RemoveXattr { ino, name }).await
}

async fn change(core: &Arc<Core>, node: Pin, op: Op) -> Result<(), Errno> {
    let ino = node.ino;
    let task = {
        let core = Arc::clone(core);
        async move {
            let mut change = Change::begin(&core, &[], &[&node]);
            {
                let mut state = node.state();
                state.xattrs = None;
                // A default ACL, say, is handed down.
                state.names.set_unforeseeable();
            }
            let (reply, ticket) = core.op(op).await?;
            let OpReply::Changed(facts) = reply else {
                return Err(unexpected(&reply));
            };
            change.changed(&ticket, &facts);
            Ok(())
        }
    };
    core.detached_change(&[ino], task).await
}
