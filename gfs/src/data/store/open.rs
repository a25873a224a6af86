//! Finds, checks and makes the directory of a chunk store.

use super::format::VERSION;
use super::{FORMAT, QUARANTINE, SHARDS, TMP, shard_name};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const LOCK: &str = "LOCK";
/// The file `FORMAT` while it is being written.
const FORMAT_NEW: &str = "FORMAT.new";
/// Stands before the version in `FORMAT`.
const FORMAT_WORDS: &str = "glu chunk store, version ";
/// Stands in the root of every ext4 file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a chunk store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something else has the path.
    #[error(
        "chunk store {path}: not a directory; move that file away or configure another directory"
    )]
    NotADirectory {
        /// Where the store should be.
        path: PathBuf,
    },
    /// There are files, but no store.
    #[error(
        "chunk store {path}: holds {found:?} but no chunk store; configure an empty or a new directory"
    )]
    NotAStore {
        /// Where the store should be.
        path: PathBuf,
        /// One of the entries there.
        found: String,
    },
    /// The file `FORMAT` is not ours.
    #[error(
        "chunk store {path}: FORMAT says {found:?}, no version; restore the file or configure another directory"
    )]
    BadFormat {
        /// Where the store is.
        path: PathBuf,
        /// The beginning of the file.
        found: String,
    },
    /// A newer glud made it.
    #[error(
        "chunk store {path}: has version {version}, this glud knows up to {VERSION}; install a newer glud"
    )]
    Newer {
        /// Where the store is.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Another process has it open.
    #[error(
        "chunk store {path}: in use by another process; stop the other glud or configure another directory"
    )]
    InUse {
        /// Where the store is.
        path: PathBuf,
    },
    /// Somebody wants to look at it, and it is not there.
    #[error("chunk store {path}: there is none")]
    Missing {
        /// Where the store should be.
        path: PathBuf,
    },
    /// The file system reported an error.
    #[error(
        "chunk store {path}: cannot {doing}: {error}; check the disk and the owner of the directory"
    )]
    Io {
        /// Where the store is.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// How it failed.
        error: io::Error,
    },
}

/// Locks the store in `root`, checks it or makes it, and removes what a crash left over.
pub(super) fn open(root: &Path) -> Result<File, OpenError> {
    let path = || root.to_owned();
    if fs::metadata(root).is_ok_and(|there| !there.is_dir()) {
        return Err(OpenError::NotADirectory { path: path() });
    }
    doing(root, "make the directory", fs::create_dir_all(root))?;
    // Before the lock file is made: a directory that is none of ours is left as it was.
    let format = read_format(root)?;
    let lock = take(root)?;
    if format.is_none() {
        doing(root, "write FORMAT", write_format(root))?;
    }
    doing(root, "make the subdirectories", make_dirs(root))?;
    doing(root, "empty tmp", empty(&root.join(TMP)))?;
    Ok(lock)
}

/// Locks the store in `root` and checks its version, but leaves it as it is.
pub(super) fn open_as_it_is(root: &Path) -> Result<File, OpenError> {
    match read_format(root) {
        Ok(Some(_)) => take(root),
        Ok(None) => Err(OpenError::Missing {
            path: root.to_owned(),
        }),
        Err(OpenError::Io { path, error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::Missing { path })
        }
        Err(error) => Err(error),
    }
}

fn take(root: &Path) -> Result<File, OpenError> {
    let lock = File::options()
        .create(true)
        .append(true)
        .open(root.join(LOCK));
    let lock = doing(root, "open LOCK", lock)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(OpenError::InUse {
                path: root.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => doing(root, "lock LOCK", Err(error))?,
    }
    Ok(lock)
}

/// Returns the version of the store, `None` if there is nothing yet.
fn read_format(root: &Path) -> Result<Option<u32>, OpenError> {
    let path = root.to_owned();
    let bytes = match fs::read(root.join(FORMAT)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match doing(root, "list the directory", first_entry(root))? {
                Some(found) => Err(OpenError::NotAStore { path, found }),
                None => Ok(None),
            };
        }
        Err(error) => return doing(root, "read FORMAT", Err(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let version = text
        .trim_end()
        .strip_prefix(FORMAT_WORDS)
        .and_then(|rest| rest.parse().ok());
    match version {
        None | Some(0) => Err(OpenError::BadFormat {
            path,
            found: text.chars().take(40).collect(),
        }),
        Some(version) if version > VERSION => Err(OpenError::Newer { path, version }),
        version => Ok(version),
    }
}

/// Returns an entry of `root` that an unfinished store or a new file system does not have.
fn first_entry(root: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if ![LOCK, FORMAT_NEW, LOST_AND_FOUND]
            .iter()
            .any(|ours| name == *ours)
        {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Writes `FORMAT` durably, before anything else is made: without it the rest would look like somebody else's.
fn write_format(root: &Path) -> io::Result<()> {
    let mut file = File::create(root.join(FORMAT_NEW))?;
    writeln!(file, "{FORMAT_WORDS}{VERSION}")?;
    file.sync_all()?;
    fs::rename(root.join(FORMAT_NEW), root.join(FORMAT))?;
    File::open(root)?.sync_all()
}

fn make_dirs(root: &Path) -> io::Result<()> {
    let mut made = false;
    for name in (0..SHARDS)
        .map(shard_name)
        .chain([TMP, QUARANTINE].map(str::to_owned))
    {
        match fs::create_dir(root.join(name)) {
            Ok(()) => made = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    if made {
        File::open(root)?.sync_all()
    } else {
        Ok(())
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

fn doing<T>(root: &Path, doing: &'static str, result: io::Result<T>) -> Result<T, OpenError> {
    result.map_err(|error| OpenError::Io {
        path: root.to_owned(),
        doing,
        error,
    })
}
