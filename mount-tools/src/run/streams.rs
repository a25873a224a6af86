//! The streams of a job at its owner's end: threads that carry its input and outputs, and what becomes of what it did not read.

use super::copy::{Input, Output, Sink};
use super::fan::Fan;
use super::owner::Line;
use super::peeked::{Peeked, ReadTwice};
use super::terminal::Terminal;
use bytes::Bytes;
use consistency::NodeId;
use gproc::job::protocol::{FromJob, Stdio, Stream};
use gproc::job::terminal::Modes;
use nix::unistd::{Whence, lseek};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The threads that carry a job's streams.
#[derive(Default)]
pub(super) struct Streams {
    terminal: Option<Terminal>,
    input: Option<Input>,
    /// The input is all jobs', and this one's number.
    fan: Option<(u32, Arc<Fan>)>,
    out: Option<Output>,
    err: Option<Output>,
    /// What became of the input.
    left: Option<(u64, Bytes)>,
    /// How the job has left its terminal.
    modes: Option<Modes>,
    /// The job reads the file that is the input.
    file_is_read: bool,
    /// The host tells how much of the input the job has read.
    followed: bool,
    /// The input, if so.
    peeked: Option<Peeked>,
    /// Where it runs.
    pub(super) node: Option<NodeId>,
    /// Its processes that were ended for want of memory.
    pub(super) out_of_memory: u64,
}

impl Streams {
    pub(super) fn new(terminal: Option<Terminal>, fan: Option<(u32, Arc<Fan>)>) -> Self {
        Self {
            terminal,
            fan,
            ..Self::default()
        }
    }

    pub(super) fn start(
        &mut self,
        stdio: &[Stdio; 3],
        label: Option<&str>,
        sink: Option<&Arc<Sink>>,
        line: &Line,
    ) -> io::Result<()> {
        let output = |stream, kind| {
            let label = label.map(str::to_owned);
            let screen = self.terminal.clone();
            (kind == Stdio::Pipe)
                .then(|| Output::new(stream, label, sink.cloned(), screen, line.clone()))
        };
        self.out = output(Stream::Out, stdio[1]);
        self.err = output(Stream::Err, stdio[2]);
        match (&self.terminal, &self.fan) {
            (Some(terminal), _) => terminal.start(line.clone())?,
            (None, Some((vnn, fan))) if stdio[0] == Stdio::Pipe => fan.join(*vnn, line.clone()),
            (None, Some(_)) => {}
            (None, None) if stdio[0] == Stdio::Pipe && self.followed => {
                self.peeked = Some(Peeked::start(line.clone())?);
            }
            (None, None) if stdio[0] == Stdio::Pipe && !self.file_is_read => {
                self.input = Some(Input::start(line.clone())?);
            }
            (None, None) => {}
        }
        Ok(())
    }

    pub(super) fn take(&mut self, frame: FromJob) -> io::Result<()> {
        match frame {
            FromJob::Output { stream, bytes } => {
                let output = match stream {
                    Stream::Out => self.out.as_mut(),
                    Stream::Err => self.err.as_mut(),
                    Stream::Wire | Stream::Other(_) => None,
                };
                if let Some(output) = output {
                    output.push(bytes)?;
                }
            }
            FromJob::InputCredit(bytes) => {
                if let Some(input) = &self.input {
                    input.add_credit(bytes);
                }
                if let Some(peeked) = &self.peeked {
                    peeked.add_credit(bytes);
                }
                if let Some((vnn, fan)) = &self.fan {
                    fan.add_credit(*vnn, bytes);
                }
                if let Some(terminal) = &self.terminal {
                    terminal.add_credit(bytes);
                }
            }
            FromJob::InputClosed => {
                if let Some(input) = &self.input {
                    input.close();
                }
                if let Some(peeked) = &self.peeked {
                    peeked.close();
                }
                if let Some((vnn, fan)) = &self.fan {
                    fan.leave(*vnn);
                }
            }
            FromJob::InputRead(in_all) => {
                self.followed = true;
                if let Some(peeked) = &self.peeked {
                    peeked.read(in_all);
                }
            }
            FromJob::InputLeft { taken, unread } => self.left = Some((taken, unread)),
            FromJob::Modes(modes) => self.modes = Some(modes),
            FromJob::InputFromFile => self.file_is_read = true,
            FromJob::OutOfMemory(processes) => self.out_of_memory = processes,
            FromJob::Ping
            | FromJob::Started { .. }
            | FromJob::Stopped(_)
            | FromJob::Entered { .. }
            | FromJob::Note(_)
            | FromJob::Ended(_)
            | FromJob::Told(_) => {}
        }
        Ok(())
    }

    /// Stops this process, as its job has stopped; returns whether that was possible, once it goes on.
    pub(super) fn stop(&self) -> bool {
        for output in [&self.out, &self.err].into_iter().flatten() {
            output.flush();
        }
        self.terminal.as_ref().is_some_and(Terminal::stop)
    }

    pub(super) fn finish(self, seekable: bool) -> Result<(), ReadTwice> {
        for output in [self.out, self.err].into_iter().flatten() {
            output.finish();
        }
        if let Some(peeked) = self.peeked {
            return peeked.finish(self.left.map(|(taken, _)| taken));
        }
        match (self.terminal, self.input, self.left) {
            (Some(terminal), _, left) => terminal.finish(left, self.modes),
            (None, Some(input), Some((taken, _))) if seekable => input.seek_back(taken),
            (None, None, Some((taken, _))) if self.file_is_read => seek_on(taken),
            _ => {}
        }
        Ok(())
    }
}

/// Moves on in the file at descriptor 0 by what a job has read of it.
fn seek_on(read: u64) {
    // A job may have moved backwards: the difference is then negative.
    lseek(io::stdin().as_fd(), read.cast_signed(), Whence::SeekCur).ok();
}
