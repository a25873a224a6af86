//! FSYNC and the FLUSH of close(2).

use crate::client::Core;
use crate::client::failure::{NO_HANDLE, WRITES};
use crate::error::Errno;
use consistency::InodeNo;
use std::sync::Arc;

/// With less room than this in its quota a file is flushed by close(2): more than what all nodes together are likely to
/// have that the leader has not counted yet.
const TIGHT_BYTES: u64 = 4 << 30;

/// S3: returns when everything written so far is at the leader, and its bytes on their replicas.
pub(super) async fn fsync(core: &Arc<Core>, ino: InodeNo, fh: u64) -> Result<(), Errno> {
    if missing!(NoFlush) {
        return Ok(());
    }
    let node = core.pin(ino);
    let flushed = core.flush_node(&node).await;
    // An error of this flush has been kept as well; it is reported once.
    let kept = node.state().tell(|failure| failure.tell(fh));
    match kept {
        Some(error) => flushed.and(Err(error)),
        None => flushed,
    }
}

/// S3: returns when all names made in a directory are at the leader.
pub(super) async fn fsyncdir(core: &Arc<Core>, ino: InodeNo) -> Result<(), Errno> {
    fsync(core, ino, NO_HANDLE).await
}

/// Reports what a flush in the background ran into; flushes nothing, as on a local file system, unless a quota may
/// refuse it (Q4). Who has only read hears nothing.
pub(super) async fn close(core: &Arc<Core>, ino: InodeNo, fh: u64) -> Result<(), Errno> {
    if fh & WRITES == 0 {
        return Ok(());
    }
    let tight = {
        let node = core.pin(ino);
        let state = node.state();
        state.is_dirty() && state.writing.room.is_some_and(|room| room < TIGHT_BYTES)
    };
    if tight {
        return fsync(core, ino, fh).await;
    }
    let kept = core.pin(ino).state().tell(|failure| failure.tell_close(fh));
    kept.map_or(Ok(()), Err)
}
