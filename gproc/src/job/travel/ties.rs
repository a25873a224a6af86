//! What ties a job to its node: found before anything is done to it.

use super::super::private::{Network, has_own, has_queues};
use super::locks::FileLocks;
use super::pipes::{access, members};
use super::tcp::connected;
use super::unix;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Devices that are the same everywhere.
const HARMLESS: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Objects of the kernel without a name that CRIU makes again.
const MOVING_KINDS: [&str; 6] = [
    "[eventfd]",
    "[eventpoll]",
    "[pidfd]",
    "[signalfd]",
    "[timerfd]",
    "inotify",
];

/// What statfs(2) says of message queues of POSIX.
const MQUEUE_MAGIC: libc::__fsword_t = 0x1980_0202;

/// All words.
const WORDS: [&str; 10] = [
    "device",
    "file_lock",
    "io_uring",
    "ipc",
    "kernel_object",
    "local_file",
    "tcp",
    "terminal",
    "traced",
    "unix",
];

/// Returns those of the words of another node that this one knows.
pub(super) fn known(words: &[String]) -> BTreeSet<&'static str> {
    let known = WORDS.into_iter().chain(["no_criu"]);
    known
        .filter(|word| words.iter().any(|said| said == word))
        .collect()
}

/// Returns why a job cannot move, a word each; none: as far as can be seen it can.
pub(super) fn ties(dir: &Path, pid: i32, locks: &FileLocks) -> io::Result<BTreeSet<&'static str>> {
    let mut ties = BTreeSet::new();
    let (mut sockets, connected) = (BTreeSet::new(), connected()?);
    let members = members(dir, pid)?;
    let terminal = terminal_of_session(pid);
    for pid in &members {
        if is_traced(*pid) {
            ties.insert("traced");
        }
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let Ok(target) = fs::read_link(&path) else {
                continue;
            };
            let target = target.to_string_lossy();
            if let Some(inode) = target.strip_prefix("socket:[") {
                let inode = inode.trim_end_matches(']');
                if connected.contains(inode) {
                    ties.insert("tcp");
                }
                sockets.extend(inode.parse::<u32>());
            } else if let Some(kind) = target.strip_prefix("anon_inode:") {
                match kind {
                    "[io_uring]" => drop(ties.insert("io_uring")),
                    kind if !MOVING_KINDS.contains(&kind) => drop(ties.insert("kernel_object")),
                    _ => {}
                }
            } else if target.starts_with("/dev/pts/") || target.as_ref() == "/dev/tty" {
                if terminal.is_none_or(|terminal| !is_terminal(&path, terminal)) {
                    ties.insert("terminal");
                }
            } else if target.starts_with("/dev/")
                && !target.starts_with("/dev/shm/")
                && !target.starts_with("/dev/mqueue/")
                && !HARMLESS.contains(&&*target)
            {
                ties.insert("device");
            } else if target.starts_with('/') {
                ties.extend(of_file(&path)?);
            }
        }
    }
    if !sockets.is_empty() && has_peer_outside(pid, &sockets).unwrap_or(false) {
        ties.insert("unix");
    }
    let uses_ipc = match has_own(pid, "ipc").unwrap_or(false) {
        // That of System V moves with it.
        true => has_queues(pid)?,
        false => uses_ipc(&members)?,
    };
    if uses_ipc {
        ties.insert("ipc");
    }
    if locks.holds(&members)? {
        ties.insert("file_lock");
    }
    Ok(ties)
}

/// Returns whether a debugger has a process. CRIU would have to take its place.
fn is_traced(pid: i32) -> bool {
    // One that has ended since is not.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// Returns the number of the terminal that a program has from a leader of its session: the only one that moves. A program that
/// leads its session itself has one of somebody else.
fn terminal_of_session(pid: i32) -> Option<u64> {
    /// Fields behind the name, from the state on.
    const SESSION: usize = 3;
    const TERMINAL: usize = 4;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let session: i32 = fields.get(SESSION)?.parse().ok()?;
    let terminal: u64 = fields.get(TERMINAL)?.parse().ok()?;
    (session != pid && terminal != 0).then_some(terminal)
}

/// Returns whether a descriptor is this terminal.
fn is_terminal(fd: &Path, terminal: u64) -> bool {
    let Ok(meta) = fs::metadata(fd) else {
        return false;
    };
    let number = meta.rdev();
    // As `/proc/*/stat` has it (proc_pid_stat(5)).
    let (major, minor) = (
        u64::from(libc::major(number)),
        u64::from(libc::minor(number)),
    );
    let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    number == terminal
}

/// Returns whether unix sockets of a job are connected to others. The kernel tells of those of one network at a time.
fn has_peer_outside(pid: i32, sockets: &BTreeSet<u32>) -> io::Result<bool> {
    Ok(unix::has_peer_outside(sockets)?
        || has_own(pid, "net")? && Network::of(pid)?.within(|| unix::has_peer_outside(sockets))?)
}

/// Returns whether processes use shared memory or message queues of System V, which stay with their node. Whose
/// semaphores are the kernel does not tell.
fn uses_ipc(members: &BTreeSet<i32>) -> io::Result<bool> {
    for pid in members {
        // It may have ended since.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        if maps.lines().any(|line| line.contains(" /SYSV")) {
            return Ok(true);
        }
    }
    // The columns with the processes that made them, or were the last to use them.
    for (table, columns) in [("shm", [4, 5]), ("msg", [5, 6])] {
        let text = match fs::read_to_string(format!("/proc/sysvipc/{table}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        for line in text.lines().skip(1) {
            let numbers: Vec<i32> = line
                .split_whitespace()
                .map(|number| number.parse().unwrap_or(0))
                .collect();
            let by = |column: usize| numbers.get(column).is_some_and(|pid| members.contains(pid));
            if columns.into_iter().any(by) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Returns why an open file does not move: it is written and only this node has it, or is a message queue.
fn of_file(fd: &Path) -> io::Result<Option<&'static str>> {
    let Ok(meta) = fs::metadata(fd) else {
        return Ok(None);
    };
    let kind = nix::sys::statfs::statfs(fd)?.filesystem_type();
    if kind.0 == MQUEUE_MAGIC {
        return Ok(Some("ipc"));
    }
    let shared = kind == nix::sys::statfs::FUSE_SUPER_MAGIC;
    // CRIU carries the content of a file without a name.
    let named = meta.nlink() > 0;
    let local = meta.is_file() && !shared && named && access(fd)? != libc::O_RDONLY;
    Ok(local.then_some("local_file"))
}
