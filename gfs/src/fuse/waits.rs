//! The requests that wait for their answer.
//!
//! A request whose future did not finish at once is entered here, and whoever takes it out again answers it: its
//! own task, or an interrupt. So each is answered exactly once, without a word between the two.
//!
//! Lock order: the table's mutex is a leaf; nothing is called under it.

use super::abi::Opcode;
use super::interrupt::OnSignal;
use super::request::Header;
use consistency::InodeNo;
use futures::future::AbortHandle;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most requests that wait at one time. Each stands for a blocked thread or one of the kernel's own background
/// requests; beyond it new ones get ENOMEM.
pub(super) const WAITING_MAX: usize = 65_536;

/// A request that waits, for people to look at.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The kernel's number of the request.
    pub unique: u64,
    /// What was asked for.
    pub opcode: Opcode,
    /// The inode it is about.
    pub ino: InodeNo,
    /// The thread that asks; 0 for the kernel itself and for threads outside the mount's pid namespace.
    pub pid: u32,
    /// For how long it has been waiting.
    pub age: Duration,
}

/// A table entry.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) header: Header,
    pub(super) on_signal: OnSignal,
    pub(super) abort: AbortHandle,
    since: Instant,
    /// A signal came that did not end the wait.
    signalled: bool,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<HashMap<u64, Wait>>);

impl Waits {
    fn table(&self) -> MutexGuard<'_, HashMap<u64, Wait>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_full(&self) -> bool {
        self.table().len() >= WAITING_MAX
    }

    pub(super) fn insert(&self, header: Header, on_signal: OnSignal, abort: AbortHandle) {
        let wait = Wait {
            header,
            on_signal,
            abort,
            since: Instant::now(),
            signalled: false,
        };
        self.table().insert(header.unique, wait);
    }

    /// Takes a request out; who gets it answers it.
    pub(super) fn take(&self, unique: u64) -> Option<Wait> {
        self.table().remove(&unique)
    }

    /// Takes all requests out.
    pub(super) fn take_all(&self) -> Vec<Wait> {
        self.table().drain().map(|(_, wait)| wait).collect()
    }

    /// Notes a signal; `None` if the request does not wait here (yet, or any more).
    pub(super) fn signal(&self, unique: u64) -> Option<(OnSignal, u32)> {
        let mut table = self.table();
        let wait = table.get_mut(&unique)?;
        wait.signalled = true;
        Some((wait.on_signal, wait.header.caller.pid))
    }

    /// Returns the requests that got a signal and wait on, with their rules and the threads that asked.
    pub(super) fn signalled(&self) -> Vec<(u64, OnSignal, u32)> {
        self.table()
            .iter()
            .filter(|(_, wait)| wait.signalled)
            .map(|(unique, wait)| (*unique, wait.on_signal, wait.header.caller.pid))
            .collect()
    }

    /// Tells whether the kernel holds a directory's lock for a change that waits, maybe for this node to forget. Looks hold
    /// it, too, but are answered whatever else goes on.
    pub(super) fn may_hold(&self, dir: InodeNo) -> bool {
        let holds = |wait: &Wait| match wait.header.opcode {
            // Of two directories, or of one that goes.
            Opcode::LINK | Opcode::RENAME | Opcode::RENAME2 | Opcode::RMDIR => true,
            Opcode::CREATE
            | Opcode::MKDIR
            | Opcode::MKNOD
            | Opcode::SYMLINK
            | Opcode::TMPFILE
            | Opcode::UNLINK
            | Opcode::SETATTR
            | Opcode::SETXATTR
            | Opcode::REMOVEXATTR => wait.header.ino == dir,
            _ => false,
        };
        self.table().values().any(holds)
    }

    /// Returns what waits, oldest first.
    pub(super) fn list(&self) -> Vec<Waiting> {
        let mut list: Vec<_> = self
            .table()
            .values()
            .map(|wait| Waiting {
                unique: wait.header.unique,
                opcode: wait.header.opcode,
                ino: wait.header.ino,
                pid: wait.header.caller.pid,
                age: wait.since.elapsed(),
            })
            .collect();
        list.sort_by_key(|wait| std::cmp::Reverse(wait.age));
        list
    }
}
