//! The table of grants, by inode and by session.

use super::queue::Demand;
use crate::wire::lease::{Break, Mode};
use crate::{InodeNo, Instant, LeaseId, OpId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// All grants. An entry is some 60 bytes: a leader knows millions.
#[derive(Debug, Default)]
pub(super) struct Grants {
    by_inode: BTreeMap<(InodeNo, SessionId), Held>,
    by_session: BTreeSet<(SessionId, InodeNo)>,
    /// Sessions that have ended, whose entries are still to be cleared away: no look finds them (L11).
    ended: BTreeSet<SessionId>,
}

/// What a session holds of an inode.
#[derive(Debug)]
pub(super) struct Held {
    /// Name of the grant, renewed with every reply and every break.
    pub(super) lease: LeaseId,
    pub(super) mode: Mode,
    /// The break that the session has not acknowledged.
    pub(super) breaking: Option<Box<Breaking>>,
}

/// A break on its way.
#[derive(Debug)]
pub(super) struct Breaking {
    pub(super) demand: Demand,
    /// Operations that wait for this very ack.
    pub(super) ops: BTreeSet<OpId>,
    /// When the holder has been silent for too long.
    pub(super) deadline: Instant,
}

impl Held {
    /// Returns the break to send, if one is under way.
    pub(super) fn request(&self, ino: InodeNo) -> Option<Break> {
        let Demand { scope, keep } = &self.breaking.as_ref()?.demand;
        Some(Break {
            ino,
            lease: self.lease,
            scope: scope.clone(),
            keep: *keep,
        })
    }
}

impl Grants {
    pub(super) fn get(&self, ino: InodeNo, session: SessionId) -> Option<&Held> {
        let live = !self.ended.contains(&session);
        self.by_inode.get(&(ino, session)).filter(|_| live)
    }

    pub(super) fn get_mut(&mut self, ino: InodeNo, session: SessionId) -> Option<&mut Held> {
        let live = !self.ended.contains(&session);
        self.by_inode.get_mut(&(ino, session)).filter(|_| live)
    }

    /// Grants `mode` under the name `lease`; what was held is replaced.
    pub(super) fn insert(&mut self, ino: InodeNo, session: SessionId, lease: LeaseId, mode: Mode) {
        let held = Held {
            lease,
            mode,
            breaking: None,
        };
        self.by_inode.insert((ino, session), held);
        self.by_session.insert((session, ino));
    }

    pub(super) fn remove(&mut self, ino: InodeNo, session: SessionId) -> Option<Held> {
        self.by_session.remove(&(session, ino));
        self.by_inode.remove(&(ino, session))
    }

    /// Returns the grants of all sessions on an inode.
    pub(super) fn of_inode(&self, ino: InodeNo) -> impl Iterator<Item = (SessionId, &Held)> {
        self.by_inode
            .range((ino, SessionId(0))..=(ino, SessionId(u64::MAX)))
            .map(|(&(_, session), held)| (session, held))
            .filter(|(session, _)| !self.ended.contains(session))
    }

    /// Returns the grants of the other sessions on an inode.
    pub(super) fn foreign(
        &self,
        ino: InodeNo,
        session: SessionId,
    ) -> impl Iterator<Item = (SessionId, &Held)> {
        self.of_inode(ino)
            .filter(move |(other, _)| *other != session)
    }

    /// Returns what a session holds on up to `len` inodes behind one.
    pub(super) fn behind(
        &self,
        session: SessionId,
        after: Option<InodeNo>,
        len: usize,
    ) -> Vec<(InodeNo, Mode)> {
        use std::ops::Bound::{Excluded, Included};
        if self.ended.contains(&session) {
            return Vec::new();
        }
        let from = match after {
            Some(after) => Excluded((session, after)),
            None => Included((session, InodeNo(0))),
        };
        self.by_session
            .range((from, Included((session, InodeNo(u64::MAX)))))
            .take(len)
            .map(|&(_, ino)| (ino, self.by_inode[&(ino, session)].mode))
            .collect()
    }

    /// Lets what a session holds count for nothing, all at once. It never holds anything again.
    pub(super) fn end(&mut self, session: SessionId) {
        self.ended.insert(session);
    }

    /// Returns whether a session has ended and is not cleared away.
    pub(super) fn has_ended(&self, session: SessionId) -> bool {
        self.ended.contains(&session)
    }

    /// Clears away up to `len` entries of sessions that have ended, and returns them; fewer if these were the last.
    pub(super) fn sweep(&mut self, len: usize) -> Vec<(InodeNo, SessionId, Held)> {
        let mut swept = Vec::new();
        while let Some(&session) = self.ended.first() {
            let held = (session, InodeNo(0))..=(session, InodeNo(u64::MAX));
            let left = len - swept.len();
            let inodes: Vec<_> = self.by_session.range(held).take(left).copied().collect();
            for &(session, ino) in &inodes {
                self.by_session.remove(&(session, ino));
                let held = self.by_inode.remove(&(ino, session));
                swept.push((ino, session, held.expect("both tables have it")));
            }
            if inodes.len() == left {
                break;
            }
            self.ended.remove(&session);
        }
        swept
    }
}
