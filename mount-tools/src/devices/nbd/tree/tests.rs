//! Seeded worlds of a disk that one stand-in and other nodes write in turn, and what the stand-in makes of it.

use super::*;
use ::tests::Dice;

const SEEDS: std::ops::Range<u64> = 1..500;

/// Each breaks SD3.
const MUTANTS: [Mutant; 4] = [
    Mutant::OverlooksOthers,
    Mutant::TrustsNewCounts,
    Mutant::ForgetsSince,
    Mutant::WaitsForNothing,
];

/// The disk's node.
#[derive(Default)]
struct Owner {
    /// It has begun so often to count.
    since: u64,
    others: u64,
    /// Another node has it open.
    taken: bool,
    /// Files of the stand-in that have ended, and have begun something that is not done.
    begun: u64,
}

/// What is so.
#[derive(Default)]
struct Truth {
    /// The stand-in has the file open.
    open: bool,
    /// Another node has had the disk since it had.
    written: bool,
    /// The disk's node has lost its counts since.
    uncounted: bool,
}

/// Returns whether a stand-in goes on with the disk if, and only if, that is still its own.
fn leaves_others_alone(seed: u64, mutant: Option<Mutant>) -> bool {
    let (mut owner, mut truth, mut dice) = (Owner::default(), Truth::default(), Dice::new(seed));
    let mut watch = Watch {
        before: None,
        mutant,
    };
    for _ in 0..60 {
        match dice.below(7) {
            0 if truth.open => {
                truth.open = false;
                owner.begun += 1;
            }
            1 if owner.begun > 0 => owner.begun -= 1,
            // One node writes (DV2).
            2 if !truth.open && owner.begun == 0 && !owner.taken => {
                (owner.taken, truth.written) = (true, true);
                owner.others += 1;
            }
            3 => owner.taken = false,
            4 if dice.below(4) == 0 => {
                // Its daemon is started anew: all that it had open has ended, what it has counted it knows.
                (owner.taken, owner.begun) = (false, 0);
                truth.open = false;
            }
            6 if dice.below(8) == 0 => {
                owner = Owner {
                    since: owner.since + 1,
                    ..Owner::default()
                };
                (truth.open, truth.uncounted) = (false, true);
            }
            5 if !truth.open && !owner.taken => {
                let first = watch.before.is_none();
                let told = [owner.since, owner.others, owner.begun + 1];
                let own = match watch.opened(Claims::new(told)) {
                    Ok(Since::Written) if first || !(truth.written || truth.uncounted) => {
                        return false;
                    }
                    // It does not come back.
                    Ok(Since::Written) => return true,
                    Ok(Since::Untouched) => first || !truth.written && owner.begun == 0,
                    Err(_) => owner.begun > 0,
                };
                if !own {
                    return false;
                }
                // That which has begun nothing ends at once.
                truth.open = first || owner.begun == 0;
                truth.written &= !truth.open;
                truth.uncounted &= !truth.open;
            }
            _ => {}
        }
    }
    true
}

#[test]
fn anothers_disk_is_left_alone() {
    for seed in SEEDS {
        assert!(leaves_others_alone(seed, None), "seed {seed}");
    }
}

#[test]
fn who_does_not_leave_it_alone_is_caught() {
    for mutant in MUTANTS {
        let mut seeds = SEEDS;
        let caught = seeds.any(|seed| !leaves_others_alone(seed, Some(mutant)));
        assert!(caught, "{mutant:?}");
    }
}

#[test]
fn who_has_written_it() {
    let check = |then: [u64; 3], now: [u64; 3], expected| {
        let written = Watch::default().written_since(Claims::new(then), Claims::new(now));
        assert_eq!(written, expected, "{then:?} {now:?}");
    };
    check([7, 0, 1], [7, 0, 1], false);
    check([7, 3, 1], [7, 3, 2], false);
    check([7, 3, 1], [7, 4, 1], true);
    // It counts anew: what was before that is not known.
    check([7, 3, 1], [9, 0, 1], true);
    check([7, 0, 1], [9, 1, 1], true);
}
