//! A disk in memory that keeps no more than it promised: at a crash it loses what was not synced, or a part of it, and
//! it fails when told to.
//!
//! | written | after a crash |
//! | --- | --- |
//! | commits that were not synced | the first few of them, in order |
//! | the content of a file, not synced | the old, the new, or the beginning of the new up to a sector |
//! | names of files, not synced | the first few changes, in order |
//! | anything whose sync failed | gone, also if a later sync returns without an error |

use super::disk::{Change, Disk, DiskFile, Jobs, Pair, Table};
use super::error::OpenError;
use super::writer::{Job, Writer};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tests::Dice;
use tokio::sync::mpsc;

/// What is written at once.
const SECTOR: usize = 512;

/// What a disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// Nothing.
    None,
    /// The next sync fails, once.
    SyncFails,
    /// Nothing can be written, until it is told otherwise.
    Full,
}

/// One life of a disk, between two crashes.
pub(crate) struct SimulatedDisk {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
}

type FileId = u64;

#[derive(Clone, Default)]
struct Image {
    /// `None` until it is made.
    table: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    names: BTreeMap<String, FileId>,
    data: BTreeMap<FileId, Vec<u8>>,
}

enum Renamed {
    Made(String, FileId),
    Removed(String),
}

struct State {
    dice: Dice,
    fault: DiskFault,
    /// What its users see.
    seen: Image,
    /// What survives a crash in any case.
    safe: Image,
    /// What was done to the table and to the names since.
    commits: Vec<Vec<Change>>,
    names: Vec<Renamed>,
    next_file: FileId,
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimulatedDisk")
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inner")
    }
}

impl SimulatedDisk {
    /// Returns an empty disk.
    pub(crate) fn new(dice: Dice) -> Self {
        Self::with(Image::default(), dice, 0)
    }

    fn with(image: Image, dice: Dice, next_file: FileId) -> Self {
        let state = State {
            dice,
            fault: DiskFault::None,
            seen: image.clone(),
            safe: image,
            commits: Vec::new(),
            names: Vec::new(),
            next_file,
        };
        Self {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
            }),
        }
    }

    /// Returns the disk as it is after a crash at this moment. Who still uses this one reaches nothing any more.
    pub(crate) fn crash(&self) -> Self {
        let mut state = self.inner.state();
        let state = &mut *state;
        let mut image = state.safe.clone();
        let kept = state.dice.below(state.commits.len() + 1);
        for changes in state.commits.drain(..).take(kept) {
            apply(image.table.get_or_insert_default(), changes);
        }
        let kept = state.dice.below(state.names.len() + 1);
        for change in state.names.drain(..).take(kept) {
            rename(&mut image.names, change);
        }
        for id in image.names.values() {
            let safe = state.safe.data.get(id).cloned().unwrap_or_default();
            let new = state.seen.data.get(id).cloned().unwrap_or_default();
            let found = match state.dice.below(3_u8) {
                0 => safe,
                1 => new,
                _ => torn(&safe, &new, state.dice.below(new.len() / SECTOR + 1)),
            };
            image.data.insert(*id, found);
        }
        Self::with(
            image,
            Dice::new(state.dice.below(u64::MAX)),
            state.next_file,
        )
    }

    /// Has it do wrong from now on.
    pub(crate) fn fail(&self, fault: DiskFault) {
        self.inner.state().fault = fault;
    }
}

fn torn(safe: &[u8], new: &[u8], sectors: usize) -> Vec<u8> {
    if new.len() <= SECTOR {
        // Not torn: it lies in one sector.
        return safe.to_vec();
    }
    let mut torn = new[..sectors * SECTOR].to_vec();
    torn.extend(safe.iter().skip(torn.len()));
    torn
}

fn apply(table: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: Vec<Change>) {
    for (key, value) in changes {
        match value {
            Some(value) => table.insert(key, value),
            None => table.remove(&key),
        };
    }
}

fn rename(names: &mut BTreeMap<String, FileId>, change: Renamed) {
    match change {
        Renamed::Made(name, id) => {
            names.retain(|_, other| *other != id);
            names.insert(name, id);
        }
        Renamed::Removed(name) => {
            names.remove(&name);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl State {
    fn room(&self) -> io::Result<()> {
        match self.fault {
            DiskFault::Full => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            DiskFault::None | DiskFault::SyncFails => Ok(()),
        }
    }

    fn sync_fails(&mut self) -> bool {
        let fails = self.fault == DiskFault::SyncFails;
        if fails {
            self.fault = DiskFault::None;
        }
        fails
    }
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Disk for SimulatedDisk {
    fn path(&self) -> &Path {
        Path::new("/simulated")
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner.state().seen.names.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let state = self.inner.state();
        let id = state.seen.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(state.seen.data.get(id).cloned().unwrap_or_default())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.inner.state();
        state.room()?;
        let id = state.next_file;
        state.next_file += 1;
        state.seen.names.insert(name.to_owned(), id);
        state.names.push(Renamed::Made(name.to_owned(), id));
        Ok(self.file(id))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.inner.state();
        let id = state.seen.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(*id))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fail_point!("disk: before a rename");
        let mut state = self.inner.state();
        let state = &mut *state;
        let id = state.seen.names.remove(from);
        let id = id.ok_or(io::ErrorKind::NotFound)?;
        state.seen.names.insert(to.to_owned(), id);
        state.names.push(Renamed::Made(to.to_owned(), id));
        if state.sync_fails() {
            return Err(broken());
        }
        state.safe.names = state.seen.names.clone();
        state.names.clear();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fail_point!("disk: before a remove");
        let mut state = self.inner.state();
        let id = state.seen.names.remove(name);
        id.ok_or(io::ErrorKind::NotFound)?;
        state.names.push(Renamed::Removed(name.to_owned()));
        Ok(())
    }

    fn has_table(&self) -> bool {
        self.inner.state().seen.table.is_some()
    }

    fn open_table(&self) -> Result<Box<dyn Table>, OpenError> {
        let mut state = self.inner.state();
        state.seen.table.get_or_insert_default();
        state.safe.table.get_or_insert_default();
        Ok(Box::new(SimulatedTable(Arc::clone(&self.inner))))
    }

    fn start(&self, mut writer: Writer) -> io::Result<Box<dyn Jobs>> {
        let (jobs, mut inbox) = mpsc::unbounded_channel();
        let disk = Arc::clone(&self.inner);
        tokio::spawn(async move {
            while let Some(job) = inbox.recv().await {
                let pause = disk.state().pause();
                tokio::time::sleep(pause).await;
                writer.take(job);
            }
        });
        Ok(Box::new(SimulatedJobs(jobs)))
    }

    fn blocks(&self) -> bool {
        false
    }
}

impl SimulatedDisk {
    fn file(&self, id: FileId) -> Box<dyn DiskFile> {
        let disk = Arc::clone(&self.inner);
        Box::new(SimulatedFile { disk, id })
    }
}

impl State {
    /// How long a sync takes: seldom very long.
    fn pause(&mut self) -> Duration {
        let most = match self.dice.below(200_u8) {
            0 => 300_000,
            1..10 => 30_000,
            _ => 3_000,
        };
        Duration::from_micros(self.dice.below(most))
    }
}

#[derive(Debug)]
struct SimulatedJobs(mpsc::UnboundedSender<Job>);

impl Jobs for SimulatedJobs {
    fn send(&self, job: Job) -> bool {
        self.0.send(job).is_ok()
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: Arc<Inner>,
    id: FileId,
}

impl DiskFile for SimulatedFile {
    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        fail_point!("disk: before a write");
        let mut state = self.disk.state();
        state.room()?;
        let data = state.seen.data.entry(self.id).or_default();
        let end = at + bytes.len();
        data.resize(data.len().max(end), 0);
        data[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        fail_point!("disk: before a sync");
        let mut state = self.disk.state();
        let state = &mut *state;
        if state.sync_fails() {
            return Err(broken());
        }
        let data = state.seen.data.get(&self.id).cloned();
        state.safe.data.insert(self.id, data.unwrap_or_default());
        Ok(())
    }
}

struct SimulatedTable(Arc<Inner>);

impl Table for SimulatedTable {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let state = self.0.state();
        let table = state.seen.table.as_ref();
        Ok(table.and_then(|table| table.get(key).cloned()))
    }

    fn range<'a>(
        &'a self,
        from: &[u8],
        to: &[u8],
    ) -> Box<dyn Iterator<Item = io::Result<Pair>> + 'a> {
        let state = self.0.state();
        let table = state.seen.table.iter();
        let pairs = table.flat_map(|table| table.range(from.to_vec()..to.to_vec()));
        let pairs: Vec<_> = pairs
            .map(|(key, value)| Ok((key.clone(), value.clone())))
            .collect();
        Box::new(pairs.into_iter())
    }

    fn commit(&self, changes: Vec<Change>, sync: bool) -> io::Result<()> {
        {
            let mut state = self.0.state();
            state.room()?;
            apply(state.seen.table.get_or_insert_default(), changes.clone());
            state.commits.push(changes);
        }
        if !sync {
            return Ok(());
        }
        fail_point!("disk: before the sync of a commit");
        {
            let mut state = self.0.state();
            let state = &mut *state;
            let commits = std::mem::take(&mut state.commits);
            if state.sync_fails() {
                return Err(broken());
            }
            let table = state.safe.table.get_or_insert_default();
            for changes in commits {
                apply(table, changes);
            }
        }
        fail_point!("disk: after the sync of a commit");
        Ok(())
    }
}
