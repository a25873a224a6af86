//! What a signal does to a request that waits.
//!
//! The kernel says once, by INTERRUPT, that the waiting thread has got a signal, and then waits for our answer
//! whatever comes, even SIGKILL. So:
//! - A thread that is being killed is let go at once. INTERRUPT does not name the signal and is not repeated for a
//!   second one, so the thread's pending signals are looked at, first when INTERRUPT comes and then every
//!   [`WATCH_PERIOD`].
//! - A signal that its process survives ends a wait only where POSIX programs expect it: for a lock (SETLKW), and in
//!   the process and device trees, whose files are streams, terminals, events. Anywhere else EINTR would break what
//!   works on a local disk: stat(2) and open(2) of programs that use timers, reads of regular files, and a page fault,
//!   where it would become SIGBUS.
//! - A thread that is to be frozen (cgroups of version 2) waits in the kernel as for a signal, and cannot be frozen before its
//!   answer. An order to a process to move may come from itself: its writer is told that the order is given once it is to
//!   stand still, and the order goes on.
//! - What has to happen in any case (FLUSH, RELEASE and unlocking give back locks and handles) goes on after its caller is gone.

use super::request::{Operation, Request};
use crate::tree::{DEV_BASE, PROC_BASE};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the pending signals of threads are looked at that got a signal while their request waits.
pub(super) const WATCH_PERIOD: Duration = Duration::from_millis(50);

/// Where the cgroup trees of version 2 are mounted.
const CGROUP_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// What ends a wait before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnSignal {
    /// Any signal; the operation is dropped.
    Interrupt,
    /// A signal that ends the process; the operation is dropped.
    Kill,
    /// A signal that ends the process; the operation goes on.
    Detach,
    /// As [`Self::Kill`], of an order of so many bytes; if the process is to stand still the order counts as given, and goes on.
    Order(u32),
}

impl OnSignal {
    /// Returns the rule for a request.
    pub(super) fn of(request: &Request) -> Self {
        let stream = request.header.ino.0 >= PROC_BASE;
        match &request.operation {
            Operation::Setlk {
                request,
                wait: true,
            } if request.lock.kind != libc::F_UNLCK => Self::Interrupt,
            Operation::Open { .. } | Operation::Read { .. } | Operation::Ioctl { .. } if stream => {
                Self::Interrupt
            }
            Operation::Write { data, .. }
                if (PROC_BASE..DEV_BASE).contains(&request.header.ino.0) =>
            {
                Self::Order(u32::try_from(data.len()).unwrap_or(u32::MAX))
            }
            Operation::Flush { .. } | Operation::Release { .. } | Operation::Setlk { .. } => {
                Self::Detach
            }
            _ => Self::Kill,
        }
    }
}

/// Tells whether a thread is about to end. One that cannot be seen is taken for that: it is gone, or in another pid
/// namespace, where a wait that cannot be ended would be worse than an EINTR.
pub(super) fn is_dying(tid: u32) -> bool {
    if tid == 0 {
        return true;
    }
    fs::read_to_string(format!("/proc/{tid}/status")).map_or(true, |status| dies_of(&status))
}

/// Tells whether a thread that has been woken as for a signal is to be frozen. That it has got none does not tell: one of its process
/// wakes any thread that takes it, and another may have taken it since.
pub(super) fn is_to_stand_still(tid: u32) -> bool {
    let frozen = |dir: PathBuf| {
        let freeze = fs::read_to_string(dir.join("cgroup.freeze"));
        freeze.is_ok_and(|freeze| freeze.trim_end() == "1")
    };
    let cgroups = fs::read_to_string(format!("/proc/{tid}/cgroup"));
    cgroups.is_ok_and(|cgroups| freezers(&cgroups).any(frozen))
}

/// Returns where the cgroups of version 2 may be that freeze a process, by its `/proc/PID/cgroup`: its own and those above it.
fn freezers(cgroups: &str) -> impl Iterator<Item = PathBuf> {
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
    let all = own.map(Path::new).into_iter().flat_map(Path::ancestors);
    all.flat_map(|dir| CGROUP_MOUNTS.map(|mount| Path::new(mount).join(dir)))
}

/// Returns a set of signals in a thread's `status`.
fn signals(status: &str, field: &str) -> u64 {
    let mut lines = status.lines();
    let hex = lines.find_map(|line| line.strip_prefix(field));
    hex.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Tells from a thread's `status` whether a signal is pending that will end its process.
fn dies_of(status: &str) -> bool {
    let set = |field| signals(status, field);
    let pending = set("SigPnd:") | set("ShdPnd:");
    let survived = set("SigBlk:") | set("SigIgn:") | set("SigCgt:") | SURVIVED_BY_DEFAULT;
    // The kernel turns most fatal signals into SIGKILL for every thread, but not those that dump core.
    pending & bit(libc::SIGKILL) != 0 || pending & !survived != 0
}

/// Signals that by default are ignored or stop the process.
const SURVIVED_BY_DEFAULT: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::super::abi::Opcode;
    use super::super::request::{Header, LockRequest};
    use super::*;
    use crate::tree::{Caller, Lock, OpenFlags};
    use consistency::InodeNo;

    #[test]
    fn a_thread_dies_of_signals_that_it_neither_handles_nor_ignores() {
        let check = |fields: &str, expected| assert_eq!(dies_of(fields), expected, "{fields}");
        check("", false);
        check("SigPnd:\t0000000000000000\n", false);
        check("SigPnd:\t0000000000000100\n", true);
        check(
            "ShdPnd:\t0000000000000100\nSigBlk:\tffffffffffffffff\n",
            true,
        );
        // SIGINT by default, handled, ignored, blocked.
        check("ShdPnd:\t0000000000000002\n", true);
        check(
            "ShdPnd:\t0000000000000002\nSigCgt:\t0000000000000002\n",
            false,
        );
        check(
            "ShdPnd:\t0000000000000002\nSigIgn:\t0000000000000002\n",
            false,
        );
        check(
            "ShdPnd:\t0000000000000002\nSigBlk:\t0000000000000002\n",
            false,
        );
        // SIGQUIT dumps core; SIGCHLD and SIGSTOP do not end anything.
        check("SigPnd:\t0000000000000004\n", true);
        check("SigPnd:\t0000000000010000\n", false);
        check("SigPnd:\t0000000000040000\n", false);
    }

    #[test]
    fn a_thread_is_frozen_by_its_cgroup_and_those_above_it() {
        let check = |cgroups: &str, expected: &[&str]| {
            let found: Vec<PathBuf> = freezers(cgroups).collect();
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(found, expected, "{cgroups}");
        };
        let both = [
            "/sys/fs/cgroup/a/j1",
            "/sys/fs/cgroup/unified/a/j1",
            "/sys/fs/cgroup/a",
            "/sys/fs/cgroup/unified/a",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/unified",
        ];
        check("1:cpu:/b\n0::/a/j1\n", &both);
        check("0::/\n", &both[4..]);
        check("1:cpu:/b\n", &[]);
        assert!(!is_to_stand_still(u32::MAX) && !is_to_stand_still(std::process::id()));
    }

    #[test]
    fn what_cannot_be_seen_is_taken_for_dying() {
        assert!(is_dying(0));
        assert!(is_dying(u32::MAX));
        assert!(!is_dying(std::process::id()));
    }

    #[test]
    fn only_locks_and_streams_end_on_any_signal() {
        let check = |operation, ino, expected| {
            let header = Header {
                unique: 2,
                opcode: Opcode(0),
                ino: InodeNo(ino),
                caller: Caller {
                    uid: 0,
                    gid: 0,
                    pid: 1,
                },
            };
            let request = Request { header, operation };
            assert_eq!(OnSignal::of(&request), expected, "{request:?}");
        };
        let lock = |kind, wait| Operation::Setlk {
            request: LockRequest {
                fh: 0,
                owner: 0,
                lock: Lock {
                    start: 0,
                    end: 0,
                    kind,
                    pid: 0,
                },
                flock: false,
            },
            wait,
        };
        let open = || Operation::Open {
            flags: OpenFlags(0),
        };
        check(lock(libc::F_WRLCK, true), 5, OnSignal::Interrupt);
        check(lock(libc::F_UNLCK, true), 5, OnSignal::Detach);
        check(lock(libc::F_WRLCK, false), 5, OnSignal::Detach);
        check(open(), PROC_BASE + 5, OnSignal::Interrupt);
        check(open(), 5, OnSignal::Kill);
        check(Operation::Readlink, PROC_BASE + 5, OnSignal::Kill);
        check(Operation::Release { fh: 1 }, PROC_BASE, OnSignal::Detach);
    }
}
