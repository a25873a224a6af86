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
}

/// Knows whom the nodes are for.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Returns whether a user may run processes on a node now.
    ///
    /// # Errors
    /// Why that is not known.
    async fn admits(&self, node: NodeId, user: &Credentials) -> Result<Admitted, String>;
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
    pub(super) async fn admit(&self, node: NodeId, user: &Credentials) -> Result<(), Refused> {
        let uid = user.uid;
        let Some(admission) = self.0.get().filter(|_| uid != 0) else {
            return Ok(());
        };
        let known = tokio::time::timeout(KNOWN_WITHIN, admission.admits(node, user)).await;
        match known {
            Ok(Ok(Admitted::Yes)) => Ok(()),
            Ok(Ok(Admitted::Closed)) => Err(Refused::Closed { node, uid }),
            Ok(Ok(Admitted::Reserved(name))) => Err(Refused::Reserved { node, uid, name }),
            Ok(Err(why)) => Err(Refused::Unknown { node, uid, why }),
            Err(_) => {
                let why = format!("no answer within {KNOWN_WITHIN:?}");
                Err(Refused::Unknown { node, uid, why })
            }
        }
    }
}

impl fmt::Debug for Admissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Admissions")
            .field(&self.0.get().is_some())
            .finish()
    }
}
