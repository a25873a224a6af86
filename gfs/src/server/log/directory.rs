//! The log's directory and who may use it.

use super::disk::{Disk, DiskFile, Jobs, Table};
use super::error::OpenError;
use super::table::FjallTable;
use super::writer::{Job, Writer};
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use tokio::sync::oneshot;

const LOCK: &str = "LOCK";
/// Folder of the fjall database.
pub(super) const FOLDER: &str = "log";
/// Writes that wait for the writer; openraft has one under way, purges come on top.
const JOBS_MAX: usize = 64;

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
}

impl Disk for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for file in std::fs::read_dir(&self.path)? {
            names.extend(file?.file_name().into_string());
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::create(self.path.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = File::options().write(true).open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))?;
        File::open(&self.path)?.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn has_table(&self) -> bool {
        self.path.join(FOLDER).exists()
    }

    fn open_table(&self) -> Result<Box<dyn Table>, OpenError> {
        let table = FjallTable::open(&self.path, &self.path.join(FOLDER))?;
        Ok(Box::new(table))
    }

    fn start(&self, writer: Writer) -> io::Result<Box<dyn Jobs>> {
        let (jobs, inbox) = sync_channel(JOBS_MAX);
        std::thread::Builder::new()
            .name("glu-log".into())
            .spawn(move || writer.run(&inbox))?;
        Ok(Box::new(jobs))
    }
}

impl DiskFile for File {
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Jobs for SyncSender<Job> {
    fn send(&self, job: Job) -> bool {
        Self::send(self, job).is_ok()
    }
}
