//! A node's chunk store, offered to the other nodes.

use super::Places;
use super::disk::Disk;
use super::listing;
use super::pace::Pace;
use super::replica::Replicas;
use crate::net::{ByteStream, Service, Transport};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::chunk::{
    CHUNK_BYTES_MAX, ChunkFailure, ChunkReply, ChunkRequest, DELETE_CHUNKS_MAX, VERIFY_CHUNKS_MAX,
};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many requests of other nodes are here at a time, waiting for the disk or served by it. Each may hold a chunk,
/// so this bounds their memory to half a GiB; more are answered with `Busy`.
pub const SERVICE_REQUESTS_MAX: usize = 128;

/// How many copies of other nodes' chunks are made at a time.
const COPIES_MAX: usize = 2;

/// Who makes copies is told where from.
struct Nowhere;

#[async_trait]
impl Places for Nowhere {
    fn targets(&self, _chunk: ChunkId) -> Vec<NodeId> {
        Vec::new()
    }

    async fn locate(&self, _chunk: ChunkId) -> Option<Vec<NodeId>> {
        None
    }
}

/// Answers [`ChunkRequest`]s out of a [`Disk`].
#[derive(Debug)]
pub struct ChunkService {
    disk: Disk,
    admission: Semaphore,
    copier: Option<Copier>,
}

/// Fetches copies of other nodes' chunks.
#[derive(Debug)]
struct Copier {
    replicas: Replicas,
    pace: Pace,
    turns: Semaphore,
}

impl ChunkService {
    /// Offers a disk.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        Self {
            disk,
            admission: Semaphore::new(SERVICE_REQUESTS_MAX),
            copier: None,
        }
    }

    /// Lets it make copies of other nodes' chunks, at a bounded rate.
    #[must_use]
    pub fn with_copies(mut self, transport: Arc<dyn Transport>, bytes_per_s: u64) -> Self {
        self.copier = Some(Copier {
            replicas: Replicas::new(transport, Arc::new(Nowhere)),
            pace: Pace::new(bytes_per_s),
            turns: Semaphore::new(COPIES_MAX),
        });
        self
    }

    async fn copy(&self, id: ChunkId, source: NodeId) -> Result<(), ChunkFailure> {
        let failed = |why: String| ChunkFailure::Source {
            source_node: source,
            why,
        };
        let copier = self
            .copier
            .as_ref()
            .ok_or_else(|| failed("this node makes no copies".to_owned()))?;
        let turn = copier.turns.acquire().await;
        let _turn = turn.expect("the semaphore is never closed");
        let fetched = copier.replicas.get(source, id, 0, CHUNK_BYTES_MAX).await;
        let data = fetched.map_err(|refusal| failed(refusal.to_string()))?;
        copier.pace.take(data.len() as u64).await;
        let crc = crc32fast::hash(&data);
        self.disk.put(id, data, crc).await
    }

    async fn verify(&self, ids: Vec<ChunkId>) -> Vec<ChunkId> {
        let mut bad = Vec::new();
        for id in ids {
            // Another failure may pass and says nothing about the chunk.
            if let Err(ChunkFailure::Corrupt | ChunkFailure::Missing) = self.disk.verify(id).await {
                bad.push(id);
            }
        }
        bad
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
            ChunkRequest::Copy { id, source } => {
                self.copy(id, source).await?;
                Ok(ChunkReply::Done)
            }
            ChunkRequest::Verify(ids) => Ok(ChunkReply::Bad(self.verify(ids).await)),
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
        ChunkRequest::Verify(ids) => ids.len() <= VERIFY_CHUNKS_MAX,
        ChunkRequest::Space | ChunkRequest::Copy { .. } => true,
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

    async fn accept(&self, from: NodeId, mut stream: ByteStream) {
        if let Err(error) = listing::answer(&self.disk, &mut stream).await {
            tracing::debug!(%from, %error, "a list of the chunks was not sent");
        }
    }
}

#[cfg(test)]
mod tests;
