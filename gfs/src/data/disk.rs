//! A chunk store for asynchronous callers: its blocking work runs on other threads, a bounded number at a time.
//!
//! The node's own client and the service for the other nodes share one [`Disk`], and so its bound. Who waits here is
//! bounded where the requests come from: by the requests that the kernel has open, and by the service.
//!
//! What is found damaged or missing is remembered, for the keeper to tell. Puts and the deletion of orphans exclude each
//! other: else a put could find a chunk there and rely on it while it goes (D3).

use super::listing::Unswept;
use super::sweep::Sweep;
use super::{ChunkStore, Space};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::ChunkFailure;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, RwLock, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

/// How many requests work on a disk at a time: enough for many puts to share their fsyncs, few enough to leave most
/// of tokio's blocking threads to others.
pub const DISK_REQUESTS_MAX: usize = 32;
/// How many orphans are deleted while puts wait.
const DELETED_AT_ONCE: usize = 64;
/// How many bad chunks are remembered; the scrub finds the rest.
const BAD_MAX: usize = 10_000;

/// A node's chunk store; clones share it.
#[derive(Clone, Debug)]
pub struct Disk {
    store: Arc<dyn ChunkStore>,
    turns: Arc<Semaphore>,
    /// Puts hold it shared, the deletion of orphans alone.
    gate: Arc<RwLock<()>>,
    books: Arc<Books>,
}

/// What is known of the chunks beside what the store knows.
#[derive(Debug, Default)]
struct Books {
    sweep: Mutex<Sweep>,
    unswept: Mutex<Unswept>,
    bad: Mutex<BTreeMap<ChunkId, Bad>>,
    news: Notify,
}

/// A chunk that was asked for and found damaged or missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bad {
    /// It is there, and to be set aside once it is no longer listed here.
    damaged: bool,
    /// The leader knows.
    told: bool,
}

impl Books {
    fn unswept(&self) -> MutexGuard<'_, Unswept> {
        self.unswept.lock().expect("no holder panics")
    }

    fn bad(&self) -> MutexGuard<'_, BTreeMap<ChunkId, Bad>> {
        self.bad.lock().expect("no holder panics")
    }
}

impl Disk {
    /// Wraps a store.
    pub fn new(store: impl ChunkStore + 'static) -> Self {
        let turns = Arc::new(Semaphore::new(DISK_REQUESTS_MAX));
        Self {
            store: Arc::new(store),
            turns,
            gate: Arc::default(),
            books: Arc::default(),
        }
    }

    /// See [`ChunkStore::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put(&self, id: ChunkId, data: Bytes, crc: u32) -> Result<(), ChunkFailure> {
        let gate = Arc::clone(&self.gate).read_owned().await;
        self.sweep().put(id);
        let books = Arc::clone(&self.books);
        self.run(move |store| {
            let put = store.put(id, &data, crc);
            if put.is_ok() {
                books.bad().remove(&id);
            }
            drop(gate);
            put
        })
        .await
    }

    /// See [`ChunkStore::get`].
    ///
    /// # Errors
    /// As there.
    pub async fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        let got = self.run(move |store| store.get(id, offset, len)).await;
        self.note(id, got.as_ref().err());
        got
    }

    /// See [`ChunkStore::verify`].
    ///
    /// # Errors
    /// As there.
    pub async fn verify(&self, id: ChunkId) -> Result<u32, ChunkFailure> {
        let verified = self.run(move |store| store.verify(id)).await;
        self.note(id, verified.as_ref().err());
        verified
    }

    /// See [`ChunkStore::delete`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete(&self, ids: Vec<ChunkId>) -> Result<(), ChunkFailure> {
        self.run(move |store| store.delete(&ids)).await
    }

    /// Begins a sweep: notes from now on what is put.
    pub(super) fn begin_sweep(&self) {
        self.sweep().begin();
    }

    /// Ends a sweep.
    pub(super) fn end_sweep(&self) {
        self.sweep().end();
    }

    /// A sweep, one `every` so often, has found this here.
    pub(super) fn note_listed(&self, every: Duration, ids: &[ChunkId]) {
        self.books.unswept().listed(Instant::now(), every, ids);
    }

    /// A sweep has decided about all of it.
    pub(super) fn note_swept(&self) {
        self.books.unswept().swept();
    }

    /// Returns what a sweep should have decided about by now.
    pub(super) fn overdue(&self) -> BTreeSet<ChunkId> {
        self.books.unswept().overdue(Instant::now())
    }

    /// Deletes what the leader called orphans, unless it was put since the sweep began; damaged ones are set aside.
    /// Returns how many are gone.
    pub(super) async fn sweep_away(&self, orphans: &[ChunkId]) -> Result<usize, ChunkFailure> {
        let mut gone = 0;
        for some in orphans.chunks(DELETED_AT_ONCE) {
            let gate = Arc::clone(&self.gate).write_owned().await;
            let free = {
                let sweep = self.sweep();
                let free = some.iter().copied().filter(|id| sweep.may_delete(*id));
                free.collect::<Vec<_>>()
            };
            gone += free.len();
            let (bad, good) = {
                let mut bad = self.books.bad();
                let mut damaged = |id: &ChunkId| bad.remove(id).is_some_and(|bad| bad.damaged);
                free.into_iter().partition::<Vec<_>, _>(&mut damaged)
            };
            self.run(move |store| {
                bad.iter().try_for_each(|id| store.quarantine(*id))?;
                store.delete(&good)?;
                drop(gate);
                Ok(())
            })
            .await?;
        }
        Ok(gone)
    }

    /// Returns what was found damaged or missing since the leader was told last.
    pub(super) fn bad_untold(&self) -> Vec<ChunkId> {
        let bad = self.books.bad();
        let untold = bad.iter().filter(|(_, bad)| !bad.told);
        untold.map(|(id, _)| *id).collect()
    }

    /// The leader has been told.
    pub(super) fn told(&self, ids: &[ChunkId]) {
        let mut bad = self.books.bad();
        for id in ids {
            if let Some(one) = bad.get_mut(id) {
                one.told = true;
                if !one.damaged {
                    bad.remove(id);
                }
            }
        }
    }

    /// Remembers a chunk that is damaged or missing, also if it is found so once more.
    fn note(&self, id: ChunkId, failure: Option<&ChunkFailure>) {
        let damaged = match failure {
            Some(ChunkFailure::Corrupt) => true,
            Some(ChunkFailure::Missing) => false,
            Some(_) | None => return,
        };
        let mut bad = self.books.bad();
        if bad.len() < BAD_MAX || bad.contains_key(&id) {
            let told = false;
            bad.insert(id, Bad { damaged, told });
            self.books.news.notify_one();
        }
    }

    /// Waits for a bad chunk.
    pub(super) async fn bad_news(&self) {
        self.books.news.notified().await;
    }

    fn sweep(&self) -> MutexGuard<'_, Sweep> {
        self.books.sweep.lock().expect("no holder panics")
    }

    /// See [`ChunkStore::space`].
    ///
    /// # Errors
    /// As there.
    pub async fn space(&self) -> Result<Space, ChunkFailure> {
        self.run(|store| store.space()).await
    }

    /// See [`ChunkStore::ids`].
    ///
    /// # Errors
    /// As there.
    pub async fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        self.run(|store| store.ids()).await
    }

    /// Runs `work` on a thread that may block. Begun work goes on when the caller gives up, and keeps its turn.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn ChunkStore) -> Result<T, ChunkFailure> + Send + 'static,
    ) -> Result<T, ChunkFailure> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.expect("the semaphore is never closed");
        let store = Arc::clone(&self.store);
        let begun = self.begin(move || {
            let _turn = turn;
            work(&*store)
        });
        match begun.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ChunkFailure::Disk("this node is shutting down".to_owned())),
        }
    }

    fn begin<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        #[cfg(test)]
        if let Some(takes) = self.store.simulated() {
            return tokio::spawn(async move {
                tokio::time::sleep(takes).await;
                work()
            });
        }
        spawn_blocking(work)
    }
}
