//! One job from its owner's side: the request, its descriptors, its frames, its end.

use super::copy::Sink;
use super::fan::Fan;
use super::parallel::Parallel;
use super::peeked;
use super::say;
use super::signals::Signals;
use super::streams::Streams;
use super::sys;
use super::terminal::Terminal;
use crate::table;
use consistency::NodeId;
use gproc::job::limits::Limits;
use gproc::job::private::Private;
use gproc::job::protocol::{
    End, FIRST_BYTES_MAX, FRAME_BYTES_MAX, FromJob, Hello, NodesReply, Request, Stdio, Stream,
    ToJob, Told, frame, read_frame,
};
use gproc::job::terminal::{Checkpoints, Extra, InputFile};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::{Mode, fstat, umask};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, IoSlice, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The device number of `/dev/null`.
const NULL_DEVICE: (u64, u64) = (1, 3);

/// Has a stopped job go on.
const GO_ON: ToJob = ToJob::Signal {
    number: libc::SIGCONT,
    group: true,
};

/// Which job gets the input.
#[derive(Clone, Debug)]
pub(super) enum Reader {
    Nobody,
    One(u32),
    All(Arc<Fan>),
}

/// How far a job has come.
enum Step {
    /// It may begin from now on.
    Asked,
    /// It has gone on on another node, or not: the errno says why.
    Gone(Result<(), i32>),
    Runs(NodeId),
}

/// What all jobs of one command have in common.
pub(super) struct Command {
    request: Request,
    /// No descriptors go along: all output comes through this process.
    label: bool,
    /// What the first job has one like.
    terminal: Option<Terminal>,
    gather: bool,
    reader: Reader,
    /// The input is a file, which keeps what the job does not read.
    seekable: bool,
    /// Its processes find each other.
    parallel: Option<Parallel>,
    /// What each process may use at most.
    limits: Limits,
    /// They take turns with other gangs.
    gang: bool,
    /// What each process has to itself.
    private: Private,
    /// How it is kept safe from the loss of its node.
    checkpoints: Option<Checkpoints>,
    /// It runs already: the child of this process with this pid.
    forked: Option<u32>,
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
            terminal: None,
            gather: false,
            reader: Reader::One(0),
            seekable: is_file(io::stdin().as_fd()),
            parallel: None,
            limits: Limits::default(),
            gang: false,
            private: Private::default(),
            checkpoints: None,
            forked: None,
        })
    }

    /// Gives the job a terminal like this process's.
    pub(super) fn with_terminal(mut self, terminal: Option<Terminal>) -> Self {
        if terminal.is_some() {
            self.request.stdio[..2].fill(Stdio::Pipe);
            // Raw, the terminal begins a line only where the job's has told it to.
            if io::stderr().is_terminal() {
                self.request.stdio[2] = Stdio::SameAsOut;
            }
        }
        self.terminal = terminal;
        self
    }

    /// Lets `size` processes find each other.
    pub(super) fn parallel(mut self, size: Option<u32>) -> Self {
        self.parallel = size.map(Parallel::new);
        self
    }

    /// Limits what each process, with those that it starts, may use.
    pub(super) fn limited(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Has its processes take turns with those of other gangs.
    pub(super) fn in_turns(mut self, gang: bool) -> Self {
        self.gang = gang;
        self
    }

    /// Gives each process, with those that it starts, something to itself.
    pub(super) fn with_its_own(mut self, private: Private) -> Self {
        self.private = private;
        self
    }

    /// Has checkpoints made of it.
    pub(super) fn kept(mut self, checkpoints: Option<Checkpoints>) -> Self {
        self.checkpoints = checkpoints;
        self
    }

    /// Is a child of this process, which runs already.
    pub(super) fn forked(mut self, pid: u32) -> Self {
        self.forked = Some(pid);
        self
    }

    /// Returns whether its processes are being ended because they cannot go on.
    pub(super) fn is_over(&self) -> bool {
        self.parallel.as_ref().is_some_and(Parallel::is_over)
    }

    /// Runs in another directory.
    pub(super) fn in_directory(mut self, directory: Option<PathBuf>) -> Self {
        if let Some(directory) = directory {
            self.request.cwd = directory.into_os_string().into_vec().into();
        }
        self
    }

    /// Gives the input to other jobs than the one with number 0.
    pub(super) fn with_input_for(mut self, reader: Reader) -> Self {
        self.reader = reader;
        self
    }

    /// Has all output come through this process.
    pub(super) fn gathered(mut self, gathered: bool) -> Self {
        self.gather = gathered;
        self
    }

    /// Puts the number of the job in front of each line of output.
    pub(super) fn labelled(mut self, label: bool) -> Self {
        self.label = label;
        self
    }

    /// Runs the one job of this command, and waits for its end; `runs` hears on which node it runs. Returns the end, and whether,
    /// if it tells of a fault, the job may have begun.
    pub(super) fn run_told(
        &self,
        socket: &Path,
        signals: &Signals,
        runs: &dyn Fn(NodeId),
    ) -> (End, bool) {
        let asked = Cell::new(false);
        let told = |step| match step {
            Step::Asked => asked.set(true),
            Step::Gone(_) => {}
            Step::Runs(node) => runs(node),
        };
        let end = self.try_run(socket, 0, &[], None, signals, &told);
        let end = end.unwrap_or_else(|error| End::lost(explain(socket, &error)));
        (end, asked.get())
    }

    /// Runs the job with number `vnn`, the first of which has this process's input, on one of `nodes` if there are any, and waits
    /// for its end; what it writes is gathered in `sink`.
    pub(super) fn run_on(
        &self,
        socket: &Path,
        vnn: u32,
        nodes: &[NodeId],
        sink: Option<&Arc<Sink>>,
        signals: &Signals,
    ) -> End {
        let end = self.try_run(socket, vnn, nodes, sink, signals, &|_| {});
        if let Some(parallel) = &self.parallel {
            parallel.ended(vnn, signals);
        }
        if let Reader::All(fan) = &self.reader {
            fan.leave(vnn);
        }
        end.unwrap_or_else(|error| End::lost(explain(socket, &error)))
    }

    /// Has the one job of this command, which runs already, go on on one of `nodes`, and waits for its end; `gone` hears whether it
    /// does.
    ///
    /// # Errors
    /// Of the connection to the daemon.
    pub(super) fn run_forked(
        &self,
        socket: &Path,
        nodes: &[NodeId],
        signals: &Signals,
        gone: &dyn Fn(Result<(), i32>),
    ) -> io::Result<End> {
        let told = |step| {
            if let Step::Gone(how) = step {
                gone(how);
            }
        };
        self.try_run(socket, 0, nodes, None, signals, &told)
    }

    fn try_run(
        &self,
        socket: &Path,
        vnn: u32,
        nodes: &[NodeId],
        sink: Option<&Arc<Sink>>,
        signals: &Signals,
        told: &dyn Fn(Step),
    ) -> io::Result<End> {
        let mut request = self.request.clone();
        request.vnn = vnn;
        request.nodes = nodes.to_vec();
        match self.reader {
            Reader::One(reader) if reader == vnn => {}
            Reader::All(_) => {}
            Reader::One(_) | Reader::Nobody => request.stdio[0] = Stdio::Null,
        }
        if let Some(parallel) = &self.parallel {
            parallel.tell(&mut request.env, vnn);
        }
        if self.gather {
            // Even where this process's are nothing.
            request.stdio[1] = Stdio::Pipe;
            request.stdio[2] = Stdio::SameAsOut;
        } else if self.label && request.stdio[2] == Stdio::SameAsOut {
            // Lines are written whole; what is one file here may stay two pipes there.
            request.stdio[2] = Stdio::Pipe;
        }
        let stream = UnixStream::connect(socket)?;
        let extras = self.extras(&request);
        let hello = frame(&match extras.is_empty() {
            true => Hello::Run(Box::new(request.clone())),
            false => Hello::RunWith(Box::new(request.clone()), extras),
        });
        if hello.len() > FIRST_BYTES_MAX {
            return Ok(End::lost("arguments and environment are too long"));
        }
        let line = Line(Arc::new(Mutex::new(stream.try_clone()?)));
        {
            // The job may run before this thread goes on: a signal is to find it, but to wait for the request.
            let first = line.0.lock().expect("no holder panics");
            signals.add(line.clone());
            told(Step::Asked);
            self.send_hello(&first, &hello, request.stdio[0])?;
        }
        let mut reader = BufReader::with_capacity(FRAME_BYTES_MAX, stream);
        let fan = match &self.reader {
            Reader::All(fan) => Some((vnn, Arc::clone(fan))),
            Reader::Nobody | Reader::One(_) => None,
        };
        let mut streams = Streams::new(self.terminal.clone(), fan);
        while let Some(frame) = read_frame(&mut reader, FRAME_BYTES_MAX)? {
            match frame {
                FromJob::Started { node, relayed, .. } => {
                    signals.job_runs();
                    told(Step::Runs(node));
                    if let Some(parallel) = &self.parallel {
                        parallel.started(vnn, node, &line, signals);
                    }
                    if let Some(sink) = sink {
                        sink.set_node(node);
                    }
                    streams.node = Some(node);
                    if relayed {
                        let label = self.label.then(|| format!("{vnn}: "));
                        streams.start(&request.stdio, label.as_deref(), sink, &line)?;
                    }
                }
                FromJob::Output {
                    stream: Stream::Wire,
                    bytes,
                } => {
                    if let Some(parallel) = &self.parallel {
                        parallel.take(vnn, &bytes, signals);
                    }
                }
                FromJob::Entered { token, processes } => {
                    if let Some(parallel) = &self.parallel {
                        parallel.entered(vnn, token, &processes, signals);
                    }
                }
                FromJob::Told(Told::Gone(gone)) => told(Step::Gone(gone)),
                FromJob::Note(note) => say(format_args!(
                    "glurun: {}",
                    table::printable(note.as_bytes())
                )),
                FromJob::Stopped(_) => {
                    if !streams.stop() {
                        line.send(&GO_ON)?;
                    }
                }
                FromJob::Ended(end) => {
                    self.tell_out_of_memory(&streams);
                    let input = streams.finish(self.seekable);
                    return Ok(input.map_or_else(|why| End::lost(why.to_string()), |()| end));
                }
                other => streams.take(other)?,
            }
        }
        // The job is lost, and with it more than its input.
        streams.finish(self.seekable).ok();
        Ok(End::lost(
            "the daemon of this node has ended, and the job with it",
        ))
    }

    /// Says why processes were ended that used too much memory; how the program has ended may not tell.
    fn tell_out_of_memory(&self, streams: &Streams) {
        if streams.out_of_memory == 0 {
            return;
        }
        let node = streams.node.map(|node| format!(" on node {node}"));
        let limit = self.limits.mem_bytes.unwrap_or_default() >> 20;
        let node = node.unwrap_or_default();
        let ended = match streams.out_of_memory {
            1 => "a process".to_owned(),
            more => format!("{more} processes"),
        };
        say(format_args!(
            "glurun: out of memory{node}: {ended} of the job ended, which used more than {limit} MiB (--mem)"
        ));
    }

    fn extras(&self, request: &Request) -> Vec<Extra> {
        let terminal = self.terminal.as_ref().map(Terminal::like);
        let alone = matches!(self.reader, Reader::One(_));
        let carried = alone && request.stdio[0] == Stdio::Pipe && terminal.is_none();
        let asks = carried && self.seekable;
        let follows = (carried && peeked::is_pipe()).then_some(Extra::FollowInput);
        let file = asks.then(input_file).flatten().map(Extra::InputFile);
        let asks = asks.then_some(Extra::TellInput);
        let parallel = self.parallel.as_ref();
        let wire = parallel.map(|_| Extra::Wire);
        let gather = parallel.map(|parallel| Extra::Gather(parallel.number()));
        let limited = self.limits != Limits::default();
        let limits = limited.then_some(Extra::Limits(self.limits));
        let private = self.private != Private::default();
        let private = private.then_some(Extra::Private(self.private));
        let extras = terminal.map(Extra::Terminal).into_iter();
        extras
            .chain(asks)
            .chain(file)
            .chain(wire)
            .chain(gather)
            .chain(follows)
            .chain(limits)
            .chain(self.gang.then_some(Extra::Gang))
            .chain(self.checkpoints.map(Extra::Checkpoints))
            .chain(private)
            .chain(self.forked.map(Extra::Forked))
            .collect()
    }

    /// Sends the request, with this process's descriptors unless the output is to come through it.
    fn send_hello(&self, mut stream: &UnixStream, hello: &[u8], input: Stdio) -> io::Result<()> {
        let shared = matches!(self.reader, Reader::All(_));
        if self.label || self.gather || shared || self.terminal.is_some() {
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
pub(crate) fn nodes(socket: &Path) -> Result<NodesReply, String> {
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
#[derive(Clone, Debug)]
pub(super) struct Line(Arc<Mutex<UnixStream>>);

impl Line {
    pub(super) fn send(&self, message: &ToJob) -> io::Result<()> {
        let frame = frame(message);
        let mut stream = self.0.lock().expect("no holder panics");
        stream.write_all(&frame)
    }
}

/// Returns what this process's descriptors are. Closed ones are `/dev/null` by now: the runtime of every Rust
/// program sees to that.
fn own_stdio() -> [Stdio; 3] {
    let kind = |fd: BorrowedFd<'_>| match fstat(fd) {
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

/// Returns whether a descriptor is a file that can be read from the same place again.
fn is_file(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| libc::S_IFMT & stat.st_mode == libc::S_IFREG)
}

/// Returns the file at descriptor 0 as other nodes can open it, if it is one of the cluster's tree.
fn input_file() -> Option<InputFile> {
    let stdin = io::stdin();
    let kind = fstatfs(stdin.as_fd()).ok()?.filesystem_type();
    if kind != FUSE_SUPER_MAGIC {
        return None;
    }
    let path = std::fs::read_link("/proc/self/fd/0").ok()?;
    let offset = lseek(stdin.as_fd(), 0, Whence::SeekCur).ok()?;
    Some(InputFile {
        path: path.into_os_string().into_vec().into(),
        inode: fstat(stdin.as_fd()).ok()?.st_ino,
        offset: u64::try_from(offset).ok()?,
    })
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
