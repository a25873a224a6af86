//! A node's own procfs, seen with cluster pids.
//!
//! Reading a command line or an environment can get stuck: it is memory of the process, and waits while a page fault of that process
//! waits, maybe for a file of this very cluster. Each such read is noted; as long as one has been waiting for
//! [`STUCK_AFTER`] nobody else tries, so that every stuck process costs one or two threads and no reader.

use crate::pids::ClusterPid;
use crate::text;
use crate::wire::{Birth, FILE_BYTES_MAX, Identity, Record, SNAPSHOT_CMDLINE_BYTES_MAX};
use bytes::Bytes;
use consistency::NodeId;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a read of memory may take before the process counts as stuck.
pub(crate) const STUCK_AFTER: Duration = Duration::from_millis(100);
/// Bits of a [`Birth`] that hold the start time: 5,500 years of ticks.
pub(crate) const BIRTH_TICKS_BITS: u32 = 44;

/// The procfs of one node's pid namespace. Methods block.
#[derive(Debug)]
pub(crate) struct Procfs {
    node: NodeId,
    path: PathBuf,
    /// How it hides processes, as of the start of the daemon; see [`Identity::hidden`].
    pub(crate) hidden: Option<u32>,
    /// Hash of the boot, in the upper bits.
    boot: u64,
    /// Reads of memory that have begun.
    reading: Mutex<HashMap<ClusterPid, Instant>>,
    /// Processes that must stay here.
    locks: Mutex<HashMap<ClusterPid, Birth>>,
}

/// The memory of a process cannot be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stuck;

/// A process or a thread, held by its directory: a pid that is given out again is another directory.
pub(crate) struct Process {
    pub(crate) pid: ClusterPid,
    pub(crate) dir: File,
}

impl Procfs {
    pub(crate) fn new(node: NodeId, path: PathBuf) -> Self {
        // Start times alone would confuse a process with one of the boot before. A kernel built without the file
        // gets the same hash each time, which only means that nothing but the start time tells them apart.
        let boot_id = std::fs::read(path.join("sys/kernel/random/boot_id")).unwrap_or_default();
        let mut hasher = DefaultHasher::new();
        boot_id.hash(&mut hasher);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            node,
            hidden: text::hidden(&mounts, &path.to_string_lossy()),
            path,
            boot: hasher.finish() << BIRTH_TICKS_BITS,
            reading: Mutex::default(),
            locks: Mutex::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns all processes that have a cluster pid, in ascending order of it. Those that end meanwhile are left out.
    /// Counts in `done` as it goes. Without `cmdlines` it does not wait for anybody.
    ///
    /// # Errors
    /// If the directory itself cannot be read.
    pub(crate) fn records(&self, cmdlines: bool, done: &AtomicUsize) -> io::Result<Vec<Record>> {
        let mut scratch = Vec::with_capacity(SNAPSHOT_CMDLINE_BYTES_MAX + 1);
        let mut records = Vec::new();
        for pid in self.pids()? {
            if let Some(process) = self.find(pid) {
                records.extend(self.record(&process, cmdlines, &mut scratch));
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        records.sort_unstable_by_key(|record| record.identity.pid);
        Ok(records)
    }

    /// Returns who has a pid.
    pub(crate) fn identify(&self, pid: ClusterPid) -> Option<Identity> {
        let (stat, status) = self.stat_and_status(pid)?;
        self.identity(pid, &stat, &status)
    }

    /// Returns the process that a thread belongs to.
    pub(crate) fn process_of(&self, thread: i32) -> Option<ClusterPid> {
        let status = std::fs::read(self.path.join(thread.to_string()).join("status")).ok()?;
        ClusterPid::of(self.node, text::thread_group(&status)?)
    }

    /// Returns the cluster pids of all processes.
    ///
    /// # Errors
    /// If the directory itself cannot be read.
    pub(crate) fn pids(&self) -> io::Result<Vec<ClusterPid>> {
        let mut pids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let kernel = name.to_str().and_then(|name| name.parse().ok());
            pids.extend(kernel.and_then(|kernel| ClusterPid::of(self.node, kernel)));
        }
        Ok(pids)
    }

    /// Returns `stat` and `status` of a process as the kernel has them.
    pub(crate) fn stat_and_status(&self, pid: ClusterPid) -> Option<(Vec<u8>, Vec<u8>)> {
        let process = self.find(pid)?;
        let stat = process.read("stat", FILE_BYTES_MAX).ok()?;
        Some((stat, process.read("status", FILE_BYTES_MAX).ok()?))
    }

    /// Returns the kernel's number of a process of this node.
    pub(crate) fn own(&self, pid: ClusterPid) -> Option<i32> {
        (pid.home() == self.node).then(|| pid.kernel())
    }

    pub(crate) fn find(&self, pid: ClusterPid) -> Option<Process> {
        let path = self.path.join(self.own(pid)?.to_string());
        let dir = File::open(path).ok()?;
        Some(Process { pid, dir })
    }

    fn record(&self, process: &Process, cmdlines: bool, scratch: &mut Vec<u8>) -> Option<Record> {
        let limit = FILE_BYTES_MAX;
        let stat = process.read_into("stat", limit, scratch).ok()?;
        let (birth_of, stat) = (self.birth(stat)?, self.rewrite_stat(stat)?);
        let status = process.read_into("status", limit, scratch).ok()?;
        let (uid, gid) = text::owner(status)?;
        let status = self.rewrite_status(status)?;
        let limit = SNAPSHOT_CMDLINE_BYTES_MAX;
        let cmdline =
            match cmdlines.then(|| self.read_memory(process, "cmdline", limit + 1, scratch)) {
                Some(Ok(cmdline)) => Some(cmdline.ok()?).filter(|cmdline| cmdline.len() <= limit),
                Some(Err(Stuck)) | None => None,
            };
        let cmdline = cmdline.map(Bytes::copy_from_slice);
        let identity = Identity {
            pid: process.pid,
            birth: birth_of,
            uid,
            gid,
            hidden: self.hidden,
        };
        Some(Record {
            identity,
            stat: stat.into(),
            status: status.into(),
            cmdline,
        })
    }

    /// Reads a file that is memory of the process.
    pub(crate) fn read_memory<'a>(
        &self,
        process: &Process,
        name: &str,
        limit: usize,
        into: &'a mut Vec<u8>,
    ) -> Result<Result<&'a [u8], Errno>, Stuck> {
        let noted = match self.lock_reading().entry(process.pid) {
            Entry::Occupied(begun) if begun.get().elapsed() >= STUCK_AFTER => return Err(Stuck),
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(Instant::now());
                true
            }
        };
        let memory = process.read_into(name, limit, into);
        if noted {
            self.lock_reading().remove(&process.pid);
        }
        Ok(memory)
    }

    pub(crate) fn lock_locks(&self) -> MutexGuard<'_, HashMap<ClusterPid, Birth>> {
        self.locks.lock().expect("no holder panics")
    }

    fn lock_reading(&self) -> MutexGuard<'_, HashMap<ClusterPid, Instant>> {
        self.reading.lock().expect("no holder panics")
    }

    fn identity(&self, pid: ClusterPid, stat: &[u8], status: &[u8]) -> Option<Identity> {
        let (uid, gid) = text::owner(status)?;
        Some(Identity {
            pid,
            birth: self.birth(stat)?,
            uid,
            gid,
            hidden: self.hidden,
        })
    }

    pub(crate) fn birth(&self, stat: &[u8]) -> Option<Birth> {
        let ticks = text::start_ticks(stat)? & ((1 << BIRTH_TICKS_BITS) - 1);
        Some(Birth(self.boot | ticks))
    }

    pub(crate) fn rewrite_stat(&self, stat: &[u8]) -> Option<Vec<u8>> {
        text::rewrite_stat(stat, |pid| self.number(pid))
    }

    pub(crate) fn rewrite_status(&self, status: &[u8]) -> Option<Vec<u8>> {
        text::rewrite_status(status, |pid| self.number(pid))
    }

    pub(crate) fn number(&self, kernel: i32) -> i32 {
        ClusterPid::of(self.node, kernel).map_or(kernel, i32::from)
    }
}

impl Process {
    pub(crate) fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        self.read_into(name, limit, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads at most `limit` bytes; ESRCH if the process has ended.
    fn read_into<'a>(
        &self,
        name: &str,
        limit: usize,
        into: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Errno> {
        into.clear();
        let read = self.open(name)?.take(limit as u64).read_to_end(into);
        read.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        Ok(into)
    }

    pub(crate) fn open(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            // The directory is held, but those in it are looked up by the pid. Some files are not in every kernel.
            Err(Errno::ENOENT) if name == "stat" || self.has_ended() => Err(Errno::ESRCH),
            Err(errno) => Err(errno),
        }
    }

    fn has_ended(&self) -> bool {
        self.open("stat").is_err()
    }
}
