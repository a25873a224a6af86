//! What files there are: a row each. Positions are inode numbers: append.

use crate::load;
use crate::text;
use crate::wire::{Identity, ProcFile};
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use gfs::error::Errno;
use std::fmt::Write;

/// A node and its load, `None` if it is down.
pub(super) type NodeState = (NodeId, Option<NodeLoad>);

/// A file of `/cluster/proc/<pid>/`.
pub(super) struct ProcessFile {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    /// What is read from the process's node, if anything.
    pub(super) from: Option<ProcFile>,
    /// Makes the content out of that.
    pub(super) show: fn(&Identity, Bytes) -> Bytes,
}

/// A file of `/cluster/proc/cluster/`.
pub(super) struct ClusterFile {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    pub(super) show: fn(&[NodeState]) -> String,
}

/// A file of `/cluster/proc/cluster/node<N>/`.
pub(super) struct NodeFile {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    pub(super) show: fn(Option<&NodeLoad>) -> Result<String, Errno>,
}

/// Directories here.
pub(super) const DIR_MODE: u32 = 0o555;

#[rustfmt::skip]
pub(super) const PROCESS: &[ProcessFile] = &[
    ProcessFile { name: "where",   mode: 0o444, from: None,                    show: show_where },
    ProcessFile { name: "stat",    mode: 0o444, from: Some(ProcFile::Stat),    show: as_it_is },
    ProcessFile { name: "status",  mode: 0o444, from: Some(ProcFile::Status),  show: as_it_is },
    ProcessFile { name: "cmdline", mode: 0o444, from: Some(ProcFile::Cmdline), show: as_it_is },
    ProcessFile { name: "comm",    mode: 0o444, from: Some(ProcFile::Stat),    show: show_comm },
];

#[rustfmt::skip]
pub(super) const CLUSTER: &[ClusterFile] = &[
    ClusterFile { name: "nodes", mode: 0o444, show: show_nodes },
];

#[rustfmt::skip]
pub(super) const NODE: &[NodeFile] = &[
    NodeFile { name: "load",  mode: 0o444, show: show_load },
    NodeFile { name: "state", mode: 0o444, show: |load| Ok(format!("{}\n", state(load))) },
];

fn as_it_is(_: &Identity, content: Bytes) -> Bytes {
    content
}

fn show_where(identity: &Identity, _: Bytes) -> Bytes {
    format!("{}\n", identity.pid.home()).into()
}

fn show_comm(_: &Identity, stat: Bytes) -> Bytes {
    let name = text::comm(&stat).unwrap_or_default();
    [name, b"\n"].concat().into()
}

fn show_nodes(nodes: &[NodeState]) -> String {
    let mut out = String::new();
    for (node, load) in nodes {
        writeln!(out, "{node} {}", state(load.as_ref())).expect("writing to a string succeeds");
    }
    out
}

fn show_load(load: Option<&NodeLoad>) -> Result<String, Errno> {
    let load = load.ok_or(Errno(libc::EHOSTDOWN))?;
    Ok(format!("{}\n", load::standard(load)))
}

const fn state(load: Option<&NodeLoad>) -> &'static str {
    if load.is_some() { "up" } else { "down" }
}
