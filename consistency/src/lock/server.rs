//! The lock tables of all inodes.

use super::{Fault, Faults, Ranges};
use crate::wire::lock::{Held, LockKind, LockMode, LockOwner, LockRange};
use crate::{InodeNo, OpSeq, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

/// Ranges of one owner on one inode: each reply tells all of them.
pub const RANGES_PER_OWNER_MAX: usize = 1024;
/// Ranges of one session: what it can make the leader remember.
pub const RANGES_PER_SESSION_MAX: usize = 65_536;
/// Waiters of one session: each stands for a blocked thread of its node.
pub const WAITERS_PER_SESSION_MAX: usize = 1024;

/// Names a request that waits.
pub type WaitId = (SessionId, OpSeq);

/// What became of a request that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The lock is held.
    Now,
    /// It is waited for; see [`Server::poll_granted`].
    Waiting,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A lock is in the way, and the request does not want to wait.
    InTheWay,
    /// LK4: waiting would never end.
    Deadlock,
    /// [`RANGES_PER_OWNER_MAX`], [`RANGES_PER_SESSION_MAX`] or [`WAITERS_PER_SESSION_MAX`] is reached.
    TooMany,
    /// The range is none.
    Invalid,
}

/// The lock tables of one reign.
#[derive(Debug, Default)]
pub struct Server {
    inodes: BTreeMap<InodeNo, Inode>,
    /// By order of arrival.
    waiters: BTreeMap<u64, Waiter>,
    arrivals: BTreeMap<WaitId, u64>,
    waits_of: BTreeMap<LockOwner, BTreeSet<u64>>,
    /// How many ranges each session holds.
    ranges_of: BTreeMap<SessionId, usize>,
    granted: VecDeque<WaitId>,
    last_arrival: u64,
    version: u64,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Inode {
    /// No owner without ranges.
    owners: BTreeMap<LockOwner, Ranges>,
    /// By order of arrival.
    waiters: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    id: WaitId,
    ino: InodeNo,
    owner: LockOwner,
    lock: Held,
}

impl Server {
    #[cfg(test)]
    pub(super) fn with_fault(fault: Option<Fault>) -> Self {
        Self {
            faults: Faults(fault),
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub(super) fn inodes_are_gone(&self) -> bool {
        self.inodes.is_empty()
            && self.waiters.is_empty()
            && self.waits_of.is_empty()
            && self.ranges_of.is_empty()
    }

    /// Returns a lock that is in the way, the one with the first byte.
    #[must_use]
    pub fn test(&self, ino: InodeNo, owner: LockOwner, lock: &Held) -> Option<(LockOwner, Held)> {
        self.conflicts(ino, owner, lock)
            .min_by_key(|(_, held)| held.range)
    }

    /// Returns what an owner holds on an inode, and the number of changes so far.
    #[must_use]
    pub fn held(&self, ino: InodeNo, owner: LockOwner) -> (u64, &[Held]) {
        let ranges = self.inodes.get(&ino).and_then(|it| it.owners.get(&owner));
        (self.version, ranges.map_or(&[], Ranges::as_slice))
    }

    /// Takes a lock, or queues for it if `wait` is there. A name that waits already goes on waiting.
    ///
    /// # Errors
    /// See [`Refused`]. A flock(2) that changes its mode has then lost the old lock, as on Linux.
    pub fn acquire(
        &mut self,
        ino: InodeNo,
        owner: LockOwner,
        lock: Held,
        wait: Option<WaitId>,
    ) -> Result<Acquired, Refused> {
        if !lock.range.is_valid() {
            return Err(Refused::Invalid);
        }
        if wait.is_some_and(|id| self.arrivals.contains_key(&id)) {
            return Ok(Acquired::Waiting);
        }
        let held = self.held(ino, owner).1;
        let of_session = self.ranges_of.get(&owner.session).copied();
        if held.len() + 2 > RANGES_PER_OWNER_MAX
            || of_session.unwrap_or(0) + 2 > RANGES_PER_SESSION_MAX
        {
            return Err(Refused::TooMany);
        }
        // flock(2): "the existing lock is first removed, and then a new lock is established".
        if owner.local.kind == LockKind::Flock && held.iter().any(|old| old.mode != lock.mode) {
            self.update(ino, owner, |ranges, _| ranges.clear(LockRange::ALL));
        }
        let free = self.conflicts(ino, owner, &lock).next().is_none();
        let outcome = if free {
            self.update(ino, owner, |ranges, _| ranges.acquire(lock));
            Ok(Acquired::Now)
        } else {
            self.queue(ino, owner, lock, wait)
        };
        // What was converted or dropped may have been in somebody's way.
        self.wake(ino);
        outcome
    }

    /// Unlocks bytes.
    ///
    /// # Errors
    /// [`Refused::TooMany`] if a range would be split above [`RANGES_PER_OWNER_MAX`]; [`Refused::Invalid`].
    pub fn clear(
        &mut self,
        ino: InodeNo,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<(), Refused> {
        if !range.is_valid() {
            return Err(Refused::Invalid);
        }
        let held = self.held(ino, owner).1;
        if held.is_empty() {
            return Ok(());
        }
        let splits = |old: &Held| old.range.start < range.start && range.end < old.range.end;
        if held.len() >= RANGES_PER_OWNER_MAX && held.iter().any(splits) {
            return Err(Refused::TooMany);
        }
        self.update(ino, owner, |ranges, faults| ranges.cut(range, faults));
        self.wake(ino);
        Ok(())
    }

    /// Takes a waiter out of the queue; false if it does not wait (any more).
    pub fn cancel(&mut self, id: WaitId) -> bool {
        let arrival = self.arrivals.get(&id).copied();
        arrival.is_some_and(|arrival| self.leave(arrival).is_some())
    }

    /// Takes back what a session held under the reign before.
    ///
    /// # Errors
    /// [`Refused::InTheWay`]: another session was there first, which the rules of the reign exclude; others if no
    /// earlier reign can have granted that.
    pub fn reclaim(&mut self, ino: InodeNo, owner: LockOwner, lock: Held) -> Result<(), Refused> {
        // What waits may be granted above the bounds.
        const MAX: usize = RANGES_PER_SESSION_MAX + 2 * WAITERS_PER_SESSION_MAX;
        if !lock.range.is_valid() {
            return Err(Refused::Invalid);
        }
        if self.ranges_of.get(&owner.session) >= Some(&MAX) {
            return Err(Refused::TooMany);
        }
        if self.conflicts(ino, owner, &lock).next().is_some() {
            return Err(Refused::InTheWay);
        }
        self.update(ino, owner, |ranges, _| ranges.acquire(lock));
        Ok(())
    }

    /// LK5: ends everything of a session.
    pub fn end_session(&mut self, session: SessionId) {
        let mine = |waiter: &Waiter| waiter.owner.session == session;
        let leaving: Vec<u64> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| mine(waiter) && !self.faults.is(Fault::EndKeepsWaiters))
            .map(|(arrival, _)| *arrival)
            .collect();
        for arrival in leaving {
            self.leave(arrival);
        }
        let mut freed = Vec::new();
        for (ino, inode) in &mut self.inodes {
            let before = inode.owners.len();
            inode.owners.retain(|owner, _| owner.session != session);
            if inode.owners.len() < before {
                freed.push(*ino);
            }
        }
        self.ranges_of.remove(&session);
        self.version += 1;
        for ino in freed {
            if !self.faults.is(Fault::EndWakesNobody) {
                self.wake(ino);
            }
            self.tidy(ino);
        }
    }

    /// Returns the next waiter that was granted its lock.
    pub fn poll_granted(&mut self) -> Option<WaitId> {
        self.granted.pop_front()
    }

    fn queue(
        &mut self,
        ino: InodeNo,
        owner: LockOwner,
        lock: Held,
        wait: Option<WaitId>,
    ) -> Result<Acquired, Refused> {
        let id = wait.ok_or(Refused::InTheWay)?;
        if owner.local.kind == LockKind::Posix && self.closes_cycle(ino, owner, &lock) {
            return Err(Refused::Deadlock);
        }
        let first = (owner.session, OpSeq(0));
        let last = (owner.session, OpSeq(u64::MAX));
        if self.arrivals.range(first..=last).count() >= WAITERS_PER_SESSION_MAX {
            return Err(Refused::TooMany);
        }
        self.last_arrival += 1;
        let arrival = self.last_arrival;
        let waiter = Waiter {
            id,
            ino,
            owner,
            lock,
        };
        self.waiters.insert(arrival, waiter);
        self.arrivals.insert(id, arrival);
        self.waits_of.entry(owner).or_default().insert(arrival);
        let inode = self.inodes.entry(ino).or_default();
        inode.waiters.insert(arrival);
        Ok(Acquired::Waiting)
    }

    /// LK4: whether somebody in the way waits, over any number of others, for `owner`.
    fn closes_cycle(&self, ino: InodeNo, owner: LockOwner, lock: &Held) -> bool {
        let direct: Vec<LockOwner> = self.conflicts(ino, owner, lock).map(|(o, _)| o).collect();
        let mut looked_at = BTreeSet::new();
        let mut open = direct.clone();
        while let Some(holder) = open.pop() {
            if holder == owner {
                return true;
            }
            if !looked_at.insert(holder)
                || self.faults.is(Fault::DirectCycles) && !direct.contains(&holder)
            {
                continue;
            }
            let waits = self.waits_of.get(&holder).into_iter().flatten();
            for waiter in waits.filter_map(|arrival| self.waiters.get(arrival)) {
                let blockers = self.conflicts(waiter.ino, waiter.owner, &waiter.lock);
                open.extend(blockers.map(|(blocker, _)| blocker));
            }
        }
        false
    }

    fn conflicts(
        &self,
        ino: InodeNo,
        owner: LockOwner,
        lock: &Held,
    ) -> impl Iterator<Item = (LockOwner, Held)> {
        let passes = self.faults.is(Fault::ReadersPass) && lock.mode == LockMode::Read;
        let owners = self.inodes.get(&ino).into_iter().flat_map(|it| &it.owners);
        let others = owners.filter(move |(other, _)| {
            **other != owner && other.local.kind == owner.local.kind && !passes
        });
        // LK1
        others.filter_map(|(other, ranges)| Some((*other, ranges.conflict(lock)?)))
    }

    fn update(&mut self, ino: InodeNo, owner: LockOwner, change: impl FnOnce(&mut Ranges, Faults)) {
        self.version += 1;
        let inode = self.inodes.entry(ino).or_default();
        let ranges = inode.owners.entry(owner).or_default();
        let before = ranges.as_slice().len();
        change(ranges, self.faults);
        let after = ranges.as_slice().len();
        if after == 0 {
            inode.owners.remove(&owner);
        }
        let of_session = self.ranges_of.entry(owner.session).or_default();
        *of_session = *of_session + after - before;
        if *of_session == 0 {
            self.ranges_of.remove(&owner.session);
        }
    }

    /// LK3: grants what has come free. A grant may free others, where it converts a write lock to a read lock.
    fn wake(&mut self, ino: InodeNo) {
        let mut after = 0;
        while let Some(arrival) = self.first_free(ino, after) {
            let Some(waiter) = self.leave(arrival) else {
                break;
            };
            // Of the waiters before it a grant frees some only if it takes the place of another lock.
            let converts = !self.held(ino, waiter.owner).1.is_empty();
            after = if converts { 0 } else { arrival };
            self.update(ino, waiter.owner, |ranges, _| ranges.acquire(waiter.lock));
            self.granted.push_back(waiter.id);
            if self.faults.is(Fault::WakeOne) {
                break;
            }
        }
        self.tidy(ino);
    }

    fn first_free(&self, ino: InodeNo, after: u64) -> Option<u64> {
        let waiters = &self.inodes.get(&ino)?.waiters;
        let free = |arrival: &&u64| {
            self.waiters.get(arrival).is_some_and(|waiter| {
                let mut blockers = self.conflicts(ino, waiter.owner, &waiter.lock);
                blockers.next().is_none()
            })
        };
        if self.faults.is(Fault::WakeBackwards) {
            return waiters.iter().rev().find(free).copied();
        }
        let mut rest = waiters.range((Bound::Excluded(after), Bound::Unbounded));
        rest.find(free).copied()
    }

    fn leave(&mut self, arrival: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&arrival)?;
        self.arrivals.remove(&waiter.id);
        if let Some(waits) = self.waits_of.get_mut(&waiter.owner) {
            waits.remove(&arrival);
            if waits.is_empty() {
                self.waits_of.remove(&waiter.owner);
            }
        }
        if let Some(inode) = self.inodes.get_mut(&waiter.ino) {
            inode.waiters.remove(&arrival);
        }
        self.tidy(waiter.ino);
        Some(waiter)
    }

    fn tidy(&mut self, ino: InodeNo) {
        let empty = |inode: &Inode| inode.owners.is_empty() && inode.waiters.is_empty();
        if self.inodes.get(&ino).is_some_and(empty) {
            self.inodes.remove(&ino);
        }
    }
}
