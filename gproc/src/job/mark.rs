//! Knows the processes of a job by a variable in their environment, where there are no cgroups.
//!
//! A look at a process waits for its memory, and so perhaps for a file it has mapped: never look from a thread of the
//! runtime (rule J4). Only processes that are younger than the job are looked at.

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// Name of the variable.
const NAME: &str = "GLU_JOB";

/// How often, and after which pauses, a process without an environment is looked at.
const EXEC_LOOKS_MAX: u32 = 20;
const EXEC_PAUSE: Duration = Duration::from_millis(1);

/// The mark of one job.
#[derive(Debug)]
pub(super) struct Mark {
    variable: String,
    /// When it was made, in clock ticks since the machine started.
    since: u64,
}

impl Mark {
    /// Makes a mark; the value must be the job's alone on this machine.
    pub(super) fn new(value: &str) -> io::Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        let per_sec = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
        let since = now.tv_sec() * per_sec + now.tv_nsec() * per_sec / 1_000_000_000;
        Ok(Self {
            variable: format!("{NAME}={value}"),
            since: since.unsigned_abs(),
        })
    }

    /// Returns what is to be in the environment of the job: `NAME=value`.
    pub(super) fn variable(&self) -> &str {
        &self.variable
    }

    /// Kills all processes with this mark, until none is left: they may fork meanwhile.
    pub(super) fn kill_all(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        loop {
            let left = self.holders();
            if left.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                tracing::warn!(mark = self.variable, ?left, "processes of a job do not die");
                return;
            }
            for pid in left {
                // Gone already is as good.
                kill(pid, Signal::SIGKILL).ok();
            }
            std::thread::sleep(EXEC_PAUSE);
        }
    }

    /// Returns the processes with this mark. A zombie has no environment and so is none of them.
    fn holders(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| started(*pid).is_some_and(|at| at >= self.since))
            .filter(|pid| {
                let variables = environment(*pid);
                let mut variables = variables.split(|byte| *byte == 0);
                variables.any(|variable| variable == self.variable.as_bytes())
            })
            .map(Pid::from_raw)
            .collect()
    }
}

/// Returns when a process was started, in clock ticks since the machine started.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; what follows its bracket begins with field 3, and this is field 22.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(22 - 3)?.parse().ok()
}

/// Returns the variables of a process. In the middle of its exec it has none for a moment, so a process without any is
/// looked at again.
fn environment(pid: i32) -> Vec<u8> {
    for _ in 0..EXEC_LOOKS_MAX {
        match fs::read(format!("/proc/{pid}/environ")) {
            Ok(environ) if environ.is_empty() => {}
            Ok(environ) => return environ,
            Err(_) => break,
        }
        // Zombies and threads of the kernel have no program either.
        if fs::read_link(format!("/proc/{pid}/exe")).is_err() {
            break;
        }
        std::thread::sleep(EXEC_PAUSE);
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_daemonised_grandchild_is_found() {
        let mark = Mark::new(&format!("mark-test-{}/0", std::process::id())).expect("clocks");
        assert_eq!(mark.holders(), []);
        let (name, value) = mark.variable().split_once('=').expect("NAME=value");
        let mut shell = Command::new("sh")
            .args(["-c", "setsid sleep 600 & exec sleep 600"])
            .env(name, value)
            .spawn()
            .expect("sh starts");
        let deadline = Instant::now() + Duration::from_secs(60);
        while mark.holders().len() < 2 {
            assert!(Instant::now() < deadline, "waited for two marked processes");
        }
        mark.kill_all(Duration::from_secs(60));
        assert_eq!(mark.holders(), []);
        shell.wait().expect("killed");
    }
}
