//! Asks the metadata leader for the nodes and their load.

use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::meta::{MetaReply, MetaRequest, NodeStatus};
use consistency::wire::{decode, encode};
use gfs::net::{NetError, ServiceId, Transport};
use gproc::job;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// How long one voter may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// The voters, one of which leads.
#[derive(Debug)]
pub(super) struct Members {
    transport: Arc<dyn Transport>,
    voters: Vec<NodeId>,
    /// Who led when last asked.
    leader: AtomicU16,
}

impl Members {
    pub(super) fn new(transport: Arc<dyn Transport>, voters: &[NodeId]) -> Self {
        let first = voters.first().expect("checked by the configuration");
        Self {
            transport,
            voters: voters.to_vec(),
            leader: AtomicU16::new(first.0),
        }
    }
}

#[async_trait]
impl job::Nodes for Members {
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
        let body = Bytes::from(encode(&MetaRequest::Nodes));
        let last = NodeId(self.leader.load(Ordering::Relaxed));
        let others = self.voters.iter().copied().filter(|voter| *voter != last);
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
        Err(failure.expect("there is a voter"))
    }
}
