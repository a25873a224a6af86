//! Two kinds of time that never mix: a node's own monotonic clock, which leases count by, and the
//! cluster's timestamps, which files carry.

use serde::{Deserialize, Serialize};
use std::ops::Add;

/// A reading of one node's own monotonic clock, in microseconds; not comparable across nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

/// A length of time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Duration(pub u64);

impl Duration {
    /// Returns a length of `ms` milliseconds.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000)
    }

    /// Returns `self` shortened by 1/`n`, the allowance a lease client makes for clock drift.
    #[must_use]
    pub const fn less_one_in(self, n: u64) -> Self {
        Self(self.0 - self.0 / n)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0 + rhs.0)
    }
}

impl Instant {
    /// Returns the time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

/// A point in the cluster's time, as files carry it: since 1970-01-01 UTC (S6: one authority, the
/// metadata leader, issues them and never goes back).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// Returns the timestamp `nanos` nanoseconds after 1970.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a remainder below 10^9")]
    pub const fn from_nanos(nanos: i64) -> Self {
        Self {
            secs: nanos.div_euclid(1_000_000_000),
            nanos: nanos.rem_euclid(1_000_000_000).unsigned_abs() as u32,
        }
    }

    /// Returns the earliest timestamp after `self`.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.nanos == 999_999_999 {
            Self {
                secs: self.secs + 1,
                nanos: 0,
            }
        } else {
            Self {
                secs: self.secs,
                nanos: self.nanos + 1,
            }
        }
    }

    /// Returns `self` later by a length of time.
    #[must_use]
    pub const fn plus(self, by: Duration) -> Self {
        let nanos = self.nanos as u64 + (by.0 % 1_000_000) * 1_000;
        Self {
            secs: self.secs + (by.0 / 1_000_000) as i64 + (nanos / 1_000_000_000) as i64,
            nanos: (nanos % 1_000_000_000) as u32,
        }
    }
}
