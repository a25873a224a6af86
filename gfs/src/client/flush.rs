//! Brings local changes to the leader: new bytes into chunks first, then attributes and content map in one commit.
//!
//! Reasons to flush: fsync, a break, age, too many bytes, the kernel forgetting the file, shutdown. While a flush is
//! under way its bytes are a layer of their own, so that changes go on above it; there is one flush of a file at a
//! time. Many small files travel in one message.

use super::content::{Base, Segment, overlay};
use super::dirty::{Dirty, Span};
use super::node::State;
use super::session::Phase;
use super::{Core, Pin};
use crate::error::Errno;
use bytes::{Bytes, BytesMut};
use consistency::wire::chunk::CHUNK_BYTES_MAX;
use consistency::wire::meta::{
    Attr, Extent, FlushContent, FlushFile, INLINE_BYTES_MAX, Op, OpReply,
};
use consistency::{ChunkId, InodeNo, Instant, NodeId};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant as Deadline, timeout_at};

/// Files in one flush message.
const FILES_PER_FLUSH: usize = 256;
/// Bytes of small files in one flush message.
const INLINE_PER_FLUSH: usize = 1 << 20;
/// Chunks or files written at a time.
const WIDTH: usize = 4;
/// Chunk numbers asked for at a time.
const IDS_PER_REQUEST: u32 = 1024;
/// A file with so many unflushed bytes is flushed without waiting for age: long writes stream.
const FILE_BYTES: u64 = 16 << 20;
/// How often the ages are looked at.
const ROUND: Duration = Duration::from_millis(500);
/// A map has this many extents plus one per [`BYTES_PER_EXTENT`] before its neighbourhood is rewritten.
const EXTENTS_FREE: u64 = 16;
/// See [`EXTENTS_FREE`].
const BYTES_PER_EXTENT: u64 = 256 << 10;
/// What is rewritten around a change of a fragmented file.
const WINDOW: u64 = 1 << 20;
/// Windows rewritten by one flush at most.
const WINDOWS_MAX: usize = 32;

/// Which files have changes that the leader has not seen.
#[derive(Debug, Default)]
pub(super) struct DirtyFiles {
    bytes: AtomicU64,
    files: Mutex<BTreeMap<InodeNo, Instant>>,
    ids: Mutex<Vec<Range<u64>>>,
    /// The flusher has something to do at once.
    nudge: Notify,
    /// There may be room for more.
    room: Notify,
}

impl DirtyFiles {
    fn files(&self) -> MutexGuard<'_, BTreeMap<InodeNo, Instant>> {
        self.files.lock().expect("no holder panics")
    }

    /// Chunk numbers belong to the session that got them.
    pub(super) fn forget_ids(&self) {
        self.ids.lock().expect("no holder panics").clear();
    }

    fn take_id(&self) -> Option<ChunkId> {
        let mut ids = self.ids.lock().expect("no holder panics");
        let range = ids.last_mut()?;
        let id = range.next();
        if range.is_empty() {
            ids.pop();
        }
        id.map(ChunkId)
    }
}

/// A flush whose chunks are durable, ready to be committed.
struct Prepared {
    node: Pin,
    generation: u64,
    file: FlushFile,
}

/// State of a file at the beginning of a flush.
struct Snapshot {
    generation: u64,
    attr: Attr,
    base: Arc<Base>,
    dirty: Dirty,
}

/// Flushes what is old or too much, until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phase = core.phase.subscribe();
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => return,
            () = tokio::time::sleep(ROUND) => {}
            () = core.dirty.nudge.notified() => {}
        }
        let due = core.due();
        if !due.is_empty() {
            // The errors are kept for each file's fsync and logged where they arise.
            let _kept = core.flush_files(due).await;
        }
    }
}

impl Core {
    /// Brings the books in step with a node's state after its changes were added to or taken away.
    pub(super) fn account(&self, ino: InodeNo, state: &mut State) {
        let content = state.content.as_ref();
        let bytes = content.map_or(0, super::content::FileContent::dirty_bytes);
        let before = std::mem::replace(&mut state.charged, bytes);
        let total = &self.dirty.bytes;
        if bytes >= before {
            total.fetch_add(bytes - before, Ordering::AcqRel);
        } else {
            total.fetch_sub(before - bytes, Ordering::AcqRel);
            self.dirty.room.notify_waiters();
        }
        match (state.is_dirty(), state.dirty_since) {
            (true, None) => {
                let now = self.clock.now();
                state.dirty_since = Some(now);
                self.dirty.files().insert(ino, now);
            }
            (false, Some(_)) => {
                state.dirty_since = None;
                self.dirty.files().remove(&ino);
            }
            (true, Some(_)) | (false, None) => {}
        }
        if bytes >= FILE_BYTES && before < FILE_BYTES {
            self.dirty.nudge.notify_one();
        }
    }

    /// Waits until there is room for more unflushed bytes.
    pub(super) async fn wait_for_room(&self) -> Result<(), Errno> {
        let until = Deadline::now() + self.config.request_deadline;
        loop {
            let mut room = std::pin::pin!(self.dirty.room.notified());
            room.as_mut().enable();
            if self.dirty.bytes.load(Ordering::Acquire) < self.config.dirty_bytes_max {
                return Ok(());
            }
            self.dirty.nudge.notify_one();
            timeout_at(until, room).await.map_err(|_| Errno::EIO)?;
        }
    }

    /// Returns the files to flush now.
    fn due(&self) -> Vec<InodeNo> {
        let micros = u64::try_from(self.config.flush_after.as_micros()).unwrap_or(u64::MAX);
        let oldest = Instant(self.clock.now().0.saturating_sub(micros));
        let much = self.dirty.bytes.load(Ordering::Acquire) >= self.config.dirty_bytes_max / 2;
        let files: Vec<_> = {
            let files = self.dirty.files();
            files.iter().map(|(&ino, &since)| (ino, since)).collect()
        };
        let due = files.into_iter().filter(|&(ino, since)| {
            much || since <= oldest || {
                let node = self.nodes.get(&ino).map(|node| Arc::clone(&node));
                node.is_some_and(|node| node.state().charged >= FILE_BYTES)
            }
        });
        due.map(|(ino, _)| ino).collect()
    }

    /// Flushes every file with changes.
    pub(super) async fn flush_everything(self: &Arc<Self>) -> Result<(), Errno> {
        let files: Vec<_> = self.dirty.files().keys().copied().collect();
        self.flush_files(files).await
    }

    /// Flushes files, many in one message; returns the first error.
    async fn flush_files(self: &Arc<Self>, files: Vec<InodeNo>) -> Result<(), Errno> {
        let mut outcome = Ok(());
        for group in files.chunks(FILES_PER_FLUSH) {
            let nodes: Vec<Pin> = group
                .iter()
                .filter_map(|&ino| self.pin_known(ino))
                .collect();
            let prepared: Vec<_> = futures::stream::iter(nodes)
                .map(|node| async move { self.prepare(&node).await })
                .buffer_unordered(WIDTH)
                .collect()
                .await;
            let mut batch = Vec::new();
            let mut bytes = 0;
            for prepared in prepared {
                match prepared {
                    Ok(None) => {}
                    Ok(Some(prepared)) => {
                        if let FlushContent::Inline(data) = &prepared.file.content {
                            bytes += data.len();
                        }
                        batch.push(prepared);
                        if bytes >= INLINE_PER_FLUSH {
                            outcome = outcome.and(self.commit(std::mem::take(&mut batch)).await);
                            bytes = 0;
                        }
                    }
                    Err(error) => outcome = outcome.and(Err(error)),
                }
            }
            if !batch.is_empty() {
                outcome = outcome.and(self.commit(batch).await);
            }
        }
        outcome
    }

    /// Flushes what a file has at this moment. Goes on if the caller gives up.
    pub(super) async fn flush_node(self: &Arc<Self>, node: &Pin) -> Result<(), Errno> {
        let (core, node) = (Arc::clone(self), node.clone());
        let flushed = tokio::spawn(async move {
            match core.prepare(&node).await? {
                Some(prepared) => core.commit(vec![prepared]).await,
                None => Ok(()),
            }
        });
        flushed.await.unwrap_or(Err(Errno::EIO))
    }

    /// Flushes a file that nobody can reach here any more; if that fails its changes are lost.
    pub(super) fn spawn_last_flush(self: &Arc<Self>, ino: InodeNo) {
        let Some(node) = self.pin_known(ino) else {
            return;
        };
        let core = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = core.flush_node(&node).await {
                let mut state = node.state();
                if state.lookups == 0 && state.opens == 0 {
                    tracing::error!(%ino, %error, "a closed file could not be flushed: its changes are lost");
                    state.drop_data();
                    core.account(ino, &mut state);
                }
            }
        });
    }

    /// Takes a snapshot and writes its new bytes into chunks. `None`: there is nothing to flush.
    async fn prepare(self: &Arc<Self>, node: &Pin) -> Result<Option<Prepared>, Errno> {
        let claim = node.wait(|state| (!state.flushing).then(|| snapshot(state)));
        let Some(snapshot) = claim.await else {
            return Ok(None);
        };
        let generation = snapshot.generation;
        let attr = snapshot.attr.clone();
        match self.store(snapshot).await {
            Ok(content) => Ok(Some(Prepared {
                node: node.clone(),
                generation,
                file: FlushFile {
                    ino: node.ino,
                    mode: attr.mode,
                    uid: attr.uid,
                    gid: attr.gid,
                    size: attr.size,
                    atime: attr.atime,
                    mtime: attr.mtime,
                    ctime: attr.ctime,
                    content,
                },
            })),
            Err(error) => {
                self.settle(node, generation, &FlushContent::Same, Err(error))
                    .await;
                Err(error)
            }
        }
    }

    /// Commits prepared flushes; returns the first error.
    async fn commit(self: &Arc<Self>, batch: Vec<Prepared>) -> Result<(), Errno> {
        let files = batch.iter().map(|prepared| prepared.file.clone()).collect();
        let results = match self.op(Op::Flush(files)).await {
            Ok((OpReply::Flushed(results), _)) if results.len() == batch.len() => results
                .into_iter()
                .map(|r| r.map_err(Errno::from))
                .collect(),
            Ok((reply, _)) => vec![Err(super::ops::unexpected(&reply)); batch.len()],
            Err(error) => vec![Err(error); batch.len()],
        };
        let mut outcome = Ok(());
        for (prepared, result) in batch.into_iter().zip(results) {
            if let Err(error) = result {
                outcome = outcome.and(Err(error));
            }
            let content = &prepared.file.content;
            self.settle(&prepared.node, prepared.generation, content, result)
                .await;
        }
        outcome
    }

    /// Ends a flush: its layer becomes the base, or is dirty again.
    async fn settle(
        &self,
        node: &Pin,
        generation: u64,
        content: &FlushContent,
        result: Result<Attr, Errno>,
    ) {
        let kernel_differs = {
            let mut state = node.state();
            state.flushing = false;
            let differs = match result {
                // Dropped meanwhile, with the lease: what is there now has nothing to do with this flush.
                _ if state.generation != generation => false,
                Ok(attr) => flushed(&mut state, content, &attr),
                Err(error) => {
                    tracing::error!(ino = %node.ino, %error, "flush failed");
                    flush_failed(&mut state, error);
                    false
                }
            };
            // Counts the age of what came since, or is to be tried again, from now.
            state.dirty_since = None;
            self.dirty.files().remove(&node.ino);
            self.account(node.ino, &mut state);
            differs
        };
        node.wake();
        if kernel_differs {
            self.kernel.forget_attr(node.ino).await;
        }
    }

    /// Writes the new bytes of a snapshot where they belong.
    async fn store(self: &Arc<Self>, snapshot: Snapshot) -> Result<FlushContent, Errno> {
        let Snapshot {
            attr, base, dirty, ..
        } = snapshot;
        let size = attr.size;
        if dirty.is_empty() {
            return Ok(FlushContent::Same);
        }
        let no_extents = matches!(*base, Base::Inline(_)) || dirty.cut() == Some(0);
        if size <= INLINE_BYTES_MAX as u64 && no_extents {
            let bytes = self.fetch(overlay(&[&dirty], &base, 0, size)).await?;
            return Ok(FlushContent::Inline(bytes));
        }
        let mut pieces = new_pieces(&base, &dirty, size);
        for window in fragmented_windows(&base, &pieces, size) {
            let len = window.end - window.start;
            let segments = overlay(&[&dirty], &base, window.start, len);
            self.rewrite(&mut pieces, window, segments).await?;
        }
        let packed = Packed::new(pieces.into_iter());
        let stored: Vec<_> = futures::stream::iter(packed.chunks.iter().cloned())
            .map(|parts| self.store_chunk(parts))
            .buffered(WIDTH)
            .try_collect()
            .await?;
        Ok(packed.into_content(dirty.cut(), &stored))
    }

    /// Adds the old bytes of a window to the pieces.
    async fn rewrite(
        &self,
        pieces: &mut BTreeMap<u64, Piece>,
        window: Range<u64>,
        segments: Vec<Segment>,
    ) -> Result<(), Errno> {
        let mut at = window.start;
        for segment in segments {
            let len = segment.len();
            // New bytes and zeros over old ones are pieces already.
            if let Segment::Chunk { .. } = segment {
                let bytes = self.fetch(vec![segment]).await?;
                pieces.insert(at, Piece::Bytes(bytes));
            }
            at += len;
        }
        Ok(())
    }

    async fn store_chunk(self: &Arc<Self>, parts: Vec<Bytes>) -> Result<Stored, Errno> {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let data = match <[Bytes; 1]>::try_from(parts) {
            Ok([whole]) => whole,
            Err(parts) => {
                let mut data = BytesMut::with_capacity(len);
                for part in parts {
                    data.extend_from_slice(&part);
                }
                data.freeze()
            }
        };
        let id = self.chunk_id().await?;
        let replicas = self.chunks.write(id, data).await?;
        let len = u32::try_from(len).expect("chunks have at most 4 MiB");
        Ok(Stored { id, len, replicas })
    }

    async fn chunk_id(self: &Arc<Self>) -> Result<ChunkId, Errno> {
        loop {
            if let Some(id) = self.dirty.take_id() {
                return Ok(id);
            }
            let count = IDS_PER_REQUEST;
            let (reply, _) = self.op(Op::AllocateChunks { count }).await?;
            let OpReply::ChunkIds(ChunkId(first)) = reply else {
                return Err(super::ops::unexpected(&reply));
            };
            let mut ids = self.dirty.ids.lock().expect("no holder panics");
            ids.push(first..first + u64::from(count));
        }
    }
}

/// A chunk that is durable.
struct Stored {
    id: ChunkId,
    len: u32,
    replicas: Vec<NodeId>,
}

fn snapshot(state: &mut State) -> Option<Snapshot> {
    if !state.wants_flush() {
        return None;
    }
    let attr = state
        .attr
        .clone()
        .expect("changes are made to known attributes");
    let (base, dirty) = match &mut state.content {
        Some(content) => (Arc::clone(content.base()), content.begin_flush()),
        None => (Arc::new(Base::Inline(Bytes::new())), Dirty::default()),
    };
    state.attr_dirty = false;
    state.flushing = true;
    Some(Snapshot {
        generation: state.generation,
        attr,
        base,
        dirty,
    })
}

/// Takes a committed flush; true if the kernel may have other attributes.
fn flushed(state: &mut State, content: &FlushContent, new: &Attr) -> bool {
    if let Some(own) = &mut state.content {
        own.flushed(content);
    }
    let clean = !state.is_dirty();
    let Some(own) = &mut state.attr else {
        return false;
    };
    if own.version > new.version {
        return false;
    }
    let differs = own.ctime != new.ctime || own.blocks != new.blocks;
    if clean {
        *own = new.clone();
    } else {
        own.version = new.version;
        own.blocks = new.blocks;
        own.nlink = new.nlink;
    }
    differs
}

fn flush_failed(state: &mut State, error: Errno) {
    state.error = Some(error);
    if error == Errno::ESTALE {
        // The leader does not believe that we own the file: nothing of it can be saved.
        state.drop_data();
        return;
    }
    if let Some(content) = &mut state.content {
        content.flush_failed();
    }
    state.attr_dirty = state.attr.is_some();
}

/// New bytes at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Bytes),
    Zero(u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(len) => *len,
        }
    }
}

/// Returns what must be written anew: changed bytes, zeros where the base has bytes, and all old bytes if they
/// are inline.
fn new_pieces(base: &Base, dirty: &Dirty, size: u64) -> BTreeMap<u64, Piece> {
    let mut pieces = BTreeMap::new();
    if let Base::Inline(_) = base {
        let mut at = 0;
        for segment in overlay(&[dirty], base, 0, size) {
            let len = segment.len();
            if let Segment::Bytes(bytes) = segment {
                pieces.insert(at, Piece::Bytes(bytes));
            }
            at += len;
        }
        return pieces;
    }
    for (at, span) in dirty.pieces().filter(|(at, _)| *at < size) {
        match span {
            Span::Bytes(bytes) => {
                pieces.insert(at, Piece::Bytes(bytes));
            }
            Span::Zero(len) | Span::Below(len) => {
                let end = (at + len).min(size).min(dirty.cut().unwrap_or(u64::MAX));
                zeros_over(base, at, end, &mut pieces);
            }
        }
    }
    pieces
}

/// Adds zeros where the base has bytes.
fn zeros_over(base: &Base, from: u64, to: u64, pieces: &mut BTreeMap<u64, Piece>) {
    let mut below = Vec::new();
    base.segments(from, to.saturating_sub(from), &mut below);
    let mut at = from;
    for segment in below {
        let len = segment.len();
        if let Segment::Chunk { .. } = segment {
            pieces.insert(at, Piece::Zero(len));
        }
        at += len;
    }
}

/// Returns the ranges to rewrite whole because the file's map has become too fine.
fn fragmented_windows(base: &Base, pieces: &BTreeMap<u64, Piece>, size: u64) -> Vec<Range<u64>> {
    let Base::Extents(extents) = base else {
        return Vec::new();
    };
    if extents.len() as u64 <= EXTENTS_FREE + size / BYTES_PER_EXTENT {
        return Vec::new();
    }
    let mut windows: Vec<Range<u64>> = Vec::new();
    for (&at, piece) in pieces {
        let last = (at + piece.len() - 1) / WINDOW;
        for window in at / WINDOW..=last {
            let start = window * WINDOW;
            let known = windows.last().is_some_and(|last| last.start == start);
            if !known && windows.len() < WINDOWS_MAX {
                windows.push(start..(start + WINDOW).min(size));
            }
        }
    }
    windows
}

/// Pieces packed into chunks.
struct Packed {
    chunks: Vec<Vec<Bytes>>,
    /// Offset, length, number of the chunk, offset in it.
    extents: Vec<(u64, u32, usize, u32)>,
}

impl Packed {
    fn new(pieces: impl Iterator<Item = (u64, Piece)>) -> Self {
        let mut packed = Self {
            chunks: Vec::new(),
            extents: Vec::new(),
        };
        let mut zeros = Vec::new();
        let mut filled = CHUNK_BYTES_MAX;
        for (mut at, piece) in pieces {
            let mut bytes = match piece {
                Piece::Bytes(bytes) => bytes,
                Piece::Zero(len) => {
                    zeros.push((at, len));
                    continue;
                }
            };
            while !bytes.is_empty() {
                if filled == CHUNK_BYTES_MAX {
                    packed.chunks.push(Vec::new());
                    filled = 0;
                }
                let room = (CHUNK_BYTES_MAX - filled) as usize;
                let part = bytes.split_to(bytes.len().min(room));
                let len = u32::try_from(part.len()).expect("at most a chunk");
                packed.extent(at, len, filled);
                at += u64::from(len);
                filled += len;
                packed.chunks.last_mut().expect("pushed above").push(part);
            }
        }
        packed.add_zeros(&zeros);
        packed
    }

    /// Adds an extent in the last chunk, or lengthens the one before.
    fn extent(&mut self, at: u64, len: u32, chunk_offset: u32) {
        let chunk = self.chunks.len() - 1;
        if let Some(last) = self.extents.last_mut() {
            let behind = last.0 + u64::from(last.1) == at && last.3 + last.1 == chunk_offset;
            if behind && last.2 == chunk {
                last.1 += len;
                return;
            }
        }
        self.extents.push((at, len, chunk, chunk_offset));
    }

    /// One chunk of zeros stands for all of them.
    fn add_zeros(&mut self, zeros: &[(u64, u64)]) {
        let Some(longest) = zeros.iter().map(|&(_, len)| len).max() else {
            return;
        };
        let chunk_len = u32::try_from(longest)
            .unwrap_or(u32::MAX)
            .min(CHUNK_BYTES_MAX);
        self.chunks.push(vec![vec![0; chunk_len as usize].into()]);
        for &(start, len) in zeros {
            let mut at = start;
            while at < start + len {
                let part = (start + len - at).min(u64::from(chunk_len));
                let part = u32::try_from(part).expect("at most a chunk");
                self.extents.push((at, part, self.chunks.len() - 1, 0));
                at += u64::from(part);
            }
        }
    }

    fn into_content(self, cut: Option<u64>, stored: &[Stored]) -> FlushContent {
        let mut extents = self.extents;
        extents.sort_unstable_by_key(|extent| extent.0);
        let extent = |(offset, len, chunk, chunk_offset): (u64, u32, usize, u32)| Extent {
            offset,
            len,
            chunk: stored[chunk].id,
            chunk_offset,
            replicas: stored[chunk].replicas.clone(),
        };
        FlushContent::Extents {
            cut,
            add: extents.into_iter().map(extent).collect(),
            chunks: stored.iter().map(|chunk| (chunk.id, chunk.len)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[(u64, Piece)], chunk_lens: &[usize], extents: &[(u64, u32, usize, u32)]) {
        let packed = Packed::new(pieces.iter().cloned());
        let lens = packed.chunks.iter().map(|c| c.iter().map(Bytes::len).sum());
        assert_eq!(lens.collect::<Vec<usize>>(), chunk_lens);
        assert_eq!(packed.extents, extents);
    }

    fn bytes(len: usize) -> Piece {
        Piece::Bytes(vec![1; len].into())
    }

    #[test]
    fn packing() {
        check(&[], &[], &[]);
        check(
            &[(0, bytes(10)), (10, bytes(5)), (100, bytes(5))],
            &[20],
            &[(0, 15, 0, 0), (100, 5, 0, 15)],
        );
        let max = CHUNK_BYTES_MAX as usize;
        check(
            &[(0, bytes(max + 3))],
            &[max, 3],
            &[(0, CHUNK_BYTES_MAX, 0, 0), (max as u64, 3, 1, 0)],
        );
        check(
            &[(0, Piece::Zero(7)), (50, Piece::Zero(10)), (70, bytes(1))],
            &[1, 10],
            &[(70, 1, 0, 0), (0, 7, 1, 0), (50, 10, 1, 0)],
        );
    }
}
