//! Whether this node's clock and the leader's run as alike as leases need (L3).
//!
//! A node counts the term by its own clock, the leader by its own, and [`DRIFT`] is what they may differ by. The leader's
//! clock is read now and then: it was read between asking and the answer, which is all that two readings need to prove
//! something.
//!
//! | first reading | another comes | verdict | first reading then |
//! | --- | --- | --- | --- |
//! | none, or of another reign | - | unchanged | this one |
//! | there | they prove that the clocks differ by more | Apart | this one |
//! | there | they prove that they do not | Alike | this one, if it is [`WINDOW`] later |
//! | there | they prove neither: they are too near | unchanged | unchanged |

use super::DRIFT;
use crate::{Duration, Epoch, Instant};

/// How far readings are apart at most; a clock that begins to go wrong shows in that time.
const WINDOW: Duration = Duration::from_millis(60_000);

/// A reading of the leader's clock.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Whose clock it is: that of the leader of this reign.
    pub reign: Epoch,
    /// When it was asked for, by this node's clock.
    pub asked: Instant,
    /// When the answer was here.
    pub answered: Instant,
    /// What the leader's clock said.
    pub leader: Instant,
}

/// Two readings that prove that the clocks run apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart {
    /// What passed by this node's clock, as near to the leader's as may be.
    pub here: Duration,
    /// What passed by the leader's.
    pub leader: Duration,
}

/// Compares this node's clock with the leader's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    first: Option<Reading>,
    apart: Option<Apart>,
}

impl Rates {
    /// Takes a reading; returns true if the verdict has changed.
    pub fn take(&mut self, reading: Reading) -> bool {
        let before = self.apart.is_some();
        let Some(first) = self.first.filter(|first| first.reign == reading.reign) else {
            self.first = Some(reading);
            return false;
        };
        let leader = reading.leader.since(first.leader);
        let least = reading.asked.since(first.answered);
        let most = reading.answered.since(first.asked);
        let slowest = leader.less_one_in(DRIFT);
        // Of the leader's to this node's it is the same part.
        let fastest = Duration(leader.0 + leader.0 / (DRIFT - 1));
        let too = |here| Some(Apart { here, leader });
        let proved = if most < slowest {
            Some(too(most))
        } else if least > fastest {
            Some(too(least))
        } else {
            (least >= slowest && most <= fastest).then_some(None)
        };
        if let Some(apart) = proved {
            self.apart = apart;
            if apart.is_some() || most > WINDOW {
                self.first = Some(reading);
            }
        }
        before != self.apart.is_some()
    }

    /// Returns the proof that the clocks run apart, if they do as far as is known.
    #[must_use]
    pub const fn apart(&self) -> Option<Apart> {
        self.apart
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000;

    /// A reading at `at` ms of the leader's clock by a clock that runs `percent` of it, answered after `took` ms.
    fn reading(reign: u64, at: u64, percent: u64, took: u64) -> Reading {
        let here = 7_000 * MS + at * MS * percent / 100;
        Reading {
            reign: Epoch(reign),
            asked: Instant(here),
            answered: Instant(here + took * MS),
            // Read at the last moment, later at once: nobody knows.
            leader: Instant(90_000 * MS + at * MS + if at == 0 { took * MS } else { 0 }),
        }
    }

    #[track_caller]
    fn check(percent: u64, took: u64, seconds: u64, apart: bool) {
        let mut rates = Rates::default();
        for second in 0..=seconds {
            rates.take(reading(1, second * 1_000, percent, took));
        }
        let found = rates.apart();
        assert_eq!(
            found.is_some(),
            apart,
            "{percent} % for {seconds} s: {found:?}"
        );
    }

    #[test]
    fn l3_a_clock_that_runs_apart_is_found() {
        for percent in [50, 90, 97, 103, 110, 200] {
            check(percent, 1, 10, true);
        }
        for percent in [99, 100, 101] {
            check(percent, 1, 200, false);
        }
    }

    #[test]
    fn slow_answers_prove_nothing_until_enough_has_passed() {
        check(97, 400, 10, false);
        check(97, 400, 100, true);
        check(101, 400, 200, false);
    }

    #[test]
    fn a_clock_that_was_put_right_is_alike_again() {
        let mut rates = Rates::default();
        assert!(!rates.take(reading(1, 0, 100, 1)));
        // The machine slept for half of the time.
        assert!(rates.take(reading(1, 10_000, 50, 1)));
        let apart = Apart {
            here: Duration(5_001 * MS),
            leader: Duration(9_999 * MS),
        };
        assert_eq!(rates.apart(), Some(apart));
        let mut later = reading(1, 10_000, 100, 1);
        (later.asked, later.answered) = (Instant(12_000 * MS), Instant(12_001 * MS));
        later.leader = Instant(100_001 * MS);
        assert!(!rates.take(later), "too soon to say");
        (later.asked, later.answered) = (Instant(22_000 * MS), Instant(22_001 * MS));
        later.leader = Instant(110_000 * MS);
        assert!(rates.take(later));
        assert_eq!(rates.apart(), None);
    }

    #[test]
    fn each_reign_has_a_clock_of_its_own() {
        let mut rates = Rates::default();
        rates.take(reading(1, 0, 100, 1));
        let mut other = reading(2, 10_000, 100, 1);
        other.leader = Instant(5);
        assert!(!rates.take(other));
        assert_eq!(rates.apart(), None);
    }
}
