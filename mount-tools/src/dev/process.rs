//! Processes named so that a reused pid cannot be mistaken for them.

use super::sys;
use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// A process of this boot of the host: its pid and when it started (clock ticks since boot).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessId {
    pub(super) pid: i32,
    start_ticks: u64,
}

impl ProcessId {
    /// Names the process that has `pid` now; `None` when there is none, or only a zombie.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start_ticks = parse_start(&stat)?;
        Some(Self { pid, start_ticks })
    }

    /// Returns whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Opens a pidfd; `None` when the process has ended.
    pub(super) fn open(&self) -> Result<Option<OwnedFd>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("open process {}", self.pid)),
        };
        // Compared after the open: from here on the descriptor names this process and no other.
        Ok(self.is_alive().then_some(pidfd))
    }

    /// Kills it, does what it needs to be able to die, and waits for its end.
    ///
    /// # Errors
    /// It is still there at the deadline.
    pub(super) fn kill_then(&self, deadline: Duration, then: impl FnOnce()) -> Result<()> {
        let Some(pidfd) = self.open()? else {
            return Ok(());
        };
        match sys::pidfd_send_signal(pidfd.as_fd(), Signal::SIGKILL) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
            Err(e) => return Err(e).with_context(|| format!("kill process {}", self.pid)),
        }
        then();
        if !wait_end(&pidfd, deadline)? {
            bail!(
                "process {} did not end within {deadline:?} of SIGKILL: see /proc/{}/stack, \
                 and whether a `glu dev exec` into it is stopped",
                self.pid,
                self.pid
            );
        }
        Ok(())
    }
}

/// Waits until the process behind `pidfd` has ended; `false` at the deadline.
fn wait_end(pidfd: &OwnedFd, deadline: Duration) -> Result<bool> {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e).context("wait for the end of a process"),
        }
    }
}

/// Returns the processes whose arguments satisfy `wanted` (the program's name is the first).
pub(super) fn find(wanted: impl Fn(&[&[u8]]) -> bool) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Named before its arguments are read: were the pid reused in between, the name would not fit.
        let Some(process) = ProcessId::of(pid) else {
            continue;
        };
        let Ok(line) = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")) else {
            continue;
        };
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if wanted(&args) {
            found.push(process);
        }
    }
    Ok(found)
}

/// Takes the start time out of `/proc/<pid>/stat`; `None` for a zombie.
fn parse_start(stat: &str) -> Option<u64> {
    // The name may hold spaces and parentheses: only what follows the last one can be split.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[track_caller]
    fn check_start(stat: &str, expected: Option<u64>) {
        assert_eq!(parse_start(stat), expected, "{stat}");
    }

    #[test]
    fn start_times() {
        let tail = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0";
        check_start(&format!("7 (cat) S {tail} 4711 99 1"), Some(4711));
        check_start(&format!("7 (a) b (c)) R {tail} 12 99 1"), Some(12));
        check_start(&format!("7 (cat) Z {tail} 4711 99 1"), None);
        check_start("7 (cat", None);
        check_start("7 (cat) S 1 2", None);
    }

    #[test]
    fn a_killed_process_has_ended() {
        let mut child = Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("start sleep");
        let process = ProcessId::of(child.id().cast_signed()).expect("sleep runs");
        assert!(process.is_alive());
        process
            .kill_then(Duration::from_secs(10), || {})
            .expect("sleep dies of SIGKILL");
        assert!(!process.is_alive(), "a zombie counts as ended");
        child.wait().expect("reap sleep");
        process
            .kill_then(Duration::from_secs(10), || {})
            .expect("killing it again does nothing");
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let own = ProcessId::of(std::process::id().cast_signed()).expect("we run");
        let earlier = ProcessId {
            start_ticks: own.start_ticks.wrapping_sub(1),
            ..own
        };
        assert!(!earlier.is_alive());
        assert!(earlier.open().expect("look at it").is_none());
        earlier
            .kill_then(Duration::from_secs(1), || {})
            .expect("nothing to kill, and we live on");
    }
}
