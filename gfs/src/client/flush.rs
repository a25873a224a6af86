//! Brings local changes to the leader: new bytes into chunks first, then attributes and content map in one commit.
//!
//! Reasons to flush: fsync, a break, age, too many bytes, the kernel forgetting the file, shutdown. While a flush is
//! under way its bytes are a layer of their own, so that changes go on above it; there is one flush of a file at a
//! time. Many small files travel in one message. What a flush shares with other files, and what becomes of it if they
//! have changed, is in [`super::share`].

use super::call::Patience;
use super::call::Ticket;
use super::content::{Base, Segment, overlay};
use super::dirty::Dirty;
use super::node::State;
use super::pack::{Packed, Piece, Stored, fragmented_windows, new_pieces};
use super::session::Phase;
use super::share::shares;
use super::{Core, Pin};
use crate::error::Errno;
use bytes::{Bytes, BytesMut};
use consistency::wire::meta::{Attr, FlushContent, FlushFile, INLINE_BYTES_MAX, Op, OpReply};
use consistency::{ChunkId, InodeNo, Instant, SessionId};
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
pub(super) const WIDTH: usize = 4;
/// Chunk numbers asked for at a time.
const IDS_PER_REQUEST: u32 = 1024;
/// A file with so many unflushed bytes is flushed without waiting for age: long writes stream.
const FILE_BYTES: u64 = 16 << 20;
/// How often the ages are looked at.
const ROUND: Duration = Duration::from_millis(500);

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

    pub(super) fn take_id(&self) -> Option<ChunkId> {
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
    generation: u32,
    /// Under which its file was owned; `None`: it has just ended.
    session: Option<SessionId>,
    file: FlushFile,
}

/// State of a file at the beginning of a flush.
struct Snapshot {
    generation: u32,
    attr: Attr,
    base: Arc<Base>,
    dirty: Dirty,
    /// Somebody has the file open for writing.
    written: bool,
    copies: u8,
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
        let content = state.content.as_deref();
        let bytes = content.map_or(0, super::content::FileContent::dirty_bytes);
        let before = state.writing.charged;
        if bytes != before {
            state.writing.charged = bytes;
        }
        let total = &self.dirty.bytes;
        if bytes >= before {
            total.fetch_add(bytes - before, Ordering::AcqRel);
        } else {
            total.fetch_sub(before - bytes, Ordering::AcqRel);
            self.dirty.room.notify_waiters();
        }
        match (state.is_dirty(), state.writing.dirty_since) {
            (true, None) => {
                let now = self.clock.now();
                state.writing.dirty_since = Some(now);
                self.dirty.files().insert(ino, now);
            }
            (false, Some(_)) => {
                state.writing.dirty_since = None;
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
                node.is_some_and(|node| node.state().writing.charged >= FILE_BYTES)
            }
        });
        due.map(|(ino, _)| ino).collect()
    }

    /// Flushes every file with changes.
    pub(super) async fn flush_everything(self: &Arc<Self>) -> Result<(), Errno> {
        let made = self.flush_made().await;
        let files: Vec<_> = self.dirty.files().keys().copied().collect();
        made.and(self.flush_files(files).await)
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
        self.flush_made_of(node.ino).await?;
        let claim = node.wait(|state| {
            let session = self.leases().session();
            (!state.flushing).then(|| Some((snapshot(state)?, session)))
        });
        let Some((snapshot, session)) = claim.await else {
            return Ok(None);
        };
        let generation = snapshot.generation;
        let attr = snapshot.attr.clone();
        let written = snapshot.written;
        match self.store(snapshot).await {
            Ok(content) => Ok(Some(Prepared {
                node: node.clone(),
                generation,
                session,
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
                    written,
                },
            })),
            Err(error) => {
                let nothing = &FlushContent::Same;
                self.settle(node, generation, nothing, written, Err(error))
                    .await;
                Err(error)
            }
        }
    }

    /// Commits prepared flushes; returns the first error.
    async fn commit(self: &Arc<Self>, batch: Vec<Prepared>) -> Result<(), Errno> {
        let mut results = Vec::with_capacity(batch.len());
        for of_one in batch.chunk_by(|a, b| a.session == b.session) {
            let files = of_one.iter().map(|prepared| prepared.file.clone());
            let session = of_one.first().and_then(|prepared| prepared.session);
            results.extend(self.send_flush(session, files.collect()).await);
        }
        let mut outcome = Ok(());
        let mut stale = Vec::new();
        for (prepared, result) in batch.into_iter().zip(results) {
            if matches!(result, Err(Errno::ESTALE)) && shares(&prepared.file.content) {
                stale.push(prepared);
            } else {
                let concluded = self.conclude(&prepared, result).await;
                outcome = outcome.and(concluded);
            }
        }
        for mut prepared in stale {
            let result = self
                .flush_unshared(prepared.session, &mut prepared.file)
                .await;
            let concluded = self.conclude(&prepared, result).await;
            outcome = outcome.and(concluded);
        }
        outcome
    }

    async fn conclude(
        self: &Arc<Self>,
        of: &Prepared,
        result: Result<Attr, Errno>,
    ) -> Result<(), Errno> {
        let outcome = match &result {
            Ok(_) => Ok(()),
            Err(error) => Err(*error),
        };
        let (content, written) = (&of.file.content, of.file.written);
        self.settle(&of.node, of.generation, content, written, result)
            .await;
        outcome
    }

    /// Sends a flush of files that were owned under a session; returns what became of each. Under the next session the
    /// node may own them again, with other content (S4).
    pub(super) async fn send_flush(
        self: &Arc<Self>,
        session: Option<SessionId>,
        files: Vec<FlushFile>,
    ) -> Vec<Result<Attr, Errno>> {
        let count = files.len();
        let Some(session) = session else {
            return vec![Err(Errno::EIO); count];
        };
        let flush = self.op_with(Op::Flush(files), Patience::Only(session));
        match flush.await {
            Ok((OpReply::Flushed(results), _)) if results.len() == count => {
                let results = results.into_iter();
                results.map(|r| r.map_err(Errno::from)).collect()
            }
            Ok((reply, _)) => vec![Err(super::ops::unexpected(&reply)); count],
            Err(error) => vec![Err(error); count],
        }
    }

    /// Ends a flush: its layer becomes the base, or is dirty again.
    async fn settle(
        self: &Arc<Self>,
        node: &Pin,
        generation: u32,
        content: &FlushContent,
        written: bool,
        result: Result<Attr, Errno>,
    ) {
        let (mut kernel_differs, mut lost) = (false, false);
        let closed = {
            let mut state = node.state();
            state.flushing = false;
            if result.is_ok() && *content != FlushContent::Same {
                state.writing.close_untold = written;
            }
            match result {
                // Dropped meanwhile, with the lease: what is there now has nothing to do with this flush.
                _ if state.generation != generation => {}
                Ok(mut attr) => {
                    self.accesses.add_to(&mut attr);
                    kernel_differs = flushed(&mut state, content, &attr);
                }
                Err(error) => {
                    tracing::error!(ino = %node.ino, %error, "flush failed");
                    lost = flush_failed(&mut state, error);
                }
            }
            // Counts the age of what came since, or is to be tried again, from now.
            state.writing.dirty_since = None;
            self.dirty.files().remove(&node.ino);
            self.account(node.ino, &mut state);
            state.take_close()
        };
        node.wake();
        if closed {
            self.tell_close(node.ino);
        }
        if lost {
            // It has what is lost.
            self.kernel.forget_data(node.ino).await;
        } else if kernel_differs {
            self.kernel.forget_attr(node.ino).await;
        }
    }

    /// Writes the new bytes of a snapshot where they belong.
    async fn store(self: &Arc<Self>, snapshot: Snapshot) -> Result<FlushContent, Errno> {
        let Snapshot {
            attr,
            base,
            dirty,
            copies,
            ..
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
            .map(|parts| self.store_chunk(parts, copies))
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
            // New bytes, zeros over old ones and what is shared are pieces already.
            let known = pieces.range(..=at).next_back();
            let shared = known.is_some_and(|(&start, piece)| piece.shares(at - start));
            if matches!(segment, Segment::Chunk(_)) && !shared {
                let bytes = self.fetch(vec![segment]).await?;
                pieces.insert(at, Piece::Bytes(bytes));
            }
            at += len;
        }
        Ok(())
    }

    pub(super) async fn store_chunk(
        self: &Arc<Self>,
        parts: Vec<Bytes>,
        copies: u8,
    ) -> Result<Stored, Errno> {
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
        let replicas = self.chunks.write(id, data, copies).await?;
        let len = u32::try_from(len).expect("chunks have at most 4 MiB");
        Ok(Stored { id, len, replicas })
    }

    /// Returns a number that no other session has.
    pub(super) async fn chunk_id(self: &Arc<Self>) -> Result<ChunkId, Errno> {
        loop {
            if let Some(id) = self.dirty.take_id() {
                return Ok(id);
            }
            let count = IDS_PER_REQUEST;
            let (reply, ticket) = self.op(Op::AllocateChunks { count }).await?;
            let OpReply::ChunkIds(ChunkId(first)) = reply else {
                return Err(super::ops::unexpected(&reply));
            };
            self.keep_ids(&ticket, first..first + u64::from(count));
        }
    }

    /// Keeps numbers that were given to a session, unless it has ended meanwhile: then what else it had is forgotten already.
    pub(super) fn keep_ids(&self, ticket: &Ticket, range: Range<u64>) {
        let mut ids = self.dirty.ids.lock().expect("no holder panics");
        if self.leases().is_current(ticket.stamp) {
            ids.push(range);
        }
    }
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
        written: state.writers > 0,
        copies: state.writing.copies,
    })
}

/// Takes a committed flush; true if the kernel may have other attributes.
fn flushed(state: &mut State, content: &FlushContent, new: &Attr) -> bool {
    if let Some(own) = &mut state.content {
        let before = own.changed_bytes();
        own.flushed(content);
        // At most: what was replaced is room again, of which the leader knows.
        let taken = before.saturating_sub(own.changed_bytes());
        state.writing.room = state.writing.room.map(|room| room.saturating_sub(taken));
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

/// Takes a flush that failed; true if the kernel may have what is lost with it.
fn flush_failed(state: &mut State, error: Errno) -> bool {
    state.writing.fail(error);
    let content = state.content.as_ref();
    let shares = content.is_some_and(|content| content.shared_bytes() > 0);
    if error == Errno::ESTALE || error == Errno::EDQUOT || shares {
        // The leader does not believe that we own the file: nothing of it can be saved. Or a quota is used up (Q4):
        // what were kept would be sent again and again, and take up the room of everybody's unflushed bytes. Or
        // chunks of other files were shared, and nothing keeps them for another attempt (W4).
        state.drop_data();
        return error != Errno::ESTALE;
    }
    if let Some(content) = &mut state.content {
        content.flush_failed();
    }
    state.attr_dirty = state.attr.is_some();
    false
}
