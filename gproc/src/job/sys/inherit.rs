//! What a helper program inherits.

use nix::errno::Errno;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has a command enter a cgroup, by its `cgroup.procs`, and keep these descriptors.
pub(in crate::job) fn start_in_group(command: &mut Command, procs: OwnedFd, keep: Vec<RawFd>) {
    let prepare = move || {
        // 0 is who writes.
        nix::unistd::write(&procs, b"0")?;
        for fd in &keep {
            // SAFETY: takes numbers; the child's table of descriptors is its own.
            let result = unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) };
            Errno::result(result)?;
        }
        Ok::<(), io::Error>(())
    };
    // SAFETY: the closure makes system calls only, on data made before.
    unsafe { command.pre_exec(prepare) };
}
