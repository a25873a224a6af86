//! Worlds that break a rule are found out.

use super::*;

/// A rule that the world breaks, to show that it would be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// LV1: other nodes seem to have nothing to do.
    Blind,
    /// LV1: what a job brings along does not count.
    NoHysteresis,
    /// LV1: each look is believed at once.
    Hasty,
    /// LV2
    NoAge,
    /// LV2
    NoResidence,
    /// LV3
    NoEnd,
    /// LV4: locks and the list do not count.
    IgnoresStandings,
    /// LV4: nodes seem to take all.
    IgnoresStates,
    /// LV5: nodes seem to have all the memory.
    IgnoresMemory,
    /// Nothing moves.
    Asleep,
}

/// Returns the rules of a world.
pub(super) fn rules(mutant: Option<Mutant>) -> Rules {
    let rules = Rules::default();
    match mutant {
        Some(Mutant::NoAge) => Rules {
            age_min: Duration(0),
            cost: Duration(0),
            ..rules
        },
        Some(Mutant::NoResidence) => Rules {
            residence: Duration(0),
            ..rules
        },
        Some(Mutant::Hasty) => Rules {
            lasting: Duration(0),
            ..rules
        },
        Some(Mutant::NoEnd) => Rules {
            moves_per_minute: usize::MAX,
            ..rules
        },
        _ => rules,
    }
}

#[track_caller]
fn found_out(mutant: Mutant) {
    for seed in 0..400 {
        if let Err(why) = World::new(seed, Some(mutant)).run() {
            println!("{mutant:?} is found out by seed {seed}: {why}");
            return;
        }
    }
    panic!("{mutant:?} is not found out");
}

#[test]
fn mutants_are_found_out() {
    for mutant in [
        Mutant::Blind,
        Mutant::NoHysteresis,
        Mutant::Hasty,
        Mutant::NoAge,
        Mutant::NoResidence,
        Mutant::NoEnd,
        Mutant::IgnoresStandings,
        Mutant::IgnoresStates,
        Mutant::IgnoresMemory,
        Mutant::Asleep,
    ] {
        found_out(mutant);
    }
}
