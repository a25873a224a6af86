//! FSYNC and the FLUSH of close(2).

use crate::client::Core;
use crate::error::Errno;
use consistency::InodeNo;
use std::sync::Arc;

/// S3: returns when everything written so far is at the leader, and its bytes on their replicas.
pub(super) async fn fsync(core: &Arc<Core>, ino: InodeNo) -> Result<(), Errno> {
    let node = core.pin(ino);
    let flushed = core.flush_node(&node).await;
    // An error of this flush has been kept as well; it is reported once.
    let kept = node.state().error.take();
    match kept {
        Some(error) => flushed.and(Err(error)),
        None => flushed,
    }
}

/// Reports what a flush in the background ran into; flushes nothing, as on a local file system.
pub(super) fn close(core: &Arc<Core>, ino: InodeNo) -> Result<(), Errno> {
    let kept = core.pin(ino).state().error.take();
    kept.map_or(Ok(()), Err)
}
