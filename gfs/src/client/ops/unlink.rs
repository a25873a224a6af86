//! UNLINK and RMDIR.

use super::unexpected;
use crate::client::facts::Change;
use crate::client::names::Known;
use crate::client::{Core, Pin};
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{FileKind, Name, Op, OpReply, Removed};
use std::sync::Arc;

pub(super) async fn unlink(
    core: &Arc<Core>,
    parent: InodeNo,
    name: &Name,
    dir: bool,
) -> Result<(), Errno> {
    let parent = core.pin(parent);
    let victim = child(core, &parent, name);
    if let Some(victim) = &victim
        && remove_alone(core, &parent, victim, name, dir).await?
    {
        return Ok(());
    }
    let name = name.clone();
    let mut changed = vec![parent.ino];
    changed.extend(victim.as_ref().map(|victim| victim.ino));
    let task = {
        let core = Arc::clone(core);
        async move {
            let mut attrs = vec![&parent];
            attrs.extend(&victim);
            let mut change = Change::begin(&core, &[(&parent, &name)], &attrs);
            let op = Op::Unlink {
                parent: parent.ino,
                name: name.clone(),
                dir,
            };
            let (reply, ticket) = core.op(op).await?;
            let OpReply::Changed(facts) = reply else {
                return Err(unexpected(&reply));
            };
            change.changed(&ticket, &facts);
            let alone = facts.iter().any(|fact| {
                let exclusive = |grant: Grant| grant.mode == Mode::Exclusive;
                fact.attr.ino == parent.ino && fact.grant.is_some_and(exclusive)
            });
            if alone {
                parent.state().names.set_foreseeable();
            }
            change.outcome(parent.ino, &name, Known::Absent);
            Ok(())
        }
    };
    core.detached_change(&changed, task).await
}

/// Removes a name without asking the leader. False: it has to be asked.
async fn remove_alone(
    core: &Arc<Core>,
    parent: &Pin,
    victim: &Pin,
    name: &Name,
    dir: bool,
) -> Result<bool, Errno> {
    let Some(kind) = victim.state().attr.as_ref().map(|attr| attr.kind) else {
        return Ok(false);
    };
    let known = Known::Present(victim.ino, kind);
    let alone = core.may_remove(&parent.state(), parent.ino, name, known);
    if (kind == FileKind::Dir) != dir || !alone {
        return Ok(false);
    }
    core.wait_to_make().await?;
    let removed = Removed {
        parent: parent.ino,
        name: name.clone(),
        ino: victim.ino,
        kind,
        time: core.clock.stamp(),
    };
    Ok(core.remove_alone(parent, victim, removed))
}

/// Returns the node that a name stands for, as far as is known here.
pub(super) fn child(core: &Arc<Core>, dir: &Pin, name: &Name) -> Option<Pin> {
    let known = dir.state().names.find(name);
    match known {
        Known::Present(ino, _) => core.pin_known(ino),
        Known::Absent | Known::Unknown => None,
    }
}
