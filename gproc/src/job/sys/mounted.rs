//! File systems that are mounted where nobody sees them.

use nix::errno::Errno;
use std::ffi::{CStr, c_char, c_long, c_uint};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The order of fsconfig(2) to make a file system.
const CREATE: c_uint = 6;
/// Of fsopen(2) and fsmount(2): the descriptor is not for programs.
const CLOEXEC: c_uint = 1;

/// Mounts a file system of this kind, as the namespaces of this thread have it; returns its root.
pub(in crate::job) fn mounted(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: takes a C string and a number.
    let context = made(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let nothing = std::ptr::null::<c_char>();
    // SAFETY: takes numbers, and null pointers where this order has nothing to say.
    let result = unsafe {
        let context = context.as_raw_fd();
        libc::syscall(libc::SYS_fsconfig, context, CREATE, nothing, nothing, 0)
    };
    Errno::result(result)?;
    // SAFETY: takes numbers.
    made(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, 0) })
}

fn made(result: c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(result)?).expect("a descriptor is an int");
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
