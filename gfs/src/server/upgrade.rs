//! Which version of the protocol the log may use: the newest that all voters speak (docs/decisions/0008).
//!
//! A voter that cannot read a command cannot go on. So what a version has added to the commands, and the format of
//! snapshots that comes with it, is used only from the command on that raises the cluster to that version; the leader
//! sends it when it has spoken that version with every voter. It is never taken back.

use super::service::MetaServer;
use super::state::Body;
use consistency::NodeId;
use std::sync::Arc;
use std::time::Duration;

/// How often the leader looks.
const LOOK: Duration = Duration::from_secs(1);

/// Returns the version to raise the cluster to; `spoken` are those of all voters, as far as they are known.
fn next(now: u32, spoken: impl IntoIterator<Item = Option<u32>>) -> Option<u32> {
    let oldest = spoken.into_iter().min()??;
    (oldest > now).then_some(oldest)
}

/// Runs for as long as the server lives.
pub(super) async fn run(server: Arc<MetaServer>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if server.barriers.epoch().is_none() {
            continue;
        }
        let now = server.version();
        let spoken = server.voters().into_iter();
        let spoken = spoken.map(|voter| server.transport.version_of(voter));
        let Some(version) = next(now, spoken) else {
            continue;
        };
        match server.commit(Body::RaiseVersion(version)).await {
            Ok(_) => tracing::info!(from = now, to = version, "all voters speak a newer version"),
            Err(error) => tracing::warn!(%error, version, "the cluster's version is not raised"),
        }
    }
}

impl MetaServer {
    /// Returns the version that the log may use.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.log.read(super::state::MetaState::version)
    }

    /// Says why a node cannot become a voter: it could not read the log.
    pub(super) fn too_old(&self, node: NodeId) -> Option<String> {
        let (version, spoken) = (self.version(), self.transport.version_of(node));
        match spoken {
            Some(spoken) if spoken < version => Some(format!(
                "node {node} speaks version {spoken}, the metadata are of version {version}: upgrade it first"
            )),
            Some(_) | None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(now: u32, spoken: &[Option<u32>], expected: Option<u32>) {
        assert_eq!(
            next(now, spoken.iter().copied()),
            expected,
            "{now} {spoken:?}"
        );
    }

    #[test]
    fn only_what_all_voters_speak() {
        check(6, &[Some(7)], Some(7));
        check(6, &[Some(7), Some(6), Some(7)], None);
        check(6, &[Some(7), None, Some(7)], None);
        check(6, &[Some(7), Some(8), Some(7)], Some(7));
        check(7, &[Some(7), Some(7), Some(7)], None);
        // Nothing is taken back.
        check(7, &[Some(7), Some(6), Some(7)], None);
        check(6, &[], None);
    }
}
