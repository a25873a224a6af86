//! A log that nobody uses, read as it lies on disk.
//!
//! Nothing is written but what a start of the daemon would write: the database under the log sets its own journal
//! straight when it is opened.

use super::directory::{Directory, FOLDER};
use super::disk::Disk;
use super::error::OpenError;
use super::machine::{Applied, restore};
use super::mark::{self, MarkFile};
use super::raft::{Entry, Membership};
use super::snapshot;
use super::store::Found;
use crate::server::machine::StateMachine;
use consistency::{NodeId, wire};
use openraft::EntryPayload;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// What a log holds.
#[derive(Debug)]
pub struct AtRest<M: StateMachine> {
    /// Whose it is.
    pub node: NodeId,
    /// Who keeps the metadata, as far as this log knows.
    pub voters: Vec<NodeId>,
    /// The newest entry in `state`, 0 if there is none.
    pub index: u64,
    /// The state up to the newest entry that is known to be committed.
    pub state: M,
    /// The commands behind it, in order. A leader may have withdrawn them.
    pub uncommitted: Vec<M::Command>,
    /// Snapshots that cannot be read, with the reason; another one was taken in their place.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Reads a log, checks all that has a checksum or a promise, and applies what is committed. Blocks.
///
/// # Errors
/// [`OpenError::InUse`] while somebody uses it; otherwise the first thing that is wrong with it.
pub fn at_rest<M: StateMachine>(dir: &Path) -> Result<AtRest<M>, OpenError> {
    let (directory, _closed) = Directory::take(dir)?;
    let dir = directory.path();
    // Damage can make the code that reads it panic; to the user that is damage as well.
    catch_unwind(AssertUnwindSafe(|| read(&*directory))).unwrap_or_else(|panic| {
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied());
        let why = format!(
            "reading it failed: {}",
            why.unwrap_or("for no reason given")
        );
        Err(OpenError::corrupt(&dir.join(FOLDER), why))
    })
}

fn read<M: StateMachine>(disk: &dyn Disk) -> Result<AtRest<M>, OpenError> {
    let dir = disk.path();
    let corrupt = |path: &Path, why: String| OpenError::corrupt(path, why);
    let name = dir.join(mark::NAME);
    let mark = MarkFile::open(disk)?.ok_or_else(|| corrupt(&name, "it is missing".into()))?;
    let mark = mark.mark().clone();
    let found = Found::open(disk, &mark)?;
    let (purged, last) = found.ends();
    let damaged = snapshot::check_all(disk).map_err(OpenError::io("read the snapshots in", dir))?;
    let damaged = damaged
        .into_iter()
        .filter_map(|(file, checked)| Some((file, checked.err()?)))
        .collect();
    let start = snapshot::newest(disk, purged)?;
    let applied: Result<Applied<M>, _> =
        start.map_or_else(|| Ok(Applied::default()), |bytes| restore(&bytes));
    let mut applied = applied.map_err(|error| OpenError::unreadable(dir, error))?;

    let mut uncommitted = Vec::new();
    let mut committed = mark.committed.min(last);
    for entry in found.entries() {
        let entry = entry.map_err(|why| corrupt(&dir.join(FOLDER), why))?;
        if Some(entry.log_id) <= applied.last {
            continue;
        }
        if is_alone(&applied.membership, mark.node) {
            // What a lone voter has synced is committed, also what it had no time to note.
            committed = last;
        }
        let commands = commands::<M>(&entry).map_err(|why| {
            let why = format!("entry {}: {why}", entry.log_id.index);
            corrupt(&dir.join(FOLDER), why)
        })?;
        if Some(entry.log_id) > committed {
            uncommitted.extend(commands);
            continue;
        }
        for command in &commands {
            applied.machine.apply(command);
        }
        if let EntryPayload::Membership(members) = entry.payload {
            applied.membership = Membership::new(Some(entry.log_id), members);
        }
        applied.last = Some(entry.log_id);
    }
    Ok(AtRest {
        node: NodeId(mark.node),
        voters: applied.membership.voter_ids().map(NodeId).collect(),
        index: applied.last.map_or(0, |last| last.index),
        state: applied.machine,
        uncommitted,
        damaged,
    })
}

fn is_alone(members: &Membership, node: u16) -> bool {
    members.voter_ids().eq([node])
}

fn commands<M: StateMachine>(entry: &Entry) -> Result<Vec<M::Command>, String> {
    let EntryPayload::Normal(batch) = &entry.payload else {
        return Ok(Vec::new());
    };
    let decode = |command| wire::decode(command).map_err(|error| error.to_string());
    batch.commands.iter().map(|bytes| decode(bytes)).collect()
}
