//! Chunks in a directory of a local file system, one file each.
//!
//! ```text
//! FORMAT       the version of the store
//! LOCK         locked by the process that uses the store
//! tmp/         files being written; emptied when the store is opened
//! quarantine/  damaged chunks that are in nobody's way any more, `<number>-<when>`; nothing looks at them
//! 00/ .. ff/   chunks, named by their number in hexadecimal; the directory is bits 8 to 15 of it
//! ```
//! A writer uses chunk numbers one after the other, so the chunks that it writes at the same time share a directory,
//! and with it the fsync that makes their names durable (`sync.rs`).
//!
//! A put writes a file in `tmp/`, syncs it, links it under its name and syncs the directory. The name is there only
//! after the bytes are, so a chunk is whole or missing after a crash; the checksums of its header (`format.rs`) find
//! what the disk does to it later. A link, unlike a rename, never replaces a chunk that is there.

pub(super) mod format;
mod open;
mod sync;

pub use self::open::OpenError;

use self::format::{Header, disk};
use self::sync::SharedSync;
use super::{ChunkStore, Space};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statvfs::statvfs;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many directories the chunks are spread over.
const SHARDS: usize = 256;
const FORMAT: &str = "FORMAT";
const TMP: &str = "tmp";
const QUARANTINE: &str = "quarantine";

/// A chunk store in a directory, locked against other processes as long as the value lives.
#[derive(Debug)]
pub struct DirStore {
    root: PathBuf,
    /// By shard.
    syncs: Vec<SharedSync>,
    /// Counts the puts, for the names in `tmp/`.
    puts: AtomicU64,
    /// What is put outlives a crash of the machine.
    durable: bool,
    _lock: File,
}

impl DirStore {
    /// Opens the store in the directory `root`; where there is nothing, makes one.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do about it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let root = root.into();
        let lock = open::open(&root)?;
        Ok(Self::of(root, lock))
    }

    /// Opens a store that is there and changes nothing, to look at it.
    ///
    /// # Errors
    /// As [`Self::open`], and [`OpenError::Missing`].
    pub fn open_as_it_is(root: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let root = root.into();
        let lock = open::open_as_it_is(&root)?;
        Ok(Self::of(root, lock))
    }

    /// Opens a store that nobody relies on: what is put may be torn or gone after a crash.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_volatile(root: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let durable = false;
        Ok(Self {
            durable,
            ..Self::open(root)?
        })
    }

    /// Returns the lengths of the files of all chunks, in the order in which they were written.
    pub(super) fn lengths(&self) -> io::Result<Vec<(ChunkId, u64)>> {
        let mut found = Vec::new();
        for shard in 0..SHARDS {
            for entry in fs::read_dir(self.shard_path(shard))? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                let number = number_of(&entry.file_name());
                found.extend(number.map(|id| (metadata.modified(), id, metadata.len())));
            }
        }
        found.sort_by_key(|(written, id, _)| (written.as_ref().ok().copied(), *id));
        Ok(found.into_iter().map(|(_, id, len)| (id, len)).collect())
    }

    fn of(root: PathBuf, lock: File) -> Self {
        let syncs = (0..SHARDS).map(|_| SharedSync::default()).collect();
        Self {
            root,
            syncs,
            puts: AtomicU64::new(0),
            durable: true,
            _lock: lock,
        }
    }

    /// Returns what lies among the chunks and is none, or not where it is looked for.
    ///
    /// # Errors
    /// `Disk`.
    pub fn strangers(&self) -> Result<Vec<PathBuf>, ChunkFailure> {
        let mut strangers = Vec::new();
        for shard in 0..SHARDS {
            let dir = self.shard_path(shard);
            let entries = fs::read_dir(&dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            for entry in entries.map_err(|error| disk("list the chunks", &error))? {
                let path = entry.path();
                let number = number_of(&entry.file_name());
                if number.is_none_or(|id| self.path(id) != path) {
                    strangers.push(path);
                }
            }
        }
        Ok(strangers)
    }

    fn shard_path(&self, shard: usize) -> PathBuf {
        self.root.join(shard_name(shard))
    }

    fn path(&self, id: ChunkId) -> PathBuf {
        self.shard_path(shard_of(id)).join(format!("{:016x}", id.0))
    }

    /// Returns whether `data` is here already as chunk `id`.
    fn holds(&self, id: ChunkId, data: &[u8]) -> Result<bool, ChunkFailure> {
        match self.get(id, 0, CHUNK_BYTES_MAX) {
            Ok(there) if there == data => Ok(true),
            Ok(_) => Err(ChunkFailure::Disk(format!(
                "chunk {id} is here already with other bytes"
            ))),
            Err(ChunkFailure::Missing | ChunkFailure::Corrupt) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Keeps a damaged chunk for somebody to look at. That is not worth failing for.
    fn set_aside(&self, id: ChunkId, keep: impl FnOnce(&Path) -> io::Result<()>) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = format!("{:016x}-{}", id.0, since.as_millis());
        let aside = self.root.join(QUARANTINE).join(name);
        match keep(&aside) {
            Ok(()) => tracing::warn!(%id, path = %aside.display(), "set a damaged chunk aside"),
            Err(error) => tracing::warn!(%id, %error, "cannot set a damaged chunk aside"),
        }
    }

    /// Writes the file of a chunk and makes its bytes durable, but not its name.
    fn write(&self, id: ChunkId, header: &Header, data: &[u8]) -> Result<(), ChunkFailure> {
        let number = self.puts.fetch_add(1, Ordering::Relaxed);
        let tmp = TmpFile(self.root.join(TMP).join(number.to_string()));
        tmp.fill(&[&header.encode(), data], self.durable)
            .map_err(|error| disk("write", &error))?;
        let path = self.path(id);
        match fs::hard_link(&tmp.0, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // The same put at the same time, or a corrupt file, which this one replaces.
                if self.holds(id, data)? {
                    Ok(())
                } else {
                    self.set_aside(id, |aside| fs::hard_link(&path, aside));
                    fs::rename(&tmp.0, &path)
                }
            }
            linked => linked,
        }
        .map_err(|error| disk("link", &error))
    }
}

impl ChunkStore for DirStore {
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure> {
        let header = Header::of(data, crc)?;
        if !self.holds(id, data)? {
            self.write(id, &header, data)?;
        }
        if !self.durable {
            return Ok(());
        }
        // Also for a chunk that was here: the put that brought it may not have come as far as this.
        let shard = shard_of(id);
        self.syncs[shard]
            .sync(&self.shard_path(shard))
            .map_err(ChunkFailure::Disk)
    }

    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        let mut file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ChunkFailure::Missing);
            }
            opened => opened.map_err(|error| disk("open", &error))?,
        };
        Header::read(&file)?.read_range(&mut file, offset, len)
    }

    fn verify(&self, id: ChunkId) -> Result<u32, ChunkFailure> {
        // What the kernel remembers says nothing about the medium; and nobody is helped if it remembers all of this.
        let forget = || {
            if let Ok(file) = File::open(self.path(id)) {
                let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
                // Advice.
                let _ignored = posix_fadvise(&file, 0, 0, advice);
            }
        };
        forget();
        let data = self.get(id, 0, CHUNK_BYTES_MAX);
        forget();
        Ok(u32::try_from(data?.len()).expect("chunks are small"))
    }

    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        for id in ids {
            match fs::remove_file(self.path(*id)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(|error| disk("remove", &error))?,
            }
        }
        Ok(())
    }

    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure> {
        self.set_aside(id, |aside| fs::rename(self.path(id), aside));
        self.delete(&[id])
    }

    fn space(&self) -> Result<Space, ChunkFailure> {
        let stat = statvfs(&self.root).map_err(|errno| disk("statvfs", &errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok(Space {
            total: bytes(stat.blocks()),
            free: bytes(stat.blocks_available()),
        })
    }

    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        let mut ids = Vec::new();
        for shard in 0..SHARDS {
            list(&self.shard_path(shard), &mut ids)
                .map_err(|error| disk("list the chunks", &error))?;
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Adds the chunks of a directory; ignores files whose names are no chunk numbers.
fn list(dir: &Path, ids: &mut Vec<ChunkId>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        ids.extend(number_of(&entry?.file_name()));
    }
    Ok(())
}

fn number_of(name: &OsStr) -> Option<ChunkId> {
    let name = name.to_str()?;
    u64::from_str_radix(name, 16).ok().map(ChunkId)
}

fn shard_of(id: ChunkId) -> usize {
    usize::from(id.0.to_le_bytes()[1])
}

fn shard_name(shard: usize) -> String {
    format!("{shard:02x}")
}

/// A file in `tmp/`, gone when dropped.
struct TmpFile(PathBuf);

impl TmpFile {
    fn fill(&self, parts: &[&[u8]], sync: bool) -> io::Result<()> {
        let mut file = File::create_new(&self.0)?;
        for part in parts {
            file.write_all(part)?;
        }
        if sync { file.sync_data() } else { Ok(()) }
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        // It may have been renamed; what cannot be removed now is removed when the store is opened again.
        drop(fs::remove_file(&self.0));
    }
}

#[cfg(test)]
mod tests;
