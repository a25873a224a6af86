//! What a node's `glud` is told: the one place that knows the daemon's configuration.

use super::state::{NodeDir, StateDir, node_name};
use super::{host_dir, network};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Every node has an address of its own, so the port is the same on all.
const PORT: u16 = 7177;
/// More voters make each commit slower and survive more losses than a development cluster suffers.
const VOTERS_MAX: u16 = 3;

#[derive(Debug, Serialize)]
struct GludConfig {
    node: u16,
    name: String,
    listen: SocketAddr,
    state_dir: PathBuf,
    mount_point: PathBuf,
    ready_file: PathBuf,
    control_socket: PathBuf,
    voters: Vec<u16>,
    tls: Tls,
    peers: Vec<Peer>,
}

#[derive(Debug, Serialize)]
struct Tls {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Serialize)]
struct Peer {
    node: u16,
    name: String,
    address: SocketAddr,
}

/// Makes the directories and the configuration of every node of a cluster of `nodes` nodes.
pub(super) fn write_all(dir: &StateDir, nodes: u16) -> Result<()> {
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
        let text = toml::to_string(&config_of(number, nodes, &node))
            .context("encode the configuration of glud")?;
        let path = node.config();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn config_of(number: u16, nodes: u16, dir: &NodeDir) -> GludConfig {
    let run = PathBuf::from(host_dir::RUN);
    let voters = if nodes < VOTERS_MAX { 1 } else { VOTERS_MAX };
    GludConfig {
        node: number,
        name: node_name(number),
        listen: SocketAddr::from((network::address(number), PORT)),
        state_dir: dir.state(),
        mount_point: dir.cluster(),
        // By their short names inside the node: a socket's path has 108 bytes at most.
        ready_file: run.join("ready"),
        control_socket: run.join("glud.sock"),
        voters: (1..=voters).collect(),
        tls: Tls {
            ca: dir.tls().join("ca.pem"),
            cert: dir.tls().join("node.pem"),
            key: dir.tls().join("node.key"),
        },
        peers: (1..=nodes)
            .filter(|peer| *peer != number)
            .map(|peer| Peer {
                node: peer,
                name: node_name(peer),
                address: SocketAddr::from((network::address(peer), PORT)),
            })
            .collect(),
    }
}
