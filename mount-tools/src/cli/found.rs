//! `glu init`: founds a cluster. Makes its authority, and for each node a directory that becomes `/etc/glu` there.

use crate::config::GludConfig;
use crate::dev::UsageError;
use crate::identity::{ClusterCa, NODE_ID_MAX};
use anyhow::{Context, Result};
use clap::Args;
use consistency::NodeId;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// With fewer nodes one keeps the metadata: of two, either would be missed.
const NODES_FOR_VOTERS: usize = 3;
const VOTERS: usize = 3;
/// Where the authority is put: it admits nodes, and belongs on none of them.
const CA_DIR: &str = "ca";
const CONFIG_FILE: &str = "glud.toml";

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Name of the cluster: a to z, 0 to 9 and -.
    name: String,
    /// Where to put the authority (ca/) and a directory for each node; nothing is overwritten.
    dir: PathBuf,
    /// Its nodes, by name and the address at which the others reach it (UDP), in the order of their numbers:
    /// alpha=192.0.2.1:7420.
    #[arg(required = true, value_name = "NODE=ADDRESS:PORT")]
    nodes: Vec<Founder>,
}

/// A node of the first hour.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Founder {
    name: String,
    addr: SocketAddr,
}

impl FromStr for Founder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, addr) = text
            .split_once('=')
            .ok_or("it is no NODE=ADDRESS:PORT, as alpha=192.0.2.1:7420")?;
        let of_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(of_host) || name.starts_with(['-', '.']) {
            return Err(format!("{name:?} is no name of a machine"));
        }
        if name == CA_DIR {
            return Err("that directory is the authority's: choose another name".into());
        }
        let addr = addr.parse().map_err(|_| {
            format!("{addr:?} is no ADDRESS:PORT, as 192.0.2.1:7420 or [2001:db8::1]:7420")
        })?;
        Ok(Self {
            name: name.to_owned(),
            addr,
        })
    }
}

/// What differs from node to node; all else is the default.
#[derive(Serialize)]
struct Written {
    node: u16,
    name: String,
    listen: SocketAddr,
    voters: Vec<u16>,
    peers: Vec<Peer>,
}

#[derive(Serialize)]
struct Peer {
    id: u16,
    name: String,
    addr: SocketAddr,
}

impl Init {
    pub(super) fn run(self) -> Result<ExitCode> {
        check(&self.nodes)?;
        let ca_dir = self.dir.join(CA_DIR);
        let ca = ClusterCa::create(&ca_dir, &self.name)?;
        for (number, founder) in numbered(&self.nodes) {
            let dir = self.dir.join(&founder.name);
            ca.issue(NodeId(number))?.store(&dir)?;
            write(&dir.join(CONFIG_FILE), &config_of(number, &self.nodes)?)?;
        }
        let dir = self.dir.display();
        println!(
            "{}: the authority; keep it where no node is",
            ca_dir.display()
        );
        for (number, founder) in numbered(&self.nodes) {
            let name = &founder.name;
            println!(
                "{dir}/{name}: node {number}; copy it to {name} as /etc/glu, and start glud there"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn numbered(nodes: &[Founder]) -> impl Iterator<Item = (u16, &Founder)> {
    (1..).zip(nodes)
}

fn check(nodes: &[Founder]) -> Result<(), UsageError> {
    if nodes.len() > usize::from(NODE_ID_MAX) {
        let all = nodes.len();
        return Err(UsageError(format!(
            "{all} nodes: a cluster has {NODE_ID_MAX} at most"
        )));
    }
    let (mut names, mut addrs) = (BTreeSet::new(), BTreeSet::new());
    for Founder { name, addr } in nodes {
        if !names.insert(name) {
            return Err(UsageError(format!("two nodes are named {name}")));
        }
        if !addrs.insert(addr) {
            return Err(UsageError(format!("two nodes have the address {addr}")));
        }
    }
    Ok(())
}

/// Returns the configuration of a node, as it is written.
fn config_of(number: u16, nodes: &[Founder]) -> Result<String> {
    let voters = if nodes.len() < NODES_FOR_VOTERS {
        1
    } else {
        VOTERS
    };
    let me = &nodes[usize::from(number) - 1];
    let others = numbered(nodes).filter(|(other, _)| *other != number);
    let written = Written {
        node: number,
        name: me.name.clone(),
        listen: me.addr,
        voters: (1..).take(voters).collect(),
        peers: others
            .map(|(id, peer)| Peer {
                id,
                name: peer.name.clone(),
                addr: peer.addr,
            })
            .collect(),
    };
    let text = toml::to_string(&written).context("write a configuration")?;
    // What glud would refuse is refused now.
    GludConfig::parse(Path::new(CONFIG_FILE), &text)?;
    Ok(text)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let file = File::create_new(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeIdentity;

    fn founders(count: u16) -> Vec<Founder> {
        let text = |number: u16| format!("n{number}=192.0.2.{number}:7420");
        let founder = |number| text(number).parse().expect("fits");
        (1..=count).map(founder).collect()
    }

    #[track_caller]
    fn check_cluster(count: u16, voters: &[u16]) {
        let dir = tempfile::tempdir().expect("a directory");
        let init = || Init {
            name: "lab".into(),
            dir: dir.path().join("lab"),
            nodes: founders(count),
        };
        init().run().expect("founds");
        for number in 1..=count {
            let dir = dir.path().join(format!("lab/n{number}"));
            let config = GludConfig::load(&dir.join(CONFIG_FILE)).expect("glud takes it");
            assert_eq!(config.node, NodeId(number));
            assert_eq!(config.listen, founders(count)[usize::from(number) - 1].addr);
            let expected: Vec<_> = voters.iter().copied().map(NodeId).collect();
            assert_eq!(config.voters, expected);
            assert_eq!(config.peers.len(), usize::from(count) - 1);
            let file = |name| dir.join(name);
            let (ca, cert, key) = (file("ca.pem"), file("node.pem"), file("node.key"));
            NodeIdentity::load(config.node, &ca, &cert, &key).expect("of this cluster");
        }
        let error = init().run().expect_err("nothing is overwritten");
        assert!(error.to_string().contains("ca.key"), "{error:#}");
    }

    #[test]
    fn a_cluster_is_founded() {
        check_cluster(1, &[1]);
        check_cluster(2, &[1]);
        check_cluster(4, &[1, 2, 3]);
    }

    #[test]
    fn what_is_no_cluster_is_refused() {
        let no = |text: &str| text.parse::<Founder>().expect_err(text);
        assert!(no("alpha").contains("NODE=ADDRESS:PORT"));
        assert!(no("alpha=192.0.2.1").contains("ADDRESS:PORT"));
        assert!(no("../x=192.0.2.1:1").contains("no name"));
        assert!(no("ca=192.0.2.1:1").contains("authority"));
        let founder = |text: &str| text.parse::<Founder>().expect("fits");
        let one = founder("a=192.0.2.1:1");
        let twice = check(&[one.clone(), founder("a=192.0.2.2:1")]).expect_err("one name");
        assert_eq!(twice.to_string(), "two nodes are named a");
        let twice = check(&[one, founder("b=192.0.2.1:1")]).expect_err("one address");
        assert_eq!(twice.to_string(), "two nodes have the address 192.0.2.1:1");
    }
}
