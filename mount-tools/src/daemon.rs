//! Asks this node's daemon over its control socket (`node/control.rs` has the questions).

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Take, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Returns where a daemon that cannot start says why: beside its socket, which is not there then.
pub(crate) fn failure_file(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".failed");
    name.into()
}

/// Adds to a reason what the daemon said when it could not start.
fn with_failure(socket: &Path, why: String) -> String {
    match std::fs::read_to_string(failure_file(socket)) {
        Ok(failure) => format!("{why}; its last start failed: {}", failure.trim_end()),
        Err(_) => why,
    }
}

/// Where a daemon listens unless configured otherwise.
pub(crate) const SOCKET_DEFAULT: &str = "/run/glu/glud.sock";
/// The daemon answers from memory, or asks the leader, which it may have to look for.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Room for a line about each of the requests that may wait at one time.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What the daemon says about its mount.
#[derive(Debug, Deserialize)]
pub(crate) struct Daemon {
    pub(crate) cluster: String,
    pub(crate) point: PathBuf,
    pub(crate) hard: bool,
    /// Tenths of a second.
    pub(crate) timeo: u32,
}

/// A node as the leader sees it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClusterNode {
    pub(crate) node: u16,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) voter: bool,
    pub(crate) rack: String,
    pub(crate) disk_total: u64,
    pub(crate) disk_free: u64,
    pub(crate) chunks: u64,
    pub(crate) chunk_bytes: u64,
    pub(crate) draining: bool,
    #[serde(default)]
    pub(crate) revoked: bool,
}

/// How the repair of chunks stands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClusterRepair {
    pub(crate) complete: bool,
    pub(crate) lacking: u64,
    pub(crate) unreachable: u64,
    pub(crate) copying: u64,
}

/// A node that cannot be reached.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) node: u16,
    pub(crate) why: String,
}

/// What the leader found when it checked the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClusterCheck {
    pub(crate) index: u64,
    pub(crate) inodes: u64,
    pub(crate) voters: Vec<VoterCheck>,
    pub(crate) nodes: Vec<NodeCheck>,
    pub(crate) faults: Vec<CheckFault>,
}

/// The sum of a voter's state, or why it has told none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoterCheck {
    pub(crate) node: u16,
    pub(crate) sum: Option<String>,
    pub(crate) bytes: Option<u64>,
    pub(crate) error: Option<String>,
}

/// Copies of chunks on a node.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeCheck {
    pub(crate) node: u16,
    pub(crate) copies: u64,
    pub(crate) good: u64,
    pub(crate) bad: u64,
    /// Chunks that no file has there; `None` if the node has not told.
    pub(crate) unlisted: Option<u64>,
    /// Why it has not.
    pub(crate) error: Option<String>,
}

/// What is wrong.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckFault {
    pub(crate) part: String,
    pub(crate) rule: String,
    pub(crate) what: String,
}

/// There is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error(
        "no answer from this node's daemon at {}: {why}: start it (glud --config /etc/glu/glud.toml) and wait until it serves, or name its control_socket with {option}", socket.display()
    )]
    Silent {
        socket: PathBuf,
        why: String,
        /// How the caller's user names another socket.
        option: &'static str,
    },
    /// It cannot do what it was asked for.
    #[error("{error}")]
    Refused { error: String },
}

/// Asks a question, a JSON object.
pub(crate) fn ask<A: DeserializeOwned>(
    socket: &Path,
    question: &serde_json::Value,
    option: &'static str,
) -> Result<A, DaemonError> {
    ask_within(ANSWER_WITHIN, socket, question, option)
}

/// Asks what the daemon needs time for.
pub(crate) fn ask_within<A: DeserializeOwned>(
    time: Duration,
    socket: &Path,
    question: &serde_json::Value,
    option: &'static str,
) -> Result<A, DaemonError> {
    let failed = |why: String| DaemonError::Silent {
        socket: socket.to_owned(),
        why: with_failure(socket, why),
        option,
    };
    let mut line = String::new();
    let mut converse = || converse(time, socket, question)?.read_line(&mut line);
    converse().map_err(|error: io::Error| failed(error.to_string()))?;
    parse(&line).map_err(|error| error.or_malformed(failed))
}

/// Asks for something that follows the answer, until the end of the conversation.
pub(crate) fn ask_for<A: DeserializeOwned>(
    time: Duration,
    socket: &Path,
    question: &serde_json::Value,
    option: &'static str,
) -> Result<(A, impl Read), DaemonError> {
    let failed = |why: String| DaemonError::Silent {
        socket: socket.to_owned(),
        why: with_failure(socket, why),
        option,
    };
    let mut line = String::new();
    let mut asked = || {
        let mut reader = converse(time, socket, question)?;
        reader.read_line(&mut line)?;
        reader.get_mut().set_limit(u64::MAX);
        Ok(reader)
    };
    let rest = asked().map_err(|error: io::Error| failed(error.to_string()))?;
    let answer = parse(&line).map_err(|error| error.or_malformed(failed))?;
    Ok((answer, rest))
}

fn converse(
    time: Duration,
    socket: &Path,
    question: &serde_json::Value,
) -> io::Result<BufReader<Take<UnixStream>>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(time))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    Ok(BufReader::new(stream.take(ANSWER_BYTES_MAX)))
}

fn parse<A: DeserializeOwned>(line: &str) -> Result<A, Unusable> {
    if let Ok(Refusal { error }) = serde_json::from_str(line) {
        return Err(Unusable::Refused(DaemonError::Refused { error }));
    }
    serde_json::from_str(line).map_err(|error| Unusable::Malformed(error.to_string()))
}

/// An answer that says nothing of what was asked.
enum Unusable {
    Refused(DaemonError),
    Malformed(String),
}

impl Unusable {
    fn or_malformed(self, malformed: impl FnOnce(String) -> DaemonError) -> DaemonError {
        match self {
            Self::Refused(error) => error,
            Self::Malformed(why) => malformed(why),
        }
    }
}

/// How the daemon says that it cannot.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: String,
}

impl Daemon {
    /// Asks about the mount, for mount(8).
    pub(crate) fn ask(socket: &Path) -> Result<Self, DaemonError> {
        let question = serde_json::json!({"cmd": "mount"});
        ask(socket, &question, "-o socket=PATH")
    }
}
