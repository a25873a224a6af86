//! System calls without a safe wrapper: a file system mounted nowhere.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_long, c_uint};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

const FSOPEN_CLOEXEC: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSMOUNT_CLOEXEC: c_uint = 1;

/// Returns the root of a new mount of `kind` that nobody but the holder of the descriptor sees.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENODEV where the kernel has no such file system.
pub(super) fn detached_mount(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: fsopen reads a string that ends in NUL and outlives the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(context)?;
    // SAFETY: this command of fsconfig takes no key, no value and 0; the descriptor is open.
    let created = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            ptr::null::<u8>(),
            ptr::null::<u8>(),
            0 as c_int,
        )
    };
    if created < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fsmount takes an open descriptor and numbers.
    let mount = unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            0 as c_uint,
        )
    };
    owned(mount)
}

fn owned(result: c_long) -> io::Result<OwnedFd> {
    match c_int::try_from(result) {
        // SAFETY: the kernel has just returned this descriptor to this caller alone.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A handle of the kernel's FUSE: number and generation, which is always 0 here.
#[repr(C)]
struct Handle {
    bytes: c_uint,
    kind: c_int,
    number: [u32; 2],
    generation: u32,
}

/// Type of a [`Handle`] (FILEID_INO64_GEN).
const HANDLE_KIND: c_int = 0x81;
const HANDLE_BYTES: c_uint = 12;

/// Opens (O_PATH) an inode of the FUSE mount that `mount` lies on, by its number.
///
/// # Errors
/// ESTALE if the kernel does not have it in memory.
pub(super) fn open_inode(mount: &impl AsRawFd, number: u64) -> io::Result<OwnedFd> {
    #[allow(clippy::cast_possible_truncation, reason = "both halves")]
    let halves = [(number >> 32) as u32, number as u32];
    let handle = Handle {
        bytes: HANDLE_BYTES,
        kind: HANDLE_KIND,
        number: halves,
        generation: 0,
    };
    // SAFETY: open_by_handle_at reads a handle whose header tells its size; the descriptor is open.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    owned(fd)
}

/// How [`size`] comes to know.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// What the kernel has.
    Cached,
    /// What the file system is asked for.
    Asked,
}

/// Returns the size of an inode in bytes.
///
/// # Errors
/// What the file system answers.
pub(super) fn size(inode: &impl AsRawFd, how: Look) -> io::Result<u64> {
    let sync = match how {
        Look::Cached => libc::AT_STATX_DONT_SYNC,
        Look::Asked => libc::AT_STATX_FORCE_SYNC,
    };
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: statx fills the buffer, which lives through the call; the path is empty and ends in NUL.
    let result = unsafe {
        libc::statx(
            inode.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | sync,
            libc::STATX_SIZE,
            found.as_mut_ptr(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: numbers alone, zeroed before the call.
    Ok(unsafe { found.assume_init() }.stx_size)
}
