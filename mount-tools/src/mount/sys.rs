//! System calls without a safe wrapper: making, changing and attaching a mount.
#![allow(unsafe_code)]

use std::ffi::{CString, c_long};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Flags of a mount to take away, and then to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) clear: u64,
    pub(super) set: u64,
    /// The mount is to be nobody's peer: what is mounted in one of two is not seen in the other.
    pub(super) private: bool,
}

/// Returns a new mount of the directory, attached nowhere.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub(super) fn copy_of_mount(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    // SAFETY: open_tree reads an empty string that ends in NUL; the descriptor is open.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            directory.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    let fd = checked(fd).and_then(|fd| {
        RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    })?;
    // SAFETY: the kernel has just returned this descriptor to this caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Changes the flags of the mount whose root is `mount`.
///
/// # Errors
/// EBUSY if it is to be read-only and files are open for writing.
pub(super) fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    let Attributes {
        clear,
        set,
        private,
    } = attributes;
    let request = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: if private { libc::MS_PRIVATE } else { 0 },
        userns_fd: 0,
    };
    // SAFETY: mount_setattr reads an empty string that ends in NUL and one request of the size given.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Attaches a mount that is attached nowhere.
///
/// # Errors
/// ENOENT or ENOTDIR if `point` is no directory.
pub(super) fn attach(mount: BorrowedFd<'_>, point: &Path) -> io::Result<()> {
    let point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: move_mount reads two strings that end in NUL; the descriptor is open.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            point.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

fn checked(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
