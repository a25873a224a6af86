//! What a node's `glud` is told: its configuration and its identity.

use super::state::{NodeDir, StateDir, node_name};
use super::{host_dir, network};
use crate::config::{
    DesktopConfig, GludConfig, GuestsConfig, MigrationConfig, MountConfig, PeerConfig,
    RepairConfig, StoreConfig, TlsPaths, default_cache_mib, default_log,
};
use crate::identity::{CA_CERT_FILE, ClusterCa, NODE_CERT_FILE, NODE_KEY_FILE};
use anyhow::{Context, Result};
use consistency::NodeId;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Every node has an address of its own, so the port is the same on all.
const PORT: u16 = 7177;
const REPLICAS: u8 = 2;
const LEASE_TERM_MS: u32 = 4_000;
const REQUEST_TIMEOUT_S: u32 = 30;
/// Short, so that what takes an hour in a cluster can be seen.
const REPAIR_AFTER_S: u32 = 10;
const SWEEP_S: u32 = 5;
const SCRUB_S: u32 = 30;

/// Makes the directories, the identity and the configuration of every node of a new cluster, of which the first
/// `voters` keep the metadata.
pub(super) fn write_all(dir: &StateDir, nodes: u16, voters: u16) -> Result<()> {
    let ca = ClusterCa::create(&dir.ca(), "glu-dev").context("make the cluster's authority")?;
    for number in 1..=nodes {
        let node = dir.node(number);
        for path in [node.cluster(), node.run(), node.state()] {
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let identity = ca.issue(NodeId(number)).context("admit a node")?;
        identity.store(&node.tls()).context("admit a node")?;
        let path = node.config();
        let text = config_of(number, nodes, voters, &node).to_toml();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn config_of(number: u16, nodes: u16, voters: u16, dir: &NodeDir) -> GludConfig {
    let run = PathBuf::from(host_dir::RUN);
    GludConfig {
        node: NodeId(number),
        name: node_name(number),
        listen: SocketAddr::from((network::address(number), PORT)),
        state_dir: dir.state(),
        mount_point: dir.cluster(),
        // By their short names inside the node: a socket's path has 108 bytes at most.
        control_socket: run.join("glud.sock"),
        jobs_socket: run.join("jobs.sock"),
        ready_file: Some(run.join("ready")),
        voters: (1..=voters).map(NodeId).collect(),
        replicas: REPLICAS,
        rack: String::new(),
        lease_term_ms: LEASE_TERM_MS,
        request_timeout_s: REQUEST_TIMEOUT_S,
        cache_mib: default_cache_mib(),
        log: std::env::var("RUST_LOG").unwrap_or_else(|_| default_log()),
        mount: MountConfig::default(),
        repair: RepairConfig {
            after_s: REPAIR_AFTER_S,
            sweep_s: SWEEP_S,
            scrub_s: SCRUB_S,
            ..RepairConfig::default()
        },
        migration: migration(),
        store: StoreConfig::default(),
        desktop: DesktopConfig::default(),
        guests: GuestsConfig::default(),
        devices: gdev::Rules::default(),
        root: gdev::export::RootConfig::default(),
        tls: TlsPaths {
            ca: dir.tls().join(CA_CERT_FILE),
            cert: dir.tls().join(NODE_CERT_FILE),
            key: dir.tls().join(NODE_KEY_FILE),
        },
        peers: (1..=nodes)
            .filter(|peer| *peer != number)
            .map(|peer| PeerConfig {
                id: NodeId(peer),
                name: node_name(peer),
                addr: SocketAddr::from((network::address(peer), PORT)),
            })
            .collect(),
    }
}

/// What moves processes: what the environment names, as scripts/criu.sh prints it.
fn migration() -> MigrationConfig {
    let criu = std::env::var_os("GLU_CRIU");
    criu.map_or_else(MigrationConfig::default, |criu| MigrationConfig {
        criu: criu.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeIdentity;

    #[track_caller]
    fn check(nodes: u16, voters: u16) {
        let root = tempfile::tempdir().expect("a temporary directory");
        let dir = StateDir::create(root.path()).expect("made");
        write_all(&dir, nodes, voters).expect("written");
        for number in 1..=nodes {
            let path = dir.node(number).config();
            let config = GludConfig::load(&path).expect("glud takes it");
            // An older one does not know of it.
            let text = fs::read_to_string(path).expect("written");
            assert!(!text.contains("[devices]"), "{text}");
            assert!(!text.contains("[root]"), "{text}");
            assert_eq!(config.nodes().len(), usize::from(nodes));
            assert_eq!(config.voters.len(), usize::from(voters));
            let TlsPaths { ca, cert, key } = &config.tls;
            NodeIdentity::load(config.node, ca, cert, key).expect("the identity is this node's");
        }
        write_all(&dir, nodes, voters).expect_err("an authority is never replaced");
        dir.clear().expect("cleared");
        write_all(&dir, nodes, voters).expect("written anew");
    }

    #[test]
    fn glud_takes_what_is_written() {
        check(1, 1);
        check(2, 1);
        check(3, 3);
        check(5, 5);
    }
}
