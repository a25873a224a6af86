//! System calls on files that the standard library and nix do not offer, behind safe functions. None of them follows a
//! name out of a directory: paths are one name, or `/proc/self/fd/N`.
#![allow(unsafe_code)]

use super::wire::{FileLock, LockKind};
use nix::errno::Errno;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of one getdents64(2): a page of the largest listing.
const DENTS_BYTES: usize = 64 << 10;
/// Where its fields are in a directory entry: `d_off`, `d_reclen`, and the name behind `d_type`.
const DENT_OFF: usize = 8;
const DENT_LEN: usize = 16;
const DENT_NAME: usize = 19;

/// A name in a directory, with where to go on behind it.
pub(super) struct Dent {
    pub(super) name: Vec<u8>,
    pub(super) cookie: i64,
}

/// Returns what is told of a file: of `at` itself if `name` is empty. Never follows a link, nor mounts anything.
pub(super) fn statx(at: BorrowedFd<'_>, name: &CStr) -> Result<libc::statx, Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    let mut told = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `name` ends with NUL and `told` has room; both live through the call.
    let result = unsafe {
        libc::statx(
            at.as_raw_fd(),
            name.as_ptr(),
            flags,
            mask,
            told.as_mut_ptr(),
        )
    };
    Errno::result(result)?;
    // SAFETY: any bytes are numbers, and all of them were set.
    Ok(unsafe { told.assume_init() })
}

/// Reads directory entries from the present position on; none at the end.
pub(super) fn dents(dir: BorrowedFd<'_>) -> Result<Vec<Dent>, Errno> {
    let mut bytes = vec![0_u8; DENTS_BYTES];
    // SAFETY: the kernel writes as many bytes as it is told that there is room for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_raw_fd(),
            bytes.as_mut_ptr(),
            DENTS_BYTES,
        )
    };
    let read = usize::try_from(Errno::result(result)?).map_err(|_| Errno::EIO)?;
    let mut rest = bytes.get(..read).ok_or(Errno::EIO)?;
    let mut entries = Vec::new();
    while let Some((entry, after)) = split_dent(rest) {
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

fn split_dent(bytes: &[u8]) -> Option<(Dent, &[u8])> {
    let cookie = bytes.get(DENT_OFF..DENT_OFF + 8)?.try_into().ok()?;
    let len = bytes.get(DENT_LEN..DENT_LEN + 2)?.try_into().ok()?;
    let (entry, after) = bytes.split_at_checked(u16::from_ne_bytes(len).into())?;
    let name = CStr::from_bytes_until_nul(entry.get(DENT_NAME..)?).ok()?;
    let dent = Dent {
        name: name.to_bytes().to_vec(),
        cookie: i64::from_ne_bytes(cookie),
    };
    Some((dent, after))
}

/// Gives this thread a umask of its own, apart from that of the process.
pub(super) fn own_umask() -> Result<(), Errno> {
    // SAFETY: it takes no address.
    Errno::result(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Sets the umask of this thread, which has called [`own_umask`].
pub(super) fn set_umask(umask: u32) {
    // SAFETY: it takes no address.
    unsafe { libc::umask(umask) };
}

/// Sets the supplementary groups of this thread alone, which libc would set for all.
pub(super) fn set_groups(groups: &[u32]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many numbers as there are.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Sets the effective group of this thread alone.
pub(super) fn set_group(gid: u32) -> Result<(), Errno> {
    const SAME: u32 = u32::MAX;
    // SAFETY: it takes no address.
    let result = unsafe { libc::syscall(libc::SYS_setresgid, SAME, gid, SAME) };
    Errno::result(result).map(drop)
}

/// Sets the effective user of this thread alone, and with it what it may do.
pub(super) fn set_user(uid: u32) -> Result<(), Errno> {
    const SAME: u32 = u32::MAX;
    // SAFETY: it takes no address.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid, SAME) };
    Errno::result(result).map(drop)
}

/// Reads an extended attribute of at most `most` bytes.
pub(super) fn getxattr(path: &CStr, name: &CStr, most: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0_u8; most];
    // SAFETY: both strings end with NUL; the kernel writes as many bytes as there is room for.
    let result = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(size(result)?);
    Ok(value)
}

/// Returns the names of the extended attributes, each with a NUL behind it, in at most `most` bytes.
pub(super) fn listxattr(path: &CStr, most: usize) -> Result<Vec<u8>, Errno> {
    let mut names = vec![0_u8; most];
    let room = names.as_mut_ptr().cast::<c_char>();
    // SAFETY: the path ends with NUL; the kernel writes as many bytes as there is room for.
    let result = unsafe { libc::listxattr(path.as_ptr(), room, names.len()) };
    names.truncate(size(result)?);
    Ok(names)
}

/// Sets an extended attribute; `flags` as in setxattr(2).
pub(super) fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: c_int) -> Result<(), Errno> {
    // SAFETY: both strings end with NUL; the kernel reads as many bytes as there are.
    let result = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            flags,
        )
    };
    Errno::result(result).map(drop)
}

/// Removes an extended attribute.
pub(super) fn removexattr(path: &CStr, name: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings end with NUL.
    let result = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(result).map(drop)
}

fn size(result: isize) -> Result<usize, Errno> {
    usize::try_from(Errno::result(result)?).map_err(|_| Errno::EIO)
}

/// Writes behind the end of a file, wherever that is by now.
pub(super) fn append(file: BorrowedFd<'_>, data: &[u8]) -> Result<usize, Errno> {
    let part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: the kernel reads, and does not write, the bytes of the one part, which live through the call.
    let result =
        unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, 0, libc::RWF_APPEND) };
    size(result)
}

/// Takes or gives back a lock of an open file (not of a process), without waiting: EAGAIN.
pub(super) fn lock(file: BorrowedFd<'_>, lock: FileLock) -> Result<(), Errno> {
    if lock.flock {
        let kind = match lock.kind {
            LockKind::Shared => libc::LOCK_SH,
            LockKind::Exclusive => libc::LOCK_EX,
            LockKind::None => libc::LOCK_UN,
        };
        // SAFETY: it takes no address.
        let result = unsafe { libc::flock(file.as_raw_fd(), kind | libc::LOCK_NB) };
        return Errno::result(result).map(drop);
    }
    let mut range = range(lock)?;
    // SAFETY: `range` lives through the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut range) };
    Errno::result(result).map(drop)
}

/// Returns a lock that is in the way of one by fcntl(2).
pub(super) fn test_lock(file: BorrowedFd<'_>, lock: FileLock) -> Result<Option<FileLock>, Errno> {
    let mut range = range(lock)?;
    // SAFETY: `range` lives through the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    Errno::result(result)?;
    let kind = match c_int::from(range.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => LockKind::Shared,
        _ => LockKind::Exclusive,
    };
    let number = |number: i64| u64::try_from(number).map_err(|_| Errno::EIO);
    Ok(Some(FileLock {
        flock: false,
        start: number(range.l_start)?,
        len: number(range.l_len)?,
        kind,
    }))
}

fn range(lock: FileLock) -> Result<libc::flock, Errno> {
    let kind = match lock.kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
        LockKind::None => libc::F_UNLCK,
    };
    let number = |number: u64| i64::try_from(number).map_err(|_| Errno::EINVAL);
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::EINVAL)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| Errno::EINVAL)?,
        l_start: number(lock.start)?,
        l_len: number(lock.len)?,
        // Open files have no process.
        l_pid: 0,
    })
}

/// Returns bytes as the kernel wants a string; EINVAL if a NUL is among them.
pub(super) fn string(bytes: &[u8]) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}
