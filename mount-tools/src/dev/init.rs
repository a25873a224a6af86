//! Pid 1 of a node: mounts what the node has for itself, supervises glud, reaps orphans.
//!
//! Its end is the node's end. It reports one line on stdout, [`REPORT_OK`] or what went wrong, and
//! logs to stderr, which is the node's log.

use super::host_dir::{self, CLUSTER, RUN};
use super::state::{NodeDir, StateDir};
use super::{mounts, sys};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand of `glu` that runs this.
pub const SUBCOMMAND: &str = "dev-init";
pub(super) const REPORT_OK: &str = "ok";

/// How many pids a node owns; node `k`'s begin at `k` times this.
const PIDS_PER_NODE: u32 = 65_536;
/// The largest value the kernel takes.
const PID_MAX: u32 = 4_194_304;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A glud that ran this long was healthy: the next failure starts counting anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// What init is told.
#[derive(Debug)]
pub struct Options {
    /// The state directory.
    pub state: PathBuf,
    /// The node's number.
    pub node: u16,
    /// The daemon's program.
    pub glud: PathBuf,
}

/// How often glud failed in a row, for whoever waits for the node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failures {
    pub(super) count: u32,
    pub(super) last: String,
}

/// Runs as pid 1 of a node until the node is killed.
///
/// # Errors
/// The node could not be set up; the first line of the error was reported on stdout.
pub fn run(options: &Options) -> Result<Infallible> {
    let dir = StateDir::find(&options.state)?.context("the state directory is gone")?;
    let node = dir.node(options.node);
    let set_up = || -> Result<_> {
        if std::process::id() != 1 {
            bail!("`glu {SUBCOMMAND}` is for `glu dev` alone: it runs as pid 1 of a node");
        }
        nix::unistd::setsid().context("start a session")?;
        // Held as long as the node lives, so that no other cluster's end removes them.
        let held = [
            host_dir::hold(Path::new(CLUSTER))?,
            host_dir::hold(Path::new(RUN))?,
        ];
        set_up_mounts(&node)?;
        set_up_pids(options.node)?;
        Ok(held)
    };
    let _held = set_up().inspect_err(|e| println!("{e:#}"))?;
    println!("{REPORT_OK}");
    // Closes the report's pipe; from here on everything goes to the log.
    nix::unistd::dup2_stdout(std::io::stderr()).context("send stdout to the log")?;
    Supervisor::new(node, options.glud.clone())?.run()
}

fn set_up_mounts(node: &NodeDir) -> Result<()> {
    mounts::enslave_all_but(node.path())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context("mount /proc")?;
    // Shared memory is one machine's, and what lies in it goes with the node: its names have pids of the node in them.
    let shm = Path::new("/dev/shm");
    if shm.is_dir() && !node.path().starts_with(shm) {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("shm"), shm, Some("tmpfs"), flags, Some("mode=1777"))
            .context("mount /dev/shm")?;
    }
    // Before glud mounts anything: as a peer of its source /cluster then follows each of its mounts.
    mounts::bind(&node.cluster(), Path::new(CLUSTER))?;
    mounts::bind(&node.run(), Path::new(RUN))
}

/// Moves the kernel's cursor to the start of the node's pids.
fn set_up_pids(node: u16) -> Result<()> {
    let pid_max = Path::new("/proc/sys/kernel/pid_max");
    let current: u32 = fs::read_to_string(pid_max)?
        .trim()
        .parse()
        .context("read pid_max")?;
    // Older kernels have one pid_max for all namespaces: not lowered for others, never above need.
    if current < PID_MAX {
        fs::write(pid_max, PID_MAX.to_string()).context("raise pid_max")?;
    }
    let last_pid = u32::from(node) * PIDS_PER_NODE - 1;
    fs::write("/proc/sys/kernel/ns_last_pid", last_pid.to_string())
        .context("move the pid cursor (the kernel needs CONFIG_CHECKPOINT_RESTORE)")
}

struct Supervisor {
    node: NodeDir,
    glud: PathBuf,
    children: SignalFd,
    state: Glud,
    failures: u32,
}

enum Glud {
    Running { pid: Pid, since: Instant },
    Waiting { until: Instant },
}

impl Supervisor {
    fn new(node: NodeDir, glud: PathBuf) -> Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().context("block SIGCHLD")?;
        let children = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("watch for ended children")?;
        Ok(Self {
            node,
            glud,
            children,
            state: Glud::Waiting {
                until: Instant::now(),
            },
            failures: 0,
        })
    }

    fn run(mut self) -> Result<Infallible> {
        loop {
            if let Glud::Waiting { until } = self.state
                && until <= Instant::now()
            {
                self.start();
            }
            self.wait_for_children()?;
            self.reap();
        }
    }

    fn start(&mut self) {
        match self.spawn() {
            Ok(pid) => {
                self.state = Glud::Running {
                    pid,
                    since: Instant::now(),
                }
            }
            Err(e) => self.failed(&format!("could not be started: {e:#}"), Duration::ZERO),
        }
    }

    fn spawn(&self) -> Result<Pid> {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.node.log())?;
        let mut command = Command::new(&self.glud);
        command.arg("--config").arg(self.node.config());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        sys::with_signal_mask(&mut command, SigSet::empty());
        let child = command
            .spawn()
            .with_context(|| format!("run {}", self.glud.display()))?;
        // Reaped by `reap` with all the others, hence not through `child`.
        Ok(Pid::from_raw(child.id().cast_signed()))
    }

    /// Sleeps until a child ends or glud is due again.
    fn wait_for_children(&self) -> Result<()> {
        let timeout = match self.state {
            Glud::Running { .. } => PollTimeout::NONE,
            Glud::Waiting { until } => {
                // Rounded up, or the last millisecond would be spent in a busy loop.
                let left =
                    until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(
            &mut [PollFd::new(self.children.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("wait for children"),
        }
        while self
            .children
            .read_signal()
            .context("read SIGCHLD")?
            .is_some()
        {}
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => status,
            };
            let Glud::Running { pid, since } = self.state else {
                continue;
            };
            if status.pid() == Some(pid) {
                self.failed(&describe(status), since.elapsed());
            }
        }
    }

    /// Cleans up after glud and decides when to start it again.
    fn failed(&mut self, how: &str, lived: Duration) {
        self.failures = if lived > HEALTHY_AFTER {
            1
        } else {
            self.failures + 1
        };
        let pause = backoff(self.failures);
        eprintln!("{SUBCOMMAND}: glud {how} after {lived:.1?}; starting it again in {pause:?}");
        let failures = Failures {
            count: self.failures,
            last: how.to_owned(),
        };
        let record = || -> Result<()> {
            for path in [self.node.ready(), self.node.socket()] {
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
            fs::write(self.node.failures(), serde_json::to_vec(&failures)?)?;
            // What a dead glud mounted answers ENOTCONN only; a new one could not mount over it.
            let cluster = self.node.cluster();
            while mounts::is_mounted(&cluster)? {
                umount2(&cluster, MntFlags::MNT_DETACH)?;
            }
            Ok(())
        };
        if let Err(e) = record() {
            eprintln!("{SUBCOMMAND}: clean up after glud: {e:#}");
        }
        self.state = Glud::Waiting {
            until: Instant::now() + pause,
        };
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN
        .saturating_mul(1 << failures.saturating_sub(1).min(16))
        .min(BACKOFF_MAX)
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exited with status {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        other => format!("ended: {other:?}"),
    }
}

/// Returns the failures of the node's glud since the node booted or glud was healthy.
pub(super) fn failures(node: &NodeDir) -> Option<Failures> {
    serde_json::from_slice(&fs::read(node.failures()).ok()?).ok()
}

/// Returns the directory of the running program, for the `PATH` of what runs inside nodes.
pub(super) fn program_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find the path of this program")?;
    Ok(program
        .parent()
        .unwrap_or_else(|| Path::new(OsStr::new("/")))
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::NODES_MAX;

    #[test]
    fn backoff_doubles_up_to_its_bound() {
        assert_eq!(backoff(1), BACKOFF_MIN);
        assert_eq!(backoff(2), BACKOFF_MIN * 2);
        assert_eq!(backoff(5), BACKOFF_MIN * 16);
        assert_eq!(backoff(7), BACKOFF_MAX);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }

    #[test]
    fn pid_ranges_lie_below_the_guard_band() {
        let end = (u32::from(NODES_MAX) + 1) * PIDS_PER_NODE;
        assert!(end <= PID_MAX / 4 * 3);
    }
}
