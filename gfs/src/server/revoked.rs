//! Certificates that are not good any more: of machines that were lost, stolen, or given away with their keys.
//!
//! The log says up to which moment a node's certificates were revoked; every node refuses older ones (the transport), and
//! keeps that over restarts. A certificate of the same node that was issued later is good.
//!
//! | who | event | next | action |
//! | --- | --- | --- | --- |
//! | leader | is told to revoke, and enough other voters are up | revoked up to the command's time | - |
//! | leader | is told to revoke, and they are not | unchanged | refuses |
//! | any node | learns it: from its own log, or from the leader | the later of what it knew and learnt | writes it down, closes |
//! | any node | a peer shows a certificate from before that | - | closes with `Revoked`, says why |
//! | node | a peer has closed with `Revoked` | revoked, until it is restarted | `glu status` |
//! | leader | a revoked node's session has ended: nobody renews it | gone | its copies are made anew, a voter is replaced |
//!
//! Rules:
//! - RV1 for good: what a node knows to be revoked never becomes good again.
//! - RV2 not the majority: who is revoked is not needed for the next command.
//! - RV3 fenced first: what a revoked node holds is given to others once its session has ended, as of a node that is lost.

use super::service::MetaServer;
use super::state::Body;
use consistency::wire::request::REVOKED_SINCE;
use consistency::{NodeId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A voter that has not followed for so long is not counted on.
const SILENT: Duration = Duration::from_secs(1);

/// Returns whether the voters could agree without those that are revoked or silent.
fn is_enough(voters: &[NodeId], out: &BTreeSet<NodeId>) -> bool {
    let left = voters.iter().filter(|voter| !out.contains(voter)).count();
    left * 2 > voters.len()
}

impl MetaServer {
    /// Returns up to when certificates were revoked, as far as this node's log knows.
    pub fn revoked(&self) -> BTreeMap<NodeId, Timestamp> {
        self.log.read(|state| state.revoked().clone())
    }

    /// Revokes the certificates of a node; this node must lead.
    ///
    /// # Errors
    /// Why not, in one line.
    pub(super) async fn revoke(&self, node: NodeId) -> Result<(), String> {
        if self.version() < REVOKED_SINCE {
            return Err(format!(
                "the metadata are of version {}, which knows no revocation: upgrade all voters first",
                self.version()
            ));
        }
        let voters = self.voters();
        let mut out = self.log.silent_voters(SILENT);
        out.insert(node);
        // RV2
        if voters.contains(&node) && !is_enough(&voters, &out) {
            return Err(format!(
                "node {node} is one of {} voters, and too few of the others are up: glu voters replace {node} by another node first",
                voters.len()
            ));
        }
        match self.commit(Body::Revoke(node)).await {
            Ok(_) => {
                tracing::warn!(node = node.0, "its certificates were revoked");
                Ok(())
            }
            Err(error) => Err(format!(
                "whether node {node} was revoked is not known ({error}): look with glu status"
            )),
        }
    }

    /// Returns the nodes that were revoked and have no session: nobody waits for them. One with a session has got another
    /// certificate, or is about to lose it (RV3).
    pub(super) fn shut_out(&self) -> BTreeSet<NodeId> {
        let up = self.barriers.nodes_up();
        let revoked = self.revoked().into_keys();
        revoked.filter(|node| !up.contains(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::machine::StateMachine;
    use crate::server::state::{Command, MetaState};

    #[test]
    fn rv2_the_rest_must_be_a_majority() {
        let check = |voters: &[u16], out: &[u16], expected| {
            let voters: Vec<_> = voters.iter().copied().map(NodeId).collect();
            let out = out.iter().copied().map(NodeId).collect();
            assert_eq!(is_enough(&voters, &out), expected, "{voters:?} {out:?}");
        };
        check(&[1, 2, 3], &[3], true);
        check(&[1, 2, 3], &[3, 4], true);
        check(&[1, 2, 3], &[2, 3], false);
        check(&[1], &[1], false);
        check(&[1, 2, 3, 4, 5], &[1, 2], true);
        check(&[1, 2, 3, 4, 5], &[1, 2, 5], false);
    }

    #[test]
    fn rv1_a_revocation_is_for_good_and_is_in_snapshots() {
        let mut state = MetaState::default();
        let at = |seconds: i64| Timestamp::from_nanos(seconds * 1_000_000_000);
        let apply = |state: &mut MetaState, now, body| {
            state.apply(&Command { now, body });
        };
        apply(&mut state, at(1), Body::RaiseVersion(REVOKED_SINCE));
        apply(&mut state, at(10), Body::Revoke(NodeId(3)));
        // The clock of another leader is behind.
        apply(&mut state, at(5), Body::Revoke(NodeId(2)));
        let first = state.revoked().clone();
        assert_eq!(first[&NodeId(3)], at(10));
        assert!(first[&NodeId(2)] > at(10));
        apply(&mut state, at(20), Body::Revoke(NodeId(3)));
        assert_eq!(state.revoked()[&NodeId(3)], at(20));
        let restored = MetaState::restore(&state.snapshot());
        assert_eq!(restored.expect("read").revoked(), state.revoked());
    }
}
