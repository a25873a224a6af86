//! Clears away what nobody can reach: inodes without a name that no session knows, and chunks without a file.

use super::service::MetaServer;
use super::state::{Body, MetaState};
use super::watches::Recorder;
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire::chunk::{ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, Epoch, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(500);
/// Inodes or chunks in one round; keeps log entries and messages small.
const BATCH: usize = 1_000;
/// How long a chunk store may take to delete a batch.
const DELETE_DEADLINE: Duration = Duration::from_secs(10);

/// Runs for as long as the server lives.
pub(super) async fn run(server: Arc<MetaServer>) {
    let mut reign: Option<Epoch> = None;
    let mut dead_since: BTreeMap<ChunkId, Instant> = BTreeMap::new();
    let mut recorder = Recorder::new(Instant::now());
    loop {
        tokio::time::sleep(INTERVAL).await;
        let epoch = server.barriers.epoch();
        if epoch != reign {
            reign = epoch;
            dead_since.clear();
            recorder = Recorder::new(Instant::now());
        }
        if reign.is_some() {
            reap(&server).await;
            server.watches.keep(|| server.barriers.sessions());
            server.have_recorded(&mut recorder).await;
            delete_chunks(&server, &mut dead_since).await;
        }
    }
}

async fn reap(server: &MetaServer) {
    let found = server.barriers.with_core(|core| {
        let unknown = |state: &MetaState| {
            state
                .orphans()
                .filter(|ino| !core.known(*ino) && !state.is_being_made(*ino))
                .take(BATCH)
                .collect::<Vec<_>>()
        };
        Ok(server.log.read(unknown))
    });
    let Ok(inodes) = found else { return };
    if !inodes.is_empty()
        && let Err(error) = server.commit(Body::Reap(inodes)).await
    {
        tracing::debug!(%error, "nameless inodes stay for now");
    }
}

async fn delete_chunks(server: &MetaServer, dead_since: &mut BTreeMap<ChunkId, Instant>) {
    let dead: Vec<(ChunkId, Vec<NodeId>)> = server
        .log
        .read(|state| state.dead_chunks().take(BATCH).collect());
    let now = Instant::now();
    let mut by_node: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    let mut gone: BTreeMap<ChunkId, bool> = BTreeMap::new();
    for (chunk, replicas) in dead {
        if now.duration_since(*dead_since.entry(chunk).or_insert(now)) < server.config.dead_for {
            continue;
        }
        gone.insert(chunk, true);
        for node in replicas {
            by_node.entry(node).or_default().push(chunk);
        }
    }
    for (node, chunks) in by_node {
        if server.repair.is_gone(node) {
            // It would be asked in vain for ever. What it has of them are orphans when it is back (D3).
            if let Err(error) = server.commit(Body::ForgetDeadOn(node)).await {
                tracing::debug!(%error, "dead chunks wait for a node that is gone");
            }
            gone.extend(chunks.into_iter().map(|chunk| (chunk, false)));
            continue;
        }
        let body = Bytes::from(encode(&ChunkRequest::Delete(chunks.clone())));
        let reply = server
            .transport
            .call(node, ServiceId::Chunk, body, DELETE_DEADLINE)
            .await;
        let done = reply.is_ok_and(|reply| matches!(decode(&reply), Ok(ChunkReply::Done)));
        if !done {
            // The node will be asked again when it is back.
            gone.extend(chunks.into_iter().map(|chunk| (chunk, false)));
        }
    }
    let gone: Vec<ChunkId> = gone
        .into_iter()
        .filter_map(|(chunk, everywhere)| everywhere.then_some(chunk))
        .collect();
    if gone.is_empty() {
        return;
    }
    for chunk in &gone {
        dead_since.remove(chunk);
    }
    if let Err(error) = server.commit(Body::ForgetDead(gone)).await {
        tracing::debug!(%error, "deleted chunks stay on the list for now");
    }
}
