//! System calls on processes that the standard library and nix do not offer, behind safe functions.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of Linux 6.9: the signal goes to the group that the process leads.
const SIGNAL_GROUP: u32 = 1 << 2;

/// Returns a descriptor that stands for the process which has this pid now, and never for a later one.
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and returns a number.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = c_int::try_from(Errno::result(opened)?).expect("a descriptor is an int");
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a process.
pub(crate) fn signal(process: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    send(process, number, 0)
}

/// Sends a signal to the group that a process leads, all of it at once.
pub(crate) fn signal_group(leader: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    send(leader, number, SIGNAL_GROUP)
}

/// Sends a signal to the group that has this number now.
pub(crate) fn signal_group_number(group: i32, number: i32) -> Result<(), Errno> {
    // SAFETY: takes two numbers and returns a number.
    let result = unsafe { libc::killpg(group, number) };
    Errno::result(result).map(drop)
}

/// Lets the runtime watch a process for its end.
pub(crate) fn watch(process: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same as long as the watch owns it.
    let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
    Ok(watched?)
}

/// Returns the wait status of a process that has ended and been waited for; `None`: the kernel does not tell, as
/// before 6.15.
pub(crate) fn exit_status(process: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: the request is the one for this structure, which outlives the call.
    let result = unsafe { libc::ioctl(process.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    let told = Errno::result(result).is_ok() && info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    told.then_some(info.exit_code)
}

fn send(process: BorrowedFd<'_>, number: i32, flags: u32) -> Result<(), Errno> {
    // SAFETY: takes numbers and a null pointer for "as kill(2) does", and returns a number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    Errno::result(result).map(drop)
}
