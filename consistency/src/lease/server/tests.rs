//! The queue rules, each in the smallest case that shows it.

mod ended;

use super::contention::{BREAKS, REST};
use super::*;
use crate::wire::lease::Scope;
use crate::wire::meta::Name;

const TERM: Duration = Duration::from_millis(1_000);
const BREAK_TIMEOUT: Duration = Duration::from_millis(400);
const SWEEP_LEN: usize = 2;
const FILE: InodeNo = InodeNo(7);
const DIR: InodeNo = InodeNo(8);

/// A server with sessions 1 to 3 and time that stands still unless told.
struct Case {
    server: Server,
    now: Instant,
    ops: u64,
}

impl Case {
    fn new() -> Self {
        Self::after(Epoch(1), [])
    }

    fn after<const N: usize>(reign: Epoch, previous: [u64; N]) -> Self {
        let config = Config {
            term: TERM,
            break_timeout: BREAK_TIMEOUT,
            sweep_len: SWEEP_LEN,
        };
        let now = Instant(0);
        let mut server = Server::new(config, reign, now, previous.map(SessionId));
        (1..=3).for_each(|n| server.open_session(now, SessionId(n)));
        let mut case = Self {
            server,
            now,
            ops: 0,
        };
        let over = case.actions();
        assert_eq!(over.contains(&Action::GraceOver), N == 0);
        case
    }

    fn wait(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.server.handle_timeout(self.now);
    }

    fn begin(&mut self, session: u64, ino: InodeNo, need: Need) -> OpId {
        self.ops += 1;
        let id = OpId(self.ops);
        self.server
            .begin(self.now, id, SessionId(session), vec![Claim { ino, need }])
            .expect("a live session");
        id
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.server.poll_action()).collect()
    }

    #[track_caller]
    fn ready(&mut self, expected: &[OpId]) {
        let ready: Vec<OpId> = self
            .actions()
            .into_iter()
            .filter_map(|action| match action {
                Action::Ready(id) => Some(id),
                Action::Break(..) | Action::Dropped(_) | Action::Ended(_) => None,
                Action::Forgotten(_) | Action::GraceOver => None,
            })
            .collect();
        assert_eq!(ready, expected);
    }

    fn finish(&mut self, id: OpId, ino: InodeNo, want: Mode) -> Option<Grant> {
        self.server.finish(id, &[(ino, want)])[0]
    }

    /// Runs an operation that nothing is in the way of.
    #[track_caller]
    fn run(&mut self, session: u64, ino: InodeNo, need: Need, want: Mode) -> Grant {
        let id = self.begin(session, ino, need);
        self.ready(&[id]);
        self.finish(id, ino, want).expect("a live session")
    }

    fn ack(&mut self, session: u64, ino: InodeNo, kept: Mode) {
        let session = SessionId(session);
        let lease = self.server.unanswered(session, ino).expect("a break").lease;
        let ack = BreakAck { ino, lease, kept };
        self.server.handle_break_ack(self.now, session, ack);
    }

    fn broken(&self, session: u64, ino: InodeNo) -> Option<(Scope, Mode)> {
        let request = self.server.unanswered(SessionId(session), ino)?;
        Some((request.scope, request.keep))
    }

    fn mode(&self, session: u64, ino: InodeNo) -> Option<Mode> {
        self.server.mode(SessionId(session), ino)
    }
}

fn names(list: &[&str]) -> Need {
    let name = |name: &&str| Name::new(name.as_bytes().to_vec()).expect("valid");
    Need::Change(Scope::Names(list.iter().map(name).collect()))
}

const ATTR: Need = Need::Change(Scope::Attr);

#[test]
fn l1_a_change_waits_for_the_acks_of_others_and_not_for_its_own() {
    let mut case = Case::new();
    for session in 1..=3 {
        case.run(session, FILE, Need::Share, Mode::Shared);
    }
    let change = case.begin(1, FILE, ATTR);
    assert_eq!(case.broken(1, FILE), None);
    case.ack(2, FILE, Mode::Shared);
    case.ready(&[]);
    case.ack(3, FILE, Mode::Known);
    case.ready(&[change]);
    assert_eq!(case.mode(2, FILE), Some(Mode::Shared));
    assert_eq!(case.mode(3, FILE), Some(Mode::Known));
}

#[test]
fn l1_no_right_is_given_while_a_change_is_pending() {
    let mut case = Case::new();
    case.run(2, FILE, Need::Share, Mode::Shared);
    let change = case.begin(1, FILE, ATTR);
    case.ack(2, FILE, Mode::Shared);
    case.ready(&[change]);
    let told = case.run(2, FILE, Need::Peek, Mode::Shared);
    assert_eq!(told.mode, Mode::Known, "of the state that changes");
    assert_eq!(case.mode(2, FILE), Some(Mode::Shared), "kept besides");
    case.finish(change, FILE, Mode::Shared);
    assert_eq!(
        case.run(2, FILE, Need::Peek, Mode::Shared).mode,
        Mode::Shared
    );
}

#[test]
fn a_peek_breaks_only_an_exclusive_grant() {
    let mut case = Case::new();
    case.run(1, FILE, Need::Share, Mode::Shared);
    case.run(2, FILE, Need::Peek, Mode::Shared);
    let load = case.begin(1, FILE, Need::Exclusive);
    case.ack(2, FILE, Mode::Known);
    case.ready(&[load]);
    case.finish(load, FILE, Mode::Exclusive);
    let peek = case.begin(2, FILE, Need::Peek);
    assert_eq!(case.broken(1, FILE), Some((Scope::Flush, Mode::Shared)));
    case.ready(&[]);
    case.ack(1, FILE, Mode::Shared);
    case.ready(&[peek]);
}

#[test]
fn a_stronger_break_follows_the_ack_of_the_weaker() {
    let mut case = Case::new();
    case.run(2, FILE, Need::Share, Mode::Shared);
    let change = case.begin(1, FILE, ATTR);
    let load = case.begin(3, FILE, Need::Exclusive);
    assert_eq!(case.broken(2, FILE), Some((Scope::Attr, Mode::Shared)));
    // The load is still behind the change; once that is given up, it waits for the same holder.
    case.server.cancel(case.now, change);
    assert_eq!(case.broken(2, FILE), Some((Scope::Attr, Mode::Shared)));
    case.ack(2, FILE, Mode::Shared);
    assert_eq!(case.broken(2, FILE), Some((Scope::Data, Mode::Known)));
    case.ready(&[]);
    case.ack(2, FILE, Mode::Shared);
    assert_eq!(
        case.mode(2, FILE),
        Some(Mode::Known),
        "at most what was offered"
    );
    case.ready(&[load]);
}

#[test]
fn two_changes_share_one_break() {
    let mut case = Case::new();
    case.run(3, FILE, Need::Share, Mode::Shared);
    let first = case.begin(1, FILE, ATTR);
    let second = case.begin(2, FILE, ATTR);
    case.ack(3, FILE, Mode::Shared);
    case.ready(&[first, second]);
    assert_eq!(case.broken(3, FILE), None);
}

#[test]
fn l4_only_the_name_of_the_break_ends_it() {
    let mut case = Case::new();
    let before = case.run(2, FILE, Need::Share, Mode::Shared);
    let change = case.begin(1, FILE, ATTR);
    let session = SessionId(2);
    let late = BreakAck {
        ino: FILE,
        lease: before.lease,
        kept: Mode::Known,
    };
    case.server.handle_break_ack(case.now, session, late);
    case.server
        .release(case.now, session, &[(FILE, before.lease)]);
    case.ready(&[]);
    let name = case
        .server
        .unanswered(session, FILE)
        .expect("a break")
        .lease;
    assert!(before.lease < name);
    case.server.release(case.now, session, &[(FILE, name)]);
    case.ready(&[change]);
    assert_eq!(case.mode(2, FILE), None);
}

#[test]
fn l4_every_reply_names_the_grant_anew_unless_it_is_broken() {
    let mut case = Case::new();
    let first = case.run(2, FILE, Need::Share, Mode::Shared);
    let second = case.run(2, FILE, Need::Peek, Mode::Known);
    assert!(first.lease < second.lease);
    assert_eq!(case.mode(2, FILE), Some(Mode::Shared), "not weakened");
    case.begin(1, FILE, ATTR);
    let name = case
        .server
        .unanswered(SessionId(2), FILE)
        .expect("a break")
        .lease;
    let told = case.run(2, FILE, Need::Peek, Mode::Shared);
    assert_eq!((told.lease, told.mode), (name, Mode::Known));
}

#[test]
fn l5_claims_wait_their_turn() {
    #[track_caller]
    fn check(first: Need, second: Need, together: bool) {
        let mut case = Case::new();
        let first = case.begin(1, DIR, first);
        let second = case.begin(2, DIR, second);
        if together {
            return case.ready(&[first, second]);
        }
        case.ready(&[first]);
        case.server.cancel(case.now, first);
        case.ready(&[second]);
    }
    check(names(&["a"]), names(&["b"]), true);
    check(names(&["a"]), names(&["a"]), false);
    check(names(&["a"]), Need::Peek, true);
    check(names(&["a"]), Need::Share, false);
    check(Need::Share, names(&["a"]), false);
    check(Need::Exclusive, Need::Exclusive, false);
    check(Need::Change(Scope::All), ATTR, false);
}

#[test]
fn l5_a_read_does_not_overtake_a_waiting_change() {
    let mut case = Case::new();
    let reading = case.begin(1, FILE, Need::Share);
    let change = case.begin(2, FILE, ATTR);
    let late = case.begin(3, FILE, Need::Share);
    case.ready(&[reading]);
    // It is granted although the change waits, which then breaks it.
    let grant = case.finish(reading, FILE, Mode::Shared);
    assert_eq!(grant.map(|grant| grant.mode), Some(Mode::Shared));
    assert_eq!(case.broken(1, FILE), Some((Scope::Attr, Mode::Shared)));
    case.ack(1, FILE, Mode::Shared);
    case.ready(&[change]);
    case.finish(change, FILE, Mode::Shared);
    case.ready(&[late]);
}

#[test]
fn operations_on_several_inodes_do_not_wait_for_each_other() {
    let mut case = Case::new();
    let both = |a, b| {
        let claim = |ino| Claim {
            ino,
            need: ATTR.merge(names(&["a"])),
        };
        vec![claim(a), claim(b)]
    };
    for (id, claims) in [(1, both(FILE, DIR)), (2, both(DIR, FILE))] {
        let begun = case.server.begin(case.now, OpId(id), SessionId(id), claims);
        begun.expect("a live session");
    }
    case.ready(&[OpId(1)]);
    case.server.finish(OpId(1), &[]);
    case.ready(&[OpId(2)]);
}

#[test]
fn f1_a_session_that_owes_an_ack_is_answered_at_once() {
    let mut case = Case::new();
    case.run(2, FILE, Need::Share, Mode::Shared);
    let earlier = case.begin(1, FILE, Need::Exclusive);
    let told = case.run(2, FILE, Need::Share, Mode::Shared);
    assert_eq!(told.mode, Mode::Known);
    case.ack(2, FILE, Mode::Known);
    case.ready(&[earlier]);

    // Also a read that was in the queue before the break went out.
    case.finish(earlier, FILE, Mode::Known);
    case.run(2, FILE, Need::Share, Mode::Shared);
    let first = case.begin(1, FILE, Need::Share);
    let change = case.begin(3, FILE, ATTR);
    let waiting = case.begin(2, FILE, Need::Share);
    case.ready(&[first]);
    case.finish(first, FILE, Mode::Known);
    case.ready(&[waiting]);
    let told = case.finish(waiting, FILE, Mode::Shared);
    assert_eq!(told.map(|grant| grant.mode), Some(Mode::Known));
    case.ack(2, FILE, Mode::Shared);
    case.ready(&[change]);
}

#[test]
fn an_exclusive_load_waits_for_the_own_ack() {
    let mut case = Case::new();
    case.run(2, FILE, Need::Share, Mode::Shared);
    let change = case.begin(1, FILE, ATTR);
    let load = case.begin(2, FILE, Need::Exclusive);
    case.server.cancel(case.now, change);
    case.ready(&[]);
    case.ack(2, FILE, Mode::Shared);
    case.ready(&[load]);
    let grant = case.finish(load, FILE, Mode::Exclusive);
    assert_eq!(grant.map(|grant| grant.mode), Some(Mode::Exclusive));
}

#[test]
fn a_new_inode_may_be_granted_exclusively_without_a_claim() {
    let mut case = Case::new();
    let create = case.begin(1, DIR, names(&["a"]));
    case.ready(&[create]);
    let grant = case.finish(create, FILE, Mode::Exclusive).expect("live");
    assert_eq!(grant.mode, Mode::Exclusive);
    // Somebody else is told of it, and that another is its master.
    let list = case.begin(2, DIR, Need::Peek);
    case.ready(&[list]);
    assert!(case.server.held_elsewhere(SessionId(2), FILE));
    let grant = case.finish(list, FILE, Mode::Exclusive).expect("live");
    assert_eq!(grant.mode, Mode::Known);
}

#[test]
fn l7_facts_that_a_change_crossed_are_not_granted() {
    let mut case = Case::new();
    let peek = case.begin(2, FILE, Need::Peek);
    let change = case.begin(1, FILE, ATTR);
    case.ready(&[peek, change]);
    case.finish(change, FILE, Mode::Shared);
    let grant = case.finish(peek, FILE, Mode::Shared).expect("live");
    assert_eq!(grant.mode, Mode::Known);
    assert_eq!(
        case.run(2, FILE, Need::Peek, Mode::Shared).mode,
        Mode::Shared
    );
}

#[test]
fn l7_holds_for_the_master_too() {
    let mut case = Case::new();
    let peek = case.begin(1, FILE, Need::Peek);
    let change = case.begin(1, FILE, ATTR);
    case.ready(&[peek, change]);
    case.finish(change, FILE, Mode::Shared);
    case.run(1, FILE, Need::Exclusive, Mode::Exclusive);
    let grant = case.finish(peek, FILE, Mode::Shared).expect("live");
    assert_eq!(grant.mode, Mode::Known);
    assert_eq!(case.mode(1, FILE), Some(Mode::Exclusive), "not weakened");
}

#[test]
fn l8_what_may_be_in_the_log_outlives_its_session() {
    let mut case = Case::new();
    let change = case.begin(1, FILE, ATTR);
    let waiting = case.begin(1, FILE, Need::Exclusive);
    let other = case.begin(2, FILE, Need::Share);
    case.ready(&[change]);
    case.server.end_session(case.now, SessionId(1));
    assert_eq!(case.actions(), [Action::Dropped(waiting)]);
    assert_eq!(case.finish(change, FILE, Mode::Shared), None);
    case.ready(&[other]);
}

#[test]
fn l8_a_flush_holds_up_others_even_when_its_grant_is_gone() {
    let mut case = Case::new();
    case.run(1, FILE, Need::Exclusive, Mode::Exclusive);
    let peek = case.begin(2, FILE, Need::Peek);
    let flush = case.begin(1, FILE, Need::Flush);
    case.ready(&[flush]);
    case.server.end_session(case.now, SessionId(1));
    case.ready(&[]);
    case.server.finish(flush, &[]);
    case.ready(&[peek]);

    // Without the grant it is void and holds up nobody.
    let void = case.begin(3, FILE, Need::Flush);
    let other = case.begin(2, FILE, ATTR);
    case.ready(&[void, other]);
}

#[test]
fn sessions_end_with_their_term() {
    let mut case = Case::new();
    case.run(1, FILE, Need::Share, Mode::Shared);
    case.wait(900);
    for session in [2, 3] {
        let renewed = case.server.renew(case.now, SessionId(session));
        assert_eq!(renewed, Ok(Renewal { reclaim: false }));
    }
    assert_eq!(case.server.poll_timeout(), Some(Instant(0) + TERM));
    case.wait(100);
    let ended = [Action::Forgotten(FILE), Action::Ended(SessionId(1))];
    assert_eq!(case.actions(), ended);
    assert!(!case.server.known(FILE));
    assert_eq!(case.server.renew(case.now, SessionId(1)), Err(SessionEnded));
    let claim = vec![];
    let begun = case.server.begin(case.now, OpId(9), SessionId(1), claim);
    assert_eq!(begun, Err(BeginError::SessionEnded));
}

#[test]
fn who_owes_an_ack_too_long_gets_no_time_but_keeps_its_grant_for_the_term() {
    let mut case = Case::new();
    case.run(1, FILE, Need::Share, Mode::Shared);
    let change = case.begin(2, FILE, ATTR);
    case.wait(399);
    assert!(case.server.renew(case.now, SessionId(1)).is_ok());
    case.wait(1);
    assert_eq!(case.server.renew(case.now, SessionId(1)), Err(SessionEnded));
    assert!(case.server.renew(case.now, SessionId(2)).is_ok());
    case.wait(998);
    case.ready(&[]);
    case.wait(1);
    case.ready(&[change]);
    assert_eq!(case.mode(1, FILE), None);
}

#[test]
fn contended_names_are_not_cached_until_it_is_quiet() {
    let mut case = Case::new();
    for _ in 0..BREAKS {
        case.run(2, DIR, Need::Peek, Mode::Shared);
        let change = case.begin(1, DIR, names(&["a"]));
        case.ack(2, DIR, Mode::Shared);
        case.ready(&[change]);
        case.finish(change, DIR, Mode::Known);
    }
    // The holder may give the grant kept so far up, and no other comes.
    let change = case.begin(1, DIR, names(&["b"]));
    case.ack(2, DIR, Mode::Known);
    case.ready(&[change]);
    case.finish(change, DIR, Mode::Known);
    let told = case.run(2, DIR, Need::Peek, Mode::Shared);
    assert_eq!(told.mode, Mode::Known);
    // Loads are in turn and keep their right.
    let told = case.run(3, DIR, Need::Share, Mode::Shared);
    assert_eq!(told.mode, Mode::Shared);
    case.wait(REST.0 / 1_000);
    let told = case.run(2, DIR, Need::Peek, Mode::Shared);
    assert_eq!(told.mode, Mode::Shared);
}

#[test]
fn who_is_left_alone_with_names_that_others_know_owns_them() {
    let mut case = Case::new();
    case.run(2, DIR, Need::Peek, Mode::Shared);
    let change = case.begin(1, DIR, names(&["a"]));
    case.ack(2, DIR, Mode::Known);
    case.ready(&[change]);
    let granted = |grant: Option<Grant>| grant.expect("known").mode;
    assert_eq!(
        granted(case.finish(change, DIR, Mode::Exclusive)),
        Mode::Shared
    );
    case.wait(REST.0 / 1_000 - 1);
    let change = case.begin(1, DIR, names(&["b"]));
    case.ready(&[change]);
    assert_eq!(
        granted(case.finish(change, DIR, Mode::Exclusive)),
        Mode::Shared
    );
    case.wait(1);
    let change = case.begin(1, DIR, names(&["c"]));
    case.ready(&[change]);
    assert_eq!(
        granted(case.finish(change, DIR, Mode::Exclusive)),
        Mode::Exclusive
    );
    // Who has looked since is in the way again.
    let look = case.begin(2, DIR, Need::Peek);
    case.ack(1, DIR, Mode::Shared);
    case.ready(&[look]);
    case.finish(look, DIR, Mode::Shared);
    let change = case.begin(1, DIR, names(&["d"]));
    case.ack(2, DIR, Mode::Shared);
    case.ready(&[change]);
    assert_eq!(
        granted(case.finish(change, DIR, Mode::Exclusive)),
        Mode::Shared
    );
}

#[test]
fn l6_nothing_runs_before_all_have_told_what_they_hold() {
    let mut case = Case::after(Epoch(2), [11, 12]);
    let (first, second) = (SessionId(11), SessionId(12));
    let reign = Epoch(2);
    let peek = case.begin(1, FILE, Need::Peek);
    case.ready(&[]);
    let renewed = case.server.renew(case.now, first);
    assert_eq!(renewed, Ok(Renewal { reclaim: true }));

    let told = [(FILE, Mode::Exclusive)];
    let names = case.server.reclaim(case.now, first, reign, &told, true);
    let names = names.expect("a live session");
    assert!(names[0] > Some(lease_floor(reign)));
    let again = case.server.reclaim(case.now, first, reign, &told, true);
    assert_eq!(again, Ok(names));
    let rival = case.server.reclaim(case.now, second, reign, &told, false);
    assert_eq!(rival, Ok(vec![None]), "another is its master");
    let stray = case.server.reclaim(case.now, second, Epoch(1), &told, true);
    assert_eq!(stray, Err(ReclaimError::OtherReign(reign)));
    case.ready(&[]);

    let rest = case.server.reclaim(case.now, second, reign, &[], true);
    assert_eq!(rest, Ok(vec![]));
    assert_eq!(case.broken(11, FILE), Some((Scope::Flush, Mode::Shared)));
    case.ack(11, FILE, Mode::Shared);
    case.ready(&[peek]);
}

#[test]
fn l6_the_grace_ends_with_the_term_and_renewals_do_not_prolong_it() {
    let mut case = Case::after(Epoch(2), [11]);
    let change = case.begin(1, FILE, ATTR);
    case.wait(900);
    for session in [1, 2, 3, 11] {
        assert!(case.server.renew(case.now, SessionId(session)).is_ok());
    }
    case.wait(100);
    let actions = case.actions();
    let ended = Action::Ended(SessionId(11));
    for action in [Action::GraceOver, Action::Ready(change), ended] {
        assert!(actions.contains(&action), "{action:?} in {actions:?}");
    }
}

#[test]
fn the_queue_of_a_session_is_bounded() {
    let mut case = Case::new();
    for _ in 0..OPS_PER_SESSION_MAX {
        case.begin(1, FILE, Need::Peek);
    }
    let more = case.server.begin(case.now, OpId(0), SessionId(1), vec![]);
    assert_eq!(more, Err(BeginError::TooManyOps));
    case.server.cancel(case.now, OpId(1));
    let more = case.server.begin(case.now, OpId(0), SessionId(1), vec![]);
    assert_eq!(more, Ok(()));
}

/// The world of seed 42 (`gfs::worlds`): a late copy of the request that opened it met a session whose term had just
/// ended, with an operation on its way to the log.
#[test]
fn a_session_does_not_live_twice() {
    let mut case = Case::new();
    let id = case.begin(1, FILE, ATTR);
    case.ready(&[id]);
    // Nobody has looked at the clock since.
    case.now = case.now + TERM;
    case.server.open_session(case.now, SessionId(1));
    assert!(case.actions().contains(&Action::Ended(SessionId(1))));
    assert!(case.server.renew(case.now, SessionId(1)).is_err());
    assert_eq!(case.finish(id, FILE, Mode::Shared), None);
}

/// A reign after one of which voters have noted that session 11 holds the file exclusively.
fn after_notes(mutant: Option<Mutant>) -> Case {
    let mut case = Case::after(Epoch(2), [11, 12]);
    case.server.mutation = Mutation(mutant);
    let held = [(FILE, Mode::Exclusive)];
    case.server.inherit(SessionId(11), &held);
    case
}

fn reclaim(case: &mut Case, session: u64, leases: &[(InodeNo, Mode)]) -> Vec<Option<LeaseId>> {
    let session = SessionId(session);
    case.server
        .reclaim(case.now, session, Epoch(2), leases, true)
        .expect("it is asked to")
}

#[test]
fn l10_only_what_is_noted_waits_for_a_silent_session() {
    let mut case = after_notes(None);
    let other = case.begin(1, DIR, Need::Peek);
    let change = case.begin(1, FILE, ATTR);
    assert_eq!(case.actions(), [], "session 12 has told nothing");
    reclaim(&mut case, 12, &[]);
    let actions = case.actions();
    assert!(actions.contains(&Action::Ready(other)), "{actions:?}");
    assert!(!actions.contains(&Action::Ready(change)), "{actions:?}");
    assert!(!actions.contains(&Action::GraceOver), "{actions:?}");
    case.wait(900);
    assert!(case.server.renew(case.now, SessionId(1)).is_ok());
    case.wait(100);
    let actions = case.actions();
    for action in [Action::GraceOver, Action::Ready(change)] {
        assert!(actions.contains(&action), "{action:?} in {actions:?}");
    }
}

#[test]
fn l10_who_tells_knows_better_than_the_notes() {
    #[track_caller]
    fn check(mutant: Option<Mutant>, mode: Mode, believed: bool, left: Mode) {
        let mut case = after_notes(mutant);
        let names = reclaim(&mut case, 12, &[(FILE, mode)]);
        assert_eq!(names[0].is_some(), believed, "{mode:?}");
        assert_eq!(case.server.mode(SessionId(11), FILE), Some(left));
    }
    check(None, Mode::Exclusive, true, Mode::Known);
    check(None, Mode::Shared, true, Mode::Shared);
    check(None, Mode::Known, true, Mode::Exclusive);
    let trusts = Some(Mutant::TrustNotes);
    check(trusts, Mode::Exclusive, false, Mode::Exclusive);
}
