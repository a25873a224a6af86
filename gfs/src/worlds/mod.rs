//! Whole worlds: one seed is one cluster, with all that may happen to it.
//!
//! Three voters and a fourth node that may take the place of any, each with the real client, the real metadata service and the real replicated log
//! (openraft's core included), on a network, on disks and with clocks that the seed makes. Nodes die at any named place
//! ([`points`]) and at any time, are cut off, stop and go on; messages are lost or late; disks lose what was not synced
//! and fail. Then all of that ends: every node must answer again, and all voters must agree.
//!
//! What the programs saw must have an order (S1, S5; `tests::linear`), which may miss what a node alone knew when it
//! lost it (S4) and nothing that was seen or synced (S2, S3; [`model`]).
//!
//! | simulated | by |
//! | --- | --- |
//! | time | [`sys`]: the clocks of each node, which stand still while it runs; they drift by 1 %, their times of day by an hour |
//! | chance | [`sys`]: all random bits of the thread follow from the seed |
//! | threads | one runtime for each life of a node; the death of a node is the end of its runtime |
//! | network | [`net`], [`shared`] |
//! | disks of the log | `server::log::simulated` |
//! | kernels | [`kernel`] |
//! | disks of chunks | `data::simulated`; [`copies`] says what must hold of them |
//!
//! Each world runs in a process of its own, a copy of one that has run none: counters that live as long as a process
//! (tokio's, futures') then begin alike. `SEED=<n> cargo test -p gfs --lib worlds` runs one and tells what happens;
//! `WORLDS` sets how many.

mod chunks;
mod copies;
mod faults;
mod kernel;
mod life;
mod made;
mod model;
mod net;
mod points;
mod program;
mod runner;
mod shared;
mod sys;
mod world;

pub(crate) use points::{Mutant, is_missing, reached};

use runner::run;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect(name))
}

/// Worlds of one run: about half a minute of a debug build.
const WORLDS: u64 = 200;

#[test]
fn worlds_keep_their_promises() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("WORLDS").unwrap_or(WORLDS),
    };
    let outcome = run(seeds, None);
    println!("{}", outcome.summary());
    assert!(outcome.broken.is_empty(), "{}", outcome.report());
}

/// Worlds that a mutant may survive; `MUTANT=<name>` runs one alone.
const MUTANT_WORLDS: u64 = 400;
/// Worlds that are run before the next look.
const AT_ONCE: u64 = 4;

#[test]
fn a_missing_rule_is_noticed() {
    let only = std::env::var("MUTANT").ok();
    let asked = |mutant: &Mutant| {
        only.as_ref()
            .is_none_or(|only| *only == format!("{mutant:?}"))
    };
    for (mutant, likely) in Mutant::ALL.into_iter().filter(|(mutant, _)| asked(mutant)) {
        let all = (0..MUTANT_WORLDS / AT_ONCE).map(|batch| batch * AT_ONCE);
        let noticed = std::iter::once(likely).chain(all).find_map(|from| {
            let outcome = run(from..from + AT_ONCE, Some(mutant));
            outcome.broken.into_iter().next()
        });
        match noticed {
            Some((seed, why)) => {
                let why = why.lines().next().unwrap_or("");
                println!("{mutant:?}: world {seed}: {why}");
            }
            None => panic!("{mutant:?} was not noticed in {MUTANT_WORLDS} worlds"),
        }
    }
}

#[test]
fn a_seed_repeats_its_world() {
    let seeds = 0..5;
    let (first, second) = (run(seeds.clone(), None), run(seeds, None));
    assert_eq!(first.traces, second.traces);
}
