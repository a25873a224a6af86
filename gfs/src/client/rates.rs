//! Compares this node's clock with the leader's, from time to time: leases need them to run alike (L3).

use super::Core;
use super::call::Answered;
use super::session::Phase;
use consistency::Instant;
use consistency::lease::{Apart, Reading};
use consistency::wire::request::{CLOCK_SINCE, MetaReply, MetaRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant as Deadline;

/// Reads the leader's clock until the client stops.
pub(super) async fn run(core: Arc<Core>) {
    let mut phase = core.phase.subscribe();
    loop {
        if let Some(reading) = core.read_clock().await {
            core.compare_clocks(reading);
        }
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Stopped) => return,
            () = tokio::time::sleep(core.config.compare_clocks_every) => {}
        }
    }
}

impl Core {
    async fn read_clock(&self) -> Option<Reading> {
        let until = Deadline::now() + self.config.compare_clocks_every;
        let asked = self.meta_since(&MetaRequest::Clock, CLOCK_SINCE, until);
        let Answered { reply, sent_at } = asked.await.ok()?;
        match reply {
            MetaReply::Clock { epoch, since } => Some(Reading {
                reign: epoch,
                asked: sent_at,
                answered: self.clock.now(),
                leader: Instant(since.0),
            }),
            // The leader is older.
            _ => None,
        }
    }

    fn compare_clocks(&self, reading: Reading) {
        let mut rates = self.rates();
        if !rates.take(reading) {
            return;
        }
        match rates.apart() {
            Some(apart) => tracing::error!("{}", trouble(apart)),
            None => tracing::info!("this node's clock runs as the leader's again"),
        }
    }
}

/// Says in one line what is wrong with the clock.
pub(super) fn trouble(apart: Apart) -> String {
    let seconds = |time: consistency::Duration| Duration::from_micros(time.0).as_secs_f64();
    format!(
        "while the leader's clock went {:.2} s this node's went {:.2} s: what it shows may be old, as leases allow 2 %. Unless \
         the machine was suspended, its clock or the leader's is broken",
        seconds(apart.leader),
        seconds(apart.here),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::lease::DRIFT;

    #[test]
    fn what_is_said_of_a_clock_that_runs_apart() {
        let apart = Apart {
            here: consistency::Duration::from_millis(4_200),
            leader: consistency::Duration::from_millis(10_000),
        };
        let said = trouble(apart);
        assert!(said.starts_with("while the leader's clock went 10.00 s this node's went 4.20 s"));
        assert!(said.contains(&format!("{} %", 100 / DRIFT)));
    }
}
