//! The system calls that have no safe wrapper in `nix`.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Opens a pidfd of process `pid`.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor (close-on-exec); nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when the process has ended.
pub(super) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as i32,
            null,
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives `which` its default action again; SIGKILL has no other.
pub(super) fn default_action(which: Signal) -> nix::Result<()> {
    // SAFETY: the default action runs no code of ours.
    match unsafe { signal(which, SigHandler::SigDfl) } {
        Ok(_) | Err(Errno::EINVAL) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes the child that `command` starts die with this process.
///
/// `own_pidfd` is a pidfd of this process: the child looks at it after it asked for the signal, so
/// that a parent that died in between is noticed (the parent's pid says nothing across namespaces).
pub(super) fn die_with_parent(command: &mut Command, own_pidfd: RawFd) {
    let ask = move || {
        // SAFETY: PR_SET_PDEATHSIG takes an integer and touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut poll = libc::pollfd {
            fd: own_pidfd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one valid pollfd that lives until the call returns.
        if unsafe { libc::poll(&raw mut poll, 1, 0) } != 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure makes two async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(ask) };
}

/// Lets the child that `command` starts begin with `mask` instead of this thread's blocked signals.
pub(super) fn with_signal_mask(command: &mut Command, mask: SigSet) {
    let set = move || mask.thread_set_mask().map_err(io::Error::from);
    // SAFETY: the closure makes one async-signal-safe call and allocates nothing.
    unsafe { command.pre_exec(set) };
}
