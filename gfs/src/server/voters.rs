//! Who keeps the metadata: a voter that stays away, or is being emptied, is replaced by another node.
//!
//! The set of voters is part of the log and changes by one command at a time (`Replicated::set_voters`), so that nothing
//! here can make two leaders; what is decided is only whom to choose.
//!
//! Rules:
//! - KV1 a voter is replaced when it has not followed for as long as a node may be away (`gone_after`), is being emptied, or
//!   was revoked and does not follow.
//! - KV2 one at a time, and only by a node that is there: the set never gets smaller.
//! - KV3 the node that comes in is up, is not being emptied, and can read the log (V3); one that fails together with no
//!   other voter before one that does.

use super::log::ProposeError;
use super::service::MetaServer;
use crate::data::place::{Domain, domain};
use consistency::NodeId;
use consistency::wire::request::{NodeStatus, VOTERS_SINCE};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the leader looks.
const LOOK: Duration = Duration::from_secs(1);
/// A voter that has not followed for so long is away; more than it takes to restart a daemon's log.
const SILENT: Duration = Duration::from_secs(2);
/// Pause after a change that did not come about.
const AGAIN: Duration = Duration::from_secs(10);

/// Since when each voter has been away, as seen by one leader.
#[derive(Debug, Default)]
struct Away(BTreeMap<NodeId, Instant>);

impl Away {
    fn note(&mut self, now: Instant, silent: &BTreeSet<NodeId>) {
        self.0.retain(|voter, _| silent.contains(voter));
        for voter in silent {
            self.0.entry(*voter).or_insert(now);
        }
    }

    /// Returns those that were away for so long.
    fn for_long(&self, now: Instant, long: Duration) -> BTreeSet<NodeId> {
        let long = |since: &Instant| now.duration_since(*since) >= long;
        let away = self.0.iter().filter(|(_, since)| long(since));
        away.map(|(voter, _)| *voter).collect()
    }
}

/// What is known when a voter is to be replaced.
#[derive(Debug, Default)]
struct View {
    voters: BTreeSet<NodeId>,
    /// Voters that were away for too long.
    gone: BTreeSet<NodeId>,
    nodes: Vec<NodeStatus>,
    /// Nodes that can read the log.
    able: BTreeSet<NodeId>,
    /// How often it was tried in vain to make a node a voter.
    failed: BTreeMap<NodeId, u32>,
}

/// Returns who is to go and who is to come.
fn next(view: &View) -> Option<(NodeId, NodeId)> {
    let is_drained = |voter: &NodeId| {
        let mut nodes = view.nodes.iter();
        nodes.any(|status| status.node == *voter && status.draining)
    };
    let mut leaving = view.voters.iter();
    let leaving = leaving.find(|voter| view.gone.contains(voter) || is_drained(voter))?;
    let stays =
        |status: &&NodeStatus| view.voters.contains(&status.node) && status.node != *leaving;
    let used: BTreeSet<Domain<'_>> = view.nodes.iter().filter(stays).map(domain).collect();
    let may_come = |status: &&NodeStatus| {
        let known = view.able.contains(&status.node) && !view.voters.contains(&status.node);
        known && status.up && !status.draining
    };
    let fitness = |status: &&NodeStatus| {
        let failed = view.failed.get(&status.node).copied().unwrap_or_default();
        (failed, used.contains(&domain(status)), status.node)
    };
    let coming = view.nodes.iter().filter(may_come).min_by_key(fitness)?;
    Some((*leaving, coming.node))
}

/// Runs for as long as the server lives.
pub(super) async fn run(server: Arc<MetaServer>) {
    let mut reign = None;
    let (mut away, mut failed) = (Away::default(), BTreeMap::new());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = server.barriers.epoch();
        if now != reign {
            // Another set of voters is another reign; who is away is away in that one too.
            reign = now;
            failed.clear();
        }
        if reign.is_none() {
            away = Away::default();
            continue;
        }
        server.log.finish_change().await;
        let now = Instant::now();
        let silent = server.log.silent_voters(SILENT);
        away.note(now, &silent);
        let mut gone = away.for_long(now, server.config.gone_after);
        gone.extend(server.shut_out().intersection(&silent));
        let view = View {
            voters: server.voters().into_iter().collect(),
            gone,
            nodes: server.statuses(),
            able: server.able(),
            failed: failed.clone(),
        };
        let Some((leaving, coming)) = next(&view) else {
            continue;
        };
        let mut voters = view.voters;
        voters.remove(&leaving);
        voters.insert(coming);
        match server.set_voters(&voters).await {
            Ok(()) => tracing::warn!(
                left = leaving.0,
                came = coming.0,
                gone = view.gone.contains(&leaving),
                "a voter was replaced"
            ),
            Err(error) => {
                tracing::warn!(left = leaving.0, came = coming.0, %error, "a voter was not replaced");
                *failed.entry(coming).or_default() += 1;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

impl MetaServer {
    /// Changes the set of voters; this node must lead.
    ///
    /// # Errors
    /// A new one cannot be reached, or could not read the log; else see `Replicated::set_voters`.
    pub(super) async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), ProposeError> {
        let before = self.voters();
        for voter in voters {
            if let Some(why) = self.too_old(*voter) {
                return Err(ProposeError::Unavailable(why));
            }
            if !before.contains(voter) && self.transport.version_of(*voter).is_none() {
                let why = format!("node {voter} cannot be reached: start it first");
                return Err(ProposeError::Unavailable(why));
            }
        }
        self.log.set_voters(voters).await
    }

    /// Returns the nodes that would follow a leader which makes them voters.
    fn able(&self) -> BTreeSet<NodeId> {
        let least = self.version().max(VOTERS_SINCE);
        let nodes = self.transport.nodes().into_iter();
        nodes
            .filter(|node| self.transport.version_of(*node) >= Some(least))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::request::NodeReport;

    fn node(number: u16, rack: &str) -> NodeStatus {
        let report = NodeReport {
            domain: rack.to_owned(),
            ..NodeReport::default()
        };
        NodeStatus::new(NodeId(number), true, report)
    }

    fn set(nodes: &[u16]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    /// Three voters of five nodes, in racks a, b, c, a, d.
    fn view() -> View {
        let racks = ["a", "b", "c", "a", "d"];
        let nodes = (1..).zip(racks).map(|(number, rack)| node(number, rack));
        View {
            voters: set(&[1, 2, 3]),
            nodes: nodes.collect(),
            able: set(&[1, 2, 3, 4, 5]),
            ..View::default()
        }
    }

    #[track_caller]
    fn check(view: &View, expected: Option<(u16, u16)>) {
        let expected = expected.map(|(leaving, coming)| (NodeId(leaving), NodeId(coming)));
        assert_eq!(next(view), expected, "{view:?}");
    }

    #[test]
    fn only_who_is_gone_or_drained_is_replaced() {
        check(&view(), None);
        let mut gone = view();
        gone.gone = set(&[2]);
        check(&gone, Some((2, 5)));
        // KV2
        gone.gone = set(&[2, 3]);
        check(&gone, Some((2, 5)));
        let mut drained = view();
        drained.nodes[2].draining = true;
        check(&drained, Some((3, 5)));
        // Who is no voter does not matter.
        drained = view();
        drained.nodes[3].draining = true;
        check(&drained, None);
    }

    #[test]
    fn who_comes_is_there_and_able_and_elsewhere() {
        let mut view = view();
        view.gone = set(&[1]);
        // In rack a there is no other voter then.
        check(&view, Some((1, 4)));
        view.gone = set(&[2]);
        view.nodes[4].up = false;
        check(&view, Some((2, 4)));
        view.nodes[3].draining = true;
        check(&view, None);
        view.nodes[4].up = true;
        view.able = set(&[1, 2, 3, 4]);
        check(&view, None);
        view.nodes[3].draining = false;
        view.able = set(&[4, 5]);
        view.failed = BTreeMap::from([(NodeId(5), 1)]);
        check(&view, Some((2, 4)));
    }

    #[test]
    fn away_is_counted_from_when_it_began() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut away = Away::default();
        let long = Duration::from_secs(10);
        away.note(at(0), &set(&[2]));
        away.note(at(6), &set(&[2, 3]));
        assert_eq!(away.for_long(at(9), long), set(&[]));
        assert_eq!(away.for_long(at(10), long), set(&[2]));
        // It came back in between.
        away.note(at(11), &set(&[3]));
        away.note(at(12), &set(&[2, 3]));
        assert_eq!(away.for_long(at(16), long), set(&[3]));
    }
}
