//! This process's terminal while a job has one like it: raw, so that the job's does all the work, and given back
//! whenever this process stops or ends.
//!
//! Lock order: none but the one mutex, which the thread that reads holds while it reads what is there.

use super::owner::Line;
use super::sys;
use bytes::Bytes;
use gproc::job::protocol::{DATA_BYTES_MAX, INPUT_WINDOW, ToJob};
use gproc::job::terminal::{Modes, Terminal as Like, WindowSize, make_raw};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::{Pid, getpgrp, getsid, tcgetpgrp};
use std::collections::VecDeque;
use std::io::{self, IsTerminal, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How often a process in the background looks whether the terminal is its own again; nothing tells it.
const FOREGROUND_EVERY: Duration = Duration::from_millis(200);

/// The terminal; clones share it.
#[derive(Clone)]
pub(super) struct Terminal {
    own: Arc<(Mutex<Own>, Condvar)>,
}

struct Own {
    /// How it was before, and is to be again.
    modes: Modes,
    raw: bool,
    /// What was typed for the job, the oldest `credited` bytes of all left out.
    typed: VecDeque<u8>,
    credited: u64,
    /// Open until the job has ended.
    reading: Option<PipeWriter>,
}

impl Terminal {
    /// Returns the terminal, if descriptors 0 and 1 are one and the same; those of a job may be forced to be one.
    pub(super) fn find(forced: bool) -> Option<Self> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let same = || {
            let device = |fd| nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_rdev);
            device(stdin.as_fd()) == device(stdout.as_fd())
        };
        if !stdin.is_terminal() || !(forced || stdout.is_terminal() && same()) {
            return None;
        }
        let own = Own {
            modes: Modes::of(stdin.as_fd()).ok()?,
            raw: false,
            typed: VecDeque::new(),
            credited: 0,
            reading: None,
        };
        Some(Self {
            own: Arc::new((Mutex::new(own), Condvar::new())),
        })
    }

    /// Returns what the job's terminal is to be like.
    pub(super) fn like(&self) -> Like {
        Like {
            size: size(),
            modes: self.lock().modes.clone(),
        }
    }

    /// Tells a job of the size as it is now.
    pub(super) fn resized(&self) -> ToJob {
        ToJob::Resize(size())
    }

    /// Starts reading the terminal for a job.
    pub(super) fn start(&self, line: Line) -> io::Result<()> {
        let (stop, reading) = io::pipe()?;
        self.lock().reading = Some(reading);
        self.take();
        let terminal = self.clone();
        std::thread::Builder::new()
            .name("terminal".into())
            .spawn(move || {
                while let Some(typed) = terminal.read(&stop) {
                    // Where the job is gone its end comes next.
                    line.send(&ToJob::Input(typed)).ok();
                }
            })?;
        Ok(())
    }

    /// Makes the terminal raw if it is this process's to use; returns whether it is.
    pub(super) fn take(&self) -> bool {
        let mut own = self.lock();
        if own.reading.is_none() || !in_foreground() {
            return false;
        }
        if !own.raw {
            // Others of the same job may have changed them meanwhile.
            if let Ok(modes) = Modes::of(io::stdin().as_fd()) {
                own.modes = modes;
            }
            own.raw = make_raw(io::stdin().as_fd()).is_ok();
        }
        own.raw
    }

    /// Waits for what is typed; `None`: the job has ended.
    fn read(&self, stop: &PipeReader) -> Option<Bytes> {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        loop {
            let room = self.room()?;
            let stdin = io::stdin();
            let timeout = if self.take() {
                PollTimeout::NONE
            } else {
                PollTimeout::try_from(FOREGROUND_EVERY).expect("is short")
            };
            let typed = PollFd::new(stdin.as_fd(), PollFlags::POLLIN);
            let ended = PollFd::new(stop.as_fd(), PollFlags::POLLIN);
            let mut watched = if timeout.is_none() {
                vec![ended, typed]
            } else {
                vec![ended]
            };
            poll(&mut watched, timeout).ok();
            let mut own = self.lock();
            own.reading.as_ref()?;
            if !own.raw || !in_foreground() {
                continue;
            }
            let room = room.min(buffer.len());
            match nix::unistd::read(stdin.as_fd(), &mut buffer[..room]) {
                // Raw, it does not wait: 0 is nothing yet, or a terminal that has hung up, of which SIGHUP tells.
                Ok(0) if hung_up(&watched) => own.reading = None,
                Ok(0) | Err(Errno::EINTR | Errno::EAGAIN) => {}
                Ok(len) => {
                    own.typed.extend(&buffer[..len]);
                    return Some(Bytes::copy_from_slice(&buffer[..len]));
                }
                Err(_) => own.reading = None,
            }
        }
    }

    /// Waits until the job takes more; `None`: it has ended.
    fn room(&self) -> Option<usize> {
        let mut own = self.lock();
        loop {
            own.reading.as_ref()?;
            match (INPUT_WINDOW as usize).saturating_sub(own.typed.len()) {
                0 => own = self.own.1.wait(own).expect("no holder panics"),
                room => return Some(room),
            }
        }
    }

    /// Notes that the job's terminal has taken so many bytes.
    pub(super) fn add_credit(&self, bytes: u32) {
        let mut own = self.lock();
        let len = own.typed.len().min(bytes as usize);
        own.typed.drain(..len);
        own.credited += len as u64;
        self.own.1.notify_one();
    }

    /// Gives the terminal back as it was.
    pub(super) fn give_back(&self) {
        let mut own = self.lock();
        if std::mem::take(&mut own.raw) {
            own.modes.set(io::stdin().as_fd()).ok();
        }
    }

    /// Returns what to write so that the job's output shows as its own terminal has made it. While this process is in the
    /// background the terminal is not raw, and begins lines anew that the job's has begun already.
    pub(super) fn to_show(&self, bytes: &Bytes) -> Bytes {
        let own = self.lock();
        if own.raw || !begins_lines(&own.modes) {
            return bytes.clone();
        }
        match Modes::of(io::stdin().as_fd()) {
            Ok(now) if begins_lines(&now) => without_returns(bytes),
            _ => bytes.clone(),
        }
    }

    /// Ends the use of the terminal. `left`: how much the job has taken of what was typed, and what it has not read
    /// of that; `modes`: how it has left its own terminal.
    pub(super) fn finish(&self, left: Option<(u64, Bytes)>, modes: Option<Modes>) {
        let mut own = self.lock();
        own.reading = None;
        if own.raw && in_foreground() {
            if let Some(modes) = modes {
                own.modes = modes;
            }
            if let Some((taken, unread)) = left {
                let known = usize::try_from(taken.saturating_sub(own.credited));
                let known = known.unwrap_or(usize::MAX).min(own.typed.len());
                // Raw, the terminal does not echo it a second time.
                sys::type_again(unread.iter().chain(own.typed.range(known..)));
            }
        }
        drop(own);
        self.give_back();
        self.own.1.notify_one();
    }

    /// Stops this process and those it is in a pipeline with, as the terminal would; returns when it goes on.
    ///
    /// Nothing stops where nobody could have it go on.
    pub(super) fn stop(&self) -> bool {
        if getsid(None).is_ok_and(|session| session == getpgrp()) {
            return false;
        }
        self.give_back();
        // This process gets it as well, and knows the sender.
        kill(Pid::from_raw(0), Signal::SIGTSTP).ok();
        raise(Signal::SIGSTOP).ok();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Own> {
        self.own.0.lock().expect("no holder panics")
    }
}

fn size() -> WindowSize {
    WindowSize::of(io::stdin().as_fd()).unwrap_or_default()
}

/// Returns whether a terminal makes a carriage return and a line feed of a line feed.
fn begins_lines(modes: &Modes) -> bool {
    let both = libc::OPOST | libc::ONLCR;
    modes.output & both == both
}

/// Takes back what a terminal has made of line feeds. A pair that comes in two pieces keeps its return, which does not show.
fn without_returns(bytes: &[u8]) -> Bytes {
    let mut left = Vec::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        if byte != b'\r' || bytes.get(at + 1) != Some(&b'\n') {
            left.push(byte);
        }
    }
    left.into()
}

fn in_foreground() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

fn hung_up(watched: &[PollFd<'_>]) -> bool {
    let events = watched.last().and_then(PollFd::revents);
    events.is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_makes_of_line_feeds_is_taken_back() {
        let check = |made: &str, was: &str| {
            assert_eq!(without_returns(made.as_bytes()), was, "{made:?}");
        };
        check("a\r\nb\r\n", "a\nb\n");
        // The program's own returns stay.
        check("a\r\r\n\rb\r", "a\r\n\rb\r");
        check("", "");
    }
}
