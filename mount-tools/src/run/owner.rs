//! One job from its owner's side: the request, its descriptors, its frames, its end.

use super::copy::{Input, Output};
use super::signals::Signals;
use super::sys;
use gproc::job::protocol::{
    End, FIRST_BYTES_MAX, FRAME_BYTES_MAX, FromJob, Hello, NodesReply, Request, Stdio, Stream,
    ToJob, frame, read_frame,
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{Mode, fstat, umask};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The device number of `/dev/null`.
const NULL_DEVICE: (u64, u64) = (1, 3);

/// What all jobs of one command have in common.
pub(super) struct Command {
    request: Request,
    /// No descriptors go along: all output comes through this process.
    label: bool,
}

impl Command {
    /// Describes a command that is to run as this process does.
    ///
    /// # Errors
    /// If the working directory is not known any more.
    pub(super) fn new(
        argv: Vec<OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        ignored: u64,
    ) -> io::Result<Self> {
        let cwd = std::env::current_dir()?;
        let mask = umask(Mode::empty());
        umask(mask);
        let env = env.into_iter().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name.into_vec().into()
        });
        Ok(Self {
            request: Request {
                argv: argv.into_iter().map(|arg| arg.into_vec().into()).collect(),
                env: env.collect(),
                cwd: cwd.into_os_string().into_vec().into(),
                umask: mask.bits(),
                ignored,
                stdio: own_stdio(),
                nodes: Vec::new(),
                npid: std::process::id(),
                vnn: 0,
            },
            label: false,
        })
    }

    /// Restricts the nodes to choose from.
    pub(super) fn on(mut self, nodes: Vec<consistency::NodeId>) -> Self {
        self.request.nodes = nodes;
        self
    }

    /// Puts the number of the job in front of each line of output.
    pub(super) fn labelled(mut self, label: bool) -> Self {
        self.label = label;
        self
    }

    /// Runs the job with number `vnn`, the first of which has this process's input, and waits for its end.
    pub(super) fn run(&self, socket: &Path, vnn: u32, signals: &Signals) -> End {
        self.try_run(socket, vnn, signals)
            .unwrap_or_else(|error| End::lost(explain(socket, &error)))
    }

    fn try_run(&self, socket: &Path, vnn: u32, signals: &Signals) -> io::Result<End> {
        let mut request = self.request.clone();
        request.vnn = vnn;
        if vnn > 0 {
            request.stdio[0] = Stdio::Null;
        }
        if self.label && request.stdio[2] == Stdio::SameAsOut {
            // Lines are written whole; what is one file here may stay two pipes there.
            request.stdio[2] = Stdio::Pipe;
        }
        let stream = UnixStream::connect(socket)?;
        let hello = frame(&Hello::Run(Box::new(request.clone())));
        if hello.len() > FIRST_BYTES_MAX {
            return Ok(End::lost("arguments and environment are too long"));
        }
        let line = Line(Arc::new(Mutex::new(stream.try_clone()?)));
        {
            // The job may run before this thread goes on: a signal is to find it, but to wait for the request.
            let first = line.0.lock().expect("no holder panics");
            signals.add(line.clone());
            self.send_hello(&first, &hello, request.stdio[0])?;
        }
        let mut reader = BufReader::with_capacity(FRAME_BYTES_MAX, stream);
        let mut streams = Streams::default();
        while let Some(frame) = read_frame(&mut reader, FRAME_BYTES_MAX)? {
            match frame {
                FromJob::Started { relayed, .. } => {
                    signals.job_runs();
                    if relayed {
                        let label = self.label.then(|| format!("{vnn}: "));
                        streams = Streams::start(&request.stdio, label.as_deref(), &line)?;
                    }
                }
                FromJob::Ended(end) => {
                    streams.finish();
                    return Ok(end);
                }
                other => streams.take(other),
            }
        }
        Ok(End::lost(
            "the daemon of this node has ended, and the job with it",
        ))
    }

    /// Sends the request, with this process's descriptors unless the output is to come through it.
    fn send_hello(&self, mut stream: &UnixStream, hello: &[u8], input: Stdio) -> io::Result<()> {
        if self.label {
            return stream.write_all(hello);
        }
        let null = File::open("/dev/null")?;
        let input = match input {
            Stdio::Null => null.as_raw_fd(),
            Stdio::Pipe | Stdio::SameAsOut => 0,
        };
        send_with_descriptors(stream, hello, [input, 1, 2])
    }
}

/// Asks this node's daemon for the nodes of the cluster.
pub(super) fn nodes(socket: &Path) -> Result<NodesReply, String> {
    let ask = || {
        let mut stream = UnixStream::connect(socket)?;
        stream.write_all(&frame(&Hello::Nodes))?;
        read_frame(&mut stream, FIRST_BYTES_MAX)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    ask().map_err(|error| explain(socket, &error))
}

fn explain(socket: &Path, error: &io::Error) -> String {
    format!(
        "no answer from this node's daemon at {}: {error}; is glud running?",
        socket.display()
    )
}

/// The way to a job; clones share it, and each frame goes out whole.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<UnixStream>>);

impl Line {
    pub(super) fn send(&self, message: &ToJob) -> io::Result<()> {
        let frame = frame(message);
        let mut stream = self.0.lock().expect("no holder panics");
        stream.write_all(&frame)
    }
}

/// The threads that carry a job's streams.
#[derive(Default)]
struct Streams {
    input: Option<Input>,
    out: Option<Output>,
    err: Option<Output>,
}

impl Streams {
    fn start(stdio: &[Stdio; 3], label: Option<&str>, line: &Line) -> io::Result<Self> {
        let output = |stream, kind| {
            let label = label.map(str::to_owned);
            (kind == Stdio::Pipe)
                .then(|| Output::start(stream, label, line.clone()))
                .transpose()
        };
        Ok(Self {
            input: (stdio[0] == Stdio::Pipe)
                .then(|| Input::start(line.clone()))
                .transpose()?,
            out: output(Stream::Out, stdio[1])?,
            err: output(Stream::Err, stdio[2])?,
        })
    }

    fn take(&mut self, frame: FromJob) {
        match frame {
            FromJob::Output { stream, bytes } => {
                let output = match stream {
                    Stream::Out => &self.out,
                    Stream::Err => &self.err,
                };
                if let Some(output) = output {
                    output.push(bytes);
                }
            }
            FromJob::InputCredit(bytes) => {
                if let Some(input) = &self.input {
                    input.add_credit(bytes);
                }
            }
            FromJob::InputClosed => {
                if let Some(input) = &self.input {
                    input.close();
                }
            }
            FromJob::Ping | FromJob::Started { .. } | FromJob::Ended(_) => {}
        }
    }

    fn finish(self) {
        for output in [self.out, self.err].into_iter().flatten() {
            output.finish();
        }
    }
}

/// Returns what this process's descriptors are. Closed ones are `/dev/null` by now: the runtime of every Rust
/// program sees to that.
fn own_stdio() -> [Stdio; 3] {
    let kind = |fd: std::os::fd::BorrowedFd<'_>| match fstat(fd) {
        Ok(stat) if (libc::S_IFMT & stat.st_mode) == libc::S_IFCHR && is_null(stat.st_rdev) => {
            Stdio::Null
        }
        _ => Stdio::Pipe,
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let (input, out, err) = (
        kind(stdin.as_fd()),
        kind(stdout.as_fd()),
        kind(stderr.as_fd()),
    );
    let same = err == Stdio::Pipe && sys::same_open_file(1, 2);
    [input, out, if same { Stdio::SameAsOut } else { err }]
}

fn is_null(device: u64) -> bool {
    use nix::sys::stat::{major, minor};
    (major(device), minor(device)) == NULL_DEVICE
}

/// Sends a first frame with descriptors, which travel with its first byte.
fn send_with_descriptors(
    mut stream: &UnixStream,
    frame: &[u8],
    descriptors: [RawFd; 3],
) -> io::Result<()> {
    let control = [ControlMessage::ScmRights(&descriptors)];
    let pieces = [IoSlice::new(frame)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(stream.as_raw_fd(), &pieces, &control, flags, None)?;
    stream.write_all(&frame[sent..])
}

/// Returns a program's own name, for its messages.
pub(super) fn name_of(path: &OsStr) -> String {
    let name = Path::new(path).file_name().unwrap_or(path);
    String::from_utf8_lossy(name.as_bytes()).into_owned()
}
