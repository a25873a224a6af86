//! Terminals, and the processes that have one.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, setpgid, tcsetpgrp};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// How a child has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::job) enum Change {
    /// It has exited with this status.
    Exited(i32),
    /// A signal has ended it.
    Killed(i32),
    /// A signal has stopped it.
    Stopped(i32),
}

/// Returns the size of a terminal.
pub(in crate::job) fn window_size(terminal: BorrowedFd<'_>) -> io::Result<libc::winsize> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: `size` has room for what the call returns, and outlives it.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    Errno::result(result)?;
    Ok(size)
}

/// Sets the size of a terminal, of which its foreground group is told.
pub(in crate::job) fn set_window_size(
    terminal: BorrowedFd<'_>,
    size: &libc::winsize,
) -> io::Result<()> {
    let size = std::ptr::from_ref(size);
    // SAFETY: `size` is a whole structure and outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, size) };
    Errno::result(result)?;
    Ok(())
}

/// Takes over a descriptor that this program was started with.
pub(in crate::job) fn take_descriptor(number: RawFd) -> OwnedFd {
    // SAFETY: called once, before anything else of this program opens or knows a descriptor. If there is none, every
    // use of it fails.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Closes descriptors 0 to 2 for a program that needs them no more.
pub(in crate::job) fn close_standard_descriptors() {
    for number in 0..=2 {
        // SAFETY: takes a number; nothing of this program reads or writes them any more.
        unsafe { libc::close(number) };
    }
}

/// Has a command run as the foreground process group of `terminal`, and end with its parent.
pub(in crate::job) fn start_in_foreground(command: &mut Command, terminal: OwnedFd) {
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // SIGTTOU is blocked still, which lets a group of the background do this.
        tcsetpgrp(&terminal, getpid())?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only, on data made before.
    unsafe { command.pre_exec(prepare) };
}

/// Waits until a child has stopped or ended.
pub(in crate::job) fn await_child(child: Pid) -> io::Result<Change> {
    loop {
        // SAFETY: all zero is a valid value of this plain structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = child.as_raw().unsigned_abs();
        let what = libc::WEXITED | libc::WSTOPPED;
        // SAFETY: `info` outlives the call.
        let result = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, what) };
        match Errno::result(result) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        // SAFETY: the kernel has filled the fields of SIGCHLD.
        let status = unsafe { info.si_status() };
        return Ok(match info.si_code {
            libc::CLD_EXITED => Change::Exited(status),
            libc::CLD_STOPPED | libc::CLD_TRAPPED => Change::Stopped(status),
            _ => Change::Killed(status),
        });
    }
}

/// Ends this process by a signal, as its program was ended by it.
pub(in crate::job) fn die_by(number: i32) -> ! {
    use nix::sys::resource::{Resource, setrlimit};
    // The program that crashed was not this one.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).ok();
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    SigSet::empty().thread_set_mask().ok();
    // SAFETY: takes a number.
    unsafe { libc::raise(number) };
    std::process::exit(128 + number)
}
