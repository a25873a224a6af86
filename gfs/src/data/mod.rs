//! The data of files: which bytes are where, the chunks on a node's disk, and the way between nodes.
//!
//! - [`store`]: chunks in a directory of a local disk, behind the trait [`ChunkStore`].
//! - [`bucket`]: chunks in an object store, behind the same trait.
//! - [`disk`]: a store for asynchronous callers, with a bound on what runs at once.
//! - [`service`]: a node's store, offered to the other nodes.
//! - [`io`]: the client's side, [`ChunkIo`]: writes to all replicas, reads from the nearest.
//! - [`place`]: which nodes get a chunk.
//! - [`keeper`]: looks after a node's store: scrubs it, tells the leader what is wrong, deletes orphans ([`sweep`]).
//! - [`listing`]: what a node's store has, for a check of the cluster.
//!
//! A *chunk* is immutable and its number is never used again. Therefore replicas cannot differ, a cached piece of
//! a chunk is never stale, and whatever happened to an unanswered request, repeating it is harmless. What a failed
//! writer leaves behind is named by no file; comparing [`ChunkStore::ids`] with the chunk table finds it. Where the
//! copies of a chunk are may change: what a reader knows of that is a hint ([`Places::locate`]).

pub mod bucket;
pub mod disk;
pub mod io;
pub mod keeper;
pub mod listing;
pub mod place;
pub mod service;
pub mod store;
pub mod sweep;

mod cache;
#[cfg(test)]
mod contract;
mod pace;
mod replica;
#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod testing;

use crate::error::Errno;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use consistency::{ChunkId, NodeId};
use std::fmt;

/// Chunks are read, verified and cached in blocks of this size.
pub const BLOCK_BYTES: u32 = 64 << 10;

/// Room on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system in bytes.
    pub total: u64,
    /// Bytes that can still be written.
    pub free: u64,
}

/// Durable chunks on one node. The methods block.
pub trait ChunkStore: Send + Sync + fmt::Debug {
    /// Stores a chunk durably. `crc` is the CRC-32 of `data`, made by the writer. Repeating it is harmless.
    ///
    /// # Errors
    /// `BadRange` if `data` is empty or too large, `Corrupt` if it does not match `crc`, `NoSpace` on a full
    /// disk, `Disk` for the rest; nothing of the chunk is left then.
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure>;

    /// Returns `len` bytes from `offset` on, fewer only at the end of the chunk, verified.
    ///
    /// # Errors
    /// `Missing`; `BadRange` if `len` is 0 or `offset` lies beyond the chunk; `Corrupt` if the bytes are not those
    /// that were put; `Disk`.
    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure>;

    /// Reads a whole chunk, from the medium if that is possible, and returns its length.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn verify(&self, id: ChunkId) -> Result<u32, ChunkFailure> {
        let data = self.get(id, 0, CHUNK_BYTES_MAX)?;
        Ok(u32::try_from(data.len()).expect("chunks are small"))
    }

    /// Removes chunks; absent ones are ignored. After a crash some may be back.
    ///
    /// # Errors
    /// `Disk`; some may be gone.
    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure>;

    /// Moves a chunk aside, for somebody to look at; an absent one is ignored. It is no chunk of the store any more.
    ///
    /// # Errors
    /// `Disk`.
    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure>;

    /// Returns the room on the disk.
    ///
    /// # Errors
    /// `Disk`.
    fn space(&self) -> Result<Space, ChunkFailure>;

    /// Returns all chunks here, in ascending order.
    ///
    /// # Errors
    /// `Disk`: a list with gaps would make chunks look lost.
    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure>;

    /// Returns how long an operation takes on a disk that is simulated: it is done on the spot, without a thread.
    #[cfg(test)]
    fn simulated(&self) -> Option<std::time::Duration> {
        None
    }
}

/// What the metadata leader knows of the nodes and the chunks on them.
#[async_trait]
pub trait Places: Send + Sync {
    /// Returns the nodes that take a new chunk, the best first.
    fn targets(&self, chunk: ChunkId) -> Vec<NodeId>;

    /// Returns where the copies of a chunk are by now, `None` if nobody can tell.
    async fn locate(&self, chunk: ChunkId) -> Option<Vec<NodeId>>;
}

/// Chunks of the whole cluster, for the client.
#[async_trait]
pub trait ChunkIo: Send + Sync {
    /// Stores a new chunk and returns the nodes that hold it durably, at least one, in order of preference. `copies` are
    /// wanted, 0: as many as are made of everything.
    ///
    /// # Errors
    /// ENOSPC or EIO: no node took it.
    async fn write(&self, id: ChunkId, data: Bytes, copies: u8) -> Result<Vec<NodeId>, Errno>;

    /// Returns exactly `len` bytes of a chunk from `offset` on.
    ///
    /// # Errors
    /// EIO: no replica has them, or none answered in time; the log says which said what.
    async fn read(
        &self,
        chunk: ChunkId,
        replicas: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Errno>;
}
