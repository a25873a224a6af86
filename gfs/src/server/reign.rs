//! M3: the reign of this node, from its election until another leads.
//!
//! What the leader knows beside the log, leases above all, belongs to a reign. It begins when the node leads and has applied
//! all that came before, with what is known of the reign before: its sessions, and what its leader's own node may hold (L10).

use super::notes;
use super::service::MetaServer;
use super::state::{Body, MetaState, Reply};
use super::upgrade;
use crate::net::ServiceId;
use bytes::Bytes;
use consistency::wire::encode;
use consistency::wire::lease::Announcement;
use consistency::{Epoch, NodeId};
use std::sync::Arc;
use std::time::Duration;

impl MetaServer {
    /// Starts a reign when this node leads and has applied all that came before, ends it when it does not.
    pub(super) async fn follow_leadership(self: Arc<Self>) {
        const PAUSE: Duration = Duration::from_millis(20);
        let mut leadership = self.log.leadership();
        let mut led = None;
        loop {
            let now = *leadership.borrow_and_update();
            // An epoch of the log may lapse and come back; what was granted in it did not survive that.
            // The voters that are told are the same to its end (L10).
            let reigns = self.barriers.epoch().is_some() && led == Some((now.epoch, self.told()));
            let mut pause = None;
            if now.leading && now.ready {
                if !reigns {
                    self.barriers.end_reign();
                    let begun = self.begin_reign(now.epoch).await;
                    led = begun;
                    pause = led.is_none().then_some(PAUSE);
                }
                if self.version() < notes::SINCE {
                    pause = pause.or(Some(upgrade::LOOK));
                }
            } else if self.barriers.epoch().is_some() {
                tracing::info!("no longer metadata leader");
                self.barriers.end_reign();
            }
            let changed = match pause {
                Some(pause) => tokio::time::timeout(pause, leadership.changed())
                    .await
                    .unwrap_or(Ok(())),
                None => leadership.changed().await,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Returns the voters that note what this node holds.
    fn told(&self) -> Vec<NodeId> {
        // Those of an older version note nothing, and would never have been told enough.
        if self.version() < notes::SINCE {
            return Vec::new();
        }
        self.voters()
    }

    /// Records a new reign and starts it; returns its place and the voters that are told, `None` if the log does not take
    /// it (yet).
    async fn begin_reign(self: &Arc<Self>, epoch: Epoch) -> Option<(Epoch, Vec<NodeId>)> {
        let last = self.log.read(MetaState::reign);
        self.raise_version(last).await;
        let told = self.told();
        let inherited = self.inherited(last).await;
        match self.commit(Body::BeginReign).await {
            Ok(Reply::Reign(reign)) => {
                let sessions: Vec<_> = self.log.read(|state| state.sessions().collect());
                tracing::info!(
                    reign = reign.0,
                    sessions = sessions.len(),
                    "metadata leader"
                );
                fail_point!("leader: before a reign begins");
                self.watches.clear();
                let me = self.transport.local();
                // Else another node has led in between, and what it granted nobody has told.
                let inherited = inherited.filter(|_| reign.0 == last.0 + 1);
                self.barriers
                    .start_reign(reign, me, &sessions, inherited.as_ref(), &told);
                for voter in told.iter().filter(|voter| **voter != me) {
                    tokio::spawn(Arc::clone(self).tell(*voter, reign));
                }
                for node in self.transport.nodes() {
                    tokio::spawn(Arc::clone(self).announce(node, reign));
                }
                Some((epoch, told))
            }
            Ok(other) => unreachable!("BeginReign is answered by a reign, not {other:?}"),
            Err(error) => {
                tracing::debug!(%error, "cannot begin to reign yet");
                None
            }
        }
    }

    /// Tells a node that this one leads, until it has heard it; one that has not within a term finds out by asking.
    async fn announce(self: Arc<Self>, node: NodeId, reign: Epoch) {
        const ATTEMPT: Duration = Duration::from_millis(500);
        const PAUSE: Duration = Duration::from_millis(20);
        let body = Bytes::from(encode(&Announcement { epoch: reign }));
        let until = tokio::time::Instant::now() + Duration::from_micros(self.config.term.0);
        while self.barriers.epoch() == Some(reign) && tokio::time::Instant::now() < until {
            let told = self
                .transport
                .call(node, ServiceId::Reign, body.clone(), ATTEMPT);
            if told.await.is_ok() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
