//! One inode as this node knows it.
//!
//! # Lock order
//! Shard of the node table, then a node's state, then the lease core, clock, dirty list and release queue (which
//! take nothing further). Two nodes' states are never locked at the same time. The node table is never touched,
//! and nothing is awaited, while a state is locked.

use super::content::FileContent;
use super::failure::Failure;
use super::names::DirNames;
use super::sharing::Sharing;
use crate::error::Errno;
use bytes::Bytes;
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::{InodeNo, Instant};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// The kernel's smallest; of larger ones a file has no more.
const PAGE: u64 = 4096;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) ino: InodeNo,
    state: Mutex<State>,
    /// Something that an operation may wait for has changed.
    changed: Notify,
    /// Operations that work with the node; it stays in the table while there are any.
    pub(super) pins: AtomicU32,
}

/// Everything that changes about a node.
#[derive(Debug, Default)]
pub(super) struct State {
    /// As the caller of stat(2) would see them, local changes included.
    pub(super) attr: Option<Attr>,
    /// Of a symbolic link; never changes.
    pub(super) target: Option<Box<Bytes>>,
    #[allow(clippy::box_collection, reason = "most nodes have none")]
    pub(super) xattrs: Option<Box<BTreeMap<Name, Bytes>>>,
    /// Of a directory.
    pub(super) names: DirNames,
    /// Of a regular file.
    pub(super) content: Option<Box<FileContent>>,
    /// Of a file that is changed, here or on other nodes.
    pub(super) writing: Writing,
    /// Attributes were changed that the leader has not seen.
    pub(super) attr_dirty: bool,
    /// Counts the times content and attributes were dropped.
    pub(super) generation: u32,
    /// A flush is under way.
    pub(super) flushing: bool,
    /// It was made here, and the leader does not know of it yet.
    pub(super) made: bool,
    /// Its last name was removed here, and the leader does not know of it yet.
    pub(super) removal: Removal,
    /// A break is about to take the directory: nothing more is made in it (G3).
    pub(super) giving_up: bool,
    /// Times the kernel was told about the inode, less what it has forgotten.
    pub(super) lookups: u64,
    pub(super) opens: u32,
    /// Opens that may write.
    pub(super) writers: u32,
    /// Opens that may have a writable shared mapping (W1).
    pub(super) rw_opens: u32,
    /// The kernel may have pages.
    pub(super) pages: bool,
    /// Counts the READs answered.
    pub(super) page_reads: u32,
    /// Replies under the lease that have not reached the kernel yet (K1).
    pub(super) holds: u32,
    /// Replies outside a lease that have not reached the kernel yet (R1).
    pub(super) unleased: u32,
    /// A `Load` or `SetAttr` is under way: one at a time, so that a reply with attributes from before the
    /// other cannot become what a local change builds on.
    pub(super) asking: bool,
    /// Operations that wait for an exclusive lease.
    pub(super) waiting: u32,
    /// An exclusive lease was granted and nobody has used it yet.
    pub(super) unused: bool,
    /// A break is being handled: those of one inode are handled one after the other.
    pub(super) break_turn: bool,
    pub(super) breaking: Option<Breaking>,
    /// Counts the breaks answered.
    pub(super) breaks_done: u32,
    /// Changes of ours in flight that touch the attributes.
    pub(super) attr_pending: u32,
}

/// What is known of the changes of a file. Most are only read: they have none of it, which matters where there are a
/// million of them.
#[derive(Debug, Default)]
pub(super) struct Writing(Option<Box<Changes>>);

#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Bytes that a quota leaves for the file at least beyond what the leader has of it, going by what was last heard;
    /// `None`: no quota.
    pub(super) room: Option<u64>,
    /// Copies to make of its chunks, as last heard; 0: as many as are made of everything.
    pub(super) copies: u8,
    /// When the oldest change was made that the leader has not seen.
    pub(super) dirty_since: Option<Instant>,
    /// Bytes of changes that are counted in the client's total.
    pub(super) charged: u64,
    /// What a background flush ran into, for fsync and close.
    pub(super) failure: Failure,
    /// The newest handle for writing.
    pub(super) newest: u64,
    /// Content was flushed while somebody had it open for writing: watchers have to be told of the close.
    pub(super) close_untold: bool,
    pub(super) sharing: Sharing,
    /// The size that the kernel goes by since the attributes were dropped, until it asks (K3).
    pub(super) outdated_size: Option<u64>,
}

impl Deref for Writing {
    type Target = Changes;

    fn deref(&self) -> &Changes {
        static NONE: Changes = Changes {
            room: None,
            copies: 0,
            dirty_since: None,
            charged: 0,
            failure: Failure::NONE,
            newest: 0,
            close_untold: false,
            sharing: Sharing::NONE,
            outdated_size: None,
        };
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut Changes {
        self.0.get_or_insert_default()
    }
}

impl Changes {
    /// Notes what all who have the file open for writing are to be told.
    pub(super) fn fail(&mut self, error: Errno) {
        self.failure = Failure::new(error, self.newest);
    }
}

/// How far the removal of an inode's last name by this node alone is (G4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Removal {
    #[default]
    None,
    /// It may turn out not to be possible.
    Begun,
    /// It is done, and to be told.
    Queued,
}

/// An unanswered break.
#[derive(Debug, Default)]
pub(super) struct Breaking {
    /// The flush for the ack has begun: changes wait until it is over.
    pub(super) closed: bool,
    /// How often the kernel was told to forget in vain, because READs were answered meanwhile (R1).
    pub(super) rounds: u32,
    /// A READ was answered outside the lease since the kernel was last told to forget (R1).
    pub(super) served_unleased: bool,
}

impl Node {
    pub(super) fn new(ino: InodeNo) -> Self {
        Self {
            ino,
            state: Mutex::default(),
            changed: Notify::new(),
            pins: AtomicU32::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Wakes everybody who waits for a change of the state.
    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until `ready` gives a value; it is asked at once and after every [`Node::wake`].
    pub(super) async fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(value) = ready(&mut self.state()) {
                return value;
            }
            changed.await;
        }
    }
}

impl State {
    /// Tells whether the leader has not seen everything.
    pub(super) fn is_dirty(&self) -> bool {
        self.attr_dirty
            || self.flushing
            || self.made
            || self.names.uncommitted() > 0
            || self.content.as_deref().is_some_and(FileContent::is_dirty)
    }

    /// Tells whether there is something to flush that is not being flushed already.
    pub(super) fn wants_flush(&self) -> bool {
        self.attr_dirty || self.content.as_ref().is_some_and(|c| !c.dirty.is_empty())
    }

    pub(super) fn size(&self) -> u64 {
        self.attr.as_ref().map_or(0, |attr| attr.size)
    }

    /// Drops what a lease on attributes and content covered, unflushed changes included.
    pub(super) fn drop_data(&mut self) {
        self.drop_attr();
        self.content = None;
        if self.writing.room.is_some() {
            self.writing.room = None;
        }
        self.attr_dirty = false;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Drops what a lease on attributes covered.
    pub(super) fn drop_attr(&mut self) {
        self.xattrs = None;
        let Some(attr) = self.attr.take() else {
            return;
        };
        // Of what is not open nothing is mapped; who opens it asks for its attributes first.
        let used = self.opens > 0 || self.writing.0.is_some();
        if attr.kind == FileKind::File && used && self.writing.outdated_size.is_none() {
            self.writing.outdated_size = Some(attr.size);
        }
    }

    /// The kernel is given the attributes.
    pub(super) fn size_shown(&mut self) {
        if self.writing.outdated_size.is_some() {
            self.writing.outdated_size = None;
        }
    }

    /// Returns the size if the kernel goes by one that has fewer pages, once (K3).
    pub(super) fn outgrown(&mut self) -> Option<u64> {
        let (outdated, size) = (self.writing.outdated_size?, self.size());
        let grown = size.div_ceil(PAGE) > outdated.div_ceil(PAGE);
        // What it reads behind a smaller size lets the kernel take that.
        self.writing.outdated_size = (!grown).then_some(outdated.min(size));
        grown.then_some(size)
    }

    /// Asks what became of changes that could not be flushed.
    pub(super) fn tell(
        &mut self,
        ask: impl FnOnce(&mut Failure) -> Option<Errno>,
    ) -> Option<Errno> {
        // Most files have nothing to tell, and no room for it.
        if self.writing.failure.is_none() {
            return None;
        }
        ask(&mut self.writing.failure)
    }

    /// Tells whether a file whose flushed content watchers know of has been closed since, and that they are told of it
    /// now. Unflushed changes tell of it themselves.
    pub(super) fn take_close(&mut self) -> bool {
        let closed = self.writing.close_untold && self.writers == 0 && !self.is_dirty();
        if closed {
            self.writing.close_untold = false;
        }
        closed
    }

    /// Tells whether nobody needs the node: neither the kernel nor an open file nor unflushed changes.
    pub(super) fn is_idle(&self) -> bool {
        let told = self.removal == Removal::None;
        self.lookups == 0 && self.opens == 0 && !self.is_dirty() && told
    }

    /// Tells whether the inode is gone for good once it is idle.
    pub(super) fn is_orphan(&self) -> bool {
        self.attr.as_ref().is_some_and(|attr| attr.nlink == 0)
    }
}

/// Ends a count in a node's state when a reply has reached the kernel.
#[derive(Debug)]
pub(super) struct Delivery {
    node: Arc<Node>,
    unleased: bool,
}

impl Delivery {
    /// Counts a reply under the lease (K1). The caller has the state locked and has checked the lease in it.
    pub(super) fn leased(node: &Arc<Node>, state: &mut State) -> Self {
        state.holds += 1;
        Self {
            node: Arc::clone(node),
            unleased: false,
        }
    }

    /// Counts a reply outside the lease (R1).
    pub(super) fn unleased(node: &Arc<Node>, state: &mut State) -> Self {
        state.unleased += 1;
        Self {
            node: Arc::clone(node),
            unleased: true,
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let mut state = self.node.state();
        let count = if self.unleased {
            &mut state.unleased
        } else {
            &mut state.holds
        };
        *count -= 1;
        let last = *count == 0;
        drop(state);
        if last {
            self.node.wake();
        }
    }
}

/// The turn of one break (see `State::break_turn`).
pub(super) struct BreakTurn<'a>(&'a Node);

impl<'a> BreakTurn<'a> {
    pub(super) async fn take(node: &'a Node) -> Self {
        node.wait(|state| (!std::mem::replace(&mut state.break_turn, true)).then_some(()))
            .await;
        Self(node)
    }
}

impl Drop for BreakTurn<'_> {
    fn drop(&mut self) {
        self.0.state().break_turn = false;
        self.0.wake();
    }
}

/// Counts one who waits for an exclusive lease.
pub(super) struct Waiting<'a>(&'a Node);

impl<'a> Waiting<'a> {
    pub(super) fn new(node: &'a Node) -> Self {
        node.state().waiting += 1;
        Self(node)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
        self.0.wake();
    }
}
