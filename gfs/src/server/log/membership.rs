//! Who votes, and how that changes: openraft's joint consensus, and what it leaves to its user.
//!
//! A change has two steps, the joint set and the new one. Its leader may be lost between them; the next one completes it
//! ([`Replicated::finish_change`]). One change at a time, and none by a leader that has taken itself out.

use super::{CONFIRM_DEADLINE, ProposeError, Replicated};
use crate::server::machine::StateMachine;
use consistency::NodeId;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use std::collections::BTreeSet;
use std::time::Duration;

/// How long a change of the voters may take: a new one gets the whole state first.
const MEMBERSHIP_DEADLINE: Duration = Duration::from_secs(60);

impl<M: StateMachine> Replicated<M> {
    /// Returns the voters in ascending order, as this node knows them.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.voter_ids();
        voters.map(NodeId).collect()
    }

    /// Changes the set of voters, at the leader: new ones are brought up to date first, then the set changes in one
    /// step, and commands go on all the time. Returns when the change is committed.
    ///
    /// # Errors
    /// As [`Replicated::propose`]; after [`ProposeError::Unknown`] see [`Replicated::voters`].
    pub async fn set_voters(&self, voters: &BTreeSet<NodeId>) -> Result<(), ProposeError> {
        let _alone = self.inner.changing.lock().await;
        let raft = &self.inner.raft;
        if self.is_leaving() {
            let why = "this leader is about to be none: try again".to_owned();
            return Err(ProposeError::Unavailable(why));
        }
        let before: BTreeSet<NodeId> = self.voters().into_iter().collect();
        let change = async {
            for new in voters.difference(&before) {
                let added = raft.add_learner(new.0, EmptyNode {}, true);
                added.await.map_err(membership_failed)?;
            }
            let ids: BTreeSet<u16> = voters.iter().map(|voter| voter.0).collect();
            let changed = raft.change_membership(ids, false);
            changed.await.map(drop).map_err(membership_failed)
        };
        let outcome = tokio::time::timeout(MEMBERSHIP_DEADLINE, change).await;
        let outcome = outcome.unwrap_or_else(|_| {
            let why = format!(
                "the set of voters did not change within {MEMBERSHIP_DEADLINE:?}: is each new voter up?"
            );
            Err(ProposeError::Unknown(why))
        });
        if outcome.is_err() {
            self.forget_learners().await;
        }
        outcome
    }

    /// Completes a change of the voters whose leader was lost in the middle of it: until then both sets have to agree to
    /// everything, and learners are sent the log that will be no voters. For who leads.
    pub async fn finish_change(&self) {
        let Ok(_alone) = self.inner.changing.try_lock() else {
            return;
        };
        if self.is_leaving() {
            return;
        }
        let sets = {
            let metrics = self.inner.raft.server_metrics();
            let metrics = metrics.borrow();
            let members = metrics.membership_config.membership();
            members.get_joint_config().clone()
        };
        if let [_, .., goal] = &sets[..] {
            tracing::info!(voters = ?goal, "completing a change of the voters");
            let changed = self.inner.raft.change_membership(goal.clone(), false);
            match tokio::time::timeout(CONFIRM_DEADLINE, changed).await {
                Ok(Ok(_)) => {}
                failed => return tracing::debug!(?failed, "not yet"),
            }
        }
        self.forget_learners().await;
    }

    /// Ends the sending of the log to nodes that have not become voters.
    async fn forget_learners(&self) {
        let learners: BTreeSet<u16> = {
            let metrics = self.inner.raft.server_metrics();
            let metrics = metrics.borrow();
            let members = metrics.membership_config.membership();
            members.learner_ids().collect()
        };
        if learners.is_empty() || self.is_leaving() {
            return;
        }
        let forgotten = ChangeMembers::RemoveNodes(learners);
        let forgotten = self.inner.raft.change_membership(forgotten, false);
        match tokio::time::timeout(CONFIRM_DEADLINE, forgotten).await {
            Ok(Ok(_)) => {}
            failed => tracing::debug!(
                ?failed,
                "who leads then forgets those that did not become voters"
            ),
        }
    }

    /// Returns the other voters that have not said within `time` that they follow this node, which leads: they are away,
    /// or their logs have stopped.
    #[must_use]
    pub fn silent_voters(&self, time: Duration) -> BTreeSet<NodeId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let silent = self.inner.words.silent(&metrics, time);
        silent.into_iter().map(NodeId).collect()
    }

    /// Returns whether this node is no voter any more. A leader that has taken itself out leads until that is committed;
    /// openraft's core does not stand another change meanwhile.
    fn is_leaving(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        let mut voters = metrics.membership_config.voter_ids();
        !voters.any(|voter| voter == metrics.id)
    }
}

fn membership_failed(error: RaftError<u16, ClientWriteError<u16, EmptyNode>>) -> ProposeError {
    match error {
        RaftError::APIError(error) => error.into(),
        RaftError::Fatal(fatal) => ProposeError::Unavailable(fatal.to_string()),
    }
}
