//! A network in memory for tests: same trait, no sockets, links that can be cut.

use super::{ByteStream, NetError, Router, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// The network; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemNet {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    routers: BTreeMap<NodeId, Arc<Router>>,
    cut: BTreeSet<NodeId>,
    late: Duration,
}

/// One node's access to a [`MemNet`].
#[derive(Debug)]
pub struct MemTransport {
    net: MemNet,
    local: NodeId,
}

impl MemNet {
    /// Adds a node (or replaces it after a crash) and returns its transport and router.
    pub fn join(&self, node: NodeId) -> (Arc<MemTransport>, Arc<Router>) {
        let router = Arc::new(Router::default());
        let mut inner = self.inner.write().expect("no holder panics");
        inner.routers.insert(node, Arc::clone(&router));
        let net = self.clone();
        (Arc::new(MemTransport { net, local: node }), router)
    }

    /// Cuts a node off from all others: calls to and from it run into their deadline.
    pub fn cut(&self, node: NodeId) {
        self.inner
            .write()
            .expect("no holder panics")
            .cut
            .insert(node);
    }

    /// Connects a node again.
    pub fn heal(&self, node: NodeId) {
        self.inner
            .write()
            .expect("no holder panics")
            .cut
            .remove(&node);
    }

    /// Has every answer to another node come so late.
    pub fn answer_late(&self, late: Duration) {
        self.inner.write().expect("no holder panics").late = late;
    }

    fn late(&self) -> Duration {
        self.inner.read().expect("no holder panics").late
    }

    fn route(&self, from: NodeId, to: NodeId) -> Option<Arc<Router>> {
        let inner = self.inner.read().expect("no holder panics");
        let whole = from == to || (!inner.cut.contains(&from) && !inner.cut.contains(&to));
        inner.routers.get(&to).filter(|_| whole).cloned()
    }
}

#[async_trait]
impl Transport for MemTransport {
    fn local(&self) -> NodeId {
        self.local
    }

    fn nodes(&self) -> Vec<NodeId> {
        let inner = self.net.inner.read().expect("no holder panics");
        inner.routers.keys().copied().collect()
    }

    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        let timed_out = NetError::Deadline {
            to,
            service,
            after: deadline,
        };
        let answer = async {
            let there = self.net.route(self.local, to)?.service(service)?;
            let reply = there.call(self.local, body).await?;
            let late = self.net.late();
            if to != self.local && !late.is_zero() {
                tokio::time::sleep(late).await;
            }
            // A link cut in the meantime loses the reply.
            self.net.route(to, self.local).map(|_| reply)
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => {
                tokio::time::sleep(deadline.min(Duration::from_millis(20))).await;
                Err(timed_out)
            }
            Err(_) => Err(timed_out),
        }
    }

    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError> {
        let router = self.net.route(self.local, to);
        let there = router.and_then(|router| router.service(service));
        let there = there.ok_or_else(|| NetError::Unreachable {
            to,
            why: format!("no {service:?} there"),
        })?;
        let (here_end, there_end) = tokio::io::duplex(64 << 10);
        let split = |end| {
            let (reader, writer) = tokio::io::split(end);
            ByteStream {
                reader: Box::new(reader),
                writer: Box::new(writer),
            }
        };
        let (from, stream) = (self.local, split(there_end));
        tokio::spawn(async move { there.accept(from, stream).await });
        Ok(split(here_end))
    }
}
