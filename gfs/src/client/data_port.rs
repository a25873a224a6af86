//! What the client needs from the data side.

use crate::error::Errno;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::{ChunkId, NodeId};

/// Stores and fetches immutable chunks.
#[async_trait]
pub trait ChunkIo: Send + Sync {
    /// Stores a new chunk and returns the nodes that hold it durably, at least one.
    async fn write(&self, id: ChunkId, data: Bytes) -> Result<Vec<NodeId>, Errno>;

    /// Reads `len` bytes of a chunk from one of its replicas; never fewer.
    async fn read(
        &self,
        chunk: ChunkId,
        replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno>;
}
