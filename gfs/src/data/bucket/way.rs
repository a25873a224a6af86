//! The way to the bucket: it is called as a node is, and every node answers for it itself.

use crate::net::{ByteStream, NetError, Service, ServiceId, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A transport that leads to the bucket as well.
pub struct WithBucket {
    nodes: Arc<dyn Transport>,
    bucket: Arc<dyn Service>,
}

impl WithBucket {
    /// Adds the way to the bucket, whose chunks `bucket` hands out.
    pub fn new(nodes: Arc<dyn Transport>, bucket: Arc<dyn Service>) -> Self {
        Self { nodes, bucket }
    }
}

#[async_trait]
impl Transport for WithBucket {
    fn local(&self) -> NodeId {
        self.nodes.local()
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.nodes.nodes()
    }

    fn version_of(&self, node: NodeId) -> Option<u32> {
        self.nodes.version_of(node)
    }

    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        if (to, service) != (NodeId::BUCKET, ServiceId::Chunk) {
            return self.nodes.call(to, service, body, deadline).await;
        }
        match timeout(deadline, self.bucket.call(self.local(), body)).await {
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(NetError::Malformed {
                to,
                why: "the request was not understood".to_owned(),
            }),
            Err(_) => Err(NetError::Deadline {
                to,
                service,
                after: deadline,
            }),
        }
    }

    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError> {
        self.nodes.open(to, service).await
    }

    async fn open_with(
        &self,
        to: NodeId,
        service: ServiceId,
        first: Bytes,
    ) -> Result<ByteStream, NetError> {
        self.nodes.open_with(to, service, first).await
    }
}

impl fmt::Debug for WithBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WithBucket").field(&self.nodes).finish()
    }
}
