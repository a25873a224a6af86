use super::super::codec::tests::{asked, io, sent};
use super::*;

const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INTERRUPT: u32 = 36;
const IOCTL: u32 = 39;
const POLL: u32 = 40;

#[derive(Debug, Default)]
struct FakeLine {
    is_open: bool,
    refuses: Option<i32>,
    lost: bool,
    typed: Vec<u8>,
    shown: Vec<u8>,
    /// How much more it takes.
    room: usize,
    within: Option<Duration>,
}

impl Wire for FakeLine {
    fn open(&mut self) -> Result<(), i32> {
        self.is_open = self.refuses.is_none();
        self.refuses.map_or(Ok(()), Err)
    }

    fn close(&mut self) {
        self.is_open = false;
    }

    fn read(&mut self, size: u32) -> Result<Vec<u8>, Failure> {
        assert!(self.is_open);
        if self.lost {
            return Err(Failure::Lost);
        }
        let len = self.typed.len().min(size as usize);
        match len {
            0 => Err(Failure::Again),
            _ => Ok(self.typed.drain(..len).collect()),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Failure> {
        assert!(self.is_open);
        if self.lost {
            return Err(Failure::Lost);
        }
        let len = data.len().min(self.room);
        if len == 0 {
            return Err(Failure::Again);
        }
        self.room -= len;
        self.shown.extend(&data[..len]);
        Ok(len)
    }

    fn ready(&mut self) -> u32 {
        let reads = if self.typed.is_empty() { 0 } else { READS };
        let writes = if self.room == 0 { 0 } else { WRITES };
        reads | writes
    }

    fn read_within(&mut self) -> Option<Duration> {
        self.within
    }
}

struct World {
    tty: Tty,
    line: FakeLine,
    now: Instant,
}

impl World {
    /// With the device open once.
    fn new() -> Self {
        let mut world = Self {
            tty: Tty::new("glu/node3/ttyS0".into()),
            line: FakeLine {
                room: 1000,
                ..FakeLine::default()
            },
            now: Instant::now(),
        };
        let opened = world.asks(OPEN, 1, &[0; 8]);
        assert_eq!(opened, [codec::opened(1)]);
        world
    }

    /// Returns what is sent for a request.
    fn asks(&mut self, opcode: u32, unique: Unique, body: &[u8]) -> Vec<Vec<u8>> {
        let message = sent(opcode, unique, body);
        self.tty.handle(&message, &mut self.line, self.now);
        self.sends()
    }

    fn sends(&mut self) -> Vec<Vec<u8>> {
        let actions = self.tty.actions().into_iter();
        let sends = actions.map(|action| match action {
            Action::Send(message) => message,
            action @ Action::Control { .. } => panic!("{action:?}"),
        });
        sends.collect()
    }

    fn ready(&mut self) -> Vec<Vec<u8>> {
        self.tty.ready(&mut self.line, self.now);
        self.sends()
    }

    fn writes(&mut self, unique: Unique, data: &[u8], flags: i32) -> Vec<Vec<u8>> {
        let len = u32::try_from(data.len()).expect("short");
        self.asks(WRITE, unique, &[io(len, flags), data.to_vec()].concat())
    }
}

fn polls(handle: u64, events: u32) -> Vec<u8> {
    let mut body = 1_u64.to_ne_bytes().to_vec();
    body.extend(handle.to_ne_bytes());
    body.extend(1_u32.to_ne_bytes());
    body.extend(events.to_ne_bytes());
    body
}

const NONE: [Vec<u8>; 0] = [];

#[test]
fn reads_wait_in_their_order() {
    let mut world = World::new();
    assert_eq!(world.asks(READ, 2, &io(3, 0)), NONE);
    assert_eq!(world.asks(READ, 3, &io(9, 0)), NONE);
    assert_eq!(world.tty.watches(), READS);
    let nonblock = io(9, libc::O_NONBLOCK);
    let again = [codec::failed(4, libc::EAGAIN)];
    assert_eq!(world.asks(READ, 4, &nonblock), again);
    world.line.typed = b"hello".to_vec();
    // Nobody overtakes who waits.
    assert_eq!(world.asks(READ, 4, &nonblock), again);
    let both = [codec::data(2, b"hel"), codec::data(3, b"lo")];
    assert_eq!(world.ready(), both);
    assert_eq!(world.tty.watches(), 0);
    world.line.typed = b"more".to_vec();
    assert_eq!(world.asks(READ, 5, &nonblock), [codec::data(5, b"more")]);
}

#[test]
fn a_read_that_is_timed_ends_with_nothing() {
    let mut world = World::new();
    world.line.within = Some(Duration::from_millis(500));
    assert_eq!(world.asks(READ, 2, &io(3, 0)), NONE);
    let at = world.tty.deadline().expect("timed");
    assert_eq!(world.ready(), NONE);
    world.now = at;
    assert_eq!(world.ready(), [codec::data(2, &[])]);
    assert_eq!(world.tty.deadline(), None);
}

#[test]
fn writes_wait_for_room() {
    let mut world = World::new();
    world.line.room = 4;
    assert_eq!(world.writes(2, b"abcdef", 0), NONE);
    assert_eq!(world.writes(3, b"ghi", 0), NONE);
    assert_eq!(world.tty.watches(), WRITES);
    world.line.room = 100;
    let again = [codec::failed(4, libc::EAGAIN)];
    assert_eq!(world.writes(4, b"x", libc::O_NONBLOCK), again);
    assert_eq!(world.ready(), [codec::written(2, 6), codec::written(3, 3)]);
    assert_eq!(world.line.shown, b"abcdefghi");
    world.line.room = 2;
    let some = [codec::written(5, 2)];
    assert_eq!(world.writes(5, b"jkl", libc::O_NONBLOCK), some);
}

#[test]
fn interrupts_are_answered() {
    let mut world = World::new();
    let interrupt = |unique: Unique| unique.to_ne_bytes();
    assert_eq!(world.asks(READ, 2, &io(3, 0)), NONE);
    let ended = [codec::failed(2, libc::EINTR)];
    assert_eq!(world.asks(INTERRUPT, 3, &interrupt(2)), ended);
    assert_eq!(world.asks(INTERRUPT, 3, &interrupt(2)), NONE, "once");
    // Nothing that is typed goes to who has gone.
    world.line.typed = b"x".to_vec();
    assert_eq!(world.ready(), NONE);
    world.line.room = 2;
    assert_eq!(world.writes(4, b"abc", 0), NONE);
    assert_eq!(world.writes(6, b"def", 0), NONE);
    assert_eq!(
        world.asks(INTERRUPT, 5, &interrupt(4)),
        [codec::written(4, 2)]
    );
    let ended = [codec::failed(6, libc::EINTR)];
    assert_eq!(world.asks(INTERRUPT, 7, &interrupt(6)), ended);
    let drain = asked(0x5409, 1, &[], 0);
    world
        .tty
        .handle(&sent(IOCTL, 8, &drain), &mut world.line, world.now);
    assert_eq!(world.tty.actions().len(), 1);
    let ended = [codec::failed(8, libc::EINTR)];
    assert_eq!(world.asks(INTERRUPT, 9, &interrupt(8)), ended);
    world.tty.controlled(8, Ok(Vec::new()));
    assert_eq!(world.sends(), NONE, "nobody waits for it");
}

#[test]
fn ioctls_ask_for_what_they_carry() {
    let mut world = World::new();
    let range = Range {
        address: 0x1000,
        bytes: 36,
    };
    let get = world.asks(IOCTL, 2, &asked(0x5401, 0x1000, &[], 0));
    assert_eq!(get, [codec::again(2, None, Some(range))]);
    let set = world.asks(IOCTL, 3, &asked(0x5402, 0x1000, &[], 0));
    assert_eq!(set, [codec::again(3, Some(range), None)]);
    let notty = [codec::failed(4, libc::ENOTTY)];
    assert_eq!(world.asks(IOCTL, 4, &asked(0x540e, 0, &[], 0)), notty);
    let mut does = |command, argument, input: &[u8], out: u32| {
        let message = sent(IOCTL, 5, &asked(command, argument, input, out));
        world.tty.handle(&message, &mut world.line, world.now);
        let mut actions = world.tty.actions();
        assert_eq!(actions.len(), 1);
        world.tty.controlled(5, Err(libc::EIO));
        assert_eq!(
            world.tty.actions(),
            [Action::Send(codec::failed(5, libc::EIO))]
        );
        match actions.remove(0) {
            Action::Control {
                what, input, out, ..
            } => (what, input, out),
            action @ Action::Send(_) => panic!("{action:?}"),
        }
    };
    let nothing = Vec::new;
    assert_eq!(does(0x5401, 0x1000, &[], 36), (Do::GetModes, nothing(), 36));
    let modes = does(0x5403, 0x1000, &[7; 36], 0);
    assert_eq!(modes, (Do::SetModes(0x402c_542c), vec![7; 36], 0));
    let lines = does(0x5415, 0x1000, &[], 4);
    assert_eq!(lines, (Do::As(0x8004_5415), nothing(), 4));
    // A number in the place of an address.
    let flush = does(0x540b, 2, &[], 0);
    assert_eq!(flush, (Do::As(0x4004_540b), vec![2, 0, 0, 0], 0));
    assert_eq!(does(0x5427, 0, &[], 0), (Do::As(0x5427), nothing(), 0));
}

#[test]
fn what_waits_has_a_bound() {
    let mut world = World::new();
    let drain = asked(0x5409, 1, &[], 0);
    let waiting = u64::try_from(WAITING_MAX).expect("small");
    for unique in 10..10 + waiting {
        let message = sent(IOCTL, unique, &drain);
        world.tty.handle(&message, &mut world.line, world.now);
        assert_eq!(world.tty.actions().len(), 1);
    }
    let again = |unique| [codec::failed(unique, libc::EAGAIN)];
    assert_eq!(world.asks(IOCTL, 2, &drain), again(2));
    // One that was given up is done all the same.
    world.asks(INTERRUPT, 3, &10_u64.to_ne_bytes());
    assert_eq!(world.asks(IOCTL, 2, &drain), again(2));
    world.tty.controlled(10, Ok(Vec::new()));
    let message = sent(IOCTL, 2, &drain);
    world.tty.handle(&message, &mut world.line, world.now);
    assert_eq!(world.tty.actions().len(), 1);
    for unique in 100..100 + waiting {
        assert_eq!(world.asks(READ, unique, &io(1, 0)), NONE);
    }
    assert_eq!(world.asks(READ, 4, &io(1, 0)), again(4));
    world.line.room = 0;
    for unique in 200..200 + waiting {
        assert_eq!(world.writes(unique, b"x", 0), NONE);
    }
    assert_eq!(world.writes(5, b"x", 0), again(5));
}

#[test]
fn who_polls_is_woken_by_what_he_polls_for() {
    let mut world = World::new();
    world.line.room = 0;
    assert_eq!(world.asks(POLL, 2, &polls(7, READS)), [codec::polled(2, 0)]);
    assert_eq!(
        world.asks(POLL, 3, &polls(8, WRITES)),
        [codec::polled(3, 0)]
    );
    assert_eq!(world.tty.watches(), READS | WRITES);
    world.line.typed = b"x".to_vec();
    assert_eq!(world.ready(), [codec::wake(7)]);
    assert_eq!(world.tty.watches(), WRITES);
    world.line.room = 1;
    assert_eq!(world.ready(), [codec::wake(8)]);
    assert_eq!(world.tty.watches(), 0, "nobody polls any more");
    let both = [codec::polled(4, READS | WRITES)];
    assert_eq!(world.asks(POLL, 4, &polls(7, READS)), both);
    // Who writes comes after who waits.
    world.line.room = 0;
    assert_eq!(world.writes(5, b"abc", 0), NONE);
    world.line.room = 1;
    let reads = [codec::polled(6, READS)];
    assert_eq!(world.asks(POLL, 6, &polls(7, READS)), reads);
}

#[test]
fn a_lost_line_is_waited_for() {
    let mut world = World::new();
    assert_eq!(world.asks(READ, 2, &io(3, 0)), NONE);
    world.line.lost = true;
    assert_eq!(world.ready(), NONE);
    assert!(world.tty.is_lost());
    assert_eq!(world.tty.watches(), 0);
    assert_eq!(world.writes(3, b"two", 0), NONE);
    let again = [codec::failed(4, libc::EAGAIN)];
    assert_eq!(world.writes(4, b"x", libc::O_NONBLOCK), again);
    assert_eq!(world.asks(POLL, 5, &polls(7, READS)), [codec::polled(5, 0)]);
    let gone = [codec::failed(6, libc::EIO)];
    assert_eq!(world.asks(IOCTL, 6, &asked(0x5415, 0, &[], 4)), gone);
    assert_eq!(world.asks(OPEN, 7, &[0; 8]), [codec::opened(7)]);
    world.line.lost = false;
    world.line.typed = b"abc".to_vec();
    world.tty.found(&mut world.line, world.now);
    let sends = [codec::data(2, b"abc"), codec::written(3, 3), codec::wake(7)];
    assert_eq!(world.sends(), sends);
    assert_eq!(world.line.shown, b"two");
}

#[test]
fn the_line_is_open_as_long_as_the_device_is() {
    let mut world = World::new();
    assert_eq!(world.asks(OPEN, 2, &[0; 8]), [codec::opened(2)]);
    assert_eq!(world.asks(RELEASE, 3, &[0; 24]), [codec::data(3, &[])]);
    assert!(world.line.is_open);
    assert_eq!(world.asks(RELEASE, 4, &[0; 24]), [codec::data(4, &[])]);
    assert!(!world.line.is_open);
    world.line.refuses = Some(libc::EHOSTDOWN);
    let down = [codec::failed(5, libc::EHOSTDOWN)];
    assert_eq!(world.asks(OPEN, 5, &[0; 8]), down);
    // What is not known is answered, too, and what is no message is not.
    let unknown = [codec::failed(6, libc::ENOSYS)];
    assert_eq!(world.asks(3, 6, &[]), unknown);
    let malformed = [codec::failed(7, libc::EINVAL)];
    assert_eq!(world.asks(READ, 7, &[0; 3]), malformed);
    world.tty.handle(&[1, 2, 3], &mut world.line, world.now);
    assert_eq!(world.sends(), NONE);
}
