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
//! | alone, and does not lead | - | stands |
//!
//! The answers bind nobody: that there is one leader at a time is raft's business.

use super::network::{Network, Request};
use super::raft::{Raft, node};
use super::store::LogEnd;
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::ServerState;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// When this node last heard the leader that it follows.
#[derive(Debug)]
pub(super) struct Heard(Mutex<Instant>);

impl Heard {
    /// A node that starts gives a leader that it does not know of the time to say so.
    pub(super) fn now() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    pub(super) fn note(&self) {
        *self.0.lock().expect("no holder panics") = Instant::now();
    }

    pub(super) fn age(&self) -> Duration {
        self.0.lock().expect("no holder panics").elapsed()
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
                && let Err(fatal) = self.raft.trigger().elect().await
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
            self.heard.note();
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
        // Somebody else may have won meanwhile.
        self.heard.age() >= self.lease
    }

    fn draw(&self) -> Duration {
        let random = RandomState::new().build_hasher().finish() % 1_024;
        let part = u32::try_from(random).expect("below 1,024");
        self.spread * part / 1_024
    }
}
