//! What stands for a line: who waits for it, and what the kernel is told. Knows no clock and no descriptor.
//!
//! The line itself is opened by the first who opens the device and closed after the last. All that programs set is set
//! there, and the line's node has its discipline: lines, echo and signals are those of its own kernel.
//!
//! | event | the line is open | the line is lost |
//! | --- | --- | --- |
//! | open | counted; the first one opens the line, or fails as that does | counted |
//! | read | what is there; else waits, or EAGAIN | waits, or EAGAIN |
//! | write | what is taken; the rest waits in its turn, or EAGAIN | waits, or EAGAIN |
//! | ioctl of the table | asks for what it carries, then is done by the line | EIO |
//! | another ioctl | ENOTTY | ENOTTY |
//! | poll | what it is ready for; who waits is woken by the next event | nothing |
//! | interrupt of what waits | EINTR, or how much of a write was taken | the same |
//! | the line is ready | reads, writes and polls that wait for it, in their order | |
//! | the line fails | lost: who waits goes on waiting | |
//! | the line is back | as it was set last; reads, writes and polls go on | |
//! | last close | closes the line | |

use super::codec::{self, Ioctl, Range, Request, Unique};
use super::ioctls::{self, Carries, Do};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Upper limit of what waits: more is EAGAIN. Each write has 64 KiB at most.
pub(super) const WAITING_MAX: usize = 64;

/// `POLLIN` and `POLLOUT` with what else means the same.
pub(super) const READS: u32 = 0x41;
pub(super) const WRITES: u32 = 0x104;

/// Why a line does not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not now.
    Again,
    /// It is to be opened anew.
    Lost,
    Errno(i32),
}

/// A line of another node; nothing here waits.
pub(super) trait Wire {
    /// # Errors
    /// An error number.
    fn open(&mut self) -> Result<(), i32>;
    fn close(&mut self);
    fn read(&mut self, size: u32) -> Result<Vec<u8>, Failure>;
    fn write(&mut self, data: &[u8]) -> Result<usize, Failure>;
    /// What it is ready for, as poll(2) tells.
    fn ready(&mut self) -> u32;
    /// How long a read waits at most, if it is set so (VMIN 0, VTIME).
    fn read_within(&mut self) -> Option<Duration>;
}

/// What is to be done beside the core.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// For the kernel.
    Send(Vec<u8>),
    /// To be done at the line; [`Tty::controlled`] is told of it.
    Control {
        unique: Unique,
        what: Do,
        input: Vec<u8>,
        /// How much comes back.
        out: u32,
    },
}

#[derive(Debug)]
struct Read {
    unique: Unique,
    size: u32,
    until: Option<Instant>,
}

#[derive(Debug)]
struct Write {
    unique: Unique,
    data: Vec<u8>,
    taken: usize,
}

#[derive(Debug)]
pub(super) struct Tty {
    name: String,
    opens: usize,
    lost: bool,
    reads: VecDeque<Read>,
    writes: VecDeque<Write>,
    /// Ioctls that are being done, and how many of them nobody waits for any more.
    controls: BTreeSet<Unique>,
    left: usize,
    /// Who polls, and for what.
    polls: BTreeMap<u64, u32>,
    actions: Vec<Action>,
}

impl Tty {
    /// Begins with a device of this name below /dev.
    pub(super) const fn new(name: String) -> Self {
        Self {
            name,
            opens: 0,
            lost: false,
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            controls: BTreeSet::new(),
            left: 0,
            polls: BTreeMap::new(),
            actions: Vec::new(),
        }
    }

    /// Takes a message of the kernel.
    pub(super) fn handle(&mut self, message: &[u8], wire: &mut impl Wire, now: Instant) {
        let Some((unique, request)) = codec::request(message) else {
            return;
        };
        let answer = match request {
            Request::Init { minor } => codec::begun(unique, minor, &self.name),
            Request::Open => match self.open(wire) {
                Ok(()) => codec::opened(unique),
                Err(errno) => codec::failed(unique, errno),
            },
            Request::Release => {
                self.opens = self.opens.saturating_sub(1);
                if self.opens == 0 {
                    self.lost = false;
                    wire.close();
                }
                codec::data(unique, &[])
            }
            Request::Read { size, wait } => return self.read(unique, size, wait, wire, now),
            Request::Write { data, wait } => return self.write(unique, data, wait, wire),
            Request::Ioctl(ioctl) => match self.ioctl(unique, ioctl) {
                Some(answer) => answer,
                None => return,
            },
            Request::Poll {
                handle,
                events,
                wake,
            } => codec::polled(unique, self.poll(handle, events, wake, wire)),
            Request::Interrupt(other) => return self.interrupt(other),
            Request::Unknown => codec::failed(unique, libc::ENOSYS),
            Request::Malformed => codec::failed(unique, libc::EINVAL),
        };
        self.send(answer);
    }

    /// Takes what is to be done, in order.
    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Returns what the line is to be watched for; 0: for nothing.
    pub(super) fn watches(&self) -> u32 {
        if self.lost || self.opens == 0 {
            return 0;
        }
        let polled = self.polls.values().fold(0, |all, events| all | events);
        let mut watched = polled & (READS | WRITES);
        if !self.reads.is_empty() {
            watched |= READS;
        }
        if !self.writes.is_empty() {
            watched |= WRITES;
        }
        watched
    }

    /// Returns when [`Self::ready`] is to be called, whatever the line does.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.reads.iter().filter_map(|read| read.until).min()
    }

    pub(super) const fn is_lost(&self) -> bool {
        self.lost
    }

    /// Something may have happened to the line, or a deadline is over.
    pub(super) fn ready(&mut self, wire: &mut impl Wire, now: Instant) {
        if !self.lost {
            self.go_on_reading(wire);
            self.go_on_writing(wire);
        }
        let over = |read: &Read| read.until.is_some_and(|until| until <= now);
        let ended = self.reads.iter().filter(|read| over(read));
        let ended = Vec::from_iter(ended.map(|read| read.unique));
        self.reads.retain(|read| !over(read));
        for unique in ended {
            self.send(codec::data(unique, &[]));
        }
        if !self.polls.is_empty() && !self.lost {
            let ready = wire.ready();
            self.wake(ready);
        }
    }

    /// An ioctl has been done.
    pub(super) fn controlled(&mut self, unique: Unique, done: Result<Vec<u8>, i32>) {
        if !self.controls.remove(&unique) {
            self.left -= 1;
            return;
        }
        self.send(match done {
            Ok(output) => codec::ioctl(unique, &output),
            Err(errno) => codec::failed(unique, errno),
        });
    }

    /// The line has gone.
    pub(super) const fn lose(&mut self) {
        self.lost = self.opens > 0;
    }

    /// The line is open anew.
    pub(super) fn found(&mut self, wire: &mut impl Wire, now: Instant) {
        self.lost = false;
        self.ready(wire, now);
        // Whoever polled may have missed something.
        self.wake(u32::MAX);
    }

    fn open(&mut self, wire: &mut impl Wire) -> Result<(), i32> {
        if self.opens == 0 {
            wire.open()?;
        }
        self.opens += 1;
        Ok(())
    }

    fn read(&mut self, unique: Unique, size: u32, wait: bool, wire: &mut impl Wire, now: Instant) {
        let read = match self.reads.is_empty() && !self.lost {
            true => wire.read(size),
            false => Err(Failure::Again),
        };
        match read {
            Ok(data) => return self.send(codec::data(unique, &data)),
            Err(Failure::Errno(errno)) => return self.send(codec::failed(unique, errno)),
            Err(Failure::Again) => {}
            Err(Failure::Lost) => self.lose(),
        }
        if !wait || self.reads.len() >= WAITING_MAX {
            return self.send(codec::failed(unique, libc::EAGAIN));
        }
        let within = if self.lost { None } else { wire.read_within() };
        let until = within.map(|within| now + within);
        self.reads.push_back(Read {
            unique,
            size,
            until,
        });
    }

    fn go_on_reading(&mut self, wire: &mut impl Wire) {
        while let Some(Read { unique, size, .. }) = self.reads.front() {
            let (unique, answer) = match wire.read(*size) {
                Ok(data) => (*unique, codec::data(*unique, &data)),
                Err(Failure::Errno(errno)) => (*unique, codec::failed(*unique, errno)),
                Err(Failure::Again) => return,
                Err(Failure::Lost) => return self.lose(),
            };
            self.reads.retain(|read| read.unique != unique);
            self.send(answer);
        }
    }

    fn write(&mut self, unique: Unique, data: &[u8], wait: bool, wire: &mut impl Wire) {
        if !wait {
            let taken = match self.writes.is_empty() && !self.lost {
                true => wire.write(data),
                false => Err(Failure::Again),
            };
            let errno = match taken {
                Ok(taken) => return self.send(codec::written(unique, taken)),
                Err(Failure::Errno(errno)) => errno,
                Err(Failure::Again) => libc::EAGAIN,
                Err(Failure::Lost) => {
                    self.lose();
                    libc::EAGAIN
                }
            };
            return self.send(codec::failed(unique, errno));
        }
        if self.writes.len() >= WAITING_MAX {
            return self.send(codec::failed(unique, libc::EAGAIN));
        }
        let data = data.to_vec();
        self.writes.push_back(Write {
            unique,
            data,
            taken: 0,
        });
        if !self.lost {
            self.go_on_writing(wire);
        }
    }

    fn go_on_writing(&mut self, wire: &mut impl Wire) {
        while let Some(write) = self.writes.front_mut() {
            let rest = &write.data[write.taken..];
            let taken = match rest.is_empty() {
                true => Ok(0),
                false => wire.write(rest),
            };
            let (unique, answer) = match taken {
                Ok(taken) => {
                    write.taken += taken.min(rest.len());
                    if write.taken < write.data.len() {
                        continue;
                    }
                    (write.unique, codec::written(write.unique, write.taken))
                }
                // What was taken is told; the failure comes again with the next write.
                Err(Failure::Errno(_)) if write.taken > 0 => {
                    (write.unique, codec::written(write.unique, write.taken))
                }
                Err(Failure::Errno(errno)) => (write.unique, codec::failed(write.unique, errno)),
                Err(Failure::Again) => return,
                Err(Failure::Lost) => return self.lose(),
            };
            self.writes.retain(|write| write.unique != unique);
            self.send(answer);
        }
    }

    fn ioctl(&mut self, unique: Unique, ioctl: Ioctl<'_>) -> Option<Vec<u8>> {
        let Some((carries, what)) = ioctls::carried(ioctl.command) else {
            return Some(codec::failed(unique, libc::ENOTTY));
        };
        let address = ioctl.argument;
        let (input, out) = match carries {
            Carries::Nothing => (Vec::new(), 0),
            // As an int, which is all that these take.
            Carries::Number => (address.to_le_bytes()[..4].to_vec(), 0),
            Carries::In(bytes) if ioctl.input.len() == bytes as usize => (ioctl.input.to_vec(), 0),
            Carries::In(bytes) => {
                return Some(codec::again(unique, Some(Range { address, bytes }), None));
            }
            Carries::Out(bytes) if ioctl.out == bytes => (Vec::new(), bytes),
            Carries::Out(bytes) => {
                return Some(codec::again(unique, None, Some(Range { address, bytes })));
            }
        };
        if self.lost {
            return Some(codec::failed(unique, libc::EIO));
        }
        if self.controls.len() + self.left >= WAITING_MAX {
            return Some(codec::failed(unique, libc::EAGAIN));
        }
        self.controls.insert(unique);
        self.actions.push(Action::Control {
            unique,
            what,
            input,
            out,
        });
        None
    }

    fn poll(&mut self, handle: u64, events: u32, wake: bool, wire: &mut impl Wire) -> u32 {
        let mut ready = if self.lost { 0 } else { wire.ready() };
        if !self.writes.is_empty() {
            ready &= !WRITES;
        }
        if wake {
            *self.polls.entry(handle).or_default() |= events;
        }
        ready
    }

    /// Wakes who polls for one of these, and who polls for anything when the line fails.
    fn wake(&mut self, ready: u32) {
        let is_for = |events: u32| ready & (events | !(READS | WRITES)) != 0;
        let polls = self.polls.iter();
        let woken = polls.filter(|(_, events)| is_for(**events));
        let woken = Vec::from_iter(woken.map(|(handle, _)| *handle));
        for handle in woken {
            self.polls.remove(&handle);
            self.send(codec::wake(handle));
        }
    }

    fn interrupt(&mut self, unique: Unique) {
        let answer = if let Some(at) = self.reads.iter().position(|read| read.unique == unique) {
            self.reads.remove(at);
            codec::failed(unique, libc::EINTR)
        } else if let Some(at) = self.writes.iter().position(|one| one.unique == unique) {
            match self.writes.remove(at) {
                Some(write) if write.taken > 0 => codec::written(unique, write.taken),
                _ => codec::failed(unique, libc::EINTR),
            }
        } else if self.controls.remove(&unique) {
            self.left += 1;
            codec::failed(unique, libc::EINTR)
        } else {
            // It has been answered meanwhile.
            return;
        };
        self.send(answer);
    }

    fn send(&mut self, message: Vec<u8>) {
        self.actions.push(Action::Send(message));
    }
}

#[cfg(test)]
mod tests;
