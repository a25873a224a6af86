//! WRITE: into the changes of an owned file.

use super::setattr::{changed, without_suidgid};
use crate::client::node::State;
use crate::client::{Core, Pin};
use crate::error::Errno;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::meta::FILE_BYTES_MAX;
use std::sync::Arc;

pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) data: Bytes,
    /// At the end, wherever that is.
    pub(super) append: bool,
    /// The kernel writes a mapped page back.
    pub(super) from_cache: bool,
    pub(super) kill_suidgid: bool,
}

/// Writes.
///
/// W2: no page that was read before a direct write survives it. The kernel drops the pages of the range before it sends
/// the write, but a READ on its way may fill one afterwards: with the old bytes, or with zeros behind the old end of the
/// file, which then show as soon as the kernel learns of the new one. So the kernel is told to forget first, and the
/// write is made once no READ was answered since.
pub(super) async fn write(core: &Arc<Core>, ino: InodeNo, write: Write) -> Result<u32, Errno> {
    let len = u32::try_from(write.data.len()).map_err(|_| Errno::EINVAL)?;
    let node = core.pin(ino);
    let at = if write.from_cache {
        // W1: pages are dirtied only while the file is owned. If it is not any more the session was lost, and what
        // was dirtied under it with it. Nothing is waited for: an invalidation waits for this.
        let taken = core.try_change(&node, true, |state| apply(core, state, &write));
        taken.unwrap_or(Err(Errno::EIO))?
    } else {
        core.wait_for_room().await?;
        let mut forgotten = None;
        loop {
            let step = |state: &mut State| {
                // W2
                if state.pages && forgotten != Some(state.page_reads) {
                    return Ok(Step::Forget(state.page_reads));
                }
                apply(core, state, &write).map(Step::Done)
            };
            match core.change_owned(&node, false, step).await? {
                Step::Done(at) => break at,
                Step::Forget(reads) => {
                    core.kernel.forget_data(ino).await;
                    forgotten = Some(reads);
                }
            }
        }
    };
    if write.append && at != write.offset {
        kernel_was_wrong(core, node);
    }
    Ok(len)
}

/// Returns where the bytes went.
fn apply(core: &Core, state: &mut State, write: &Write) -> Result<u64, Errno> {
    let at = if write.append {
        state.size()
    } else {
        write.offset
    };
    let end = at.checked_add(write.data.len() as u64);
    let end = end.filter(|&end| end <= FILE_BYTES_MAX);
    let end = end.ok_or(Errno(libc::EFBIG))?;
    if write.data.is_empty() {
        return Ok(at);
    }
    let now = core.clock.stamp();
    let content = state
        .content
        .as_mut()
        .expect("an owned file's content is known");
    let mut data = write.data.clone();
    let attr = state
        .attr
        .as_mut()
        .expect("an owned file's attributes are known");
    if write.from_cache && end > attr.size {
        // The kernel writes whole pages; what is behind the end of the file is no part of it.
        data.truncate(usize::try_from(attr.size.saturating_sub(at)).unwrap_or(usize::MAX));
    } else {
        attr.size = attr.size.max(end);
    }
    content.dirty.write(at, data);
    attr.mtime = now;
    if write.kill_suidgid {
        attr.mode = without_suidgid(attr.mode);
    }
    changed(state, now);
    Ok(at)
}

/// What became of an attempt to write.
enum Step {
    /// Done, at this offset.
    Done(u64),
    /// The kernel may have pages; so many READs were answered.
    Forget(u64),
}

/// The kernel takes the offset it sent plus the length for the size: it must ask again, after this reply.
fn kernel_was_wrong(core: &Arc<Core>, node: Pin) {
    let core = Arc::clone(core);
    tokio::spawn(async move { core.kernel.forget_attr(node.ino).await });
}
