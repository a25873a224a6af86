//! The pipes of a job that has not the owner's own descriptors, and the tasks that carry bytes between them and
//! the frames, against credit (rule J3).

use super::barrier::{Lines, Said, Seat};
use super::frame::FrameSender;
use super::input::{Input, Reader};
use super::protocol::{
    DATA_BYTES_MAX, FromJob, INPUT_WINDOW, OUTPUT_WINDOW, Request, Stdio, Stream, ToJob,
};
use super::terminal::{Pty, Typing};
use bytes::{Bytes, BytesMut};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// The host's ends of a job's pipes.
pub(super) struct Pipes {
    input: Option<pipe::Sender>,
    out: Option<pipe::Receiver>,
    err: Option<pipe::Receiver>,
    /// Of a terminal.
    typing: Option<Typing>,
}

impl Pipes {
    /// Makes what the request asks for; returns the host's ends and the job's descriptors 0 to 2.
    pub(super) fn new(
        request: &Request,
        pty: Option<&Pty>,
        null: &File,
    ) -> io::Result<(Self, [OwnedFd; 3])> {
        let null = || null.try_clone().map(OwnedFd::from);
        if let Some(pty) = pty {
            return Self::of_terminal(request, pty, null()?);
        }
        let (input, fd0) = match request.stdio[0] {
            Stdio::Null => (None, null()?),
            Stdio::Pipe | Stdio::SameAsOut => {
                let (ours, theirs) = pipe::pipe()?;
                (Some(ours), theirs.into_blocking_fd()?)
            }
        };
        let output = |what| match what {
            Stdio::Null => Ok::<_, io::Error>((None, null()?)),
            Stdio::Pipe | Stdio::SameAsOut => {
                let (theirs, ours) = pipe::pipe()?;
                Ok((Some(ours), theirs.into_blocking_fd()?))
            }
        };
        let (out, fd1) = output(request.stdio[1])?;
        let (err, fd2) = match request.stdio[2] {
            Stdio::SameAsOut => (None, fd1.try_clone()?),
            other => output(other)?,
        };
        let ours = Self {
            input,
            out,
            err,
            typing: None,
        };
        Ok((ours, [fd0, fd1, fd2]))
    }

    /// As [`Self::new`], where descriptors 0 and 1 are a terminal: its other end is read and written like pipes.
    fn of_terminal(
        request: &Request,
        pty: &Pty,
        null: OwnedFd,
    ) -> io::Result<(Self, [OwnedFd; 3])> {
        let (err, fd2) = match request.stdio[2] {
            Stdio::SameAsOut => (None, pty.slave()?),
            Stdio::Null => (None, null),
            Stdio::Pipe => {
                let (theirs, ours) = pipe::pipe()?;
                (Some(ours), theirs.into_blocking_fd()?)
            }
        };
        let ours = Self {
            input: Some(pipe::Sender::from_owned_fd_unchecked(pty.master()?)?),
            out: Some(pipe::Receiver::from_owned_fd_unchecked(pty.master()?)?),
            err,
            typing: Some(pty.typing()),
        };
        Ok((ours, [pty.slave()?, pty.slave()?, fd2]))
    }

    /// Starts carrying. `followed`: the owner is told how much of its input the job has read.
    pub(super) fn start(self, followed: bool, sender: &FrameSender) -> Pumps {
        let reader = match self.typing {
            Some(typing) => Reader::Terminal(typing),
            None => Reader::Pipe { followed },
        };
        let input = self.input.map(|pipe| Input::start(pipe, reader, sender));
        let mut tasks = JoinSet::new();
        let mut output = |stream, pipe: Option<pipe::Receiver>| {
            pipe.map(|pipe| Output::start(stream, pipe, sender, &mut tasks, None))
        };
        Pumps {
            out: output(Stream::Out, self.out),
            err: output(Stream::Err, self.err),
            input,
            wire: None,
            seat: None,
            outputs: tasks,
        }
    }
}

/// The two ends of a job's wire.
pub(super) struct Wire {
    pub(super) ours: WireEnd,
    pub(super) job: OwnedFd,
}

/// The host's end: a socket is read and written as pipes are.
pub(super) struct WireEnd {
    from_job: pipe::Receiver,
    to_job: pipe::Sender,
}

impl Wire {
    pub(super) fn new() -> io::Result<Self> {
        let (ours, job) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = WireEnd {
            from_job: pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?.into())?,
            to_job: pipe::Sender::from_owned_fd_unchecked(ours.into())?,
        };
        let job = job.into();
        Ok(Self { ours, job })
    }
}

/// The running tasks of one job; dropping them ends them.
#[derive(Default)]
pub(super) struct Pumps {
    input: Option<Input>,
    out: Option<Output>,
    err: Option<Output>,
    wire: Option<(Output, WireInput)>,
    /// Where the job is in barriers together with others.
    seat: Option<Weak<Seat>>,
    outputs: JoinSet<()>,
}

/// What the owner writes to the wire.
struct WireInput {
    queue: WireQueue,
    _task: JoinSet<()>,
}

/// What is to be written to a wire.
#[derive(Clone, Debug)]
pub(super) struct WireQueue {
    queue: mpsc::UnboundedSender<Bytes>,
    /// Bytes that the job has not read.
    waiting: Arc<AtomicUsize>,
}

impl WireInput {
    fn start(mut pipe: pipe::Sender) -> Self {
        let (queue, mut pieces) = mpsc::unbounded_channel::<Bytes>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(bytes) = pieces.recv().await {
                // A job that reads no more wants no answers.
                if pipe.write_all(&bytes).await.is_err() {
                    return;
                }
                counted.fetch_sub(bytes.len(), Ordering::Relaxed);
            }
        });
        Self {
            queue: WireQueue { queue, waiting },
            _task: task,
        }
    }
}

impl WireQueue {
    pub(super) fn push(&self, bytes: Bytes) -> Result<(), Violation> {
        if bytes.is_empty() || bytes.len() > DATA_BYTES_MAX {
            return Err(Violation(
                "a piece for the wire of a size that is not allowed",
            ));
        }
        let waiting = self.waiting.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if waiting > INPUT_WINDOW as usize {
            return Err(Violation("more for the wire than the job reads"));
        }
        self.queue.send(bytes).ok();
        Ok(())
    }
}

struct Output {
    credit: Arc<Semaphore>,
    phase: watch::Sender<Phase>,
}

impl Output {
    fn start(
        stream: Stream,
        pipe: pipe::Receiver,
        sender: &FrameSender,
        tasks: &mut JoinSet<()>,
        seat: Option<Arc<Seat>>,
    ) -> Self {
        let credit = Arc::new(Semaphore::new(OUTPUT_WINDOW as usize));
        let (phase, phases) = watch::channel(Phase::Open);
        let pump = OutputPump {
            stream,
            pipe,
            credit: Arc::clone(&credit),
            phases,
            sender: sender.clone(),
            seat,
        };
        tasks.spawn(pump.run());
        Self { credit, phase }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The job may write.
    Open,
    /// All its processes are gone: what the pipe holds is all there will be.
    Last,
    /// The owner has nowhere to write to.
    Closed,
}

/// A frame that no honest owner sends.
#[derive(Debug, thiserror::Error)]
#[error("the owner broke the protocol: {0}")]
pub(super) struct Violation(pub(super) &'static str);

impl Pumps {
    /// Carries what a job writes to its wire, too, and what the owner does. `join`: it is in barriers together with others.
    pub(super) fn start_wire(
        &mut self,
        wire: WireEnd,
        sender: &FrameSender,
        join: impl FnOnce(WireQueue) -> Option<Arc<Seat>>,
    ) {
        let WireEnd { from_job, to_job } = wire;
        let input = WireInput::start(to_job);
        let seat = join(input.queue.clone());
        // The seat is left with the last that the job has said.
        self.seat = seat.as_ref().map(Arc::downgrade);
        let output = Output::start(Stream::Wire, from_job, sender, &mut self.outputs, seat);
        self.wire = Some((output, input));
    }

    /// Takes a frame about input or output. Never waits.
    pub(super) fn take(&mut self, frame: ToJob) -> Result<(), Violation> {
        match frame {
            ToJob::Input(bytes) => {
                let input = self
                    .input
                    .as_mut()
                    .ok_or(Violation("input not asked for"))?;
                input.push(bytes)
            }
            ToJob::InputEnd => {
                let input = self
                    .input
                    .as_mut()
                    .ok_or(Violation("input not asked for"))?;
                input.end();
                Ok(())
            }
            ToJob::Credit { stream, bytes } => {
                let output = self.output(stream).ok_or(Violation("credit for nothing"))?;
                let bytes = bytes as usize;
                if output.credit.available_permits() + bytes > OUTPUT_WINDOW as usize {
                    return Err(Violation("credit for more than was sent"));
                }
                output.credit.add_permits(bytes);
                Ok(())
            }
            ToJob::Closed(stream) => {
                let output = self.output(stream).ok_or(Violation("closed nothing"))?;
                output.phase.send_replace(Phase::Closed);
                Ok(())
            }
            ToJob::Wire(bytes) => {
                let (_, input) = self.wire.as_ref().ok_or(Violation("no wire"))?;
                input.queue.push(bytes)
            }
            ToJob::Passed(token) => {
                if let Some(seat) = self.seat.as_ref().and_then(Weak::upgrade) {
                    seat.pass(token);
                }
                Ok(())
            }
            ToJob::Ping => Ok(()),
            ToJob::Start(_) | ToJob::StartWith(..) => Err(Violation("a second start")),
            ToJob::Resize(_) => Err(Violation("a size where there is no terminal")),
            ToJob::Signal { .. } => Err(Violation("a signal where none is taken")),
            ToJob::Receive(_) | ToJob::Ask { .. } => Err(Violation("a second beginning")),
        }
    }

    /// Tells that all processes of the job are gone.
    pub(super) fn job_is_gone(&self) {
        let wire = self.wire.as_ref().map(|(output, _)| output);
        for output in [self.out.as_ref(), self.err.as_ref(), wire]
            .into_iter()
            .flatten()
        {
            output.phase.send_if_modified(|phase| {
                let open = *phase == Phase::Open;
                if open {
                    *phase = Phase::Last;
                }
                open
            });
        }
    }

    /// Ends the input of a job that is gone; returns how much of it the job has taken, `None` if it had none.
    pub(super) async fn stop_input(&mut self) -> Option<u64> {
        self.input.take()?.stop().await
    }

    /// Waits until all output is sent. Cancel-safe.
    pub(super) async fn outputs_sent(&mut self) {
        while self.outputs.join_next().await.is_some() {}
    }

    fn output(&self, stream: Stream) -> Option<&Output> {
        match stream {
            Stream::Out => self.out.as_ref(),
            Stream::Err => self.err.as_ref(),
            Stream::Wire => self.wire.as_ref().map(|(output, _)| output),
            Stream::Other(_) => None,
        }
    }
}

struct OutputPump {
    stream: Stream,
    pipe: pipe::Receiver,
    credit: Arc<Semaphore>,
    phases: watch::Receiver<Phase>,
    sender: FrameSender,
    seat: Option<Arc<Seat>>,
}

impl OutputPump {
    async fn run(mut self) {
        let mut lines = Lines::default();
        loop {
            let Some(allowed) = self.allowed().await else {
                return;
            };
            let bytes = match self.read(allowed).await {
                Ok(bytes) if !bytes.is_empty() => bytes.freeze(),
                _ => {
                    // What it has said last, without the end of a line.
                    self.say(lines.rest()).await;
                    return;
                }
            };
            self.credit.add_permits(allowed - bytes.len());
            let said = match self.seat {
                Some(_) => lines.take(&bytes),
                None => vec![Said::Other(bytes)],
            };
            if !self.say(said).await {
                return;
            }
        }
    }

    /// Passes on what was read; `false`: nobody takes it any more.
    async fn say(&self, said: Vec<Said>) -> bool {
        for said in said {
            let bytes = match said {
                Said::Other(bytes) => bytes,
                Said::In(bytes) => {
                    self.credit.add_permits(bytes);
                    let to_owner = self.seat.as_ref().and_then(|seat| seat.enter());
                    if let Some((sender, frame)) = to_owner
                        && !sender.send(&frame).await
                    {
                        return false;
                    }
                    continue;
                }
            };
            let output = FromJob::Output {
                stream: self.stream,
                bytes,
            };
            if !self.sender.send(&output).await {
                return false;
            }
        }
        true
    }

    /// Waits for credit and takes what one frame can use; `None`: the owner takes no more.
    async fn allowed(&mut self) -> Option<usize> {
        let first = tokio::select! {
            first = self.credit.acquire() => first.expect("never closed"),
            _ = self.phases.wait_for(|phase| *phase == Phase::Closed) => return None,
        };
        first.forget();
        let more = self.credit.available_permits().min(DATA_BYTES_MAX - 1);
        let more = u32::try_from(more).expect("less than a frame");
        match self.credit.try_acquire_many(more) {
            Ok(permits) => {
                permits.forget();
                Some(1 + more as usize)
            }
            // Nobody else takes credit, so there is as much as was seen.
            Err(_) => Some(1),
        }
    }

    /// Reads up to `allowed` bytes; none: nothing will come any more.
    async fn read(&mut self, allowed: usize) -> io::Result<BytesMut> {
        let mut buffer = BytesMut::with_capacity(allowed);
        loop {
            match *self.phases.borrow_and_update() {
                Phase::Closed => return Ok(BytesMut::new()),
                Phase::Last => {
                    // Straight from the pipe: the runtime may not have heard of the last bytes yet. Nothing there
                    // means the end, even if some process elsewhere was handed the other end.
                    buffer.resize(allowed, 0);
                    let len = match nix::unistd::read(&self.pipe, &mut buffer) {
                        Err(nix::errno::Errno::EAGAIN) => 0,
                        other => other?,
                    };
                    buffer.truncate(len);
                    return Ok(buffer);
                }
                Phase::Open => {}
            }
            let mut limited = (&mut self.pipe).take(allowed as u64);
            tokio::select! {
                read = limited.read_buf(&mut buffer) => {
                    read?;
                    return Ok(buffer);
                }
                changed = self.phases.changed() => {
                    // The sender is dropped only together with this task.
                    changed.ok();
                }
            }
        }
    }
}
