//! Who may run processes on a node (rule J5).

use super::protocol::Credentials;
use async_trait::async_trait;
use consistency::NodeId;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long that may take to find out; the owner hears nothing meanwhile.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);

/// Whether a user may run processes on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Yes.
    Yes,
    /// Its rights say no.
    Closed,
    /// The reservation of this name does.
    Reserved(String),
    /// It takes no processes of other nodes at all.
    Blocked,
    /// Nor while its owner works at it.
    InUse,
    /// Nor root's.
    NoRoot,
    /// Nor those of users who have no account there.
    NoAccount,
}

/// Knows whom the nodes are for.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Returns whether a user may run processes on a node now; `guest`: they come from another one. Only that it takes
    /// no guests binds root.
    ///
    /// # Errors
    /// Why that is not known.
    async fn admits(
        &self,
        node: NodeId,
        user: &Credentials,
        guest: bool,
    ) -> Result<Admitted, String>;

    /// Returns whether processes that have been started on a node stay there.
    ///
    /// # Errors
    /// Why that is not known.
    async fn stay(&self, node: NodeId) -> Result<bool, String>;
}

/// Why a user may not run a process on a node.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Its rights say so.
    #[error(
        "node {node} is closed to user {uid}: `ls -ld /cluster/node{node}` shows whom it is for"
    )]
    Closed { node: NodeId, uid: u32 },
    /// Somebody else has reserved it.
    #[error(
        "node {node} is reserved for others than user {uid} (`{name}`): `glupart list` shows until when"
    )]
    Reserved {
        node: NodeId,
        uid: u32,
        name: String,
    },
    /// It takes no guests.
    #[error(
        "node {node} takes no processes of other nodes: /cluster/proc/cluster/node{node}/block is 1"
    )]
    Blocked { node: NodeId },
    /// Its owner works at it.
    #[error(
        "node {node} takes no processes of other nodes while somebody works at it: \
        /cluster/proc/cluster/node{node}/in_use is 1"
    )]
    InUse { node: NodeId },
    /// Root of other nodes is nobody there.
    #[error(
        "node {node} takes no processes of other nodes' root: [guests] in its glud.toml says so"
    )]
    NoRoot { node: NodeId },
    /// Only users are taken that it knows.
    #[error(
        "node {node} has no account for user {uid}, and takes no processes of strangers: [guests] in its glud.toml"
    )]
    NoAccount { node: NodeId, uid: u32 },
    /// That is not known.
    #[error("whether node {node} is open to user {uid} is not known: {why}")]
    Unknown { node: NodeId, uid: u32, why: String },
}

/// Asks who knows; without anybody who does, all nodes are for everybody.
#[derive(Default)]
pub(super) struct Admissions(OnceLock<Arc<dyn Admission>>);

impl Admissions {
    pub(super) fn ask(&self, whom: Arc<dyn Admission>) {
        self.0.set(whom).ok();
    }

    /// J5
    pub(super) async fn admit(
        &self,
        node: NodeId,
        user: &Credentials,
        guest: bool,
    ) -> Result<(), Refused> {
        let uid = user.uid;
        let Some(admission) = self.0.get().filter(|_| guest || uid != 0) else {
            return Ok(());
        };
        let known = tokio::time::timeout(KNOWN_WITHIN, admission.admits(node, user, guest)).await;
        match known {
            Ok(Ok(Admitted::Yes)) => Ok(()),
            Ok(Ok(Admitted::Closed)) => Err(Refused::Closed { node, uid }),
            Ok(Ok(Admitted::Blocked)) => Err(Refused::Blocked { node }),
            Ok(Ok(Admitted::InUse)) => Err(Refused::InUse { node }),
            Ok(Ok(Admitted::NoRoot)) => Err(Refused::NoRoot { node }),
            Ok(Ok(Admitted::NoAccount)) => Err(Refused::NoAccount { node, uid }),
            Ok(Ok(Admitted::Reserved(name))) => Err(Refused::Reserved { node, uid, name }),
            Ok(Err(why)) => Err(Refused::Unknown { node, uid, why }),
            Err(_) => {
                let why = format!("no answer within {KNOWN_WITHIN:?}");
                Err(Refused::Unknown { node, uid, why })
            }
        }
    }

    /// Returns whether processes of a node stay there; what is not known is no.
    pub(super) async fn stay(&self, node: NodeId) -> bool {
        let Some(admission) = self.0.get() else {
            return false;
        };
        let known = tokio::time::timeout(KNOWN_WITHIN, admission.stay(node)).await;
        matches!(known, Ok(Ok(true)))
    }
}

impl fmt::Debug for Admissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admissions")
            .field(&self.0.get().is_some())
            .finish()
    }
}
