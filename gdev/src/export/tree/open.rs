//! Files of other nodes that are open here, and their locks.

use super::{ExportTree, malformed};
use crate::caller::user;
use crate::export::wire::{
    At, Create, FileHow, FileLock, FileOpened, LockKind, Mode, OpenFile, Stat,
};
use crate::tree::Remote;
use crate::wire::session::{Access, Answer, Ask};
use consistency::wire::meta::Name;
use consistency::{InodeNo, NodeId};
use gfs::error::Errno;
use gfs::net::{ServiceId, frames};
use gfs::tree::{Caller, Lock, OpenFlags, Opened};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Upper limit of the files open at a time.
const OPEN_FILES_MAX: usize = 4096;
/// How long a node has to open a file.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// How long who waits for a lock pauses before he asks again, at first and at most.
const LOCK_PAUSE_MIN: Duration = Duration::from_millis(5);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(200);
/// What the kernel sets in the flags of who opens a file to execute it.
const FMODE_EXEC: i32 = 0x20;
/// The end of a lock that goes to the end of the file, or any other end up to there.
const LOCK_END: u64 = i64::MAX.unsigned_abs();

/// An open file.
#[derive(Debug)]
struct File {
    ino: InodeNo,
    remote: Arc<Remote>,
    /// Locks of fcntl(2) were taken: they end with the first close.
    locked: AtomicBool,
}

/// All open files.
#[derive(Debug)]
pub(super) struct Files {
    open: Mutex<HashMap<u64, Arc<File>>>,
    next: AtomicU64,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
            next: AtomicU64::new(1),
        }
    }
}

impl Files {
    fn lock_table(&self) -> MutexGuard<'_, HashMap<u64, Arc<File>>> {
        self.open.lock().expect("no holder panics")
    }

    pub(super) fn add(&self, ino: InodeNo, remote: Remote) -> Result<u64, Errno> {
        let file = Arc::new(File {
            ino,
            remote: Arc::new(remote),
            locked: AtomicBool::new(false),
        });
        let mut open = self.lock_table();
        if open.len() >= OPEN_FILES_MAX {
            return Err(Errno(libc::ENFILE));
        }
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(fh, file);
        Ok(fh)
    }

    fn file(&self, fh: u64) -> Result<Arc<File>, Errno> {
        self.lock_table()
            .get(&fh)
            .cloned()
            .ok_or(Errno(libc::EBADF))
    }

    pub(super) fn get(&self, fh: u64) -> Result<Arc<Remote>, Errno> {
        Ok(Arc::clone(&self.file(fh)?.remote))
    }

    /// Returns an open file that is this inode.
    pub(super) fn of(&self, ino: InodeNo) -> Option<Arc<Remote>> {
        let open = self.lock_table();
        let file = open.values().find(|file| file.ino == ino)?;
        Some(Arc::clone(&file.remote))
    }

    pub(super) fn close(&self, fh: u64) {
        let file = self.lock_table().remove(&fh);
        drop(file);
    }

    /// Has something done to an open file.
    pub(super) async fn done(&self, fh: u64, what: Ask) -> Result<(), Errno> {
        let open = self.get(fh)?;
        match open.other(what).await? {
            Answer::Done => Ok(()),
            _ => Err(open.malformed()),
        }
    }

    /// Gives back the locks of fcntl(2), if there may be some.
    pub(super) async fn unlock(&self, fh: u64) -> Result<(), Errno> {
        if !self.file(fh)?.locked.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let all = FileLock {
            flock: false,
            start: 0,
            len: 0,
            kind: LockKind::None,
        };
        self.done(fh, Ask::Lock(all)).await
    }

    /// Takes or gives back a lock. Who waits asks again and again: nobody is told when one is given back.
    pub(super) async fn lock(
        &self,
        fh: u64,
        lock: Lock,
        wait: bool,
        flock: bool,
    ) -> Result<(), Errno> {
        let lock = FileLock {
            flock,
            ..file_lock(lock)?
        };
        let file = self.file(fh)?;
        if !flock && lock.kind != LockKind::None {
            file.locked.store(true, Ordering::Release);
        }
        let mut pause = LOCK_PAUSE_MIN;
        loop {
            match self.done(fh, Ask::Lock(lock)).await {
                Err(Errno(libc::EAGAIN | libc::EACCES)) if wait => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOCK_PAUSE_MAX);
        }
    }

    /// Looks for a lock in the way of one.
    pub(super) async fn test_lock(&self, fh: u64, lock: Lock) -> Result<Option<Lock>, Errno> {
        let open = self.get(fh)?;
        let asked = file_lock(lock)?;
        if asked.kind == LockKind::None {
            return Err(Errno::EINVAL);
        }
        let Answer::Lock(found) = open.other(Ask::TestLock(asked)).await? else {
            return Err(open.malformed());
        };
        Ok(found.map(|found| Lock {
            start: found.start,
            end: match found.len {
                0 => LOCK_END,
                len => found.start.saturating_add(len - 1).min(LOCK_END),
            },
            kind: match found.kind {
                LockKind::Shared => libc::F_RDLCK,
                LockKind::Exclusive | LockKind::None => libc::F_WRLCK,
            },
            // Open files have no process.
            pid: 0,
        }))
    }
}

fn file_lock(lock: Lock) -> Result<FileLock, Errno> {
    let kind = match lock.kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        libc::F_UNLCK => LockKind::None,
        _ => return Err(Errno::EINVAL),
    };
    let len = if lock.end >= LOCK_END {
        0
    } else {
        let len = lock.end.checked_sub(lock.start).ok_or(Errno::EINVAL)?;
        len + 1
    };
    Ok(FileLock {
        flock: false,
        start: lock.start,
        len,
        kind,
    })
}

/// Returns how the kernel is to treat an open file: nothing of it is cached. What is mapped is read when it is mapped.
pub(super) fn opened(fh: u64) -> Opened {
    Opened {
        fh,
        direct_io: true,
        ..Opened::default()
    }
}

pub(super) fn create(name: &Name, mode: Mode, flags: OpenFlags) -> Create {
    Create {
        name: name.clone(),
        mode,
        exclusive: flags.0 & libc::O_EXCL != 0,
    }
}

fn how(flags: OpenFlags) -> FileHow {
    let access = flags.0 & libc::O_ACCMODE;
    FileHow {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        execute: flags.0 & FMODE_EXEC != 0,
        durable: flags.0 & libc::O_DSYNC != 0,
        noatime: flags.noatime(),
    }
}

impl ExportTree {
    /// Begins a session.
    pub(super) async fn open_file(
        &self,
        owner: NodeId,
        caller: Caller,
        at: At,
        flags: OpenFlags,
        create: Option<Create>,
    ) -> Result<(Remote, Stat), Errno> {
        let first = OpenFile {
            who: user(caller),
            at,
            how: how(flags),
            create,
        };
        let begin = async {
            if owner != self.agent.node() {
                self.knows_exports(owner).await?;
            }
            let stream = self.transport.open(owner, ServiceId::Export).await;
            let mut stream = stream?;
            let sent = frames::send(&mut stream.writer, &first).await;
            sent.map_err(|_| Errno::EIO)?;
            let told = frames::receive(&mut stream.reader).await;
            match told.map_err(|_| Errno::EIO)? {
                FileOpened::Opened(stat) => Ok((Remote::new(owner, Access::Random, stream), stat)),
                FileOpened::Refused(errno @ 1..=4095) => Err(Errno(errno)),
                FileOpened::Refused(_) => Err(malformed(owner, "no errno")),
            }
        };
        let begun = tokio::time::timeout(OPEN_DEADLINE, begin).await;
        begun.map_err(|_| Errno::EIO)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_locks() {
        let check = |start, end, expected: Option<(u64, u64)>| {
            let lock = Lock {
                start,
                end,
                kind: libc::F_WRLCK,
                pid: 1,
            };
            let asked = file_lock(lock).ok().map(|lock| (lock.start, lock.len));
            assert_eq!(asked, expected, "{start} to {end}");
        };
        check(0, LOCK_END, Some((0, 0)));
        check(7, u64::MAX, Some((7, 0)));
        check(0, 0, Some((0, 1)));
        check(5, 9, Some((5, 5)));
        check(9, 5, None);
    }
}
