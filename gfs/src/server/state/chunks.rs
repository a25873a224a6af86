//! The chunk table: which chunks there are, where they lie, and who refers to them.
//!
//! # Rules
//! - D1: a copy is listed once it is durable, if the chunk is still live and what it was made of still listed.
//! - D2: the last listed copy of a live chunk stays listed, whatever is wrong with it.

use super::check::Faults;
use super::content::RefChange;
use consistency::{ChunkId, NodeId};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most replicas of one chunk.
pub const REPLICAS_MAX: usize = 4;

/// All chunks that files refer to, and those that wait for their deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkTable {
    next: ChunkId,
    live: OrdMap<ChunkId, Chunk>,
    dead: OrdMap<ChunkId, Replicas>,
    /// What is listed on each node, of the live ones.
    held: BTreeMap<NodeId, Held>,
    /// Nodes that are being emptied.
    draining: BTreeSet<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    len: u32,
    /// Number of extents, over all files, that refer to it.
    refs: u32,
    /// Copies that there should be; 0: as many as the cluster makes of everything.
    copies: u8,
    replicas: Replicas,
}

/// Live chunks that are listed on a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many.
    pub chunks: u64,
    /// Sum of their lengths.
    pub bytes: u64,
}

/// A live chunk, as its repair sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which chunk.
    pub id: ChunkId,
    /// Its length.
    pub len: u32,
    /// Copies that there should be; 0: as many as the cluster makes of everything.
    pub copies: u8,
    /// Where they are.
    pub replicas: Vec<NodeId>,
}

/// A change of the list of a chunk's copies. One that does not fit the table (any more) changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A new copy is durable (D1).
    Copied {
        /// Of which chunk.
        chunk: ChunkId,
        /// Where it was copied from.
        source: NodeId,
        /// Where it is.
        to: NodeId,
        /// The copy that it replaces.
        instead: Option<NodeId>,
    },
    /// A copy is damaged, missing or too much, and another one is listed (D2).
    Drop {
        /// Of which chunk.
        chunk: ChunkId,
        /// Where it is, or was.
        node: NodeId,
    },
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
        self.iter().collect()
    }

    fn iter(self) -> impl Iterator<Item = NodeId> {
        self.0.into_iter().take_while(|node| node.0 != 0)
    }

    fn contains(self, node: NodeId) -> bool {
        self.iter().any(|there| there == node)
    }

    /// Returns the list without `old` and with `new`, if that is a list.
    fn with(self, old: Option<NodeId>, new: Option<NodeId>) -> Option<Self> {
        let kept = self.iter().filter(|node| Some(*node) != old);
        Self::new(&kept.chain(new).collect::<Vec<_>>())
    }
}

/// How a chunk named by a flush relates to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkState {
    /// Not seen before.
    New,
    /// In use, with this length.
    Live(u32),
    /// Given up; its replicas are being deleted.
    Dead,
}

impl Default for ChunkTable {
    fn default() -> Self {
        Self {
            next: ChunkId(1),
            live: OrdMap::new(),
            dead: OrdMap::new(),
            held: BTreeMap::new(),
            draining: BTreeSet::new(),
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

    /// Leaves numbers out.
    pub(crate) fn skip_to(&mut self, next: ChunkId) {
        self.next = self.next.max(next);
    }

    /// Returns the first number not given out yet.
    pub(super) const fn next(&self) -> ChunkId {
        self.next
    }

    pub(crate) fn state(&self, id: ChunkId) -> ChunkState {
        match self.live.get(&id) {
            Some(chunk) => ChunkState::Live(chunk.len),
            None if self.dead.contains_key(&id) => ChunkState::Dead,
            None => ChunkState::New,
        }
    }

    /// Enters a new chunk. The flush that brings it counts its extents with [`Self::change_refs`].
    pub(crate) fn enter(&mut self, id: ChunkId, len: u32, copies: u8, replicas: Replicas) {
        let chunk = Chunk {
            len,
            refs: 0,
            copies,
            replicas,
        };
        for node in replicas.iter() {
            self.hold(node, len);
        }
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
                let (len, replicas) = (chunk.len, chunk.replicas);
                self.dead.insert(id, replicas);
                self.live.remove(&id);
                for node in replicas.iter() {
                    self.let_go(node, len);
                }
                died.push(id);
            }
        }
        died
    }

    fn hold(&mut self, node: NodeId, len: u32) {
        let held = self.held.entry(node).or_default();
        held.chunks += 1;
        held.bytes += u64::from(len);
    }

    fn let_go(&mut self, node: NodeId, len: u32) {
        let held = self.held.get_mut(&node).expect("listed, so it was counted");
        held.chunks -= 1;
        held.bytes -= u64::from(len);
        if held.chunks == 0 {
            self.held.remove(&node);
        }
    }

    /// Changes the list of a chunk's copies; returns whether it did.
    pub(super) fn step(&mut self, step: Step) -> bool {
        let (id, old, new) = match step {
            Step::Copied {
                chunk, to, instead, ..
            } => (chunk, instead, Some(to)),
            Step::Drop { chunk, node } => (chunk, Some(node), None),
        };
        let Some(chunk) = self.live.get_mut(&id) else {
            return false;
        };
        let before = chunk.replicas;
        let listed = |node| before.contains(node);
        let fits = match step {
            Step::Copied { source, to, .. } => listed(source) && !listed(to),
            Step::Drop { node, .. } => listed(node),
        };
        let Some(after) = before.with(old, new).filter(|_| fits) else {
            return false;
        };
        chunk.replicas = after;
        let len = chunk.len;
        for node in before.iter().filter(|node| !after.contains(*node)) {
            self.let_go(node, len);
        }
        for node in after.iter().filter(|node| !listed(*node)) {
            self.hold(node, len);
        }
        true
    }

    /// Takes a node that is gone for good off the list of a dead chunk.
    pub(super) fn forget_dead_on(&mut self, node: NodeId) {
        let there = |(id, replicas): (&ChunkId, &Replicas)| {
            let rest = replicas.with(Some(node), None);
            replicas.contains(node).then_some((*id, rest))
        };
        let listed: Vec<_> = self.dead.iter().filter_map(there).collect();
        for (id, rest) in listed {
            match rest {
                Some(rest) => self.dead.insert(id, rest),
                None => self.dead.remove(&id),
            };
        }
    }

    /// Sets how many copies there should be of a chunk.
    pub(crate) fn set_copies(&mut self, id: ChunkId, copies: u8) {
        let chunk = self.live.get_mut(&id).expect("an extent refers to it");
        chunk.copies = copies;
    }

    /// Returns live chunks from `from` on, in ascending order.
    pub(super) fn listed_from(&self, from: ChunkId) -> impl Iterator<Item = Listed> {
        self.live.range(from..).map(|(id, chunk)| Listed {
            id: *id,
            len: chunk.len,
            copies: chunk.copies,
            replicas: chunk.replicas.to_vec(),
        })
    }

    pub(super) fn is_listed_on(&self, id: ChunkId, node: NodeId) -> bool {
        let live = self.live.get(&id).map(|chunk| chunk.replicas);
        let replicas = live.or_else(|| self.dead.get(&id).copied());
        replicas.is_some_and(|replicas| replicas.contains(node))
    }

    pub(super) const fn held(&self) -> &BTreeMap<NodeId, Held> {
        &self.held
    }

    pub(super) const fn draining(&self) -> &BTreeSet<NodeId> {
        &self.draining
    }

    pub(super) fn drain(&mut self, node: NodeId, drain: bool) {
        if drain {
            self.draining.insert(node);
        } else {
            self.draining.remove(&node);
        }
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

    /// Returns a live chunk.
    pub(super) fn listed(&self, id: ChunkId) -> Option<Listed> {
        self.listed_from(id).next().filter(|chunk| chunk.id == id)
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

    /// Notes what is wrong with the table, given the references and the furthest byte used of each chunk (M8, D2); see
    /// [`super::MetaState::check`].
    pub(super) fn check(&self, used: &BTreeMap<ChunkId, (u32, u64)>, faults: &mut Faults) {
        let mut held: BTreeMap<NodeId, Held> = BTreeMap::new();
        for (id, chunk) in &self.live {
            if Replicas::new(&chunk.replicas.to_vec()).is_none() {
                faults.note("D2", format!("chunk {id} has no list of copies"));
            }
            for node in chunk.replicas.iter() {
                let held = held.entry(node).or_default();
                held.chunks += 1;
                held.bytes += u64::from(chunk.len);
            }
            let (refs, end) = used.get(id).copied().unwrap_or_default();
            if chunk.refs != refs || refs == 0 {
                faults.note(
                    "M8",
                    format!("chunk {id} counts {} references of {refs}", chunk.refs),
                );
            }
            if end > u64::from(chunk.len) {
                faults.note(
                    "M8",
                    format!("chunk {id} of {} bytes is used up to {end}", chunk.len),
                );
            }
            if self.dead.contains_key(id) {
                faults.note("M8", format!("chunk {id} is live and dead"));
            }
        }
        if held != self.held {
            faults.note(
                "D2",
                format!("nodes hold {held:?}, counted as {:?}", self.held),
            );
        }
        for id in used.keys().filter(|id| !self.live.contains_key(*id)) {
            faults.note(
                "M8",
                format!("an extent refers to chunk {id}, which is not live"),
            );
        }
        for id in self.live.keys().chain(self.dead.keys()) {
            if *id >= self.next {
                faults.note("M8", format!("chunk {id} was never given out"));
            }
        }
    }
}

/// Damage, for the checker to find.
#[cfg(test)]
impl ChunkTable {
    pub(super) fn kill_twice(&mut self, id: ChunkId) {
        self.dead.insert(id, self.live[&id].replicas);
    }

    pub(super) const fn set_next(&mut self, next: ChunkId) {
        self.next = next;
    }

    pub(super) fn lose_copies(&mut self, id: ChunkId) {
        let chunk = self.live.get_mut(&id).expect("it lives");
        chunk.replicas = Replicas([NodeId(0); REPLICAS_MAX]);
    }

    pub(super) fn step_uncounted(&mut self, step: Step) -> bool {
        let held = self.held.clone();
        let stepped = self.step(step);
        self.held = held;
        stepped
    }
}
