//! What files there are: a row each. Positions are inode numbers: append.

use super::control::Order;
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
    pub(super) what: What,
}

/// What a file of a process is.
#[derive(Clone, Copy)]
pub(super) enum What {
    /// It shows what is known of the process here.
    Known(fn(&Identity) -> String),
    /// It shows what the process's node reads.
    Read(ProcFile, fn(Bytes) -> Bytes),
    /// It takes orders.
    Order(Order),
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
    ProcessFile { name: "where",   mode: 0o444, what: What::Known(show_where) },
    ProcessFile { name: "stat",    mode: 0o444, what: What::Read(ProcFile::Stat, as_it_is) },
    ProcessFile { name: "status",  mode: 0o444, what: What::Read(ProcFile::Status, as_it_is) },
    ProcessFile { name: "cmdline", mode: 0o444, what: What::Read(ProcFile::Cmdline, as_it_is) },
    ProcessFile { name: "comm",    mode: 0o444, what: What::Read(ProcFile::Stat, show_comm) },
    // Anybody may try: whose process it is decides on the process's node, with EPERM as of kill(2).
    ProcessFile { name: "note",    mode: 0o222, what: What::Order(Order::Note) },
    ProcessFile { name: "notepg",  mode: 0o222, what: What::Order(Order::NoteGroup) },
    ProcessFile { name: "ctl",     mode: 0o222, what: What::Order(Order::Ctl) },
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

fn as_it_is(content: Bytes) -> Bytes {
    content
}

fn show_where(identity: &Identity) -> String {
    format!("{}\n", identity.pid.home())
}

fn show_comm(stat: Bytes) -> Bytes {
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
