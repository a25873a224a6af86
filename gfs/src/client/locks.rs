//! The locks that programs of this node hold or ask for.
//!
//! The leader decides; this table remembers what it said, for three ends: a close that has nothing to give back asks
//! nobody, an open file that goes gives back what was locked through it, and the next leader is told (LK6).
//!
//! LK6, the half of the client: what is told as held is what the leader said last, less what a request under way gives
//! up, for the old leader may have given that to somebody else. From then on only answers under the new reign count.
//!
//! LK8: an open file through which something was locked that went with a session is bereft: it fails until it is closed.
//!
//! Lock order: the table's mutex is a leaf.

use crate::error::Errno;
use consistency::lock::Ranges;
use consistency::wire::lock::{Held, LocalOwner, LockKind, LockMode, LockRange};
use consistency::{Epoch, InodeNo, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

#[derive(Debug)]
pub(super) struct Locks {
    table: Mutex<Table>,
    /// A short request has ended.
    ended: Notify,
    reign: watch::Sender<Epoch>,
    /// Some open file is bereft: otherwise reads and writes need not look.
    any_bereft: AtomicBool,
}

#[derive(Debug, Default)]
struct Table {
    session: Option<SessionId>,
    inodes: BTreeMap<InodeNo, BTreeMap<LocalOwner, Owned>>,
    last_request: u64,
    /// Open files that lost locks with a session (LK8).
    bereft: BTreeSet<u64>,
}

/// What is known of one owner on one inode.
#[derive(Debug, Default)]
struct Owned {
    version: u64,
    held: Ranges,
    /// Open files through which it has locked, since it held nothing.
    handles: BTreeSet<u64>,
    requests: BTreeMap<u64, Wish>,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Wish {
    range: LockRange,
    /// `None`: to unlock.
    mode: Option<LockMode>,
    wait: bool,
    /// The open file that it comes through.
    handle: Option<u64>,
}

/// Counts a request as long as it lives.
#[derive(Debug)]
pub(super) struct Request {
    locks: Arc<Locks>,
    pub(super) ino: InodeNo,
    pub(super) owner: LocalOwner,
    number: u64,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            table: Mutex::default(),
            ended: Notify::new(),
            reign: watch::Sender::new(Epoch(0)),
            any_bereft: AtomicBool::new(false),
        }
    }
}

impl Locks {
    /// Returns the reign that requests mean.
    pub(super) fn reign(&self) -> watch::Receiver<Epoch> {
        self.reign.subscribe()
    }

    /// A session was opened under a reign.
    pub(super) fn session_opened(&self, session: SessionId, reign: Epoch) {
        self.table().session = Some(session);
        self.reign.send_replace(reign);
    }

    /// The session is lost, and with it all locks; returns how many inodes had some. Comes before anything that the
    /// session covered is dropped: who finds it gone finds also that the open file is bereft.
    pub(super) fn session_lost(&self) -> usize {
        let mut table = self.table();
        let Table {
            session,
            inodes,
            bereft,
            ..
        } = &mut *table;
        *session = None;
        let mut lost = 0;
        inodes.retain(|_, owners| {
            lost += usize::from(owners.values().any(|owned| !owned.held.is_empty()));
            owners.retain(|_, owned| {
                owned.held = Ranges::default();
                bereft.append(&mut owned.handles);
                !owned.requests.is_empty()
            });
            !owners.is_empty()
        });
        let any = !bereft.is_empty();
        self.any_bereft.store(any, Ordering::Release);
        lost
    }

    /// LK8: an open file through which something was locked that was lost fails until it is closed.
    pub(super) fn check(&self, handle: u64) -> Result<(), Errno> {
        if self.any_bereft.load(Ordering::Acquire) && self.table().bereft.contains(&handle) {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    /// LK6: begins a reign; returns what its leader must be told.
    pub(super) fn begin_reign(&self, reign: Epoch) -> Vec<(InodeNo, LocalOwner, Held)> {
        let mut table = self.table();
        let mut told = Vec::new();
        for (ino, owners) in &mut table.inodes {
            for (owner, owned) in owners {
                // Versions of another reign are other numbers.
                owned.version = 0;
                let mut held = owned.held.clone();
                for wish in owned.requests.values() {
                    weaken(&mut held, owner.kind, wish);
                }
                told.extend(held.as_slice().iter().map(|held| (*ino, *owner, *held)));
            }
        }
        // Under the mutex: no answer of the old reign is taken after this.
        self.reign.send_replace(reign);
        told
    }

    /// Counts a request; `handle` is the open file that it comes through.
    pub(super) fn begin(
        self: &Arc<Self>,
        ino: InodeNo,
        owner: LocalOwner,
        handle: Option<u64>,
        range: LockRange,
        mode: Option<LockMode>,
        wait: bool,
    ) -> Request {
        let mut table = self.table();
        table.last_request += 1;
        let number = table.last_request;
        let owned = table
            .inodes
            .entry(ino)
            .or_default()
            .entry(owner)
            .or_default();
        let wish = Wish {
            range,
            mode,
            wait,
            handle,
        };
        owned.requests.insert(number, wish);
        Request {
            locks: Arc::clone(self),
            ino,
            owner,
            number,
        }
    }

    /// Returns whether an owner has or asks for anything.
    pub(super) fn has(&self, ino: InodeNo, owner: LocalOwner) -> bool {
        let table = self.table();
        let owners = table.inodes.get(&ino);
        owners.is_some_and(|owners| owners.contains_key(&owner))
    }

    /// Returns the inodes that something of this node has locked, each with the processes that asked.
    pub(super) fn holders(&self) -> Vec<(InodeNo, u32)> {
        let table = self.table();
        let mut holders = Vec::new();
        for (ino, owners) in &table.inodes {
            let held = owners.values().flat_map(|owned| owned.held.as_slice());
            holders.extend(held.map(|held| (*ino, held.pid)));
        }
        holders
    }

    /// Forgets an open file; returns the owners that locked through it, or are about to.
    pub(super) fn forget_handle(&self, ino: InodeNo, handle: u64) -> Vec<LocalOwner> {
        let mut table = self.table();
        if table.bereft.remove(&handle) {
            let any = !table.bereft.is_empty();
            self.any_bereft.store(any, Ordering::Release);
        }
        let owners = table.inodes.get_mut(&ino).into_iter().flatten();
        let through = |owned: &mut Owned| {
            let asks = |wish: &Wish| wish.handle == Some(handle);
            owned.handles.remove(&handle) | owned.requests.values().any(asks)
        };
        owners
            .filter_map(|(owner, owned)| through(owned).then_some(*owner))
            .collect()
    }

    /// Waits until no request of an owner is under way that does not wait for a lock: one whose caller was killed must
    /// not overtake the close that gives its locks back.
    pub(super) async fn quiet(&self, ino: InodeNo, owner: LocalOwner) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            let busy = {
                let table = self.table();
                let owned = table.inodes.get(&ino).and_then(|owners| owners.get(&owner));
                owned.is_some_and(|owned| owned.requests.values().any(|wish| !wish.wait))
            };
            if !busy {
                return;
            }
            ended.await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder panics")
    }
}

impl Request {
    /// Takes what the leader said that the owner holds; returns what it held before. `None`: it said so under another
    /// reign or session, so that it must be asked again.
    pub(super) fn told(
        &self,
        session: SessionId,
        reign: Epoch,
        version: u64,
        held: Vec<Held>,
    ) -> Option<Ranges> {
        self.with(|table, owned| {
            let valid = table == Some(session) && *self.locks.reign.borrow() == reign;
            if !valid {
                return None;
            }
            let before = owned.held.clone();
            let handle = owned.requests.get(&self.number).and_then(|it| it.handle);
            owned.handles.extend(handle);
            if version >= owned.version {
                owned.version = version;
                owned.held = Ranges::from_told(held);
            }
            if owned.held.is_empty() {
                owned.handles.clear();
            }
            Some(before)
        })
    }

    /// A conversion of flock(2) was refused or given up: the old lock went first.
    pub(super) fn lost(&self) {
        if self.owner.kind == LockKind::Flock {
            self.with(|_, owned| {
                owned.held = Ranges::default();
                owned.handles.clear();
            });
        }
    }

    fn with<R>(&self, f: impl FnOnce(Option<SessionId>, &mut Owned) -> R) -> R {
        let mut table = self.locks.table();
        let session = table.session;
        let owners = table.inodes.entry(self.ino).or_default();
        f(session, owners.entry(self.owner).or_default())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut table = self.locks.table();
        if let Some(owners) = table.inodes.get_mut(&self.ino) {
            if let Some(owned) = owners.get_mut(&self.owner) {
                owned.requests.remove(&self.number);
                if owned.requests.is_empty() && owned.held.is_empty() {
                    owners.remove(&self.owner);
                }
            }
            if owners.is_empty() {
                table.inodes.remove(&self.ino);
            }
        }
        drop(table);
        self.locks.ended.notify_waiters();
    }
}

/// Takes from `held` what the leader may have given to others because of a request under way.
fn weaken(held: &mut Ranges, kind: LockKind, wish: &Wish) {
    let converts = |held: &Held| Some(held.mode) != wish.mode;
    match kind {
        LockKind::Posix => held.weaken(wish.range, wish.mode),
        LockKind::Flock if held.as_slice().iter().any(converts) => *held = Ranges::default(),
        LockKind::Flock => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeNo = InodeNo(7);
    const SESSION: SessionId = SessionId(1);
    const REIGN: Epoch = Epoch(3);

    fn owner(kind: LockKind) -> LocalOwner {
        LocalOwner { kind, id: 1 }
    }

    fn held(mode: LockMode, start: u64, end: u64) -> Held {
        Held {
            range: LockRange { start, end },
            mode,
            pid: 1,
        }
    }

    /// A table whose owner holds bytes 0 to 9 for writing, locked through handle 5.
    fn holding(kind: LockKind) -> Arc<Locks> {
        let locks = Arc::new(Locks::default());
        locks.session_opened(SESSION, REIGN);
        let lock = held(LockMode::Write, 0, 9);
        let request = locks.begin(INO, owner(kind), Some(5), lock.range, Some(lock.mode), true);
        assert!(request.told(SESSION, REIGN, 1, vec![lock]).is_some());
        drop(request);
        locks
    }

    #[test]
    fn lk6_what_a_request_gives_up_is_not_told() {
        use LockKind::{Flock, Posix};
        use LockMode::{Read, Write};
        let check = |kind, range: (u64, u64), mode, expected: &[Held]| {
            let locks = holding(kind);
            let range = LockRange {
                start: range.0,
                end: range.1,
            };
            let _request = locks.begin(INO, owner(kind), None, range, mode, false);
            let told = locks.begin_reign(Epoch(4)).into_iter();
            let told: Vec<Held> = told.map(|(_, _, held)| held).collect();
            assert_eq!(told, expected, "{kind:?} {range:?} {mode:?}");
        };
        let whole = held(Write, 0, 9);
        check(Posix, (0, 20), Some(Write), &[whole]);
        check(Posix, (0, 20), None, &[]);
        check(Posix, (4, 20), None, &[held(Write, 0, 3)]);
        let converted = [held(Write, 0, 3), held(Read, 4, 5), held(Write, 6, 9)];
        check(Posix, (4, 5), Some(Read), &converted);
        check(Flock, (0, 20), Some(Write), &[whole]);
        check(Flock, (0, 20), Some(Read), &[]);
    }

    #[test]
    fn lk6_answers_of_another_reign_or_session_do_not_count() {
        let locks = holding(LockKind::Posix);
        let owner = owner(LockKind::Posix);
        let request = locks.begin(INO, owner, None, LockRange::ALL, None, false);
        locks.begin_reign(Epoch(4));
        let told = |session, reign, version, held| {
            let before = request.told(session, Epoch(reign), version, held);
            before.map(|before| before.as_slice().to_vec())
        };
        let lock = held(LockMode::Write, 0, 9);
        assert_eq!(told(SESSION, REIGN.0, 9, Vec::new()), None);
        assert_eq!(told(SessionId(2), 4, 9, Vec::new()), None);
        assert_eq!(told(SESSION, 4, 1, Vec::new()), Some(vec![lock]));
        // An older answer that comes late.
        assert_eq!(told(SESSION, 4, 0, vec![lock]), Some(Vec::new()));
        drop(request);
        assert!(!locks.has(INO, owner));
    }

    #[test]
    fn a_handle_gives_back_what_was_locked_through_it() {
        let locks = holding(LockKind::Flock);
        assert_eq!(locks.forget_handle(INO, 6), []);
        assert_eq!(locks.forget_handle(INO, 5), [owner(LockKind::Flock)]);
        assert_eq!(locks.session_lost(), 1);
        assert!(!locks.has(INO, owner(LockKind::Flock)));
    }

    #[test]
    fn a_handle_gives_back_only_what_was_locked_since_nothing_was_held() {
        let locks = holding(LockKind::Posix);
        let owner = owner(LockKind::Posix);
        let ask = |handle| locks.begin(INO, owner, handle, LockRange::ALL, None, true);
        let waiting = ask(Some(6));
        // A close of 5 gives everything back; its RELEASE comes late, when there is another lock.
        let told = ask(None).told(SESSION, REIGN, 2, Vec::new());
        assert!(told.is_some());
        let lock = held(LockMode::Write, 0, 9);
        assert!(waiting.told(SESSION, REIGN, 3, vec![lock]).is_some());
        assert_eq!(locks.forget_handle(INO, 5), []);
        drop(waiting);
        let _asking = ask(Some(7));
        assert_eq!(locks.forget_handle(INO, 7), [owner], "about to lock");
        assert_eq!(locks.forget_handle(INO, 6), [owner]);
    }

    #[test]
    fn lk8_an_open_file_that_lost_its_lock_fails_until_it_is_closed() {
        let locks = holding(LockKind::Posix);
        assert_eq!(locks.check(5), Ok(()));
        locks.session_lost();
        locks.session_opened(SessionId(2), REIGN);
        assert_eq!(locks.check(5), Err(Errno::EIO));
        assert_eq!(locks.check(6), Ok(()));
        assert_eq!(locks.forget_handle(INO, 5), []);
        assert_eq!(locks.check(5), Ok(()));
        // What was given back before is not lost.
        let locks = holding(LockKind::Posix);
        let owner = owner(LockKind::Posix);
        let clear = locks.begin(INO, owner, None, LockRange::ALL, None, false);
        assert!(clear.told(SESSION, REIGN, 2, Vec::new()).is_some());
        drop(clear);
        assert_eq!(locks.session_lost(), 0);
        assert_eq!(locks.check(5), Ok(()));
    }
}
