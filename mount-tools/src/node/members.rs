//! The nodes as the metadata leader sees them: asked for by the placement of jobs, watched for that of chunks.

use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::request::{
    MetaReply, MetaRequest, NodeReport, NodeStatus, REVOKED_SINCE, VOTERS_SINCE,
};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId, Timestamp};
use gfs::data::keeper::AskLeader;
use gfs::data::{Places, place};
use gfs::net::{ByteStream, NetError, ServiceId, Transport};
use gfs::server::stream::{self, StreamReply, StreamRequest};
use gproc::{Events, job};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// How often the nodes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// At each so many of these looks the voters are asked for, too; who wants to know exactly asks for them himself.
const VOTERS_EVERY: u32 = 10;
/// How long one node may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long an election may take until it is told that nobody leads, and how often it is asked meanwhile.
const LED_WITHIN: Duration = Duration::from_secs(5);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// All nodes, one of which leads; the others say so at once.
#[derive(Debug)]
pub(super) struct Members {
    transport: Arc<dyn Transport>,
    /// Who led when last asked.
    leader: AtomicU16,
    /// The nodes when last asked; all of them until the first answer.
    nodes: RwLock<Vec<NodeStatus>>,
    /// Who kept the metadata when last asked; as configured until the first answer.
    voters: RwLock<Vec<NodeId>>,
}

/// What the readers of events have been told.
#[derive(Debug, Default)]
struct Seen {
    leader: Option<NodeId>,
    up: BTreeMap<NodeId, bool>,
}

impl Seen {
    /// Returns what is new, a line each: `node 3 up`, `node 3 down`, `node 3 left`, `node 1 leads`.
    fn changes(&mut self, leader: NodeId, nodes: &[NodeStatus]) -> Vec<String> {
        let first = self.leader.is_none();
        let mut changes = Vec::new();
        let now: BTreeMap<_, _> = nodes.iter().map(|it| (it.node, it.up)).collect();
        for (node, up) in &now {
            if self.up.get(node) != Some(up) {
                changes.push(format!("node {node} {}", if *up { "up" } else { "down" }));
            }
        }
        let left = self.up.keys().filter(|node| !now.contains_key(node));
        changes.extend(left.map(|node| format!("node {node} left")));
        if self.leader != Some(leader) {
            changes.push(format!("node {leader} leads"));
        }
        (self.leader, self.up) = (Some(leader), now);
        // What was so when the daemon started is no event.
        if first { Vec::new() } else { changes }
    }
}

impl Members {
    pub(super) fn new(transport: Arc<dyn Transport>, voters: &[NodeId]) -> Self {
        let first = voters.first().expect("checked by the configuration");
        let up = |node| NodeStatus::new(node, true, NodeReport::default());
        let all = transport.nodes().into_iter().map(up).collect();
        Self {
            transport,
            leader: AtomicU16::new(first.0),
            nodes: RwLock::new(all),
            voters: RwLock::new(voters.to_vec()),
        }
    }

    /// Keeps what is known of the nodes fresh: a chunk sent to a node that is down waits for it.
    /// What changes is told to `events`.
    pub(super) async fn watch(self: Arc<Self>, events: Arc<Events>) {
        let mut seen = Seen::default();
        let mut looks = 0;
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            // Without a leader what was known stays the best guess.
            if let Ok(nodes) = job::Nodes::nodes(&*self).await {
                let leader = NodeId(self.leader.load(Ordering::Relaxed));
                for change in seen.changes(leader, &nodes) {
                    events.tell(&change);
                }
                *self.nodes.write().expect("no holder panics") = nodes;
            }
            looks = (looks + 1) % VOTERS_EVERY;
            if looks == 0
                && let Ok(voters) = self.ask_voters().await
            {
                *self.voters.write().expect("no holder panics") = voters;
            }
        }
    }

    /// Returns the nodes that were being emptied when last asked.
    pub(super) fn draining(&self) -> BTreeSet<NodeId> {
        let nodes = self.nodes.read().expect("no holder panics");
        let draining = nodes.iter().filter(|of| of.draining);
        draining.map(|of| of.node).collect()
    }

    /// Returns who kept the metadata when last asked.
    pub(super) fn voters(&self) -> Vec<NodeId> {
        self.voters.read().expect("no holder panics").clone()
    }

    /// Asks the leader, or who leads by now.
    pub(super) async fn ask_leader(&self, request: &MetaRequest) -> Result<MetaReply, NetError> {
        self.ask_leader_since(0, request).await
    }

    /// Asks the leader who keeps the metadata. One of an older version is not asked: it would take the question for a
    /// damaged message, and close the connection (V1).
    pub(super) async fn ask_voters(&self) -> Result<Vec<NodeId>, NetError> {
        let asked = self.ask_leader_since(VOTERS_SINCE, &MetaRequest::Voters);
        match asked.await? {
            MetaReply::Voters(voters) => Ok(voters),
            other => Err(self.off_the_point(&other, "voters")),
        }
    }

    /// Asks the leader whose certificates were revoked; an older one knows nothing of that (V1).
    pub(super) async fn ask_revoked(&self) -> Result<Vec<(NodeId, Timestamp)>, NetError> {
        let asked = self.ask_leader_since(REVOKED_SINCE, &MetaRequest::Revoked);
        match asked.await? {
            MetaReply::Revoked(upto) => Ok(upto),
            other => Err(self.off_the_point(&other, "revoked certificates")),
        }
    }

    /// As [`Self::ask_leader`], of nodes that are known to speak this version.
    async fn ask_leader_since(
        &self,
        since: u32,
        request: &MetaRequest,
    ) -> Result<MetaReply, NetError> {
        let body = Bytes::from(encode(request));

        let last = NodeId(self.leader.load(Ordering::Relaxed));
        let others = self.transport.nodes().into_iter();
        let others = others.filter(|node| *node != last);
        let mut failure = None;
        for voter in std::iter::once(last).chain(others) {
            if self.transport.version_of(voter).unwrap_or_default() < since {
                failure = Some(NetError::Unreachable {
                    to: voter,
                    why: format!("it is not known to speak version {since}"),
                });
                continue;
            }
            let reply = self
                .transport
                .call(voter, ServiceId::Meta, body.clone(), DEADLINE)
                .await;
            let why = match reply.map(|reply| decode(&reply)) {
                Ok(Ok(MetaReply::NotLeader(_))) => NetError::Unreachable {
                    to: voter,
                    why: "it does not lead the metadata".to_owned(),
                },
                Ok(Ok(reply)) => {
                    self.leader.store(voter.0, Ordering::Relaxed);
                    return Ok(reply);
                }
                Ok(Err(error)) => NetError::Malformed {
                    to: voter,
                    why: error.to_string(),
                },
                Err(error) => error,
            };
            failure = Some(why);
        }
        Err(failure.expect("there is a node"))
    }
}

impl Members {
    fn off_the_point(&self, reply: &MetaReply, about: &str) -> NetError {
        NetError::Malformed {
            to: NodeId(self.leader.load(Ordering::Relaxed)),
            why: format!("{reply:?} does not tell of {about}"),
        }
    }

    /// Asks the leader for a long answer; returns what it says first, and the stream that the rest follows on.
    pub(super) async fn ask_at_length(
        &self,
        request: StreamRequest,
    ) -> io::Result<(StreamReply, ByteStream)> {
        // Finds out who leads.
        let found = self.ask_leader(&MetaRequest::Nodes).await;
        found.map_err(io::Error::other)?;
        let leader = NodeId(self.leader.load(Ordering::Relaxed));
        let opened = self.transport.open(leader, ServiceId::Meta).await;
        let mut stream = opened.map_err(io::Error::other)?;
        stream::send(&mut stream.writer, &request).await?;
        let reply = stream::receive(&mut stream.reader).await?;
        Ok((reply, stream))
    }
}

#[async_trait]
impl job::Nodes for Members {
    /// Asks until somebody leads, for who wants to run something should not have to know of elections.
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
        let until = tokio::time::Instant::now() + LED_WITHIN;
        loop {
            let failure = match self.ask_leader(&MetaRequest::Nodes).await {
                Ok(MetaReply::Nodes(nodes)) => return Ok(nodes),
                Ok(other) => return Err(self.off_the_point(&other, "nodes")),
                Err(failure) => failure,
            };
            if tokio::time::Instant::now() >= until {
                return Err(failure);
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
        }
    }
}

#[async_trait]
impl Places for Members {
    fn targets(&self, chunk: ChunkId) -> Vec<NodeId> {
        let nodes = self.nodes.read().expect("no holder panics");
        place::order(chunk, Some(self.transport.local()), &[], &nodes)
    }

    async fn locate(&self, chunk: ChunkId) -> Option<Vec<NodeId>> {
        match self.ask_leader(&MetaRequest::Locate(chunk)).await {
            Ok(MetaReply::Located(nodes)) => Some(nodes),
            Ok(_) | Err(_) => None,
        }
    }
}

#[async_trait]
impl AskLeader for Members {
    async fn ask(&self, request: MetaRequest) -> Option<MetaReply> {
        let reply = self.ask_leader(&request).await;
        reply
            .inspect_err(|error| tracing::debug!(%error, "no leader to tell of chunks"))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::WIRE_VERSION;
    use std::sync::Mutex;

    /// Three nodes, of which the second leads, after so many questions to anybody, and is of an older version.
    #[derive(Debug)]
    struct Nodes {
        old: u32,
        led_after: usize,
        says: MetaReply,
        asked: Mutex<Vec<NodeId>>,
    }

    #[async_trait]
    impl Transport for Nodes {
        fn local(&self) -> NodeId {
            NodeId(1)
        }

        fn nodes(&self) -> Vec<NodeId> {
            [1, 2, 3].map(NodeId).to_vec()
        }

        fn version_of(&self, node: NodeId) -> Option<u32> {
            [Some(WIRE_VERSION), Some(self.old), None][usize::from(node.0 - 1)]
        }

        async fn call(
            &self,
            to: NodeId,
            _: ServiceId,
            _: Bytes,
            _: Duration,
        ) -> Result<Bytes, NetError> {
            let mut asked = self.asked.lock().expect("free");
            asked.push(to);
            let reply = match to {
                NodeId(2) if asked.len() > self.led_after => self.says.clone(),
                _ => MetaReply::NotLeader(None),
            };
            Ok(encode(&reply).into())
        }

        async fn open(&self, _: NodeId, _: ServiceId) -> Result<ByteStream, NetError> {
            unreachable!("nothing is asked at length")
        }
    }

    /// V1: what it does not know an older node takes for damage.
    #[tokio::test]
    async fn older_nodes_are_not_asked_who_votes() {
        let check = async |old, expected: &[u16]| {
            let nodes = Arc::new(Nodes {
                old,
                led_after: 0,
                says: MetaReply::Voters(vec![NodeId(2)]),
                asked: Mutex::default(),
            });
            let members = Members::new(Arc::clone(&nodes) as _, &[NodeId(2)]);
            let told = members.ask_voters().await.ok();
            let asked: Vec<u16> = nodes
                .asked
                .lock()
                .expect("free")
                .iter()
                .map(|of| of.0)
                .collect();
            assert_eq!(asked, expected);
            told
        };
        assert_eq!(check(VOTERS_SINCE, &[2]).await, Some(vec![NodeId(2)]));
        assert_eq!(check(VOTERS_SINCE - 1, &[1]).await, None);
    }

    #[tokio::test]
    async fn an_election_is_waited_for() {
        let nodes = Arc::new(Nodes {
            old: WIRE_VERSION,
            led_after: 20,
            says: MetaReply::Nodes(Vec::new()),
            asked: Mutex::default(),
        });
        let members = Members::new(Arc::clone(&nodes) as _, &[NodeId(2)]);
        let told = job::Nodes::nodes(&members)
            .await
            .expect("told by the next leader");
        assert_eq!(told.len(), 0);
        assert!(nodes.asked.lock().expect("free").len() > 20);
    }

    #[test]
    fn events_are_what_changes() {
        let mut seen = Seen::default();
        let mut changes = |leader, up: &[(u16, bool)]| {
            let status = |(node, up): &(u16, bool)| {
                NodeStatus::new(NodeId(*node), *up, NodeReport::default())
            };
            let nodes: Vec<_> = up.iter().map(status).collect();
            seen.changes(NodeId(leader), &nodes).join(", ")
        };
        let two = [(1, true), (2, false)];
        assert_eq!(changes(1, &two), "");
        assert_eq!(changes(1, &two), "");
        assert_eq!(
            changes(1, &[(1, true), (2, true), (3, true)]),
            "node 2 up, node 3 up"
        );
        assert_eq!(
            changes(2, &[(1, false), (2, true)]),
            "node 1 down, node 3 left, node 2 leads"
        );
    }
}
