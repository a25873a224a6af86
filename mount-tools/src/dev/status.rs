//! What the nodes are doing, as far as it can be seen from outside.

use super::cluster::Cluster;
use super::state::NodeDir;
use anyhow::{Context, Result};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A daemon that does not answer within this time is shown without what it would have said.
const ASK_WAIT_MS: i64 = 1_000;
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// The cluster at one moment.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The state directory.
    pub state_dir: PathBuf,
    /// The number of the node whose metadata server leads, if the nodes that are up name one.
    pub leader: Option<u16>,
    /// The numbers of the nodes that keep the metadata, as the leader says, or any node if none leads.
    pub voters: Vec<u16>,
    /// In the order of their numbers.
    pub nodes: Vec<NodeStatus>,
}

/// One node of a [`Status`].
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Counts from 1.
    pub number: u16,
    /// Its host name.
    pub name: String,
    /// What its machine does.
    pub state: NodeState,
    /// Its daemon has mounted the tree and serves it.
    pub ready: bool,
    /// Where its tree is seen from outside.
    pub mount: PathBuf,
    /// Its pid 1, as seen from outside.
    pub pid: Option<i32>,
}

/// What a node's machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It runs.
    Up,
    /// It is off.
    Down,
    /// It runs, but its network is cut.
    Cut,
}

/// What glud answers to `{"cmd":"status"}`; it says more, which is not for us.
#[derive(Debug, Deserialize)]
struct Answer {
    node: u16,
    leader: Option<u16>,
    #[serde(default)]
    voters: Vec<u16>,
}

impl Status {
    /// Looks at every node of the cluster.
    pub(super) fn of(cluster: &Cluster) -> Self {
        let mut answers = Vec::new();
        let mut nodes = Vec::new();
        for record in cluster.nodes() {
            let dir = cluster.dir().node(record.number);
            let running = record.running();
            let state = match (running, record.cut) {
                (None, _) => NodeState::Down,
                (Some(_), true) => NodeState::Cut,
                (Some(_), false) => NodeState::Up,
            };
            if running.is_some()
                && let Ok(answer) = ask(&dir)
            {
                answers.push((state, answer));
            }
            nodes.push(NodeStatus {
                number: record.number,
                name: record.name(),
                state,
                ready: running.is_some() && dir.ready().exists(),
                mount: dir.cluster(),
                pid: running.map(|process| process.pid),
            });
        }
        let leader = leader(&answers);
        let knows = answers
            .iter()
            .find(|(_, answer)| Some(answer.node) == leader);
        let knows = knows.or_else(|| answers.first());
        Self {
            state_dir: cluster.dir().path().to_owned(),
            leader,
            voters: knows.map_or_else(Vec::new, |(_, answer)| answer.voters.clone()),
            nodes,
        }
    }
}

/// Decides who leads: a node that is cut off may still believe in itself, and news travels.
fn leader(answers: &[(NodeState, Answer)]) -> Option<u16> {
    let mut votes: BTreeMap<u16, (bool, usize)> = BTreeMap::new();
    for (state, answer) in answers {
        if let (NodeState::Up, Some(leader)) = (state, answer.leader) {
            let vote = votes.entry(leader).or_default();
            // Who says so of itself has heard from a majority just now.
            vote.0 |= answer.node == leader;
            vote.1 += 1;
        }
    }
    votes
        .into_iter()
        .max_by_key(|(_, vote)| *vote)
        .map(|(leader, _)| leader)
}

/// Asks the node's daemon over its control socket.
fn ask(node: &NodeDir) -> Result<Answer> {
    // By a short name: a socket's path has 108 bytes at most, and the state directory may be deep.
    let run = File::open(node.run()).context("open the run directory")?;
    let file = node.socket();
    let name = file.file_name().context("the socket has a name")?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", run.as_raw_fd())).join(name);
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Before the connect, which also waits while a stuck daemon accepts nobody.
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(ASK_WAIT_MS))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(ASK_WAIT_MS))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&path)?).context("connect to glud")?;
    let mut stream = UnixStream::from(socket);
    stream
        .write_all(b"{\"cmd\":\"status\"}\n")
        .context("ask glud")?;
    let mut line = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX))
        .read_line(&mut line)
        .context("hear from glud")?;
    serde_json::from_str(&line).context("understand glud")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[track_caller]
    fn check_leader(answers: &[(NodeState, u16, Option<u16>)], expected: Option<u16>) {
        let answer = |node, leader| Answer {
            node,
            leader,
            voters: Vec::new(),
        };
        let answers: Vec<_> = answers
            .iter()
            .map(|(s, node, l)| (*s, answer(*node, *l)))
            .collect();
        assert_eq!(leader(&answers), expected, "{answers:?}");
    }

    #[test]
    fn leaders() {
        use NodeState::{Cut, Up};
        check_leader(&[], None);
        check_leader(&[(Up, 1, None), (Up, 2, None)], None);
        check_leader(
            &[(Up, 1, Some(2)), (Up, 2, Some(2)), (Up, 3, Some(2))],
            Some(2),
        );
        // The one that is cut off has not heard that it was replaced.
        check_leader(
            &[(Cut, 1, Some(1)), (Up, 2, Some(3)), (Up, 3, Some(3))],
            Some(3),
        );
        check_leader(&[(Cut, 1, Some(1))], None);
        // Of two opinions the one of the leader itself counts.
        check_leader(&[(Up, 2, Some(3)), (Up, 1, Some(1))], Some(1));
        check_leader(
            &[(Up, 1, Some(3)), (Up, 2, Some(2)), (Up, 4, Some(3))],
            Some(2),
        );
    }

    #[test]
    fn a_daemon_is_asked_below_a_long_path() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let deep = root.path().join("d".repeat(120));
        let node = NodeDir::new(deep);
        fs::create_dir_all(node.run()).expect("make the run directory");
        let run = File::open(node.run()).expect("open it");
        let short = format!("/proc/self/fd/{}/glud.sock", run.as_raw_fd());
        let listener = UnixListener::bind(short).expect("listen");
        let daemon = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            let mut line = String::new();
            BufReader::new(&stream)
                .read_line(&mut line)
                .expect("a question");
            stream
                .write_all(b"{\"node\":1,\"leader\":2,\"voters\":[1,2,3],\"state\":\"serving\"}\n")
                .expect("answer");
            line
        });
        let answer = ask(&node).expect("answered");
        assert_eq!((answer.node, answer.leader), (1, Some(2)));
        assert_eq!(answer.voters, [1, 2, 3]);
        assert_eq!(
            daemon.join().expect("the daemon ends"),
            "{\"cmd\":\"status\"}\n"
        );
    }
}
