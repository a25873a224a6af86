//! Looks after a node's chunk store, in the background: reads every chunk from time to time, tells the metadata leader
//! which are damaged or missing, and deletes what no file has.
//!
//! The leader decides what is an orphan, the node when it may go (D3): see [`super::sweep`].

use super::disk::Disk;
use super::pace::Pace;
use async_trait::async_trait;
use consistency::ChunkId;
use consistency::wire::chunk::ChunkFailure;
use consistency::wire::request::{COPIES_PER_MESSAGE, MetaReply, MetaRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Pause after something has failed, and between two reports.
const PAUSE: Duration = Duration::from_secs(1);

/// Asks the metadata leader.
#[async_trait]
pub trait AskLeader: Send + Sync {
    /// Returns its answer; `None` if there is no leader to be reached.
    async fn ask(&self, request: MetaRequest) -> Option<MetaReply>;
}

/// How a store is looked after.
#[derive(Clone, Copy, Debug)]
pub struct KeeperConfig {
    /// How often the chunks are compared with what the leader has.
    pub sweep_every: Duration,
    /// How often each chunk is read at most.
    pub scrub_every: Duration,
    /// How many bytes a second are read for that at most.
    pub scrub_bytes_per_s: u64,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        Self {
            sweep_every: Duration::from_secs(300),
            scrub_every: Duration::from_secs(24 * 3600),
            scrub_bytes_per_s: 16 << 20,
        }
    }
}

/// Runs for as long as the node.
pub async fn run(disk: Disk, leader: Arc<dyn AskLeader>, config: KeeperConfig) {
    tokio::join!(
        tell(&disk, &*leader),
        keep_sweeping(&disk, &*leader, config.sweep_every),
        keep_scrubbing(&disk, config),
    );
}

/// Tells the leader what is damaged or missing.
async fn tell(disk: &Disk, leader: &dyn AskLeader) {
    loop {
        let mut bad = disk.bad_untold();
        if bad.is_empty() {
            disk.bad_news().await;
            continue;
        }
        bad.truncate(COPIES_PER_MESSAGE);
        let reply = leader.ask(MetaRequest::BadCopies(bad.clone())).await;
        if let Some(MetaReply::Done) = reply {
            // Most are of files that have changed meanwhile; the leader warns of those that count.
            tracing::info!(chunks = bad.len(), first = %bad[0], "told the leader of damaged or missing chunks");
            disk.told(&bad);
        }
        sleep(PAUSE).await;
    }
}

async fn keep_sweeping(disk: &Disk, leader: &dyn AskLeader, every: Duration) {
    loop {
        disk.begin_sweep();
        let swept = sweep(disk, leader, every).await;
        disk.end_sweep();
        match swept {
            Ok(Some(gone)) => {
                disk.note_swept();
                if gone > 0 {
                    tracing::info!(chunks = gone, "deleted chunks that no file has here");
                }
                sleep(every).await;
            }
            Ok(None) => sleep(PAUSE.min(every)).await,
            Err(failure) => {
                tracing::warn!(%failure, "cannot compare the chunks with the metadata");
                sleep(every).await;
            }
        }
    }
}

/// Compares the store with what the leader has; returns how many chunks were deleted, `None` without a leader.
async fn sweep(
    disk: &Disk,
    leader: &dyn AskLeader,
    every: Duration,
) -> Result<Option<usize>, ChunkFailure> {
    let ids = disk.ids().await?;
    disk.note_listed(every, &ids);
    let (mut rest, mut from, mut gone) = (&ids[..], ChunkId(0), 0);
    loop {
        let chunks = &rest[..rest.len().min(COPIES_PER_MESSAGE)];
        let to = match chunks.last() {
            Some(last) if chunks.len() < rest.len() => *last,
            // All that the leader has behind it is missing here.
            Some(_) | None => ChunkId(u64::MAX),
        };
        let chunks = chunks.to_vec();
        let request = MetaRequest::Inventory { from, to, chunks };
        let Some(MetaReply::Inventory { orphans, upto }) = leader.ask(request).await else {
            return Ok(None);
        };
        gone += disk.sweep_away(&orphans).await?;
        if upto == ChunkId(u64::MAX) || upto < from {
            return Ok(Some(gone));
        }
        from = ChunkId(upto.0 + 1);
        rest = &rest[rest.partition_point(|id| *id < from)..];
    }
}

async fn keep_scrubbing(disk: &Disk, config: KeeperConfig) {
    let pace = Pace::new(config.scrub_bytes_per_s);
    loop {
        let next = Instant::now() + config.scrub_every;
        match disk.ids().await {
            Ok(ids) => scrub(disk, &pace, ids).await,
            Err(failure) => tracing::warn!(%failure, "cannot list the chunks to read them"),
        }
        sleep_until(next).await;
    }
}

/// Reads every chunk; the disk remembers which are damaged.
async fn scrub(disk: &Disk, pace: &Pace, ids: Vec<ChunkId>) {
    let (mut good, mut damaged) = (0_u64, 0_u64);
    for id in ids {
        match disk.verify(id).await {
            Ok(len) => {
                good += 1;
                pace.take(len.into()).await;
            }
            Err(ChunkFailure::Corrupt) => {
                damaged += 1;
                tracing::error!(%id, "a chunk on this disk is damaged");
            }
            // Deleted meanwhile.
            Err(ChunkFailure::Missing) => {}
            Err(failure) => {
                tracing::warn!(%id, %failure, "cannot read a chunk");
                pace.take(1 << 20).await;
            }
        }
    }
    tracing::info!(good, damaged, "read all chunks of this node");
}

#[cfg(test)]
mod tests;
