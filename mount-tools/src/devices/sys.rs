//! System calls behind safe functions.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest value of an attribute that is shown.
const VALUE_BYTES_MAX: usize = 1024;

/// Returns how a terminal is set, with its speeds as numbers. Unlike tcgetattr(3) this says how much it carries, and so
/// reaches terminals of other nodes.
pub(super) fn modes(terminal: BorrowedFd<'_>) -> Result<libc::termios2, Errno> {
    let mut modes = std::mem::MaybeUninit::<libc::termios2>::zeroed();
    // SAFETY: the kernel writes one termios2, which is what `modes` has room for.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TCGETS2, modes.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: it is filled, and all zero was one, too.
    Ok(unsafe { modes.assume_init() })
}

/// Sets a terminal.
pub(super) fn set_modes(terminal: BorrowedFd<'_>, modes: &libc::termios2) -> Result<(), Errno> {
    let modes = std::ptr::from_ref(modes);
    // SAFETY: the kernel reads one termios2, which is what `modes` points to.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TCSETS2, modes) };
    Errno::result(result).map(drop)
}

/// Returns an extended attribute that is text.
pub(super) fn attribute(path: &Path, name: &CStr) -> Option<String> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0_u8; VALUE_BYTES_MAX];
    let room = value.as_mut_ptr().cast();
    // SAFETY: both strings end with 0, and `value` has the room that is told.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), room, VALUE_BYTES_MAX) };
    value.truncate(usize::try_from(len).ok()?);
    String::from_utf8(value).ok()
}
