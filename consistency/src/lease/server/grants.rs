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
        self.by_inode.get(&(ino, session))
    }

    pub(super) fn get_mut(&mut self, ino: InodeNo, session: SessionId) -> Option<&mut Held> {
        self.by_inode.get_mut(&(ino, session))
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

    /// Returns the inodes on which a session holds anything.
    pub(super) fn of_session(&self, session: SessionId) -> Vec<InodeNo> {
        self.by_session
            .range((session, InodeNo(0))..=(session, InodeNo(u64::MAX)))
            .map(|&(_, ino)| ino)
            .collect()
    }
}
