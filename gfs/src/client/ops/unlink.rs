//! UNLINK and RMDIR.

use super::unexpected;
use crate::client::facts::Change;
use crate::client::names::Known;
use crate::client::{Core, Pin};
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::meta::{Name, Op, OpReply};
use std::sync::Arc;

pub(super) async fn unlink(
    core: &Arc<Core>,
    parent: InodeNo,
    name: &Name,
    dir: bool,
) -> Result<(), Errno> {
    let parent = core.pin(parent);
    let victim = child(core, &parent, name);
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
            change.outcome(parent.ino, &name, Known::Absent);
            Ok(())
        }
    };
    core.detached_change(&changed, task).await
}

/// Returns the node that a name stands for, as far as is known here.
pub(super) fn child(core: &Arc<Core>, dir: &Pin, name: &Name) -> Option<Pin> {
    let known = dir.state().names.find(name);
    match known {
        Known::Present(ino, _) => core.pin_known(ino),
        Known::Absent | Known::Unknown => None,
    }
}
