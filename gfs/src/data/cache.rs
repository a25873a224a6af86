//! Remote chunks in memory: a block of 64 KiB is fetched once for all who want it, and kept as long as there is room.
//!
//! A *run* is a few consecutive blocks that one request fetches. It is fetched by a task of its own, so that a reader
//! that gives up takes nothing away from the others. While a run is on its way each of its blocks is *coming*:
//! whoever needs one waits for that run. Chunks are immutable, so what is here is never stale.
//!
//! A *stream* is a chunk that is read from front to back. Its runs are as long as they may be, and the next run is
//! fetched while the last one is being read.
//!
//! The one mutex is never held across an await or while bytes are copied.

use super::BLOCK_BYTES;
use super::replica::{Refusals, Replicas, persist};
use bytes::{Bytes, BytesMut};
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use consistency::{ChunkId, NodeId};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest run: 512 KiB.
const RUN_BLOCKS: u32 = 8;
/// How far from where it is expected the next read of a stream may be: the kernel's read-ahead overtakes itself.
const STREAM_SLACK_BYTES: u32 = 128 << 10;
/// How many chunks are watched for being read as a stream.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// How many runs are read ahead at a time, at most 16 MiB. Runs that somebody waits for have no bound of their own:
/// the kernel bounds its requests, and a node that does not answer must not hold up the reads of others.
const RUNS_AHEAD_MAX: usize = 32;

/// A block of a chunk.
type Key = (ChunkId, u32);

/// Blocks of remote chunks.
#[derive(Debug)]
pub(super) struct BlockCache {
    replicas: Arc<Replicas>,
    bytes_max: usize,
    patience: Duration,
    ahead: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    blocks: LruCache<Key, Bytes>,
    /// Sum of the lengths of `blocks`.
    bytes: usize,
    coming: HashMap<Key, Run>,
    streams: LruCache<ChunkId, Stream>,
}

/// A run on its way.
#[derive(Clone, Debug)]
struct Run {
    first: u32,
    bytes: Shared<BoxFuture<'static, Result<Bytes, Arc<Refusals>>>>,
}

/// How a chunk is being read.
#[derive(Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u32,
    /// Nothing is at or after this block, as far as is known.
    end: u32,
}

/// Where consecutive blocks are to be had.
#[derive(Debug)]
enum Source {
    Here(u32, Bytes),
    Coming(Run),
}

impl BlockCache {
    /// Makes an empty cache of at most `bytes_max` bytes. A fetch is repeated for up to `patience`.
    pub(super) fn new(replicas: Arc<Replicas>, bytes_max: usize, patience: Duration) -> Self {
        let state = State {
            blocks: LruCache::unbounded(),
            bytes: 0,
            coming: HashMap::new(),
            streams: LruCache::new(STREAMS_MAX),
        };
        Self {
            replicas,
            bytes_max,
            patience,
            ahead: Arc::new(Semaphore::new(RUNS_AHEAD_MAX)),
            state: Mutex::new(state),
        }
    }

    /// Returns `len` bytes, at least one, of a chunk from `offset` on; the range must lie below [`CHUNK_BYTES_MAX`].
    pub(super) async fn read(
        self: &Arc<Self>,
        chunk: ChunkId,
        nodes: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Arc<Refusals>> {
        let wanted = offset..offset + len;
        let mut pieces = Vec::new();
        for source in self.sources(chunk, nodes, &wanted) {
            let (first, bytes) = match source {
                Source::Here(block, bytes) => (block, bytes),
                Source::Coming(run) => (run.first, run.bytes.await?),
            };
            let start = first * BLOCK_BYTES;
            let within = |at: u32| (at.saturating_sub(start) as usize).min(bytes.len());
            pieces.push(bytes.slice(within(wanted.start)..within(wanted.end)));
        }
        let whole = join(pieces);
        if whole.len() == len as usize {
            Ok(whole)
        } else {
            let mut refusals = Refusals::default();
            if let Some(node) = nodes.first() {
                refusals.push(*node, ChunkFailure::BadRange.into());
            }
            Err(Arc::new(refusals))
        }
    }

    /// Finds all blocks of a range in order, and begins to fetch what is neither here nor coming.
    fn sources(
        self: &Arc<Self>,
        chunk: ChunkId,
        nodes: &[NodeId],
        wanted: &Range<u32>,
    ) -> Vec<Source> {
        let mut state = self.state();
        let (streaming, chunk_end) = state.note_read(chunk, wanted);
        let end = wanted.end.div_ceil(BLOCK_BYTES);
        let mut sources = Vec::new();
        let mut block = wanted.start / BLOCK_BYTES;
        while block < end {
            if let Some(bytes) = state.blocks.get(&(chunk, block)) {
                sources.push(Source::Here(block, bytes.clone()));
                block += 1;
                continue;
            }
            let run = match state.coming.get(&(chunk, block)) {
                Some(run) => run.clone(),
                None => {
                    let limit = if streaming { chunk_end.max(end) } else { end };
                    self.fetch(&mut state, chunk, nodes, block..limit, None)
                }
            };
            block += 1;
            while block < end
                && state
                    .coming
                    .get(&(chunk, block))
                    .is_some_and(|same| same.first == run.first)
            {
                block += 1;
            }
            sources.push(Source::Coming(run));
        }
        if streaming {
            self.read_ahead(&mut state, chunk, nodes, end..chunk_end);
        }
        sources
    }

    /// Begins to fetch the next run of a stream once the reader has come half-way to it.
    fn read_ahead(
        self: &Arc<Self>,
        state: &mut State,
        chunk: ChunkId,
        nodes: &[NodeId],
        ahead: Range<u32>,
    ) {
        let near = ahead.start..ahead.end.min(ahead.start + RUN_BLOCKS / 2);
        let missing = near.clone().find(|block| !state.knows((chunk, *block)));
        if let Some(block) = missing
            && let Ok(turn) = Arc::clone(&self.ahead).try_acquire_owned()
        {
            self.fetch(state, chunk, nodes, block..ahead.end, Some(turn));
        }
    }

    /// Begins to fetch a run: `blocks`, but not what is known and not more than a run may have.
    fn fetch(
        self: &Arc<Self>,
        state: &mut State,
        chunk: ChunkId,
        nodes: &[NodeId],
        blocks: Range<u32>,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Run {
        let first = blocks.start;
        let limit = blocks.end.min(first + RUN_BLOCKS);
        let end = (first + 1..limit)
            .find(|block| state.knows((chunk, *block)))
            .unwrap_or(limit);
        let (cache, nodes) = (Arc::clone(self), nodes.to_vec());
        let task = tokio::spawn(async move {
            let _turn = turn;
            let result = cache
                .fetch_run(chunk, nodes, first..end)
                .await
                .map_err(Arc::new);
            cache.arrived(chunk, first..end, &result);
            result
        });
        let bytes = async {
            match task.await {
                Ok(result) => result,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(Arc::default()),
            }
        };
        let run = Run {
            first,
            bytes: bytes.boxed().shared(),
        };
        state
            .coming
            .extend((first..end).map(|block| ((chunk, block), run.clone())));
        run
    }

    async fn fetch_run(
        &self,
        chunk: ChunkId,
        nodes: Vec<NodeId>,
        blocks: Range<u32>,
    ) -> Result<Bytes, Refusals> {
        let (offset, len) = (
            blocks.start * BLOCK_BYTES,
            (blocks.end - blocks.start) * BLOCK_BYTES,
        );
        persist(self.patience, || async {
            let fetched = self.replicas.fetch(chunk, &nodes, offset, len).await;
            fetched.map(|(_, bytes)| bytes)
        })
        .await
    }

    /// Takes in the blocks of a run that is no longer coming.
    fn arrived(&self, chunk: ChunkId, blocks: Range<u32>, result: &Result<Bytes, Arc<Refusals>>) {
        // Copies, because a slice would keep the whole run in memory.
        let copy = |bytes: &Bytes| {
            bytes
                .chunks(BLOCK_BYTES as usize)
                .map(Bytes::copy_from_slice)
                .collect::<Vec<_>>()
        };
        let copies = result.as_ref().map(copy).unwrap_or_default();
        let whole = |block: &Bytes| block.len() == BLOCK_BYTES as usize;
        let ends = match result {
            Ok(_) => copies.len() < blocks.len() || !copies.iter().all(whole),
            Err(refusals) => refusals.beyond_end(),
        };
        let mut state = self.state();
        if ends {
            let count = u32::try_from(copies.len()).expect("a run is short");
            state.stream(chunk).end = blocks.start + count;
        }
        for block in blocks.clone() {
            state.coming.remove(&(chunk, block));
        }
        for (block, bytes) in blocks.zip(copies) {
            state.insert((chunk, block), bytes, self.bytes_max);
        }
    }

    /// Returns how many bytes are here.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn knows(&self, key: Key) -> bool {
        self.blocks.contains(&key) || self.coming.contains_key(&key)
    }

    fn stream(&mut self, chunk: ChunkId) -> &mut Stream {
        let new = || Stream {
            next: 0,
            end: CHUNK_BYTES_MAX / BLOCK_BYTES,
        };
        self.streams.get_or_insert_mut(chunk, new)
    }

    /// Notes a read; returns whether it belongs to a stream and the block where the chunk ends, if that is known.
    fn note_read(&mut self, chunk: ChunkId, wanted: &Range<u32>) -> (bool, u32) {
        let stream = self.stream(chunk);
        let streaming = wanted.start.abs_diff(stream.next) <= STREAM_SLACK_BYTES;
        stream.next = if streaming {
            stream.next.max(wanted.end)
        } else {
            wanted.end
        };
        (streaming, stream.end)
    }

    fn insert(&mut self, key: Key, bytes: Bytes, bytes_max: usize) {
        self.bytes += bytes.len();
        if let Some(old) = self.blocks.put(key, bytes) {
            self.bytes -= old.len();
        }
        while self.bytes > bytes_max {
            let (_, old) = self.blocks.pop_lru().expect("its bytes are counted");
            self.bytes -= old.len();
        }
    }
}

/// Joins pieces; a single one is not copied.
fn join(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces
        .iter()
        .for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}
