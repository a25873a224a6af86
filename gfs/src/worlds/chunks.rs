//! The chunks of a node: the real store's service, keeper and client over a disk that fails, and what the node knows of
//! the others.

use super::model::Who;
use super::shared::Shared;
use crate::data::disk::Disk;
use crate::data::io::{Chunks, ChunksConfig};
use crate::data::keeper::{self, AskLeader, KeeperConfig};
use crate::data::service::ChunkService;
use crate::data::simulated::SimulatedStore;
use crate::data::{ChunkIo, Places, place};
use crate::error::Errno;
use crate::net::{Router, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::request::{MetaReply, MetaRequest, NodeStatus};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many copies there should be.
pub(super) const COPIES: u8 = 2;
/// How long it is tried to reach nodes.
const PATIENCE: Duration = Duration::from_secs(5);
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// How often the nodes are looked at.
const WATCH: Duration = Duration::from_millis(200);
const KEEPER: KeeperConfig = KeeperConfig {
    sweep_every: Duration::from_millis(400),
    scrub_every: Duration::from_millis(1_000),
    scrub_bytes_per_s: u64::MAX,
};

/// Who leads, and the other nodes, as they were when last asked.
struct Peers {
    transport: Arc<dyn Transport>,
    leader: Mutex<NodeId>,
    nodes: Mutex<Vec<NodeStatus>>,
}

impl Peers {
    async fn watch(self: Arc<Self>) {
        loop {
            if let Some(MetaReply::Nodes(nodes)) = self.ask(MetaRequest::Nodes).await {
                *self.nodes.lock().expect("no holder panics") = nodes;
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    fn leader(&self) -> NodeId {
        *self.leader.lock().expect("no holder panics")
    }
}

#[async_trait]
impl AskLeader for Peers {
    async fn ask(&self, request: MetaRequest) -> Option<MetaReply> {
        let body = Bytes::from(encode(&request));
        let last = self.leader();
        let others = self.transport.nodes().into_iter();
        let others = others.filter(|node| *node != last);
        for node in std::iter::once(last).chain(others) {
            let transport = &self.transport;
            let reply = transport.call(node, ServiceId::Meta, body.clone(), ASK_DEADLINE);
            match reply.await.ok().and_then(|reply| decode(&reply).ok()) {
                Some(MetaReply::NotLeader(_)) | None => {}
                reply => {
                    *self.leader.lock().expect("no holder panics") = node;
                    return reply;
                }
            }
        }
        None
    }
}

#[async_trait]
impl Places for Peers {
    fn targets(&self, chunk: ChunkId) -> Vec<NodeId> {
        let nodes = self.nodes.lock().expect("no holder panics");
        place::order(chunk, Some(self.transport.local()), &[], &nodes)
    }

    async fn locate(&self, chunk: ChunkId) -> Option<Vec<NodeId>> {
        match self.ask(MetaRequest::Locate(chunk)).await {
            Some(MetaReply::Located(nodes)) => Some(nodes),
            Some(_) | None => None,
        }
    }
}

/// A node's way to the chunks of all, for one life.
pub(super) struct ChunkWay {
    shared: Arc<Shared>,
    who: Who,
    peers: Arc<Peers>,
    chunks: Chunks,
}

impl ChunkWay {
    /// Serves a node's disk, looks after it, and returns the way to all.
    pub(super) fn start(
        shared: &Arc<Shared>,
        who: Who,
        store: &Arc<SimulatedStore>,
        transport: &Arc<dyn Transport>,
        router: &Router,
    ) -> Self {
        let disk = Disk::new(store.mounted());
        let service = ChunkService::new(disk.clone());
        let service = service.with_copies(Arc::clone(transport), u64::MAX);
        router.register(ServiceId::Chunk, Arc::new(service));
        let peers = Arc::new(Peers {
            transport: Arc::clone(transport),
            leader: Mutex::new(NodeId(1)),
            nodes: Mutex::default(),
        });
        drop(tokio::spawn(Arc::clone(&peers).watch()));
        let leader = Arc::<Peers>::clone(&peers);
        drop(tokio::spawn(keeper::run(disk.clone(), leader, KEEPER)));
        let config = ChunksConfig {
            replicas: COPIES.into(),
            bucket: false,
            cache_bytes: 1 << 20,
            patience: PATIENCE,
        };
        let places = Arc::<Peers>::clone(&peers);
        Self {
            shared: Arc::clone(shared),
            who,
            peers,
            chunks: Chunks::new(Arc::clone(transport), Some(disk), places, config),
        }
    }
}

#[async_trait]
impl ChunkIo for ChunkWay {
    async fn write(&self, id: ChunkId, data: Bytes, copies: u8) -> Result<Vec<NodeId>, Errno> {
        let begun = self.shared.state().now;
        let known = self.peers.targets(id);
        fail_point!("client: before a chunk is written");
        let written = self.chunks.write(id, data, copies).await;
        if let Err(errno) = &written {
            self.shared.unwritten(self.who, begun, &known, *errno);
        }
        fail_point!("client: after a chunk is written");
        written
    }

    async fn read(
        &self,
        chunk: ChunkId,
        replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno> {
        self.chunks.read(chunk, replicas, offset, len).await
    }
}
