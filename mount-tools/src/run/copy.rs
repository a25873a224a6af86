//! Carries a job's input and output, each stream by a thread of its own: one that blocks holds up no other.

use super::owner::Line;
use super::say;
use super::terminal::Terminal;
use bytes::Bytes;
use consistency::NodeId;
use gproc::job::protocol::{DATA_BYTES_MAX, INPUT_WINDOW, Stream, ToJob};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Whence, lseek};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest line that is kept together under a label.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Output of one process that is gathered; more ends its output.
const GATHERED_BYTES_MAX: usize = 16 << 20;

/// How often a process in the background looks whether the terminal's input is its own again; nothing tells it.
const FOREGROUND_EVERY: Duration = Duration::from_millis(200);

/// Held while bytes go to descriptor 1 or 2, so that lines of several jobs do not mix.
static WHOLE: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];

/// Reads this process's input for a job, as the job gives credit.
pub(super) struct Input {
    state: Arc<(Mutex<Credit>, Condvar)>,
    /// Returns how much it has read.
    thread: JoinHandle<u64>,
}

enum Credit {
    Bytes(usize),
    /// The job reads no more.
    Closed,
}

impl Input {
    pub(super) fn start(line: Line) -> io::Result<Self> {
        let credit = Mutex::new(Credit::Bytes(INPUT_WINDOW as usize));
        let shared = Arc::new((credit, Condvar::new()));
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("stdin".into())
            .spawn(move || {
                let mut buffer = vec![0; DATA_BYTES_MAX];
                let mut sent = 0;
                while let Some(allowed) = allowed(&state) {
                    let room = &mut buffer[..allowed.min(DATA_BYTES_MAX)];
                    let len = read_input(room).unwrap_or(0);
                    let frame = match len {
                        0 => ToJob::InputEnd,
                        _ => ToJob::Input(Bytes::copy_from_slice(&room[..len])),
                    };
                    spend(&state, len);
                    sent += len as u64;
                    if line.send(&frame).is_err() || len == 0 {
                        break;
                    }
                }
                sent
            })?;
        Ok(Self {
            state: shared,
            thread,
        })
    }

    /// Gives back to a file what was read of it beyond the `taken` bytes that the job has read.
    pub(super) fn seek_back(self, taken: u64) {
        self.close();
        let sent = self.thread.join().unwrap_or(taken);
        let unread = i64::try_from(sent.saturating_sub(taken)).unwrap_or(0);
        if unread > 0 {
            // A file that cannot has not said so before.
            lseek(io::stdin().as_fd(), -unread, Whence::SeekCur).ok();
        }
    }

    pub(super) fn add_credit(&self, bytes: u32) {
        if let Credit::Bytes(credit) = &mut *self.lock() {
            *credit += bytes as usize;
        }
        self.state.1.notify_one();
    }

    pub(super) fn close(&self) {
        *self.lock() = Credit::Closed;
        self.state.1.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Credit> {
        self.state.0.lock().expect("no holder panics")
    }
}

/// Waits for credit; `None`: the job reads no more. Waits as long as the job does not read: that is what it is for.
fn allowed(state: &(Mutex<Credit>, Condvar)) -> Option<usize> {
    let mut credit = state.0.lock().expect("no holder panics");
    loop {
        match *credit {
            Credit::Bytes(0) => credit = state.1.wait(credit).expect("no holder panics"),
            Credit::Bytes(bytes) => return Some(bytes),
            Credit::Closed => return None,
        }
    }
}

fn spend(state: &(Mutex<Credit>, Condvar), len: usize) {
    if let Credit::Bytes(credit) = &mut *state.0.lock().expect("no holder panics") {
        *credit -= len;
    }
}

/// Reads straight from descriptor 0, without a buffer that could hold bytes back; waits also where somebody has made
/// it non-blocking.
pub(super) fn read_input(buffer: &mut [u8]) -> io::Result<usize> {
    let stdin = io::stdin();
    loop {
        match nix::unistd::read(stdin.as_fd(), buffer) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(stdin.as_fd(), PollFlags::POLLIN)?,
            Err(Errno::EIO) if in_background(stdin.as_fd()) => std::thread::sleep(FOREGROUND_EVERY),
            other => return Ok(other?),
        }
    }
}

/// Returns whether the terminal belongs to another process group for now.
fn in_background(terminal: BorrowedFd<'_>) -> bool {
    nix::unistd::tcgetpgrp(terminal).is_ok_and(|foreground| foreground != nix::unistd::getpgrp())
}

fn wait_for(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, what)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Where outputs are gathered instead of written, with the node that they came from.
#[derive(Debug, Default)]
pub(super) struct Sink(Mutex<(Option<NodeId>, Vec<u8>)>);

impl Sink {
    pub(super) fn set_node(&self, node: NodeId) {
        self.lock().0 = Some(node);
    }

    /// Takes what was gathered.
    pub(super) fn take(&self) -> (Option<NodeId>, Vec<u8>) {
        std::mem::take(&mut *self.lock())
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        let gathered = &mut self.lock().1;
        if gathered.len() + bytes.len() > GATHERED_BYTES_MAX {
            let why = format!("more than {} MiB to gather", GATHERED_BYTES_MAX >> 20);
            return Err(io::Error::other(why));
        }
        gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, (Option<NodeId>, Vec<u8>)> {
        self.0.lock().expect("no holder panics")
    }
}

enum Piece {
    Bytes(Bytes),
    /// All before it is to be written now.
    Mark(mpsc::Sender<()>),
}

/// Writes one output of a job, by a thread that its first bytes start: many jobs write nothing.
pub(super) struct Output {
    stream: Stream,
    label: Option<String>,
    sink: Option<Arc<Sink>>,
    screen: Option<Terminal>,
    line: Line,
    running: Option<Running>,
}

struct Running {
    /// Bounded by the credit that the host has: `OUTPUT_WINDOW` bytes.
    pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<()>,
}

impl Output {
    /// Prepares to write to descriptor 1 or 2; with a label in front of each line. `screen`: what it shows on.
    pub(super) fn new(
        stream: Stream,
        label: Option<String>,
        sink: Option<Arc<Sink>>,
        screen: Option<Terminal>,
        line: Line,
    ) -> Self {
        Self {
            stream,
            label,
            sink,
            screen,
            line,
            running: None,
        }
    }

    fn start(&self) -> io::Result<Running> {
        let (pieces, queue) = mpsc::channel::<Piece>();
        let (stream, line) = (self.stream, self.line.clone());
        let mut writer = Writer {
            stream,
            label: self.label.clone(),
            sink: self.sink.clone(),
            screen: self.screen.clone(),
            partial: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                let mut result = Ok(());
                for piece in queue {
                    let bytes = match piece {
                        Piece::Bytes(bytes) => bytes,
                        Piece::Mark(passed) => {
                            passed.send(()).ok();
                            continue;
                        }
                    };
                    result = result.and_then(|()| writer.write(&bytes));
                    let frame = match &result {
                        Ok(()) => ToJob::Credit {
                            stream,
                            bytes: u32::try_from(bytes.len()).expect("pieces are small"),
                        },
                        Err(error) => {
                            tell_unless_closed(stream, error);
                            ToJob::Closed(stream)
                        }
                    };
                    // Where the job is gone there is only the rest to write.
                    line.send(&frame).ok();
                    if result.is_err() {
                        return;
                    }
                }
                writer.finish().ok();
            })?;
        Ok(Running { pieces, thread })
    }

    pub(super) fn push(&mut self, bytes: Bytes) -> io::Result<()> {
        let running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        // Where nobody can be written to any more the job will hear of it.
        running.pieces.send(Piece::Bytes(bytes)).ok();
        self.running = Some(running);
        Ok(())
    }

    /// Waits until all that was pushed is written.
    pub(super) fn flush(&self) {
        let (mark, passed) = mpsc::channel();
        let running = self.running.as_ref();
        let marked = running.is_some_and(|of| of.pieces.send(Piece::Mark(mark)).is_ok());
        if marked {
            passed.recv().ok();
        }
    }

    /// Waits until all is written.
    pub(super) fn finish(self) {
        if let Some(Running { pieces, thread }) = self.running {
            drop(pieces);
            thread.join().ok();
        }
    }
}

fn tell_unless_closed(stream: Stream, error: &io::Error) {
    if error.kind() != io::ErrorKind::BrokenPipe {
        let stream = match stream {
            Stream::Out => "standard output",
            Stream::Err => "standard error",
            Stream::Wire | Stream::Other(_) => unreachable!("it is not written out"),
        };
        say(format_args!("glurun: cannot write to {stream}: {error}"));
    }
}

struct Writer {
    stream: Stream,
    label: Option<String>,
    sink: Option<Arc<Sink>>,
    screen: Option<Terminal>,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl Writer {
    fn write(&mut self, bytes: &Bytes) -> io::Result<()> {
        if let Some(screen) = &self.screen {
            // Jobs with a terminal have no labels.
            return self.put(&screen.to_show(bytes));
        }
        if self.label.is_none() {
            return self.put(bytes);
        }
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LINE_BYTES_MAX {
                self.take_line(&mut lines);
            }
        }
        self.put(&lines)
    }

    fn finish(&mut self) -> io::Result<()> {
        let mut last = Vec::new();
        if !self.partial.is_empty() {
            self.take_line(&mut last);
        }
        self.put(&last)
    }

    fn take_line(&mut self, lines: &mut Vec<u8>) {
        let label = self.label.as_deref().unwrap_or_default();
        lines.extend_from_slice(label.as_bytes());
        lines.append(&mut self.partial);
        if !lines.ends_with(b"\n") {
            lines.push(b'\n');
        }
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(sink) = &self.sink {
            return sink.put(bytes);
        }
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let (fd, whole) = match self.stream {
            Stream::Out => (stdout.as_fd(), &WHOLE[0]),
            Stream::Err => (stderr.as_fd(), &WHOLE[1]),
            Stream::Wire | Stream::Other(_) => unreachable!("it is not written out"),
        };
        let _whole = whole.lock().expect("no holder panics");
        write_all(fd, bytes)
    }
}

/// Writes all, waiting also where somebody has made the descriptor non-blocking.
pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(fd, PollFlags::POLLOUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
