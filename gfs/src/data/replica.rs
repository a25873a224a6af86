//! Asks several nodes for the same thing: who is asked when, and what becomes of their refusals.

use super::Places;
use crate::error::Errno;
use crate::net::{NetError, ServiceId, Transport};
use bytes::Bytes;
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::wire::{decode, encode};
use consistency::{ChunkId, NodeId};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lru::LruCache;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How long a node may take to store a chunk: a disk that syncs slowly under load is not a dead one.
const PUT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a node may take to return a piece of a chunk.
const GET_DEADLINE: Duration = Duration::from_secs(5);
/// How long a node that did not answer is asked after the others.
const SUSPECT_TIME: Duration = Duration::from_secs(5);
/// How long a replica has to answer a read before the next one is asked as well.
pub(super) const GET_HEDGE: Duration = Duration::from_millis(50);
/// How many chunks are remembered that have moved.
const MOVED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Pause before all nodes are asked once more.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Why a node did not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Its store failed.
    #[error(transparent)]
    Chunk(#[from] ChunkFailure),
    /// No answer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The node is this one, and it stores no chunks.
    #[error("this node stores no chunks")]
    NoStore,
}

/// What each node said that did not do what it was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Vec<(NodeId, Refusal)>);

impl Refusals {
    pub(super) fn push(&mut self, node: NodeId, refusal: Refusal) {
        self.0.push((node, refusal));
    }

    /// Returns whether asking again may help.
    fn may_pass(&self) -> bool {
        self.0.iter().any(|(_, refusal)| {
            matches!(
                refusal,
                Refusal::Net(_) | Refusal::Chunk(ChunkFailure::Busy | ChunkFailure::Unavailable(_))
            )
        })
    }

    /// Returns whether a node said that the chunk ends before the range.
    pub(super) fn beyond_end(&self) -> bool {
        self.0
            .iter()
            .any(|(_, refusal)| matches!(refusal, Refusal::Chunk(ChunkFailure::BadRange)))
    }

    /// Returns what the caller of the tree is told.
    pub(super) fn errno(&self) -> Errno {
        let full = |(_, refusal): &(NodeId, Refusal)| {
            matches!(refusal, Refusal::Chunk(ChunkFailure::NoSpace))
        };
        if self.0.iter().any(full) {
            Errno(libc::ENOSPC)
        } else {
            Errno::EIO
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there was no node to ask");
        }
        for (at, (node, refusal)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}n{node}: {refusal}")?;
        }
        Ok(())
    }
}

/// Repeats `attempt` while its failure may pass, for `patience` at most.
pub(super) async fn persist<T, F: Future<Output = Result<T, Refusals>>>(
    patience: Duration,
    attempt: impl Fn() -> F,
) -> Result<T, Refusals> {
    let begun = Instant::now();
    loop {
        match attempt().await {
            Err(refusals) if refusals.may_pass() && begun.elapsed() + RETRY_PAUSE < patience => {
                sleep(RETRY_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// Asks nodes until `want` of them have done it: the first `want` at once, one more for each that refuses, and one more
/// whenever nobody has answered for `hedge`. Returns as soon as enough have, or all have answered; who is still at
/// it then is left alone.
pub(super) async fn gather<T, F: Future<Output = Result<T, Refusal>>>(
    nodes: Vec<NodeId>,
    want: usize,
    hedge: Duration,
    ask: impl Fn(NodeId) -> F,
) -> (Vec<(NodeId, T)>, Refusals) {
    let ask = |node| {
        let answer = ask(node);
        async move { (node, answer.await) }
    };
    let mut spare = nodes.into_iter().peekable();
    let mut asked = spare
        .by_ref()
        .take(want)
        .map(ask)
        .collect::<FuturesUnordered<_>>();
    let (mut done, mut refusals) = (Vec::with_capacity(want), Refusals::default());
    while done.len() < want {
        let quiet = pin!(sleep(hedge));
        let more = tokio::select! {
            answer = asked.next() => match answer {
                Some((node, Ok(answer))) => {
                    done.push((node, answer));
                    false
                }
                Some((node, Err(refusal))) => {
                    refusals.push(node, refusal);
                    true
                }
                None => break,
            },
            () = quiet, if spare.peek().is_some() => true,
        };
        if more {
            asked.extend(spare.next().map(ask));
        }
    }
    (done, refusals)
}

/// The chunk stores of the other nodes.
pub(super) struct Replicas {
    transport: Arc<dyn Transport>,
    places: Arc<dyn Places>,
    /// Nodes that did not answer, and when.
    suspects: Mutex<BTreeMap<NodeId, Instant>>,
    /// Where chunks are that were not where somebody thought.
    moved: Mutex<LruCache<ChunkId, Vec<NodeId>>>,
}

impl Replicas {
    pub(super) fn new(transport: Arc<dyn Transport>, places: Arc<dyn Places>) -> Self {
        Self {
            transport,
            places,
            suspects: Mutex::default(),
            moved: Mutex::new(LruCache::new(MOVED_MAX)),
        }
    }

    /// Returns where a chunk is as far as is known here; `told` is what its file said once.
    pub(super) fn known(&self, chunk: ChunkId, told: &[NodeId]) -> Vec<NodeId> {
        let mut moved = self.moved.lock().expect("no holder panics");
        moved.get(&chunk).map_or_else(|| told.to_vec(), Vec::clone)
    }

    fn remember(&self, chunk: ChunkId, located: Vec<NodeId>) {
        let mut moved = self.moved.lock().expect("no holder panics");
        moved.put(chunk, located);
    }

    /// Reads part of a chunk from those that are said to have it, else from those that have it by now.
    pub(super) async fn fetch(
        &self,
        chunk: ChunkId,
        told: &[NodeId],
        offset: u32,
        len: u32,
    ) -> Result<(NodeId, Bytes), Refusals> {
        let ask = |node| self.get(node, chunk, offset, len);
        let known = self.known(chunk, told);
        let nodes = self.by_health(known.clone());
        let (mut answers, mut refusals) = gather(nodes, 1, GET_HEDGE, ask).await;
        if let Some(answer) = answers.pop() {
            return Ok(answer);
        }
        if let Some(located) = self.places.locate(chunk).await
            && located.iter().any(|node| !known.contains(node))
        {
            tracing::debug!(%chunk, ?known, ?located, "a chunk has moved");
            let nodes = self.by_health(located.clone());
            self.remember(chunk, located);
            let (mut answers, more) = gather(nodes, 1, GET_HEDGE, ask).await;
            if let Some(answer) = answers.pop() {
                return Ok(answer);
            }
            refusals.0.extend(more.0);
        }
        Err(refusals)
    }

    /// Returns this node.
    pub(super) fn local(&self) -> NodeId {
        self.transport.local()
    }

    /// Returns the nodes with those last that did not answer lately.
    pub(super) fn by_health(&self, mut nodes: Vec<NodeId>) -> Vec<NodeId> {
        let mut suspects = self.suspects.lock().expect("no holder panics");
        suspects.retain(|_, since| since.elapsed() < SUSPECT_TIME);
        nodes.sort_by_key(|node| suspects.contains_key(node));
        nodes
    }

    /// Stores a chunk; `request` is an encoded [`ChunkRequest::Put`].
    pub(super) async fn put(&self, to: NodeId, request: Bytes) -> Result<(), Refusal> {
        match self.call(to, request, PUT_DEADLINE).await? {
            ChunkReply::Done => Ok(()),
            reply => Err(unexpected(to, &reply)),
        }
    }

    /// Reads part of a chunk and verifies it; fewer bytes come only at the end of the chunk.
    pub(super) async fn get(
        &self,
        from: NodeId,
        id: ChunkId,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, Refusal> {
        let request = encode(&ChunkRequest::Get { id, offset, len });
        match self.call(from, request.into(), GET_DEADLINE).await? {
            ChunkReply::Data { data, .. } if data.is_empty() || data.len() > len as usize => {
                let why = format!("{} bytes of a chunk instead of {len}", data.len());
                Err(NetError::Malformed { to: from, why }.into())
            }
            ChunkReply::Data { data, crc } if crc32fast::hash(&data) == crc => Ok(data),
            ChunkReply::Data { .. } => Err(ChunkFailure::Corrupt.into()),
            reply => Err(unexpected(from, &reply)),
        }
    }

    async fn call(
        &self,
        to: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> Result<ChunkReply, Refusal> {
        let mut suspicion = Suspicion {
            replicas: self,
            node: Some(to),
        };
        let reply = self
            .transport
            .call(to, ServiceId::Chunk, request, deadline)
            .await?;
        suspicion.node = None;
        self.suspects.lock().expect("no holder panics").remove(&to);
        match decode(&reply) {
            Ok(ChunkReply::Failed(failure)) => Err(failure.into()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(NetError::Malformed {
                to,
                why: error.to_string(),
            }
            .into()),
        }
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas")
            .field("suspects", &self.suspects)
            .finish_non_exhaustive()
    }
}

/// Makes a node a suspect unless it answers: also one that was too slow and whose call was therefore dropped.
struct Suspicion<'a> {
    replicas: &'a Replicas,
    node: Option<NodeId>,
}

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node {
            let mut suspects = self.replicas.suspects.lock().expect("no holder panics");
            suspects.insert(node, Instant::now());
        }
    }
}

fn unexpected(to: NodeId, reply: &ChunkReply) -> Refusal {
    let what = match reply {
        ChunkReply::Done => "Done",
        ChunkReply::Data { .. } => "Data",
        ChunkReply::Space { .. } => "Space",
        ChunkReply::Failed(_) => "Failed",
        ChunkReply::Bad(_) => "Bad",
    };
    NetError::Malformed {
        to,
        why: format!("{what} does not answer the request"),
    }
    .into()
}
