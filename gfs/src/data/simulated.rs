//! A chunk store in memory, on a disk that fails: for the simulated worlds.
//!
//! | what | when it fails, or after a crash |
//! | --- | --- |
//! | a put that was answered | is there |
//! | a put that failed | is not there; or is, and was not synced: a crash may take it |
//! | a deletion | may be undone by a crash |
//! | a read that fails | says what the real store says: EIO is a damaged chunk |
//! | any chunk | may lose bits, its end, or itself at any time, if the world says so |
//!
//! What is kept of a chunk is its whole file, as the real store writes and verifies it (`store/format.rs`).

use super::store::format::{Header, unread, whole};
use super::{ChunkStore, Space};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::ChunkFailure;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tests::Dice;

/// What a disk of chunks does wrong, until it is told otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChunkFault {
    #[default]
    None,
    /// Nothing can be written for want of room.
    Full,
    /// Nothing can be written.
    WritesFail,
    /// Nothing can be read.
    ReadsFail,
}

/// What happens to a chunk that lies there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    /// A bit is another one.
    Flip,
    /// Its end is gone, as if a write had been torn.
    Cut,
    /// It is gone.
    Take,
}

/// The file of a chunk.
#[derive(Clone, Debug)]
struct File {
    bytes: Bytes,
    synced: bool,
    damaged: bool,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    fault: ChunkFault,
    slow: Duration,
    life: u32,
    files: BTreeMap<ChunkId, File>,
    /// Deleted, which was not synced.
    deleted: BTreeMap<ChunkId, File>,
    changes: u64,
}

/// The disk, in all lives of its node.
#[derive(Debug)]
pub(crate) struct SimulatedStore(Mutex<State>);

impl SimulatedStore {
    /// Returns an empty disk.
    pub(crate) fn new(dice: Dice) -> Self {
        Self(Mutex::new(State {
            dice,
            fault: ChunkFault::None,
            slow: Duration::ZERO,
            life: 0,
            files: BTreeMap::new(),
            deleted: BTreeMap::new(),
            changes: 0,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }

    /// Returns the store for the present life of its node.
    pub(crate) fn mounted(self: &Arc<Self>) -> SimulatedChunks {
        SimulatedChunks {
            store: Arc::clone(self),
            life: self.state().life,
        }
    }

    /// The node dies at this moment: what it does from now on reaches nothing here.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        let State {
            dice,
            files,
            deleted,
            ..
        } = &mut *state;
        files.retain(|_, file| file.synced || dice.below(2_u8) == 0);
        for file in files.values_mut() {
            file.synced = true;
        }
        let back = std::mem::take(deleted);
        files.extend(back.into_iter().filter(|_| dice.below(2_u8) == 0));
        state.life += 1;
        state.changes += 1;
    }

    /// From now on the disk does this wrong.
    pub(crate) fn fail(&self, fault: ChunkFault) {
        self.state().fault = fault;
    }

    /// From now on each request takes so long.
    pub(crate) fn slow_down(&self, slow: Duration) {
        self.state().slow = slow;
    }

    /// Returns whether it does anything wrong now.
    pub(crate) fn is_failing(&self) -> bool {
        let state = self.state();
        state.fault != ChunkFault::None || state.slow > Duration::ZERO
    }

    /// Damages a chunk that is there.
    pub(crate) fn damage(&self, id: ChunkId, how: Damage) {
        let mut state = self.state();
        let State { dice, files, .. } = &mut *state;
        if let Some(file) = files.get_mut(&id) {
            let at = dice.below(file.bytes.len());
            let mut bytes = file.bytes.to_vec();
            match how {
                Damage::Flip => bytes[at] ^= 1 << dice.below(8_u8),
                Damage::Cut => bytes.truncate(at),
                Damage::Take => drop(files.remove(&id)),
            }
            if let Some(file) = files.get_mut(&id) {
                file.bytes = bytes.into();
                file.damaged = true;
            }
        }
        state.changes += 1;
    }

    /// Returns whether a chunk is here, undamaged, and outlives a crash.
    pub(crate) fn is_good(&self, id: ChunkId) -> bool {
        let state = self.state();
        let file = state.files.get(&id);
        file.is_some_and(|file| file.synced && !file.damaged)
    }

    /// Returns what is here.
    pub(crate) fn chunks(&self) -> Vec<ChunkId> {
        self.state().files.keys().copied().collect()
    }

    /// Counts what has happened to the chunks.
    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Returns the room on the disk.
    pub(crate) fn room(&self) -> Space {
        let state = self.state();
        let (total, each) = (1 << 30, 1 << 20);
        let free = match state.fault {
            ChunkFault::Full => 0,
            _ => total - state.files.len() as u64 * each,
        };
        Space { total, free }
    }
}

/// A [`SimulatedStore`] as the node uses it in one life.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedChunks {
    store: Arc<SimulatedStore>,
    life: u32,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn unwritten() -> ChunkFailure {
    super::store::format::disk("write", &eio())
}

impl SimulatedChunks {
    fn state(&self) -> Result<MutexGuard<'_, State>, ChunkFailure> {
        let state = self.store.state();
        if state.life == self.life {
            Ok(state)
        } else {
            Err(ChunkFailure::Disk("this node is dead".to_owned()))
        }
    }

    /// Takes chunks away; returns what they were.
    fn remove(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        let mut state = self.state()?;
        if state.fault == ChunkFault::WritesFail {
            return Err(unwritten());
        }
        for id in ids {
            if let Some(file) = state.files.remove(id) {
                state.deleted.insert(*id, file);
                state.changes += 1;
            }
        }
        Ok(())
    }
}

impl ChunkStore for SimulatedChunks {
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure> {
        let header = Header::of(data, crc)?;
        fail_point!("chunk store: before a chunk is put");
        let mut state = self.state()?;
        state.changes += 1;
        let there = state.files.get(&id).map(|file| whole(&file.bytes));
        let there = match there {
            Some(Ok(there)) if there != data => {
                return Err(ChunkFailure::Disk("it has other bytes".to_owned()));
            }
            Some(Ok(_)) => true,
            Some(Err(_)) | None => false,
        };
        let fault = state.fault;
        if !there {
            let failed = match fault {
                ChunkFault::Full => Some(ChunkFailure::NoSpace),
                // Either the file or its name was not synced.
                ChunkFault::WritesFail if state.dice.below(2_u8) == 0 => Some(unwritten()),
                _ => None,
            };
            if let Some(failed) = failed {
                return Err(failed);
            }
            let file = File {
                bytes: [&header.encode(), data].concat().into(),
                synced: false,
                damaged: false,
            };
            state.files.insert(id, file);
            state.deleted.remove(&id);
        }
        if fault == ChunkFault::WritesFail {
            return Err(unwritten());
        }
        if let Some(file) = state.files.get_mut(&id) {
            file.synced |= !missing!(PutUnsynced);
        }
        drop(state);
        fail_point!("chunk store: after a chunk is put");
        Ok(())
    }

    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        let state = self.state()?;
        if state.fault == ChunkFault::ReadsFail {
            return Err(unread("read", &eio()));
        }
        let file = state.files.get(&id).ok_or(ChunkFailure::Missing)?;
        let data = whole(&file.bytes)?;
        if len == 0 || offset as usize >= data.len() {
            return Err(ChunkFailure::BadRange);
        }
        let end = (offset as usize + len as usize).min(data.len());
        Ok(data.slice(offset as usize..end))
    }

    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        self.remove(ids)
    }

    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure> {
        self.remove(&[id])
    }

    fn space(&self) -> Result<Space, ChunkFailure> {
        Ok(self.store.room())
    }

    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        let state = self.state()?;
        match state.fault {
            ChunkFault::ReadsFail => Err(super::store::format::disk("list the chunks", &eio())),
            _ => Ok(state.files.keys().copied().collect()),
        }
    }

    fn simulated(&self) -> Option<Duration> {
        Some(self.store.state().slow)
    }
}
