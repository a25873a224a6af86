//! A pipe as input of a job elsewhere: sends what is in it, and takes out of it what the job has read (rule J6).
//!
//! tee(2) copies what is in the pipe into one of our own, always from the beginning; what was sent before is skipped there.
//! Of several such commands at one pipe one after the other looks into it: all would see the same.

use super::owner::Line;
use super::sys;
use bytes::{Buf, Bytes};
use gproc::job::peek::{Look, Owner};
use gproc::job::protocol::{INPUT_WINDOW, ToJob};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, SpliceFFlags, fcntl, splice, tee};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

/// What the pipe should hold, so that the job does not wait for what it has read to be taken out: what may be on its way,
/// and as much again for its writer. The kernel lets every user have 1 MiB by default.
const PIPE_BYTES: i32 = 2 * INPUT_WINDOW.cast_signed();

/// Somebody else has taken out of the pipe what the job was sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "another program reads the same pipe at the same time: some of it was read twice or not at all"
)]
pub(super) struct ReadTwice;

/// This process's input for a job.
pub(super) struct Peeked(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Something else than the pipe has changed.
    changed: EventFd,
}

struct Inner {
    account: Owner,
    /// What was sent and not taken out.
    unread: VecDeque<Bytes>,
    copy: (PipeReader, PipeWriter),
    void: File,
    read_twice: bool,
    /// Kept until what was read is taken out: before, the next one would see it again.
    turn: Option<Flock<File>>,
}

enum Next {
    Send(Bytes),
    End,
    Wait,
    Over,
}

/// Returns whether descriptor 0 can be looked into.
pub(super) fn is_pipe() -> bool {
    use nix::sys::stat::fstat;
    fstat(io::stdin()).is_ok_and(|stat| libc::S_IFMT & stat.st_mode == libc::S_IFIFO)
}

impl Peeked {
    pub(super) fn start(line: Line) -> io::Result<Self> {
        let stdin = io::stdin();
        // Where it cannot be larger it is slower.
        let capacity = || fcntl(&stdin, FcntlArg::F_GETPIPE_SZ);
        if capacity()? < PIPE_BYTES {
            fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).ok();
        }
        let copy = io::pipe()?;
        fcntl(&copy.1, FcntlArg::F_SETPIPE_SZ(capacity()?)).ok();
        let inner = Inner {
            account: Owner::default(),
            unread: VecDeque::new(),
            copy,
            void: File::options().write(true).open("/dev/null")?,
            read_twice: false,
            turn: None,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(inner),
            changed: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        });
        let waits = Waits::new(&shared.changed)?;
        let own = Arc::clone(&shared);
        // It ends with this process at the latest: it may wait for its turn, or for input that never comes.
        std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || own.carry(&line, &waits))?;
        Ok(Self(shared))
    }

    pub(super) fn add_credit(&self, bytes: u32) {
        self.0
            .change(|inner| inner.account.add_credit(bytes.into()));
    }

    /// The job reads no more.
    pub(super) fn close(&self) {
        self.0.change(|inner| inner.account.close());
    }

    /// The job has read so much in all.
    pub(super) fn read(&self, in_all: u64) {
        self.0.change(|inner| inner.take_out(in_all));
    }

    /// The job is gone, and has read so much, if that is known.
    pub(super) fn finish(self, in_all: Option<u64>) -> Result<(), ReadTwice> {
        self.close();
        self.read(in_all.unwrap_or(0));
        let mut inner = self.0.lock();
        inner.turn = None;
        if inner.read_twice {
            return Err(ReadTwice);
        }
        Ok(())
    }
}

/// Waits for what changes.
struct Waits(Epoll);

impl Waits {
    /// Each change is told once: a pipe that holds something would be ready for ever.
    fn new(changed: &EventFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let once = || EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        epoll.add(io::stdin(), once())?;
        epoll.add(changed, once())?;
        Ok(Self(epoll))
    }

    fn wait(&self) {
        // What a signal interrupts is looked at again.
        self.0
            .wait(&mut [EpollEvent::empty(); 2], EpollTimeout::NONE)
            .ok();
    }
}

impl Shared {
    fn carry(&self, line: &Line, waits: &Waits) {
        let turn = await_turn();
        self.lock().turn = turn;
        loop {
            let next = self.lock().next();
            let frame = match next {
                Ok(Next::Send(bytes)) => ToJob::Input(bytes),
                Ok(Next::Over) => return,
                Ok(Next::Wait) => {
                    waits.wait();
                    continue;
                }
                Ok(Next::End) | Err(_) => ToJob::InputEnd,
            };
            let last = frame == ToJob::InputEnd;
            if line.send(&frame).is_err() || last {
                return;
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        // Full means that nobody has looked yet.
        self.changed.write(1).ok();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Inner {
    fn next(&mut self) -> io::Result<Next> {
        if self.read_twice {
            return Ok(Next::End);
        }
        if self.account.is_over() {
            return Ok(Next::Over);
        }
        let Some(look) = self.account.look() else {
            return Ok(Next::Wait);
        };
        // In this order: what is written before the last writer goes is seen.
        let no_writer = has_no_writer(io::stdin().as_fd())?;
        let bytes = self.peek(look)?;
        if !bytes.is_empty() {
            self.account.sent(bytes.len() as u64);
            self.unread.push_back(bytes.clone());
            return Ok(Next::Send(bytes));
        }
        if !no_writer {
            return Ok(Next::Wait);
        }
        // What could not be copied at once comes when the job has read what is before it.
        if look.skip < sys::bytes_in(io::stdin().as_fd())? {
            return Ok(Next::Wait);
        }
        self.account.ended();
        Ok(Next::End)
    }

    /// Returns a copy of what is in the pipe there.
    fn peek(&mut self, look: Look) -> io::Result<Bytes> {
        let (skip, len) = (to_usize(look.skip), to_usize(look.len));
        let (reader, writer) = &mut self.copy;
        let copied = match tee(
            io::stdin(),
            &*writer,
            skip + len,
            SpliceFFlags::SPLICE_F_NONBLOCK,
        ) {
            Err(Errno::EAGAIN) => 0,
            other => other?,
        };
        let mut skipped = 0;
        while skipped < skip.min(copied) {
            let rest = skip.min(copied) - skipped;
            skipped += splice(
                &*reader,
                None,
                &self.void,
                None,
                rest,
                SpliceFFlags::empty(),
            )?;
        }
        let mut bytes = vec![0; copied - skipped];
        reader.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }

    /// Takes out of the pipe what the job has read.
    fn take_out(&mut self, in_all: u64) {
        let now = self.account.read(in_all);
        if !self.read_twice && now > 0 {
            self.read_twice = !self.try_take_out(to_usize(now)).unwrap_or(false);
        }
    }

    /// Returns whether it was what was sent.
    fn try_take_out(&mut self, mut len: usize) -> io::Result<bool> {
        let (reader, writer) = &mut self.copy;
        let mut bytes = Vec::new();
        while len > 0 {
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK;
            let taken = splice(io::stdin(), None, &*writer, None, len, flags)?;
            bytes.resize(taken, 0);
            reader.read_exact(&mut bytes)?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let Some(first) = self.unread.front_mut() else {
                    return Ok(false);
                };
                let both = first.len().min(rest.len());
                if first[..both] != rest[..both] {
                    return Ok(false);
                }
                first.advance(both);
                rest = &rest[both..];
                if first.is_empty() {
                    self.unread.pop_front();
                }
            }
            if taken == 0 {
                return Ok(false);
            }
            len -= taken;
        }
        Ok(true)
    }
}

/// Waits until no other such command looks into the pipe. Of a pipe that is another user's nobody can say.
fn await_turn() -> Option<Flock<File>> {
    let mut pipe = sys::open_again(io::stdin().as_fd()).ok()?;
    loop {
        match Flock::lock(pipe, FlockArg::LockExclusive) {
            Ok(turn) => return Some(turn),
            Err((back, Errno::EINTR)) => pipe = back,
            Err(_) => return None,
        }
    }
}

fn has_no_writer(pipe: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    Ok(seen.contains(PollFlags::POLLHUP))
}

/// A pipe holds less than any number that does not fit.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
