//! Messages of the chunk service: immutable pieces of file data on the nodes' disks.

use crate::{ChunkId, NodeId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest chunk in bytes.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;

/// Upper limit of the chunks in one [`ChunkRequest::Delete`].
pub const DELETE_CHUNKS_MAX: usize = 65_536;

/// Upper limit of the chunks in one [`ChunkRequest::Verify`].
pub const VERIFY_CHUNKS_MAX: usize = 16;

/// Asks a node's chunk store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkRequest {
    /// Stores a chunk durably; repeating it with the same bytes is harmless.
    Put {
        /// Name of the new chunk.
        id: ChunkId,
        /// Its bytes, 1 to [`CHUNK_BYTES_MAX`].
        data: Bytes,
        /// CRC-32 of `data`, made by the writer, kept with the chunk.
        crc: u32,
    },
    /// Reads part of a chunk.
    Get {
        /// Which chunk.
        id: ChunkId,
        /// First byte; must lie inside the chunk.
        offset: u32,
        /// How many, 1 to [`CHUNK_BYTES_MAX`]; what lies beyond the end of the chunk is left out, so that a
        /// reader may read ahead without knowing the length.
        len: u32,
    },
    /// Removes chunks; absent ones are ignored.
    ///
    /// At most [`DELETE_CHUNKS_MAX`] at a time.
    Delete(Vec<ChunkId>),
    /// Asks for the room on the disk.
    Space,
    /// Has the node make a copy of a chunk of another node's; answered by [`ChunkReply::Done`] when it is durable.
    Copy {
        /// Which chunk.
        id: ChunkId,
        /// Who has it.
        source: NodeId,
    },
    /// Has the node look at its copies of chunks from the disk up; answered by [`ChunkReply::Bad`].
    ///
    /// At most [`VERIFY_CHUNKS_MAX`] at a time.
    Verify(Vec<ChunkId>),
}

/// Answers a [`ChunkRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkReply {
    /// Put: the chunk is on the disk. Delete: the chunks are gone.
    Done,
    /// Get: the bytes, checked against the checksums of the store, and their own CRC-32 for the way.
    Data {
        /// As many bytes as asked for, fewer only at the end of the chunk.
        data: Bytes,
        /// CRC-32 of `data`.
        crc: u32,
    },
    /// Space: of the file system that holds the chunks.
    Space {
        /// Size in bytes.
        total: u64,
        /// Free bytes.
        free: u64,
    },
    /// The request failed.
    Failed(ChunkFailure),
    /// Verify: which of them are damaged or missing.
    Bad(Vec<ChunkId>),
}

/// Why a chunk request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ChunkFailure {
    /// No such chunk here.
    #[error("no such chunk")]
    Missing,
    /// The bytes do not match their checksum.
    #[error("checksum does not match")]
    Corrupt,
    /// The disk is full.
    #[error("no space left on the disk")]
    NoSpace,
    /// The range or the size is not allowed.
    #[error("bad range")]
    BadRange,
    /// The disk reported an error.
    #[error("disk error: {0}")]
    Disk(String),
    /// Too many requests wait for the disk.
    #[error("too many requests wait for the disk; ask again")]
    Busy,
    /// The node that a copy was to be made of did not hand the chunk out.
    #[error("cannot be copied from node {source_node}: {why}")]
    Source {
        /// Which node.
        source_node: NodeId,
        /// What it said.
        why: String,
    },
    /// The object store did not answer; never sent to another node.
    #[error("the object store does not answer: {0}")]
    Unavailable(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::check_golden as check;

    #[test]
    fn golden_bytes() {
        let (id, data) = (ChunkId(7), Bytes::from_static(b"x"));
        let put = ChunkRequest::Put {
            id,
            data: data.clone(),
            crc: 5,
        };
        check(&put, &[0, 7, 1, b'x', 5]);
        let (offset, len) = (1, 2);
        check(&ChunkRequest::Get { id, offset, len }, &[1, 7, 1, 2]);
        check(&ChunkRequest::Delete(vec![id]), &[2, 1, 7]);
        check(&ChunkRequest::Space, &[3]);
        let source = NodeId(3);
        check(&ChunkRequest::Copy { id, source }, &[4, 7, 3]);
        check(&ChunkRequest::Verify(vec![id]), &[5, 1, 7]);
        check(&ChunkReply::Done, &[0]);
        check(&ChunkReply::Data { data, crc: 5 }, &[1, 1, b'x', 5]);
        check(&ChunkReply::Space { total: 1, free: 2 }, &[2, 1, 2]);
        check(&ChunkReply::Bad(vec![id]), &[4, 1, 7]);
        let failures = [
            ChunkFailure::Missing,
            ChunkFailure::Corrupt,
            ChunkFailure::NoSpace,
            ChunkFailure::BadRange,
        ];
        for (at, failure) in (0..).zip(failures) {
            check(&ChunkReply::Failed(failure), &[3, at]);
        }
        let disk = ChunkFailure::Disk("d".into());
        check(&ChunkReply::Failed(disk), &[3, 4, 1, b'd']);
        check(&ChunkReply::Failed(ChunkFailure::Busy), &[3, 5]);
        let source = ChunkFailure::Source {
            source_node: source,
            why: "w".into(),
        };
        check(&ChunkReply::Failed(source), &[3, 6, 3, 1, b'w']);
        let silent = ChunkFailure::Unavailable("u".into());
        check(&ChunkReply::Failed(silent), &[3, 7, 1, b'u']);
    }
}
