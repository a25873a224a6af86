//! WRITE: into the changes of an owned file.

use super::setattr::{changed, without_suidgid};
use super::sync;
use crate::client::call::Patience;
use crate::client::content::FileContent;
use crate::client::failure::NO_HANDLE;
use crate::client::node::State;
use crate::client::{Core, Pin};
use crate::error::Errno;
use bytes::Bytes;
use consistency::InodeNo;
use consistency::wire::lease::Mode;
use consistency::wire::meta::FILE_BYTES_MAX;
use std::sync::Arc;

pub(super) struct Write {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) data: Bytes,
    /// At the end, wherever that is.
    pub(super) append: bool,
    /// The kernel writes a mapped page back.
    pub(super) from_cache: bool,
    pub(super) kill_suidgid: bool,
}

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
        check_quota(core, &node, &write).await?;
        core.change_owned(&node, false, |state| {
            core.locks.check(write.handle)?;
            apply(core, state, &write)
        })
        .await?
    };
    if !write.from_cache {
        forget_read_pages(core, &node).await;
    }
    if write.append && at != write.offset {
        kernel_was_wrong(core, node);
    }
    Ok(len)
}

/// Q4: where a quota may refuse what is written, the leader is asked first, so that the writer hears of it.
async fn check_quota(core: &Arc<Core>, node: &Pin, write: &Write) -> Result<(), Errno> {
    let len = write.data.len() as u64;
    let is_short = |state: &State| {
        let dirty = state
            .content
            .as_deref()
            .map_or(0, FileContent::changed_bytes);
        state.writing.room.is_some_and(|room| dirty + len > room)
    };
    if !is_short(&node.state()) {
        return Ok(());
    }
    sync::fsync(core, node.ino, NO_HANDLE).await?;
    if is_short(&node.state()) {
        // Others may have made room.
        core.load(node, Mode::Exclusive, Patience::Session).await?;
    }
    let state = node.state();
    let (size, room) = (state.size(), state.writing.room);
    let at = if write.append { size } else { write.offset };
    // What lies behind the end is certainly new; whether the rest is, the flush tells.
    let new = at.saturating_add(len).saturating_sub(size.max(at));
    if room.is_some_and(|room| new > room) {
        return Err(Errno::EDQUOT);
    }
    Ok(())
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

/// W2: a direct write drops the pages of its range *before* it is sent. A READ that was answered from before the write
/// may fill such a page afterwards: with the old bytes, or with zeros behind the old end of the file, which the write
/// has moved. So the kernel is told to forget once the write is done, if anything was read since the last time.
async fn forget_read_pages(core: &Arc<Core>, node: &Pin) {
    let read = {
        let state = node.state();
        if !state.pages {
            return;
        }
        state.page_reads
    };
    core.kernel.forget_data(node.ino).await;
    let mut state = node.state();
    // A READ in the meantime, or a break that counts on `pages`, leaves it as it is.
    if state.page_reads == read && state.breaking.is_none() && state.rw_opens == 0 {
        state.pages = false;
    }
}

/// The kernel takes the offset it sent plus the length for the size: it must ask again, after this reply.
fn kernel_was_wrong(core: &Arc<Core>, node: Pin) {
    let core = Arc::clone(core);
    tokio::spawn(async move { core.kernel.forget_attr(node.ino).await });
}
