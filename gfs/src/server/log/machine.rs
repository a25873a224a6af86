//! The state machine under openraft: applies batches, answers their callers, makes snapshots.

use super::disk::{Disk, off_thread};
use super::growth::Growth;
use super::proposer::{Pending, answer};
use super::raft::{Batch, Entry, Life, LogId, Membership, SnapshotMeta, Types};
use super::saved::Saved;
use super::snapshot;
use crate::server::machine::{StateMachine, Unreadable};
use consistency::wire;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageError,
    StorageIOError,
};
use std::collections::BTreeMap;
use std::io::{self, Cursor};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use tokio::sync::oneshot;

/// The state and how far it is.
#[derive(Debug, Default)]
pub(super) struct Applied<M> {
    pub machine: M,
    pub last: Option<LogId>,
    pub membership: Membership,
}

/// The applied state with what changes it; clones share it. A clone keeps the disk in use.
pub(super) struct Machine<M: StateMachine> {
    applied: Arc<RwLock<Applied<M>>>,
    pending: Arc<Pending<M>>,
    life: Arc<Life>,
    probes: Arc<Probes<M>>,
    growth: Arc<Growth>,
    saved: Arc<Saved>,
    disk: Arc<dyn Disk>,
}

/// Who wants the state as of which entry: what voters have applied is the same only at the same entry.
///
/// Lock order: the applied state, then this.
#[derive(Debug)]
pub(super) struct Probes<M>(Mutex<BTreeMap<u64, Vec<oneshot::Sender<M>>>>);

impl<M> Default for Probes<M> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<M: StateMachine> Probes<M> {
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<oneshot::Sender<M>>>> {
        self.0.lock().expect("no holder panics")
    }

    fn any(&self) -> bool {
        !self.waiting().is_empty()
    }

    /// Asks for the state as of entry `index`; `None` if it has been applied already.
    pub(super) fn wait_for(
        &self,
        applied: &RwLock<Applied<M>>,
        index: u64,
    ) -> Option<oneshot::Receiver<M>> {
        let applied = applied.read().expect("apply does not panic");
        if applied.last.is_some_and(|last| last.index >= index) {
            return None;
        }
        let (wanted, state) = oneshot::channel();
        self.waiting().entry(index).or_default().push(wanted);
        Some(state)
    }

    /// Tells those who wait for entry `index`, which was just applied; who waits for an earlier one waits in vain.
    fn reach(&self, index: u64, state: &M) {
        let mut waiting = self.waiting();
        let later = waiting.split_off(&(index + 1));
        let mut reached = mem::replace(&mut *waiting, later);
        let Some(wanted) = reached.remove(&index) else {
            return;
        };
        drop(waiting);
        for wanted in wanted {
            // Who does not wait any more needs no answer.
            drop(wanted.send(state.clone()));
        }
    }
}

impl<M: StateMachine> Clone for Machine<M> {
    fn clone(&self) -> Self {
        Self {
            applied: Arc::clone(&self.applied),
            pending: Arc::clone(&self.pending),
            life: Arc::clone(&self.life),
            probes: Arc::clone(&self.probes),
            growth: Arc::clone(&self.growth),
            saved: Arc::clone(&self.saved),
            disk: Arc::clone(&self.disk),
        }
    }
}

impl<M: StateMachine> Machine<M> {
    /// Starts from a snapshot's bytes, or empty.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        snapshot: Option<&[u8]>,
        growth: Growth,
        pending: Arc<Pending<M>>,
        life: Arc<Life>,
    ) -> Result<Self, Unreadable> {
        let applied = snapshot.map_or_else(|| Ok(Applied::default()), restore)?;
        growth.snapshot_has(snapshot.map_or(0, <[u8]>::len));
        let saved = Saved::upto(applied.last);
        Ok(Self {
            applied: Arc::new(RwLock::new(applied)),
            pending,
            life,
            probes: Arc::default(),
            growth: Arc::new(growth),
            saved: Arc::new(saved),
            disk,
        })
    }

    pub(super) fn probes(&self) -> Arc<Probes<M>> {
        Arc::clone(&self.probes)
    }

    pub(super) fn saved(&self) -> Arc<Saved> {
        Arc::clone(&self.saved)
    }

    pub(super) fn growth(&self) -> Arc<Growth> {
        Arc::clone(&self.growth)
    }

    /// Returns the state for readers, who do not keep the disk in use.
    pub(super) fn applied(&self) -> Arc<RwLock<Applied<M>>> {
        Arc::clone(&self.applied)
    }

    fn read(&self) -> RwLockReadGuard<'_, Applied<M>> {
        self.applied.read().expect("apply does not panic")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Applied<M>> {
        self.applied.write().expect("apply does not panic")
    }

    /// Changes the state. Readers are short, so this stays on the caller's thread; only behind a
    /// snapshot, which holds the state for as long as it takes to copy it, or where somebody wants a copy on the way, it
    /// moves to one that may block.
    async fn change<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Applied<M>) -> R + Send + 'static,
    ) -> R {
        if !self.probes.any() {
            match self.applied.try_write() {
                Ok(mut applied) => return change(&mut applied),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Poisoned(_)) => panic!("apply does not panic"),
            }
        }
        let this = self.clone();
        let changed = tokio::task::spawn_blocking(move || change(&mut this.write()));
        changed.await.expect("a change of the state does not panic")
    }

    /// Applies one batch; its callers are answered by the returned closure, without the state's lock.
    fn apply_batch(
        &self,
        applied: &mut Applied<M>,
        batch: &Batch,
    ) -> Result<Option<impl FnOnce() + use<M>>, String> {
        let ours = batch.life == self.life.id;
        let waiting = ours.then(|| self.pending.take(batch.number)).flatten();
        let Some(waiting) = waiting else {
            for command in &batch.commands {
                let command = wire::decode(command).map_err(|error| error.to_string())?;
                applied.machine.apply(&command);
            }
            return Ok(None);
        };
        let answers: Vec<_> = waiting
            .into_iter()
            .map(|(command, caller)| (caller, applied.machine.apply(&command)))
            .collect();
        Ok(Some(move || {
            for (caller, reply) in answers {
                answer(caller, Ok(reply));
            }
        }))
    }

    fn apply_entry(
        &self,
        applied: &mut Applied<M>,
        entry: Entry,
    ) -> Result<Option<impl FnOnce() + use<M>>, StorageError<u16>> {
        let mut answers = None;
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(batch) => {
                self.growth.add(batch.bytes());
                answers = self.apply_batch(applied, &batch).map_err(|why| {
                    let why = AnyError::error(format!("it does not decode: {why}"));
                    StorageIOError::apply(entry.log_id, why)
                })?;
            }
            EntryPayload::Membership(members) => {
                applied.membership = Membership::new(Some(entry.log_id), members);
            }
        }
        applied.last = Some(entry.log_id);
        self.probes.reach(entry.log_id.index, &applied.machine);
        fail_point!("log: after an entry is applied");
        Ok(answers)
    }

    fn load_snapshot(&self) -> Result<Option<Snapshot<Types>>, StorageError<u16>> {
        let bytes = snapshot::newest(&*self.disk, None)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let (meta, _) = snapshot::decode(&bytes)
            .map_err(|error| StorageIOError::read_snapshot(None, AnyError::new(&error)))?;
        Ok(Some(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }

    fn build(&self) -> Result<Snapshot<Types>, StorageError<u16>> {
        fail_point!("log: before a snapshot is made");
        // Nothing is applied meanwhile, so no more than must be is done here.
        let (meta, machine) = {
            let applied = self.read();
            let meta = meta(applied.last, applied.membership.clone());
            self.growth.begin_anew();
            (meta, applied.machine.clone())
        };
        let state = machine.snapshot();
        drop(machine);
        let bytes = snapshot::encode(&meta, &state);
        drop(state);
        self.growth.snapshot_has(bytes.len());
        self.save(meta.last_log_id, &bytes)
            .map_err(|error| snapshot_failed(&meta, &error))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }

    fn save(&self, last: Option<LogId>, bytes: &[u8]) -> io::Result<()> {
        let saved = snapshot::save(&*self.disk, last, bytes);
        self.saved.note(last, &saved);
        saved
    }

    fn install(&self, bytes: &[u8]) -> Result<(), StorageError<u16>> {
        let unreadable =
            |error: Unreadable| StorageIOError::read_snapshot(None, AnyError::new(&error));
        let restored = restore(bytes).map_err(unreadable)?;
        fail_point!("log: before a snapshot is installed");
        self.save(restored.last, bytes)
            .map_err(|error| StorageIOError::write_snapshot(None, AnyError::new(&error)))?;
        let last = restored.last.map_or(0, |last| last.index);
        let before = {
            let mut applied = self.write();
            let before = mem::replace(&mut *applied, restored);
            self.growth.begin_anew();
            self.growth.snapshot_has(bytes.len());
            self.probes.reach(last, &applied.machine);
            before
        };
        // Takes its time; readers need not wait for it.
        drop(before);
        Ok(())
    }
}

pub(super) fn restore<M: StateMachine>(bytes: &[u8]) -> Result<Applied<M>, Unreadable> {
    let (meta, state) = snapshot::decode(bytes)?;
    Ok(Applied {
        machine: M::restore(state)?,
        last: meta.last_log_id,
        membership: meta.last_membership,
    })
}

fn meta(last: Option<LogId>, last_membership: Membership) -> SnapshotMeta {
    let snapshot_id = last.map_or_else(|| "empty".into(), |last| last.to_string());
    SnapshotMeta {
        last_log_id: last,
        last_membership,
        snapshot_id,
    }
}

fn snapshot_failed(meta: &SnapshotMeta, error: &io::Error) -> StorageError<u16> {
    StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(error)).into()
}

impl<M: StateMachine> RaftStateMachine<Types> for Machine<M> {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError<u16>> {
        let applied = self.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError<u16>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let this = self.clone();
        let count = entries.len();
        let answers = self.change(move |applied| {
            let apply = |entry| this.apply_entry(applied, entry);
            entries
                .into_iter()
                .map(apply)
                .collect::<Result<Vec<_>, _>>()
        });
        for answer in answers.await?.into_iter().flatten() {
            answer();
        }
        Ok(vec![(); count])
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u16>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        _: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u16>> {
        let this = self.clone();
        off_thread(&*self.disk, move || this.install(snapshot.get_ref())).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u16>> {
        let this = self.clone();
        off_thread(&*self.disk, move || this.load_snapshot()).await
    }
}

impl<M: StateMachine> RaftSnapshotBuilder<Types> for Machine<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u16>> {
        let this = self.clone();
        off_thread(&*self.disk, move || this.build()).await
    }
}
