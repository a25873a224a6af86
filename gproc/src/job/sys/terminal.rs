//! Terminals, and the processes that have one.

use super::super::protocol::Credentials;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag};
use nix::unistd::{Gid, Pid, Uid, getpid, setgroups, setpgid, setresgid, setresuid, tcsetpgrp};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
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

/// Types a byte into a terminal, at once: its line discipline has it when this returns. Needs the right `CAP_SYS_ADMIN`.
pub(in crate::job) fn put_typed(terminal: BorrowedFd<'_>, byte: u8) -> io::Result<()> {
    // SAFETY: the call reads one byte, which outlives it.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSTI, &raw const byte) };
    Errno::result(result)?;
    Ok(())
}

/// Opens a terminal once more, for who does not want to wait for it, nor have it.
pub(in crate::job) fn open_again(terminal: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut options = std::fs::File::options();
    let options = options.read(true).write(true);
    let options = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    Ok(options.open(path)?.into())
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

/// Has a command take signals as if its parent blocked none.
pub(in crate::job) fn start_with_signals(command: &mut Command) {
    let prepare = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: the closure makes a system call only.
    unsafe { command.pre_exec(prepare) };
}

/// Closes all descriptors above this one, but one.
pub(in crate::job) fn close_above(but: RawFd, number: RawFd) -> io::Result<()> {
    let but = but.unsigned_abs();
    let ranges = [(number.unsigned_abs() + 1, but - 1), (but + 1, u32::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: takes numbers. Nothing of this program knows these descriptors.
        let result = unsafe { libc::close_range(first, last, 0) };
        Errno::result(result)?;
    }
    Ok(())
}

/// Makes this program, which has one thread, one of a user, which ends with its parent.
pub(in crate::job) fn become_user(user: &Credentials) -> io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    // The change has cleared it.
    Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
}

/// Takes note of a stop of a child that has been told.
pub(in crate::job) fn forget_stop(child: Pid) {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG;
    nix::sys::wait::waitid(Id::Pid(child), flags).ok();
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
