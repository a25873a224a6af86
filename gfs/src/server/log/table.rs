//! The real table: one keyspace of a fjall database.

use super::disk::{Change, Pair, Table};
use super::error::OpenError;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::io;
use std::path::Path;

/// Fjall's buffers: entries are read back from memory, so its own caches can be small, and a small
/// memtable keeps a restart short.
const MEMTABLE_BYTES: u64 = 16 << 20;
const CACHE_BYTES: u64 = 4 << 20;

/// An open table.
pub(super) struct FjallTable {
    // Dropped in this order.
    keyspace: Keyspace,
    db: Database,
}

impl FjallTable {
    /// Opens the database of the log in `dir`.
    pub(super) fn open(dir: &Path, folder: &Path) -> Result<Self, OpenError> {
        let broken = |error: fjall::Error| open_failed(dir, folder, error);
        let db = Database::builder(folder).worker_threads(1);
        let db = db.cache_size(CACHE_BYTES).open().map_err(broken)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspace = db.keyspace("log", options).map_err(broken)?;
        Ok(Self { keyspace, db })
    }
}

impl Table for FjallTable {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = self.keyspace.get(key).map_err(into_io)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range<'a>(
        &'a self,
        from: &[u8],
        to: &[u8],
    ) -> Box<dyn Iterator<Item = io::Result<Pair>> + 'a> {
        let range = self.keyspace.range(from.to_vec()..to.to_vec());
        Box::new(range.map(|guard| {
            let (key, value) = guard.into_inner().map_err(into_io)?;
            Ok((key.to_vec(), value.to_vec()))
        }))
    }

    fn commit(&self, changes: Vec<Change>, sync: bool) -> io::Result<()> {
        let mut batch = self.db.batch();
        if sync {
            batch = batch.durability(Some(PersistMode::SyncData));
        }
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.keyspace, key, value),
                None => batch.remove(&self.keyspace, key),
            }
        }
        batch.commit().map_err(into_io)
    }
}

fn into_io(error: fjall::Error) -> io::Error {
    match error {
        fjall::Error::Io(error) => error,
        error => io::Error::other(error.to_string()),
    }
}

fn open_failed(dir: &Path, folder: &Path, error: fjall::Error) -> OpenError {
    match error {
        fjall::Error::Locked => OpenError::InUse { dir: dir.into() },
        fjall::Error::Io(error) => OpenError::io("open", folder)(error),
        error => OpenError::corrupt(folder, error.to_string()),
    }
}
