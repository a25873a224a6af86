//! Whom the nodes are for, as the tree has it.

use async_trait::async_trait;
use consistency::NodeId;
use gfs::root::NodeRights;
use gproc::job::admission::Admission;
use gproc::job::protocol::Credentials;

#[derive(Debug)]
pub(super) struct OfTree(pub(super) NodeRights);

#[async_trait]
impl Admission for OfTree {
    async fn admits(&self, node: NodeId, user: &Credentials) -> Result<bool, String> {
        let rights = self.0.of(node).await.map_err(|error| error.to_string())?;
        Ok(rights.admit(user.uid, user.gid, &user.groups))
    }
}
