//! Chunks on disks that lose nothing: the data path has simulations of its own (`server::repair::sim`, `data`).

use super::model::Who;
use super::shared::Shared;
use crate::data::ChunkIo;
use crate::error::Errno;
use crate::net::Service;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::chunk::{ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The chunks of a world.
#[derive(Debug, Default)]
pub(super) struct Chunks(Mutex<BTreeMap<ChunkId, Bytes>>);

/// A node's way to them, for one life.
pub(super) struct ChunkWay {
    pub(super) shared: Arc<Shared>,
    pub(super) chunks: Arc<Chunks>,
    pub(super) who: Who,
}

impl ChunkWay {
    async fn travel(&self) {
        let micros = self.shared.state().dice.below(4_000);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

#[async_trait]
impl ChunkIo for ChunkWay {
    async fn write(&self, id: ChunkId, data: Bytes, _copies: u8) -> Result<Vec<NodeId>, Errno> {
        self.travel().await;
        fail_point!("client: before a chunk is written");
        if self.shared.lives(self.who) {
            let mut chunks = self.chunks.0.lock().expect("no holder panics");
            let before = chunks.insert(id, data);
            if before.is_some() {
                self.shared.fail(format!("chunk {id} was written twice"));
            }
        }
        fail_point!("client: after a chunk is written");
        Ok(vec![NodeId(self.who.node)])
    }

    async fn read(
        &self,
        chunk: ChunkId,
        _replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno> {
        self.travel().await;
        let chunks = self.chunks.0.lock().expect("no holder panics");
        let Some(data) = chunks.get(&chunk) else {
            if self.shared.lives(self.who) {
                self.shared
                    .fail(format!("chunk {chunk} is read and not there"));
            }
            return Err(Errno::EIO);
        };
        let offset = offset as usize;
        Ok(data.slice(offset..offset + len as usize))
    }
}

/// Deletes what the leader says is dead.
#[async_trait]
impl Service for Chunks {
    async fn call(&self, _from: NodeId, body: Bytes) -> Option<Bytes> {
        let ChunkRequest::Delete(dead) = decode(&body).ok()? else {
            return None;
        };
        let mut chunks = self.0.lock().expect("no holder panics");
        for chunk in dead {
            chunks.remove(&chunk);
        }
        Some(encode(&ChunkReply::Done).into())
    }
}
