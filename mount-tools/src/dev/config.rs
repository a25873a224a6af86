//! What a node's `glud` is told: the one place that knows the daemon's configuration.

use super::state::{NodeDir, StateDir, node_name};
use super::{host_dir, network};
use crate::config::{GludConfig, PeerConfig, TlsPaths};
use crate::identity::{CA_CERT_FILE, ClusterCa, NODE_CERT_FILE, NODE_KEY_FILE};
use anyhow::{Context, Result};
use consistency::NodeId;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Every node has an address of its own, so the port is the same on all.
const PORT: u16 = 7177;
/// Environment variable that says what the daemons log, as for `RUST_LOG`.
const LOG_ENV: &str = "GLU_LOG";

/// Makes the directories and the configuration of every node of a cluster of `nodes` nodes.
pub(super) fn write_all(dir: &StateDir, nodes: u16) -> Result<()> {
    let ca = ClusterCa::create(&dir.ca(), "glu-dev")?;
    for number in 1..=nodes {
        let node = dir.node(number);
        for path in [
            node.path().to_owned(),
            node.cluster(),
            node.run(),
            node.state(),
            node.tls(),
        ] {
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        ca.issue(NodeId(number))?.store(&node.tls())?;
        let text = config_of(number, nodes, &node).to_toml();
        let path = node.config();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn config_of(number: u16, nodes: u16, dir: &NodeDir) -> GludConfig {
    let run = PathBuf::from(host_dir::RUN);
    let others = (1..=nodes).filter(|peer| *peer != number);
    GludConfig {
        node: NodeId(number),
        name: node_name(number),
        listen: SocketAddr::from((network::address(number), PORT)),
        state_dir: dir.state(),
        mount_point: dir.cluster(),
        voters: vec![NodeId(1)],
        replicas: 2,
        lease_term_ms: 4_000,
        request_timeout_s: 30,
        log: std::env::var(LOG_ENV).unwrap_or_else(|_| crate::config::default_log()),
        // By their short names inside the node: a socket's path has 108 bytes at most.
        control_socket: run.join("glud.sock"),
        jobs_socket: run.join("jobs.sock"),
        ready_file: Some(run.join("ready")),
        tls: TlsPaths {
            ca: dir.tls().join(CA_CERT_FILE),
            cert: dir.tls().join(NODE_CERT_FILE),
            key: dir.tls().join(NODE_KEY_FILE),
        },
        peers: others
            .map(|peer| PeerConfig {
                id: NodeId(peer),
                name: node_name(peer),
                addr: SocketAddr::from((network::address(peer), PORT)),
            })
            .collect(),
    }
}
