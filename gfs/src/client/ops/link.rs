//! LINK and READLINK.

use super::unexpected;
use crate::client::Core;
use crate::client::facts::Change;
use crate::client::names::Known;
use crate::error::Errno;
use crate::tree::EntryReply;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::{Name, Op, OpReply};
use std::sync::Arc;

pub(super) async fn link(
    core: &Arc<Core>,
    ino: InodeNo,
    parent: InodeNo,
    name: &Name,
) -> Result<EntryReply, Errno> {
    let (dir, child) = (core.pin(parent), core.pin(ino));
    let task = {
        let (core, dir, child, name) = (Arc::clone(core), dir.clone(), child.clone(), name.clone());
        async move {
            let mut change = Change::begin(&core, &[(&dir, &name)], &[&dir, &child]);
            let op = Op::Link {
                ino,
                parent,
                name: name.clone(),
            };
            let (reply, ticket) = core.op(op).await?;
            let OpReply::Changed(facts) = reply else {
                return Err(unexpected(&reply));
            };
            change.changed(&ticket, &facts);
            let own = facts.into_iter().find(|fact| fact.attr.ino == ino);
            let fact = own.ok_or(Errno::ESTALE)?;
            change.outcome(parent, &name, Known::Present(ino, fact.attr.kind));
            Ok(fact.attr)
        }
    };
    let linked = core.detached_change(&[parent, ino], task).await?;
    // What was changed locally is on top of what the leader knows.
    let own = core.usable_attr(&child.state(), ino);
    let attr = own.map_or(linked, crate::client::facts::Usable::attr);
    Ok(core.entry(&dir, name, Some((&child, attr))))
}

pub(super) async fn readlink(core: &Arc<Core>, ino: InodeNo) -> Result<Bytes, Errno> {
    let node = core.pin(ino);
    let known = {
        let mut state = node.state();
        core.accessed(&mut state, ino);
        state.target.clone()
    };
    if let Some(target) = known {
        return Ok(*target);
    }
    let task = {
        let (core, node) = (Arc::clone(core), node.clone());
        async move {
            let (reply, _ticket) = core.op(Op::ReadLink { ino }).await?;
            let OpReply::Target(target) = reply else {
                return Err(unexpected(&reply));
            };
            node.state().target = Some(Box::new(target.clone()));
            Ok(target)
        }
    };
    core.detached(task).await
}
