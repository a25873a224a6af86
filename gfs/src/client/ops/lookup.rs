//! LOOKUP and FORGET.

use super::{readdir, unexpected};
use crate::client::facts::Usable;
use crate::client::names::Known;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::EntryReply;
use consistency::InodeNo;
use consistency::wire::meta::{FileKind, Name, Op, OpReply};
use std::sync::Arc;

pub(super) async fn lookup(
    core: &Arc<Core>,
    parent: InodeNo,
    name: &Name,
) -> Result<EntryReply, Errno> {
    if let Some(reply) = lookup_cached(core, parent, name) {
        return Ok(reply);
    }
    let dir = core.pin(parent);
    let task = {
        let (core, dir, name) = (Arc::clone(core), dir.clone(), name.clone());
        async move {
            let op = Op::Lookup {
                parent,
                name: name.clone(),
            };
            let (reply, ticket) = core.op(op).await?;
            let OpReply::Found { dir: grant, entry } = reply else {
                return Err(unexpected(&reply));
            };
            let child = entry.map(|fact| {
                let child = core.pin(fact.attr.ino);
                let attr = core.learn(&child, &ticket, &fact);
                (child, attr)
            });
            let known = match &child {
                Some((_, attr)) => Known::Present(attr.ino, attr.kind),
                None => Known::Absent,
            };
            core.learn_name(&dir, &ticket, grant, &name, known);
            if let Known::Present(ino, FileKind::File) = known {
                core.ahead.looked_up(parent, ino);
            }
            drop(ticket);
            if child.is_none() && dir.state().names.asked_in_vain() {
                list(&core, &dir).await;
            }
            Ok(child)
        }
    };
    let child = core.detached(task).await?;
    let child = child.as_ref().map(|(pin, attr)| (pin, attr.clone()));
    Ok(core.entry(&dir, name, child))
}

/// Gets the names of a directory, so that others are known not to exist. Of one that is too long a page is in vain.
async fn list(core: &Arc<Core>, dir: &Pin) {
    if let Err(error) = readdir::ask(Arc::clone(core), dir.clone(), 0, readdir::PAGE_MAX).await {
        tracing::debug!(dir = %dir.ino, %error, "names could not be listed");
    }
}

fn lookup_cached(core: &Arc<Core>, parent: InodeNo, name: &Name) -> Option<EntryReply> {
    let dir = core.pin_known(parent)?;
    let known = {
        let state = dir.state();
        if !core.covered(&state, parent) {
            return None;
        }
        state.names.find(name)
    };
    match known {
        Known::Unknown => None,
        Known::Absent => Some(core.entry(&dir, name, None)),
        Known::Present(ino, _) => {
            let child = core.pin_known(ino)?;
            let attr = core.usable_attr(&child.state(), ino).map(Usable::attr)?;
            Some(core.entry(&dir, name, Some((&child, attr))))
        }
    }
}

pub(super) fn forget(core: &Arc<Core>, ino: InodeNo, count: u64) {
    if ino == InodeNo::ROOT {
        return;
    }
    // When the pin goes, the node goes with it if this was the last lookup.
    if let Some(node) = core.pin_known(ino) {
        let mut state = node.state();
        state.lookups = state.lookups.saturating_sub(count);
    }
}
