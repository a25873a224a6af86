//! Nodes on 127.0.0.1, each with its own transport.

mod calls;
mod hostile;
mod latency;
mod revoked;
mod streams;
mod versions;

use super::*;
use crate::identity::ClusterCa;
use futures::future::BoxFuture;
use gfs::net::Service;
use std::time::Instant;

/// Long enough for a loaded machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often a condition is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A node under test.
struct Node {
    identity: NodeIdentity,
    transport: Arc<QuicTransport>,
    router: Arc<Router>,
}

/// Nodes of one cluster that know each other, ids from 1.
struct Cluster {
    ca: ClusterCa,
    nodes: Vec<Node>,
}

impl Cluster {
    fn of(size: u16) -> Self {
        let ca = ClusterCa::for_test();
        let identity = |id| ca.issue(NodeId(id)).expect("in range");
        let nodes: Vec<_> = (1..=size).map(|id| Node::start(identity(id), 0)).collect();
        let cluster = Self { ca, nodes };
        for node in &cluster.nodes {
            node.transport.set_peers(cluster.peers());
        }
        cluster
    }

    fn peers(&self) -> Vec<(NodeId, SocketAddr)> {
        let peer = |node: &Node| (node.id(), node.addr());
        self.nodes.iter().map(peer).collect()
    }

    /// Has node 1 know of a node more, which it cannot dial.
    fn expect_at_1(&self, node: NodeId) {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let peers = self.peers().into_iter().chain([(node, nowhere)]);
        self.node(1).transport.set_peers(peers);
    }

    /// Returns a node by its id.
    fn node(&self, id: u16) -> &Node {
        &self.nodes[usize::from(id) - 1]
    }
}

impl Node {
    /// Starts a node that echoes chunk calls; port 0 is any.
    fn start(identity: NodeIdentity, port: u16) -> Self {
        Self::try_start(identity, port).expect("the port is free")
    }

    fn try_start(identity: NodeIdentity, port: u16) -> Result<Self, TransportError> {
        Self::speaking(Versions::default(), identity, port)
    }

    /// Starts a node that speaks these versions.
    fn speaking(
        versions: Versions,
        identity: NodeIdentity,
        port: u16,
    ) -> Result<Self, TransportError> {
        let router = Arc::new(Router::default());
        router.register(ServiceId::Chunk, echo());
        let transport = QuicTransport::start_with(
            versions,
            &identity,
            SocketAddr::from(([127, 0, 0, 1], port)),
            [],
            Arc::clone(&router),
            Handle::current(),
        )?;
        Ok(Self {
            identity,
            transport: Arc::new(transport),
            router,
        })
    }

    fn id(&self) -> NodeId {
        self.identity.node()
    }

    fn addr(&self) -> SocketAddr {
        self.transport.local_addr().expect("bound")
    }

    async fn call(&self, to: u16, body: impl Into<Bytes>) -> Result<Bytes, NetError> {
        self.ask(to, ServiceId::Chunk, body).await
    }

    async fn ask(
        &self,
        to: u16,
        service: ServiceId,
        body: impl Into<Bytes>,
    ) -> Result<Bytes, NetError> {
        self.transport
            .call(NodeId(to), service, body.into(), PATIENCE)
            .await
    }

    /// Calls until it succeeds.
    async fn call_until_answered(&self, to: u16) {
        let started = Instant::now();
        loop {
            match self.call(to, "again").await {
                Ok(_) => return,
                Err(error) => assert!(
                    started.elapsed() < PATIENCE,
                    "waited for an answer: {error}"
                ),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// A service made of a function.
struct Answering<F>(F);

#[async_trait]
impl<F> Service for Answering<F>
where
    F: Fn(NodeId, Bytes) -> BoxFuture<'static, Option<Bytes>> + Send + Sync,
{
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        (self.0)(from, body).await
    }
}

fn service<F>(answer: F) -> Arc<dyn Service>
where
    F: Fn(NodeId, Bytes) -> BoxFuture<'static, Option<Bytes>> + Send + Sync + 'static,
{
    Arc::new(Answering(answer))
}

fn echo() -> Arc<dyn Service> {
    service(|_, body| Box::pin(async move { Some(body) }))
}

/// Makes a service prompt.
struct Prompt(Arc<dyn Service>);

#[async_trait]
impl Service for Prompt {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        self.0.call(from, body).await
    }

    fn is_prompt(&self) -> bool {
        true
    }
}

/// Waits for a condition.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited for {what}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Expects `Unreachable` with these words.
fn check_unreachable<T: fmt::Debug>(result: Result<T, NetError>, expected: &str) {
    match result {
        Err(NetError::Unreachable { why, .. }) if why.contains(expected) => {}
        other => panic!("expected Unreachable with {expected:?}: {other:?}"),
    }
}
