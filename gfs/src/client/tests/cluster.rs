//! A leader on a network in memory, and transports that lose and delay.

use super::mount::Mount;
use super::{wait, within};
use crate::client::{Client, Config};
use crate::data::ChunkIo;
use crate::error::Errno;
use crate::net::mem::MemNet;
use crate::net::{ByteStream, NetError, Router, ServiceId, Transport};
use crate::server::log::{LogConfig, Replicated};
use crate::server::service::{Config as ServerConfig, MetaServer};
use crate::server::state::MetaState;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::meta::Op;
use consistency::wire::request::{MetaReply, MetaRequest};
use consistency::wire::{WIRE_VERSION, decode};
use consistency::{ChunkId, Duration as Micros, InodeNo, NodeId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::Semaphore;

const LEADER: NodeId = NodeId(1);

/// A leader and what the nodes share.
pub(super) struct Cluster {
    pub(super) net: MemNet,
    servers: Mutex<Vec<Arc<MetaServer>>>,
    log: Replicated<MetaState>,
    transport: Arc<dyn Transport>,
    router: Arc<Router>,
    config: ServerConfig,
    pub(super) chunks: Arc<MemChunks>,
    _dir: TempDir,
}

impl Cluster {
    pub(super) async fn start() -> Self {
        Self::with_term(Duration::from_secs(10)).await
    }

    pub(super) async fn with_term(term: Duration) -> Self {
        let net = MemNet::default();
        let (transport, router) = net.join(LEADER);
        let dir = TempDir::new_in("/dev/shm").expect("a temporary directory");
        let log = LogConfig {
            node: LEADER,
            voters: vec![LEADER],
            dir: dir.path().into(),
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(250), Duration::from_millis(500)),
            snapshot_every: LogConfig::SNAPSHOT_EVERY,
            snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
        };
        let log = Replicated::open(log, transport.clone(), &router).await;
        let log = log.expect("the directory is new");
        let leadership = log.leadership();
        wait("the lone voter leads", || leadership.borrow().ready).await;
        let micros = |time: Duration| Micros(u64::try_from(time.as_micros()).expect("short"));
        let config = ServerConfig {
            term: micros(term),
            break_timeout: Micros::from_millis(5_000),
            replicas: 1,
            gone_after: Duration::from_secs(60),
            dead_for: Duration::from_secs(10),
            bucket_bytes: None,
        };
        let cluster = Self {
            net,
            servers: Mutex::default(),
            log,
            transport,
            router,
            config,
            chunks: Arc::default(),
            _dir: dir,
        };
        cluster.replace_leader();
        cluster
    }

    /// Puts a new leader in the place of the present one, which is not asked any more. Call it only in tests that are
    /// shorter than a term: the old one then ends sessions that it does not hear of.
    pub(super) fn replace_leader(&self) {
        let transport = Arc::clone(&self.transport);
        let server = MetaServer::start(self.config, self.log.clone(), transport, &self.router);
        self.servers.lock().expect("no holder panics").push(server);
    }

    /// Returns whether the leader knows of an inode.
    pub(super) fn knows(&self, ino: InodeNo) -> bool {
        self.log.read(|state| state.attr(ino).is_ok())
    }

    /// Has the present leader answer a request of a node, once it leads.
    pub(super) async fn ask(&self, from: u16, request: MetaRequest) -> MetaReply {
        let server = {
            let servers = self.servers.lock().expect("no holder panics");
            Arc::clone(servers.last().expect("there is one"))
        };
        let answered = async {
            loop {
                match server.handle(NodeId(from), request.clone()).await {
                    MetaReply::NotLeader(_) => tokio::task::yield_now().await,
                    reply => return reply,
                }
            }
        };
        within("the leader answers", answered).await
    }

    /// Starts a node with a mount.
    pub(super) async fn node(&self, node: u16) -> Mount {
        self.node_with(node, Config::default()).await
    }

    pub(super) async fn node_with(&self, node: u16, config: Config) -> Mount {
        let (transport, router) = self.net.join(NodeId(node));
        let faults = Arc::new(Faults::default());
        let transport = Arc::new(Faulty {
            inner: transport,
            faults: Arc::clone(&faults),
        });
        let chunks: Arc<dyn ChunkIo> = self.chunks.clone();
        let report = Box::new(Default::default);
        let client = Client::start(config, transport, &router, chunks, report);
        let mount = Mount::new(client, faults).await;
        let session = async {
            while mount.client.session().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within("the session is open", session).await;
        mount
    }
}

/// Chunks of all nodes.
#[derive(Default)]
pub(super) struct MemChunks {
    chunks: Mutex<HashMap<ChunkId, Bytes>>,
    pub(super) full: AtomicBool,
    pub(super) reads: AtomicU64,
    /// Writes that were begun.
    pub(super) writes: AtomicU64,
    /// Writes wait for it.
    pub(super) gate: tokio::sync::RwLock<()>,
}

impl MemChunks {
    /// Returns how many chunks there are.
    pub(super) fn count(&self) -> usize {
        self.chunks.lock().expect("no holder panics").len()
    }

    /// Loses all of them.
    pub(super) fn lose(&self) {
        self.chunks.lock().expect("no holder panics").clear();
    }
}

#[async_trait]
impl ChunkIo for MemChunks {
    async fn write(&self, id: ChunkId, data: Bytes, _copies: u8) -> Result<Vec<NodeId>, Errno> {
        if self.full.load(Ordering::SeqCst) {
            return Err(Errno(libc::ENOSPC));
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.read().await;
        let before = self
            .chunks
            .lock()
            .expect("no holder panics")
            .insert(id, data);
        assert!(before.is_none(), "chunk {id} was written twice");
        Ok(vec![LEADER])
    }

    async fn read(
        &self,
        chunk: ChunkId,
        _replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let chunks = self.chunks.lock().expect("no holder panics");
        let data = chunks.get(&chunk).ok_or(Errno::EIO)?;
        let offset = offset as usize;
        Ok(data.slice(offset..offset + len as usize))
    }
}

/// What a node's transport does to its requests to the leader.
#[derive(Debug)]
pub(super) struct Faults {
    /// Replies to operations that will be lost.
    pub(super) lose: AtomicU64,
    /// Operations sent.
    pub(super) sent: Mutex<Vec<MetaRequest>>,
    /// While closed, replies to operations that `holds` matches wait.
    pub(super) gate: Semaphore,
    holds: Mutex<Option<fn(&Op) -> bool>>,
    /// Replies that wait or have waited.
    pub(super) held: AtomicU64,
    /// The version of the protocol that the others speak.
    pub(super) version: AtomicU32,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            lose: AtomicU64::new(0),
            sent: Mutex::default(),
            gate: Semaphore::new(0),
            holds: Mutex::default(),
            held: AtomicU64::new(0),
            version: AtomicU32::new(WIRE_VERSION),
        }
    }
}

impl Faults {
    /// From now on holds the replies to some operations back, until [`Self::let_go`].
    pub(super) fn hold(&self, which: fn(&Op) -> bool) {
        *self.holds.lock().expect("no holder panics") = Some(which);
    }

    /// Waits until a reply is held back.
    pub(super) async fn holding(&self) {
        wait("a reply is held back", || {
            self.held.load(Ordering::SeqCst) > 0
        })
        .await;
    }

    pub(super) fn let_go(&self) {
        *self.holds.lock().expect("no holder panics") = None;
        self.held.store(0, Ordering::SeqCst);
        self.gate.add_permits(1000);
    }

    /// Returns how many operations were sent since the last call.
    pub(super) fn ops(&self) -> usize {
        let sent = std::mem::take(&mut *self.sent.lock().expect("no holder panics"));
        let op = |request: &&MetaRequest| matches!(request, MetaRequest::Op { .. });
        sent.iter().filter(op).count()
    }

    /// Returns how many requests to lock were sent since the last call.
    pub(super) fn lock_requests(&self) -> usize {
        let sent = std::mem::take(&mut *self.sent.lock().expect("no holder panics"));
        let lock = |request: &&MetaRequest| matches!(request, MetaRequest::Lock { .. });
        sent.iter().filter(lock).count()
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Transport>,
    faults: Arc<Faults>,
}

#[async_trait]
impl Transport for Faulty {
    fn local(&self) -> NodeId {
        self.inner.local()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.inner.nodes()
    }

    fn version_of(&self, _node: NodeId) -> Option<u32> {
        Some(self.faults.version.load(Ordering::Relaxed))
    }

    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        let request = match service {
            ServiceId::Meta => decode::<MetaRequest>(&body).ok(),
            _ => None,
        };
        let reply = self.inner.call(to, service, body, deadline).await;
        let Some(request) = request else { return reply };
        let faults = &self.faults;
        faults
            .sent
            .lock()
            .expect("no holder panics")
            .push(request.clone());
        if let MetaRequest::Op { op, .. } = &request {
            let holds = *faults.holds.lock().expect("no holder panics");
            if holds.is_some_and(|holds| holds(op)) {
                faults.held.fetch_add(1, Ordering::SeqCst);
                let _passed = faults.gate.acquire().await;
            }
            let less = |lose: u64| lose.checked_sub(1);
            let lost = faults
                .lose
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
            if lost.is_ok() {
                let after = Duration::ZERO;
                return Err(NetError::Deadline { to, service, after });
            }
        }
        reply
    }

    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError> {
        self.inner.open(to, service).await
    }
}
