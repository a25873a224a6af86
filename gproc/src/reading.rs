//! Reads the files of processes for other nodes, with the rights of those who asked.

use crate::files::{Form, Rule, may_trace};
use crate::pids::ClusterPid;
use crate::procfs::{Process, Procfs, Stuck};
use crate::signal::may_signal;
use crate::text;
use crate::wire::{Birth, Cell, FILE_BYTES_MAX, MachineFile, PAGE_BYTES_MAX, ProcFile, Who};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};
use std::fmt::Write;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Upper limit of a content in a column; a longer one is read when somebody opens it.
const CELL_BYTES_MAX: usize = 64 << 10;
/// Upper limit of what is around it on the wire.
const CELL_OVERHEAD: usize = 32;

/// Above so many locks those of processes that have ended are thrown away.
const LOCKS_SWEPT: usize = 1024;

/// Why a file was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// Procfs says so, or would.
    Errno(Errno),
    /// Memory of the process cannot be read now.
    Stuck,
}

impl From<Errno> for NotRead {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Stuck> for NotRead {
    fn from(_: Stuck) -> Self {
        Self::Stuck
    }
}

impl Procfs {
    /// Reads a file of a process, or of a thread of it.
    pub(crate) fn read(
        &self,
        pid: ClusterPid,
        birth: Birth,
        thread: Option<ClusterPid>,
        file: ProcFile,
        who: Who,
    ) -> Result<Bytes, NotRead> {
        let process = self.find(pid).ok_or(Errno::ESRCH)?;
        let stat = process.read("stat", FILE_BYTES_MAX)?;
        if self.birth(&stat) != Some(birth) {
            return Err(Errno::ESRCH.into());
        }
        match thread {
            None => self.read_of(&process, file, who),
            Some(thread) => {
                let number = self.own(thread).ok_or(Errno::ENOENT)?;
                let thread = process.thread(pid, number)?;
                self.read_of(&thread, file, who)
            }
        }
    }

    /// Reads a file of each process behind `after`, in ascending order, until a page is full. Processes that end
    /// meanwhile, what is long and what cannot be read at once are left out. Counts in `done` as it goes. Without
    /// `memory` it waits for nobody. Returns behind which process more follows.
    ///
    /// # Errors
    /// If the directory itself cannot be read.
    pub(crate) fn column(
        &self,
        file: ProcFile,
        who: Who,
        after: Option<ClusterPid>,
        memory: bool,
        done: &AtomicUsize,
    ) -> io::Result<(Vec<Cell>, Option<ClusterPid>)> {
        let (mut cells, mut room) = (Vec::new(), PAGE_BYTES_MAX);
        if file.is_memory() && !memory {
            return Ok((cells, None));
        }
        let mut pids = self.pids()?;
        pids.sort_unstable();
        let behind = after.map_or(0, |after| pids.partition_point(|pid| *pid <= after));
        for pid in pids.drain(behind..) {
            let cell = self.cell(pid, file, who);
            done.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cell else { continue };
            let size = cell.content.as_ref().map_or(0, Bytes::len);
            if size > CELL_BYTES_MAX {
                continue;
            }
            room = room.saturating_sub(size + CELL_OVERHEAD);
            cells.push(cell);
            if room < CELL_BYTES_MAX {
                return Ok((cells, Some(pid)));
            }
        }
        Ok((cells, None))
    }

    fn cell(&self, pid: ClusterPid, file: ProcFile, who: Who) -> Option<Cell> {
        let process = self.find(pid)?;
        let birth = self.birth(&process.read("stat", FILE_BYTES_MAX).ok()?)?;
        let content = match self.read_of(&process, file, who) {
            Ok(content) => Ok(content),
            Err(NotRead::Errno(Errno::ESRCH) | NotRead::Stuck) => return None,
            Err(NotRead::Errno(errno)) => Err(errno as i32),
        };
        Some(Cell {
            pid,
            birth,
            content,
        })
    }

    /// Reads a file about the machine.
    ///
    /// # Errors
    /// Of procfs.
    pub(crate) fn machine(&self, file: MachineFile) -> io::Result<Bytes> {
        std::fs::read(self.path().join(file.path())).map(Bytes::from)
    }

    /// Keeps a process where it is, or not.
    pub(crate) fn lock(
        &self,
        pid: ClusterPid,
        birth: Birth,
        lock: bool,
        who: Who,
    ) -> Result<(), Errno> {
        let (stat, status) = self.stat_and_status(pid).ok_or(Errno::ESRCH)?;
        if self.birth(&stat) != Some(birth) {
            return Err(Errno::ESRCH);
        }
        let credentials = text::credentials(&status).ok_or(Errno::EIO)?;
        if !may_signal(who, &credentials) {
            return Err(Errno::EPERM);
        }
        let mut locks = self.lock_locks();
        if lock {
            locks.insert(pid, birth);
            // Those that have ended are found when others come.
            if locks.len() > LOCKS_SWEPT {
                locks.retain(|pid, birth| {
                    let stat = self
                        .find(*pid)
                        .and_then(|it| it.read("stat", FILE_BYTES_MAX).ok());
                    stat.is_some_and(|stat| self.birth(&stat) == Some(*birth))
                });
            }
        } else {
            locks.remove(&pid);
        }
        Ok(())
    }

    /// Has the lock of a process that was elsewhere hold for it again: to the kernel it is another process now.
    pub(crate) fn came_back(&self, pid: ClusterPid) {
        let Some((stat, _)) = self.stat_and_status(pid) else {
            return;
        };
        if let (Some(birth), Some(lock)) = (self.birth(&stat), self.lock_locks().get_mut(&pid)) {
            *lock = birth;
        }
    }

    fn is_locked(&self, process: &Process) -> Result<bool, Errno> {
        let birth = self.birth(&process.read("stat", FILE_BYTES_MAX)?);
        Ok(self.lock_locks().get(&process.pid).copied() == birth && birth.is_some())
    }

    fn read_of(&self, process: &Process, file: ProcFile, who: Who) -> Result<Bytes, NotRead> {
        if file.rule() != Rule::Anybody && !traces(process, who)? {
            return match file.rule() {
                Rule::TracerElseZero => Ok(Bytes::from_static(b"0")),
                Rule::Anybody | Rule::Tracer => Err(Errno::EACCES.into()),
            };
        }
        let path = file.path();
        let bytes = match file.form() {
            Form::Link => readlinkat(&process.dir, &*path)?.into_vec(),
            Form::Names => self.names(process, &path, file)?,
            Form::Kept => format!("{}\n", u8::from(self.is_locked(process)?)).into_bytes(),
            Form::Text if file.is_memory() => {
                let mut memory = Vec::new();
                self.read_memory(process, &path, FILE_BYTES_MAX, &mut memory)??;
                memory
            }
            Form::Text => process.read(&path, FILE_BYTES_MAX)?,
        };
        let rewritten = match file {
            ProcFile::Stat => self.rewrite_stat(&bytes),
            ProcFile::Status => self.rewrite_status(&bytes),
            _ => Some(bytes),
        };
        Ok(rewritten.ok_or(Errno::EIO)?.into())
    }

    /// Lists a directory whose names are numbers.
    fn names(&self, process: &Process, path: &str, file: ProcFile) -> Result<Vec<u8>, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = nix::dir::Dir::openat(&process.dir, path, flags, Mode::empty())?;
        let mut names = String::new();
        for entry in dir.iter() {
            let entry = entry?;
            let number = entry.file_name().to_str().ok();
            let Some(number) = number.and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let number = if file == ProcFile::Tasks {
                self.number(number)
            } else {
                number
            };
            writeln!(names, "{number}").expect("writing to a string succeeds");
        }
        Ok(names.into_bytes())
    }
}

impl Process {
    fn thread(&self, pid: ClusterPid, number: i32) -> Result<Self, Errno> {
        let path = format!("task/{number}");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = openat(&self.dir, path.as_str(), flags, Mode::empty())?;
        Ok(Self {
            pid,
            dir: dir.into(),
        })
    }
}

/// Returns whether one may trace a process for reading.
fn traces(process: &Process, who: Who) -> Result<bool, Errno> {
    if who.uid == 0 {
        return Ok(true);
    }
    let status = process.read("status", FILE_BYTES_MAX)?;
    let credentials = text::credentials(&status).ok_or(Errno::EIO)?;
    // Procfs gives its files to the effective user, or to root if it is shielded.
    let owner = fstatat(&process.dir, "environ", AtFlags::empty())?.st_uid;
    let shielded = owner != credentials.users.effective;
    Ok(may_trace(who, &credentials, shielded))
}
