//! Names that this node has made and removed by itself, in directories that it holds exclusively, until the leader knows.
//!
//! Who untars, clones or builds makes thousands of files in directories that nobody else looks at, and removes them
//! again. There each is made here, under a number of its own ([`InodeNo::by_session`]), or removed here, and many are
//! committed at once: after a moment, or when somebody needs it.
//!
//! # Rules
//! - G1 alone: a name is made here only in a directory that is held exclusively, whose break has not begun, and in which
//!   the name is known to be free; and where the leader has said that it does nothing that cannot be foreseen.
//! - G2 in order: what names an inode that was made or removed, or says what is in its directory, is not asked of the
//!   leader before it was told. Other changes of names go through the leader, after everything that was done here.
//! - G3 flushed first: a break of a directory, or of what was removed, is taken up when all of it is committed.
//! - G4 alone in both: a name is removed here only where one could be made, and if what it stands for is held exclusively
//!   and its break has not begun: a file with no other name, or a directory that is known to be empty.
//!
//! What was done and not committed is lost with the session, as unflushed bytes are (S4); who syncs it is told (S3).
//!
//! Lock order: a node's state, the lease core, [`Queue`].

use super::call::{Patience, Ticket};
use super::names::Known;
use super::node::{Removal, State};
use super::session::Phase;
use super::{Core, Pin};
use crate::birth::Birth;
use crate::error::Errno;
use consistency::wire::lease::{Grant, Mode};
use consistency::wire::meta::{
    Attr, Fact, FileKind, MADE_MAX, Made, NAMES_SINCE, Name, NameChange, Op, OpReply, Removed,
};
use consistency::{InodeNo, SessionId, Timestamp};
use futures::future::BoxFuture;
use std::collections::{BTreeMap, VecDeque};
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
    changes: VecDeque<NameChange>,
    /// How many were done and left the queue, by a commit or with their session.
    done: u64,
    /// How often each is in the queue.
    inodes: Counts<InodeNo>,
    names: Counts<(InodeNo, Name)>,
    /// How many are in each directory.
    dirs: Counts<InodeNo>,
    /// Counts the sessions.
    life: u64,
}

type Counts<T> = BTreeMap<T, usize>;

fn add<T: Ord>(counts: &mut Counts<T>, one: T) {
    *counts.entry(one).or_default() += 1;
}

fn take<T: Ord>(counts: &mut Counts<T>, one: &T) {
    if let Some(left) = counts.get_mut(one) {
        *left -= 1;
        if *left == 0 {
            counts.remove(one);
        }
    }
}

impl Queue {
    fn push(&mut self, change: NameChange) {
        add(&mut self.inodes, change.ino());
        add(&mut self.names, (change.parent(), change.name().clone()));
        add(&mut self.dirs, change.parent());
        self.changes.push_back(change);
    }

    /// Takes the first `count` out.
    fn finish(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            take(&mut self.inodes, &change.ino());
            take(&mut self.names, &(change.parent(), change.name().clone()));
            take(&mut self.dirs, &change.parent());
        }
        self.done += count as u64;
    }

    /// G2
    fn concerns(&self, op: &Op) -> bool {
        let is_made = |ino: &InodeNo| self.inodes.contains_key(ino);
        let is_dir = |ino: &InodeNo| self.dirs.contains_key(ino);
        match op {
            Op::AllocateChunks { .. } | Op::Make(_) | Op::Names(_) => false,
            // Of other names in the same directory the leader knows.
            Op::Lookup { parent, name } => {
                is_made(parent)
                    || is_dir(parent) && self.names.contains_key(&(*parent, name.clone()))
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
            | Op::RemoveXattr { .. } => !self.changes.is_empty(),
        }
    }
}

/// Returns the link count of what has one name, and no directories in it.
const fn links(kind: FileKind) -> u32 {
    match kind {
        FileKind::Dir => 2,
        _ => 1,
    }
}

/// What became of changes that the leader was told of.
struct Told {
    batch: Vec<NameChange>,
    results: Vec<Result<Fact, Errno>>,
    dirs: Vec<Fact>,
    ticket: Option<Ticket>,
}

impl Makes {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    /// Returns whether an operation has to wait for a commit of what was made (G2).
    pub(super) fn concerns(&self, op: &Op) -> bool {
        self.queue().concerns(op)
    }

    /// There are so many now.
    fn pushed(&self, count: usize) {
        if count == 1 {
            self.first.notify_one();
        } else if count == MANY {
            self.many.notify_one();
        }
    }

    /// Forgets everything: the session is over.
    pub(super) fn clear(&self) {
        let mut queue = self.queue();
        let count = queue.changes.len();
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
            if core.makes.queue().changes.is_empty() {
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
            (queue.life, queue.done + queue.changes.len() as u64)
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
            queue.inodes.contains_key(&ino) || queue.dirs.contains_key(&ino)
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
        if self.makes.queue().changes.len() < MOST {
            return Ok(());
        }
        self.flush_made().await
    }

    /// Returns whether names of a directory may be changed here, as it looks.
    fn is_alone(&self, state: &State, dir: InodeNo) -> bool {
        let alive = |attr: &Attr| attr.kind == FileKind::Dir && attr.nlink > 0;
        state.names.is_foreseeable()
            && state.attr.as_ref().is_some_and(alive)
            && self.is_owned_quietly(state, dir)
    }

    fn is_owned_quietly(&self, state: &State, ino: InodeNo) -> bool {
        state.breaking.is_none()
            && !state.giving_up
            && state.attr_pending == 0
            && self.leases().mode(self.clock.now(), ino) == Some(Mode::Exclusive)
    }

    /// Returns whether a name may be made here, as it looks (G1).
    pub(super) fn may_make(&self, state: &State, dir: InodeNo, name: &Name) -> bool {
        state.names.has_room()
            && state.names.find(name) == Known::Absent
            && self.is_alone(state, dir)
    }

    /// Returns whether a name may be removed here, as it looks from its directory (G4).
    pub(super) fn may_remove(&self, state: &State, dir: InodeNo, name: &Name, of: Known) -> bool {
        self.speaks_of_names() && state.names.find(name) == of && self.is_alone(state, dir)
    }

    /// Removes a name of what is held exclusively. False: that may not be (G4).
    pub(super) fn remove_alone(&self, dir: &Pin, victim: &Pin, removed: Removed) -> bool {
        // Two states are never locked at once: the victim is marked first, and its break waits for what comes of that.
        let Some(ctime) = self.begin_removal(victim, &removed) else {
            return false;
        };
        let done = self.push_removal(dir, removed);
        {
            let mut state = victim.state();
            if !done {
                state.removal = Removal::None;
                if let Some(attr) = &mut state.attr {
                    attr.nlink = links(attr.kind);
                    attr.ctime = ctime;
                }
            } else if state.removal == Removal::Begun {
                // Else it has been committed meanwhile.
                state.removal = Removal::Queued;
            }
        }
        victim.wake();
        done
    }

    fn begin_removal(&self, victim: &Pin, removed: &Removed) -> Option<Timestamp> {
        let mut state = victim.state();
        let is_dir = removed.kind == FileKind::Dir;
        let last_name =
            |attr: &Attr| attr.kind == removed.kind && attr.nlink == links(removed.kind);
        let may = state.removal == Removal::None
            && state.attr.as_ref().is_some_and(last_name)
            && (!is_dir || state.names.is_empty())
            // Its answer would bring the name back.
            && !state.flushing
            && self.is_owned_quietly(&state, victim.ino);
        if !may {
            return None;
        }
        state.removal = Removal::Begun;
        let attr = state.attr.as_mut().expect("it is known");
        let before = attr.ctime;
        attr.nlink = 0;
        attr.ctime = before.max(removed.time);
        Some(before)
    }

    fn push_removal(&self, dir: &Pin, removed: Removed) -> bool {
        let (name, at, kind) = (removed.name.clone(), removed.time, removed.kind);
        let mut state = dir.state();
        if !self.may_remove(&state, dir.ino, &name, Known::Present(removed.ino, kind)) {
            return false;
        }
        let count = {
            let mut leases = self.leases();
            // Under the lock: what is in the queue belongs to the session.
            let held = |ino| leases.mode(self.clock.now(), ino) == Some(Mode::Exclusive);
            if !held(dir.ino) || !held(removed.ino) {
                return false;
            }
            // L9: a reply from before is not cached.
            leases.changed_untold(dir.ino);
            leases.changed_untold(removed.ino);
            let mut queue = self.makes.queue();
            queue.push(NameChange::Removed(removed));
            queue.changes.len()
        };
        let parent = state.attr.as_mut().expect("it may be removed from");
        parent.mtime = at;
        parent.ctime = parent.ctime.max(at);
        parent.nlink -= u32::from(kind == FileKind::Dir);
        state.names.remove(&name);
        drop(state);
        self.makes.pushed(count);
        true
    }

    /// Returns whether the leader can be told of removals.
    fn speaks_of_names(&self) -> bool {
        let spoken = |leader| self.transport.version_of(leader) >= Some(NAMES_SINCE);
        self.calls.known_leader().is_some_and(spoken)
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
            queue.push(NameChange::Made(made));
            queue.changes.len()
        };
        parent.mtime = birth.at;
        parent.ctime = parent.ctime.max(birth.at);
        parent.nlink += u32::from(attr.kind == FileKind::Dir);
        state.names.make(&name, Known::Present(attr.ino, attr.kind));
        drop(state);
        self.makes.pushed(count);
        true
    }

    async fn commit_made(self: &Arc<Self>) -> Result<(), Errno> {
        let (session, life, batch): (_, u64, Vec<NameChange>) = {
            // What is in the queue belongs to the session: see above.
            let leases = self.leases();
            let queue = self.makes.queue();
            let first = queue.changes.iter().take(MADE_MAX);
            (leases.session(), queue.life, first.cloned().collect())
        };
        if batch.is_empty() {
            return Ok(());
        }
        let session = session.ok_or(Errno::EIO)?;
        let told = self.tell_changes(session, batch).await?;
        self.settle_made(life, told).await
    }

    /// Tells the leader of changes, or of the first of them if it knows no better.
    async fn tell_changes(
        self: &Arc<Self>,
        session: SessionId,
        mut batch: Vec<NameChange>,
    ) -> Result<Told, Errno> {
        let made = |change: &NameChange| match change {
            NameChange::Made(made) => Some(made.clone()),
            NameChange::Removed(_) => None,
        };
        let first: Vec<Made> = batch.iter().map_while(made).collect();
        let op = if first.len() == batch.len() {
            Op::Make(first)
        } else {
            Op::Names(batch.clone())
        };
        let mut answer = self.op_in_turn(op, Patience::Only(session)).await;
        if matches!(answer, Err(Errno(libc::EOPNOTSUPP))) {
            // Not all voters have been upgraded yet, or the leader is an older node by now.
            let first: Vec<Made> = batch.iter().map_while(made).collect();
            let op = match batch.first() {
                Some(NameChange::Removed(removed)) => Op::Unlink {
                    parent: removed.parent,
                    name: removed.name.clone(),
                    dir: removed.kind == FileKind::Dir,
                },
                _ => Op::Make(first.clone()),
            };
            batch.truncate(first.len().max(1));
            answer = self.op_in_turn(op, Patience::Only(session)).await;
        }
        let refused = |error, batch: Vec<NameChange>| Told {
            results: vec![Err(error); batch.len()],
            batch,
            dirs: Vec::new(),
            ticket: None,
        };
        match answer {
            Ok((OpReply::Made { made, dirs }, ticket)) if made.len() == batch.len() => {
                let made = made.into_iter().map(|fact| fact.map_err(Errno::from));
                Ok(Told {
                    batch,
                    results: made.collect(),
                    dirs,
                    ticket: Some(ticket),
                })
            }
            Ok((OpReply::Changed(facts), ticket)) if batch.len() == 1 => {
                let (victim, dirs) = facts
                    .into_iter()
                    .partition(|fact| fact.attr.ino == batch[0].ino());
                let victim: Vec<Fact> = victim;
                Ok(Told {
                    results: vec![victim.into_iter().next().ok_or(Errno::ESTALE)],
                    batch,
                    dirs,
                    ticket: Some(ticket),
                })
            }
            Ok((reply, _)) => Err(super::ops::unexpected(&reply)),
            // The leader does not believe that we hold a directory: nothing of it can be saved.
            Err(Errno::ESTALE) => Ok(refused(Errno::ESTALE, batch)),
            Err(error @ (Errno::ENOENT | Errno(libc::ENOTEMPTY))) if batch.len() == 1 => {
                Ok(refused(error, batch))
            }
            Err(error) => Err(error),
        }
    }

    async fn settle_made(self: &Arc<Self>, life: u64, told: Told) -> Result<(), Errno> {
        let Told {
            batch,
            results,
            dirs,
            ticket,
        } = told;
        let mut lost = Vec::new();
        for (change, result) in batch.iter().zip(results) {
            let child = self.pin(change.ino());
            if let NameChange::Removed(_) = change {
                child.state().removal = Removal::None;
            }
            match (result, &ticket) {
                (Ok(fact), Some(ticket)) => self.child_committed(&child, ticket, &fact).await,
                (Ok(_), None) => {}
                (Err(error), _) => {
                    tracing::error!(?change, %error, "what was done here is refused: it is lost");
                    self.child_lost(&child, error);
                    lost.push((change, child));
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
        let mut counts = Counts::new();
        for change in &batch {
            add(&mut counts, change.parent());
        }
        for (dir, count) in counts {
            let dir = self.pin(dir);
            let fact = dirs.iter().find(|fact| fact.attr.ino == dir.ino);
            self.dir_committed(&dir, count, ticket.as_ref().zip(fact));
        }
        for (change, child) in lost {
            let dir = self.pin(change.parent());
            dir.state().names.forget(change.name());
            self.kernel
                .forget_names(dir.ino, vec![change.name().clone()])
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
            // A removal that is not committed yet has changed them, too.
            let dirty =
                (state.is_dirty() || state.removal != Removal::None) && !missing!(LoseContent);
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
