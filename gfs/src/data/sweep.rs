//! Which chunks a node may delete that the leader calls orphans: the node's half of D3.
//!
//! A sweep begins, lists the store, and asks the leader what of it is listed nowhere. By the time the answer is here a
//! copy may have been put once more, because the leader has decided to list it again: such a one stays.

use consistency::ChunkId;
use std::collections::BTreeSet;

/// What was put since the sweep began.
#[derive(Debug, Default)]
pub struct Sweep {
    put: Option<BTreeSet<ChunkId>>,
}

impl Sweep {
    /// Begins a sweep, before the store is listed; an earlier one is void.
    pub fn begin(&mut self) {
        self.put = Some(BTreeSet::new());
    }

    /// A chunk is about to be put, also one that is there already.
    pub fn put(&mut self, id: ChunkId) {
        if let Some(put) = &mut self.put {
            put.insert(id);
        }
    }

    /// Returns whether a chunk may go that the leader, asked since the sweep began, called an orphan.
    #[must_use]
    pub fn may_delete(&self, id: ChunkId) -> bool {
        self.put.as_ref().is_some_and(|put| !put.contains(&id))
    }

    /// Ends the sweep.
    pub fn end(&mut self) {
        self.put = None;
    }
}
