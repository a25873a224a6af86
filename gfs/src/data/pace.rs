//! A bound on how many bytes a second background work moves.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Hands out bytes at a rate; nothing is saved up while nobody asks.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s: u64,
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s: bytes_per_s.max(1),
            next: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may be moved.
    pub(super) async fn take(&self, bytes: u64) {
        sleep_until(self.turn(Instant::now(), bytes)).await;
    }

    /// Returns when `bytes` may be moved that are asked for now.
    fn turn(&self, now: Instant, bytes: u64) -> Instant {
        let micros = bytes.saturating_mul(1_000_000) / self.bytes_per_s;
        let mut next = self.next.lock().expect("no holder panics");
        let begin = (*next).max(now);
        *next = begin + Duration::from_micros(micros);
        begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate() {
        let pace = Pace::new(1000);
        let begun = Instant::now() + Duration::from_secs(1);
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(pace.turn(begun, 500), begun, "the first goes at once");
        assert_eq!(pace.turn(begun, 500), at(500));
        assert_eq!(pace.turn(at(100), 2000), at(1000));
        assert_eq!(pace.turn(at(100), 1), at(3000));
        assert_eq!(pace.turn(at(9000), 500), at(9000));
        assert_eq!(pace.turn(at(9000), 1), at(9500), "nothing is saved up");
    }
}
