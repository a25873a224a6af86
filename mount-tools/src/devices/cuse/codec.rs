//! What the kernel asks a character device in user space (CUSE), and what it is answered: the messages of FUSE, in the
//! machine's own byte order.
//!
//! | what comes | then |
//! | --- | --- |
//! | a request that is known | is done, and answered under its number |
//! | a request that is not | ENOSYS |
//! | less than a header, or less than its request needs | is no request: dropped, for there is nobody to answer; EINVAL |

/// Most that is read or written at a time.
pub(super) const IO_BYTES_MAX: u32 = 64 << 10;
/// Room for any request.
pub(super) const MESSAGE_BYTES_MAX: usize = IO_BYTES_MAX as usize + 4096;
const HEADER_BYTES: usize = 40;
/// The version of FUSE from which on an ioctl may ask for what it needs.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
const UNRESTRICTED_IOCTL: u32 = 1 << 0;
const OPEN_DIRECT_IO: u32 = 1 << 0;
const OPEN_NONSEEKABLE: u32 = 1 << 2;
const IOCTL_RETRY: u32 = 1 << 2;
const POLL_SCHEDULE_NOTIFY: u32 = 1 << 0;
const NOTIFY_POLL: u32 = 1;

/// Names a request until it is answered.
pub(super) type Unique = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    Init {
        minor: u32,
    },
    Open,
    Release,
    Read {
        size: u32,
        wait: bool,
    },
    Write {
        data: &'a [u8],
        wait: bool,
    },
    Ioctl(Ioctl<'a>),
    Poll {
        /// Whom to wake.
        handle: u64,
        events: u32,
        wake: bool,
    },
    /// Whoever asked this does not wait any more.
    Interrupt(Unique),
    Unknown,
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ioctl<'a> {
    pub(super) command: u32,
    /// A number, or the caller's address of what is carried.
    pub(super) argument: u64,
    /// What was brought from there.
    pub(super) input: &'a [u8],
    /// How much may be brought there.
    pub(super) out: u32,
}

/// A range of the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) address: u64,
    pub(super) bytes: u32,
}

/// Reads a request; `None`: it does not even have a number.
pub(super) fn request(message: &[u8]) -> Option<(Unique, Request<'_>)> {
    if message.len() < HEADER_BYTES {
        return None;
    }
    let (header, body) = message.split_at(HEADER_BYTES);
    let unique = Fields(header).u64(8)?;
    let request = parse(Fields(header).u32(4)?, Fields(body));
    Some((unique, request.unwrap_or(Request::Malformed)))
}

fn parse(opcode: u32, body: Fields<'_>) -> Option<Request<'_>> {
    let waits = |flags: u32| flags & libc::O_NONBLOCK.cast_unsigned() == 0;
    Some(match opcode {
        4096 => {
            let minor = body.u32(4)?;
            if body.u32(0)? != MAJOR {
                return None;
            }
            Request::Init { minor }
        }
        14 => Request::Open,
        15 => Request::Read {
            size: body.u32(16)?.min(IO_BYTES_MAX),
            wait: waits(body.u32(32)?),
        },
        16 => Request::Write {
            wait: waits(body.u32(32)?),
            data: body.bytes(40, body.u32(16)?)?,
        },
        18 => Request::Release,
        36 => Request::Interrupt(body.u64(0)?),
        39 => Request::Ioctl(Ioctl {
            command: body.u32(12)?,
            argument: body.u64(16)?,
            input: body.bytes(32, body.u32(24)?)?,
            out: body.u32(28)?,
        }),
        40 => Request::Poll {
            handle: body.u64(8)?,
            events: body.u32(20)?,
            wake: body.u32(16)? & POLL_SCHEDULE_NOTIFY != 0,
        },
        _ => Request::Unknown,
    })
}

/// Numbers at their places.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u32(self, at: usize) -> Option<u32> {
        let bytes = self.bytes(at, 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(self, at: usize) -> Option<u64> {
        let bytes = self.bytes(at, 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn bytes(self, at: usize, len: u32) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(len as usize)?)
    }
}

/// A message to the kernel.
fn message(unique: Unique, error: i32, body: &[u8]) -> Vec<u8> {
    let bytes = u32::try_from(16 + body.len()).expect("short");
    let mut message = bytes.to_ne_bytes().to_vec();
    message.extend(error.to_ne_bytes());
    message.extend(unique.to_ne_bytes());
    message.extend(body);
    message
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().copied().flat_map(u32::to_ne_bytes).collect()
}

/// Answers Init: the name of the device, below /dev.
pub(super) fn begun(unique: Unique, minor: u32, name: &str) -> Vec<u8> {
    let mut body = numbers(&[
        MAJOR,
        minor.min(MINOR),
        0,
        UNRESTRICTED_IOCTL,
        IO_BYTES_MAX,
        IO_BYTES_MAX,
        0,
        0,
    ]);
    body.extend([0; 40]);
    body.extend(format!("DEVNAME={name}\0").bytes());
    message(unique, 0, &body)
}

pub(super) fn opened(unique: Unique) -> Vec<u8> {
    let flags = OPEN_DIRECT_IO | OPEN_NONSEEKABLE;
    message(unique, 0, &numbers(&[0, 0, flags, 0]))
}

pub(super) fn failed(unique: Unique, errno: i32) -> Vec<u8> {
    message(unique, -errno, &[])
}

/// Answers what has nothing to tell, and a read.
pub(super) fn data(unique: Unique, data: &[u8]) -> Vec<u8> {
    message(unique, 0, data)
}

pub(super) fn written(unique: Unique, taken: usize) -> Vec<u8> {
    let taken = u32::try_from(taken).expect("no more than was given");
    message(unique, 0, &numbers(&[taken, 0]))
}

pub(super) fn polled(unique: Unique, ready: u32) -> Vec<u8> {
    message(unique, 0, &numbers(&[ready, 0]))
}

pub(super) fn ioctl(unique: Unique, output: &[u8]) -> Vec<u8> {
    let mut body = numbers(&[0, 0, 0, 0]);
    body.extend(output);
    message(unique, 0, &body)
}

/// Has the kernel ask again, with what is read from there and room for what is written there.
pub(super) fn again(unique: Unique, input: Option<Range>, output: Option<Range>) -> Vec<u8> {
    let count = |range: Option<Range>| u32::from(range.is_some());
    let mut body = numbers(&[0, IOCTL_RETRY, count(input), count(output)]);
    for range in [input, output].into_iter().flatten() {
        body.extend(range.address.to_ne_bytes());
        body.extend(u64::from(range.bytes).to_ne_bytes());
    }
    message(unique, 0, &body)
}

/// Wakes who polls.
pub(super) fn wake(handle: u64) -> Vec<u8> {
    message(0, NOTIFY_POLL.cast_signed(), &handle.to_ne_bytes())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request as the kernel sends it.
    pub(in super::super) fn sent(opcode: u32, unique: Unique, body: &[u8]) -> Vec<u8> {
        let bytes = u32::try_from(HEADER_BYTES + body.len()).expect("short");
        let mut message = numbers(&[bytes, opcode]);
        message.extend(unique.to_ne_bytes());
        message.resize(HEADER_BYTES, 0);
        message.extend(body);
        message
    }

    /// What comes before the data of a read or write, and is all of a read.
    pub(in super::super) fn io(size: u32, flags: i32) -> Vec<u8> {
        numbers(&[1, 0, 0, 0, size, 0, 0, 0, flags.cast_unsigned(), 0])
    }

    pub(in super::super) fn asked(command: u32, argument: u64, input: &[u8], out: u32) -> Vec<u8> {
        let mut body = numbers(&[1, 0, 2, command]);
        body.extend(argument.to_ne_bytes());
        let len = u32::try_from(input.len()).expect("short");
        body.extend(numbers(&[len, out]));
        body.extend(input);
        body
    }

    #[test]
    fn requests() {
        let check = |opcode: u32, body: &[u8], expected: Request<'_>| {
            let message = sent(opcode, 42, body);
            assert_eq!(request(&message), Some((42, expected)));
        };
        check(4096, &numbers(&[7, 37, 0, 1]), Request::Init { minor: 37 });
        check(4096, &numbers(&[8, 0, 0, 1]), Request::Malformed);
        check(14, &numbers(&[2, 0]), Request::Open);
        let wait = true;
        check(15, &io(512, 0), Request::Read { size: 512, wait });
        let large = Request::Read {
            size: IO_BYTES_MAX,
            wait: false,
        };
        check(15, &io(u32::MAX, libc::O_NONBLOCK), large);
        let write = [io(3, libc::O_RDWR), b"abc".to_vec()].concat();
        let data = b"abc";
        check(16, &write, Request::Write { data, wait });
        check(16, &write[..42], Request::Malformed);
        check(18, &[0; 24], Request::Release);
        check(36, &7_u64.to_ne_bytes(), Request::Interrupt(7));
        let ioctl = Ioctl {
            command: 0x5402,
            argument: 0x1000,
            input: b"in",
            out: 9,
        };
        check(39, &asked(0x5402, 0x1000, b"in", 9), Request::Ioctl(ioctl));
        check(39, &asked(0x5402, 0, b"in", 9)[..33], Request::Malformed);
        let poll = numbers(&[1, 0, 5, 0, 1, 0x41]);
        let polls = Request::Poll {
            handle: 5,
            events: 0x41,
            wake: true,
        };
        check(40, &poll, polls);
        check(3, &[], Request::Unknown);
        assert_eq!(request(&[0; HEADER_BYTES - 1]), None);
    }

    #[test]
    fn no_bytes_are_too_strange() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut dice = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..50_000 {
            let len = usize::try_from(dice() % 120).expect("small");
            let mut bytes: Vec<u8> = (0..len).map(|_| dice().to_le_bytes()[0]).collect();
            if let Some(opcode) = bytes.get_mut(4..8) {
                let known = [14, 15, 16, 18, 36, 39, 40, 4096];
                let one = known[usize::try_from(dice() % 8).expect("small")];
                opcode.copy_from_slice(&u32::to_ne_bytes(one));
            }
            if let Some((_, Request::Write { data, .. })) = request(&bytes) {
                assert!(data.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn answers() {
        let check = |message: Vec<u8>, error: i32, unique: u64, body: &[u8]| {
            let len = u32::try_from(16 + body.len()).expect("short");
            let mut expected = [len.to_ne_bytes(), error.to_ne_bytes()].concat();
            expected.extend(unique.to_ne_bytes());
            expected.extend(body);
            assert_eq!(message, expected);
        };
        check(failed(1, libc::EINTR), -libc::EINTR, 1, &[]);
        check(data(2, b"typed"), 0, 2, b"typed");
        check(written(3, 5), 0, 3, &numbers(&[5, 0]));
        check(opened(4), 0, 4, &numbers(&[0, 0, 5, 0]));
        check(polled(5, 0x41), 0, 5, &numbers(&[0x41, 0]));
        let out = [numbers(&[0, 0, 0, 0]), b"out".to_vec()].concat();
        check(ioctl(6, b"out"), 0, 6, &out);
        let range = |address, bytes| Some(Range { address, bytes });
        let ranges = numbers(&[0, 4, 1, 1, 0x1000, 0, 36, 0, 0x2000, 0, 8, 0]);
        check(again(7, range(0x1000, 36), range(0x2000, 8)), 0, 7, &ranges);
        check(
            again(8, None, range(0x2000, 8)),
            0,
            8,
            &numbers(&[0, 4, 0, 1, 0x2000, 0, 8, 0]),
        );
        check(wake(9), 1, 0, &9_u64.to_ne_bytes());
        let begun = begun(10, 37, "glu/node3/ttyS0");
        assert_eq!(begun.len(), 16 + 72 + 24);
        assert!(begun.ends_with(b"\0DEVNAME=glu/node3/ttyS0\0"));
    }
}
