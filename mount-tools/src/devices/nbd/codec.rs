//! The requests of the kernel's network block device and what they are answered: headers of 28 and 16 bytes, big-endian.
//!
//! | header | then |
//! | --- | --- |
//! | read, write, flush, trim within the disk | is done, and answered under its cookie |
//! | beyond the disk, longer than [`REQUEST_BYTES_MAX`], unknown | EINVAL; what a write carries is passed over |
//! | a write to a disk that is attached to read only | EPERM |
//! | disconnect | the end |
//! | no magic number | the end: where the next request begins is not known |

use std::fmt;

/// A request's header.
pub(super) const HEADER_BYTES: usize = 28;
/// Longest request: the most that the kernel's driver lets through.
pub(super) const REQUEST_BYTES_MAX: u32 = 32 << 20;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// The upper half of the command has flags; none are offered to the kernel.
const COMMAND_MASK: u32 = 0xffff;

/// Names a request until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie(pub(super) [u8; 8]);

/// A piece of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read(Cookie, Extent),
    /// The data follow the header.
    Write(Cookie, Extent),
    Flush(Cookie),
    Trim(Cookie, Extent),
    Disconnect,
    /// Is answered with this error number, when `skip` bytes behind the header are passed over.
    Refused {
        cookie: Cookie,
        errno: i32,
        skip: u32,
    },
}

/// What comes is no request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRequest;

impl fmt::Display for NoRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the kernel sends is no request of a network block device")
    }
}

impl std::error::Error for NoRequest {}

/// The disk as the kernel has been told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) bytes: u64,
    pub(super) read_only: bool,
}

impl Geometry {
    /// Reads a header.
    pub(super) fn request(&self, header: &[u8; HEADER_BYTES]) -> Result<Request, NoRequest> {
        let word = |at: usize| {
            let bytes = header[at..at + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes)
        };
        if word(0) != REQUEST_MAGIC {
            return Err(NoRequest);
        }
        let cookie = Cookie(header[8..16].try_into().expect("eight bytes"));
        let offset = u64::from_be_bytes(header[16..24].try_into().expect("eight bytes"));
        let extent = Extent {
            offset,
            len: word(24),
        };
        let command = word(4) & COMMAND_MASK;
        let skip = if command == 1 { extent.len } else { 0 };
        let refused = |errno| Request::Refused {
            cookie,
            errno,
            skip,
        };
        // A trim carries nothing, however long it is.
        let too_long = matches!(command, 0 | 1) && extent.len > REQUEST_BYTES_MAX;
        let beyond = |end: u64| end > self.bytes;
        let outside = offset.checked_add(extent.len.into()).is_none_or(beyond);
        Ok(match command {
            2 => Request::Disconnect,
            3 => Request::Flush(cookie),
            0 | 1 | 4 if too_long || outside => refused(libc::EINVAL),
            0 => Request::Read(cookie, extent),
            1 | 4 if self.read_only => refused(libc::EPERM),
            1 => Request::Write(cookie, extent),
            4 => Request::Trim(cookie, extent),
            _ => refused(libc::EINVAL),
        })
    }
}

/// Returns the header of an answer; what was read follows it. The kernel knows few error numbers here: others are EIO.
pub(super) fn reply(cookie: Cookie, errno: i32) -> [u8; 16] {
    let errno = match errno {
        0 | libc::EPERM | libc::EIO | libc::ENOMEM | libc::EINVAL | libc::ENOSPC => errno,
        _ => libc::EIO,
    };
    let mut header = [0; 16];
    header[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    header[4..8].copy_from_slice(&errno.to_be_bytes());
    header[8..].copy_from_slice(&cookie.0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: Cookie = Cookie(*b"a cookie");
    const DISK: Geometry = Geometry {
        bytes: 1 << 40,
        read_only: false,
    };

    fn header(command: u32, offset: u64, len: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        header[4..8].copy_from_slice(&command.to_be_bytes());
        header[8..16].copy_from_slice(&COOKIE.0);
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..].copy_from_slice(&len.to_be_bytes());
        header
    }

    const fn refused(errno: i32, skip: u32) -> Request {
        Request::Refused {
            cookie: COOKIE,
            errno,
            skip,
        }
    }

    #[test]
    fn requests() {
        let check = |disk: Geometry, command, offset, len, expected: Request| {
            let request = disk.request(&header(command, offset, len));
            assert_eq!(request, Ok(expected), "{command} at {offset}, {len} bytes");
        };
        let piece = |offset, len| Extent { offset, len };
        check(DISK, 0, 4096, 512, Request::Read(COOKIE, piece(4096, 512)));
        check(DISK, 1, 0, 512, Request::Write(COOKIE, piece(0, 512)));
        check(DISK, 2, 0, 0, Request::Disconnect);
        check(DISK, 3, 0, 0, Request::Flush(COOKIE));
        let all = (1 << 40) - 512;
        check(DISK, 4, all, 512, Request::Trim(COOKIE, piece(all, 512)));
        let long = Request::Trim(COOKIE, piece(0, u32::MAX));
        check(DISK, 4, 0, u32::MAX, long);
        // The flags of a command change nothing.
        check(DISK, 1 << 16, 0, 1, Request::Read(COOKIE, piece(0, 1)));
        // What cannot be is refused, and the next request is found behind what a write carries.
        check(DISK, 0, all, 513, refused(libc::EINVAL, 0));
        check(DISK, 1, all, 513, refused(libc::EINVAL, 513));
        check(DISK, 0, u64::MAX, 2, refused(libc::EINVAL, 0));
        let large = REQUEST_BYTES_MAX + 1;
        check(DISK, 0, 0, large, refused(libc::EINVAL, 0));
        check(DISK, 1, 0, large, refused(libc::EINVAL, large));
        check(DISK, 5, 0, 512, refused(libc::EINVAL, 0));
        check(DISK, 0xffff, 0, 512, refused(libc::EINVAL, 0));
        let read_only = Geometry {
            read_only: true,
            ..DISK
        };
        check(read_only, 1, 0, 512, refused(libc::EPERM, 512));
        check(read_only, 4, 0, 512, refused(libc::EPERM, 0));
        check(read_only, 3, 0, 0, Request::Flush(COOKIE));
        let mut wrong = header(0, 0, 512);
        wrong[3] ^= 1;
        assert_eq!(DISK.request(&wrong), Err(NoRequest));
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            let mut bytes = [0; HEADER_BYTES];
            for byte in &mut bytes {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = seed.to_le_bytes()[0];
            }
            bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            bytes[6] = 0;
            bytes[7] %= 8;
            match DISK.request(&bytes).expect("a request") {
                Request::Read(_, piece) | Request::Write(_, piece) => {
                    assert!(piece.len <= REQUEST_BYTES_MAX);
                    assert!(piece.offset + u64::from(piece.len) <= DISK.bytes);
                }
                Request::Trim(_, piece) => {
                    assert!(piece.offset + u64::from(piece.len) <= DISK.bytes);
                }
                Request::Flush(_) | Request::Disconnect | Request::Refused { .. } => {}
            }
        }
    }

    #[test]
    fn replies() {
        let check = |errno: i32, told: u8| {
            let mut expected = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, told].to_vec();
            expected.extend(COOKIE.0);
            assert_eq!(reply(COOKIE, errno).to_vec(), expected, "{errno}");
        };
        check(0, 0);
        check(libc::ENOSPC, 28);
        check(libc::EIO, 5);
        // What the protocol has no number for is still no success.
        check(libc::ENODEV, 5);
        check(libc::EHOSTDOWN, 5);
    }
}
