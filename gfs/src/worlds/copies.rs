//! What must hold of the copies of chunks after every step, what becomes of them in the end, and which may be damaged.
//!
//! A world damages each chunk once at most, and none with a copy on a disk that could not be read at any time before:
//! else it might take the last good copy between the moment at which another one is found bad and the commit that says
//! so. A disk may become unreadable later, while the other copy is damaged and nobody knows.

use super::chunks::COPIES;
use super::shared::{Host, State};
use crate::data::simulated::Damage;
use crate::server::state::{Listed, MetaState};
use consistency::{ChunkId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use tests::Dice;

/// What is known of the copies.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Which copy was damaged.
    damaged: BTreeMap<ChunkId, NodeId>,
    /// Whose disks could not be read at some time.
    unread: BTreeSet<NodeId>,
    /// How far the voters were when it was looked at last, and what had happened on the disks.
    looked: (u64, u64),
}

/// Returns the voter that is the furthest, and how far that is.
fn newest(state: &State) -> Option<(u64, &Host)> {
    let far = |host: &Host| host.log.as_ref().map(|log| log.applied_index());
    let hosts = state.hosts.values();
    hosts
        .filter_map(|host| Some((far(host)?, host)))
        .max_by_key(|(index, _)| *index)
}

fn read<T>(host: &Host, read: impl FnOnce(&MetaState) -> T) -> T {
    let log = host.log.as_ref().expect("it has one");
    log.read(read)
}

fn live(host: &Host) -> Vec<Listed> {
    read(host, |meta| meta.listed_from(ChunkId(0)).collect())
}

impl Copies {
    /// D1 to D3: looks at all copies that are listed, unless nothing has happened; says what is wrong.
    pub(super) fn check(&mut self, state: &State) -> Result<(), String> {
        let changes = state.hosts.values().map(|host| host.chunks.changes());
        let (Some((index, host)), changes) = (newest(state), changes.sum()) else {
            return Ok(());
        };
        // Who knows of the last commits may be down: what the others list may be gone.
        if index < self.looked.0 || (index, changes) == self.looked {
            return Ok(());
        }
        self.looked = (index, changes);
        for chunk in live(host) {
            let id = chunk.id;
            let good = |node: &&NodeId| state.hosts[*node].chunks.is_good(id);
            if !chunk.replicas.iter().any(|node| good(&node)) {
                return Err(format!("copies: none is good of {chunk:?}"));
            }
            let mut bad = chunk.replicas.iter().filter(|node| !good(node));
            let damaged = self.damaged.get(&id);
            if let Some(node) = bad.find(|node| damaged != Some(node)) {
                return Err(format!("copies: node {node} has lost its one of {chunk:?}"));
            }
        }
        Ok(())
    }

    /// The disk of a node cannot be read.
    pub(super) fn unread(&mut self, node: NodeId) {
        self.unread.insert(node);
    }

    /// Damages a copy of a chunk, if there is one that may be; returns which, and who has the other one.
    pub(super) fn damage(
        &mut self,
        state: &State,
        dice: &mut Dice,
    ) -> Option<(ChunkId, NodeId, NodeId)> {
        let (index, host) = newest(state)?;
        if index < self.looked.0 {
            return None;
        }
        // Of more copies one may just be dropped, because the others have been found good.
        let may = |chunk: &Listed| {
            let whole = |node: &NodeId| {
                let host = &state.hosts[node];
                host.up && host.chunks.is_good(chunk.id) && !self.unread.contains(node)
            };
            let two = chunk.replicas.len() == usize::from(COPIES);
            two && !self.damaged.contains_key(&chunk.id) && chunk.replicas.iter().all(whole)
        };
        let mut chunks = live(host);
        chunks.retain(may);
        if chunks.is_empty() {
            return None;
        }
        let chunk = chunks.swap_remove(dice.below(chunks.len()));
        let node = chunk.replicas[dice.below(chunk.replicas.len())];
        let how = [Damage::Flip, Damage::Cut, Damage::Take][dice.below(3_usize)];
        state.hosts[&node].chunks.damage(chunk.id, how);
        self.damaged.insert(chunk.id, node);
        let other = chunk.replicas.into_iter().find(|other| *other != node)?;
        Some((chunk.id, node, other))
    }
}

/// Returns what is not as it should be once nothing has gone wrong for a while: each chunk has its copies, and there are
/// no orphans.
pub(super) fn unfinished(state: &State) -> Option<String> {
    let Some((_, host)) = newest(state) else {
        return Some("no voter is up".to_owned());
    };
    for chunk in live(host) {
        let good = |node: &&NodeId| state.hosts[*node].chunks.is_good(chunk.id);
        let copies = chunk.replicas.iter().filter(good).count();
        if copies != usize::from(COPIES) || copies != chunk.replicas.len() {
            return Some(format!("{copies} copies are good of {chunk:?}"));
        }
    }
    for (node, on) in &state.hosts {
        let chunks = on.chunks.chunks();
        let orphan = |id: &ChunkId| read(host, |meta| meta.is_orphan(*id, *node));
        if let Some(id) = chunks.into_iter().find(orphan) {
            return Some(format!("node {node} has chunk {id}, which is nobody's"));
        }
    }
    None
}
