//! The client's side of chunks: writes to all replicas at once, reads from the nearest that has them.
//!
//! A chunk of this node goes to its disk without a detour; what is elsewhere goes over the network and, when read,
//! through a cache in memory. Nodes that fail are replaced by others; only when nobody can do it, and nothing
//! that may pass is in the way, the caller gets an error, and the log what each node said. A chunk that turns out to
//! be damaged or missing on this node's disk is brought back from another node.

use super::cache::BlockCache;
use super::disk::Disk;
use super::replica::{Refusal, Refusals, Replicas, gather, persist};
use super::{ChunkIo, Places};
use crate::error::Errno;
use crate::net::Transport;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure, ChunkRequest};
use consistency::wire::encode;
use consistency::{ChunkId, NodeId};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long nobody may have stored a chunk before one more node is asked.
const PUT_HEDGE: Duration = Duration::from_secs(1);
/// How many chunks of this node are brought back at a time; a read that finds one more leaves it to a later read.
const REPAIRS_MAX: usize = 2;

/// How chunks are written and read.
#[derive(Clone, Copy, Debug)]
pub struct ChunksConfig {
    /// Copies of a new chunk, at least 1. Fewer are made where there are fewer nodes that can.
    pub replicas: usize,
    /// New chunks go to the bucket, and nowhere else; the transport leads there.
    pub bucket: bool,
    /// Memory for blocks of remote chunks, in bytes.
    pub cache_bytes: usize,
    /// How long it is tried to reach nodes before the caller gets an error (S5).
    pub patience: Duration,
}

impl Default for ChunksConfig {
    fn default() -> Self {
        Self {
            replicas: 2,
            bucket: false,
            cache_bytes: 32 << 20,
            patience: Duration::from_secs(30),
        }
    }
}

/// The chunks of the cluster, as one node reaches them.
pub struct Chunks {
    replicas: Arc<Replicas>,
    disk: Option<Disk>,
    places: Arc<dyn Places>,
    cache: Arc<BlockCache>,
    repairs: Arc<Semaphore>,
    config: ChunksConfig,
}

impl Chunks {
    /// Joins this node's disk, if it stores chunks, and those of the other nodes.
    pub fn new(
        transport: Arc<dyn Transport>,
        disk: Option<Disk>,
        places: Arc<dyn Places>,
        config: ChunksConfig,
    ) -> Self {
        let replicas = Arc::new(Replicas::new(transport, Arc::clone(&places)));
        let cache = BlockCache::new(Arc::clone(&replicas), config.cache_bytes, config.patience);
        Self {
            replicas,
            disk,
            places,
            cache: Arc::new(cache),
            repairs: Arc::new(Semaphore::new(REPAIRS_MAX)),
            config,
        }
    }

    /// Returns where a new chunk may go, the best first; at last here, also if this node should get none.
    fn candidates(&self, chunk: ChunkId) -> Vec<NodeId> {
        if self.config.bucket {
            return vec![NodeId::BUCKET];
        }
        let local = self.replicas.local();
        let mut nodes = self.replicas.by_health(self.places.targets(chunk));
        if self.disk.is_none() {
            nodes.retain(|node| *node != local);
        } else if !nodes.contains(&local) {
            nodes.push(local);
        }
        nodes
    }

    /// D7: stores a chunk on as many nodes as are wanted, or as can be had, but at least on one.
    async fn store(
        &self,
        id: ChunkId,
        data: &Bytes,
        copies: usize,
    ) -> Result<Vec<NodeId>, Refusals> {
        let crc = crc32fast::hash(data);
        let local = self.replicas.local();
        let request = OnceLock::new();
        let request = || {
            let put = || {
                encode(&ChunkRequest::Put {
                    id,
                    data: data.clone(),
                    crc,
                })
                .into()
            };
            Bytes::clone(request.get_or_init(put))
        };
        let ask = async |node| match &self.disk {
            Some(disk) if node == local => Ok(disk.put(id, data.clone(), crc).await?),
            _ => self.replicas.put(node, request()).await,
        };
        let mut nodes = self.candidates(id);
        if missing!(NoOther) {
            nodes.truncate(1);
        }
        let (stored, refusals) = gather(nodes.clone(), copies, PUT_HEDGE, ask).await;
        if stored.is_empty() {
            return Err(refusals);
        }
        if stored.len() < copies {
            tracing::debug!(%id, copies = stored.len(), %refusals, "fewer copies of a chunk than wanted");
        }
        let holds = |node: &NodeId| stored.iter().any(|(holder, ())| holder == node);
        Ok(nodes.into_iter().filter(holds).collect())
    }

    async fn read_here(&self, chunk: ChunkId, offset: u32, len: u32) -> Result<Bytes, Refusal> {
        let disk = self.disk.as_ref().ok_or(Refusal::NoStore)?;
        let data = disk.get(chunk, offset, len).await?;
        if data.len() == len as usize {
            Ok(data)
        } else {
            Err(ChunkFailure::BadRange.into())
        }
    }

    /// Begins to bring a chunk of this node back from those that have it, unless enough repairs are running.
    fn repair(&self, chunk: ChunkId, others: Vec<NodeId>) {
        let turn = Arc::clone(&self.repairs).try_acquire_owned();
        let (Some(disk), Ok(turn)) = (self.disk.clone(), turn) else {
            return;
        };
        let replicas = Arc::clone(&self.replicas);
        tokio::spawn(async move {
            let _turn = turn;
            let (from, data) = match replicas.fetch(chunk, &others, 0, CHUNK_BYTES_MAX).await {
                Ok(whole) => whole,
                Err(refusals) => {
                    tracing::warn!(%chunk, %refusals, "cannot repair a chunk of this node");
                    return;
                }
            };
            let crc = crc32fast::hash(&data);
            match disk.put(chunk, data, crc).await {
                Ok(()) => tracing::info!(%chunk, %from, "repaired a chunk of this node"),
                Err(failure) => {
                    tracing::warn!(%chunk, %failure, "cannot repair a chunk of this node");
                }
            }
        });
    }
}

#[async_trait]
impl ChunkIo for Chunks {
    async fn write(&self, id: ChunkId, data: Bytes, copies: u8) -> Result<Vec<NodeId>, Errno> {
        let copies = match copies {
            _ if self.config.bucket => 1,
            0 => self.config.replicas,
            copies => usize::from(copies),
        };
        let stored = persist(self.config.patience, || self.store(id, &data, copies)).await;
        stored.map_err(|refusals| {
            tracing::error!(%id, bytes = data.len(), %refusals, "cannot store a chunk");
            refusals.errno()
        })
    }

    async fn read(
        &self,
        chunk: ChunkId,
        replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno> {
        let fail = |why: &dyn fmt::Display| {
            tracing::error!(%chunk, offset, len, "cannot read a chunk: {why}");
            Errno::EIO
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        if offset
            .checked_add(len)
            .is_none_or(|end| end > CHUNK_BYTES_MAX)
        {
            return Err(fail(&"the range is larger than a chunk"));
        }
        let local = self.replicas.local();
        let replicas = self.replicas.known(chunk, replicas);
        let (here, others) = replicas
            .iter()
            .partition::<Vec<_>, _>(|node| **node == local);
        if here.is_empty() {
            return self
                .cache
                .read(chunk, &others, offset, len)
                .await
                .map_err(|said| fail(&said));
        }
        let refusal = match self.read_here(chunk, offset, len).await {
            Ok(data) => return Ok(data),
            Err(refusal) => refusal,
        };
        match self.cache.read(chunk, &others, offset, len).await {
            Ok(data) => {
                tracing::warn!(%chunk, %refusal, "read a chunk of this node from another one");
                if let Refusal::Chunk(ChunkFailure::Corrupt | ChunkFailure::Missing) = refusal {
                    self.repair(chunk, others);
                }
                Ok(data)
            }
            Err(said) => Err(fail(&format_args!("n{local}: {refusal}; {said}"))),
        }
    }
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks")
            .field("disk", &self.disk)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
