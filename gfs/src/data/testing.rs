//! Nodes with chunks for tests: a store in memory that can fail, and a service that can be watched and spoilt.

use super::disk::Disk;
use super::io::{Chunks, ChunksConfig};
use super::service::ChunkService;
use super::{ChunkStore, Places, Space};
use crate::net::mem::{MemNet, MemTransport};
use crate::net::{Router, Service, ServiceId};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Returns bytes that differ from block to block.
pub(super) fn bytes(len: u32) -> Bytes {
    (0..len)
        .map(|at| (at % 251).to_le_bytes()[0] ^ (at >> 16).to_le_bytes()[0])
        .collect::<Vec<_>>()
        .into()
}

/// Waits for a condition that other tasks bring about.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "waited in vain: {what}"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Chunks in memory.
#[derive(Debug, Default)]
pub(super) struct MemStore {
    chunks: Mutex<BTreeMap<ChunkId, Bytes>>,
    /// Answers to every put.
    pub(super) refuse_puts: Mutex<Option<ChunkFailure>>,
    /// While true, gets wait.
    shut: Mutex<bool>,
    opened: Condvar,
}

impl MemStore {
    /// Makes gets wait.
    pub(super) fn shut(&self) {
        *self.shut.lock().expect("no holder panics") = true;
    }

    /// Lets gets go on.
    pub(super) fn open(&self) {
        *self.shut.lock().expect("no holder panics") = false;
        self.opened.notify_all();
    }
}

impl ChunkStore for Arc<MemStore> {
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure> {
        if let Some(failure) = &*self.refuse_puts.lock().expect("no holder panics") {
            return Err(failure.clone());
        }
        assert_eq!(crc, crc32fast::hash(data), "writers send true checksums");
        self.chunks
            .lock()
            .expect("no holder panics")
            .insert(id, Bytes::copy_from_slice(data));
        Ok(())
    }

    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        let shut = self.shut.lock().expect("no holder panics");
        drop(
            self.opened
                .wait_while(shut, |shut| *shut)
                .expect("no holder panics"),
        );
        let chunks = self.chunks.lock().expect("no holder panics");
        let data = chunks.get(&id).ok_or(ChunkFailure::Missing)?;
        if len == 0 || offset as usize >= data.len() {
            return Err(ChunkFailure::BadRange);
        }
        let end = (offset as usize + len as usize).min(data.len());
        Ok(data.slice(offset as usize..end))
    }

    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        self.chunks
            .lock()
            .expect("no holder panics")
            .retain(|id, _| !ids.contains(id));
        Ok(())
    }

    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure> {
        self.delete(&[id])
    }

    fn space(&self) -> Result<Space, ChunkFailure> {
        Ok(Space {
            total: 1000,
            free: 10,
        })
    }

    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        Ok(self
            .chunks
            .lock()
            .expect("no holder panics")
            .keys()
            .copied()
            .collect())
    }
}

/// A [`ChunkService`] that counts its calls and can be spoilt.
#[derive(Debug)]
pub(super) struct Spy {
    inner: ChunkService,
    gets: AtomicUsize,
    stuck: AtomicBool,
    lie: Mutex<Option<ChunkReply>>,
}

impl Spy {
    /// Returns how many gets have come.
    pub(super) fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }

    /// From now on nothing is answered.
    pub(super) fn stick(&self) {
        self.stuck.store(true, Ordering::SeqCst);
    }

    /// From now on everything is answered with `reply`.
    pub(super) fn lie(&self, reply: ChunkReply) {
        *self.lie.lock().expect("no holder panics") = Some(reply);
    }
}

#[async_trait]
impl Service for Spy {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        if matches!(decode(&body), Ok(ChunkRequest::Get { .. })) {
            self.gets.fetch_add(1, Ordering::SeqCst);
        }
        if self.stuck.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let lie = self
            .lie
            .lock()
            .expect("no holder panics")
            .as_ref()
            .map(encode);
        match lie {
            Some(lie) => Some(lie.into()),
            None => self.inner.call(from, body).await,
        }
    }
}

/// A node that stores chunks in memory.
pub(super) struct Node {
    pub(super) store: Arc<MemStore>,
    pub(super) spy: Arc<Spy>,
    disk: Disk,
    transport: Arc<MemTransport>,
}

/// Serves `disk` on a node's router.
pub(super) fn serve(router: &Router, disk: Disk) -> Arc<Spy> {
    let spy = Arc::new(Spy {
        inner: ChunkService::new(disk),
        gets: AtomicUsize::new(0),
        stuck: AtomicBool::new(false),
        lie: Mutex::default(),
    });
    router.register(ServiceId::Chunk, Arc::<Spy>::clone(&spy));
    spy
}

/// Nodes 1, 2, ... on one network.
pub(super) struct Cluster {
    pub(super) net: MemNet,
    nodes: BTreeMap<NodeId, Node>,
    pub(super) config: ChunksConfig,
    /// Where the leader says that a chunk is.
    pub(super) located: Located,
}

type Located = Arc<Mutex<BTreeMap<ChunkId, Vec<NodeId>>>>;

/// New chunks go to the same nodes always.
pub(super) struct TestPlaces {
    pub(super) targets: Vec<NodeId>,
    pub(super) located: Located,
}

#[async_trait]
impl Places for TestPlaces {
    fn targets(&self, _chunk: ChunkId) -> Vec<NodeId> {
        self.targets.clone()
    }

    async fn locate(&self, chunk: ChunkId) -> Option<Vec<NodeId>> {
        let located = self.located.lock().expect("no holder panics");
        located.get(&chunk).cloned()
    }
}

impl Cluster {
    pub(super) fn new(count: u16) -> Self {
        let net = MemNet::default();
        let node = |id| {
            let (transport, router) = net.join(id);
            let store = Arc::<MemStore>::default();
            let disk = Disk::new(Arc::clone(&store));
            let spy = serve(&router, disk.clone());
            (
                id,
                Node {
                    store,
                    spy,
                    disk,
                    transport,
                },
            )
        };
        let nodes = (1..=count).map(NodeId).map(node).collect();
        let config = ChunksConfig {
            patience: Duration::ZERO,
            ..ChunksConfig::default()
        };
        let located = Located::default();
        Self {
            net,
            nodes,
            config,
            located,
        }
    }

    pub(super) fn node(&self, id: u16) -> &Node {
        &self.nodes[&NodeId(id)]
    }

    /// Returns the client of a node; its peers are all nodes in ascending order.
    pub(super) fn client(&self, id: u16) -> Chunks {
        self.client_with(id, Some(self.node(id).disk.clone()))
    }

    /// Returns the client of a node that stores no chunks.
    pub(super) fn diskless(&self, id: u16) -> Chunks {
        self.client_with(id, None)
    }

    pub(super) fn client_with(&self, id: u16, disk: Option<Disk>) -> Chunks {
        let peers = self.nodes.keys().copied().collect::<Vec<_>>();
        let mut targets = peers.clone();
        targets.sort_by_key(|node| node.0 != id);
        let places = TestPlaces {
            targets,
            located: Arc::clone(&self.located),
        };
        Chunks::new(
            self.node(id).transport.clone(),
            disk,
            Arc::new(places),
            self.config,
        )
    }

    /// Puts a chunk on nodes behind everybody's back.
    pub(super) fn plant(&self, id: ChunkId, data: &Bytes, nodes: &[u16]) {
        for node in nodes {
            self.node(*node)
                .store
                .put(id, data, crc32fast::hash(data))
                .expect("put");
        }
    }
}
