//! GETATTR.

use super::unexpected;
use crate::client::Core;
use crate::error::Errno;
use crate::tree::AttrReply;
use consistency::InodeNo;
use consistency::wire::meta::{Op, OpReply};
use std::sync::Arc;

pub(in crate::client) async fn getattr(core: &Arc<Core>, ino: InodeNo) -> Result<AttrReply, Errno> {
    let node = core.pin(ino);
    if let Some(reply) = core.cached_attr(&node) {
        return Ok(reply);
    }
    let task = {
        let (core, node) = (Arc::clone(core), node.clone());
        async move {
            let (reply, ticket) = core.op(Op::GetAttr { ino }).await?;
            let OpReply::Attr(fact) = reply else {
                return Err(unexpected(&reply));
            };
            Ok(core.learn(&node, &ticket, &fact))
        }
    };
    let attr = core.detached(task).await?;
    Ok(core
        .cached_attr(&node)
        .unwrap_or_else(|| AttrReply::uncached(attr)))
}
