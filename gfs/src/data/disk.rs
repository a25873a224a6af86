//! A chunk store for asynchronous callers: its blocking work runs on other threads, a bounded number at a time.
//!
//! The node's own client and the service for the other nodes share one [`Disk`], and so its bound. Who waits here is
//! bounded where the requests come from: by the requests that the kernel has open, and by the service.

use super::{ChunkStore, Space};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::ChunkFailure;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// How many requests work on a disk at a time: enough for many puts to share their fsyncs, few enough to leave most
/// of tokio's blocking threads to others.
pub const DISK_REQUESTS_MAX: usize = 32;

/// A node's chunk store; clones share it.
#[derive(Clone, Debug)]
pub struct Disk {
    store: Arc<dyn ChunkStore>,
    turns: Arc<Semaphore>,
}

impl Disk {
    /// Wraps a store.
    pub fn new(store: impl ChunkStore + 'static) -> Self {
        let turns = Arc::new(Semaphore::new(DISK_REQUESTS_MAX));
        Self {
            store: Arc::new(store),
            turns,
        }
    }

    /// See [`ChunkStore::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put(&self, id: ChunkId, data: Bytes, crc: u32) -> Result<(), ChunkFailure> {
        self.run(move |store| store.put(id, &data, crc)).await
    }

    /// See [`ChunkStore::get`].
    ///
    /// # Errors
    /// As there.
    pub async fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        self.run(move |store| store.get(id, offset, len)).await
    }

    /// See [`ChunkStore::delete`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete(&self, ids: Vec<ChunkId>) -> Result<(), ChunkFailure> {
        self.run(move |store| store.delete(&ids)).await
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
        let done = spawn_blocking(move || {
            let _turn = turn;
            work(&*store)
        });
        match done.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ChunkFailure::Disk("this node is shutting down".to_owned())),
        }
    }
}
