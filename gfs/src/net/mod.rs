//! How nodes talk: calls with a deadline, and byte streams for bulk.
//!
//! The real transport (QUIC with mutual TLS) is in `mount-tools`; [`mem`] is one in memory for tests, with
//! switches to lose and delay. Both hand incoming calls to a [`Router`]. A node's calls to itself go
//! straight to its router.

pub mod frames;
pub mod mem;

use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::WIRE_VERSION;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// What a call is for; the number travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ServiceId {
    /// Metadata leader: `MetaRequest`.
    Meta = 1,
    /// Client: `Break` callbacks.
    Callback = 2,
    /// Chunk store: `ChunkRequest`.
    Chunk = 3,
    /// Raft between voters.
    Raft = 4,
    /// Process agent (gproc).
    Process = 5,
    /// Device agent (gdev).
    Device = 6,
    /// Jobs (gproc): streams of stdio.
    Job = 7,
    /// Client: `Announcement` of a new leader.
    Reign = 8,
    /// Voter: `NotesRequest`, about what the leader's own node holds.
    Notes = 9,
    /// Exported directories (gdev).
    Export = 10,
}

impl ServiceId {
    /// All services, for decoding the number.
    pub const ALL: [Self; 10] = [
        Self::Meta,
        Self::Callback,
        Self::Chunk,
        Self::Raft,
        Self::Process,
        Self::Device,
        Self::Job,
        Self::Reign,
        Self::Notes,
        Self::Export,
    ];
}

/// Why a call got no answer. Whether the callee acted is unknown in every case: also a connection that breaks
/// may have carried the call across.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NetError {
    /// No answer in time.
    #[error("node {to} did not answer {service:?} within {after:?}")]
    Deadline {
        /// Who was asked.
        to: NodeId,
        /// For what.
        service: ServiceId,
        /// How long it was waited.
        after: Duration,
    },
    /// No connection.
    #[error("node {to} cannot be reached: {why}")]
    Unreachable {
        /// Who was asked.
        to: NodeId,
        /// What went wrong.
        why: String,
    },
    /// The peer answered what is no answer.
    #[error("node {to} sent a malformed reply: {why}")]
    Malformed {
        /// Who was asked.
        to: NodeId,
        /// What was wrong.
        why: String,
    },
}

/// A byte stream between two nodes, with back-pressure.
pub struct ByteStream {
    /// From the peer; ends when the peer shuts its side down.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// To the peer; `shutdown` ends it.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteStream")
    }
}

/// Sends calls to other nodes.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug {
    /// Returns this node's id.
    fn local(&self) -> NodeId;

    /// Returns all nodes of the cluster, this one included, in ascending order.
    fn nodes(&self) -> Vec<NodeId>;

    /// Returns the version of the protocol that was last spoken with a node, and of this node the newest that it speaks;
    /// `None` if it cannot be reached. What a version has added is not sent to who speaks an older one.
    fn version_of(&self, _node: NodeId) -> Option<u32> {
        Some(WIRE_VERSION)
    }

    /// Calls a service of a node and waits for the reply, at most `deadline`. Never retries by itself.
    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError>;

    /// Opens a byte stream to a service of a node.
    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError>;

    /// Opens a byte stream whose first bytes go along: a round trip less than after [`Self::open`].
    async fn open_with(
        &self,
        to: NodeId,
        service: ServiceId,
        first: Bytes,
    ) -> Result<ByteStream, NetError> {
        let mut stream = self.open(to, service).await?;
        let sent = stream.writer.write_all(&first).await;
        sent.map_err(|error| NetError::Unreachable {
            to,
            why: error.to_string(),
        })?;
        Ok(stream)
    }
}

/// Answers the calls of one service. `from` is proved by the peer's certificate.
#[async_trait]
pub trait Service: Send + Sync {
    /// Answers a call. A malformed body is answered with `None`: the connection is closed.
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes>;

    /// Says whether `call` may begin on the transport's own thread, which saves a hop each way: until its
    /// first wait it takes microseconds and never blocks (no file I/O, no contended mutex). All other traffic
    /// of the node waits as long.
    fn is_prompt(&self) -> bool {
        false
    }

    /// Takes over a stream; the default refuses by dropping it.
    async fn accept(&self, from: NodeId, stream: ByteStream) {
        drop((from, stream));
    }
}

/// The services of one node, by number. A service that is not there (yet) answers nothing.
#[derive(Default)]
pub struct Router {
    services: RwLock<BTreeMap<ServiceId, Arc<dyn Service>>>,
}

impl Router {
    /// Registers a service; a second registration replaces the first.
    pub fn register(&self, id: ServiceId, service: Arc<dyn Service>) {
        self.services
            .write()
            .expect("no holder panics")
            .insert(id, service);
    }

    /// Returns a service.
    pub fn service(&self, id: ServiceId) -> Option<Arc<dyn Service>> {
        self.services
            .read()
            .expect("no holder panics")
            .get(&id)
            .cloned()
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services = self.services.read().expect("no holder panics");
        f.debug_set().entries(services.keys()).finish()
    }
}
