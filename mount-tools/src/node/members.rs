//! The nodes as the metadata leader sees them: asked for by the placement of jobs, watched for that of chunks.

use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::meta::{MetaReply, MetaRequest, NodeStatus};
use consistency::wire::{decode, encode};
use gfs::net::{NetError, ServiceId, Transport};
use gproc::job;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// How often the nodes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// How long one node may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// All nodes, one of which leads; the others say so at once.
#[derive(Debug)]
pub(super) struct Members {
    transport: Arc<dyn Transport>,
    /// Who led when last asked.
    leader: AtomicU16,
    /// Which nodes had a live session when last asked; all of them until the first answer.
    up: RwLock<BTreeSet<NodeId>>,
}

impl Members {
    pub(super) fn new(transport: Arc<dyn Transport>, voters: &[NodeId]) -> Self {
        let first = voters.first().expect("checked by the configuration");
        let all = transport.nodes().into_iter().collect();
        Self {
            transport,
            leader: AtomicU16::new(first.0),
            up: RwLock::new(all),
        }
    }

    /// Returns the other nodes that are up, as far as is known.
    pub(super) fn others_up(&self) -> Vec<NodeId> {
        let local = self.transport.local();
        let up = self.up.read().expect("no holder panics");
        up.iter().copied().filter(|node| *node != local).collect()
    }

    /// Keeps [`others_up`](Self::others_up) fresh: a chunk sent to a node that is down waits for it.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            // Without a leader what was known stays the best guess.
            if let Ok(nodes) = job::Nodes::nodes(&*self).await {
                let up = nodes
                    .iter()
                    .filter(|status| status.up)
                    .map(|status| status.node);
                *self.up.write().expect("no holder panics") = up.collect();
            }
        }
    }
}

#[async_trait]
impl job::Nodes for Members {
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
        let body = Bytes::from(encode(&MetaRequest::Nodes));
        let last = NodeId(self.leader.load(Ordering::Relaxed));
        let others = self.transport.nodes().into_iter();
        let others = others.filter(|node| *node != last);
        let mut failure = None;
        for voter in std::iter::once(last).chain(others) {
            let reply = self
                .transport
                .call(voter, ServiceId::Meta, body.clone(), DEADLINE)
                .await;
            let why = match reply.map(|reply| decode(&reply)) {
                Ok(Ok(MetaReply::Nodes(nodes))) => {
                    self.leader.store(voter.0, Ordering::Relaxed);
                    return Ok(nodes);
                }
                Ok(Ok(_)) => NetError::Unreachable {
                    to: voter,
                    why: "it does not lead the metadata".to_owned(),
                },
                Ok(Err(error)) => NetError::Malformed {
                    to: voter,
                    why: error.to_string(),
                },
                Err(error) => error,
            };
            failure = Some(why);
        }
        Err(failure.expect("there is a node"))
    }
}
