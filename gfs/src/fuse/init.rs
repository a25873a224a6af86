//! INIT: what the kernel and this daemon agree on when a mount begins.

use super::abi::{MAJOR, MINOR_MAX, MINOR_MIN, Opcode};
use super::device::Device;
use super::mount::MountError;
use super::reply::{Body, Fields};
use super::request::{self, Offer, Operation};
use fuser::InitFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::time::{Duration, Instant};

/// Most bytes of one WRITE.
pub(super) const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Most bytes of one READ or WRITE in pages.
const PAGES_MAX: u16 = 256;
/// Most bytes that the kernel reads ahead.
const READAHEAD_BYTES_MAX: u32 = 1 << 20;
/// Most requests of the kernel's own (read-ahead, write-back) in flight.
const BACKGROUND_MAX: u16 = 64;
/// As many of them make the kernel call the mount congested.
const CONGESTED_AT: u16 = 48;
/// How long INIT may take; the kernel sends it while it mounts.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

const _: () = assert!(WRITE_BYTES_MAX as usize == PAGES_MAX as usize * 4096);

/// What is asked of every kernel, as far as it offers it.
///
/// DONT_MASK goes with POSIX_ACL: where a directory has a default ACL it decides, and the caller's umask does not.
///
/// Left out on purpose: WRITEBACK_CACHE, under which the kernel ignores our sizes and times; AUTO_INVAL_DATA, which
/// drops a node's pages after its own writes; ATOMIC_O_TRUNC, because truncation is a change like others and comes as
/// SETATTR; ASYNC_DIO, under which a process in an O_DIRECT read or write cannot be killed; NO_OPEN_SUPPORT and NO_OPENDIR_SUPPORT: without OPEN there is no RELEASE to give locks back, and without
/// OPENDIR the kernel caches listings, which nothing covers.
const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_SETXATTR_EXT)
    .union(InitFlags::FUSE_INIT_EXT)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);

/// Sends locks to the tree; without these the kernel keeps them to this node.
const LOCKS: InitFlags = InitFlags::FUSE_POSIX_LOCKS.union(InitFlags::FUSE_FLOCK_LOCKS);

/// Answers INIT on a device that has just been mounted.
pub(super) fn negotiate(device: &Device, locks: bool) -> Result<(), MountError> {
    let failed = |source: io::Error| MountError::Init { source };
    wait_readable(device).map_err(failed)?;
    let mut buffer = vec![0; fuser::consts::FUSE_MIN_READ_BUFFER];
    let Some(message) = device.receive(&mut buffer).map_err(failed)? else {
        return Err(failed(io::ErrorKind::ConnectionAborted.into()));
    };
    let malformed = |what: &dyn std::fmt::Display| failed(io::Error::other(what.to_string()));
    let (header, arguments) = request::header(message).map_err(|why| malformed(&why))?;
    let offer = match request::decode(header, arguments) {
        Ok(request::Request {
            operation: Operation::Init(offer),
            ..
        }) => offer,
        Ok(other) => {
            let first = other.header.opcode;
            return Err(malformed(&format_args!("{first:?} came before INIT")));
        }
        Err(refused) => return Err(malformed(&refused.why)),
    };
    debug_assert_eq!(header.opcode, Opcode::INIT);
    let body = answer(offer, locks)?;
    device
        .reply(header.unique, &Ok(Body::Fields(body)))
        .map_err(failed)
}

fn answer(offer: Offer, locks: bool) -> Result<Vec<u8>, MountError> {
    if offer.major != MAJOR || offer.minor < MINOR_MIN {
        return Err(MountError::Protocol {
            major: offer.major,
            minor: offer.minor,
        });
    }
    let wanted = if locks { WANTED.union(LOCKS) } else { WANTED };
    let flags = InitFlags::from_bits_truncate(offer.flags).intersection(wanted);
    let [low, high] = [flags.bits() & u64::from(u32::MAX), flags.bits() >> 32]
        .map(|half| u32::try_from(half).unwrap_or(0));
    let mut fields = Fields::with_capacity(64);
    fields.u32(MAJOR);
    fields.u32(offer.minor.min(MINOR_MAX));
    fields.u32(offer.max_readahead.min(READAHEAD_BYTES_MAX));
    fields.u32(low);
    fields.u16(BACKGROUND_MAX);
    fields.u16(CONGESTED_AT);
    fields.u32(WRITE_BYTES_MAX);
    // Timestamps count in nanoseconds.
    fields.u32(1);
    fields.u16(PAGES_MAX);
    fields.u16(0);
    fields.u32(high);
    fields.0.resize(64, 0);
    Ok(fields.0)
}

fn wait_readable(device: &Device) -> io::Result<()> {
    let until = Instant::now() + INIT_TIMEOUT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(
            &mut [PollFd::new(device.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, minor: u32, flags: InitFlags) -> Offer {
        Offer {
            major,
            minor,
            max_readahead: 131_072,
            flags: flags.bits(),
        }
    }

    fn word(body: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
    }

    #[test]
    fn takes_what_is_offered_and_wanted() {
        let check = |locks, offered: InitFlags, expected: InitFlags| {
            let body = answer(offer(7, 45, offered), locks).expect("a known version");
            let taken = u64::from(word(&body, 12)) | u64::from(word(&body, 32)) << 32;
            assert_eq!(InitFlags::from_bits_retain(taken), expected);
        };
        check(false, InitFlags::empty(), InitFlags::empty());
        check(false, InitFlags::all(), WANTED);
        check(true, InitFlags::all(), WANTED.union(LOCKS));
        check(
            true,
            InitFlags::FUSE_POSIX_LOCKS.union(InitFlags::FUSE_WRITEBACK_CACHE),
            InitFlags::FUSE_POSIX_LOCKS,
        );
    }

    #[test]
    fn speaks_the_older_of_two_versions() {
        let check = |minor, expected| {
            let body = answer(offer(7, minor, WANTED), false).expect("a known version");
            assert_eq!((word(&body, 0), word(&body, 4)), (7, expected));
        };
        check(36, 36);
        check(44, 44);
        check(45, 44);
    }

    #[test]
    fn refuses_versions_it_does_not_speak() {
        for (major, minor) in [(6, 40), (8, 0), (7, 35)] {
            let refused = answer(offer(major, minor, WANTED), false);
            assert!(matches!(refused, Err(MountError::Protocol { .. })));
        }
    }
}
