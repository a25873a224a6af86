//! Inodes that this node has made by itself, in directories that it holds exclusively, until the leader knows of them.
//!
//! Who untars, clones or builds makes thousands of files in directories that nobody else looks at. There each is made
//! here, under a number of its own ([`InodeNo::by_session`]), and many are committed at once: after a moment, or when
//! somebody needs it.
//!
//! # Rules
//! - G1 alone: a name is made here only in a directory that is held exclusively, whose break has not begun, and in which
//!   the name is known to be free; and where the leader has said that it does nothing that cannot be foreseen.
//! - G2 in order: what names a made inode, or says what is in its directory, is not asked of the leader before it was
//!   told of the inode. Other changes of names go through the leader, after everything that was made.
//! - G3 flushed first: a break of a directory is taken up when everything made in it is committed.
//!
//! What was made and not committed is lost with the session, as unflushed bytes are (S4); who syncs it is told (S3).
//!
//! Lock order: a node's state, the lease core, [`Queue`].

use super::call::{Patience, Ticket};
use super::names::Known;
use super::node::State;
use super::session::Phase;
use super::{Core, Pin};
use crate::birth::Birth;
use crate::error::Errno;
use consistency::InodeNo;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{Attr, Fact, FileKind, MADE_MAX, Made, Name, Op, OpReply};
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard};

/// The longest that something made is kept to oneself.
const WITHIN: Duration = Duration::from_millis(100);
/// So many are committed without waiting for more.
const MANY: usize = MADE_MAX / 2;
/// With so many uncommitted, makers wait.
const MOST: usize = 8 * MADE_MAX;

type Outcome = Result<(), Errno>;

/// What was made and is not committed.
#[derive(Debug, Default)]
pub(super) struct Makes {
    queue: Mutex<Queue>,
    /// One commit at a time, for their order.
    turn: Arc<tokio::sync::Mutex<()>>,
    first: Notify,
    many: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// In order.
    made: VecDeque<Made>,
    /// How many were made and left the queue, by a commit or with their session.
    done: u64,
    /// Of all that is in the queue.
    inodes: BTreeSet<InodeNo>,
    names: BTreeSet<(InodeNo, Name)>,
    /// How many are made in each directory.
    dirs: BTreeMap<InodeNo, usize>,
    /// Counts the sessions.
    life: u64,
}

impl Queue {
    fn push(&mut self, made: Made) {
        self.inodes.insert(made.ino);
        self.names.insert((made.parent, made.name.clone()));
        *self.dirs.entry(made.parent).or_default() += 1;
        self.made.push_back(made);
    }

    /// Takes the first `count` out.
    fn finish(&mut self, count: usize) {
        for made in self.made.drain(..count) {
            self.inodes.remove(&made.ino);
            self.names.remove(&(made.parent, made.name));
            if let Some(left) = self.dirs.get_mut(&made.parent) {
                *left -= 1;
                if *left == 0 {
                    self.dirs.remove(&made.parent);
                }
            }
        }
        self.done += count as u64;
    }

    /// G2
    fn concerns(&self, op: &Op) -> bool {
        let is_made = |ino: &InodeNo| self.inodes.contains(ino);
        let is_dir = |ino: &InodeNo| self.dirs.contains_key(ino);
        match op {
            Op::AllocateChunks { .. } | Op::Make(_) => false,
            // Of other names in the same directory the leader knows.
            Op::Lookup { parent, name } => {
                is_made(parent) || is_dir(parent) && self.names.contains(&(*parent, name.clone()))
            }
            Op::Load { ino, .. } | Op::ReadLink { ino } | Op::StatFs { ino } => is_made(ino),
            Op::Flush(files) => files.iter().any(|file| is_made(&file.ino)),
            Op::Accessed(times) => times.iter().any(|(ino, _)| is_made(ino)),
            Op::GetAttr { ino } | Op::GetXattrs { ino } | Op::ReadDir { ino, .. } => {
                is_made(ino) || is_dir(ino)
            }
            // A directory that it removes, or replaces, must be seen to have something in it.
            Op::Create { .. }
            | Op::Link { .. }
            | Op::Unlink { .. }
            | Op::Rename { .. }
            | Op::SetAttr { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. } => !self.made.is_empty(),
        }
    }
}

impl Makes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    /// Returns whether an operation has to wait for a commit of what was made (G2).
    pub(super) fn concerns(&self, op: &Op) -> bool {
        self.queue().concerns(op)
    }

    /// Forgets everything: the session is over.
    pub(super) fn clear(&self) {
        let mut queue = self.queue();
        let count = queue.made.len();
        queue.finish(count);
        queue.life += 1;
    }
}

/// Commits what was made, before long, until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phase = core.phase.subscribe();
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => return,
            () = core.makes.first.notified() => {}
        }
        loop {
            // Who needs it commits it meanwhile.
            let _few = tokio::time::timeout(WITHIN, core.makes.many.notified()).await;
            if core.makes.queue().made.is_empty() {
                break;
            }
            if let Err(error) = core.flush_made().await {
                tracing::debug!(%error, "what was made is not committed yet");
            }
        }
    }
}

impl Core {
    /// Commits everything made before this was called. Goes on if the caller gives up.
    pub(super) async fn flush_made(self: &Arc<Self>) -> Outcome {
        let (life, upto) = {
            let queue = self.makes.queue();
            (queue.life, queue.done + queue.made.len() as u64)
        };
        while self.makes.queue().done < upto {
            let turn = Arc::clone(&self.makes.turn).lock_owned().await;
            let commit = Arc::clone(self).commit_in_turn(turn);
            tokio::spawn(commit).await.unwrap_or(Err(Errno::EIO))?;
        }
        // It went with its session: what comes after it must not be done as if it were there.
        if self.makes.queue().life != life {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// Commits what was made of an inode: itself, and the names in it.
    pub(super) async fn flush_made_of(self: &Arc<Self>, ino: InodeNo) -> Outcome {
        let concerned = {
            let queue = self.makes.queue();
            queue.inodes.contains(&ino) || queue.dirs.contains_key(&ino)
        };
        if concerned {
            self.flush_made().await
        } else {
            Ok(())
        }
    }

    /// A function that returns a box, since each operation may call this, and this is an operation.
    fn commit_in_turn(self: Arc<Self>, turn: OwnedMutexGuard<()>) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            let outcome = self.commit_made().await;
            drop(turn);
            outcome
        })
    }

    /// Waits until there is room for more.
    pub(super) async fn wait_to_make(self: &Arc<Self>) -> Result<(), Errno> {
        if self.makes.queue().made.len() < MOST {
            return Ok(());
        }
        self.flush_made().await
    }

    /// Returns whether a name may be made here, as it looks (G1).
    pub(super) fn may_make(&self, state: &State, dir: InodeNo, name: &Name) -> bool {
        let alive = |attr: &Attr| attr.kind == FileKind::Dir && attr.nlink > 0;
        state.breaking.is_none()
            && !state.giving_up
            && state.attr_pending == 0
            && state.names.is_foreseeable()
            && state.names.has_room()
            && state.attr.as_ref().is_some_and(alive)
            && state.names.find(name) == Known::Absent
            && self.leases().mode(self.clock.now(), dir) == Some(Mode::Exclusive)
    }

    /// Puts an inode under its name; `child` is complete, and nobody else has heard of it. False: that may not be (G1).
    pub(super) fn make_alone(
        &self,
        dir: &Pin,
        (child, attr): (&Pin, &Attr),
        birth: &Birth<'_>,
        made: Made,
    ) -> bool {
        let name = made.name.clone();
        let mut state = dir.state();
        if !self.may_make(&state, dir.ino, &name) {
            return false;
        }
        let parent = state.attr.as_mut().expect("it may be made in");
        if birth.attr(parent) != *attr {
            // The directory was given another owner or mode in between.
            return false;
        }
        let count = {
            let mut leases = self.leases();
            // Under the lock: what is in the queue belongs to the session.
            if leases.mode(self.clock.now(), dir.ino) != Some(Mode::Exclusive) {
                return false;
            }
            leases.made(child.ino);
            // L9: a reply from before is not cached.
            leases.changed_untold(dir.ino);
            let mut queue = self.makes.queue();
            queue.push(made);
            queue.made.len()
        };
        parent.mtime = birth.at;
        parent.ctime = parent.ctime.max(birth.at);
        parent.nlink += u32::from(attr.kind == FileKind::Dir);
        state.names.make(&name, Known::Present(attr.ino, attr.kind));
        drop(state);
        if count == 1 {
            self.makes.first.notify_one();
        } else if count == MANY {
            self.makes.many.notify_one();
        }
        true
    }

    async fn commit_made(self: &Arc<Self>) -> Result<(), Errno> {
        let (session, life, batch): (_, u64, Vec<Made>) = {
            // What is in the queue belongs to the session: see above.
            let leases = self.leases();
            let queue = self.makes.queue();
            let first = queue.made.iter().take(MADE_MAX);
            (leases.session(), queue.life, first.cloned().collect())
        };
        if batch.is_empty() {
            return Ok(());
        }
        let session = session.ok_or(Errno::EIO)?;
        let make = self.op_with(Op::Make(batch.clone()), Patience::Only(session));
        let (made, dirs, ticket) = match make.await {
            Ok((OpReply::Made { made, dirs }, ticket)) if made.len() == batch.len() => {
                let made = made.into_iter().map(|fact| fact.map_err(Errno::from));
                (made.collect(), dirs, Some(ticket))
            }
            Ok((reply, _)) => return Err(super::ops::unexpected(&reply)),
            // The leader does not believe that we hold a directory: nothing of it can be saved.
            Err(Errno::ESTALE) => (vec![Err(Errno::ESTALE); batch.len()], Vec::new(), None),
            Err(error) => return Err(error),
        };
        self.settle_made(life, &batch, made, dirs, ticket).await
    }

    async fn settle_made(
        self: &Arc<Self>,
        life: u64,
        batch: &[Made],
        results: Vec<Result<Fact, Errno>>,
        dirs: Vec<Fact>,
        ticket: Option<Ticket>,
    ) -> Result<(), Errno> {
        let mut lost = Vec::new();
        for (made, result) in batch.iter().zip(results) {
            let child = self.pin(made.ino);
            match (result, &ticket) {
                (Ok(fact), Some(ticket)) => self.child_committed(&child, ticket, &fact).await,
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::error!(ino = %made.ino, name = ?made.name, %error, "what was made here is refused: it is lost");
                    self.child_lost(&child, error);
                    lost.push((made, child));
                }
            }
        }
        {
            let mut queue = self.makes.queue();
            if queue.life != life {
                return Err(Errno::EIO);
            }
            queue.finish(batch.len());
        }
        let mut counts: BTreeMap<InodeNo, usize> = BTreeMap::new();
        for made in batch {
            *counts.entry(made.parent).or_default() += 1;
        }
        for (dir, count) in counts {
            let dir = self.pin(dir);
            let fact = dirs.iter().find(|fact| fact.attr.ino == dir.ino);
            self.dir_committed(&dir, count, ticket.as_ref().zip(fact));
        }
        for (made, child) in lost {
            let dir = self.pin(made.parent);
            dir.state().names.forget(&made.name);
            self.kernel
                .forget_names(dir.ino, vec![made.name.clone()])
                .await;
            self.kernel.forget_data(child.ino).await;
        }
        Ok(())
    }

    /// The leader knows of an inode now, and has granted it.
    async fn child_committed(&self, child: &Pin, ticket: &Ticket, fact: &Fact) {
        let mut attr = fact.attr.clone();
        self.accesses.add_to(&mut attr);
        let differs = {
            let mut state = child.state();
            state.made = false;
            self.installed(&state, ticket, child.ino, fact.grant);
            let dirty = state.is_dirty() && !missing!(LoseContent);
            let differs = match &mut state.attr {
                Some(own) if dirty => {
                    own.version = own.version.max(attr.version);
                    false
                }
                Some(own) => {
                    let differs = own.ctime != attr.ctime;
                    *own = attr;
                    differs
                }
                None => false,
            };
            self.account(child.ino, &mut state);
            differs
        };
        child.wake();
        if differs {
            self.kernel.forget_attr(child.ino).await;
        }
    }

    fn child_lost(&self, child: &Pin, error: Errno) {
        let mut state = child.state();
        state.made = false;
        state.writing.fail(error);
        state.drop_data();
        state.names.forget_all();
        self.account(child.ino, &mut state);
        drop(state);
        // Nobody else has heard of it.
        let _name = self.leases().forget(child.ino);
    }

    /// The leader knows of `count` more names in a directory.
    fn dir_committed(&self, dir: &Pin, count: usize, told: Option<(&Ticket, &Fact)>) {
        let mut state = dir.state();
        state.names.committed(count);
        let Some((ticket, fact)) = told else { return };
        self.installed(&state, ticket, dir.ino, fact.grant);
        let exclusive = |grant: Grant| grant.mode == Mode::Exclusive;
        if !fact.grant.is_some_and(exclusive) {
            // A quota, say, was set above it.
            state.names.set_unforeseeable();
        }
        let dirty = state.is_dirty();
        match &mut state.attr {
            Some(own) if dirty => own.version = own.version.max(fact.attr.version),
            Some(own) if own.version <= fact.attr.version => *own = fact.attr.clone(),
            Some(_) | None => {}
        }
    }
}
