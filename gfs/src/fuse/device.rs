//! One connection to the kernel's FUSE: requests out of it, replies and notifications into it.

use super::abi::OUT_HEADER_BYTES;
use super::reply::Body;
use crate::error::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// An open `/dev/fuse`.
#[derive(Debug)]
pub(super) struct Device(File);

impl Device {
    pub(super) fn open() -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        Ok(Self(file))
    }

    pub(super) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for a request; `None` once the connection is over.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        loop {
            match (&self.0).read(buffer) {
                Ok(len) => return Ok(Some(&buffer[..len])),
                Err(error) => match error.raw_os_error() {
                    // The request was taken back before it was read.
                    Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => {}
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(None),
                    _ => return Err(error),
                },
            }
        }
    }

    /// Sends a reply.
    ///
    /// # Errors
    /// ENOENT: nobody waits for it, the connection was aborted.
    pub(super) fn reply(&self, unique: u64, body: &Result<Body, Errno>) -> io::Result<()> {
        match body {
            Ok(body) => self.send(unique, 0, &[body.as_bytes()]),
            Err(errno) => self.send(unique, -kernel_errno(*errno), &[]),
        }
    }

    /// Sends a notification; blocks until the kernel has carried it out.
    pub(super) fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        self.send(0, code, parts)
    }

    fn send(&self, unique: u64, error: i32, parts: &[&[u8]]) -> io::Result<()> {
        let len = OUT_HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut header = [0; OUT_HEADER_BYTES];
        let short = u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        header[0..4].copy_from_slice(&short.to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..16].copy_from_slice(&unique.to_ne_bytes());
        let mut slices = [IoSlice::new(&[]); 4];
        slices[0] = IoSlice::new(&header);
        let used = parts.len() + 1;
        assert!(used <= slices.len(), "a message has at most three parts");
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        // One message is one write: the kernel takes it whole or not at all.
        let written = (&self.0).write_vectored(&slices[..used])?;
        assert_eq!(written, len, "the kernel takes a message whole");
        Ok(())
    }
}

/// Returns an errno that the kernel accepts in a reply. It leaves a request with any other waiting for ever.
fn kernel_errno(errno: Errno) -> i32 {
    if (1..512).contains(&errno.0) {
        errno.0
    } else {
        tracing::error!(errno = errno.0, "no errno for a reply, sending EIO");
        libc::EIO
    }
}
