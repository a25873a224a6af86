//! Content of files: loading it, reading it under the rules for the kernel's pages (R1, W1), owning it for changes,
//! and bounding what is cached of it.

use super::call::{Patience, Ticket};
use super::content::{FileContent, Segment, index};
use super::node::{Delivery, State, Waiting};
use super::{Core, Pin};
use crate::error::Errno;
use crate::tree::{Hold, OpenFlags, ReadReply};
use bytes::{Bytes, BytesMut};
use consistency::InodeNo;
use consistency::wire::lease::Mode;
use consistency::wire::meta::{Content, Fact, Op, OpReply};
use futures::{StreamExt, TryStreamExt};
use lru::LruCache;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant as Deadline, timeout, timeout_at};

/// Chunks that one read fetches at a time.
const FETCH_WIDTH: usize = 4;
/// A READ of a file whose break has been kept waiting by others lets it end first, but not longer than this: the break
/// may be telling the kernel to forget the very page.
const LET_BREAK_END: Duration = Duration::from_millis(2);
/// A READ of a file that is not owned but may be mapped for writing waits so long for the end of a break (W1). The break
/// does not wait for it, unless the kernel still has pages from before the file was opened for writing.
const UNOWNED_WITHIN: Duration = Duration::from_secs(1);

/// Content that came without the right to keep it.
struct Uncovered {
    size: u64,
    content: Content,
    /// Breaks answered when it was asked for.
    breaks_done: u32,
}

/// What a read has to do next.
enum Step {
    /// Deliver these.
    Deliver {
        segments: Vec<Segment>,
        delivery: Delivery,
        grown: Option<u64>,
    },
    /// Load the content in this mode first.
    Load(Mode),
    /// A break is under way and nothing is known here: ask the leader outside the queue (F1).
    Bypass,
    /// A break is under way, and what is stored into the page would be lost (W1).
    Wait,
}

impl Core {
    /// Reads up to `size` bytes.
    pub(super) async fn read_pages(
        self: &Arc<Self>,
        ino: InodeNo,
        offset: u64,
        size: u32,
        flags: OpenFlags,
    ) -> Result<ReadReply, Errno> {
        let node = self.pin(ino);
        let until = Deadline::now() + self.config.request_deadline;
        self.let_break_end(&node).await;
        let (mut waiting, mut patient) = (None, true);
        while Deadline::now() < until {
            let step = self.next_step(&node, offset, size, flags, patient);
            let (segments, delivery, grown) = match step {
                Step::Deliver {
                    segments,
                    delivery,
                    grown,
                } => (segments, delivery, grown),
                Step::Wait => {
                    let over = node.wait(|state| state.breaking.is_none().then_some(()));
                    tokio::select! {
                        ended = timeout(UNOWNED_WITHIN, over) => patient = ended.is_ok(),
                        () = self.lapsing() => return Err(Errno::EIO),
                    }
                    continue;
                }
                Step::Load(mode) => {
                    if mode == Mode::Exclusive {
                        waiting.get_or_insert_with(|| Waiting::new(&node));
                    }
                    let breaking = node.wait(|state| state.breaking.is_some().then_some(()));
                    tokio::select! {
                        loaded = self.load(&node, mode, Patience::PageLock) => loaded?,
                        // The break waits for this READ, and the load may wait for the break's ack.
                        () = breaking => {}
                        // The invalidation of a lost session waits for this READ (S5).
                        () = self.lapsing() => return Err(Errno::EIO),
                    }
                    continue;
                }
                Step::Bypass => {
                    let uncovered = self.load_uncovered(&node).await?;
                    match self.deliver_uncovered(&node, offset, size, uncovered) {
                        Some((segments, delivery)) => (segments, delivery, None),
                        None => continue,
                    }
                }
            };
            let remote = segments.iter().any(|s| matches!(s, Segment::Chunk(_)));
            let data = self.fetch(segments).await?;
            // S5: the session may have ended while chunks were fetched; the kernel's pages are forgotten then.
            if remote && self.leases().mode(self.clock.now(), ino).is_none() {
                continue;
            }
            return Ok(ReadReply {
                data,
                grown,
                hold: Hold::new(delivery),
            });
        }
        Err(Errno::EIO)
    }

    /// R1 has the kernel forget again after every READ; readers that never rest would keep a break waiting for ever.
    async fn let_break_end(&self, node: &Pin) {
        let kept_waiting = |state: &State| state.breaking.as_ref().is_some_and(|b| b.rounds > 0);
        if kept_waiting(&node.state()) {
            let over = node.wait(|state| (!kept_waiting(state)).then_some(()));
            let _still_waiting = timeout(LET_BREAK_END, over).await;
        }
    }

    fn next_step(
        &self,
        node: &Pin,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        patient: bool,
    ) -> Step {
        let mut state = node.state();
        let mode = self.leases().mode(self.clock.now(), node.ino);
        let breaking = state.breaking.is_some();
        // W1
        let need = if state.rw_opens > 0 {
            Mode::Exclusive
        } else {
            Mode::Shared
        };
        let known = state.attr.is_some() && state.content.is_some() && mode.is_some();
        if breaking && patient && need == Mode::Exclusive && !self.is_master(node.ino) {
            return Step::Wait;
        }
        if breaking && known {
            // R1: what is known stays true until the ack, but the kernel must not keep it.
            let segments = plan(&state, offset, size);
            return Step::Deliver {
                segments,
                delivery: unleased(node, &mut state),
                grown: None,
            };
        }
        if breaking {
            return Step::Bypass;
        }
        if !known || mode < Some(need) {
            return Step::Load(need);
        }
        state.pages = true;
        state.page_reads = state.page_reads.wrapping_add(1);
        state.unused = false;
        if !flags.noatime() {
            self.accessed(&mut state, node.ino);
        }
        let segments = plan(&state, offset, size);
        Step::Deliver {
            segments,
            grown: state.outgrown(),
            // K1
            delivery: Delivery::leased(node, &mut state),
        }
    }

    /// Asks for content during a break. Not through [`Self::load`], where a load of before the break may wait for
    /// the break's ack.
    async fn load_uncovered(self: &Arc<Self>, node: &Pin) -> Result<Option<Uncovered>, Errno> {
        let (core, node) = (Arc::clone(self), node.clone());
        self.detached(async move { core.load_now(&node, Mode::Shared, Patience::PageLock).await })
            .await
    }

    /// R1: gives content without a lease to the kernel only while the break it was asked under is unanswered.
    fn deliver_uncovered(
        &self,
        node: &Pin,
        offset: u64,
        size: u32,
        uncovered: Option<Uncovered>,
    ) -> Option<(Vec<Segment>, Delivery)> {
        let uncovered = uncovered?;
        let mut state = node.state();
        if state.breaking.is_none() || state.breaks_done != uncovered.breaks_done {
            return None;
        }
        let content = FileContent::new(uncovered.content);
        let len = clip(uncovered.size, offset, u64::from(size));
        Some((content.segments(offset, len), unleased(node, &mut state)))
    }

    /// Fetches segments and puts them together.
    pub(super) async fn fetch(&self, segments: Vec<Segment>) -> Result<Bytes, Errno> {
        let len: u64 = segments.iter().map(Segment::len).sum();
        let mut parts = futures::stream::iter(segments)
            .map(|segment| self.fetch_one(segment))
            .buffered(FETCH_WIDTH);
        let Some(first) = parts.try_next().await? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 == len {
            return Ok(first);
        }
        let mut data = BytesMut::with_capacity(index(len));
        data.extend_from_slice(&first);
        while let Some(part) = parts.try_next().await? {
            data.extend_from_slice(&part);
        }
        Ok(data.freeze())
    }

    async fn fetch_one(&self, segment: Segment) -> Result<Bytes, Errno> {
        match segment {
            Segment::Bytes(bytes) => Ok(bytes),
            Segment::Zero(len) => Ok(vec![0; index(len)].into()),
            Segment::Chunk(part) => {
                let read = self
                    .chunks
                    .read(part.chunk, &part.replicas, part.offset, part.len);
                let data = read.await?;
                assert_eq!(data.len(), part.len as usize, "chunks are read whole");
                Ok(data)
            }
        }
    }

    /// Loads attributes and content, once for all who want them. The caller looks again afterwards.
    pub(super) async fn load(
        self: &Arc<Self>,
        node: &Pin,
        mode: Mode,
        patience: Patience,
    ) -> Result<(), Errno> {
        let ours = {
            let mut state = node.state();
            !std::mem::replace(&mut state.asking, true)
        };
        if !ours {
            let idle = node.wait(|state| (!state.asking).then_some(()));
            let until = Deadline::now() + self.config.request_deadline;
            return timeout_at(until, idle).await.map_err(|_| Errno::EIO);
        }
        let asking = Asking(node.clone());
        let core = Arc::clone(self);
        self.detached(async move {
            core.load_now(&asking.0, mode, patience).await?;
            Ok(())
        })
        .await
    }

    /// Sends a `Load`; what could not be cached comes back.
    async fn load_now(
        self: &Arc<Self>,
        node: &Pin,
        mode: Mode,
        patience: Patience,
    ) -> Result<Option<Uncovered>, Errno> {
        let ino = node.ino;
        let breaks_done = node.state().breaks_done;
        let (reply, ticket) = self.op_with(Op::Load { ino, mode }, patience).await?;
        let OpReply::Loaded {
            file,
            content,
            room,
            copies,
        } = reply
        else {
            return Err(super::ops::unexpected(&reply));
        };
        let size = file.attr.size;
        let Some(content) = self.loaded(node, &ticket, &file, (content, room, copies), mode) else {
            return Ok(None);
        };
        Ok(Some(Uncovered {
            size,
            content,
            breaks_done,
        }))
    }

    /// Takes loaded content if it is covered, else gives it back.
    fn loaded(
        &self,
        node: &Pin,
        ticket: &Ticket,
        file: &Fact,
        (content, room, copies): (Content, Option<u64>, u8),
        mode: Mode,
    ) -> Option<Content> {
        let bytes = {
            let mut state = node.state();
            if !self.learn_into(&mut state, node.ino, ticket, file) {
                return Some(content);
            }
            if state.writing.room != room {
                state.writing.room = room;
            }
            if state.writing.copies != copies {
                state.writing.copies = copies;
            }
            state.unused = mode == Mode::Exclusive && state.waiting > 0;
            match &mut state.content {
                // Newer than what the leader has.
                Some(own) if own.is_dirty() => {}
                Some(own) => own.rebase(content),
                slot => *slot = Some(Box::new(FileContent::new(content))),
            }
            let content = state.content.as_ref();
            content.map_or(0, |content| content.base().bytes())
        };
        self.clean_loaded(node.ino, bytes);
        None
    }

    /// Changes a file under an exclusive lease, which is acquired if need be. `mapped`: the change may be what a
    /// break's invalidation waits for, so it does not wait for the break.
    pub(super) async fn change_owned<T>(
        self: &Arc<Self>,
        node: &Pin,
        mapped: bool,
        mut change: impl FnMut(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let until = Deadline::now() + self.config.request_deadline;
        let mut waiting = None;
        while Deadline::now() < until {
            if let Some(changed) = self.try_change(node, mapped, &mut change) {
                return changed;
            }
            waiting.get_or_insert_with(|| Waiting::new(node));
            let closed = node.state().breaking.is_some();
            if closed {
                let over = node.wait(|state| state.breaking.is_none().then_some(()));
                timeout_at(until, over).await.map_err(|_| Errno::EIO)?;
            } else {
                self.load(node, Mode::Exclusive, Patience::Session).await?;
            }
        }
        Err(Errno::EIO)
    }

    /// Changes a file if it is owned and no flush for an ack has begun.
    pub(super) fn try_change<T>(
        &self,
        node: &Pin,
        mapped: bool,
        change: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Option<Result<T, Errno>> {
        let mut state = node.state();
        let closed = state.breaking.as_ref().is_some_and(|b| b.closed);
        let open = !closed || mapped;
        let known = state.attr.is_some() && state.content.is_some();
        if !(open && known && self.owned(node.ino)) {
            return None;
        }
        let changed = change(&mut state);
        self.account(node.ino, &mut state);
        state.unused = false;
        drop(state);
        node.wake();
        Some(changed)
    }
}

/// One who asks the leader about a node (see `State::asking`).
pub(super) struct Asking(pub(super) Pin);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.state().asking = false;
        self.0.wake();
    }
}

fn unleased(node: &Pin, state: &mut State) -> Delivery {
    if let Some(breaking) = &mut state.breaking {
        breaking.served_unleased = true;
    }
    state.pages = true;
    state.page_reads = state.page_reads.wrapping_add(1);
    Delivery::unleased(node, state)
}

/// Returns where the bytes of a read are.
pub(super) fn plan(state: &State, offset: u64, size: u32) -> Vec<Segment> {
    let len = clip(state.size(), offset, u64::from(size));
    let content = state.content.as_ref();
    content.map_or_else(Vec::new, |content| content.segments(offset, len))
}

/// Returns how many of `len` bytes from `offset` lie within `size`.
pub(super) fn clip(size: u64, offset: u64, len: u64) -> u64 {
    size.saturating_sub(offset).min(len)
}

/// Which content and which listings are cached, by last load.
#[derive(Debug)]
pub(super) struct CleanContent {
    bytes_max: usize,
    files: Mutex<CleanFiles>,
}

#[derive(Debug)]
struct CleanFiles {
    bytes: usize,
    order: LruCache<InodeNo, usize>,
}

impl CleanContent {
    pub(super) fn new(bytes_max: usize) -> Self {
        let files = CleanFiles {
            bytes: 0,
            order: LruCache::unbounded(),
        };
        Self {
            bytes_max,
            files: Mutex::new(files),
        }
    }

    /// The inode is not known any more.
    pub(super) fn forget(&self, ino: InodeNo) {
        let mut files = self.files.lock().expect("no holder panics");
        let bytes = files.order.pop(&ino).unwrap_or(0);
        files.bytes -= bytes;
    }
}

impl CleanFiles {
    fn add(&mut self, ino: InodeNo, bytes: usize, bytes_max: usize) -> Vec<InodeNo> {
        // An entry costs something even if the file is empty.
        let bytes = bytes + size_of::<State>();
        let before = self.order.put(ino, bytes).unwrap_or(0);
        self.bytes = self.bytes + bytes - before;
        let mut evicted = Vec::new();
        while self.bytes > bytes_max && self.order.len() > 1 {
            if let Some((ino, bytes)) = self.order.pop_lru() {
                self.bytes -= bytes;
                evicted.push(ino);
            }
        }
        evicted
    }
}

impl Core {
    /// Counts the content of a file or the listing of a directory, and drops those of others above the bound. Their
    /// leases and the kernel's pages stay as they are.
    pub(super) fn clean_loaded(&self, ino: InodeNo, bytes: usize) {
        let evicted = {
            let mut files = self.clean.files.lock().expect("no holder panics");
            files.add(ino, bytes, self.clean.bytes_max)
        };
        for ino in evicted {
            let node = self.nodes.get(&ino).map(|node| Arc::clone(&node));
            let Some(node) = node else { continue };
            let mut state = node.state();
            state.names.forget_unused();
            // Mapped pages may be written back at any moment, onto content that must be known then.
            if !state.is_dirty() && state.rw_opens == 0 {
                state.content = None;
            }
        }
    }
}
