//! The chunk table: which chunks there are, where they lie, and who refers to them.

use super::content::RefChange;
use consistency::{ChunkId, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most replicas of one chunk.
pub const REPLICAS_MAX: usize = 4;

/// All chunks that files refer to, and those that wait for their deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkTable {
    next: ChunkId,
    live: BTreeMap<ChunkId, Chunk>,
    dead: BTreeMap<ChunkId, Replicas>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    len: u32,
    /// Number of extents, over all files, that refer to it.
    refs: u32,
    replicas: Replicas,
}

/// The nodes that hold a chunk: a set without heap memory, since there are many chunks. Node 0 does not
/// exist and marks the free places at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replicas([NodeId; REPLICAS_MAX]);

impl Replicas {
    /// Takes over a list of nodes in its order; `None` if it is empty, too long, or no list of nodes.
    pub(crate) fn new(nodes: &[NodeId]) -> Option<Self> {
        let mut replicas = [NodeId(0); REPLICAS_MAX];
        replicas.get_mut(..nodes.len())?.copy_from_slice(nodes);
        let distinct = nodes
            .iter()
            .enumerate()
            .all(|(at, node)| node.0 != 0 && !nodes[..at].contains(node));
        (!nodes.is_empty() && distinct).then_some(Self(replicas))
    }

    pub(crate) fn to_vec(self) -> Vec<NodeId> {
        self.0.into_iter().take_while(|node| node.0 != 0).collect()
    }
}

/// How a chunk named by a flush relates to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkState {
    /// Not seen before.
    New,
    /// In use, with this length and these replicas.
    Live(u32, Replicas),
    /// Given up; its replicas are being deleted.
    Dead,
}

impl Default for ChunkTable {
    fn default() -> Self {
        Self {
            next: ChunkId(1),
            live: BTreeMap::new(),
            dead: BTreeMap::new(),
        }
    }
}

impl ChunkTable {
    /// Gives out `count` numbers; returns the first and the one after the last.
    pub(crate) fn allocate(&mut self, count: u32) -> (ChunkId, ChunkId) {
        let first = self.next;
        self.next = ChunkId(first.0 + u64::from(count));
        (first, self.next)
    }

    /// Returns the first number not given out yet.
    pub(super) const fn next(&self) -> ChunkId {
        self.next
    }

    pub(crate) fn state(&self, id: ChunkId) -> ChunkState {
        match self.live.get(&id) {
            Some(chunk) => ChunkState::Live(chunk.len, chunk.replicas),
            None if self.dead.contains_key(&id) => ChunkState::Dead,
            None => ChunkState::New,
        }
    }

    /// Enters a new chunk. The flush that brings it counts its extents with [`Self::change_refs`].
    pub(crate) fn enter(&mut self, id: ChunkId, len: u32, replicas: Replicas) {
        let chunk = Chunk {
            len,
            refs: 0,
            replicas,
        };
        assert!(
            self.live.insert(id, chunk).is_none(),
            "chunk {id} is entered twice"
        );
    }

    /// Takes chunks for dead that a refused flush brought, unless another file has taken them.
    pub(crate) fn bury(&mut self, chunks: Vec<(ChunkId, Replicas)>) {
        for (id, replicas) in chunks {
            if !self.live.contains_key(&id) {
                self.dead.insert(id, replicas);
            }
        }
    }

    /// Counts references up and down; returns the chunks that died.
    pub(crate) fn change_refs(&mut self, change: RefChange) -> Vec<ChunkId> {
        let mut died = Vec::new();
        for (id, by) in change {
            let chunk = self
                .live
                .get_mut(&id)
                .expect("an extent refers to a live chunk");
            chunk.refs = chunk
                .refs
                .checked_add_signed(by)
                .expect("a chunk has as many references as extents");
            if chunk.refs == 0 {
                self.dead.insert(id, chunk.replicas);
                self.live.remove(&id);
                died.push(id);
            }
        }
        died
    }

    pub(super) fn forget_dead(&mut self, ids: &[ChunkId]) {
        for id in ids {
            self.dead.remove(id);
        }
    }

    /// Returns the nodes that hold a chunk some extent refers to.
    pub(crate) fn replicas(&self, id: ChunkId) -> Vec<NodeId> {
        self.live[&id].replicas.to_vec()
    }

    pub(super) fn dead(&self) -> impl Iterator<Item = (ChunkId, Vec<NodeId>)> {
        self.dead
            .iter()
            .map(|(id, replicas)| (*id, replicas.to_vec()))
    }

    pub(super) fn is_used(&self, id: ChunkId) -> bool {
        self.live.contains_key(&id) || self.dead.contains_key(&id)
    }

    pub(super) fn live_count(&self) -> u64 {
        self.live.len() as u64
    }

    pub(super) fn dead_count(&self) -> u64 {
        self.dead.len() as u64
    }

    /// Says what is wrong with the table, given the references and the furthest byte used of each chunk; see
    /// [`super::MetaState::check`].
    pub(super) fn check(&self, used: &BTreeMap<ChunkId, (u32, u64)>) -> Result<(), String> {
        for (id, chunk) in &self.live {
            let (refs, end) = used.get(id).copied().unwrap_or_default();
            if chunk.refs != refs || refs == 0 {
                return Err(format!(
                    "chunk {id} counts {} references of {refs}",
                    chunk.refs
                ));
            }
            if end > u64::from(chunk.len) {
                return Err(format!(
                    "chunk {id} of {} bytes is used up to {end}",
                    chunk.len
                ));
            }
        }
        if let Some(id) = used.keys().find(|id| !self.live.contains_key(id)) {
            return Err(format!("an extent refers to chunk {id}, which is not live"));
        }
        if let Some(id) = self.dead.keys().find(|id| self.live.contains_key(id)) {
            return Err(format!("chunk {id} is live and dead"));
        }
        match self
            .live
            .keys()
            .chain(self.dead.keys())
            .find(|id| **id >= self.next)
        {
            Some(id) => Err(format!("chunk {id} was never given out")),
            None => Ok(()),
        }
    }
}
