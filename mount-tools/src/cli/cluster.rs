//! `glu status`, `glu drain`, `glu undrain`: this node, the nodes as the metadata leader sees them, and emptying one.

use crate::daemon::{ClusterNode, ClusterRepair, SOCKET_DEFAULT, Trouble, ask};
use anyhow::{Result, bail};
use clap::Args;
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often the progress is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long there may be no leader to ask, in the middle of it.
const LEADERLESS_MAX: Duration = Duration::from_secs(20);
const OPTION: &str = "--socket PATH";

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Its number.
    node: u16,
    /// Do not wait until it is empty: `glu status` shows how far it is.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct Undrain {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    /// Its number.
    node: u16,
}

/// What a node knows without asking.
#[derive(Debug, Serialize, Deserialize)]
struct Own {
    node: u16,
    leader: Option<u16>,
    voters: Vec<u16>,
    state: String,
    /// Why its metadata log has stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    /// What is wrong with its pids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pids: Option<String>,
    /// What is wrong with its clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<String>,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    metadata_version: Option<u32>,
    #[serde(default)]
    troubles: Vec<Trouble>,
}

#[derive(Debug, Serialize)]
struct Whole {
    #[serde(flatten)]
    own: Own,
    #[serde(flatten)]
    cluster: Cluster,
}

#[derive(Debug, Serialize, Deserialize)]
struct Cluster {
    nodes: Vec<ClusterNode>,
    repair: ClusterRepair,
}

#[derive(Debug, Deserialize)]
struct Draining {}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let voters: Vec<_> = self.voters.iter().map(u16::to_string).collect();
        let leader = self.leader.map(|leader| leader.to_string());
        let leader = leader.as_deref().unwrap_or("none known");
        let (node, state, voters) = (self.node, &self.state, voters.join(" "));
        write!(f, "node {node}, {state}; leader {leader}; voters {voters}")?;
        if let Some(version) = self.version {
            write!(f, "; version {version}")?;
        }
        if let Some(version) = self.metadata_version.filter(|v| Some(*v) != self.version) {
            write!(f, ", metadata {version}")?;
        }
        for trouble in &self.troubles {
            write!(
                f,
                "\nnode {} cannot be reached: {}",
                trouble.node, trouble.why
            )?;
        }
        if let Some(fault) = &self.fault {
            write!(f, "\nnode {node} neither leads nor votes: {fault}")?;
        }
        for trouble in [&self.pids, &self.clock].into_iter().flatten() {
            write!(f, "\nnode {node}: {trouble}")?;
        }
        Ok(())
    }
}

impl Cluster {
    fn ask(socket: &Path) -> Result<Self> {
        Ok(ask(socket, &serde_json::json!({"cmd": "cluster"}), OPTION)?)
    }
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode> {
        let own: Own = ask(&self.socket, &serde_json::json!({"cmd": "status"}), OPTION)?;
        if self.json {
            let cluster = Cluster::ask(&self.socket)?;
            println!("{}", serde_json::to_string(&Whole { own, cluster })?);
        } else {
            // Also if no leader tells of the others.
            println!("{own}");
            let cluster = Cluster::ask(&self.socket)?;
            println!("{}\n{}", table(&cluster.nodes), line(&cluster.repair));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Drain {
    pub(super) fn run(self) -> Result<ExitCode> {
        drain(&self.socket, self.node, true)?;
        if self.no_wait {
            println!(
                "node {} is being emptied: glu status shows how far it is",
                self.node
            );
            return Ok(ExitCode::SUCCESS);
        }
        let mut shown = None;
        let mut heard = Instant::now();
        loop {
            let cluster = match Cluster::ask(&self.socket) {
                Ok(cluster) => cluster,
                // It may be the leader who hands his part on.
                Err(_) if heard.elapsed() < LEADERLESS_MAX => {
                    std::thread::sleep(LOOK);
                    continue;
                }
                Err(error) => return Err(error),
            };
            heard = Instant::now();
            let Some(node) = cluster.nodes.iter().find(|node| node.node == self.node) else {
                bail!("node {} is no longer there", self.node);
            };
            if !node.draining {
                bail!(
                    "node {} is not being emptied any more: somebody ran glu undrain",
                    self.node
                );
            }
            let hands_on = node.voter && cluster.nodes.iter().any(may_vote);
            if node.chunks == 0 && !hands_on {
                println!("{}", may_go(node));
                return Ok(ExitCode::SUCCESS);
            }
            if node.chunks == 0 && shown != Some(0) {
                println!("node {} hands its part in the metadata on", node.node);
                shown = Some(0);
            }
            if shown != Some(node.chunks) {
                shown = Some(node.chunks);
                println!(
                    "{} chunks, {} left on node {}",
                    node.chunks,
                    mib(node.chunk_bytes),
                    node.node
                );
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Undrain {
    pub(super) fn run(self) -> Result<ExitCode> {
        drain(&self.socket, self.node, false)?;
        println!("node {} gets file data again", self.node);
        Ok(ExitCode::SUCCESS)
    }
}

fn drain(socket: &Path, node: u16, drain: bool) -> Result<()> {
    let question = serde_json::json!({"cmd": "drain", "target": node, "drain": drain});
    let Draining {} = ask(socket, &question, OPTION)?;
    Ok(())
}

/// Returns whether a node can take the place of a voter that is being emptied.
fn may_vote(node: &ClusterNode) -> bool {
    node.up && !node.draining && !node.voter
}

/// Says whether an empty node may be switched off.
fn may_go(node: &ClusterNode) -> String {
    if node.voter {
        format!(
            "node {} holds no file data, but keeps the metadata: it may be switched off only while most voters are up",
            node.node
        )
    } else {
        format!(
            "node {} holds no file data: it may be switched off",
            node.node
        )
    }
}

fn table(nodes: &[ClusterNode]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "NODE", "NAME", "STATE", "RACK", "CHUNKS", "DATA", "FREE", "DISK",
    ]);
    for node in nodes {
        table.add_row([
            node.node.to_string(),
            node.name.clone(),
            state(node),
            node.rack.clone(),
            node.chunks.to_string(),
            mib(node.chunk_bytes),
            mib(node.disk_free),
            mib(node.disk_total),
        ]);
    }
    table
}

fn state(node: &ClusterNode) -> String {
    let up = match (node.up, node.revoked) {
        (true, _) => "up",
        (false, true) => "revoked",
        (false, false) => "down",
    };
    match (node.draining, node.chunks) {
        (false, _) => up.to_owned(),
        (true, 0) => format!("{up}, empty"),
        (true, _) => format!("{up}, draining"),
    }
}

fn line(repair: &ClusterRepair) -> String {
    if !repair.complete {
        return format!("repair: looking, {} copies under way", repair.copying);
    }
    if repair.lacking == 0 && repair.unreachable == 0 {
        return "repair: all file data has its copies".to_owned();
    }
    format!(
        "repair: {} chunks lack copies, {} cannot be read now, {} copies under way",
        repair.lacking, repair.unreachable, repair.copying
    )
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
