//! Who watches a mount: looks through /proc, again only where something can have changed.
//!
//! A watch is made by a process that runs, and so is a descriptor. So what a process watches is what it watched before if
//! none of its threads has run since: the kernel counts for each how long it has run and how often
//! (`/proc/<pid>/task/<tid>/schedstat`). Of a process that sleeps a look costs some microseconds, whatever it has open.

use consistency::InodeNo;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process's `task` has so many links, and one for each thread.
const TASK_LINKS: u64 = 2;

/// The processes, as they were when they were looked at last.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    processes: BTreeMap<u32, Process>,
}

#[derive(Debug)]
struct Process {
    threads: Threads,
    watched: BTreeSet<InodeNo>,
}

/// How long and how often the threads of a process had run, by where the kernel says it; none if it does not.
#[derive(Debug)]
struct Threads(Vec<(PathBuf, Vec<u8>)>);

impl Watchers {
    /// Returns what is watched of the file system `device`, as fdinfo writes it.
    pub(super) fn look(&mut self, device: &str) -> io::Result<BTreeSet<InodeNo>> {
        let mut before = std::mem::take(&mut self.processes);
        for process in fs::read_dir("/proc")? {
            let process = process?;
            let number = process.file_name();
            let Some(number) = number.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let process = match before.remove(&number) {
                Some(known) if !known.threads.have_run() => known,
                _ => Process::new(&process.path(), device),
            };
            self.processes.insert(number, process);
        }
        let watched = self.processes.values().flat_map(|process| &process.watched);
        Ok(watched.copied().collect())
    }
}

impl Process {
    fn new(path: &Path, device: &str) -> Self {
        Self {
            // First: what is done from here on counts as done afterwards.
            threads: Threads::of(path).unwrap_or(Threads(Vec::new())),
            watched: watched_by(path, device),
        }
    }
}

impl Threads {
    fn of(process: &Path) -> Option<Self> {
        let tasks = process.join("task");
        let mut threads = Vec::new();
        for task in fs::read_dir(&tasks).ok()? {
            let ran = task.ok()?.path().join("schedstat");
            let how_long = read(&ran).ok()?;
            threads.push((ran, how_long));
        }
        // One that began meanwhile may have been begun by one that had been asked already; later ones are not.
        let links = fs::metadata(tasks).ok()?.nlink();
        (links == TASK_LINKS + threads.len() as u64).then_some(Self(threads))
    }

    /// Threads are begun by threads, so there is no new one if the known ones have not run.
    fn have_run(&self) -> bool {
        let has_run = |(path, ran): &(PathBuf, Vec<u8>)| read(path).ok().as_ref() != Some(ran);
        self.0.is_empty() || self.0.iter().any(has_run)
    }
}

/// Returns a line of /proc.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut line = [0; 128];
    let len = File::open(path)?.read(&mut line)?;
    Ok(line[..len].to_vec())
}

/// Processes and descriptors may go while they are looked at.
fn watched_by(process: &Path, device: &str) -> BTreeSet<InodeNo> {
    let mut inodes = BTreeSet::new();
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else {
        return inodes;
    };
    for descriptor in descriptors.flatten() {
        let target = fs::read_link(descriptor.path()).unwrap_or_default();
        let target = target.as_os_str().as_bytes();
        if target == b"anon_inode:inotify" || target == b"anon_inode:[fanotify]" {
            let info = process.join("fdinfo").join(descriptor.file_name());
            let info = fs::read_to_string(info).unwrap_or_default();
            inodes.extend(info.lines().filter_map(|line| watch_of(line, device)));
        }
    }
    inodes
}

/// Returns the inode of a line of fdinfo, if it is a watch on the file system `device`.
fn watch_of(line: &str, device: &str) -> Option<InodeNo> {
    let mut words = line.split(' ');
    if !matches!(words.next(), Some("inotify" | "fanotify")) {
        return None;
    }
    let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
    let number = u64::from_str_radix(value("ino:")?, 16).ok()?;
    (value("sdev:")? == device).then_some(InodeNo(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    use nix::sys::stat::{major, minor};
    use std::io::Write;
    use std::process::{Child, Command, Stdio};
    use std::thread;
    use std::time::{Duration, Instant};

    /// A process that waits for a line of its input for each thing that it does.
    struct Waiter(Child);

    impl Waiter {
        fn new() -> Self {
            let waiter = Command::new("sh")
                .args(["-c", "while read line; do :; done"])
                .stdin(Stdio::piped())
                .spawn();
            Self(waiter.expect("sh"))
        }

        fn path(&self) -> PathBuf {
            format!("/proc/{}", self.0.id()).into()
        }

        /// Waits until it waits.
        fn at_rest(&self) -> Threads {
            let end = Instant::now() + Duration::from_secs(20);
            loop {
                let before = Threads::of(&self.path()).expect("it lives");
                thread::sleep(Duration::from_millis(50));
                let stat = fs::read_to_string(self.path().join("stat")).expect("it lives");
                if stat.contains(") S ") && !before.have_run() {
                    return before;
                }
                assert!(Instant::now() < end, "it does not wait for its input");
            }
        }
    }

    impl Drop for Waiter {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn who_has_run_is_known() {
        let mut waiter = Waiter::new();
        for _ in 0..5 {
            let before = waiter.at_rest();
            let input = waiter.0.stdin.as_mut().expect("a pipe");
            input.write_all(b"line\n").expect("it reads");
            waiter.at_rest();
            assert!(before.have_run());
        }
    }

    /// By whichever thread, and however often: nothing that was known before is taken for the present.
    #[test]
    fn watches_are_found_and_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let found = fs::metadata(dir.path()).expect("there");
        let device = format!("{:x}", major(found.dev()) << 20 | minor(found.dev()));
        let ino = InodeNo(found.ino());
        let mut watchers = Watchers::default();
        for _ in 0..20 {
            // A child that another test has just forked has copies of all descriptors, until it executes its program.
            let end = Instant::now() + Duration::from_secs(20);
            while watchers.look(&device).expect("/proc").contains(&ino) {
                assert!(Instant::now() < end, "its last descriptor is closed");
            }
            let inotify = thread::scope(|scope| {
                let other = scope.spawn(|| {
                    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
                    let watched = inotify.add_watch(dir.path(), AddWatchFlags::IN_CREATE);
                    watched.map(|_| inotify).expect("a watch")
                });
                other.join().expect("it does not panic")
            });
            assert!(watchers.look(&device).expect("/proc").contains(&ino));
            assert!(watchers.look(&device).expect("/proc").contains(&ino));
            drop(inotify);
        }
    }

    #[test]
    fn lines_of_fdinfo() {
        let check = |line: &str, inode: Option<u64>| {
            assert_eq!(watch_of(line, "3a"), inode.map(InodeNo), "{line}");
        };
        check(
            "inotify wd:1 ino:1f sdev:3a mask:800afce ignored_mask:0 fhandle-bytes:c",
            Some(31),
        );
        check(
            "inotify wd:1 ino:1f sdev:3b mask:800afce ignored_mask:0",
            None,
        );
        check(
            "fanotify ino:2 sdev:3a mflags:0 mask:3b ignored_mask:0",
            Some(2),
        );
        check("fanotify sdev:3a mflags:0 mask:3b ignored_mask:0", None);
        check("fanotify flags:10 event-flags:0", None);
        check("pos:\t0", None);
    }
}
