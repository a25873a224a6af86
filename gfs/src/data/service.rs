//! A node's chunk store, offered to the other nodes.

use super::disk::Disk;
use crate::net::Service;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::chunk::{
    CHUNK_BYTES_MAX, ChunkFailure, ChunkReply, ChunkRequest, DELETE_CHUNKS_MAX,
};
use consistency::wire::{decode, encode};
use tokio::sync::Semaphore;

/// How many requests of other nodes are here at a time, waiting for the disk or served by it. Each may hold a chunk,
/// so this bounds their memory to half a GiB; more are answered with `Busy`.
pub const SERVICE_REQUESTS_MAX: usize = 128;

/// Answers [`ChunkRequest`]s out of a [`Disk`].
#[derive(Debug)]
pub struct ChunkService {
    disk: Disk,
    admission: Semaphore,
}

impl ChunkService {
    /// Offers a disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            admission: Semaphore::new(SERVICE_REQUESTS_MAX),
        }
    }

    async fn answer(&self, request: ChunkRequest) -> Result<ChunkReply, ChunkFailure> {
        check(&request)?;
        let _admitted = self
            .admission
            .try_acquire()
            .map_err(|_| ChunkFailure::Busy)?;
        match request {
            ChunkRequest::Put { id, data, crc } => {
                // The store compares the bytes with `crc` in the same pass that makes its own checksums.
                self.disk.put(id, data, crc).await?;
                Ok(ChunkReply::Done)
            }
            ChunkRequest::Get { id, offset, len } => {
                let data = self.disk.get(id, offset, len).await?;
                let crc = crc32fast::hash(&data);
                Ok(ChunkReply::Data { data, crc })
            }
            ChunkRequest::Delete(ids) => {
                self.disk.delete(ids).await?;
                Ok(ChunkReply::Done)
            }
            ChunkRequest::Space => {
                let space = self.disk.space().await?;
                Ok(ChunkReply::Space {
                    total: space.total,
                    free: space.free,
                })
            }
        }
    }
}

/// Refuses what no honest peer sends before it costs anything.
fn check(request: &ChunkRequest) -> Result<(), ChunkFailure> {
    let fits = |len: usize| (1..=CHUNK_BYTES_MAX as usize).contains(&len);
    let good = match request {
        ChunkRequest::Put { data, .. } => fits(data.len()),
        ChunkRequest::Get { offset, len, .. } => fits(*len as usize) && *offset < CHUNK_BYTES_MAX,
        ChunkRequest::Delete(ids) => ids.len() <= DELETE_CHUNKS_MAX,
        ChunkRequest::Space => true,
    };
    if good {
        Ok(())
    } else {
        Err(ChunkFailure::BadRange)
    }
}

#[async_trait]
impl Service for ChunkService {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body)
            .inspect_err(|error| tracing::warn!(%from, %error, "refused a chunk request"))
            .ok()?;
        let reply = self
            .answer(request)
            .await
            .unwrap_or_else(ChunkReply::Failed);
        Some(encode(&reply).into())
    }
}

#[cfg(test)]
mod tests;
