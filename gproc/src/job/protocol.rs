//! The frames of remote execution.
//!
//! A frame is a little-endian `u32` length and one message in the wire codec. The owner sends a [`Hello`]; after
//! `Hello::Run` it sends [`ToJob`] and gets [`FromJob`]. Home replaces the hello by [`ToJob::Start`], which adds
//! what only home can vouch for, and passes everything else on as it is. [`Hello::RunWith`] and [`ToJob::StartWith`]
//! stand in their place where there are [`Extra`]s, and only then: nodes of older revisions know neither. Such a node
//! ends the stream without a frame; the job is then started without its extras, or refused if it needs them.
//!
//! | who | may send | until |
//! | --- | --- | --- |
//! | owner | `Signal`, `Resize`; after `Started { relayed: true }` also `Input` up to the credit, `InputEnd`, `Credit`, `Closed`; `Wire` to a job that has one; `Passed` after `Entered` | it got `Ended` |
//! | host | `Started` first (after `InputFromFile` or `InputRead`), then the rest up to the credit, `Ended` last; `InputLeft` and `Modes` at most once, before `Ended` | - |
//! | both ends of the second hop | `Ping` every [`PING_EVERY`] | - |

use super::terminal::{Extra, Modes, WindowSize};
use super::travel::wire::Arrival;
use crate::level::Because;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::WIRE_VERSION_MIN;
use consistency::wire::node::NodeLoad;
use consistency::wire::{DecodeError, decode, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;

/// Upper limit of the first frame: twice what the kernel takes as arguments and environment.
pub const FIRST_BYTES_MAX: usize = 4 << 20;

/// Upper limit of every later frame: one piece of data with its header.
pub const FRAME_BYTES_MAX: usize = DATA_BYTES_MAX + 64;

/// Upper limit of the data in one frame.
pub const DATA_BYTES_MAX: usize = 64 << 10;

/// Input that may be on its way without the job having read it. What the job leaves unread of it is lost to the owner's
/// other readers, with what a pipe holds, unless the input is a file or is followed (rule J6).
pub const INPUT_WINDOW: u32 = 256 << 10;

/// Output of one stream that may be on its way without the owner having written it.
pub const OUTPUT_WINDOW: u32 = 512 << 10;

/// How often each end of the second hop says that it lives.
pub const PING_EVERY: Duration = Duration::from_secs(2);

/// Silence on the second hop after which the other end counts as lost.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a killed program gets to disappear.
pub(super) const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// From when a job's owner or home has lost it until nothing of it runs any more (J2): its host ends it [`SILENCE_MAX`] after the
/// last word from there, which may have been on its way for as long, or the host would have ended it before it came.
pub const GONE_AFTER: Duration = Duration::from_secs(30);

const _: () = assert!(
    GONE_AFTER.as_secs() >= 2 * SILENCE_MAX.as_secs() + KILLED_WITHIN.as_secs(),
    "CK1"
);
const _: () = assert!(PING_EVERY.as_millis() * 3 < SILENCE_MAX.as_millis());
const _: () = assert!(DATA_BYTES_MAX < INPUT_WINDOW as usize);

/// An output of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Descriptor 1.
    Out,
    /// Descriptor 2.
    Err,
    /// What the job writes to its [wire](super::terminal::Extra::Wire).
    Wire,
    /// Another pipe that it writes and others read; between the home of a job and its host alone.
    Other(u8),
}

/// What the owner's descriptor 0, 1 or 2 is, and so what the job gets for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// `/dev/null`: the job gets its host's.
    Null,
    /// Anything else: the job gets a pipe.
    Pipe,
    /// The same open file as descriptor 1 (for 2 only): the job gets one pipe for both, which keeps the order.
    SameAsOut,
}

/// The first frame on the unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hello {
    /// Runs a job. Three descriptors may come with it; a job on this very node gets them as they are.
    Run(Box<Request>),
    /// Asks for the nodes; answered by one [`NodesReply`], then the connection ends.
    Nodes,
    /// Runs a job that wants more.
    RunWith(Box<Request>, Vec<Extra>),
    /// Asks for the jobs whose home this node is; answered by [`JobsNews`] as long as both ends are there. For root alone.
    Jobs,
}

/// What is new about the jobs of a home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsNews {
    /// The home.
    pub home: NodeId,
    /// Tells the daemon from earlier ones of its node.
    pub daemon: u64,
    /// Those that have changed; at first all of them.
    pub jobs: Vec<JobNews>,
    /// What follows belongs to this.
    pub more: bool,
}

/// What is new about one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobNews {
    /// Its owner's pid, as the kernel tells it.
    pub npid: u32,
    /// It; none: it has ended.
    pub job: Option<RunningJob>,
}

/// All processes of one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningJob {
    /// Whose it is.
    pub uid: u32,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// The beginning of program and arguments.
    pub command: Vec<Bytes>,
    /// How many processes it has, those that have ended or not begun among them.
    pub count: u32,
    /// How many have begun.
    pub begun: u32,
    /// Those that run.
    pub members: Vec<Member>,
    /// Its first turn, if it is a gang.
    pub gang: Option<u64>,
}

/// A process of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number in the job.
    pub vnn: u32,
    /// Where it was started.
    pub node: NodeId,
    /// Its pid there.
    pub pid: u32,
}

/// Answer to [`Hello::Nodes`]: id, whether it is up, and load of each node, or why they are not known.
pub type NodesReply = Result<Vec<(NodeId, bool, NodeLoad)>, String>;

/// What the owner wants to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Program and arguments; at least the program.
    pub argv: Vec<Bytes>,
    /// `NAME=value` each.
    pub env: Vec<Bytes>,
    /// Absolute path.
    pub cwd: Bytes,
    /// Bits taken from the mode of new files, 0 to 0o777.
    pub umask: u32,
    /// Signals that the owner ignores and so the job does: bit `n - 1` for signal `n`.
    pub ignored: u64,
    /// Descriptors 0, 1 and 2.
    pub stdio: [Stdio; 3],
    /// Nodes to choose from; empty: all.
    pub nodes: Vec<NodeId>,
    /// Names the command cluster-wide: the owner's pid.
    pub npid: u32,
    /// Number of this job in the command, from 0.
    pub vnn: u32,
}

/// Who a job runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// One limit of setrlimit(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Which, by its kernel number.
    pub resource: u32,
    /// Soft value.
    pub soft: u64,
    /// Hard value.
    pub hard: u64,
}

/// A request with what home vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// What to run.
    pub request: Request,
    /// As whom.
    pub credentials: Credentials,
    /// Within which limits.
    pub limits: Vec<Limit>,
    /// Nice value, -20 to 19.
    pub nice: i32,
}

/// From the owner (or home) to the job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToJob {
    /// Starts it; the first frame of the second hop.
    Start(Box<Start>),
    /// Bytes for descriptor 0, 1 to [`DATA_BYTES_MAX`].
    Input(Bytes),
    /// Descriptor 0 has ended.
    InputEnd,
    /// A signal.
    Signal {
        /// Which, 1 to 64.
        number: i32,
        /// To the whole process group, as a terminal does.
        group: bool,
    },
    /// So many bytes of output were written out.
    Credit {
        /// Of which output.
        stream: Stream,
        /// How many.
        bytes: u32,
    },
    /// Nobody reads this output any more: who writes to it gets SIGPIPE.
    Closed(Stream),
    /// The sender lives.
    Ping,
    /// Starts a job that wants more; in the place of `Start`.
    StartWith(Box<Start>, Vec<Extra>),
    /// The owner's terminal has another size.
    Resize(WindowSize),
    /// Bytes for the job's wire, 1 to [`DATA_BYTES_MAX`]; no more than [`INPUT_WINDOW`] that the job has not read. They
    /// answer what came from there, so they have no credit of their own.
    Wire(Bytes),
    /// Takes a job that moves here; the first frame of a stream whose others are its own.
    Receive(Box<Arrival>),
    /// Asks about a process of this node; the first frame, answered by one [`FromJob::Told`].
    Ask {
        /// Its pid there.
        pid: i32,
        /// What.
        asked: Asked,
    },
    /// Everybody is in: the processes of the [`FromJob::Entered`] with this token go on.
    Passed(u32),
}

/// A question about a process that may move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// Where it is; answered by [`Told::Where`].
    Where,
    /// Why it cannot move; answered by [`Told::Ties`].
    Ties,
    /// To move to this node; answered by [`Told::Gone`] when it runs there.
    Go(NodeId),
    /// Whether its home lets it be levelled; answered by [`Told::Level`]. Since version 11.
    Level,
    /// What levelling makes of it, where it runs; answered by [`Told::Why`]. Since version 11.
    Why,
    /// To move to this node as [`Self::Go`] does, for this reason; since version 11.
    GoFor(NodeId, Because),
    /// No question: it has moved. Answered by [`Told::Heard`]. Since version 11.
    Heard(Moved),
    /// Why the copy that runs there cannot move on; answered by [`Told::Ties`]. Since version 11.
    TiesThere,
    /// To make a checkpoint of it; answered by [`Told::Kept`] when that is durable. Since version 12.
    Keep,
    /// Which checkpoint of it there is; answered by [`Told::Checkpoint`]. Since version 12.
    Checkpoint,
    /// To go on on this node as its newest checkpoint; answered by [`Told::Gone`] when that runs there. Since version 12.
    Restart(NodeId),
    /// To move to this node as [`Self::Go`] does, where it may run before its memory is there; answered when all of it is.
    /// Since version 12.
    GoFirst(NodeId),
    /// No question: it has moved. As [`Self::Heard`], with what it cost; since version 12.
    HeardOf(Moved, Cost),
    /// How it has moved last; answered by [`Told::LastMove`]. Since version 12.
    LastMove,
    /// What the node's processors offer to programs, and which it is of if it runs there; answered by [`Told::Processors`]. Came
    /// within version 12.
    Processors,
}

/// A move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The node that it has left.
    pub from: NodeId,
    /// The node that it is on.
    pub to: NodeId,
    /// Why levelling has moved it; none: somebody asked for it.
    pub because: Option<Because>,
    /// What it took from the order on, in milliseconds.
    pub took_ms: u32,
}

/// What a move has cost, as the job's home has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// For how long nothing of it ran, in milliseconds.
    pub pause_ms: u32,
    /// Of its images, and of pages that went before or came after them.
    pub bytes: u64,
    /// How its memory went.
    pub memory: Went,
}

/// How the memory of a job went that has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Went {
    /// With its images, while it stood still.
    #[default]
    Whole,
    /// It ran before all of it was there.
    PostCopy,
    /// Most went while it ran.
    PreCopy,
}

impl Went {
    /// Returns what it is called.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::PostCopy => "post-copy",
            Self::PreCopy => "pre-copy",
        }
    }
}

impl Asked {
    /// Returns the first version whose nodes can be asked so.
    pub(super) const fn since(self) -> u32 {
        match self {
            Self::Where | Self::Ties | Self::Go(_) => WIRE_VERSION_MIN,
            Self::Level | Self::Why | Self::GoFor(..) | Self::Heard(_) | Self::TiesThere => 11,
            Self::Keep
            | Self::Checkpoint
            | Self::Restart(_)
            | Self::GoFirst(_)
            | Self::HeardOf(..)
            | Self::LastMove
            | Self::Processors => 12,
        }
    }
}

/// What there is to say of a process that may move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Where it is.
    Where {
        /// The node.
        at: NodeId,
        /// How often it has moved.
        moves: u64,
    },
    /// Every reason why it cannot move, a word each.
    Ties(Vec<String>),
    /// It has moved, or not: the errno says why.
    Gone(Result<(), i32>),
    /// Whether it may be levelled.
    Level(Level),
    /// What levelling makes of it, in a line.
    Why(String),
    /// Those who read events can know of it.
    Heard,
    /// There is a checkpoint of it with this number, or not: the errno says why.
    Kept(Result<u64, i32>),
    /// What there is to start it from.
    Checkpoint(Checkpoint),
    /// Its newest move; none: it has not moved.
    LastMove(Option<(Moved, Cost)>),
    /// What it may use.
    Processors {
        /// As `/proc/cpuinfo` has it.
        offered: Vec<String>,
        /// What tells its programs from all others.
        programs: Vec<u128>,
    },
}

/// What there is to start a job from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The newest that is whole.
    pub newest: Option<Kept>,
    /// How often the job was started from one.
    pub restarts: u64,
}

/// A checkpoint that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Counts those of the job, from 1.
    pub number: u64,
    /// When its images were made, in seconds since 1970.
    pub made: u64,
    /// What it takes in the tree.
    pub bytes: u64,
}

/// What has been said of a job that may be levelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// It is to stay where it is.
    pub locked: bool,
    /// It is to be levelled, whatever its program is.
    pub asked: bool,
}

/// From the job to the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromJob {
    /// It runs.
    Started {
        /// Where.
        node: NodeId,
        /// Pid there.
        pid: u32,
        /// It got pipes: the owner carries input and output. Otherwise it has the owner's own descriptors.
        relayed: bool,
    },
    /// Bytes of an output, 1 to [`DATA_BYTES_MAX`].
    Output {
        /// Which.
        stream: Stream,
        /// The bytes.
        bytes: Bytes,
    },
    /// So many bytes of input were passed to the job.
    InputCredit(u32),
    /// Nobody reads the job's input any more.
    InputClosed,
    /// It is over; the last frame. All output was sent before.
    Ended(End),
    /// The sender lives.
    Ping,
    /// A signal has stopped the program of a job with a terminal.
    Stopped(i32),
    /// What became of the input, for who asked or has a terminal.
    InputLeft {
        /// So many bytes did not stay on their way: the job has read them, or they are in `unread`.
        taken: u64,
        /// What was typed at the job's terminal and nobody has read.
        unread: Bytes,
    },
    /// How the job has left its terminal.
    Modes(Modes),
    /// The job reads the file itself: the owner is to send no input. Comes before `Started`; `InputLeft` then tells how
    /// far it has read.
    InputFromFile,
    /// Answers [`ToJob::Ask`].
    Told(Told),
    /// So many bytes of the input, in all, the job has read for certain; 0 before `Started` says that the host tells this.
    /// For who follows its input.
    InputRead(u64),
    /// The kernel has ended so many processes of the job because all together used more memory than the job may. For who
    /// has limited it; before `Ended`.
    OutOfMemory(u64),
    /// Processes of the command that run on the node of this one are in the barrier; for who has asked for
    /// [`Extra::Gather`]. Answered by [`ToJob::Passed`].
    Entered {
        /// What is given back then.
        token: u32,
        /// Their numbers in the command.
        processes: Vec<u32>,
    },
    /// A line for the user about a job that goes on; for who has asked for [`Extra::Checkpoints`]. Since version 12.
    Note(String),
}

impl FromJob {
    /// How the wire codec begins [`FromJob::Started`] and [`FromJob::Ended`].
    const STARTED_TAG: u8 = 0;
    const ENDED_TAG: u8 = 4;

    /// Returns node and pid, if a frame, with its header, tells that the job runs.
    pub(super) fn started(frame: &[u8]) -> Option<(NodeId, u32)> {
        let body = frame.get(4..)?;
        match decode(
            body.first()
                .filter(|tag| **tag == Self::STARTED_TAG)
                .map(|_| body)?,
        ) {
            Ok(Self::Started { node, pid, .. }) => Some((node, pid)),
            _ => None,
        }
    }

    /// Returns whether a frame, with its header, is the last of a job.
    pub(super) fn is_last(frame: &[u8]) -> bool {
        frame.get(4) == Some(&Self::ENDED_TAG)
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The program exited with this status, 0 to 255.
    Exited(i32),
    /// A signal ended the program.
    Killed(i32),
    /// It never ran, or was lost.
    Failed {
        /// Whose fault.
        kind: Failure,
        /// One line for the user.
        message: String,
    },
}

/// Whose fault a failure is; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The cluster's: 125.
    Cluster,
    /// The program cannot be executed: 126.
    NotExecutable,
    /// There is no such program: 127.
    NotFound,
}

impl Failure {
    /// Returns the exit status that tells of this failure.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Cluster => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
        }
    }
}

impl End {
    /// Returns a failure of the cluster.
    pub fn lost(message: impl Into<String>) -> Self {
        Self::Failed {
            kind: Failure::Cluster,
            message: message.into(),
        }
    }
}

/// Returns a message as a frame.
///
/// # Panics
/// If the message has 4 GiB or more; every sender keeps to the limits above.
pub fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    let body = encode(message);
    let len = u32::try_from(body.len()).expect("senders keep frames small");
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Reads one frame from a blocking reader; `None`: the reader ended before it.
///
/// # Errors
/// Of the reader, and `InvalidData` for what is no message of type `T` within `bytes_max`.
pub fn read_frame<T: DeserializeOwned>(
    reader: &mut impl io::Read,
    bytes_max: usize,
) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    match reader.read_exact(&mut len) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let len = checked_len(len, bytes_max)?;
    let mut body = vec![0; len];
    reader.read_exact(&mut body)?;
    decode(&body).map(Some).map_err(malformed)
}

/// Returns the length a frame's header announces.
pub(super) fn checked_len(header: [u8; 4], bytes_max: usize) -> io::Result<usize> {
    let len = u32::from_le_bytes(header) as usize;
    if len <= bytes_max {
        Ok(len)
    } else {
        let why = format!("a frame of {len} bytes; at most {bytes_max} are allowed");
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

pub(super) fn malformed(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests;
