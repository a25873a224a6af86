//! Chunks of the bucket near at hand: a bounded number of bytes, those used least lately go first.
//!
//! It is a store without durability. After a crash some of it may be torn, which its checksums find. Whatever fails here
//! costs a request to the bucket and nothing else.

use super::super::ChunkStore;
use super::super::store::{DirStore, OpenError};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::ChunkFailure;
use lru::LruCache;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

/// The directory with what is known of it.
#[derive(Debug)]
pub(super) struct Cache {
    store: DirStore,
    index: Mutex<Index>,
}

impl Cache {
    /// Opens the cache in a directory; where there is nothing, makes one.
    pub(super) fn open(root: &Path, bytes_max: u64) -> Result<Self, OpenError> {
        let store = DirStore::open_volatile(root)?;
        let mut index = Index::new(bytes_max);
        let found = store.lengths().map_err(|error| OpenError::Io {
            path: root.to_owned(),
            doing: "list the chunks",
            error,
        })?;
        let evicted = found
            .into_iter()
            .flat_map(|(id, len)| index.insert(id, len));
        let evicted: Vec<ChunkId> = evicted.collect();
        let this = Self {
            store,
            index: Mutex::new(index),
        };
        this.drop_files(&evicted);
        Ok(this)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder panics")
    }

    /// Returns a range of a chunk as [`ChunkStore::get`] does; `None`: it is not here.
    pub(super) fn get(
        &self,
        id: ChunkId,
        offset: u32,
        len: u32,
    ) -> Option<Result<Bytes, ChunkFailure>> {
        if !self.index().touch(id) {
            return None;
        }
        match self.store.get(id, offset, len) {
            Ok(data) => Some(Ok(data)),
            Err(ChunkFailure::BadRange) => Some(Err(ChunkFailure::BadRange)),
            Err(failure) => {
                tracing::debug!(%id, %failure, "a cached chunk is fetched anew");
                self.remove(id);
                None
            }
        }
    }

    /// Keeps a chunk, if it fits.
    pub(super) fn put(&self, id: ChunkId, data: &[u8]) {
        let evicted = self.index().insert(id, data.len() as u64);
        self.drop_files(&evicted);
        if evicted.contains(&id) {
            return;
        }
        if let Err(failure) = self.store.put(id, data, crc32fast::hash(data)) {
            tracing::debug!(%id, %failure, "a chunk is not cached");
            self.remove(id);
        }
    }

    pub(super) fn remove(&self, id: ChunkId) {
        self.index().remove(id);
        self.drop_files(&[id]);
    }

    /// Removes files; one that stays is found when the cache is opened again.
    fn drop_files(&self, ids: &[ChunkId]) {
        if let Err(failure) = self.store.delete(ids) {
            tracing::debug!(%failure, "a chunk stays in the cache");
        }
    }
}

/// Which chunks are here, and how large.
#[derive(Debug)]
struct Index {
    chunks: LruCache<ChunkId, u64>,
    bytes: u64,
    bytes_max: u64,
}

impl Index {
    fn new(bytes_max: u64) -> Self {
        Self {
            chunks: LruCache::unbounded(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Returns whether a chunk is here, which is now the one used last.
    fn touch(&mut self, id: ChunkId) -> bool {
        self.chunks.get(&id).is_some()
    }

    /// Puts a chunk in; returns those that have to go for it, itself if it does not fit at all.
    fn insert(&mut self, id: ChunkId, len: u64) -> Vec<ChunkId> {
        self.bytes += len;
        self.bytes -= self.chunks.put(id, len).unwrap_or(0);
        let mut evicted = Vec::new();
        while self.bytes > self.bytes_max
            && let Some((last, len)) = self.chunks.pop_lru()
        {
            self.bytes -= len;
            evicted.push(last);
        }
        evicted
    }

    fn remove(&mut self, id: ChunkId) {
        self.bytes -= self.chunks.pop(&id).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> Vec<ChunkId> {
        ids.iter().copied().map(ChunkId).collect()
    }

    #[test]
    fn what_is_used_least_lately_goes() {
        let mut index = Index::new(10);
        for id in 1..=3 {
            assert_eq!(index.insert(ChunkId(id), 3), []);
        }
        assert!(index.touch(ChunkId(1)));
        assert_eq!(index.insert(ChunkId(4), 3), ids(&[2]));
        assert_eq!(index.insert(ChunkId(4), 4), [], "counted once");
        assert_eq!(index.bytes, 10);
        assert_eq!(index.insert(ChunkId(5), 11), ids(&[3, 1, 4, 5]), "itself");
        assert_eq!(index.bytes, 0);
        index.insert(ChunkId(6), 10);
        index.remove(ChunkId(6));
        index.remove(ChunkId(6));
        assert_eq!((index.bytes, index.touch(ChunkId(6))), (0, false));
    }

    #[test]
    fn torn_and_lost_files_are_not_there_and_a_restart_keeps_the_bound() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cache = Cache::open(dir.path(), 1_000).expect("made");
        for id in 1..=5 {
            cache.put(ChunkId(id), &[7; 150]);
        }
        let file = |id: u64| dir.path().join(format!("00/{id:016x}"));
        std::fs::write(file(2), b"torn").expect("written");
        std::fs::remove_file(file(3)).expect("removed");
        assert!(cache.get(ChunkId(1), 0, 150).is_some_and(|got| got.is_ok()));
        let beyond = cache.get(ChunkId(1), 150, 1);
        assert_eq!(beyond, Some(Err(ChunkFailure::BadRange)));
        assert!(cache.get(ChunkId(2), 0, 1).is_none());
        assert!(cache.get(ChunkId(3), 0, 1).is_none());
        drop(cache);
        let cache = Cache::open(dir.path(), 400).expect("opened");
        let kept = (1..=5).filter(|id| file(*id).exists()).count();
        assert_eq!(kept, 2);
        let read = |id: &u64| cache.get(ChunkId(*id), 0, 150).is_some();
        assert_eq!((1..=5).filter(read).count(), 2);
    }
}
