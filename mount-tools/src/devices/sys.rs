//! System calls behind safe functions.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest value of an attribute that is shown.
const VALUE_BYTES_MAX: usize = 1024;
/// `BLKGETSIZE64`.
const DISK_BYTES: libc::c_ulong = 0x8008_1272;
/// `PR_SET_IO_FLUSHER` of Linux 5.6.
const SET_IO_FLUSHER: libc::c_int = 57;

/// What the kernel's driver of network block devices is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum NbdCommand {
    SetSocket = 0xab00,
    SetBlockBytes = 0xab01,
    DoIt = 0xab03,
    SetBlocks = 0xab07,
    Disconnect = 0xab08,
    SetFlags = 0xab0a,
}

/// Tells the driver of network block devices.
pub(super) fn nbd(
    device: BorrowedFd<'_>,
    command: NbdCommand,
    value: libc::c_ulong,
) -> Result<(), Errno> {
    // SAFETY: these commands carry a number each, no address.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), command as libc::c_ulong, value) };
    Errno::result(result).map(drop)
}

/// Returns the size of a disk, be it one of another node.
pub(super) fn disk_bytes(disk: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut bytes = 0_u64;
    let room = std::ptr::from_mut(&mut bytes);
    // SAFETY: the kernel writes 8 bytes, for which `bytes` has room.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), DISK_BYTES, room) };
    Errno::result(result)?;
    Ok(bytes)
}

/// Returns how a disk of another node is claimed.
pub(super) fn disk_claims(disk: BorrowedFd<'_>) -> Result<[u64; 3], Errno> {
    let mut claims = [0_u64; 3];
    // SAFETY: the kernel writes the 24 bytes that the number of the command tells, for which `claims` has room.
    let result = unsafe {
        libc::ioctl(
            disk.as_raw_fd(),
            gdev::DISK_CLAIMS.into(),
            claims.as_mut_ptr(),
        )
    };
    Errno::result(result)?;
    Ok(claims)
}

/// Tells the kernel that this process serves a disk, so that it does not wait for that disk when it wants memory.
pub(super) fn serves_a_disk() {
    let unused: libc::c_ulong = 0;
    let yes: libc::c_ulong = 1;
    // SAFETY: the command carries numbers alone. What it changes is how this process is given memory; a kernel that does not
    // know it, or does not let this user, leaves that as it was.
    unsafe { libc::prctl(SET_IO_FLUSHER, yes, unused, unused, unused) };
}
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

/// Most that an ioctl of a terminal carries.
const CONTROL_BYTES_MAX: usize = 128;

/// Does an ioctl of a terminal of another node, whose number says how much it carries; returns what comes back.
pub(super) fn line_control(
    line: BorrowedFd<'_>,
    command: u32,
    input: &[u8],
    out: usize,
) -> Result<Vec<u8>, Errno> {
    let told = command as usize >> 16 & 0x3fff;
    if told > CONTROL_BYTES_MAX || input.len() > told || out > told {
        return Err(Errno::EINVAL);
    }
    let mut carried = [0_u8; CONTROL_BYTES_MAX];
    carried[..input.len()].copy_from_slice(input);
    let (descriptor, command) = (line.as_raw_fd(), libc::c_ulong::from(command));
    // SAFETY: `carried` lives through the call and has room for what the command's number says; none of the commands of
    // `cuse::ioctls` carries an address.
    let result = unsafe { libc::ioctl(descriptor, command, carried.as_mut_ptr()) };
    Errno::result(result)?;
    Ok(carried[..out].to_vec())
}
