//! Looks after the bucket as each node does after its store: on the node that leads, for as long as it does (decision 9).

use super::super::service::MetaServer;
use crate::data::disk::Disk;
use crate::data::keeper::{self, AskLeader, KeeperConfig};
use async_trait::async_trait;
use consistency::NodeId;
use consistency::wire::request::{MetaReply, MetaRequest};
use std::sync::Arc;

impl MetaServer {
    /// Looks after the bucket whenever this node leads; runs for as long as the node.
    pub async fn keep_bucket(self: Arc<Self>, bucket: Disk, config: KeeperConfig) {
        let mut leadership = self.log.leadership();
        // Who tells of the leadership ends with the log.
        while leadership.wait_for(|now| now.ready).await.is_ok() {
            let leader = Arc::new(Bucket(Arc::clone(&self)));
            let mut ended = leadership.clone();
            tokio::select! {
                () = keeper::run(bucket.clone(), leader, config) => {}
                _ = ended.wait_for(|now| !now.leading) => {}
            }
        }
    }
}

/// Speaks for the bucket, to this node.
struct Bucket(Arc<MetaServer>);

#[async_trait]
impl AskLeader for Bucket {
    async fn ask(&self, request: MetaRequest) -> Option<MetaReply> {
        match self.0.about_copies(NodeId::BUCKET, request).await {
            MetaReply::NotLeader(_) => None,
            reply => Some(reply),
        }
    }
}
