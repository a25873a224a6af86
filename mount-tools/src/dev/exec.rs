//! Running a command inside a node as if it had been typed there.
//!
//! The command is a child that this process watches: a pid namespace can only be entered by a new
//! process. It stays in the caller's session and process group, so a terminal's signals reach both;
//! those are not forwarded, signals sent by other processes are.

use super::state::StateDir;
use super::{init, sys};
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status. 126 and 127 also when it could not be run or found, as in a shell.
    Exited(u8),
    /// By this signal.
    Signalled(Signal),
}

impl Ended {
    /// Ends this process as the command ended, so that a caller cannot tell the two apart.
    ///
    /// # Errors
    /// The signal could not be raised.
    pub fn end_alike(self) -> Result<ExitCode> {
        let by = match self {
            Self::Exited(status) => return Ok(ExitCode::from(status)),
            Self::Signalled(by) => by,
        };
        // The core dump that matters is the command's.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).context("give up our core dump")?;
        sys::default_action(by).with_context(|| format!("end by {by}"))?;
        SigSet::from(by)
            .thread_unblock()
            .with_context(|| format!("unblock {by}"))?;
        raise(by).with_context(|| format!("end by {by}"))?;
        // Still here: a signal whose default action ends nobody.
        Ok(ExitCode::from(
            u8::try_from(128 + by as i32).unwrap_or(u8::MAX),
        ))
    }
}

const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// Runs `command` (program and arguments) in the node called `name` and waits for its end.
///
/// This process joins the node's namespaces for good; it must have no other thread.
///
/// # Errors
/// [`UsageError`](super::UsageError): no such node. Else: the node is down, or cannot be entered.
pub fn exec(state: &Path, name: &str, command: &[OsString]) -> Result<Ended> {
    let Some((program, args)) = command.split_first() else {
        bail!("there is no command to run")
    };
    let record = StateDir::find(state)?
        .map(|dir| dir.load())
        .transpose()?
        .flatten();
    let record = record.with_context(|| no_cluster(state))?;
    let node = record.node(name)?;
    let down = || format!("{0} is down: `glu dev start {0}` boots it", node.name());
    let init = node
        .running()
        .with_context(down)?
        .open()?
        .with_context(down)?;

    // Asked before the root changes: the same path may exist inside.
    let directory = env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let path = search_path()?;
    let own =
        sys::pidfd_open(std::process::id().cast_signed()).context("open a pidfd of our own")?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID;
    setns(init.as_fd(), namespaces)
        .with_context(|| format!("enter {} (are you root?)", node.name()))?;

    let mut child = Command::new(program);
    child
        .args(args)
        .env("GLU_NODE", node.number.to_string())
        .env("PATH", path);
    child.current_dir(if directory.is_dir() {
        &directory
    } else {
        Path::new("/")
    });
    let inherited = SigSet::thread_get_mask().context("ask for the blocked signals")?;
    sys::with_signal_mask(&mut child, inherited);
    sys::die_with_parent(&mut child, own.as_raw_fd());
    // Blocked before the child exists, so that none is lost.
    let mut mask: SigSet = FORWARDED.into_iter().collect();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()
        .context("block the signals to forward")?;
    let signals =
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC).context("watch for signals")?;
    match child.spawn() {
        Ok(child) => watch(child, &signals),
        Err(e) => {
            eprintln!("glu dev exec: {}: {e}", program.display());
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            Ok(Ended::Exited(if missing { 127 } else { 126 }))
        }
    }
}

/// Says that there is no cluster and how to get one.
pub(super) fn no_cluster(state: &Path) -> String {
    format!(
        "there is no cluster in {}: `glu dev up` makes one",
        state.display()
    )
}

fn watch(mut child: Child, signals: &SignalFd) -> Result<Ended> {
    let pidfd = sys::pidfd_open(child.id().cast_signed()).context("open a pidfd of the command")?;
    loop {
        let Some(info) = signals.read_signal().context("wait for signals")? else {
            continue;
        };
        if info.ssi_signo == libc::SIGCHLD.cast_unsigned() {
            if let Some(status) = child.try_wait().context("wait for the command")? {
                return ended(status);
            }
        } else if info.ssi_code != libc::SI_KERNEL {
            let signal = Signal::try_from(info.ssi_signo.cast_signed()).context("name a signal")?;
            match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
                // It ended on its own; SIGCHLD comes next.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.with_context(|| format!("forward {signal}"))?,
            }
        }
    }
}

fn ended(status: ExitStatus) -> Result<Ended> {
    if let Some(signal) = status.signal() {
        return Ok(Ended::Signalled(
            Signal::try_from(signal).context("the command ended by a signal")?,
        ));
    }
    let code = status
        .code()
        .context("the command neither exited nor was killed")?;
    Ok(Ended::Exited(
        u8::try_from(code).context("an exit status has eight bits")?,
    ))
}

/// Returns the caller's `PATH` with the directory of this program first.
fn search_path() -> Result<OsString> {
    let own = init::program_dir()?;
    let inherited = env::var_os("PATH");
    let inherited = inherited
        .as_deref()
        .unwrap_or_else(|| OsStr::new("/usr/bin:/bin:/usr/sbin:/sbin"));
    let rest = env::split_paths(inherited).filter(|dir| *dir != own);
    env::join_paths(std::iter::once(own.clone()).chain(rest)).context("build PATH for the command")
}
