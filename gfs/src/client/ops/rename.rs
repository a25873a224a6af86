//! RENAME.

use super::unexpected;
use super::unlink::child;
use crate::client::facts::Change;
use crate::client::names::Known;
use crate::client::{Core, Pin};
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::meta::{Name, Op, OpReply, RenameMode};
use std::sync::Arc;

pub(super) async fn rename(
    core: &Arc<Core>,
    parent: InodeNo,
    name: &Name,
    new_parent: InodeNo,
    new_name: &Name,
    mode: RenameMode,
) -> Result<(), Errno> {
    let (from, to) = (core.pin(parent), core.pin(new_parent));
    let (name, new_name) = (name.clone(), new_name.clone());
    let mut changed = vec![parent, new_parent];
    let inodes = [child(core, &from, &name), child(core, &to, &new_name)];
    changed.extend(inodes.iter().flatten().map(|node| node.ino));
    let task = {
        let core = Arc::clone(core);
        async move { send(&core, &from, &name, &to, &new_name, mode).await }
    };
    core.detached_change(&changed, task).await
}

async fn send(
    core: &Arc<Core>,
    from: &Pin,
    name: &Name,
    to: &Pin,
    new_name: &Name,
    mode: RenameMode,
) -> Result<(), Errno> {
    let known = |dir: &Pin, name: &Name| dir.state().names.find(name);
    let (moved_known, other_known) = (known(from, name), known(to, new_name));
    let (moved, other) = (child(core, from, name), child(core, to, new_name));
    let mut attrs = vec![from];
    attrs.extend((to.ino != from.ino).then_some(to));
    attrs.extend(&moved);
    attrs.extend(&other);
    let names = [(from, name), (to, new_name)];
    let same = from.ino == to.ino && name == new_name;
    let names = if same { &names[..1] } else { &names[..] };
    if mode == RenameMode::Replace
        && other_known != Known::Absent
        && let Some(moved) = &moved
    {
        // A program that replaces a file by a new one expects either of them after a crash, not an empty one. An
        // error is kept for its fsync; but what a quota refuses is gone (Q4), and nothing is replaced by it.
        if core.flush_node(moved).await == Err(Errno::EDQUOT) {
            return Err(Errno::EDQUOT);
        }
    }
    let mut change = Change::begin(core, names, &attrs);
    let op = Op::Rename {
        parent: from.ino,
        name: name.clone(),
        new_parent: to.ino,
        new_name: new_name.clone(),
        mode,
    };
    let (reply, ticket) = core.op(op).await?;
    let OpReply::Changed(facts) = reply else {
        return Err(unexpected(&reply));
    };
    change.changed(&ticket, &facts);
    let one_inode = match (moved_known, other_known) {
        // Two names of one inode: rename(2) does nothing then.
        (Known::Present(a, _), Known::Present(b, _)) => a == b && mode == RenameMode::Replace,
        _ => false,
    };
    // What was known before the change still held when the leader made it, unless a break has come: then it counts for
    // nothing (`Names::forget`).
    if !one_inode && !same {
        let left = match mode {
            RenameMode::Replace | RenameMode::NoReplace => Known::Absent,
            RenameMode::Exchange => other_known,
        };
        change.outcome(from.ino, name, left);
        change.outcome(to.ino, new_name, moved_known);
    }
    drop(change);
    // The kernel moves its dentries, time-outs and all: to names that no lease may cover, and whatever was moved.
    let known = |dir: &Pin, name: &Name, was: Known| {
        let mut state = dir.state();
        core.covered(&state, dir.ino)
            && matches!(was, Known::Present(..))
            && state.names.find(name) == was
            && state.names.give_to_kernel(name)
    };
    let exchanged = mode == RenameMode::Exchange;
    if !known(to, new_name, moved_known) || exchanged && !known(from, name, other_known) {
        core.kernel.forget_all_names().await;
    }
    Ok(())
}
