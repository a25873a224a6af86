//! Answers breaks: stop serving, wait for what is on its way to the kernel, flush, have the kernel forget, ack.
//!
//! | scope | held | dropped here | kernel | kept |
//! | --- | --- | --- | --- | --- |
//! | Attr | Shared | attributes, xattrs | attributes | Shared |
//! | Names | Shared | those names, attributes | those names, attributes | Shared |
//! | All | Shared | names, attributes | names, attributes | Known |
//! | Data | Shared, Exclusive | content, attributes (flushed first) | pages, attributes | Known |
//! | Flush | Exclusive | nothing (flushed) | attributes, if the flush changed them | Shared |
//!
//! A file that may be mapped for writing keeps nothing after a flush either: its pages could be dirtied unseen (W1).
//! A break that offers less than Shared takes everything, whatever its scope: what stayed would not be covered.
//! Where everything known was dropped, nothing is kept: a lease on nothing only costs the next break.

use super::node::{BreakTurn, Breaking, Removal};
use super::{Core, Pin};
use crate::error::Errno;
use crate::net::Service;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::lease::{Break, BreakAck, Mode, Scope};
use consistency::wire::meta::{Attr, FileKind, Name};
use consistency::wire::{decode, encode};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::timeout;

/// A break of a grant that is still on its way waits this long for it: overtaking the grant would take it away
/// before it was of any use, again and again.
const GRANT_WITHIN: Duration = Duration::from_millis(20);
/// Who waited for an exclusive grant gets this long to use it before it is broken.
const FIRST_USE_WITHIN: Duration = Duration::from_millis(10);
/// Attempts to flush before the ack; then the changes are given up, because everybody else waits.
const FLUSH_ATTEMPTS: u32 = 3;
/// Rounds of R1 after which one is logged.
const ROUNDS_LOGGED: u32 = 100;

/// The callback service.
pub(super) struct Callbacks {
    core: Weak<Core>,
}

impl Callbacks {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self {
            core: Arc::downgrade(core),
        }
    }
}

#[async_trait]
impl Service for Callbacks {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request: Break = match decode(&body) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%from, %error, "not a break");
                return None;
            }
        };
        let core = self.core.upgrade()?;
        // In a task of its own: a break that was begun is finished, also when the leader stops waiting.
        let ack = tokio::spawn(async move { core.handle_break(request).await });
        Some(encode(&ack.await.ok()?).into())
    }

    /// The break itself runs in its own task.
    fn is_prompt(&self) -> bool {
        true
    }
}

impl Core {
    async fn handle_break(self: &Arc<Self>, request: Break) -> BreakAck {
        // Made if it is not known: its grant is on its way, or has just been given back. When the pin goes the
        // node goes, and with it the lease.
        let node = self.pin(request.ino);
        let _turn = BreakTurn::take(&node).await;
        self.let_grant_arrive(&node).await;
        self.give_up_making(&node).await;
        {
            let mut state = node.state();
            // L2: from here on replies on their way are not cached, and nothing is served from the cache.
            if !self.leases().handle_break(&request) {
                // A late copy.
                state.giving_up = false;
                return self.leases().finish_break(&request, Mode::Known);
            }
            state.breaking = Some(Breaking::default());
            if request.scope != Scope::Flush {
                self.accesses.overtaken(request.ino);
            }
            if matches!(request.scope, Scope::Data | Scope::Flush) {
                state.writing.sharing.note_break(self.clock.now());
            }
        }
        let keeps = missing!(KeepMade) && node.state().names.uncommitted() > 0;
        if missing!(NoBreak) || keeps {
            return self.ack(&node, &request, Mode::Shared);
        }
        // READs that wait for a lease behind this break get along without (R1).
        node.wake();
        // K1: what was given out under the lease reaches the kernel before the kernel is told to forget.
        node.wait(|state| (state.holds == 0).then_some(())).await;
        let dir = {
            let state = node.state();
            let is_dir = |attr: &Attr| attr.kind == FileKind::Dir;
            state.names.any() || state.attr.as_ref().is_some_and(is_dir)
        };
        let exclusive = !dir && self.is_master(request.ino);
        match &request.scope {
            Scope::Data if dir && request.keep >= Mode::Shared => {
                self.break_attr(&node, &request).await
            }
            Scope::Data if dir => self.break_names(&node, &request, None).await,
            Scope::Flush => self.break_flush(&node, &request).await,
            _ if exclusive => self.break_data(&node, &request).await,
            Scope::Data => self.break_data(&node, &request).await,
            Scope::All => self.break_names(&node, &request, None).await,
            Scope::Names(_) if request.keep < Mode::Shared => {
                self.break_names(&node, &request, None).await
            }
            Scope::Names(names) => {
                let all = node.state().names.give_up(self.clock.now());
                let some = (!all).then(|| names.clone());
                self.break_names(&node, &request, some).await
            }
            Scope::Attr if request.keep < Mode::Shared => {
                let all = node.state().names.in_kernel();
                if all.is_empty() {
                    self.break_data(&node, &request).await
                } else {
                    self.break_names(&node, &request, None).await
                }
            }
            Scope::Attr => self.break_attr(&node, &request).await,
        }
    }

    /// G3: makes and removes nothing more in a directory, and has the leader know of what was; or of its own removal.
    async fn give_up_making(self: &Arc<Self>, node: &Pin) {
        node.state().giving_up = true;
        // G4: what has begun is in the queue then, or not to be.
        node.wait(|state| (state.removal != Removal::Begun).then_some(()))
            .await;
        if missing!(KeepMade) {
            return;
        }
        for _ in 0..FLUSH_ATTEMPTS {
            if self.flush_made_of(node.ino).await.is_ok() {
                return;
            }
        }
        // Bound by nothing else: everybody waits for this break.
        tracing::error!(ino = %node.ino, "what was made in a directory cannot be committed before a break");
        if let Some(session) = self.leases().session() {
            self.session_ended(session);
        }
    }

    /// Breaks attributes alone.
    async fn break_attr(self: &Arc<Self>, node: &Pin, request: &Break) -> BreakAck {
        drop_attr(node);
        self.kernel.forget_attr(node.ino).await;
        {
            let mut state = node.state();
            let read = state.breaking.as_ref().is_some_and(|b| b.served_unleased);
            if !read && state.unleased == 0 {
                let ack = self.finish(&mut state, request, Mode::Shared);
                drop(state);
                node.wake();
                return ack;
            }
        }
        // R1, W1: a READ that was answered meanwhile has left a page that nothing covers; stores into it would be lost.
        self.break_data(node, request).await
    }

    /// Lets a grant be of use before it is broken.
    async fn let_grant_arrive(&self, node: &Pin) {
        // Who is broken was granted something; if nothing is known of it the reply is still on its way.
        let ino = node.ino;
        let arrived = node.wait(|state| {
            let there = !state.asking || self.leases().held(ino) >= Some(Mode::Shared);
            there.then_some(())
        });
        // If it does not come it is worthless when it does (L2).
        let _late = timeout(GRANT_WITHIN, arrived).await;
        let used = node.wait(|state| (!(state.unused && state.waiting > 0)).then_some(()));
        let _unused = timeout(FIRST_USE_WITHIN, used).await;
    }

    /// Breaks some names of a directory, or all.
    async fn break_names(&self, node: &Pin, request: &Break, some: Option<Vec<Name>>) -> BreakAck {
        let kept = if some.is_some() {
            Mode::Shared
        } else {
            Mode::Known
        };
        let names = {
            let mut state = node.state();
            match some {
                Some(mut names) => {
                    for name in &names {
                        state.names.forget(name);
                    }
                    names.retain(|name| state.names.is_in_kernel(name));
                    names
                }
                None => {
                    state.names.forget_all();
                    state.names.in_kernel()
                }
            }
        };
        drop_attr(node);
        self.kernel.forget_names(node.ino, names.clone()).await;
        self.kernel.forget_attr(node.ino).await;
        {
            let mut state = node.state();
            for name in &names {
                state.names.taken_from_kernel(name);
            }
        }
        self.ack(node, request, kept)
    }

    /// Breaks content and attributes.
    async fn break_data(self: &Arc<Self>, node: &Pin, request: &Break) -> BreakAck {
        let owned = self.is_master(node.ino);
        loop {
            let pages = {
                let mut state = node.state();
                // W1: without owning it there is none, and a READ waits for this break.
                let pages = state.pages || owned && state.rw_opens > 0;
                if let Some(breaking) = &mut state.breaking {
                    breaking.closed = true;
                    breaking.served_unleased = false;
                }
                pages
            };
            if pages {
                // Writes mapped pages back first: they arrive as WRITEs and are taken while we own the file (W1).
                self.kernel.forget_data(node.ino).await;
            } else {
                self.kernel.forget_attr(node.ino).await;
            }
            self.flush_for_break(node).await;
            node.wait(|state| (state.unleased == 0).then_some(())).await;
            let mut state = node.state();
            // R1: a READ answered since the kernel was told may have left a page behind.
            let served = state.breaking.as_ref().is_some_and(|b| b.served_unleased);
            if !served && state.unleased == 0 && !state.is_dirty() {
                state.drop_data();
                state.pages = false;
                self.account(node.ino, &mut state);
                let ack = self.finish(&mut state, request, Mode::Known);
                drop(state);
                node.wake();
                return ack;
            }
            if let Some(breaking) = &mut state.breaking {
                breaking.rounds += 1;
                if breaking.rounds % ROUNDS_LOGGED == 0 {
                    tracing::warn!(ino = %node.ino, rounds = breaking.rounds, "readers keep a break waiting");
                }
            }
        }
    }

    /// Makes known what only this node knows; it stays right, and cached, under a shared lease.
    async fn break_flush(self: &Arc<Self>, node: &Pin, request: &Break) -> BreakAck {
        let generation = {
            let mut state = node.state();
            if let Some(breaking) = &mut state.breaking {
                breaking.closed = true;
            }
            state.generation
        };
        self.flush_for_break(node).await;
        {
            let mut state = node.state();
            // W1; or the flush failed, and the kernel has what is lost.
            let forget = state.rw_opens > 0 || state.generation != generation;
            if !forget && !state.is_dirty() {
                let ack = self.finish(&mut state, request, Mode::Shared);
                drop(state);
                node.wake();
                return ack;
            }
        }
        self.break_data(node, request).await
    }

    async fn flush_for_break(self: &Arc<Self>, node: &Pin) {
        for _ in 0..FLUSH_ATTEMPTS {
            if self.flush_node(node).await.is_ok() {
                return;
            }
        }
        let mut state = node.state();
        if state.wants_flush() {
            tracing::error!(ino = %node.ino, "cannot flush before a break: changes are lost");
            state.writing.fail(Errno::EIO);
            state.drop_data();
            self.account(node.ino, &mut state);
        }
    }

    fn ack(&self, node: &Pin, request: &Break, kept: Mode) -> BreakAck {
        fail_point!("client: before a break is acknowledged");
        let ack = self.finish(&mut node.state(), request, kept);
        node.wake();
        ack
    }

    fn finish(&self, state: &mut super::node::State, request: &Break, kept: Mode) -> BreakAck {
        state.breaking = None;
        state.giving_up = false;
        state.breaks_done = state.breaks_done.wrapping_add(1);
        self.leases().finish_break(request, kept)
    }
}

fn drop_attr(node: &Pin) {
    node.state().drop_attr();
}
