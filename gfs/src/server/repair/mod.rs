//! Keeps as many good copies of every chunk as there should be: the leader looks, plans and commits, the nodes copy.
//!
//! - [`plan`]: what is to be done about a chunk. Pure.
//! - [`book`]: what is under way. Sans-io.
//! - [`bucket`]: looks after the bucket, where file data is kept in an object store.
//! - here: asks the nodes, and commits what they have done.
//!
//! # Rules
//! - D1: a copy is listed once its node says that it is durable, if the chunk is live and its source still listed.
//! - D2: a copy is dropped only while another one is listed; one that is not known to be bad only if the others were
//!   verified just before, or together with the listing of a new one; one that is only if another one was.
//! - D3: a node deletes a copy that the leader, asked after the node's sweep began, has listed there neither as live nor
//!   as dead, nor given to a live session to be written, nor under way; and that was not put since the sweep began.
//! - D4: what was decided under a reign is not done under another.
//! - D5: a copy counts as bad once the leader itself has asked its node, with nothing under way for that chunk.
//!
//! Lock order: the book, then the state.

pub(crate) mod book;
mod bucket;
pub(crate) mod plan;
#[cfg(test)]
mod sim;

use self::book::{Book, Outcome};
use self::plan::{Job, View};
use super::service::MetaServer;
use super::state::{Body, Listed, MetaState, Reply, Step};
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::wire::request::{MetaReply, NodeStatus, RepairStatus};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, Epoch, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Chunks looked at in one go; the state cannot change meanwhile.
const SLICE: usize = 10_000;
/// Pause between two looks while there is something to do.
const PRESSED: Duration = Duration::from_millis(50);
/// Pause between two looks otherwise.
const CALM: Duration = Duration::from_secs(1);
/// How long a copy may take, its turn at the target included.
const COPY_DEADLINE: Duration = Duration::from_secs(120);
/// How long it may take to read a few chunks.
const VERIFY_DEADLINE: Duration = Duration::from_secs(60);
/// Table entries compared with one inventory.
const COMPARED_MAX: usize = 50_000;
/// Missing chunks taken from one inventory.
const MISSING_MAX: usize = 10_000;

/// The repair's part of the server.
#[derive(Debug, Default)]
pub(super) struct Repair {
    book: Mutex<Book>,
    news: Notify,
}

impl Repair {
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("no holder panics")
    }

    /// Returns whether a node is away for so long that nobody waits for it.
    pub(super) fn is_gone(&self, node: NodeId) -> bool {
        self.book().is_gone(node)
    }

    /// Returns how it stands; `nodes` are as they are now.
    pub(super) fn status(&self, nodes: &[NodeStatus]) -> RepairStatus {
        self.book().status(nodes)
    }

    /// Takes a node's word that its copies may be bad.
    pub(super) fn report(&self, node: NodeId, chunks: Vec<ChunkId>) {
        self.book().report(node, chunks);
        self.news.notify_one();
    }
}

/// Runs for as long as the server lives.
pub(super) async fn run(server: Arc<MetaServer>) {
    let mut pause = PRESSED;
    loop {
        // Either way it looks.
        drop(tokio::time::timeout(pause, server.repair.news.notified()).await);
        let (pressed, jobs) = round(&server);
        pause = if pressed { PRESSED } else { CALM };
        for job in jobs {
            tokio::spawn(perform(Arc::clone(&server), job));
        }
    }
}

/// Begins what is to be done; returns whether there may be more.
fn round(server: &MetaServer) -> (bool, Vec<Job>) {
    let reign = server.barriers.epoch();
    let nodes = if reign.is_some() {
        server.statuses()
    } else {
        Vec::new()
    };
    let shut_out = server.shut_out();
    let mut book = server.repair.book();
    if book.reign() != reign {
        book.begin(reign);
    }
    if reign.is_none() {
        return (false, Vec::new());
    }
    let now = Instant::now();
    let mut view = View {
        nodes,
        copies: server.config.replicas,
        ..View::default()
    };
    if book.note_nodes(now, &mut view, server.config.gone_after, &shut_out) {
        tracing::debug!(gone = ?view.gone, "the nodes have changed: looking at all chunks");
    }
    let mut jobs = book.checks(now, &view);
    let slice = |state: &MetaState| state.listed_from(book.cursor()).take(SLICE).collect();
    let chunks: Vec<Listed> = server.log.read(slice);
    let end = chunks.len() < SLICE;
    jobs.extend(book.plan(now, &view, chunks, end));
    (book.is_pressed(), jobs)
}

async fn perform(server: Arc<MetaServer>, job: Job) {
    let Some(reign) = server.repair.book().reign() else {
        return;
    };
    let outcome = match &job {
        Job::Copy {
            chunk,
            source,
            to,
            instead,
        } => {
            let step = Step::Copied {
                chunk: *chunk,
                source: *source,
                to: *to,
                instead: *instead,
            };
            match copy(&server, *chunk, *source, *to).await {
                Ok(()) => commit(&server, reign, vec![step]).await.0,
                Err(()) => Outcome::Failed,
            }
        }
        Job::Trim { chunk, node, keep } => {
            let step = Step::Drop {
                chunk: *chunk,
                node: *node,
            };
            match all_good(&server, *chunk, keep).await {
                Ok(()) => commit(&server, reign, vec![step]).await.0,
                Err(()) => Outcome::Failed,
            }
        }
        Job::Check { node, chunks } => check(&server, reign, *node, chunks).await,
    };
    let mut book = server.repair.book();
    if book.reign() == Some(reign) {
        book.end(Instant::now(), &job, outcome);
        server.repair.news.notify_one();
    }
}

/// Has a node make a copy.
async fn copy(server: &MetaServer, id: ChunkId, source: NodeId, to: NodeId) -> Result<(), ()> {
    if missing!(ListAtOnce) {
        return Ok(());
    }
    let request = ChunkRequest::Copy { id, source };
    match call(server, to, &request, COPY_DEADLINE).await? {
        ChunkReply::Done => {
            tracing::debug!(%id, %source, %to, "a copy was made");
            Ok(())
        }
        ChunkReply::Failed(failure) => {
            tracing::warn!(%id, %source, %to, %failure, "cannot make a copy");
            if let ChunkFailure::Source { .. } = failure {
                server.repair.book().report(source, [id]);
            }
            Err(())
        }
        _ => Err(()),
    }
}

/// Has nodes look at their copies of a chunk.
async fn all_good(server: &MetaServer, chunk: ChunkId, nodes: &[NodeId]) -> Result<(), ()> {
    for node in nodes {
        let bad = verify(server, *node, vec![chunk]).await?;
        if !bad.is_empty() {
            server.repair.book().report(*node, bad);
            return Err(());
        }
    }
    Ok(())
}

/// D5: asks a node about copies that it has reported, and drops those that are bad.
async fn check(server: &MetaServer, reign: Epoch, node: NodeId, chunks: &[ChunkId]) -> Outcome {
    let listed = |state: &MetaState| {
        let here = |chunk: &ChunkId| {
            let listed = state.listed(*chunk);
            listed.is_some_and(|listed| listed.replicas.contains(&node))
        };
        chunks.iter().copied().filter(here).collect::<Vec<_>>()
    };
    let listed = server.log.read(listed);
    if listed.is_empty() {
        return Outcome::Done;
    }
    let Ok(bad) = verify(server, node, listed).await else {
        return Outcome::Failed;
    };
    if bad.is_empty() {
        return Outcome::Done;
    }
    let good = good_elsewhere(server, &bad, node).await;
    let listed = |chunk: ChunkId| server.log.read(|state| state.listed(chunk)).is_some();
    for chunk in bad.iter().filter(|chunk| !good.contains(chunk)) {
        if listed(*chunk) {
            tracing::error!(%chunk, %node, "a copy is damaged or missing, and no other one is known to be good");
        }
    }
    if good.is_empty() {
        return Outcome::Failed;
    }
    let steps = good.iter().map(|chunk| Step::Drop {
        chunk: *chunk,
        node,
    });
    let (outcome, made) = commit(server, reign, steps.collect()).await;
    for (chunk, _) in good.iter().zip(made).filter(|(_, made)| *made) {
        tracing::warn!(%chunk, %node, "dropped a damaged or missing copy");
    }
    if outcome == Outcome::Done && good.len() < bad.len() {
        return Outcome::Failed;
    }
    outcome
}

/// D2: returns the chunks of which another node has just found its listed copy good. A disk that cannot be read now may
/// have the last good copy, beside one that was damaged and not found yet.
async fn good_elsewhere(
    server: &MetaServer,
    chunks: &[ChunkId],
    bad_on: NodeId,
) -> BTreeSet<ChunkId> {
    if missing!(DropUnverified) {
        return chunks.iter().copied().collect();
    }
    let mut others: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
    server.log.read(|state| {
        for listed in chunks.iter().filter_map(|chunk| state.listed(*chunk)) {
            for node in listed.replicas.iter().filter(|node| **node != bad_on) {
                others.entry(*node).or_default().push(listed.id);
            }
        }
    });
    let mut good = BTreeSet::new();
    for (node, mut chunks) in others {
        chunks.retain(|chunk| !good.contains(chunk));
        if chunks.is_empty() {
            continue;
        }
        if let Ok(bad) = verify(server, node, chunks.clone()).await {
            good.extend(chunks.into_iter().filter(|chunk| !bad.contains(chunk)));
        }
    }
    good
}

async fn verify(
    server: &MetaServer,
    node: NodeId,
    chunks: Vec<ChunkId>,
) -> Result<Vec<ChunkId>, ()> {
    let asked = chunks.clone();
    let request = ChunkRequest::Verify(chunks);
    match call(server, node, &request, VERIFY_DEADLINE).await? {
        ChunkReply::Bad(bad) => Ok(asked.into_iter().filter(|id| bad.contains(id)).collect()),
        _ => Err(()),
    }
}

async fn call(
    server: &MetaServer,
    to: NodeId,
    request: &ChunkRequest,
    deadline: Duration,
) -> Result<ChunkReply, ()> {
    let body = Bytes::from(encode(request));
    let reply = server.transport.call(to, ServiceId::Chunk, body, deadline);
    let reply = reply.await.map_err(|error| error.to_string());
    let reply = reply.and_then(|reply| decode(&reply).map_err(|error| error.to_string()));
    reply.map_err(|error| tracing::debug!(%to, error, "no answer about chunks"))
}

/// Commits steps (D4); returns which were made.
async fn commit(server: &MetaServer, reign: Epoch, steps: Vec<Step>) -> (Outcome, Vec<bool>) {
    match server.commit(Body::Repair { reign, steps }).await {
        Ok(Reply::Repaired(made)) if made.contains(&false) => (Outcome::Failed, made),
        Ok(Reply::Repaired(made)) => (Outcome::Done, made),
        Ok(other) => unreachable!("Repair is answered by what was done, not {other:?}"),
        Err(error) => {
            tracing::debug!(%error, "what the repair did is not committed");
            (Outcome::Unknown, Vec::new())
        }
    }
}

/// Compares what a node has with what is listed there (D3); `None` if this node does not lead (any more).
pub(super) async fn inventory(
    server: &MetaServer,
    node: NodeId,
    from: ChunkId,
    to: ChunkId,
    chunks: &[ChunkId],
) -> Option<MetaReply> {
    let reign = server.barriers.epoch()?;
    // A deposed leader would not know what its successor lists.
    server.log.confirm_leader().await.ok()?;
    // First what is under way, then the state: a job that ends in between has listed its copy.
    let busy = server.repair.book().busy();
    let known = |state: &MetaState| compare(state, &busy, node, from, to, chunks);
    let Compared {
        orphans,
        missing,
        upto,
    } = server.log.read(known);
    let same = |book: &Book| book.reign() == Some(reign);
    if !same(&server.repair.book()) || server.barriers.epoch() != Some(reign) {
        return None;
    }
    if !missing.is_empty() {
        server.repair.report(node, missing);
    }
    Some(MetaReply::Inventory { orphans, upto })
}

/// What an inventory comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compared {
    pub(crate) orphans: Vec<ChunkId>,
    /// Listed there, and not there.
    pub(crate) missing: Vec<ChunkId>,
    /// What was compared.
    pub(crate) upto: ChunkId,
}

/// Compares what a node has from `from` to `to` with what is listed there.
pub(crate) fn compare(
    state: &MetaState,
    busy: &BTreeSet<ChunkId>,
    node: NodeId,
    from: ChunkId,
    to: ChunkId,
    chunks: &[ChunkId],
) -> Compared {
    let mut missing = Vec::new();
    let mut upto = to;
    let there: BTreeSet<ChunkId> = chunks.iter().copied().collect();
    for (count, listed) in state.listed_from(from).enumerate() {
        if listed.id > to {
            break;
        }
        if count >= COMPARED_MAX || missing.len() >= MISSING_MAX {
            upto = ChunkId(listed.id.0 - 1);
            break;
        }
        if listed.replicas.contains(&node) && !there.contains(&listed.id) {
            missing.push(listed.id);
        }
    }
    let orphan = |id: &ChunkId| *id <= upto && !busy.contains(id) && state.is_orphan(*id, node);
    Compared {
        orphans: there.iter().copied().filter(orphan).collect(),
        missing,
        upto,
    }
}
