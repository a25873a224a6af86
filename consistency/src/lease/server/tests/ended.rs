//! The end of sessions that hold much (L11).

use super::*;

/// More than one step clears away.
const HELD: u64 = 5;

fn inode(n: u64) -> InodeNo {
    InodeNo(100 + n)
}

fn after_much_was_held() -> Case {
    let mut case = Case::new();
    for n in 1..=HELD {
        case.run(1, inode(n), Need::Exclusive, Mode::Exclusive);
    }
    case
}

fn forgotten(actions: &[Action]) -> Vec<InodeNo> {
    let forgotten = actions.iter().filter_map(|action| match action {
        Action::Forgotten(ino) => Some(*ino),
        Action::Break(..) | Action::Ready(_) | Action::Dropped(_) => None,
        Action::Ended(_) | Action::GraceOver => None,
    });
    forgotten.collect()
}

#[test]
fn l11_nobody_waits_for_what_is_not_cleared_away() {
    let mut case = after_much_was_held();
    let waits = case.begin(2, inode(HELD), Need::Exclusive);
    assert_eq!(
        case.broken(1, inode(HELD)),
        Some((Scope::Data, Mode::Known))
    );
    case.ready(&[]);
    case.server.end_session(case.now, SessionId(1));
    case.ready(&[waits]);
    let grant = case.finish(waits, inode(HELD), Mode::Exclusive);
    assert_eq!(grant.map(|grant| grant.mode), Some(Mode::Exclusive));

    let next = inode(HELD - 1);
    assert!(!case.server.known(next));
    assert!(!case.server.held_elsewhere(SessionId(2), next));
    assert_eq!(case.mode(1, next), None);
    let grant = case.run(3, next, Need::Exclusive, Mode::Exclusive);
    assert_eq!(grant.mode, Mode::Exclusive);
}

#[test]
fn l11_it_is_cleared_away_in_steps() {
    let mut case = after_much_was_held();
    let mut left = forgotten(&case.actions());
    case.server.end_session(case.now, SessionId(1));
    let mut steps = 0;
    loop {
        let step = forgotten(&case.actions());
        assert!(step.len() <= SWEEP_LEN, "{step:?} in one step");
        left.extend(step);
        if case.server.poll_timeout() != Some(case.now) {
            break;
        }
        case.wait(0);
        steps += 1;
    }
    assert_eq!(left, (1..=HELD).map(inode).collect::<Vec<_>>(), "each once");
    assert_eq!(steps, HELD / SWEEP_LEN as u64);
}

#[test]
fn l11_what_others_hold_stays() {
    let mut case = after_much_was_held();
    let look = case.begin(2, inode(HELD), Need::Share);
    case.ack(1, inode(HELD), Mode::Shared);
    case.ready(&[look]);
    case.finish(look, inode(HELD), Mode::Shared);
    case.server.end_session(case.now, SessionId(1));
    (0..HELD).for_each(|_| case.wait(0));
    assert_eq!(
        forgotten(&case.actions()),
        (1..HELD).map(inode).collect::<Vec<_>>()
    );
    assert_eq!(case.mode(2, inode(HELD)), Some(Mode::Shared));
}

/// Prints how long the leader stands still: `cargo test --release -p consistency --lib a_million -- --ignored
/// --nocapture`.
#[test]
#[ignore = "measures"]
#[allow(clippy::disallowed_methods, reason = "real time is what it measures")]
fn a_million_grants_end() {
    const GRANTS: u64 = 1_000_000;
    for sweep_len in [usize::MAX, 512] {
        let config = Config {
            term: TERM,
            break_timeout: BREAK_TIMEOUT,
            sweep_len,
        };
        let now = Instant(0);
        let mut server = Server::new(config, Epoch(2), now, [SessionId(1)]);
        let held: Vec<_> = (1..=GRANTS).map(|n| (InodeNo(n), Mode::Shared)).collect();
        let told = server.reclaim(now, SessionId(1), Epoch(2), &held, true);
        assert!(told.is_ok_and(|names| names.len() == held.len()));
        while server.poll_action().is_some() {}

        let mut steps = Vec::new();
        let mut step = |server: &mut Server, work: &mut dyn FnMut(&mut Server)| {
            let began = std::time::Instant::now();
            work(server);
            while server.poll_action().is_some() {}
            steps.push(began.elapsed());
        };
        step(&mut server, &mut |server| {
            server.end_session(now, SessionId(1));
        });
        while server.poll_timeout().is_some() {
            step(&mut server, &mut |server| server.handle_timeout(now));
        }
        let all: std::time::Duration = steps.iter().sum();
        println!(
            "steps of {sweep_len} grants: {} in {all:?}; the end {:?}, the longest {:?}",
            steps.len(),
            steps[0],
            steps.iter().max().expect("one at least"),
        );
    }
}
