//! The one thread that writes the log: each job is a batch of fjall's, synced before it is answered.

use super::raft::{LogId, Types};
use super::store::{PURGED, Shared, VOTE, into_io, key};
use consistency::wire;
use fjall::PersistMode;
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

/// The thread that writes.
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
        write(&self.shared).map_err(|error| {
            let error = explain(self.shared.directory.path(), &error);
            self.failed = Some(error.to_string());
            error
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
            let mut batch = shared.db.batch();
            for index in step {
                batch.remove(&shared.keyspace, key(index));
            }
            batch.commit().map_err(into_io)
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
    let mut batch = shared.db.batch().durability(Some(PersistMode::SyncData));
    for (index, entry) in entries {
        batch.insert(&shared.keyspace, key(index), entry);
    }
    batch.commit().map_err(into_io)?;
    shared.mark().update(|mark| mark.flushed = next)
}

fn save_vote(shared: &Shared, vote: Vote<u16>) -> io::Result<()> {
    let mut batch = shared.db.batch().durability(Some(PersistMode::SyncData));
    batch.insert(&shared.keyspace, VOTE, wire::encode(&vote));
    batch.commit().map_err(into_io)?;
    shared.mark().update(|mark| mark.vote = Some(vote))
}

fn truncate(shared: &Shared, indexes: Range<u64>) -> io::Result<()> {
    let since = indexes.start;
    let lowered = shared.mark().lower(|mark| {
        mark.flushed = mark.flushed.min(since);
    });
    lowered?;
    let mut batch = shared.db.batch().durability(Some(PersistMode::SyncData));
    // From the end, so that what a crash leaves of it has no hole.
    for index in indexes.rev() {
        batch.remove(&shared.keyspace, key(index));
    }
    batch.commit().map_err(into_io)
}

fn save_purged(shared: &Shared, upto: LogId) -> io::Result<()> {
    let mut batch = shared.db.batch();
    batch.insert(&shared.keyspace, PURGED, wire::encode(&upto));
    batch.commit().map_err(into_io)
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
