//! `glu nodes`: whom the nodes are for, and when.

use crate::batch::{Uses, uses};
use crate::daemon::SOCKET_DEFAULT;
use crate::nodes::{self, NodeSet};
use crate::{stat, table};
use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{Table, presets};
use consistency::NodeId;
use serde::Serialize;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Permission bits of a mode.
const BITS: u32 = 0o7777;

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// For programs.
    #[arg(long)]
    json: bool,

    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    node: stat::Node,
    /// Those of `/cluster/node<N>`; nothing while they are not known.
    #[serde(flatten)]
    rights: Option<Rights>,
    #[serde(flatten)]
    uses: Uses,
}

#[derive(Debug, Serialize)]
struct Rights {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Nodes {
    pub(crate) fn run(&self) -> Result<()> {
        let root = table::root();
        let mount = root.parent().unwrap_or(&root);
        let nodes = stat::nodes(&root, &self.socket, self.nodes.as_ref())?;
        let uses = uses(mount).context("the partitions and reservations")?;
        let shown = nodes.into_iter().map(|node| Shown {
            rights: rights(mount, &node),
            uses: uses(NodeId(node.node)),
            node,
        });
        let shown: Vec<Shown> = shown.collect();
        let text = match self.json {
            true => serde_json::to_string(&shown)?,
            false => show(&shown),
        };
        Ok(writeln!(io::stdout(), "{text}")?)
    }
}

fn rights(mount: &Path, node: &stat::Node) -> Option<Rights> {
    let metadata = std::fs::metadata(mount.join(format!("node{}", node.node))).ok()?;
    Some(Rights {
        uid: metadata.uid(),
        gid: metadata.gid(),
        mode: metadata.mode() & BITS,
    })
}

fn show(nodes: &[Shown]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "NODE",
        "STATE",
        "MODE",
        "OWNER",
        "GROUP",
        "PARTITIONS",
        "RESERVED",
        "REASON",
    ]);
    let words = |words: &[String]| match words {
        [] => "-".to_owned(),
        words => words.join(","),
    };
    for shown in nodes {
        let rights = shown.rights.as_ref();
        let known = |show: fn(&Rights) -> String| rights.map_or_else(|| "-".into(), show);
        table.add_row([
            shown.node.node.to_string(),
            shown.node.state.to_string(),
            known(|rights| format!("{:04o}", rights.mode)),
            known(|rights| table::user_name(rights.uid)),
            known(|rights| table::group_name(rights.gid)),
            words(&shown.uses.partitions),
            words(&shown.uses.reserved),
            shown.node.reason.clone(),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().into()).collect();
    lines.join("\n")
}
