//! The lease state of one node: what the leader has granted to its session.

use super::crossings::{Crossings, Mark};
use super::mutant::{Mutant, Mutation};
use super::{DRIFT, lease_floor};
use crate::wire::lease::{Break, BreakAck, Grant, Mode};
use crate::{Duration, Epoch, InodeNo, Instant, LeaseId, SessionId};
use std::collections::BTreeMap;

/// What this node's session holds. It never believes more than the server does: the server grants before the
/// client hears of it, and the client lowers before the server does.
///
/// The driver owns the caches. Its part:
/// * a fact goes into a cache only if [`install`](Self::install) said so, and is served only while
///   [`mode`](Self::mode) is at least shared; whoever falls below shared forgets everything of that inode;
/// * every request has a [`Stamp`], and its own changes are between [`begin_change`](Self::begin_change) and
///   [`end_change`](Self::end_change);
/// * a break is [taken](Self::handle_break), carried out (flush, forget, invalidate the kernel) and only then
///   [finished](Self::finish_break).
#[derive(Debug)]
pub struct Client {
    session: Option<SessionId>,
    valid_until: Instant,
    /// Counts the sessions: a stamp of an earlier one is void.
    life: u64,
    /// Grants of older reigns are void (L6).
    reign: Epoch,
    held: BTreeMap<InodeNo, Held>,
    /// The last names of inodes that were given back while requests are on their way (L2).
    forgotten: Crossings<LeaseId>,
    /// Own changes under way per inode (L9).
    changing: BTreeMap<InodeNo, u32>,
    pub(super) mutation: Mutation,
}

#[derive(Debug)]
struct Held {
    lease: LeaseId,
    mode: Mode,
    /// Name of the break that is being carried out.
    breaking: Option<LeaseId>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

/// Marks when a request began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a request that begins must end"]
pub struct Stamp {
    life: u64,
    mark: Mark,
}

impl Client {
    /// Creates the state of a node without a session.
    #[must_use]
    pub fn new() -> Self {
        Self {
            session: None,
            valid_until: Instant(0),
            life: 0,
            reign: Epoch(0),
            held: BTreeMap::new(),
            forgotten: Crossings::default(),
            changing: BTreeMap::new(),
            mutation: Mutation::default(),
        }
    }

    /// Starts a session, asked for at `sent_at`, with nothing held.
    pub fn session_opened(&mut self, sent_at: Instant, session: SessionId, term: Duration) {
        self.drop_all();
        self.session = Some(session);
        self.renewed(sent_at, term);
    }

    /// Extends the session after a renewal that was asked for at `sent_at`. A renewal that asks for a reclaim
    /// does not count: the server gives no time to a session before it knows what it holds.
    pub fn renewed(&mut self, sent_at: Instant, term: Duration) {
        // L3
        self.valid_until = self.valid_until.max(sent_at + term.less_one_in(DRIFT));
    }

    /// Returns the session, also if it has lapsed.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    /// Returns when the session lapses: from then on nothing may be served.
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        self.valid_until
    }

    /// Begins a request whose reply may bring grants; a retry of it keeps the stamp.
    pub fn begin_request(&mut self) -> Stamp {
        Stamp {
            life: self.life,
            mark: self.forgotten.open(),
        }
    }

    /// Ends a request, answered or not; its reply installs nothing any more.
    pub fn end_request(&mut self, stamp: Stamp) {
        if stamp.life == self.life {
            self.forgotten.close(stamp.mark);
        }
    }

    /// Stops serving inodes that an operation of this node is about to change (L9).
    pub fn begin_change(&mut self, inodes: impl IntoIterator<Item = InodeNo>) {
        for ino in inodes {
            *self.changing.entry(ino).or_default() += 1;
        }
    }

    /// Serves the inodes again. By now the driver has put the reply's facts into its caches, where
    /// [`install`](Self::install) allowed it, and dropped what the operation touched where it did not, or where no
    /// reply came. Names the same inodes as the beginning.
    pub fn end_change(&mut self, inodes: impl IntoIterator<Item = InodeNo>) {
        for ino in inodes {
            if let Some(count) = self.changing.get_mut(&ino) {
                *count -= 1;
                if *count == 0 {
                    self.changing.remove(&ino);
                }
            }
        }
    }

    /// Takes a grant of a reply; returns whether the facts under it may be cached.
    ///
    /// A node that held the inode exclusively before is the master of its content and keeps its own. If nothing
    /// is [held](Self::held) afterwards, the inode was given back meanwhile: whoever needs it asks again.
    pub fn install(&mut self, now: Instant, stamp: Stamp, ino: InodeNo, grant: Grant) -> bool {
        if stamp.life != self.life || self.lapsed(now) {
            return false;
        }
        // L6: the leader of an old reign granted it, the present one does not know it.
        if grant.lease < lease_floor(self.reign) && !self.mutation.is(Mutant::IgnoreReign) {
            return false;
        }
        // L2: given back after it was granted.
        let given_back = |&last: &LeaseId| grant.lease <= last;
        if self.forgotten.latest(ino).is_some_and(given_back) {
            return false;
        }
        let held = self.held.entry(ino).or_insert(Held {
            lease: grant.lease,
            mode: Mode::Known,
            breaking: None,
        });
        // L2: a break took the name away after it was granted, or a younger reply was faster and knows better.
        if grant.lease < held.lease && !self.mutation.is(Mutant::IgnoreOrder) {
            return false;
        }
        held.lease = held.lease.max(grant.lease);
        held.mode = held.mode.max(grant.mode);
        grant.mode >= Mode::Shared
    }

    /// Returns what may be served from the caches: `None` if nothing is known of the inode or the session has
    /// lapsed, `Known` while a break or a change of our own is under way.
    #[must_use]
    pub fn mode(&self, now: Instant, ino: InodeNo) -> Option<Mode> {
        if self.lapsed(now) {
            return None;
        }
        let held = self.held.get(&ino)?;
        // L9
        let changing =
            self.changing.contains_key(&ino) && !self.mutation.is(Mutant::ServeOwnChange);
        Some(if changing || held.breaking.is_some() {
            Mode::Known
        } else {
            held.mode
        })
    }

    /// Returns what the server takes as held, also while it is broken. The exclusive holder of a file stays the
    /// master of its content until it finishes the break: it may still change and flush, and it answers reads
    /// from its own content, for what the leader replies (F1) is older.
    #[must_use]
    pub fn held(&self, ino: InodeNo) -> Option<Mode> {
        self.held.get(&ino).map(|held| held.mode)
    }

    /// Returns whether a break of the inode is being carried out.
    #[must_use]
    pub fn breaking(&self, ino: InodeNo) -> bool {
        self.held
            .get(&ino)
            .is_some_and(|held| held.breaking.is_some())
    }

    /// Takes a break; returns whether it must be carried out. If not, it is about a name that is gone (a late
    /// copy), and [`finish_break`](Self::finish_break) may follow at once.
    ///
    /// A break of an inode that is not known counts: the reply that grants it is still on its way, or the
    /// release of it crossed the break. It is then held as known; a driver that does not know the inode either
    /// finishes the break and [gives it back](Self::forget).
    pub fn handle_break(&mut self, request: &Break) -> bool {
        // L6: the leader that sent it cannot commit what it waits for.
        if request.lease < lease_floor(self.reign) {
            return false;
        }
        let given_back = |&last: &LeaseId| request.lease <= last;
        if self.forgotten.latest(request.ino).is_some_and(given_back) {
            return false;
        }
        let held = self.held.entry(request.ino).or_insert(Held {
            lease: request.lease,
            mode: Mode::Known,
            breaking: None,
        });
        if request.lease < held.lease {
            return false;
        }
        // L4: the break gives the grant its new name.
        held.lease = request.lease;
        held.breaking = Some(request.lease);
        true
    }

    /// Ends a break that has been carried out, keeping at most `kept`; returns the ack to send.
    pub fn finish_break(&mut self, request: &Break, kept: Mode) -> BreakAck {
        let kept = kept.min(request.keep);
        let kept = match self.held.get_mut(&request.ino) {
            // A reclaim may have named the grant anew while this was carried out.
            Some(held) if held.breaking == Some(request.lease) => {
                held.mode = held.mode.min(kept);
                held.breaking = None;
                held.mode
            }
            // A copy of one that was finished.
            Some(held) if held.lease == request.lease => held.mode.min(kept),
            // Given back meanwhile, or a late copy: the server looks at the name and ignores the ack.
            Some(_) | None => Mode::Known,
        };
        BreakAck {
            ino: request.ino,
            lease: request.lease,
            kept,
        }
    }

    /// Gives an inode back; returns the name for the release, `None` if nothing is held.
    pub fn forget(&mut self, ino: InodeNo) -> Option<LeaseId> {
        let held = self.held.remove(&ino)?;
        // L2: a reply on its way may carry this grant or an older one.
        if !self.mutation.is(Mutant::ForgetWithoutTrace) {
            self.forgotten.note(ino, held.lease);
        }
        Some(held.lease)
    }

    /// Returns everything that is held.
    #[must_use]
    pub fn leases(&self) -> Vec<(InodeNo, Mode)> {
        self.held
            .iter()
            .map(|(&ino, held)| (ino, held.mode))
            .collect()
    }

    /// Begins to tell the leader of a new reign what is held; returns the list, `None` if the session has
    /// lapsed. The list may be sent in parts, each after the last was answered.
    pub fn begin_reclaim(&mut self, now: Instant, reign: Epoch) -> Option<Vec<(InodeNo, Mode)>> {
        if self.lapsed(now) {
            return None;
        }
        self.reign = self.reign.max(reign);
        Some(self.leases())
    }

    /// Takes the new names of (a part of) the list; returns what was given back meanwhile and must be released.
    /// The driver forgets everything of the inodes that got no name.
    pub fn reclaimed(&mut self, names: &[(InodeNo, Option<LeaseId>)]) -> Vec<(InodeNo, LeaseId)> {
        let mut released = Vec::new();
        for &(ino, name) in names {
            match (name, self.held.get_mut(&ino)) {
                (Some(lease), Some(held)) => held.lease = held.lease.max(lease),
                (Some(lease), None) => released.push((ino, lease)),
                (None, Some(_)) => drop(self.forget(ino)),
                (None, None) => {}
            }
        }
        released
    }

    /// Forgets everything: the session lapsed or ended. Requests under way install nothing.
    pub fn drop_all(&mut self) {
        self.session = None;
        self.valid_until = Instant(0);
        self.life += 1;
        self.held.clear();
        self.forgotten = Crossings::default();
        // `changing` stays: own changes end by themselves, and until then their inodes are not served.
    }

    fn lapsed(&self, now: Instant) -> bool {
        // L3
        let over = now >= self.valid_until && !self.mutation.is(Mutant::IgnoreExpiry);
        self.session.is_none() || over
    }
}
