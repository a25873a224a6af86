//! The log on disk: entries, vote and what was purged, in one ordered table ([`Table`]).
//!
//! All writes go through one writer, in order; a write answers when it is durable. Reads come from the
//! newest entries in memory, which is all that apply and healthy followers need, or from the table.
//!
//! Openraft 0.9 waits for each append before it hands over the next write, so there is never more than
//! one to sync: commands are grouped before they get here, by the proposer.
//!
//! Lock order: `mark` and `tail` are never held together.

use super::directory::FOLDER;
use super::disk::{Disk, Jobs, Table};
use super::error::{OpenError, read_failed, write_failed};
use super::mark::{Mark, MarkFile};
use super::raft::{Batch, Entry, Life, LogId, Types};
use super::saved::Saved;
use super::writer::{Job, Writer, explain, writer_gone};
use consistency::wire;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader, StorageError, Vote};
use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use tokio::sync::oneshot;

pub(super) const VOTE: &[u8] = b"vote";
pub(super) const PURGED: &[u8] = b"purged";
const ENTRY: u8 = b'e';

/// How many bytes of the newest entries stay in memory: several snapshots' worth of small batches, so
/// that a follower that is a little behind costs no reads.
const TAIL_BYTES_MAX: usize = 16 << 20;
/// How many bytes of entries one message to a follower carries, unless one entry alone is larger.
const REPLICATION_BYTES_MAX: usize = 2 << 20;
/// What an entry costs beside its commands.
const ENTRY_BYTES: usize = 64;
/// The writing end, owned by the raft core.
#[derive(Debug)]
pub(super) struct LogStore {
    shared: Arc<Shared>,
    jobs: Box<dyn Jobs>,
    vote: Option<Vote<u16>>,
    committed: Option<LogId>,
    /// How far it may be purged, if there are snapshots.
    saved: Option<Arc<Saved>>,
}

/// A reading end, one per follower.
#[derive(Clone, Debug)]
pub(super) struct LogReader {
    shared: Arc<Shared>,
}

/// Tells where the log ends; does not keep the disk in use.
#[derive(Clone, Debug)]
pub(super) struct LogEnd(Weak<Shared>);

impl LogEnd {
    /// Returns the last entry's name, `None` if the log is closed.
    pub(super) fn get(&self) -> Option<Option<LogId>> {
        Some(self.0.upgrade()?.tail().last)
    }
}

/// What the ends share.
pub(super) struct Shared {
    // Dropped in this order: the disk is free when the table is closed.
    pub table: Box<dyn Table>,
    mark: Mutex<MarkFile>,
    tail: Mutex<Tail>,
    life: Arc<Life>,
    pub disk: Arc<dyn Disk>,
}

/// The newest entries and the ends of the log.
#[derive(Debug, Default)]
struct Tail {
    purged: Option<LogId>,
    last: Option<LogId>,
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// The store as it lies on disk, checked against the mark.
pub(super) struct Found {
    table: Box<dyn Table>,
    vote: Option<Vote<u16>>,
    tail: Tail,
    /// The oldest entry in the store, purged or not.
    oldest: u64,
}

impl Found {
    /// Opens the table and reads the whole log. Blocks.
    pub(super) fn open(disk: &dyn Disk, promised: &Mark) -> Result<Self, OpenError> {
        let folder = disk.path().join(FOLDER);
        if promised.flushed > 0 && !disk.has_table() {
            return Err(OpenError::corrupt(&folder, "it is missing"));
        }
        let table = disk.open_table()?;

        let vote = get(&*table, VOTE).map_err(|why| OpenError::corrupt(&folder, why))?;
        let (tail, oldest) = scan(&*table).map_err(|why| OpenError::corrupt(&folder, why))?;
        let held = tail.last.map_or(0, |last| last.index + 1);
        if held < promised.flushed {
            let missing = format!(
                "entries {held} to {}, which were synced, are missing",
                promised.flushed - 1
            );
            return Err(OpenError::corrupt(&folder, missing));
        }
        if vote < promised.vote {
            let why = "a vote, which was synced, is missing";
            return Err(OpenError::corrupt(&folder, why));
        }
        Ok(Self {
            table,
            vote,
            tail,
            oldest,
        })
    }

    /// Returns the newest entry that was purged, and the last one.
    pub(super) const fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        (self.tail.purged, self.tail.last)
    }

    /// Reads the entries that were not purged, one after the other.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<Entry, String>> {
        let first = self.tail.purged.map_or(0, |purged| purged.index + 1);
        self.table.range(&key(first), &[ENTRY + 1]).map(|pair| {
            let (_, value) = pair.map_err(|error| error.to_string())?;
            wire::decode(&value).map_err(|error| error.to_string())
        })
    }
}

impl LogStore {
    /// Opens the store and checks it against the mark. Blocks.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        mark: MarkFile,
        life: Arc<Life>,
    ) -> Result<Self, OpenError> {
        let dir = disk.path();
        let Found {
            table,
            vote,
            tail,
            oldest,
        } = Found::open(&*disk, mark.mark())?;
        // After an installed snapshot the mark may know of commits that the log has skipped.
        let committed = mark.mark().committed.min(tail.last);
        let leftover = oldest..tail.purged.map_or(oldest, |purged| purged.index + 1);

        let shared = Arc::new(Shared {
            table,
            mark: Mutex::new(mark),
            tail: Mutex::new(tail),
            life,
            disk: Arc::clone(&disk),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            leftover,
            failed: None,
        };
        let jobs = disk
            .start(writer)
            .map_err(OpenError::io("start a thread for", dir))?;
        Ok(Self {
            shared,
            jobs,
            vote,
            committed,
            saved: None,
        })
    }

    /// R6: from now on purges what a durable snapshot covers.
    pub(super) fn purging_behind(mut self, saved: Arc<Saved>) -> Self {
        self.saved = Some(saved);
        self
    }

    pub(super) fn end(&self) -> LogEnd {
        LogEnd(Arc::downgrade(&self.shared))
    }

    /// Returns the newest entry that was purged: a snapshot must reach at least that far.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.shared.tail().purged
    }

    async fn write(
        &self,
        job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job,
    ) -> Result<(), StorageError<u16>> {
        let (done, outcome) = oneshot::channel();
        self.send(job(done))?;
        let outcome = outcome.await.unwrap_or_else(|_| Err(writer_gone()));
        outcome.map_err(|error| write_failed(&error))
    }

    fn send(&self, job: Job) -> Result<(), StorageError<u16>> {
        if self.jobs.send(job) {
            Ok(())
        } else {
            Err(write_failed(&writer_gone()))
        }
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().expect("no holder of the tail panics")
    }

    pub(super) fn mark(&self) -> MutexGuard<'_, MarkFile> {
        self.mark.lock().expect("no holder of the mark panics")
    }

    /// Returns the entries of a range that are there, at most `bytes_max` bytes but at least one.
    fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let older = self.tail().entries.front().map_or(range.end, index);
        let old = range.start..range.end.min(older);
        if !old.is_empty() {
            for pair in self.table.range(&key(old.start), &key(old.end)) {
                let (_, value) = pair?;
                let entry = wire::decode(&value).map_err(io::Error::other)?;
                if !take(&mut entries, &mut bytes, entry, bytes_max) {
                    return Ok(entries);
                }
            }
        }
        let tail = self.tail();
        let front = tail.entries.front().map_or(range.end, index);
        let skip = usize::try_from(range.start.saturating_sub(front)).unwrap_or(usize::MAX);
        for entry in tail.entries.iter().skip(skip) {
            if index(entry) >= range.end
                || !take(&mut entries, &mut bytes, entry.clone(), bytes_max)
            {
                break;
            }
        }
        Ok(entries)
    }
}

/// Adds an entry unless that makes more than `bytes_max`; returns whether it did.
fn take(entries: &mut Vec<Entry>, bytes: &mut usize, entry: Entry, bytes_max: usize) -> bool {
    *bytes += size(&entry);
    let fits = entries.is_empty() || *bytes <= bytes_max;
    if fits {
        entries.push(entry);
    }
    fits
}

impl Tail {
    fn push(&mut self, entry: Entry) {
        self.last = Some(entry.log_id);
        self.bytes += size(&entry);
        self.entries.push_back(entry);
    }

    /// Forgets the oldest entries beyond the bound, but none from index `unsynced` on: those are not
    /// in the store yet.
    fn shrink(&mut self, unsynced: u64) {
        while self.bytes > TAIL_BYTES_MAX
            && self
                .entries
                .front()
                .is_some_and(|entry| index(entry) < unsynced)
        {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= size(&entry);
        }
    }

    fn truncate(&mut self, since: u64, last: Option<LogId>) {
        while self
            .entries
            .back()
            .is_some_and(|entry| index(entry) >= since)
        {
            let entry = self.entries.pop_back().expect("there is a last one");
            self.bytes -= size(&entry);
        }
        self.last = last;
    }

    fn purge(&mut self, upto: LogId) {
        while self
            .entries
            .front()
            .is_some_and(|entry| index(entry) <= upto.index)
        {
            self.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
    }
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError<u16>> {
        let range = half_open(&range);
        let entries = self.shared.read(range, usize::MAX);
        entries.map_err(|error| read_failed(&error))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError<u16>> {
        let entries = self.shared.read(start..end, REPLICATION_BYTES_MAX);
        entries.map_err(|error| read_failed(&error))
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError<u16>> {
        let entries = self.shared.read(half_open(&range), usize::MAX);
        entries.map_err(|error| read_failed(&error))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u16>> {
        let tail = self.shared.tail();
        Ok(LogState {
            last_purged_log_id: tail.purged,
            last_log_id: tail.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: Arc::clone(&self.shared),
        }
    }

    async fn save_vote(&mut self, vote: &Vote<u16>) -> Result<(), StorageError<u16>> {
        let vote = *vote;
        self.write(|done| Job::Vote(vote, done)).await?;
        self.vote = Some(vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u16>>, StorageError<u16>> {
        // Openraft would let a node that led before a restart lead on in the same reign. But what a
        // leader keeps in memory only (leases) is gone, so it has to be elected anew, with a new epoch.
        let me = self.shared.mark().mark().node;
        Ok(self.vote.map(|vote| Vote {
            committed: vote.committed && vote.leader_id.node_id != me,
            ..vote
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError<u16>> {
        self.committed = committed;
        let written = self.shared.mark().update(|mark| mark.committed = committed);
        written.map_err(|error| write_failed(&explain(self.shared.disk.path(), &error)))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError<u16>> {
        Ok(self.committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError<u16>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut tail = self.shared.tail();
        for entry in entries {
            encoded.push((index(&entry), wire::encode(&entry)));
            self.shared.life.note_appended(&entry);
            tail.push(entry);
        }
        if let Some((first, _)) = encoded.first() {
            tail.shrink(*first);
        }
        drop(tail);
        self.send(Job::Append(encoded, callback))
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError<u16>> {
        let end = self.shared.tail().last.map_or(0, |last| last.index + 1);
        let before = match since.index.checked_sub(1) {
            Some(before) => {
                let kept = self.shared.read(before..since.index, usize::MAX);
                let kept = kept.map_err(|error| read_failed(&error))?;
                let purged = self.shared.tail().purged;
                kept.first().map_or(purged, |entry| Some(entry.log_id))
            }
            None => None,
        };
        self.shared.tail().truncate(since.index, before);
        self.write(|done| Job::Truncate(since.index..end, done))
            .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError<u16>> {
        if let Some(saved) = &self.saved {
            saved
                .reaches(upto)
                .await
                .map_err(|error| write_failed(&error))?;
        }
        self.shared.tail().purge(upto);
        // Not waited for: a purge that a crash undoes is done again.
        self.send(Job::Purge(upto))
    }
}

/// Reads the whole log; returns it with the index of the oldest entry in the store, purged or not.
fn scan(table: &dyn Table) -> Result<(Tail, u64), String> {
    let purged: Option<LogId> = get(table, PURGED)?;
    let mut tail = Tail {
        purged,
        last: purged,
        ..Tail::default()
    };
    let mut next = purged.map_or(0, |purged| purged.index + 1);
    let mut oldest = None;
    for pair in table.range(&[ENTRY], &[ENTRY + 1]) {
        let (key, value) = pair.map_err(|error| error.to_string())?;
        let found = key.get(1..).and_then(|index| index.try_into().ok());
        let found = u64::from_be_bytes(found.ok_or("a key is not eight bytes long")?);
        oldest.get_or_insert(found);
        if purged.is_some_and(|purged| found <= purged.index) {
            continue;
        }
        if found != next {
            return Err(format!("entry {next} is missing, the next one is {found}"));
        }
        let entry: Entry = wire::decode(&value).map_err(|why| format!("entry {found}: {why}"))?;
        if index(&entry) != found {
            return Err(format!(
                "entry {found} says that it is entry {}",
                index(&entry)
            ));
        }
        tail.push(entry);
        next += 1;
        tail.shrink(next);
    }
    Ok((tail, oldest.unwrap_or(next)))
}

fn get<T: serde::de::DeserializeOwned>(table: &dyn Table, key: &[u8]) -> Result<Option<T>, String> {
    let value = table.get(key).map_err(|error| error.to_string())?;
    value
        .map(|value| wire::decode(&value))
        .transpose()
        .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(key)))
}

pub(super) fn key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn index(entry: &Entry) -> u64 {
    entry.log_id.index
}

fn size(entry: &Entry) -> usize {
    let commands = match &entry.payload {
        EntryPayload::Normal(batch) => Batch::bytes(batch),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    ENTRY_BYTES + commands
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("disk", &self.disk)
            .finish_non_exhaustive()
    }
}
