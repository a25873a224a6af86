//! The lease state of one node: what the leader has granted to its session.

use super::crossings::{Crossings, Mark};
use super::mutant::{Mutant, Mutation};
use super::{DRIFT, lease_floor};
use crate::wire::lease::{Break, BreakAck, Grant, Mode};
use crate::{Duration, Epoch, InodeNo, Instant, LeaseId, SessionId};
use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// What this node's session holds. It never believes more than the server does: the server grants before the
/// client hears of it, and the client lowers before the server does.
///
/// The driver owns the caches. Its part:
/// * a fact goes into a cache only if [`install`](Self::install) said so, and is served only while
///   [`mode`](Self::mode) is at least shared; whoever falls below shared forgets everything of that inode;
/// * every request has a [`Stamp`], from [`begin_request`](Self::begin_request) or
///   [`begin_change`](Self::begin_change) to [`end_request`](Self::end_request);
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
    /// What replies on their way must not bring back (L2): inodes that were given back, with their last names, and
    /// inodes that an own change touched whose reply told nothing.
    crossings: Crossings<LeaseId>,
    /// Own changes under way; of each inode, whether the reply has told about it (L9).
    changes: BTreeMap<Mark, BTreeMap<InodeNo, bool>>,
    pub(super) mutation: Mutation,
}

#[derive(Debug)]
struct Held {
    lease: LeaseId,
    mode: Mode,
    /// Name of the break that is being carried out; no name is 0. There is one of these for each inode known here.
    breaking: Option<NonZeroU64>,
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
            crossings: Crossings::default(),
            changes: BTreeMap::new(),
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
            mark: self.crossings.open(),
        }
    }

    /// Begins a request that changes these inodes; until it ends they are not served (L9). It ends with its reply
    /// or its session, not when its caller gives up: it may still happen.
    pub fn begin_change(&mut self, inodes: impl IntoIterator<Item = InodeNo>) -> Stamp {
        let stamp = self.begin_request();
        let untold = inodes.into_iter().map(|ino| (ino, false));
        self.changes.insert(stamp.mark, untold.collect());
        stamp
    }

    /// Returns whether a request belongs to the present session.
    #[must_use]
    pub fn is_current(&self, stamp: Stamp) -> bool {
        stamp.life == self.life
    }

    /// Ends a request, answered or not; its reply installs nothing any more. By now the driver of a change has put
    /// the reply's facts into its caches, where [`install`](Self::install) allowed it, and dropped what the change
    /// touched where it did not, or where the reply did not tell.
    pub fn end_request(&mut self, stamp: Stamp) {
        if stamp.life != self.life {
            return;
        }
        for (ino, told) in self.changes.remove(&stamp.mark).unwrap_or_default() {
            if !told {
                self.changed_untold(ino);
            }
        }
        self.crossings.close(stamp.mark);
    }

    /// Notes that an own change of an inode has ended whose reply told nothing of it: a reply from before the change
    /// may still come, and no younger name tells (L9). For a driver that does not serve what it changes by itself
    /// and so does without [`begin_change`](Self::begin_change).
    pub fn changed_untold(&mut self, ino: InodeNo) {
        let before = self.crossings.latest(ino).copied();
        self.crossings.note(ino, before.unwrap_or(LeaseId(0)));
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
        if self.crossings.latest(ino).is_some_and(given_back) {
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
        if let Some(inodes) = self.changes.get_mut(&stamp.mark) {
            inodes.entry(ino).and_modify(|told| *told = true);
        }
        if self.crossings.crossed(stamp.mark, ino) {
            return false;
        }
        held.mode = held.mode.max(grant.mode);
        grant.mode >= Mode::Shared
    }

    /// Takes note of an inode that the session has made and the leader does not know of yet: nobody else can hold it.
    /// A break of it, or the reply that tells of its commit, gives the grant a name.
    pub fn made(&mut self, ino: InodeNo) {
        let held = Held {
            lease: LeaseId(0),
            mode: Mode::Exclusive,
            breaking: None,
        };
        self.held.insert(ino, held);
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
        let changing = self
            .changes
            .values()
            .any(|inodes| inodes.contains_key(&ino))
            && !self.mutation.is(Mutant::ServeOwnChange);
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
        if self.crossings.latest(request.ino).is_some_and(given_back) {
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
        held.breaking = NonZeroU64::new(request.lease.0);
        true
    }

    /// Ends a break that has been carried out, keeping at most `kept`; returns the ack to send.
    pub fn finish_break(&mut self, request: &Break, kept: Mode) -> BreakAck {
        let kept = kept.min(request.keep);
        let kept = match self.held.get_mut(&request.ino) {
            // A reclaim may have named the grant anew while this was carried out.
            Some(held) if held.breaking == NonZeroU64::new(request.lease.0) => {
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
            self.crossings.note(ino, held.lease);
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

    /// Returns how much is held.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
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
        self.crossings = Crossings::default();
        // For the next session these are changes of somebody else.
        self.changes.clear();
    }

    fn lapsed(&self, now: Instant) -> bool {
        // L3
        let over = now >= self.valid_until && !self.mutation.is(Mutant::IgnoreExpiry);
        self.session.is_none() || over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::lease::Scope;

    const INO: InodeNo = InodeNo(7);
    const NOW: Instant = Instant(1_000);
    const TERM: Duration = Duration(100_000);

    fn client() -> Client {
        let mut client = Client::new();
        client.session_opened(NOW, SessionId(1), TERM);
        client
    }

    fn grant(lease: u64, mode: Mode) -> Grant {
        Grant {
            lease: LeaseId(lease),
            mode,
        }
    }

    fn breaking(lease: u64, keep: Mode) -> Break {
        Break {
            ino: INO,
            lease: LeaseId(lease),
            scope: Scope::Data,
            keep,
        }
    }

    #[track_caller]
    fn install(client: &mut Client, lease: u64, mode: Mode, expected: bool) {
        let stamp = client.begin_request();
        let cacheable = client.install(NOW, stamp, INO, grant(lease, mode));
        client.end_request(stamp);
        assert_eq!(cacheable, expected, "grant {lease} {mode:?}");
    }

    #[test]
    fn l2_the_youngest_name_wins() {
        #[track_caller]
        fn check(events: &[(bool, u64)], last: u64, cacheable: bool) {
            let mut client = client();
            let stamp = client.begin_request();
            for &(is_break, lease) in events {
                if is_break {
                    let request = breaking(lease, Mode::Known);
                    if client.handle_break(&request) {
                        client.finish_break(&request, Mode::Known);
                    }
                } else {
                    client.install(NOW, stamp, INO, grant(lease, Mode::Shared));
                }
            }
            let installed = client.install(NOW, stamp, INO, grant(last, Mode::Shared));
            assert_eq!(installed, cacheable, "{last} after {events:?}");
        }
        check(&[], 5, true);
        check(&[(true, 6)], 5, false);
        check(&[(true, 4)], 5, true);
        check(&[(false, 6)], 5, false);
        check(&[(false, 4)], 5, true);
        check(&[(false, 4), (true, 6)], 5, false);
        check(&[(false, 7), (true, 6)], 8, true);
    }

    #[test]
    fn l2_what_was_given_back_does_not_return() {
        let mut client = client();
        let old = client.begin_request();
        install(&mut client, 6, Mode::Shared, true);
        assert_eq!(client.forget(INO), Some(LeaseId(6)));
        assert!(!client.install(NOW, old, INO, grant(5, Mode::Shared)));
        assert_eq!(client.held(INO), None, "the caller asks again");
        assert!(!client.install(NOW, old, INO, grant(7, Mode::Shared)));
        assert_eq!(client.held(INO), Some(Mode::Known), "granted again");
        client.end_request(old);
    }

    #[test]
    fn l3_the_term_counts_from_the_request() {
        let mut client = client();
        install(&mut client, 5, Mode::Shared, true);
        let end = NOW + TERM.less_one_in(DRIFT);
        assert_eq!(client.valid_until(), end);
        assert_eq!(client.mode(Instant(end.0 - 1), INO), Some(Mode::Shared));
        assert_eq!(client.mode(end, INO), None);
        client.renewed(Instant(0), TERM);
        assert_eq!(
            client.valid_until(),
            end,
            "an older renewal takes nothing away"
        );
    }

    #[test]
    fn a_break_stops_serving_and_lowers_when_it_is_finished() {
        let mut client = client();
        install(&mut client, 5, Mode::Exclusive, true);
        let request = breaking(6, Mode::Shared);
        assert!(client.handle_break(&request));
        assert_eq!(client.mode(NOW, INO), Some(Mode::Known));
        assert_eq!(client.held(INO), Some(Mode::Exclusive));
        install(&mut client, 6, Mode::Known, false);
        assert_eq!(client.held(INO), Some(Mode::Exclusive));
        let ack = client.finish_break(&request, Mode::Exclusive);
        assert_eq!((ack.lease, ack.kept), (LeaseId(6), Mode::Shared));
        assert_eq!(client.mode(NOW, INO), Some(Mode::Shared));

        assert!(client.handle_break(&request), "a copy is carried out again");
        assert_eq!(
            client.finish_break(&request, Mode::Shared).kept,
            Mode::Shared
        );
        install(&mut client, 7, Mode::Shared, true);
        assert!(!client.handle_break(&request), "a late copy is not");
        assert_eq!(client.finish_break(&request, Mode::Known).kept, Mode::Known);
        assert_eq!(client.mode(NOW, INO), Some(Mode::Shared));
    }

    #[test]
    fn a_break_of_an_unknown_inode_leaves_something_to_give_back() {
        let mut client = client();
        let request = breaking(6, Mode::Shared);
        assert!(client.handle_break(&request));
        assert_eq!(
            client.finish_break(&request, Mode::Shared).kept,
            Mode::Known
        );
        assert_eq!(client.forget(INO), Some(LeaseId(6)));
    }

    #[test]
    fn l6_an_old_reign_is_void() {
        let mut client = client();
        let reign = Epoch(2);
        let young = |n: u64| lease_floor(reign).0 + n;
        install(&mut client, 5, Mode::Exclusive, true);
        assert!(client.handle_break(&breaking(6, Mode::Known)));
        let list = client.begin_reclaim(NOW, reign);
        assert_eq!(list, Some(vec![(INO, Mode::Exclusive)]));
        install(&mut client, 7, Mode::Shared, false);
        assert!(!client.handle_break(&breaking(8, Mode::Known)));
        client.finish_break(&breaking(8, Mode::Known), Mode::Known);
        assert_eq!(client.held(INO), Some(Mode::Exclusive));

        let names = [
            (INO, Some(LeaseId(young(1)))),
            (InodeNo(9), Some(LeaseId(young(2)))),
        ];
        let released = client.reclaimed(&names);
        assert_eq!(released, [(InodeNo(9), LeaseId(young(2)))]);
        // What the old leader asked for ends as it began.
        client.finish_break(&breaking(6, Mode::Known), Mode::Known);
        assert_eq!(client.mode(NOW, INO), Some(Mode::Known));
        install(&mut client, young(3), Mode::Shared, true);

        client.reclaimed(&[(INO, None)]);
        assert_eq!(client.held(INO), None);
        let end = client.valid_until();
        assert_eq!(client.begin_reclaim(end, Epoch(3)), None, "lapsed");
    }

    #[test]
    fn l9_an_own_change_stops_serving() {
        let mut client = client();
        install(&mut client, 5, Mode::Shared, true);
        let first = client.begin_change([INO]);
        let second = client.begin_change([INO]);
        client.end_request(first);
        assert_eq!(client.mode(NOW, INO), Some(Mode::Known));
        client.end_request(second);
        assert_eq!(client.mode(NOW, INO), Some(Mode::Shared));
    }

    #[test]
    fn l9_a_reply_from_before_an_own_change_is_old() {
        #[track_caller]
        fn check(told: Option<u64>, read: u64, cacheable: bool) {
            let mut client = client();
            let reading = client.begin_request();
            let change = client.begin_change([INO]);
            if let Some(lease) = told {
                client.install(NOW, change, INO, grant(lease, Mode::Known));
            }
            client.end_request(change);
            let installed = client.install(NOW, reading, INO, grant(read, Mode::Shared));
            assert_eq!(installed, cacheable, "read {read}, change {told:?}");
            client.end_request(reading);
        }
        check(Some(6), 5, false);
        check(Some(6), 7, true);
        check(None, 5, false);
    }

    #[test]
    fn a_new_session_starts_with_nothing() {
        let mut client = client();
        install(&mut client, 5, Mode::Shared, true);
        let stamp = client.begin_request();
        client.session_opened(NOW, SessionId(2), TERM);
        assert!(!client.install(NOW, stamp, INO, grant(6, Mode::Shared)));
        client.end_request(stamp);
        assert_eq!(client.leases(), []);
        assert_eq!(client.session(), Some(SessionId(2)));
        client.drop_all();
        assert_eq!(client.session(), None);
        assert_eq!(client.mode(NOW, INO), None);
    }
}
