//! The one that writes the log: each job is one commit of the table, synced before it is answered.

use super::raft::{LogId, Types};
use super::store::{PURGED, Shared, VOTE, key};
use consistency::wire;
use openraft::Vote;
use openraft::storage::LogFlushed;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use tokio::sync::oneshot;

/// Purged entries are removed this many at a time, between appends, so that no append waits long.
const PURGE_STEP: u64 = 128;

/// A write; an answer means that it is on disk.
pub(super) enum Job {
    Append(Vec<(u64, Vec<u8>)>, LogFlushed<Types>),
    Vote(Vote<u16>, oneshot::Sender<io::Result<()>>),
    Truncate(Range<u64>, oneshot::Sender<io::Result<()>>),
    Purge(LogId),
}

/// The one that writes, a thread on a real disk.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    /// Purged entries that are still in the store.
    pub leftover: Range<u64>,
    /// Why nothing is written any more. After a failed fsync nobody knows what is on disk.
    pub failed: Option<String>,
}

impl Writer {
    pub(super) fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            let job = if self.leftover.is_empty() || self.failed.is_some() {
                inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                inbox.try_recv()
            };
            match job {
                Ok(job) => self.handle(job),
                Err(TryRecvError::Empty) => self.remove_leftover(),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Does a job, and all that is left of those before it.
    #[cfg(test)]
    pub(super) fn take(&mut self, job: Job) {
        self.handle(job);
        while !self.leftover.is_empty() && self.failed.is_none() {
            self.remove_leftover();
        }
    }

    fn handle(&mut self, job: Job) {
        #[cfg(test)]
        if self.failed.is_none() {
            // What it meets is the outcome of this write, and with it of all that follow.
            drop(self.meet_fault(&job));
        }
        match job {
            Job::Append(entries, done) => {
                let outcome = self.attempt(|shared| append(shared, entries));
                done.log_io_completed(outcome);
            }
            Job::Vote(vote, done) => {
                let outcome = self.attempt(|shared| save_vote(shared, vote));
                // A core that is gone does not need the answer.
                drop(done.send(outcome));
            }
            Job::Truncate(indexes, done) => {
                let outcome = self.attempt(|shared| truncate(shared, indexes));
                drop(done.send(outcome));
            }
            Job::Purge(upto) => {
                let outcome = self.attempt(|shared| save_purged(shared, upto));
                if outcome.is_ok() {
                    self.leftover.end = self.leftover.end.max(upto.index + 1);
                }
            }
        }
    }

    fn attempt(&mut self, write: impl FnOnce(&Shared) -> io::Result<()>) -> io::Result<()> {
        if let Some(why) = &self.failed {
            return Err(io::Error::other(why.clone()));
        }
        write(&self.shared).or_else(|error| {
            // R4
            if missing!(GoOn) {
                return Ok(());
            }
            let error = explain(self.shared.disk.path(), &error);
            self.failed = Some(error.to_string());
            Err(error)
        })
    }

    #[cfg(test)]
    fn meet_fault(&mut self, job: &Job) -> io::Result<()> {
        self.attempt(|shared| super::faults::meet(shared, job))
    }

    fn remove_leftover(&mut self) {
        let end = self.leftover.end.min(self.leftover.start + PURGE_STEP);
        let step = self.leftover.start..end;
        let removed = self.attempt(|shared| {
            let removed = step.map(|index| (key(index).to_vec(), None));
            shared.table.commit(removed.collect(), false)
        });
        if removed.is_ok() {
            self.leftover.start = end;
        }
    }
}

fn append(shared: &Shared, entries: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
    let Some(next) = entries.last().map(|(index, _)| index + 1) else {
        return Ok(());
    };
    let entries = entries.into_iter();
    let changes = entries.map(|(index, entry)| (key(index).to_vec(), Some(entry)));
    shared.table.commit(changes.collect(), !missing!(NoSync))?;
    shared.mark().update(|mark| mark.flushed = next)
}

fn save_vote(shared: &Shared, vote: Vote<u16>) -> io::Result<()> {
    let change = (VOTE.to_vec(), Some(wire::encode(&vote)));
    shared.table.commit(vec![change], !missing!(NoVote))?;
    shared.mark().update(|mark| mark.vote = Some(vote))
}

fn truncate(shared: &Shared, indexes: Range<u64>) -> io::Result<()> {
    let since = indexes.start;
    let lowered = shared.mark().lower(|mark| {
        mark.flushed = mark.flushed.min(since);
    });
    lowered?;
    let removed = indexes.map(|index| (key(index).to_vec(), None));
    shared.table.commit(removed.collect(), true)
}

fn save_purged(shared: &Shared, upto: LogId) -> io::Result<()> {
    let change = (PURGED.to_vec(), Some(wire::encode(&upto)));
    shared.table.commit(vec![change], false)
}

/// Says where a write failed and what to do.
pub(super) fn explain(dir: &Path, error: &io::Error) -> io::Error {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room",
        _ => "check the disk",
    };
    let text = format!(
        "log {}: cannot be written: {error}; {advice}, then restart this node",
        dir.display()
    );
    io::Error::new(error.kind(), text)
}

/// The answer of a writer that is not there.
pub(super) fn writer_gone() -> io::Error {
    io::Error::other("the log's writer has ended")
}
