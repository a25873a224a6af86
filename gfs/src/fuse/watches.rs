//! Finds what is watched on a mount, and has the kernel tell the watchers (the implementation of [`Watching`]).
//!
//! FUSE has no message for this. So a thread of the daemon does, on the daemon's own mount, what another node did; the
//! tree knows the thread and changes nothing. Inodes are opened by number: a watched one is in the kernel's memory,
//! where a handle finds it.
//!
//! N4: watched directories are kept open. A watch keeps the inode alone; when the kernel forgets the name of a directory
//! that nobody else uses, its dentry goes, and without one a handle of a directory leads to ESTALE.

use super::asker::Place;
use super::watchers::Watchers;
use crate::tree::{Look, Watching};
use consistency::InodeNo;
use consistency::wire::meta::{FileKind, Name};
use consistency::wire::watch::{Event, Happened};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Watched directories that are kept open; more are opened when it is their turn.
const OPEN_MAX: usize = 4096;

/// The watches of one mount.
#[derive(Debug)]
pub(super) struct Watches {
    place: Arc<Place>,
    /// As fdinfo writes it: hexadecimal.
    device: String,
    watchers: Mutex<Watchers>,
    /// Somebody has asked something of the mount.
    used: Arc<AtomicBool>,
    /// `None` after the end: what is open keeps the mount busy.
    dirs: Mutex<Option<Dirs>>,
}

/// `None` stands for what is not kept open: no directory, or about to go.
type Dirs = BTreeMap<InodeNo, Option<Arc<OwnedFd>>>;

impl Watches {
    /// `device`: as mountinfo writes it; `used` is set with each request.
    pub(super) fn new(place: Arc<Place>, device: &str, used: Arc<AtomicBool>) -> Self {
        let minor = device
            .split_once(':')
            .and_then(|(_, minor)| minor.parse().ok());
        Self {
            place,
            // File systems without a device have major number 0.
            device: format!("{:x}", minor.unwrap_or(0_u32)),
            watchers: Mutex::default(),
            used,
            dirs: Mutex::new(Some(Dirs::new())),
        }
    }

    /// Closes everything, for good.
    pub(super) fn close(&self) {
        *self.dirs() = None;
    }

    fn open(&self, ino: InodeNo) -> io::Result<Arc<OwnedFd>> {
        let kept = self
            .dirs()
            .as_ref()
            .and_then(|dirs| dirs.get(&ino).cloned());
        match kept.flatten() {
            Some(dir) => Ok(dir),
            None => self.place.open(ino).map(Arc::new),
        }
    }

    /// N4
    fn keep_open(&self, watched: &BTreeSet<InodeNo>) -> io::Result<()> {
        let known: BTreeSet<InodeNo> = match &mut *self.dirs() {
            None => return Ok(()),
            Some(dirs) => {
                dirs.retain(|ino, _| watched.contains(ino));
                dirs.keys().copied().collect()
            }
        };
        let room = OPEN_MAX.saturating_sub(known.len());
        if watched.is_subset(&known) {
            return Ok(());
        }
        for ino in watched.difference(&known).take(room) {
            // Fails for what the kernel has forgotten the name of since it was watched: the next look tries again.
            let Ok(file) = self.place.open(*ino) else {
                continue;
            };
            let kind = fstat(&file).map(|stat| SFlag::from_bits_truncate(stat.st_mode));
            let dir = kind.is_ok_and(|kind| kind & SFlag::S_IFMT == SFlag::S_IFDIR);
            if let Some(dirs) = &mut *self.dirs() {
                dirs.entry(*ino)
                    .or_insert_with(|| dir.then(|| Arc::new(file)));
            }
        }
        Ok(())
    }

    /// The kernel tells the end of an inode when nobody has it open.
    fn let_go(&self, ino: InodeNo) {
        if let Some(dirs) = &mut *self.dirs() {
            dirs.insert(ino, None);
        }
    }

    fn watchers(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dirs(&self) -> MutexGuard<'_, Option<Dirs>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watching for Watches {
    fn watched(&self) -> io::Result<Look> {
        let begun = cpu_time();
        let inodes = self.watchers().look(&self.device)?;
        self.keep_open(&inodes)?;
        Ok(Look {
            inodes,
            cost: cpu_time() - begun,
        })
    }

    fn was_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn thread(&self) -> u32 {
        nix::unistd::gettid().as_raw().cast_unsigned()
    }

    fn replay(&self, event: &Event) -> io::Result<()> {
        let Some((dir, name)) = &event.place else {
            let inode = self.open(event.ino)?;
            let path = format!("/proc/self/fd/{}", inode.as_raw_fd());
            return touch(nix::fcntl::AT_FDCWD, Path::new(&path), event, true);
        };
        match &event.what {
            Happened::Deleted => self.let_go(event.ino),
            Happened::Moved {
                replaced: Some((ino, _)),
                ..
            } => self.let_go(*ino),
            _ => {}
        }
        match &event.what {
            Happened::Created => make(&*self.open(*dir)?, name, event.kind),
            Happened::Deleted => remove(&*self.open(*dir)?, name, event.kind),
            Happened::Attributes | Happened::Content | Happened::Closed => {
                touch(self.open(*dir)?, path(name), event, false)
            }
            Happened::Moved {
                dir: to, name: new, ..
            } => match (self.open(*dir), self.open(*to)) {
                (Ok(from), Ok(to)) => Ok(renameat(&from, path(name), &to, path(new))?),
                // The kernel does not know the other directory, so nobody watches it.
                (Ok(from), Err(_)) => remove(&from, name, event.kind),
                (Err(_), Ok(to)) => make(&to, new, event.kind),
                (Err(error), Err(_)) => Err(error),
            },
        }
    }
}

/// How long the calling thread has run.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn path(name: &Name) -> &Path {
    Path::new(OsStr::from_bytes(name.as_bytes()))
}

fn make(dir: &OwnedFd, name: &Name, kind: FileKind) -> io::Result<()> {
    let mode = Mode::S_IRUSR;
    let kind = match kind {
        FileKind::File => SFlag::S_IFREG,
        FileKind::Fifo => SFlag::S_IFIFO,
        FileKind::Socket => SFlag::S_IFSOCK,
        FileKind::Char => SFlag::S_IFCHR,
        FileKind::Block => SFlag::S_IFBLK,
        FileKind::Dir => return Ok(mkdirat(dir, path(name), mode)?),
        FileKind::Symlink => return Ok(symlinkat("target", dir, path(name))?),
    };
    Ok(mknodat(dir, path(name), kind, mode, 0)?)
}

fn remove(dir: &OwnedFd, name: &Name, kind: FileKind) -> io::Result<()> {
    let how = if kind == FileKind::Dir {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    Ok(unlinkat(dir, path(name), how)?)
}

/// Sets times: both are told as a change of attributes, that of modification alone as a change of content. The end of
/// writing is an open and a close.
fn touch(dir: impl AsFd, path: &Path, event: &Event, follow: bool) -> io::Result<()> {
    let access = match event.what {
        Happened::Closed => return open_and_close(dir, path, follow),
        Happened::Content => TimeSpec::UTIME_OMIT,
        _ => TimeSpec::UTIME_NOW,
    };
    let links = if follow {
        UtimensatFlags::FollowSymlink
    } else {
        UtimensatFlags::NoFollowSymlink
    };
    Ok(utimensat(&dir, path, &access, &TimeSpec::UTIME_NOW, links)?)
}

fn open_and_close(dir: impl AsFd, path: &Path, follow: bool) -> io::Result<()> {
    let links = if follow {
        OFlag::empty()
    } else {
        OFlag::O_NOFOLLOW
    };
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | links;
    match openat(&dir, path, flags, Mode::empty()).map(drop) {
        // It runs here: nobody can have it open for writing.
        Err(Errno::ETXTBSY) => Ok(()),
        done => Ok(done?),
    }
}
