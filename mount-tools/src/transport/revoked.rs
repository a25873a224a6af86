//! Certificates that are not good any more: the transport's half of `gfs::server::revoked`, which has the rules.

use super::{QuicTransport, Shared};
use crate::identity::ClusterRoot;
use consistency::{NodeId, Timestamp};
use quinn::Connection;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, SystemTime};
use tracing::{error, warn};

/// What this node knows of them.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    /// Certificates of these nodes are good if they were issued later.
    upto: RwLock<BTreeMap<NodeId, Timestamp>>,
    /// What a peer said of this node's own.
    own: Mutex<Option<String>>,
}

impl Revoked {
    /// Learns more; returns whether that was news. RV1: what is known is never taken back.
    fn learn(&self, more: &BTreeMap<NodeId, Timestamp>) -> bool {
        let mut upto = self.upto.write().expect("no holder panics");
        let mut news = false;
        for (node, later) in more {
            if upto.get(node).is_none_or(|known| known < later) {
                upto.insert(*node, *later);
                news = true;
            }
        }
        news
    }

    /// Returns why the certificate by which a peer has proved that it is `node` is not good.
    pub(super) fn refusal(
        &self,
        root: &ClusterRoot,
        node: NodeId,
        connection: &Connection,
    ) -> Option<String> {
        let upto = *self.upto.read().expect("no holder panics").get(&node)?;
        let upto = time_of_day(upto);
        let certificate = certificate(connection);
        let is_later = certificate.is_some_and(|it| !root.has_issued_by(&it, upto));
        (!is_later).then(|| {
            let when = humantime::format_rfc3339_seconds(upto);
            format!("the certificates of node {node} were revoked at {when}")
        })
    }

    /// A peer has closed because this node's certificate was revoked.
    pub(super) fn note_own(&self, why: String) {
        let mut own = self.own.lock().expect("no holder panics");
        if own.is_none() {
            error!(why, "this node is shut out of the cluster");
        }
        own.get_or_insert(why);
    }
}

fn time_of_day(at: Timestamp) -> SystemTime {
    let since_1970 = Duration::new(u64::try_from(at.secs).unwrap_or_default(), at.nanos);
    SystemTime::UNIX_EPOCH + since_1970
}

/// Returns the certificate by which TLS knows a peer.
pub(super) fn certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?;
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

impl Shared {
    /// Returns why a peer's certificate is not good any more.
    pub(super) fn refusal(&self, node: NodeId, connection: &Connection) -> Option<String> {
        self.revoked.refusal(&self.root, node, connection)
    }
}

impl QuicTransport {
    /// Refuses certificates of these nodes from now on unless they were issued later, and closes the connections that were
    /// made with such. What was refused before stays so (RV1). Returns whether this was news.
    pub fn revoke(&self, upto: &BTreeMap<NodeId, Timestamp>) -> bool {
        let shared = &self.shared;
        if !shared.revoked.learn(upto) {
            return false;
        }
        warn!(nodes = ?upto.keys().collect::<Vec<_>>(), "their certificates are refused");
        let sessions: Vec<_> = {
            let sessions = shared.sessions();
            let sessions = sessions.iter();
            sessions.map(|(node, of)| (*node, of.clone())).collect()
        };
        for (node, connection) in sessions {
            if let Some(why) = shared.refusal(node, &connection) {
                connection.close(super::Close::Revoked.into(), why.as_bytes());
            }
        }
        let peers: Vec<_> = {
            let peers = shared.peers.read().expect("no holder panics");
            peers.values().cloned().collect()
        };
        for peer in peers {
            peer.refuse(shared);
        }
        true
    }

    /// Returns what is refused, up to when it was issued.
    #[must_use]
    pub fn revoked(&self) -> BTreeMap<NodeId, Timestamp> {
        let upto = self.shared.revoked.upto.read();
        upto.expect("no holder panics").clone()
    }

    /// Returns what a peer said when it refused this node's own certificate as revoked.
    #[must_use]
    pub fn shut_out(&self) -> Option<String> {
        let own = self.shared.revoked.own.lock();
        own.expect("no holder panics").clone()
    }
}
