//! Histories by hand: good ones, and what a broken file system would show.

use super::models::*;
use super::*;

/// (called, returned, operation, result); returned 0: pending.
type Line<M> = (u64, u64, <M as Model>::Op, Option<<M as Model>::Ret>);

fn history<M: Model>(lines: Vec<Line<M>>) -> History<M> {
    let operation = |(at, (called, returned, op, ret)): (usize, Line<M>)| Operation {
        actor: format!("p{at}"),
        called,
        returned: (returned > 0).then_some(returned),
        op,
        ret,
    };
    lines.into_iter().enumerate().map(operation).collect()
}

#[track_caller]
fn good<M: Model>(model: M, lines: Vec<Line<M>>) {
    match check(&model, &history::<M>(lines)) {
        Verdict::Linearizable => {}
        Verdict::Violation(why) => panic!("{why}"),
        Verdict::Undecided => panic!("a short history was given up"),
    }
}

#[track_caller]
fn bad<M: Model>(model: M, lines: Vec<Line<M>>) -> Counterexample<M> {
    match check(&model, &history::<M>(lines)) {
        Verdict::Violation(why) => why,
        Verdict::Linearizable => panic!("taken for linearizable"),
        Verdict::Undecided => panic!("a short history was given up"),
    }
}

const fn read(called: u64, returned: u64, value: u64) -> Line<Register> {
    (called, returned, RegisterOp::Read(0), Some(value))
}

const fn write(called: u64, returned: u64, value: u64) -> Line<Register> {
    (called, returned, RegisterOp::Write(0, value), Some(value))
}

/// Nobody knows whether it happened.
const fn write_lost(called: u64, value: u64) -> Line<Register> {
    (called, 0, RegisterOp::Write(0, value), None)
}

#[test]
fn registers_that_work() {
    good(Register, vec![]);
    good(Register, vec![write(1, 2, 7), read(3, 4, 7)]);
    // While a write is under way either value may be read, the old one first.
    good(Register, vec![write(1, 9, 7), read(2, 3, 0), read(4, 5, 7)]);
    good(Register, vec![write(1, 9, 7), read(2, 8, 7), read(3, 7, 0)]);
    // The later of two writes at the same time may be either.
    let writes = [write(1, 5, 7), write(2, 6, 8)];
    good(Register, [&writes[..], &[read(7, 8, 7)]].concat());
    good(Register, [&writes[..], &[read(7, 8, 8)]].concat());
    // A write of what is there already may be needed later.
    good(
        Register,
        vec![
            write(1, 2, 7),
            write(3, 9, 7),
            write(3, 9, 8),
            read(4, 5, 8),
            read(6, 7, 7),
        ],
    );
    // What touches may overlap.
    good(Register, vec![write(1, 2, 7), read(2, 3, 0)]);
}

#[test]
fn a_pending_write_happens_late_or_never() {
    good(Register, vec![write_lost(1, 7), read(2, 3, 0)]);
    good(
        Register,
        vec![write_lost(1, 7), read(2, 3, 0), read(4, 5, 7)],
    );
    bad(
        Register,
        vec![write_lost(1, 7), read(2, 3, 7), read(4, 5, 0)],
    );
    bad(Register, vec![read(1, 2, 7), write_lost(3, 7)]);
}

#[test]
fn a_stale_read_is_found() {
    bad(Register, vec![write(1, 2, 7), read(3, 4, 0)]);
    // What one has read the next must not miss, also before the write returns.
    bad(Register, vec![write(1, 9, 7), read(2, 3, 7), read(4, 5, 0)]);
    bad(Register, vec![read(1, 2, 9)]);
    // Two readers disagree about the order of two writes.
    let writes = [write(1, 20, 7), write(1, 20, 8)];
    let reads = [read(2, 3, 7), read(4, 5, 8), read(6, 7, 7)];
    bad(Register, [&writes[..], &reads[..]].concat());
}

#[test]
fn a_counterexample_is_short() {
    let mut lines: Vec<Line<Register>> = Vec::new();
    for round in 1..=200 {
        let at = round * 10;
        lines.push(write(at, at + 1, round));
        lines.extend([read(at + 2, at + 5, round), read(at + 3, at + 4, round)]);
    }
    // The mutant: one read of the value before.
    lines[3 * 150 + 1].3 = Some(150);
    let why = bad(Register, lines);
    let reads: Vec<_> = why
        .history
        .iter()
        .filter(|operation| Register::is_look(&operation.op, operation.ret.as_ref()))
        .collect();
    assert_eq!(reads.len(), 1, "{why}");
    assert_eq!(reads[0].ret, Some(150), "{why}");
    assert_eq!(why.history.len(), 152, "what came later does not matter");
    assert_eq!(why.state, 151, "{why}");
    assert!(why.to_string().contains("BLOCKED"), "{why}");
}

#[test]
fn independent_files_are_checked_one_by_one() {
    let both = |seen| {
        history::<Register>(vec![
            (1, 2, RegisterOp::Write(1, 7), Some(7)),
            (3, 4, RegisterOp::Read(2), Some(0)),
            (5, 6, RegisterOp::Read(1), Some(seen)),
        ])
    };
    assert!(matches!(
        check_each(&Register, both(7), RegisterOp::file),
        Verdict::Linearizable
    ));
    let Verdict::Violation(why) = check_each(&Register, both(0), RegisterOp::file) else {
        panic!("taken for linearizable");
    };
    assert_eq!(why.history.len(), 2);
}

#[test]
fn appends() {
    let append = |from, to, record| {
        let op = AppendOp::Append(0, record);
        (from, to, op, Some(AppendRet::Done))
    };
    let read = |from, to, records: &[u32]| {
        let records = AppendRet::Records(Records(records.to_vec()));
        (from, to, AppendOp::Read(0), Some(records))
    };
    let size = |from, to, size| (from, to, AppendOp::Size(0), Some(AppendRet::Size(size)));
    let two = [append(1, 5, 1), append(2, 6, 2)];
    good(AppendLog, [&two[..], &[read(7, 8, &[2, 1])]].concat());
    good(
        AppendLog,
        [&two[..], &[size(3, 4, 1), read(7, 8, &[1, 2])]].concat(),
    );
    // Lost, doubled, torn apart in time.
    bad(AppendLog, [&two[..], &[read(7, 8, &[2])]].concat());
    bad(AppendLog, [&two[..], &[read(7, 8, &[1, 2, 2])]].concat());
    bad(AppendLog, [&two[..], &[size(7, 8, 1)]].concat());
    bad(
        AppendLog,
        [&two[..], &[read(3, 4, &[1]), read(7, 8, &[2, 1])]].concat(),
    );
}

#[test]
fn names() {
    use NamesOp::{Create, Listed, Lookup, Rename, Unlink};
    use NamesRet::{Done, Exists, Inode, NotFound};
    let made = (1, 2, Create(1), Some(Inode(10)));
    let then = |lines: &[Line<Names>]| [&[made.clone()][..], lines].concat();
    let listed = |from, to, name, there| (from, to, Listed(name), Some(NamesRet::Listed(there)));
    good(
        Names,
        then(&[
            (3, 4, Create(1), Some(Exists)),
            (5, 6, Rename(1, 2), Some(Done)),
            (7, 8, Lookup(1), Some(NotFound)),
            (7, 8, Lookup(2), Some(Inode(10))),
            listed(9, 10, 1, false),
            listed(9, 10, 2, true),
            (11, 12, Unlink(2), Some(Done)),
            (13, 14, Unlink(2), Some(NotFound)),
            listed(15, 16, 2, false),
        ]),
    );
    // Two winners of O_EXCL; the loser found a name that was gone; a name that stays after it was moved.
    bad(Names, then(&[(1, 2, Create(1), Some(Inode(11)))]));
    bad(
        Names,
        then(&[
            (3, 4, Unlink(1), Some(Done)),
            (5, 6, Create(1), Some(Exists)),
        ]),
    );
    bad(
        Names,
        then(&[
            (3, 4, Rename(1, 2), Some(Done)),
            (5, 6, Lookup(1), Some(Inode(10))),
        ]),
    );
    // A listing that lacks a name that was there all the time, or has one that was gone before.
    bad(Names, then(&[listed(3, 4, 1, false)]));
    bad(
        Names,
        then(&[(3, 4, Rename(1, 2), Some(Done)), listed(5, 6, 1, true)]),
    );
    // A rename over a name leaves that name there at all times.
    bad(
        Names,
        then(&[
            (1, 2, Create(2), Some(Inode(11))),
            (3, 9, Rename(1, 2), Some(Done)),
            listed(4, 8, 2, false),
        ]),
    );
    // Two who make the same move may both succeed; who wants another one does not.
    let moved = (3, 6, Rename(1, 2), Some(Done));
    good(
        Names,
        then(&[moved.clone(), (4, 7, Rename(1, 2), Some(Done))]),
    );
    bad(Names, then(&[moved, (4, 7, Rename(1, 3), Some(Done))]));
    // One who made a file and did not hear of it: the first who sees it tells which it is.
    let unheard = (1, 0, Create(1), None);
    let look = |from, to, ino| (from, to, Lookup(1), Some(Inode(ino)));
    good(Names, vec![unheard.clone(), look(2, 3, 5), look(4, 5, 5)]);
    good(
        Names,
        vec![unheard.clone(), (2, 3, Lookup(1), Some(NotFound))],
    );
    bad(Names, vec![unheard, look(2, 3, 5), look(4, 5, 6)]);
}

#[test]
fn attributes() {
    use AttributesOp::{Mode, Owner, Size, Stat as Look};
    let done = Some(AttributesRet::Done);
    let look = |from, to, mode, uid, size| {
        let stat = Stat { mode, uid, size };
        (from, to, Look, Some(AttributesRet::Stat(stat)))
    };
    let changes = [
        (1, 2, Mode(0o600), done),
        (3, 9, Owner(5), done),
        (3, 9, Size(7), done),
    ];
    let then = |lines: &[Line<Attributes>]| [&changes[..], lines].concat();
    good(
        Attributes,
        then(&[look(4, 5, 0o600, 0, 7), look(10, 11, 0o600, 5, 7)]),
    );
    bad(Attributes, then(&[look(10, 11, 0, 5, 7)]));
    bad(Attributes, then(&[look(10, 11, 0o600, 0, 7)]));
    bad(
        Attributes,
        then(&[look(4, 5, 0o600, 0, 7), look(6, 7, 0o600, 5, 0)]),
    );
}

/// Where much goes on at once the search says that it does not know, after a bounded time.
#[test]
fn too_much_at_once_is_given_up() {
    let append = |record| (1, 100, AppendOp::Append(0, record), Some(AppendRet::Done));
    let mut lines: Vec<Line<AppendLog>> = (1..=30).map(append).collect();
    let seen = AppendRet::Records(Records(vec![99]));
    lines.push((101, 102, AppendOp::Read(0), Some(seen)));
    let verdict = |lines: &[Line<AppendLog>]| {
        let history = history::<AppendLog>(lines.to_vec());
        search::check_within(&AppendLog, &history, 1_000)
    };
    assert!(matches!(verdict(&lines), Verdict::Undecided));
    assert!(matches!(verdict(&lines[26..]), Verdict::Violation(_)));
}
