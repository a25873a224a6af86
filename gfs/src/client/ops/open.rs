//! OPEN and RELEASE.

use crate::client::failure::WRITES;
use crate::client::{Core, Pin};
use crate::error::Errno;
use crate::tree::{OpenFlags, Opened};
use consistency::InodeNo;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bits of a handle: what it was opened for.
const READS_AND_WRITES: u64 = 1;
const FLAG_BITS: u32 = 2;

pub(super) async fn open(
    core: &Arc<Core>,
    ino: InodeNo,
    flags: OpenFlags,
) -> Result<Opened, Errno> {
    let node = core.pin(ino);
    if !flags.writes() {
        let cached = {
            let state = node.state();
            state.content.is_some() || state.pages
        };
        core.read_ahead(ino, cached);
    }
    Ok(open_pinned(core, &node, flags).await)
}

pub(super) async fn open_pinned(core: &Arc<Core>, node: &Pin, flags: OpenFlags) -> Opened {
    let both = flags.reads_and_writes();
    if both {
        forget_shared_pages(core, node).await;
    }
    let mut fh = core.next_fh.fetch_add(1, Ordering::Relaxed) << FLAG_BITS;
    let mut state = node.state();
    state.opens += 1;
    if both {
        fh |= READS_AND_WRITES;
    }
    if flags.writes() {
        fh |= WRITES;
        state.writers += 1;
        state.writing.newest = state.writing.newest.max(fh);
    }
    Opened {
        fh,
        // W1: a WRITE never holds the lock of a page that an invalidation waits for. W3
        direct_io: state.writers > 0 || state.writing.sharing.is_shared(core.clock.now()),
        keep_cache: true,
        nonseekable: false,
        stream: false,
        noflush: false,
    }
}

/// The reads that follow may be answered from pages that the kernel has, where nobody sees them: they count now.
pub(super) fn accessed(core: &Arc<Core>, ino: InodeNo, flags: OpenFlags) {
    if flags.writes() || flags.noatime() {
        return;
    }
    let node = core.pin(ino);
    let changed = {
        let mut state = node.state();
        state.pages && core.accessed(&mut state, ino)
    };
    if changed {
        // After this reply: it is a notification.
        let core = Arc::clone(core);
        tokio::spawn(async move { core.kernel.forget_attr(node.ino).await });
    }
}

/// W1: pages read under a shared lease must not be dirtied through a mapping; they are read again, exclusively.
async fn forget_shared_pages(core: &Arc<Core>, node: &Pin) {
    let counted = RwOpen::new(node);
    let read = node.state().page_reads;
    if node.state().pages && !core.owned(node.ino) {
        node.wait(|state| (state.holds == 0).then_some(())).await;
        core.kernel.forget_data(node.ino).await;
        let mut state = node.state();
        if state.page_reads == read && state.unleased == 0 && state.breaking.is_none() {
            state.pages = false;
        }
    }
    counted.keep();
}

/// A count of `rw_opens` that is taken back if the open is given up.
struct RwOpen<'a>(Option<&'a Pin>);

impl<'a> RwOpen<'a> {
    fn new(node: &'a Pin) -> Self {
        node.state().rw_opens += 1;
        Self(Some(node))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RwOpen<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.0 {
            node.state().rw_opens -= 1;
        }
    }
}

pub(super) fn release(core: &Arc<Core>, ino: InodeNo, fh: u64) {
    if let Some(node) = core.pin_known(ino) {
        let mut state = node.state();
        state.opens = state.opens.saturating_sub(1);
        if fh & WRITES != 0 {
            state.writers = state.writers.saturating_sub(1);
            let last = state.writers == 0;
            state.writing.failure.released(fh, last);
        }
        if fh & READS_AND_WRITES != 0 {
            state.rw_opens = state.rw_opens.saturating_sub(1);
        }
        let closed = state.take_close();
        drop(state);
        if closed {
            core.tell_close(ino);
        }
    }
}
