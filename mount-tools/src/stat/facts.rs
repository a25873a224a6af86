//! What is known of the nodes: from `/cluster/proc`, and from the daemon where it may be asked.

use crate::daemon::{ClusterNode, Trouble, ask_within};
use crate::nodes::NodeSet;
use crate::table::{self, number};
use anyhow::{Result, bail};
use consistency::NodeId;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long the daemon may look for the leader; without it there is less to show.
const PATIENCE: Duration = Duration::from_secs(3);
/// Users below this are the system's, as are those from [`NOBODY`] on.
const USER_MIN: u32 = 1000;
const NOBODY: u32 = 65_534;

/// What is known of a node.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) node: NodeId,
    /// What it says itself; `None` if it does not answer.
    pub(super) load: Option<Load>,
    /// Its file data is being moved away, as the tree shows.
    pub(super) drains: bool,
    /// Its owner works at it.
    pub(super) in_use: bool,
    /// What the leader says.
    pub(super) told: Option<Told>,
    /// Why this node cannot reach it.
    pub(super) trouble: Option<String>,
    pub(super) users: u64,
}

impl Facts {
    /// Nothing is known of it.
    pub(super) fn of(node: NodeId) -> Self {
        Self {
            node,
            load: None,
            drains: false,
            in_use: false,
            told: None,
            trouble: None,
            users: 0,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) load: u64,
    pub(super) cpus: Option<u64>,
    /// In bytes, as is the next.
    pub(super) memory: Option<u64>,
    pub(super) memory_free: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Told {
    pub(super) up: bool,
    pub(super) draining: bool,
    pub(super) chunks: u64,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    nodes: Vec<ClusterNode>,
}

#[derive(Debug, Deserialize)]
struct Own {
    troubles: Vec<Trouble>,
}

/// Collects what is known of all nodes, or of some, with their users.
pub(super) fn collect(root: &Path, socket: &Path, only: Option<&NodeSet>) -> Result<Vec<Facts>> {
    let mut all = collect_without_users(root, socket, only)?;
    let users = users(root);
    for facts in &mut all {
        facts.users = users.get(&facts.node).map_or(0, |of| of.len() as u64);
    }
    Ok(all)
}

/// Collects what can be known without a look at the processes.
pub(super) fn collect_without_users(
    root: &Path,
    socket: &Path,
    only: Option<&NodeSet>,
) -> Result<Vec<Facts>> {
    let all = table::nodes(root)?;
    if let Some(unknown) = only.and_then(|only| only.iter().find(|node| !all.contains(node))) {
        bail!("there is no node {unknown}");
    }
    let wanted = |node: &NodeId| only.is_none_or(|only| only.contains(*node));
    let mut told = told(socket);
    let mut troubles = troubles(socket);
    let facts = |node| Facts {
        load: load(root, node),
        drains: drains(root, node),
        in_use: in_use(root, node),
        told: told.remove(&node),
        trouble: troubles.remove(&node),
        ..Facts::of(node)
    };
    Ok(all.into_iter().filter(wanted).map(facts).collect())
}

fn load(root: &Path, node: NodeId) -> Option<Load> {
    let dir = root.join(format!("cluster/node{node}"));
    let read = |name| number(&std::fs::read(dir.join(name)).ok()?);
    Some(Load {
        load: read("load")?,
        cpus: read("cpus"),
        memory: read("tmem"),
        memory_free: read("mem"),
    })
}

fn drains(root: &Path, node: NodeId) -> bool {
    let state = std::fs::read(root.join(format!("cluster/node{node}/state")));
    state.is_ok_and(|state| state.trim_ascii() == b"drain")
}

fn in_use(root: &Path, node: NodeId) -> bool {
    let value = std::fs::read(root.join(format!("cluster/node{node}/in_use")));
    value.is_ok_and(|value| value == b"1\n")
}

fn told(socket: &Path) -> BTreeMap<NodeId, Told> {
    let question = serde_json::json!({"cmd": "cluster"});
    // Only root is told; what is missing then is in the help.
    let nodes = ask_within(PATIENCE, socket, &question, "--socket PATH")
        .map_or_else(|_| Vec::new(), |Cluster { nodes }| nodes);
    let told = |node: ClusterNode| {
        let told = Told {
            up: node.up,
            draining: node.draining,
            chunks: node.chunks,
        };
        (NodeId(node.node), told)
    };
    nodes.into_iter().map(told).collect()
}

fn troubles(socket: &Path) -> BTreeMap<NodeId, String> {
    let question = serde_json::json!({"cmd": "status"});
    let troubles = ask_within(PATIENCE, socket, &question, "--socket PATH")
        .map_or_else(|_| Vec::new(), |Own { troubles }| troubles);
    let why = |trouble: Trouble| (NodeId(trouble.node), trouble.why);
    troubles.into_iter().map(why).collect()
}

/// Returns whose processes run on each node.
fn users(root: &Path) -> BTreeMap<NodeId, BTreeSet<u32>> {
    let mut users: BTreeMap<NodeId, BTreeSet<u32>> = BTreeMap::new();
    for process in table::all(root).unwrap_or_default() {
        // The directory is of the process's effective user.
        let user = std::fs::metadata(root.join(process.pid().to_string()));
        if let (Ok(user), Ok(node)) = (user.map(|user| user.uid()), process.node())
            && (USER_MIN..NOBODY).contains(&user)
        {
            users.entry(node).or_default().insert(user);
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_tree_tells() {
        let root = tempfile::tempdir().expect("a directory");
        let socket = root.path().join("socket");
        let cluster = root.path().join("cluster");
        for (node, load) in [("node1", Some("12\n")), ("node12", None)] {
            fs::create_dir_all(cluster.join(node)).expect("made");
            if let Some(load) = load {
                fs::write(cluster.join(node).join("load"), load).expect("written");
            }
        }
        fs::write(cluster.join("nodes"), "").expect("written");
        let facts = collect(root.path(), &socket, None).expect("a tree");
        let seen: Vec<_> = facts
            .iter()
            .map(|facts| (facts.node.0, facts.load.as_ref().map(|load| load.load)))
            .collect();
        assert_eq!(seen, [(1, Some(12)), (12, None)]);
        let only = "12".parse().expect("a set");
        let facts = collect(root.path(), &socket, Some(&only)).expect("a tree");
        assert_eq!(facts.len(), 1);
        let only = "1-2".parse().expect("a set");
        let error = collect(root.path(), &socket, Some(&only)).expect_err("no such node");
        assert_eq!(error.to_string(), "there is no node 2");
        assert!(collect(Path::new("/nowhere"), &socket, None).is_err());
    }
}
