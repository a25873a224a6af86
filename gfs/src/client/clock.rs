//! The node's two clocks: its own monotonic one, which leases count by, and its estimate of the cluster's
//! time, which local changes are stamped with.
//!
//! C1: the estimate is a lower bound of the leader's clock (the last time heard plus what has passed since), and
//! a stamp is later than every stamp given or seen here before. So what is written after something was seen is
//! also dated after it, on whatever node that came from (S6).

use consistency::{Duration, Instant, Timestamp};
use std::sync::{Mutex, MutexGuard};
use std::time;

#[derive(Debug)]
pub(super) struct Clock {
    origin: time::Instant,
    cluster: Mutex<Cluster>,
}

#[derive(Debug)]
struct Cluster {
    /// Leader's time when it was heard last, and when that was.
    heard: Timestamp,
    heard_at: Instant,
    /// Latest stamp given or seen.
    latest: Timestamp,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            origin: time::Instant::now(),
            cluster: Mutex::new(Cluster {
                heard: Timestamp::default(),
                heard_at: Instant(0),
                latest: Timestamp::default(),
            }),
        }
    }

    /// Returns the node's own time.
    pub(super) fn now(&self) -> Instant {
        let micros = self.origin.elapsed().as_micros();
        Instant(u64::try_from(micros).expect("a node does not run for 500,000 years"))
    }

    /// Returns how long it is from now until `then`, zero if it has passed.
    pub(super) fn until(&self, then: Instant) -> time::Duration {
        time::Duration::from_micros(then.since(self.now()).0)
    }

    /// Takes the leader's clock out of a reply.
    pub(super) fn heard(&self, leader: Timestamp) {
        let now = self.now();
        let mut cluster = self.cluster();
        // C1: a reply that was long on its way must not set the estimate back.
        if leader > cluster.estimate(now) {
            cluster.heard = leader;
            cluster.heard_at = now;
        }
    }

    /// Takes a stamp seen on a file.
    pub(super) fn seen(&self, stamp: Timestamp) {
        let mut cluster = self.cluster();
        cluster.latest = cluster.latest.max(stamp);
    }

    /// Returns a stamp for a local change: later than all before it.
    pub(super) fn stamp(&self) -> Timestamp {
        let now = self.now();
        let mut cluster = self.cluster();
        // C1
        cluster.latest = cluster.latest.next().max(cluster.estimate(now));
        cluster.latest
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().expect("no holder panics")
    }
}

impl Cluster {
    const fn estimate(&self, now: Instant) -> Timestamp {
        let passed: Duration = now.since(self.heard_at);
        self.heard.plus(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_and_follow_what_was_seen() {
        let clock = Clock::new();
        let later = Timestamp::from_nanos(5_000_000_000);
        clock.heard(later);
        let first = clock.stamp();
        assert!(first >= later);
        assert!(clock.stamp() > first);
        let future = Timestamp::from_nanos(9_000_000_000);
        clock.seen(future);
        assert!(clock.stamp() > future);
        clock.heard(Timestamp::from_nanos(1));
        assert!(clock.stamp() > future, "an old reply does not set it back");
    }
}
