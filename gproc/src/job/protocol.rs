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
    /// Of its images, and of pages that came after them.
    pub bytes: u64,
    /// It ran before all of them were there.
    pub post_copy: bool,
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
            | Self::LastMove => 12,
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
mod tests {
    use super::super::limits::Limits;
    use super::*;
    use std::fmt::Debug;

    #[track_caller]
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, golden: &[u8]) {
        assert_eq!(frame(message), golden, "{message:?} changed on the wire");
        let mut reader = golden;
        let back = read_frame::<T>(&mut reader, FRAME_BYTES_MAX).expect("well formed");
        assert_eq!(back.as_ref(), Some(message));
    }

    #[test]
    fn golden_bytes() {
        check(&Hello::Nodes, &[1, 0, 0, 0, 1]);
        check(&Hello::Jobs, &[1, 0, 0, 0, 3]);
        let job = RunningJob {
            uid: 1,
            started: 2,
            command: vec![Bytes::from_static(b"ls")],
            count: 3,
            begun: 2,
            members: vec![Member {
                vnn: 4,
                node: NodeId(5),
                pid: 6,
            }],
            gang: Some(5),
        };
        let news = |npid, job| JobNews { npid, job };
        let news = JobsNews {
            home: NodeId(2),
            daemon: 7,
            jobs: vec![news(8, Some(job)), news(9, None)],
            more: true,
        };
        #[rustfmt::skip]
        check(&news, &[22, 0, 0, 0, 2, 7, 2, 8, 1, 1, 2, 1, 2, b'l', b's', 3, 2, 1, 4, 5, 6, 1, 5, 9, 0, 1]);
        let request = Request {
            argv: vec![Bytes::from_static(b"ls")],
            env: vec![Bytes::from_static(b"A=1")],
            cwd: Bytes::from_static(b"/"),
            umask: 0o22,
            ignored: 1,
            stdio: [Stdio::Null, Stdio::Pipe, Stdio::SameAsOut],
            nodes: vec![NodeId(2)],
            npid: 7,
            vnn: 0,
        };
        let start = Start {
            request,
            credentials: Credentials {
                uid: 1,
                gid: 2,
                groups: vec![3],
            },
            limits: vec![Limit {
                resource: 7,
                soft: 4,
                hard: 5,
            }],
            nice: -1,
        };
        #[rustfmt::skip]
        check(&ToJob::Start(Box::new(start)), &[
            30, 0, 0, 0, 0, 1, 2, b'l', b's', 1, 3, b'A', b'=', b'1', 1, b'/', 18, 1, 0, 1, 2, 1, 2, 7, 0,
            1, 2, 1, 3, 1, 7, 4, 5, 1,
        ]);
        check(
            &ToJob::Input(Bytes::from_static(b"x")),
            &[3, 0, 0, 0, 1, 1, b'x'],
        );
        check(&ToJob::InputEnd, &[1, 0, 0, 0, 2]);
        let signal = ToJob::Signal {
            number: 15,
            group: true,
        };
        check(&signal, &[3, 0, 0, 0, 3, 30, 1]);
        let credit = ToJob::Credit {
            stream: Stream::Err,
            bytes: 9,
        };
        check(&credit, &[3, 0, 0, 0, 4, 1, 9]);
        check(&ToJob::Closed(Stream::Out), &[2, 0, 0, 0, 5, 0]);
        check(&ToJob::Ping, &[1, 0, 0, 0, 6]);
        let started = FromJob::Started {
            node: NodeId(3),
            pid: 4,
            relayed: true,
        };
        check(&started, &[4, 0, 0, 0, 0, 3, 4, 1]);
        let output = FromJob::Output {
            stream: Stream::Out,
            bytes: Bytes::from_static(b"y"),
        };
        check(&output, &[4, 0, 0, 0, 1, 0, 1, b'y']);
        check(&FromJob::InputCredit(5), &[2, 0, 0, 0, 2, 5]);
        check(&FromJob::InputClosed, &[1, 0, 0, 0, 3]);
        check(&FromJob::Ended(End::Exited(1)), &[3, 0, 0, 0, 4, 0, 2]);
        check(&FromJob::Ended(End::Killed(9)), &[3, 0, 0, 0, 4, 1, 18]);
        let failed = FromJob::Ended(End::Failed {
            kind: Failure::NotFound,
            message: "m".into(),
        });
        check(&failed, &[5, 0, 0, 0, 4, 2, 2, 1, b'm']);
        check(&FromJob::Ping, &[1, 0, 0, 0, 5]);
    }

    #[test]
    fn golden_bytes_of_terminals() {
        use super::super::terminal::InputFile;
        let size = WindowSize {
            rows: 1,
            columns: 2,
            x_pixels: 3,
            y_pixels: 4,
        };
        let modes = Modes {
            input: 5,
            output: 6,
            control: 7,
            local: 8,
            characters: Bytes::from_static(b"c"),
        };
        let terminal = super::super::terminal::Terminal {
            size,
            modes: modes.clone(),
        };
        let file = InputFile {
            path: Bytes::from_static(b"f"),
            inode: 2,
            offset: 3,
        };
        let extras = vec![
            Extra::Terminal(terminal),
            Extra::TellInput,
            Extra::InputFile(file),
            Extra::HostName(Bytes::from_static(b"h")),
        ];
        let request = Request {
            argv: vec![Bytes::from_static(b"ls")],
            env: Vec::new(),
            cwd: Bytes::from_static(b"/"),
            umask: 0,
            ignored: 0,
            stdio: [Stdio::Pipe, Stdio::Pipe, Stdio::SameAsOut],
            nodes: Vec::new(),
            npid: 7,
            vnn: 0,
        };
        #[rustfmt::skip]
        check(&Hello::RunWith(Box::new(request.clone()), extras.clone()), &[
            37, 0, 0, 0, 2, 1, 2, b'l', b's', 0, 1, b'/', 0, 0, 1, 1, 2, 0, 7, 0,
            4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, b'c', 1, 2, 1, b'f', 2, 3, 3, 1, b'h',
        ]);
        let start = Start {
            request,
            credentials: Credentials {
                uid: 1,
                gid: 2,
                groups: Vec::new(),
            },
            limits: Vec::new(),
            nice: 0,
        };
        #[rustfmt::skip]
        check(&ToJob::StartWith(Box::new(start), extras), &[
            42, 0, 0, 0, 7, 1, 2, b'l', b's', 0, 1, b'/', 0, 0, 1, 1, 2, 0, 7, 0,
            1, 2, 0, 0, 0, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 1, b'c', 1, 2, 1, b'f', 2, 3, 3, 1, b'h',
        ]);
        check(&ToJob::Resize(size), &[5, 0, 0, 0, 8, 1, 2, 3, 4]);
        check(&FromJob::Stopped(20), &[2, 0, 0, 0, 6, 40]);
        let left = FromJob::InputLeft {
            taken: 9,
            unread: Bytes::from_static(b"u"),
        };
        check(&left, &[4, 0, 0, 0, 7, 9, 1, b'u']);
        check(
            &FromJob::Modes(modes),
            &[7, 0, 0, 0, 8, 5, 6, 7, 8, 1, b'c'],
        );
        check(&FromJob::InputFromFile, &[1, 0, 0, 0, 9]);
        check(&Extra::Wire, &[1, 0, 0, 0, 4]);
        let wire = Bytes::from_static(b"w");
        check(&ToJob::Wire(wire.clone()), &[3, 0, 0, 0, 9, 1, b'w']);
        let output = FromJob::Output {
            stream: Stream::Wire,
            bytes: wire,
        };
        check(&output, &[4, 0, 0, 0, 1, 2, 1, b'w']);
        check(&Extra::FollowInput, &[1, 0, 0, 0, 5]);
        let limits = Limits {
            mem_bytes: Some(7),
            cpus: Some(2),
        };
        check(&Extra::Limits(limits), &[5, 0, 0, 0, 6, 1, 7, 1, 2]);
        check(&FromJob::OutOfMemory(2), &[2, 0, 0, 0, 12, 2]);
        check(&Extra::Gather(3), &[2, 0, 0, 0, 7, 3]);
        check(&Extra::Gang, &[1, 0, 0, 0, 8]);
        let entered = FromJob::Entered {
            token: 4,
            processes: vec![5, 6],
        };
        check(&entered, &[5, 0, 0, 0, 13, 4, 2, 5, 6]);
        check(&ToJob::Passed(4), &[2, 0, 0, 0, 12, 4]);
        check(&FromJob::InputRead(300), &[4, 0, 0, 0, 11, 251, 44, 1]);
    }

    #[test]
    fn golden_bytes_of_moves() {
        let arrival = Arrival {
            pid: 9,
            pipes: Vec::new(),
        };
        check(&ToJob::Receive(Box::new(arrival)), &[3, 0, 0, 0, 10, 18, 0]);
        let ask = |asked| ToJob::Ask { pid: 9, asked };
        check(&ask(Asked::Where), &[3, 0, 0, 0, 11, 18, 0]);
        check(&ask(Asked::Ties), &[3, 0, 0, 0, 11, 18, 1]);
        check(&ask(Asked::Go(NodeId(2))), &[4, 0, 0, 0, 11, 18, 2, 2]);
        check(&ask(Asked::Level), &[3, 0, 0, 0, 11, 18, 3]);
        check(&ask(Asked::Why), &[3, 0, 0, 0, 11, 18, 4]);
        let (from, to, because) = (NodeId(3), NodeId(2), Because::Crowded);
        check(
            &ask(Asked::GoFor(to, because)),
            &[5, 0, 0, 0, 11, 18, 5, 2, 3],
        );
        let moved = Moved {
            from,
            to,
            because: Some(because),
            took_ms: 9,
        };
        check(
            &ask(Asked::Heard(moved)),
            &[8, 0, 0, 0, 11, 18, 6, 3, 2, 1, 3, 9],
        );
        check(&ask(Asked::TiesThere), &[3, 0, 0, 0, 11, 18, 7]);
        let at = NodeId(3);
        check(
            &FromJob::Told(Told::Where { at, moves: 4 }),
            &[4, 0, 0, 0, 10, 0, 3, 4],
        );
        check(
            &FromJob::Told(Told::Ties(vec!["t".into()])),
            &[5, 0, 0, 0, 10, 1, 1, 1, b't'],
        );
        check(&FromJob::Told(Told::Gone(Ok(()))), &[3, 0, 0, 0, 10, 2, 0]);
        let level = Level {
            locked: false,
            asked: true,
        };
        check(
            &FromJob::Told(Told::Level(level)),
            &[4, 0, 0, 0, 10, 3, 0, 1],
        );
        check(
            &FromJob::Told(Told::Why("w".into())),
            &[4, 0, 0, 0, 10, 4, 1, b'w'],
        );
        check(&FromJob::Told(Told::Heard), &[2, 0, 0, 0, 10, 5]);
        check(&ask(Asked::Keep), &[3, 0, 0, 0, 11, 18, 8]);
        check(&ask(Asked::Checkpoint), &[3, 0, 0, 0, 11, 18, 9]);
        check(
            &ask(Asked::Restart(NodeId(2))),
            &[4, 0, 0, 0, 11, 18, 10, 2],
        );
        check(
            &ask(Asked::GoFirst(NodeId(2))),
            &[4, 0, 0, 0, 11, 18, 11, 2],
        );
        let cost = Cost {
            pause_ms: 4,
            bytes: 5,
            post_copy: true,
        };
        check(
            &ask(Asked::HeardOf(moved, cost)),
            &[11, 0, 0, 0, 11, 18, 12, 3, 2, 1, 3, 9, 4, 5, 1],
        );
        check(&ask(Asked::LastMove), &[3, 0, 0, 0, 11, 18, 13]);
        let last = FromJob::Told(Told::LastMove(Some((moved, cost))));
        check(&last, &[11, 0, 0, 0, 10, 8, 1, 3, 2, 1, 3, 9, 4, 5, 1]);
        let kept = |number| FromJob::Told(Told::Kept(number));
        check(&kept(Ok(3)), &[4, 0, 0, 0, 10, 6, 0, 3]);
        check(&kept(Err(5)), &[4, 0, 0, 0, 10, 6, 1, 10]);
        let newest = Some(Kept {
            number: 1,
            made: 2,
            bytes: 3,
        });
        let restarts = 4;
        check(
            &FromJob::Told(Told::Checkpoint(Checkpoint { newest, restarts })),
            &[7, 0, 0, 0, 10, 7, 1, 1, 2, 3, 4],
        );
        let (every_s, restart) = (Some(60), true);
        check(
            &Extra::Checkpoints(super::super::terminal::Checkpoints { every_s, restart }),
            &[4, 0, 0, 0, 9, 1, 60, 1],
        );
        let (net, ipc) = (true, false);
        let private = super::super::private::Private { net, ipc };
        check(&Extra::Private(private), &[3, 0, 0, 0, 10, 1, 0]);
        check(&FromJob::Note("n".into()), &[3, 0, 0, 0, 14, 1, b'n']);
    }

    #[test]
    fn the_frame_that_tells_of_a_start_is_known() {
        let started = FromJob::Started {
            node: NodeId(3),
            pid: 4,
            relayed: true,
        };
        assert_eq!(FromJob::started(&frame(&started)), Some((NodeId(3), 4)));
        assert_eq!(FromJob::started(&frame(&FromJob::Ping)), None);
        assert_eq!(FromJob::started(&[]), None);
    }

    #[test]
    fn the_last_frame_is_known_undecoded() {
        let last = frame(&FromJob::Ended(End::Exited(0)));
        assert!(FromJob::is_last(&last));
        assert!(!FromJob::is_last(&frame(&FromJob::Ping)));
        assert!(!FromJob::is_last(&[]));
    }

    #[test]
    fn hostile_frames_are_refused() {
        let mut too_long: &[u8] = &[255, 255, 255, 255, 0];
        let error = read_frame::<ToJob>(&mut too_long, FRAME_BYTES_MAX).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut no_variant: &[u8] = &[1, 0, 0, 0, 99];
        let error = read_frame::<ToJob>(&mut no_variant, FRAME_BYTES_MAX).expect_err("unknown");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut cut_off: &[u8] = &[9, 0, 0, 0, 1];
        let error = read_frame::<ToJob>(&mut cut_off, FRAME_BYTES_MAX).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_largest_data_fits_a_frame() {
        let bytes = Bytes::from(vec![7; DATA_BYTES_MAX]);
        let input = frame(&ToJob::Input(bytes.clone()));
        assert!(input.len() - 4 <= FRAME_BYTES_MAX);
        let output = frame(&FromJob::Output {
            stream: Stream::Err,
            bytes,
        });
        assert!(output.len() - 4 <= FRAME_BYTES_MAX);
    }
}
