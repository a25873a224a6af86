//! What the nodes' stores have and no file has there (D3).

use super::super::service::MetaServer;
use super::super::stream::{Checked, CheckedStore};
use super::{ANSWER, ask_store};
use crate::data::listing::{ListReply, ListRequest};
use crate::fsck;
use crate::net::{ServiceId, frames};
use crate::server::state::{FAULTS_MAX, Listed, MetaState};
use consistency::wire::chunk::{ChunkFailure, ChunkReply, ChunkRequest};
use consistency::{ChunkId, NodeId};
use std::collections::BTreeSet;
use tokio::time::timeout;

/// Why a copy should not be where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stray {
    /// No file has the chunk.
    Orphan(ChunkId),
    /// Files have it, and its copies are elsewhere.
    Surplus(Listed),
    /// The cluster does not know the number.
    Unknown(ChunkId),
}

impl Stray {
    const fn chunk(&self) -> ChunkId {
        match self {
            Self::Orphan(id) | Self::Unknown(id) => *id,
            Self::Surplus(listed) => listed.id,
        }
    }
}

/// Compares each store with the lists, and notes what a sweep of its node should have deleted.
pub(super) async fn compare(server: &MetaServer, checked: &mut Checked) -> Vec<CheckedStore> {
    let mut stores = Vec::new();
    for node in server.barriers.nodes_up() {
        let unlisted = match strays(server, node).await {
            Ok((count, late)) => {
                note(server, node, late, checked).await;
                Ok(count)
            }
            Err(why) => Err(why),
        };
        stores.push(CheckedStore { node, unlisted });
    }
    stores
}

/// Returns how much a node has that no file has there, and what of it should be gone by now.
async fn strays(server: &MetaServer, node: NodeId) -> Result<(u64, Vec<Stray>), String> {
    let told = |error: std::io::Error| {
        format!("it does not list its chunks ({error}): is it of an older version?")
    };
    let late = |_| format!("no list of its chunks within {ANSWER:?}");
    let opened = server.transport.open(node, ServiceId::Chunk);
    let opened = timeout(ANSWER, opened).await.map_err(late)?;
    let mut stream = opened.map_err(|error| error.to_string())?;
    let sent = frames::send(&mut stream.writer, &ListRequest::All).await;
    sent.map_err(told)?;
    let (mut count, mut due) = (0, Vec::new());
    loop {
        let reply = timeout(ANSWER, frames::receive(&mut stream.reader)).await;
        let (ids, overdue) = match reply.map_err(late)?.map_err(told)? {
            ListReply::Chunks { ids, overdue } => (ids, overdue),
            ListReply::Failed(why) => return Err(why),
            ListReply::End => return Ok((count, due)),
        };
        // A deposed leader does not know what its successor lists.
        let leads = server.log.confirm_leader().await;
        leads.map_err(|error| error.to_string())?;
        // First what is under way, then the state: a job that ends in between has listed its copy.
        let busy = server.repair.book().busy();
        let found = server.log.read(|state| find(state, &busy, node, &ids));
        count += found.len() as u64;
        let known = |stray: &Stray| overdue || matches!(stray, Stray::Unknown(_));
        due.extend(found.into_iter().filter(known));
        due.truncate(FAULTS_MAX);
    }
}

/// Finds among the chunks of a node what no file has there.
fn find(state: &MetaState, busy: &BTreeSet<ChunkId>, node: NodeId, ids: &[ChunkId]) -> Vec<Stray> {
    let stray = |id: &ChunkId| {
        if *id >= state.next_chunk() {
            Some(Stray::Unknown(*id))
        } else if busy.contains(id) || !state.is_orphan(*id, node) {
            None
        } else {
            let listed = state.listed(*id);
            Some(listed.map_or(Stray::Orphan(*id), Stray::Surplus))
        }
    };
    ids.iter().filter_map(stray).collect()
}

/// Notes what is still there.
async fn note(server: &MetaServer, node: NodeId, strays: Vec<Stray>, checked: &mut Checked) {
    for stray in strays {
        if !is_there(server, node, stray.chunk()).await {
            continue;
        }
        let id = stray.chunk();
        let what = match stray {
            Stray::Orphan(_) => {
                format!(
                    "chunk {id}: no file has it, and the node does not delete it; its log says why"
                )
            }
            Stray::Unknown(_) => {
                format!(
                    "chunk {id}: the cluster has not given that number out; it was put there by hand, or by another cluster"
                )
            }
            Stray::Surplus(listed) => {
                let files = server.log.read(|state| state.files_of(&[id].into()));
                let files = files.get(&id).map_or(&[][..], Vec::as_slice);
                let why = "a copy too many, which the node does not delete; its log says why";
                fsck::describe(&listed, node, why, files)
            }
        };
        checked.note("chunks", "D3", format!("node {node}: {what}"));
    }
}

/// What was deleted since the list was made is no fault.
async fn is_there(server: &MetaServer, node: NodeId, id: ChunkId) -> bool {
    let (offset, len) = (0, 1);
    let reply = ask_store(server, node, &ChunkRequest::Get { id, offset, len }).await;
    !matches!(reply, Some(ChunkReply::Failed(ChunkFailure::Missing)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::ops::testing::World;
    use crate::server::state::Body;
    use consistency::wire::meta::Op;

    const IDS: [ChunkId; 5] = [ChunkId(1), ChunkId(2), ChunkId(3), ChunkId(4), ChunkId(5)];

    /// Chunk 1 is on nodes 1 and 2; 2 to 4 have not been used.
    fn world() -> World {
        let mut world = World::new("touch f");
        let count = 4;
        world.run(&Op::AllocateChunks { count }).expect("allocates");
        world.give_chunk("f", ChunkId(1), &[NodeId(1), NodeId(2)]);
        world
    }

    fn names(world: &World, busy: &[ChunkId], node: u16) -> Vec<String> {
        let busy = busy.iter().copied().collect();
        let found = find(&world.state, &busy, NodeId(node), &IDS);
        let name = |stray: &Stray| match stray {
            Stray::Orphan(id) => format!("orphan {id}"),
            Stray::Surplus(listed) => format!("surplus {}", listed.id),
            Stray::Unknown(id) => format!("unknown {id}"),
        };
        found.iter().map(name).collect()
    }

    #[test]
    fn what_no_file_has_there_is_found() {
        let mut world = world();
        assert_eq!(names(&world, &[], 1), ["unknown 5"]);
        assert_eq!(names(&world, &[], 3), ["surplus 1", "unknown 5"]);
        // One is being copied there.
        assert_eq!(names(&world, &[ChunkId(1)], 3), ["unknown 5"]);
        // Its session may still flush what it was given; then it has ended.
        let session = world.session;
        world.apply(Body::EndSession(session));
        let left = ["orphan 2", "orphan 3", "orphan 4", "unknown 5"];
        assert_eq!(names(&world, &[], 1), left);
    }
}
