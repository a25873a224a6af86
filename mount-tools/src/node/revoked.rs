//! Has the transport refuse certificates that were revoked, and keeps them in a file: a node that starts must not listen to
//! who was revoked while it asks what was.
//!
//! Voters learn it from their log, all nodes from the leader.

use super::members::Members;
use crate::transport::QuicTransport;
use anyhow::{Context, Result};
use consistency::{NodeId, Timestamp};
use gfs::server::service::MetaServer;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked what was revoked.
const LOOK: Duration = Duration::from_millis(300);
/// In a node's state directory.
const NAME: &str = "revoked.json";

/// Certificates of these nodes are good if they were issued later.
type Upto = BTreeMap<NodeId, Timestamp>;

/// Returns what was known when the node ran last.
///
/// # Errors
/// The file cannot be read: without it a node might listen to who has no say any more.
pub(super) fn load(state_dir: &Path) -> Result<Upto> {
    let path = state_dir.join(NAME);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| {
            format!(
                "{}: no list of revoked certificates: copy that of another node",
                path.display()
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Upto::new()),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

fn save(state_dir: &Path, upto: &Upto) -> std::io::Result<()> {
    let path = state_dir.join(NAME);
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(upto)?)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(state_dir)?.sync_all()
}

/// Runs for as long as the node.
pub(super) async fn watch(
    state_dir: PathBuf,
    transport: Arc<QuicTransport>,
    meta: Arc<MetaServer>,
    members: Arc<Members>,
) {
    let mut saved = transport.revoked();
    loop {
        // Refused first: that must not wait for the disk, nor for the leader.
        transport.revoke(&meta.revoked());
        if let Ok(told) = members.ask_revoked().await {
            transport.revoke(&told.into_iter().collect());
        }
        let known = transport.revoked();
        if known != saved {
            match save(&state_dir, &known) {
                Ok(()) => saved = known,
                Err(error) => tracing::error!(%error, "cannot note what was revoked"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_damage_is_no_empty_list() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()).expect("none"), Upto::new());
        let upto = Upto::from([(NodeId(3), Timestamp::from_nanos(1_500_000_000))]);
        save(dir.path(), &upto).expect("saved");
        assert_eq!(load(dir.path()).expect("loaded"), upto);
        fs::write(dir.path().join(NAME), "{\"3\":").expect("ours");
        let error = format!("{:#}", load(dir.path()).expect_err("damaged"));
        assert!(error.contains(NAME) && !error.contains('\n'), "{error}");
    }
}
