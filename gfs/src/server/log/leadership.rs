//! Who leads, watched.

use super::raft::{Raft, epoch, node};
use super::words::Words;
use consistency::{Epoch, NodeId};
use openraft::error::Fatal;
use openraft::{EmptyNode, RaftMetrics, ServerState};
use std::time::Duration;
use tokio::sync::watch;

/// Who leads, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The newest reign this node has heard of; two reigns never have the same number.
    pub epoch: Epoch,
    /// This node leads, and a majority has said so within the election time-out: no other can have been
    /// elected. A leader that is cut off loses this before the others elect, and gets it back, in the
    /// same epoch, if they did not.
    pub leading: bool,
    /// `leading`, and everything that was committed before this reign is applied.
    pub ready: bool,
    /// The place in the log of the change that made the voters what they are.
    pub voters_at: Option<u64>,
}

impl Leadership {
    /// What is known before anything is.
    pub(super) const NONE: Self = Self {
        leader: None,
        epoch: Epoch(0),
        leading: false,
        ready: false,
        voters_at: None,
    };
}

/// Publishes the leadership until nobody is interested or raft has ended.
pub(super) struct Watcher {
    pub raft: Raft,
    pub leadership: watch::Sender<Leadership>,
    pub words: Words,
    pub heartbeat: Duration,
    /// How long a majority's word counts. Voters keep a leader for the maximal election time-out after
    /// they heard from it, which is later than when it asked.
    pub lease: Duration,
}

impl Watcher {
    pub(super) async fn run(self) {
        let mut metrics = self.raft.metrics();
        let mut server = self.raft.server_metrics();
        let poll = self.heartbeat / 2;
        loop {
            let (current, catching_up) = {
                let metrics = metrics.borrow_and_update();
                server.borrow_and_update();
                let current = self.assess(&metrics);
                (
                    current,
                    metrics.state == ServerState::Leader && !current.ready,
                )
            };
            self.leadership.send_if_modified(|known| {
                let changed = *known != current;
                *known = current;
                changed
            });
            let ended = tokio::select! {
                changed = server.changed() => changed.is_err(),
                changed = metrics.changed(), if catching_up => changed.is_err(),
                () = tokio::time::sleep(poll) => metrics.has_changed().is_err(),
                () = self.leadership.closed() => true,
            };
            if ended {
                break;
            }
        }
        if let Err(fatal) = &metrics.borrow().running_state
            && *fatal != Fatal::Stopped
        {
            let why = super::fault(fatal);
            tracing::error!(why, "this node neither leads nor votes any more");
        }
        self.leadership.send_modify(|known| {
            known.leader = None;
            known.leading = false;
            known.ready = false;
        });
    }

    /// Judges what the core has reported.
    fn assess(&self, metrics: &RaftMetrics<u16, EmptyNode>) -> Leadership {
        let leading = metrics.running_state.is_ok() && self.words.hold(metrics, self.lease);
        let reign = metrics.vote.leader_id;
        let applied = metrics.last_applied.map(|last| last.leader_id);
        let leader = metrics.current_leader;
        let deposed = leader == Some(metrics.id) && !leading;
        Leadership {
            leader: leader.filter(|_| !deposed).map(node),
            epoch: epoch(&metrics.vote),
            leading,
            // The first entry of a reign commits everything before it.
            ready: leading && applied == Some(reign),
            voters_at: metrics.membership_config.log_id().map(|at| at.index),
        }
    }
}
