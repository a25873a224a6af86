//! System calls on devices that the standard library and nix do not offer, behind safe functions.
#![allow(unsafe_code)]

use crate::controls::{By, Control};
use crate::wire::session::CONTROL_BYTES_MAX;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Does an ioctl that is carried; returns what comes out.
pub(crate) fn control(
    device: BorrowedFd<'_>,
    control: Control,
    input: &[u8],
) -> Result<Vec<u8>, Errno> {
    // As large as the number of an ioctl can say, whatever this one says.
    let mut carried = vec![0_u8; CONTROL_BYTES_MAX + 1];
    carried[..input.len()].copy_from_slice(input);
    let (descriptor, command) = (device.as_raw_fd(), libc::c_ulong::from(control.command));
    if control.by == By::Value {
        let value = input
            .first_chunk()
            .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
        // SAFETY: the commands of the table that are given a value take none for an address.
        let result = unsafe { libc::ioctl(descriptor, command, libc::c_long::from(value)) };
        return Errno::result(result).map(|_| Vec::new());
    }
    // SAFETY: `carried` lives through the call and is larger than any size that a command's number holds; commands of
    // the table take an address of so many bytes, without addresses in them.
    let result = unsafe { libc::ioctl(descriptor, command, carried.as_mut_ptr()) };
    Errno::result(result)?;
    carried.truncate(control.out);
    Ok(carried)
}

/// Lets the runtime watch a device.
pub(crate) fn watch(device: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and stays the same, until it is dropped with what watches it.
    let watched = unsafe { AsyncFd::register_with_interest(device, interest) };
    Ok(watched?)
}
