//! What a log is kept on: one ordered table and a few small files. [`Directory`](super::directory::Directory) is the
//! real one; the one of the tests, `SimulatedDisk`, loses at a crash what was not synced.

use super::error::OpenError;
use super::writer::{Job, Writer};
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// A change of a table: a key with its new value, `None` removes it.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);
/// A key with its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// A disk, for one log alone. The methods block.
pub(super) trait Disk: Debug + Send + Sync {
    /// Returns where it is, for messages.
    fn path(&self) -> &Path;

    /// Returns the names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Returns the content of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Makes a file, empty if it was there.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, in place of the one that had it; durable on return.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. A crash may undo that.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Returns whether the table was made before.
    fn has_table(&self) -> bool;

    /// Opens the table, or makes it.
    fn open_table(&self) -> Result<Box<dyn Table>, OpenError>;

    /// Starts to write: what is sent is handed to the writer in this order.
    fn start(&self, writer: Writer) -> io::Result<Box<dyn Jobs>>;

    /// Returns whether its methods may take long enough for a thread of their own.
    fn blocks(&self) -> bool {
        true
    }
}

/// A small file, written in place.
pub(super) trait DiskFile: Debug + Send + Sync {
    /// Writes from byte `at` on, into the page cache.
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
}

/// An ordered table.
pub(super) trait Table: Send + Sync {
    /// Returns the value of a key.
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>>;

    /// Returns what is from one key to before another, in order.
    fn range<'a>(
        &'a self,
        from: &[u8],
        to: &[u8],
    ) -> Box<dyn Iterator<Item = io::Result<Pair>> + 'a>;

    /// Makes changes: all or none of them survive a crash, and none without those before it. If `sync`, they are
    /// durable on return.
    fn commit(&self, changes: Vec<Change>, sync: bool) -> io::Result<()>;
}

/// The way to the writer.
pub(super) trait Jobs: Debug + Send + Sync {
    /// Returns false if the writer has ended.
    fn send(&self, job: Job) -> bool;
}

/// Runs what uses the disk where it may block.
pub(super) async fn off_thread<R: Send + 'static>(
    disk: &dyn Disk,
    work: impl FnOnce() -> R + Send + 'static,
) -> R {
    if !disk.blocks() {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("code that uses the disk does not panic")
}
