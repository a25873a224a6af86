//! Flushes that share chunks with other files (W4).
//!
//! A copy refers to the chunks of its source instead of writing them again. The reference keeps nothing alive until it
//! is committed, so it is flushed before the copy returns, and never kept for later. If the source has changed
//! meanwhile and its chunks are dead, the leader refuses the flush as stale (M8); they can still be read for some
//! seconds, and go into chunks of the copy's own.

use super::Core;
use super::content::{ChunkPart, Segment};
use super::flush::WIDTH;
use crate::error::Errno;
use consistency::wire::meta::{Attr, Extent, FlushContent, FlushFile};
use consistency::{ChunkId, SessionId};
use futures::{StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Tells whether a flush names chunks that it does not bring.
pub(super) fn shares(content: &FlushContent) -> bool {
    let FlushContent::Extents { add, chunks, .. } = content else {
        return false;
    };
    let brought: BTreeSet<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
    add.iter().any(|extent| !brought.contains(&extent.chunk))
}

impl Core {
    /// Flushes a file again, with chunks of its own in place of those that it wanted to share.
    pub(super) async fn flush_unshared(
        self: &Arc<Self>,
        session: Option<SessionId>,
        file: &mut FlushFile,
    ) -> Result<Attr, Errno> {
        tracing::debug!(ino = %file.ino, "what was to be shared is gone: it is written anew");
        if let FlushContent::Extents { add, chunks, .. } = &mut file.content {
            let brought: BTreeSet<ChunkId> = chunks.iter().map(|(id, _)| *id).collect();
            let shared: Vec<Extent> = add
                .extract_if(.., |extent| !brought.contains(&extent.chunk))
                .collect();
            let own: Vec<Extent> = futures::stream::iter(shared)
                .map(|extent| self.store_anew(extent))
                .buffered(WIDTH)
                .try_collect()
                .await?;
            for extent in own {
                chunks.push((extent.chunk, extent.len));
                add.push(extent);
            }
            add.sort_by_key(|extent| extent.offset);
        }
        let mut results = self.send_flush(session, vec![file.clone()]).await;
        results.pop().unwrap_or(Err(Errno::EIO))
    }

    /// Stores the bytes of an extent in a chunk of their own.
    async fn store_anew(self: &Arc<Self>, extent: Extent) -> Result<Extent, Errno> {
        let part = ChunkPart::from(extent.clone());
        let bytes = self.fetch(vec![Segment::Chunk(part)]).await?;
        // More copies, if its tree has more, are the repair's to make.
        let stored = self.store_chunk(vec![bytes], 0).await?;
        Ok(Extent {
            chunk: stored.id,
            chunk_offset: 0,
            replicas: stored.replicas,
            ..extent
        })
    }
}
