//! The log's directory and who may use it.

use super::error::OpenError;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::oneshot;

const LOCK: &str = "LOCK";

/// A directory that this process has for itself, as long as anything that writes to it is left: the
/// store, and a snapshot that is still being written when raft has long stopped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    // Dropped in this order: when the signal comes, the lock is free.
    _lock: File,
    _closed: oneshot::Sender<()>,
}

/// Becomes ready, with an error, when the last user of a directory is gone and it can be opened again.
pub(super) type Closed = oneshot::Receiver<()>;

impl Directory {
    /// Creates a directory if necessary and takes it.
    pub(super) fn open(path: &Path) -> Result<(Arc<Self>, Closed), OpenError> {
        std::fs::create_dir_all(path).map_err(OpenError::io("create", path))?;
        Self::take(path)
    }

    /// Takes a directory that is there.
    pub(super) fn take(path: &Path) -> Result<(Arc<Self>, Closed), OpenError> {
        let name = path.join(LOCK);
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let lock = options
            .open(&name)
            .map_err(OpenError::io("create", &name))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { dir: path.into() }),
            Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &name)(error)),
        }
        let (closing, closed) = oneshot::channel();
        let this = Self {
            path: path.into(),
            _lock: lock,
            _closed: closing,
        };
        Ok((Arc::new(this), closed))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
