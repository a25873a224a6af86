//! What a helper program inherits.

use nix::errno::Errno;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a command keep these descriptors, and go on when it is asked to end as the daemon is.
pub(in crate::job) fn start_deaf(command: &mut Command, keep: Vec<RawFd>) {
    let prepare = move || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: ignoring a signal runs no code.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        keep_open(&keep)
    };
    // SAFETY: the closure makes system calls only, on data made before.
    unsafe { command.pre_exec(prepare) };
}

fn keep_open(keep: &[RawFd]) -> io::Result<()> {
    for fd in keep {
        // SAFETY: takes numbers; the child's table of descriptors is its own.
        let result = unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) };
        Errno::result(result)?;
    }
    Ok(())
}
