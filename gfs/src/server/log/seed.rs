//! A new log that begins with a state: how a backup comes back.

use super::directory::{Directory, FOLDER};
use super::disk::Disk;
use super::error::OpenError;
use super::mark::MarkFile;
use super::raft::{LogId, Membership, SnapshotMeta};
use super::snapshot;
use super::store::{PURGED, VOTE};
use consistency::{NodeId, wire};
use openraft::{LeaderId, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The term of the first entry; that of the first leader is the next one.
const TERM: u64 = 1;

/// Makes the directory `dir` a log of which `node` is the only voter, and whose entries up to `index` are gone into
/// `state` (what [`StateMachine::snapshot`](crate::server::machine::StateMachine::snapshot) wrote). All of it is there
/// on return, or nothing is. Blocks.
///
/// # Errors
/// [`OpenError::Exists`] if there is something in the directory; [`OpenError::Io`].
pub fn seed(dir: &Path, node: NodeId, index: u64, state: &[u8]) -> Result<(), OpenError> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            return Err(OpenError::Exists { dir: dir.into() });
        }
        removed => removed.map_err(OpenError::io("replace", dir))?,
    }
    let new = dir.with_extension("new");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(OpenError::io("remove", &new))?,
    }
    let (directory, _closed) = Directory::open(&new)?;
    fill(&*directory, node, index, state)?;
    fs::rename(&new, dir).map_err(OpenError::io("make", dir))?;
    let parent = dir.parent().unwrap_or(dir);
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(OpenError::io("sync", parent))
}

fn fill(disk: &dyn Disk, node: NodeId, index: u64, state: &[u8]) -> Result<(), OpenError> {
    let last = LogId {
        leader_id: LeaderId::new(TERM, node.0),
        index,
    };
    let vote = Vote::new(TERM, node.0);
    let members = openraft::Membership::new(
        vec![BTreeSet::from([node.0])],
        BTreeMap::from([(node.0, openraft::EmptyNode {})]),
    );
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: Membership::new(Some(last), members),
        snapshot_id: last.to_string(),
    };
    let dir = disk.path();
    let changes = vec![
        (PURGED.to_vec(), Some(wire::encode(&last))),
        (VOTE.to_vec(), Some(wire::encode(&vote))),
    ];
    let stored = disk.open_table()?.commit(changes, true);
    stored.map_err(OpenError::io("write", &dir.join(FOLDER)))?;
    let saved = snapshot::save(disk, Some(last), &snapshot::encode(&meta, state));
    saved.map_err(OpenError::io("write a snapshot in", dir))?;
    let mut mark = MarkFile::create(disk, node)?;
    let promised = mark.lower(|mark| {
        mark.flushed = index + 1;
        mark.vote = Some(vote);
        mark.committed = Some(last);
    });
    promised.map_err(OpenError::io("write the mark in", dir))
}
