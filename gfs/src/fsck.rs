//! Checks what a node has on its disks, while its daemon is stopped.
//!
//! | part | what is compared |
//! | --- | --- |
//! | log | the mark, the entries and the snapshots with their checksums and promises |
//! | metadata | the records with each other: the rules of docs/protocol.md, "At rest" |
//! | chunks | each file with its checksums; what is listed on this node with what is there |
//!
//! It takes the locks that the daemon takes, and repairs nothing: the daemon does, from the other copies.

use crate::data::ChunkStore;
use crate::data::store::{self, DirStore};
use crate::server::log::{self, AtRest};
use crate::server::machine::StateMachine;
use crate::server::state::{Command, FileOf, Listed, MetaState};
use consistency::wire::chunk::ChunkFailure;
use consistency::{ChunkId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// Most files that are named of one lost chunk.
const FILES_NAMED_MAX: usize = 8;

/// What does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `log`, `metadata` or `chunks`.
    pub part: &'static str,
    /// Which rule of docs/protocol.md is broken, if it is one of those.
    pub rule: Option<&'static str>,
    /// In one line.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.part, self.what)?;
        self.rule.map_or(Ok(()), |rule| write!(f, " ({rule})"))
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The node, if it keeps metadata: nothing else here names it.
    pub node: Option<NodeId>,
    /// The newest entry of its log that is known to be committed.
    pub index: u64,
    /// Inodes up to there.
    pub inodes: u64,
    /// Chunk files.
    pub chunks: u64,
    /// Bytes in the good ones.
    pub chunk_bytes: u64,
    /// Chunk files that no file has, as far as this node knows: its daemon asks the leader and deletes them.
    pub orphans: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// A process uses the log.
    #[error(transparent)]
    Log(#[from] log::OpenError),
    /// A process uses the chunk store, or it cannot be looked at.
    #[error(transparent)]
    Chunks(#[from] store::OpenError),
    /// It is no directory of a node.
    #[error("{0}: has neither meta nor chunks: name the state directory of a node (state_dir)")]
    NotANode(String),
}

impl Report {
    fn note(&mut self, part: &'static str, rule: Option<&'static str>, what: String) {
        self.faults.push(Fault { part, rule, what });
    }
}

/// Checks a node's state directory. Blocks, and reads all of it.
///
/// # Errors
/// [`FsckError`] if that cannot be: what is wrong with the contents is in the report.
pub fn check(state_dir: &Path) -> Result<Report, FsckError> {
    let (meta, chunks) = (state_dir.join("meta"), state_dir.join("chunks"));
    if !meta.is_dir() && !chunks.is_dir() {
        return Err(FsckError::NotANode(state_dir.display().to_string()));
    }
    let mut report = Report::default();
    // First of all, as the daemon does: its lock says whether one runs.
    let store = match DirStore::open_as_it_is(&chunks) {
        Ok(store) => Some(store),
        Err(
            error @ (store::OpenError::InUse { .. }
            | store::OpenError::Io { .. }
            | store::OpenError::Newer { .. }),
        ) => {
            return Err(error.into());
        }
        Err(error) => {
            report.note("chunks", None, error.to_string());
            None
        }
    };
    let log = if meta.is_dir() {
        check_log(&meta, &mut report)?
    } else {
        None
    };
    let listings = log.map(|log| Listings::of(log, &mut report));
    if let Some(store) = store {
        check_chunks(&store, listings.as_ref(), &mut report);
    }
    Ok(report)
}

fn check_log(dir: &Path, report: &mut Report) -> Result<Option<AtRest<MetaState>>, FsckError> {
    let log = match log::at_rest::<MetaState>(dir) {
        Ok(log) => log,
        Err(
            error @ (log::OpenError::InUse { .. }
            | log::OpenError::Io { .. }
            | log::OpenError::Newer { .. }),
        ) => {
            return Err(error.into());
        }
        Err(error) => {
            report.note("log", None, error.to_string());
            return Ok(None);
        }
    };
    for (file, why) in &log.damaged {
        let what = format!("{} is corrupt: {why}", file.display());
        report.note("log", None, what);
    }
    for fault in log.state.faults() {
        report.note("metadata", Some(fault.rule), fault.what);
    }
    // A node that was never a voter has one as well; nothing stands in it.
    if log.voters.is_empty() {
        return Ok(None);
    }
    report.node = Some(log.node);
    report.index = log.index;
    report.inodes = log.state.counts().inodes;
    Ok(Some(log))
}

/// What the metadata say of the node's chunks: at the end of what is committed, and of the log. What the two disagree on
/// is open.
struct Listings {
    node: NodeId,
    committed: MetaState,
    newest: Option<MetaState>,
}

impl Listings {
    fn of(log: AtRest<MetaState>, report: &mut Report) -> Self {
        let sound = report.faults.iter().all(|fault| fault.part != "metadata");
        // Commands rely on the rules.
        let newest = (sound && !log.uncommitted.is_empty())
            .then(|| after(log.state.clone(), &log.uncommitted));
        Self {
            node: log.node,
            committed: log.state,
            newest,
        }
    }

    fn newest(&self) -> &MetaState {
        self.newest.as_ref().unwrap_or(&self.committed)
    }

    fn is_orphan(&self, chunk: ChunkId) -> bool {
        self.committed.is_orphan(chunk, self.node) && self.newest().is_orphan(chunk, self.node)
    }

    /// Returns the live chunks that must be here.
    fn expected(&self) -> impl Iterator<Item = Listed> {
        let here = |chunk: &Listed| {
            chunk.replicas.contains(&self.node) && self.newest().is_listed_on(chunk.id, self.node)
        };
        self.committed.listed_from(ChunkId(0)).filter(here)
    }
}

fn after(mut state: MetaState, commands: &[Command]) -> MetaState {
    for command in commands {
        state.apply(command);
    }
    state
}

fn check_chunks(store: &DirStore, listings: Option<&Listings>, report: &mut Report) {
    let (ids, strangers) = match (store.ids(), store.strangers()) {
        (Ok(ids), Ok(strangers)) => (ids, strangers),
        (Err(failure), _) | (_, Err(failure)) => {
            report.note("chunks", None, format!("cannot be read: {failure}"));
            return;
        }
    };
    for path in strangers {
        let what = format!("{} is no chunk", path.display());
        report.note("chunks", None, what);
    }
    report.chunks = ids.len() as u64;
    let mut there = BTreeMap::new();
    for id in ids {
        let orphan = listings.is_some_and(|listings| listings.is_orphan(id));
        report.orphans += u64::from(orphan);
        let verified = store.verify(id);
        report.chunk_bytes += verified.as_ref().map_or(0, |len| u64::from(*len));
        there.insert(id, verified);
    }
    let Some(listings) = listings else {
        for (id, verified) in there {
            if let Err(failure) = verified {
                report.note("chunks", None, format!("chunk {id}: {failure}"));
            }
        }
        return;
    };
    let mut lost = Vec::new();
    for chunk in listings.expected() {
        let why = match there.remove(&chunk.id) {
            None => ChunkFailure::Missing.to_string(),
            Some(Err(failure)) => failure.to_string(),
            Some(Ok(len)) if len != chunk.len => {
                format!("it has {len} bytes instead of {}", chunk.len)
            }
            Some(Ok(_)) => continue,
        };
        lost.push((chunk, why));
    }
    let ids = lost.iter().map(|(chunk, _)| chunk.id).collect();
    let files = listings.committed.files_of(&ids);
    for (chunk, why) in lost {
        let files = files.get(&chunk.id).map_or(&[][..], Vec::as_slice);
        let what = describe(&chunk, listings.node, &why, files);
        report.note("chunks", Some("D1"), what);
    }
    // Damaged, and nobody's, or not surely this node's to keep.
    for (id, verified) in there {
        if let Err(failure) = verified {
            report.note("chunks", None, format!("chunk {id}: {failure}"));
        }
    }
}

/// Says what is lost with a copy.
pub(crate) fn describe(chunk: &Listed, node: NodeId, why: &str, files: &[FileOf]) -> String {
    let others: Vec<_> = chunk
        .replicas
        .iter()
        .filter(|other| **other != node)
        .collect();
    let copies = if others.is_empty() {
        "this is its only copy".to_owned()
    } else {
        let others: Vec<_> = others.into_iter().map(NodeId::to_string).collect();
        format!("another copy is on node {}", others.join(" and node "))
    };
    format!("chunk {}: {why}; {copies}{}", chunk.id, of_files(files))
}

/// Names the files that refer to a chunk.
fn of_files(files: &[FileOf]) -> String {
    let names: BTreeSet<String> = files
        .iter()
        .take(FILES_NAMED_MAX)
        .map(|file| {
            let path = file.path.clone();
            path.unwrap_or_else(|| format!("inode {} (no name)", file.ino))
        })
        .collect();
    let mut text = String::new();
    for name in names {
        text += if text.is_empty() { "; part of " } else { ", " };
        text += &name;
    }
    if files.len() > FILES_NAMED_MAX {
        text += &format!(" and {} more files", files.len() - FILES_NAMED_MAX);
    }
    text
}

#[cfg(test)]
mod tests;
