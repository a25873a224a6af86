//! The control socket: a line of JSON asks, a line of JSON answers.
//!
//! | request | answer |
//! | --- | --- |
//! | `{"cmd":"status"}` | `{"node":1,"leader":1,"voters":[1,2,3],"state":"serving","version":7,"metadata_version":7,"troubles":[]}`, and `"fault"` if the log has stopped, `"pids"` or `"clock"` if something is wrong with them |
//! | `{"cmd":"voters"}`, or with `"set":[1,2,3]` | `{"voters":[1,2,3]}`, as the leader has it |
//! | `{"cmd":"mount"}` | `{"cluster":"lab","point":"/cluster","hard":false,"timeo":300}` |
//! | `{"cmd":"waits"}` | `{"waits":[{"number":18,"request":"READ","inode":5,"pid":77,"ms":1200}, ...]}` |
//! | `{"cmd":"abort","number":18}` | `{"aborted":true}` |
//! | `{"cmd":"cluster"}` | `{"nodes":[{"node":1,"up":true,"chunks":7, ...}, ...],"repair":{"lacking":0, ...}}` |
//! | `{"cmd":"drain","target":3,"drain":true}` | `{"drain":true}` |
//! | `{"cmd":"revoke","target":3}` | `{"revoked":3}` |
//! | `{"cmd":"check","data":false}` | `{"index":300,"faults":[...], ...}`, after `{"checking":7}` from time to time |
//! | `{"cmd":"backup"}` | `{"cluster":"lab","index":300,"inodes":7,"bytes":900}`, then so many bytes and the end |
//!
//! Only root may connect.

use super::Node;
use super::members::Members;
use crate::daemon::{
    CheckFault, ClusterCheck, ClusterNode, ClusterRepair, NodeCheck, Trouble, VoterCheck,
};
use crate::shell;
use anyhow::{Context, Result};
use consistency::NodeId;
use consistency::wire::request::{MetaReply, MetaRequest, NodeStatus};
use gfs::net::Transport;
use gfs::server::service::MetaServer;
use gfs::server::stream::{
    self, Checked, CheckedNode, CheckedStore, StateSum, StreamReply, StreamRequest,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// A request is a short line.
const REQUEST_BYTES_MAX: u64 = 4096;
/// How long the leader may take to copy its state; less than who asks waits.
const BACKUP_BEGINS: Duration = Duration::from_secs(60);
/// How long the leader may take to change the voters: a new one gets the whole state first. Less than who asks waits.
const VOTERS_CHANGE: Duration = Duration::from_secs(80);
/// How long the leader may take to revoke a node. Less than who asks waits.
const REVOKE_TAKES: Duration = Duration::from_secs(10);
/// How long the leader may say nothing during a check.
const CHECK_SAYS: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
enum Request {
    Status,
    Voters { set: Option<BTreeSet<u16>> },
    Mount,
    Waits,
    Abort { number: u64 },
    Cluster,
    Drain { target: u16, drain: bool },
    Revoke { target: u16 },
    Backup,
    Check { data: bool },
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Status {
        node: u16,
        leader: Option<u16>,
        voters: Vec<u16>,
        state: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
        /// What is wrong with its pids.
        #[serde(skip_serializing_if = "Option::is_none")]
        pids: Option<String>,
        /// What is wrong with its clock.
        #[serde(skip_serializing_if = "Option::is_none")]
        clock: Option<String>,
        /// The newest that this node speaks.
        version: u32,
        /// That of the metadata, if they are here.
        metadata_version: Option<u32>,
        troubles: Vec<Trouble>,
    },
    Voters {
        voters: BTreeSet<u16>,
    },
    Mount(Mount),
    Waits {
        waits: Vec<Wait>,
    },
    Aborted {
        aborted: bool,
    },
    Cluster {
        nodes: Vec<ClusterNode>,
        repair: ClusterRepair,
    },
    Drain {
        drain: bool,
    },
    Revoked {
        revoked: u16,
    },
    Check(ClusterCheck),
    Checking {
        checking: u64,
    },
    Backup {
        cluster: String,
        index: u64,
        inodes: u64,
        bytes: u64,
    },
    Error {
        error: String,
    },
}

/// What `mount.glu` needs to know.
#[derive(Clone, Debug, Serialize)]
struct Mount {
    cluster: String,
    point: PathBuf,
    hard: bool,
    /// Tenths of a second.
    timeo: u32,
}

#[derive(Debug, Serialize)]
struct Wait {
    number: u64,
    request: String,
    inode: u64,
    pid: u32,
    ms: u128,
}

/// What answers about the whole cluster.
struct About {
    cluster: String,
    members: Arc<Members>,
    names: BTreeMap<NodeId, String>,
    meta: Arc<MetaServer>,
    local: NodeId,
}

impl About {
    fn new(node: &Node) -> Self {
        let config = &node.config;
        let peers = config.peers.iter().map(|peer| (peer.id, peer.name.clone()));
        Self {
            cluster: node.cluster.clone(),
            members: Arc::clone(&node.members),
            names: peers.chain([(config.node, config.name.clone())]).collect(),
            meta: Arc::clone(&node.meta),
            local: config.node,
        }
    }

    /// Returns who keeps the metadata: a voter that follows or leads knows, the others have heard it.
    fn voters(&self) -> Vec<NodeId> {
        let known = self.meta.voters();
        if known.contains(&self.local) && self.meta.leader().is_some() {
            known
        } else {
            self.members.voters()
        }
    }

    fn keeps_metadata(&self) -> bool {
        self.voters().contains(&self.local)
    }

    async fn list_voters(&self) -> Answer {
        match self.members.ask_voters().await {
            Ok(voters) => shown_voters(&voters),
            Err(_) => no_leader(),
        }
    }

    /// Has the leader change the set of voters, where it can be done and would survive something.
    async fn set_voters(&self, set: BTreeSet<u16>) -> Answer {
        let refused = |error: String| Answer::Error { error };
        if !matches!(set.len(), 1 | 3 | 5) {
            return refused(format!("{} voters: choose 1, 3 or 5", set.len()));
        }
        let voters: Vec<NodeId> = set.into_iter().map(NodeId).collect();
        if let Some(stranger) = voters.iter().find(|voter| !self.names.contains_key(voter)) {
            return refused(no_node(*stranger));
        }
        let asked = self.members.ask_at_length(StreamRequest::SetVoters(voters));
        let asked = tokio::time::timeout(VOTERS_CHANGE, asked).await;
        match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((StreamReply::Voters(voters), _)) => shown_voters(&voters),
            Ok((StreamReply::Failed(error), _)) => refused(error),
            Ok(_) => no_leader(),
            Err(error) => refused(format!(
                "the leader did not say that the voters have changed ({error}): look with glu voters list"
            )),
        }
    }

    async fn cluster(&self) -> Answer {
        let nodes = self.members.ask_leader(&MetaRequest::Nodes).await;
        let repair = self.members.ask_leader(&MetaRequest::Repair).await;
        let (Ok(MetaReply::Nodes(nodes)), Ok(MetaReply::Repair(repair))) = (nodes, repair) else {
            return no_leader();
        };
        // An older leader does not tell.
        let voters = self.members.ask_voters().await;
        let voters = voters.unwrap_or_else(|_| self.voters());
        let revoked = self.members.ask_revoked().await.unwrap_or_default();
        let revoked: BTreeSet<NodeId> = revoked.into_iter().map(|(node, _)| node).collect();
        let shown = |status: NodeStatus| ClusterNode {
            node: status.node.0,
            name: self.names.get(&status.node).cloned().unwrap_or_default(),
            up: status.up,
            voter: voters.contains(&status.node),
            rack: status.report.domain,
            disk_total: status.report.disk_total,
            disk_free: status.report.disk_free,
            chunks: status.chunks,
            chunk_bytes: status.chunk_bytes,
            draining: status.draining,
            // One that is up again has got another certificate.
            revoked: !status.up && revoked.contains(&status.node),
        };
        Answer::Cluster {
            nodes: nodes.into_iter().map(shown).collect(),
            repair: ClusterRepair {
                complete: repair.complete,
                lacking: repair.lacking,
                unreachable: repair.unreachable,
                copying: repair.copying,
            },
        }
    }

    /// Returns what is to be said first, and where the metadata come from then.
    async fn backup(&self) -> (Answer, Option<impl AsyncRead + Unpin>) {
        let opened = tokio::time::timeout(
            BACKUP_BEGINS,
            self.members.ask_at_length(StreamRequest::Backup),
        )
        .await;
        match opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((
                StreamReply::Backup {
                    index,
                    inodes,
                    bytes,
                },
                stream,
            )) => {
                let answer = Answer::Backup {
                    cluster: self.cluster.clone(),
                    index,
                    inodes,
                    bytes,
                };
                (answer, Some(stream.reader.take(bytes)))
            }
            Ok(_) => (no_leader(), None),
            Err(error) => {
                tracing::warn!(%error, "no backup");
                (no_leader(), None)
            }
        }
    }

    /// Has the leader check the cluster; says meanwhile how it goes.
    async fn check(&self, data: bool, writer: &mut (impl AsyncWrite + Unpin)) -> Answer {
        let request = StreamRequest::CheckStores { data };
        let mut begun = self.members.ask_at_length(request).await;
        if begun.is_err() {
            // A leader of an older version ends the stream.
            let request = StreamRequest::Check { data };
            begun = self.members.ask_at_length(request).await;
        }
        let (mut reply, mut stream) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                tracing::warn!(%error, "no check");
                return no_leader();
            }
        };
        loop {
            match reply {
                StreamReply::Checked(checked) => return Answer::Check(shown(checked, Vec::new())),
                StreamReply::CheckedStores(checked, stores) => {
                    return Answer::Check(shown(checked, stores));
                }
                StreamReply::Checking(checking) => {
                    let text = line_of(&Answer::Checking { checking });
                    if let Err(error) = writer.write_all(&text).await {
                        // Who asked has gone; what is said to nobody does not matter.
                        let error = error.to_string();
                        return Answer::Error { error };
                    }
                }
                StreamReply::Failed(error) => return Answer::Error { error },
                _ => return no_leader(),
            }
            let next = tokio::time::timeout(CHECK_SAYS, stream::receive(&mut stream.reader)).await;
            reply = match next {
                Ok(Ok(reply)) => reply,
                Ok(Err(_)) | Err(_) => {
                    let error = "the leader did not come to the end of the check: try again";
                    return Answer::Error {
                        error: error.to_owned(),
                    };
                }
            };
        }
    }

    async fn revoke(&self, node: NodeId) -> Answer {
        let refused = |error: String| Answer::Error { error };
        if !self.names.contains_key(&node) {
            return refused(no_node(node));
        }
        let asked = self.members.ask_at_length(StreamRequest::Revoke(node));
        let asked = tokio::time::timeout(REVOKE_TAKES, asked).await;
        match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok((StreamReply::Revoked, _)) => Answer::Revoked { revoked: node.0 },
            Ok((StreamReply::Failed(error), _)) => refused(error),
            Ok(_) => no_leader(),
            Err(error) => refused(format!(
                "the leader did not say that node {node} was revoked ({error}): look with glu status"
            )),
        }
    }

    async fn drain(&self, node: NodeId, drain: bool) -> Answer {
        if !self.names.contains_key(&node) {
            let error = no_node(node);
            return Answer::Error { error };
        }
        let request = MetaRequest::Drain { node, drain };
        match self.members.ask_leader(&request).await {
            Ok(MetaReply::Done) => Answer::Drain { drain },
            Ok(_) | Err(_) => no_leader(),
        }
    }
}

fn shown(checked: Checked, stores: Vec<CheckedStore>) -> ClusterCheck {
    let voter = |(node, sum): (NodeId, Result<StateSum, String>)| VoterCheck {
        node: node.0,
        sum: sum.as_ref().ok().map(|sum| format!("{:08x}", sum.crc)),
        bytes: sum.as_ref().ok().map(|sum| sum.bytes),
        error: sum.err(),
    };
    let node = |node: CheckedNode| NodeCheck {
        node: node.node.0,
        copies: node.copies,
        good: node.good,
        bad: node.bad,
        unlisted: None,
        error: None,
    };
    let nodes = checked.nodes.into_iter().map(node);
    let mut nodes: BTreeMap<u16, NodeCheck> = nodes.map(|node| (node.node, node)).collect();
    for CheckedStore { node, unlisted } in stores {
        let none = NodeCheck {
            node: node.0,
            ..NodeCheck::default()
        };
        let shown = nodes.entry(node.0).or_insert(none);
        match unlisted {
            Ok(count) => shown.unlisted = Some(count),
            Err(why) => shown.error = Some(why),
        }
    }
    let fault = |(part, rule, what)| CheckFault { part, rule, what };
    ClusterCheck {
        index: checked.index,
        inodes: checked.inodes,
        voters: checked.voters.into_iter().map(voter).collect(),
        nodes: nodes.into_values().collect(),
        faults: checked.faults.into_iter().map(fault).collect(),
    }
}

fn line_of(answer: &Answer) -> Vec<u8> {
    let mut text = serde_json::to_vec(answer).expect("answers are JSON");
    text.push(b'\n');
    text
}

fn shown_voters(voters: &[NodeId]) -> Answer {
    Answer::Voters {
        voters: voters.iter().map(|voter| voter.0).collect(),
    }
}

fn no_node(node: NodeId) -> String {
    format!("there is no node {node}: glu status shows those there are")
}

fn no_leader() -> Answer {
    let error = "no metadata leader answers: try again, or look at the voters' logs".to_owned();
    Answer::Error { error }
}

/// Listens; the task ends with the node.
pub(super) fn serve(node: &Node) -> Result<JoinHandle<()>> {
    let path = &node.config.control_socket;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("{}: cannot be made", dir.display()))?;
        // Where shells mount what only they see.
        let view = dir.join(shell::VIEW_NAME);
        std::fs::create_dir_all(&view)
            .with_context(|| format!("{}: cannot be made", view.display()))?;
    }
    // A socket of an earlier life; the lock of the state directory keeps a second daemon out.
    drop(std::fs::remove_file(path));
    let listener =
        UnixListener::bind(path).with_context(|| format!("{}: cannot listen", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("{}: cannot be restricted", path.display()))?;
    let transport = Arc::clone(&node.transport);
    let local = transport.local();
    let (meta, mount) = (Arc::clone(&node.meta), Arc::clone(&node.mount));
    let client = Arc::clone(&node.client);
    let pids = Arc::clone(&node.pids);
    let about_mount = Mount {
        cluster: node.cluster.clone(),
        point: mount.point().to_owned(),
        hard: node.config.mount.hard,
        timeo: node.config.request_timeout_s * 10,
    };
    let about = Arc::new(About::new(node));
    let of_all = Arc::clone(&about);
    let at_once = move |request: Request| match request {
        Request::Status => Answer::Status {
            node: local.0,
            leader: meta
                .leader()
                .or_else(|| client.leader())
                .map(|NodeId(leader)| leader),
            voters: of_all.voters().iter().map(|voter| voter.0).collect(),
            state: match transport.shut_out() {
                None => "serving",
                Some(_) => "revoked",
            },
            fault: meta.fault(),
            pids: pids.trouble(),
            clock: client.clock_trouble(),
            version: transport.version_of(local).unwrap_or_default(),
            metadata_version: of_all.keeps_metadata().then(|| meta.version()),
            troubles: transport
                .troubles()
                .into_iter()
                .map(|(node, why)| Trouble { node: node.0, why })
                .collect(),
        },
        Request::Mount => Answer::Mount(about_mount.clone()),
        Request::Waits => {
            let shown = |wait: gfs::fuse::Waiting| Wait {
                number: wait.unique,
                request: wait.opcode.name().to_owned(),
                inode: wait.ino.0,
                pid: wait.pid,
                ms: wait.age.as_millis(),
            };
            Answer::Waits {
                waits: mount.waiting().into_iter().map(shown).collect(),
            }
        }
        Request::Abort { number } => Answer::Aborted {
            aborted: mount.abort_request(number),
        },
        Request::Cluster
        | Request::Drain { .. }
        | Request::Revoke { .. }
        | Request::Voters { .. }
        | Request::Backup
        | Request::Check { .. } => {
            unreachable!("not answered at once")
        }
    };
    let answer = Arc::new((about, at_once));
    Ok(tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, Arc::clone(&answer)))),
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }))
}

async fn converse(mut stream: UnixStream, answer: Arc<(Arc<About>, impl Fn(Request) -> Answer)>) {
    let (about, at_once) = &*answer;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        match (&mut reader)
            .take(REQUEST_BYTES_MAX)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(1..) => {}
            // The other side has ended the conversation.
            Ok(0) | Err(_) => return,
        }
        let mut rest = None;
        let reply = match serde_json::from_slice(&line) {
            Ok(Request::Backup) => {
                let (answer, state) = about.backup().await;
                rest = state;
                answer
            }
            Ok(Request::Check { data }) => about.check(data, &mut writer).await,
            Ok(Request::Cluster) => about.cluster().await,
            Ok(Request::Drain { target, drain }) => about.drain(NodeId(target), drain).await,
            Ok(Request::Revoke { target }) => about.revoke(NodeId(target)).await,
            Ok(Request::Voters { set: None }) => about.list_voters().await,
            Ok(Request::Voters { set: Some(set) }) => about.set_voters(set).await,
            Ok(request) => at_once(request),
            Err(error) => Answer::Error {
                error: format!("{error}: ask {{\"cmd\":\"status\"}}"),
            },
        };
        if writer.write_all(&line_of(&reply)).await.is_err() {
            return;
        }
        if let Some(mut rest) = rest {
            // Cut short, it is too short for who reads it.
            if let Err(error) = tokio::io::copy(&mut rest, &mut writer).await {
                tracing::warn!(%error, "a backup was not handed over");
            }
            return;
        }
    }
}
