//! How far the log has grown behind the last snapshot, in bytes: openraft counts entries, and those of a busy leader are a
//! thousand commands each. What is behind the last snapshot is applied anew at a restart, so this bounds how long that takes.

use super::raft::Raft;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// Bytes of commands that were applied since the last snapshot was begun.
pub(super) struct Growth {
    bytes: AtomicU64,
    bytes_max: AtomicU64,
    /// However small the state is.
    least: u64,
    /// There are too many.
    due: Notify,
}

impl Growth {
    pub(super) fn up_to(least: u64) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            bytes_max: AtomicU64::new(least),
            least,
            due: Notify::new(),
        }
    }

    /// The last snapshot has this size. To write it again for much less than that much news would cost more than it saves.
    pub(super) fn snapshot_has(&self, bytes: usize) {
        let bytes_max = self.least.max(bytes as u64 / 2);
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Counts what is applied.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if self.is_due() {
            self.due.notify_one();
        }
    }

    /// A snapshot is begun, or has come from the leader.
    pub(super) fn begin_anew(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    fn is_due(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max.load(Ordering::Relaxed)
    }
}

/// Has a snapshot made whenever there are too many bytes. What the one before it covers is purged then: a follower that is
/// a little late still finds what came since.
pub(super) async fn keep_bounded(growth: Arc<Growth>, raft: Raft) {
    loop {
        growth.due.notified().await;
        // Several may have asked for the one that was made meanwhile.
        if !growth.is_due() {
            continue;
        }
        let last = raft.metrics().borrow().snapshot;
        let purged = match last {
            Some(last) => raft.trigger().purge_log(last.index).await,
            None => Ok(()),
        };
        if purged.and(raft.trigger().snapshot().await).is_err() {
            // The core has ended.
            return;
        }
    }
}

impl fmt::Debug for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} bytes of {:?}", self.bytes, self.bytes_max)
    }
}
