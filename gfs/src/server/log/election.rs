//! When a voter stands for election.
//!
//! Openraft's own clock is switched off: it looks only every one and a half heartbeats, and a voter that was cut off
//! would count terms up and depose a good leader when it comes back. Here a voter asks the others first.
//!
//! | a voter | event | action |
//! | --- | --- | --- |
//! | hears a leader | - | waits |
//! | has heard none for the leader's lease and a draw | - | asks the others whether they would vote |
//! | asks | a majority, itself included, would | stands |
//! | asks | no majority would | waits for another draw |
//! | is asked | has heard a leader within its lease, or has a longer log | would not |
//! | is asked for its vote | has heard a leader within its lease | refuses |
//! | hears a leader | is about to stand, or has stood since it was elected | does not follow it |
//! | alone, and does not lead | - | stands |
//! | hears a leader that it does not know among the voters | follows another, or leads | does not answer |
//! | hears a leader that it does not know among the voters | has heard no other within its lease | follows it |
//! | is asked by one that it does not know among the voters | has heard a leader within its lease, or leads | refuses |
//! | is asked by one that it does not know among the voters | else | answers as anybody: the voters may have changed without it |
//!
//! That there is one leader at a time is raft's business. That none can be made while the old one counts on a majority's
//! word is the business of the last rows: who has told a leader that it follows votes for nobody, itself included, for the
//! lease. A node that is no voter does all of this but stand: it waits until a leader makes it one.

use super::network::{Network, Request};
use super::raft::{Raft, node};
use super::store::LogEnd;
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::error::Fatal;
use openraft::{ServerState, Vote};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// When this node last heard the leader that it follows.
#[derive(Debug)]
pub(super) struct Heard(Mutex<Hearing>);

#[derive(Debug)]
struct Hearing {
    at: Instant,
    /// It was a leader that was heard, not the beginning of this process.
    leader: bool,
    /// The vote with which this node stood last: leaders of before are not heard any more.
    stood: Option<Vote<u16>>,
    /// It is about to stand, and raft's core may not know of it yet.
    standing: bool,
}

/// What a sign of life of a leader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// This node follows, and votes for nobody within the lease.
    Heard,
    /// This node has stood since that leader was elected; raft's core knows.
    Late,
    /// This node is about to stand, and the core does not know yet: it must not see the sign first.
    Crossing,
}

impl Heard {
    /// A node that starts gives a leader that it does not know of the time to say so.
    pub(super) fn now() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Hearing::new(Instant::now()))))
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().expect("no holder panics")
    }

    /// Takes a sign of the leader that was elected with `vote`.
    pub(super) fn hear(&self, vote: &Vote<u16>) -> Sign {
        self.hearing().hear(vote, Instant::now())
    }

    pub(super) fn age(&self) -> Duration {
        self.hearing().at.elapsed()
    }

    /// Returns whether this node has told a leader that it votes for nobody now.
    pub(super) fn is_bound(&self, lease: Duration) -> bool {
        self.hearing().is_bound(lease, Instant::now())
    }
}

impl Hearing {
    const fn new(at: Instant) -> Self {
        Self {
            at,
            leader: false,
            stood: None,
            standing: false,
        }
    }

    fn hear(&mut self, vote: &Vote<u16>, now: Instant) -> Sign {
        if self.standing {
            return Sign::Crossing;
        }
        if self.stood.is_some_and(|stood| *vote <= stood) {
            return Sign::Late;
        }
        self.at = now;
        self.leader = true;
        Sign::Heard
    }

    fn is_bound(&self, lease: Duration, now: Instant) -> bool {
        self.leader && now < self.at + lease
    }

    /// Begins to stand, unless a leader was heard within the lease.
    fn stand(&mut self, lease: Duration, now: Instant) -> bool {
        self.standing = self.at + lease <= now;
        self.standing
    }

    /// Raft's core has stood, with `vote`.
    const fn has_stood(&mut self, vote: Vote<u16>) {
        self.stood = Some(vote);
        self.standing = false;
    }
}

/// Stands for election when nobody leads, until raft has ended.
pub(super) struct Campaigner {
    pub raft: Raft,
    pub network: Network,
    pub heard: Arc<Heard>,
    pub end: LogEnd,
    /// How long a voter keeps to a leader that it has heard.
    pub lease: Duration,
    /// What it waits beyond that is drawn from zero up to this, so that two do not stand at once.
    pub spread: Duration,
}

impl Campaigner {
    pub(super) async fn run(self) {
        let mut patience = self.lease + self.draw();
        loop {
            let left = patience.saturating_sub(self.heard.age());
            tokio::time::sleep(left.max(self.network.backoff / 8)).await;
            if self.raft.metrics().has_changed().is_err() {
                return;
            }
            if self.heard.age() < patience {
                continue;
            }
            patience = self.lease + self.draw();
            if !self.may_stand() {
                continue;
            }
            if self.majority_would_vote().await
                && let Err(fatal) = self.stand().await
            {
                tracing::debug!(%fatal, "cannot stand for election");
                return;
            }
            // Time for the votes.
            tokio::time::sleep(self.spread / 2 + self.draw()).await;
        }
    }

    /// Returns whether this node is a voter that does not lead. A leader hears itself.
    fn may_stand(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let me = metrics.id;
        if metrics.state == ServerState::Leader {
            self.heard.hearing().at = Instant::now();
            return false;
        }
        metrics.membership_config.voter_ids().any(|id| id == me)
    }

    async fn majority_would_vote(&self) -> bool {
        let Some(last) = self.end.get() else {
            return false;
        };
        let (voters, me) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let voters: Vec<u16> = metrics.membership_config.voter_ids().collect();
            (voters, metrics.id)
        };
        let body = Bytes::from(wire::encode(&Request::WouldVote(last)));
        let mut answers: FuturesUnordered<_> = voters
            .iter()
            .filter(|voter| **voter != me)
            .map(|voter| {
                let (transport, body) = (&self.network.transport, body.clone());
                async move {
                    let to = node(*voter);
                    let reply = transport.call(to, ServiceId::Raft, body, self.lease).await;
                    reply.is_ok_and(|reply| wire::decode(&reply).unwrap_or(false))
                }
            })
            .collect();
        let mut for_me = 1;
        while 2 * for_me <= voters.len() {
            match answers.next().await {
                Some(true) => for_me += 1,
                Some(false) => {}
                None => return false,
            }
        }
        true
    }

    async fn stand(&self) -> Result<(), Fatal<u16>> {
        // Somebody else may have won meanwhile.
        let stands = self.heard.hearing().stand(self.lease, Instant::now());
        if !stands {
            return Ok(());
        }
        self.raft.trigger().elect().await?;
        // The core does one thing after the other. If it waits for a disk, so does this.
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await?;
        self.heard.hearing().has_stood(vote);
        Ok(())
    }

    fn draw(&self) -> Duration {
        let random = RandomState::new().build_hasher().finish() % 1_024;
        let part = u32::try_from(random).expect("below 1,024");
        self.spread * part / 1_024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(500);

    fn leader(term: u64) -> Vote<u16> {
        Vote::new_committed(term, 1)
    }

    #[test]
    fn who_has_heard_a_leader_is_bound_for_the_lease() {
        let start = Instant::now();
        let mut hearing = Hearing::new(start);
        assert!(
            !hearing.is_bound(LEASE, start),
            "it has promised nothing yet"
        );
        assert!(!hearing.stand(LEASE, start));
        assert_eq!(hearing.hear(&leader(1), start), Sign::Heard);
        let last = start + LEASE - Duration::from_nanos(1);
        assert!(hearing.is_bound(LEASE, last));
        assert!(!hearing.stand(LEASE, last));
        let over = start + LEASE;
        assert!(!hearing.is_bound(LEASE, over));
        assert!(hearing.stand(LEASE, over));
    }

    #[test]
    fn who_stands_does_not_hear_those_before() {
        let start = Instant::now();
        let now = start + LEASE;
        let mut hearing = Hearing::new(start);
        assert!(hearing.stand(LEASE, now));
        assert_eq!(hearing.hear(&leader(1), now), Sign::Crossing);
        assert_eq!(hearing.hear(&leader(9), now), Sign::Crossing);
        hearing.has_stood(Vote::new(3, 2));
        assert_eq!(hearing.hear(&leader(1), now), Sign::Late);
        assert_eq!(hearing.hear(&leader(2), now), Sign::Late);
        assert_eq!(hearing.hear(&Vote::new_committed(3, 3), now), Sign::Heard);
    }
}
