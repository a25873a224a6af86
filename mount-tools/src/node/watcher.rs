//! A process beside the daemon that ends the daemon's FUSE connection when the daemon dies.
//!
//! A killed daemon closes its connection when its last thread has ended. But a thread that is telling the kernel to
//! forget waits in the kernel for the mount's requests in flight, and those wait for the daemon: neither would ever
//! end, nor would whoever looks at such a process. The watcher holds the file that aborts the connection and nothing
//! else. It is told by its parent death signal, which comes when the daemon's main thread ends, whatever becomes of
//! the others.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};

/// What makes `glud` a watcher; the daemon's pid follows.
pub const ARGUMENT: &str = "--abort-when-gone";

/// Starts the watcher of a connection. Must be called on the main thread: the watcher goes by its end.
pub(super) fn start(abort: File) -> Result<Child> {
    let program = std::env::current_exe().context("find the path of glud")?;
    Command::new(program)
        .arg(ARGUMENT)
        .arg(std::process::id().to_string())
        .current_dir("/")
        .stdin(Stdio::from(abort))
        .stdout(Stdio::null())
        .spawn()
        .context("start the watcher of the FUSE connection")
}

/// Is the watcher: waits for the end of the daemon `parent`, then aborts the connection behind descriptor 0.
///
/// # Errors
/// Signals cannot be waited for.
pub fn main(parent: u32) -> Result<()> {
    let mut death = SigSet::empty();
    death.add(Signal::SIGTERM);
    for other in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        death.add(other);
    }
    death.thread_block().context("block signals")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).context("ask for the parent death signal")?;
    let gone = || u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent);
    // It may have died before the signal was asked for.
    if !gone() {
        loop {
            let signal = death.wait().context("wait for the end of the daemon")?;
            // An interrupt from a terminal is for the daemon.
            if signal == Signal::SIGTERM {
                break;
            }
        }
    }
    let abort = std::os::fd::AsFd::as_fd(&std::io::stdin())
        .try_clone_to_owned()
        .context("descriptor 0")?;
    // The connection is over if the daemon ended in order.
    drop(File::from(abort).write_all(b"1"));
    Ok(())
}
