//! One input for all processes of a command: each gets every byte, as fast as the slowest reads. It is read once all of
//! them run: what is read before could not be given to those that come later.

use super::copy::read_input;
use super::owner::Line;
use bytes::Bytes;
use gproc::job::protocol::{DATA_BYTES_MAX, INPUT_WINDOW, ToJob};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// The readers of this process's input.
#[derive(Debug)]
pub(super) struct Fan {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    /// Who has not come yet.
    awaited: BTreeSet<u32>,
    /// With the bytes that each may be sent.
    readers: BTreeMap<u32, (Line, usize)>,
}

impl Fan {
    /// Returns the input of `count` processes.
    pub(super) fn new(count: u32) -> Arc<Self> {
        let inner = Inner {
            awaited: (0..count).collect(),
            readers: BTreeMap::new(),
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        })
    }

    /// A process runs and reads.
    pub(super) fn join(self: &Arc<Self>, process: u32, line: Line) {
        let mut inner = self.lock();
        inner.readers.insert(process, (line, INPUT_WINDOW as usize));
        self.came(inner, process);
    }

    /// A process reads no more, or never will.
    pub(super) fn leave(self: &Arc<Self>, process: u32) {
        let mut inner = self.lock();
        inner.readers.remove(&process);
        self.changed.notify_one();
        self.came(inner, process);
    }

    /// A process has read.
    pub(super) fn add_credit(&self, process: u32, bytes: u32) {
        if let Some((_, credit)) = self.lock().readers.get_mut(&process) {
            *credit += bytes as usize;
        }
        self.changed.notify_one();
    }

    fn came(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, process: u32) {
        if inner.awaited.remove(&process) && inner.awaited.is_empty() {
            let fan = Arc::clone(self);
            // It ends with this process at the latest: the input may never end.
            std::thread::spawn(move || fan.carry());
        }
    }

    fn carry(&self) {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        while let Some(allowed) = self.allowed() {
            let len = read_input(&mut buffer[..allowed.min(DATA_BYTES_MAX)]).unwrap_or(0);
            let frame = match len {
                0 => ToJob::InputEnd,
                _ => ToJob::Input(Bytes::copy_from_slice(&buffer[..len])),
            };
            let mut inner = self.lock();
            inner.readers.retain(|_, (line, credit)| {
                *credit -= len;
                line.send(&frame).is_ok()
            });
            if len == 0 {
                return;
            }
        }
    }

    /// Waits until each reader has credit; `None`: nobody reads any more.
    fn allowed(&self) -> Option<usize> {
        let credit = |inner: &Inner| inner.readers.values().map(|(_, credit)| *credit).min();
        let waits = |inner: &mut Inner| credit(inner) == Some(0);
        let inner = self.changed.wait_while(self.lock(), waits);
        credit(&inner.expect("no holder panics"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}
