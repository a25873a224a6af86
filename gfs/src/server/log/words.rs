//! What keeps a leader leading: the word of a majority that it follows nobody else.
//!
//! An answer to raft's own messages is such a word. But those wait for disks, one behind the other: a follower whose disk
//! hangs for a second would make a leader lose the lead that nobody else can have. So a voter that has not answered for a
//! while is asked whether it follows, and answers from memory.
//!
//! | who | event | action |
//! | --- | --- | --- |
//! | leader | a voter's last word is older than some time, and raft's core answers | asks it whether it follows |
//! | leader | the core does not answer: it waits for a disk itself | asks nobody, so that another may lead |
//! | voter | is asked, and the leader's vote is its own | notes that it has heard the leader, and says yes |
//! | voter | is asked, otherwise | says no |
//! | leader | is told yes | the word counts for the lease from when it asked |
//!
//! What a word promises is in [`super::election`].

use super::network::{Network, Request};
use super::raft::{Raft, node};
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire;
use openraft::{EmptyNode, RaftMetrics, ServerState, Vote};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// When each of the others last said that this node leads, counted from when it was asked, and in which reign.
#[derive(Clone, Debug, Default)]
pub(super) struct Words(Arc<Mutex<BTreeMap<u16, Word>>>);

#[derive(Clone, Copy, Debug)]
struct Word {
    vote: Vote<u16>,
    asked: Instant,
}

impl Words {
    fn words(&self) -> MutexGuard<'_, BTreeMap<u16, Word>> {
        self.0.lock().expect("no holder panics")
    }

    pub(super) fn note(&self, from: u16, vote: Vote<u16>, asked: Instant) {
        let word = Word { vote, asked };
        let mut words = self.words();
        let known = words.entry(from).or_insert(word);
        // Two questions may be under way.
        if known.vote != vote || known.asked < asked {
            *known = word;
        }
    }

    /// Returns whether a majority has said within the lease that this node leads. A voter that has said so gives no
    /// other its vote for that long.
    /// While the set changes, that is a majority of the old one and of the new one: either could elect alone.
    pub(super) fn hold(&self, metrics: &RaftMetrics<u16, EmptyNode>, lease: Duration) -> bool {
        let silent = self.silent(metrics, lease);
        let sets = metrics.membership_config.membership().get_joint_config();
        let agrees = |set: &BTreeSet<u16>| {
            let silent = silent.iter().filter(|voter| set.contains(voter)).count();
            2 * (set.len() - silent) > set.len()
        };
        metrics.state == ServerState::Leader && sets.iter().all(agrees)
    }

    /// Returns the other voters that have not said so for some time.
    pub(super) fn silent(&self, metrics: &RaftMetrics<u16, EmptyNode>, time: Duration) -> Vec<u16> {
        let now = Instant::now();
        let words = self.words();
        let is_silent = |voter: &u16| {
            let word = words.get(voter).filter(|word| word.vote == metrics.vote);
            word.is_none_or(|word| word.asked + time <= now)
        };
        let others = metrics.membership_config.voter_ids();
        let others = others.filter(|voter| *voter != metrics.id);
        others.filter(is_silent).collect()
    }
}

/// Asks voters that have not said for a while that this node leads, until raft has ended. It does not wait for one answer
/// before it asks again: a word counts from when it was asked for, so a leader leads on as long as answers take less than
/// the lease, less a heartbeat.
pub(super) struct Asker {
    pub raft: Raft,
    pub network: Network,
    pub heartbeat: Duration,
    pub lease: Duration,
}

impl Asker {
    pub(super) async fn run(self) {
        let metrics = self.raft.metrics();
        loop {
            tokio::time::sleep(self.heartbeat).await;
            if metrics.has_changed().is_err() {
                return;
            }
            let (vote, silent) = {
                let metrics = metrics.borrow();
                if metrics.state != ServerState::Leader {
                    continue;
                }
                let words = &self.network.words;
                (metrics.vote, words.silent(&metrics, self.heartbeat * 3 / 2))
            };
            if !silent.is_empty() && self.core_answers().await {
                for voter in silent {
                    tokio::spawn(ask(self.network.clone(), voter, vote, self.lease));
                }
            }
        }
    }

    async fn core_answers(&self) -> bool {
        let (tell, told) = oneshot::channel();
        self.raft.external_request(|_| {
            // Too late.
            let _nobody = tell.send(());
        });
        timeout(self.heartbeat, told)
            .await
            .is_ok_and(|told| told.is_ok())
    }
}

async fn ask(network: Network, voter: u16, vote: Vote<u16>, lease: Duration) {
    let body = Bytes::from(wire::encode(&Request::Follow(vote)));
    let asked = Instant::now();
    let transport = &network.transport;
    // After that it would be worth nothing.
    let reply = transport.call(node(voter), ServiceId::Raft, body, lease);
    // No answer is no word.
    let follows = |reply: Bytes| wire::decode(&reply).unwrap_or(false);
    if reply.await.is_ok_and(follows) {
        network.words.note(voter, vote, asked);
    }
}
