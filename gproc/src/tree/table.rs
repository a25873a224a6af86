//! What files there are: a row each. Positions are inode numbers: append.

use self::OfProcess::{Dir, Known, Link, Moves, Read, ReadsTakes, Takes, Wait};
use self::OfRoot::{Here, Told, Total};
use super::control::Order;
use super::switches::{self, Switch};
use crate::load;
use crate::pids::KERNEL_PID_MAX;
use crate::text;
use crate::totals::{self, Share};
use crate::wire::{Identity, MachineFile, Namespace, ProcFile};
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::meta::FileKind;
use consistency::wire::node::NodeLoad;
use gfs::error::Errno;
use std::fmt::Write;

/// A node and its state.
pub(super) type NodeState = (NodeId, &'static str);

/// A file somewhere below a directory.
pub(super) struct File<W> {
    pub(super) path: &'static str,
    pub(super) mode: u32,
    pub(super) what: W,
}

impl<W> File<W> {
    /// Returns the directory it is in, and its name.
    pub(super) fn split(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('/').unwrap_or(("", self.path))
    }
}

/// What a file of a process is.
#[derive(Clone, Copy)]
pub(super) enum OfProcess {
    /// It shows what is known of the process here.
    Known(fn(&Identity) -> String),
    /// It shows what the process's home says of its moves.
    Moves(OfMoves),
    /// It shows what the process's node reads.
    Read(ProcFile, fn(Bytes) -> Bytes),
    /// It leads where the process's node reads.
    Link(ProcFile),
    /// It has further rows, or those of `names`.
    Dir(Names),
    /// It takes orders.
    Takes(Order),
    /// It shows a file and takes orders.
    ReadsTakes(ProcFile, fn(Bytes) -> Bytes, Order),
    /// It shows how the process ended, when it has.
    Wait,
}

/// What there is to say of the moves of a process.
#[derive(Clone, Copy)]
pub(super) enum OfMoves {
    /// Where it is.
    Where,
    /// How often it has moved.
    Count,
    /// Why it cannot.
    Ties,
    /// What levelling makes of it.
    Why,
    /// How it has moved last, and what that has cost.
    Last,
    /// The number, time and size of its newest checkpoint, and how often it was started from one.
    Checkpoints,
}

/// What is in a directory besides rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Nothing,
    Threads,
    Fds,
    FdInfos,
}

/// What a file of the root is.
#[derive(Clone, Copy)]
pub(super) enum OfRoot {
    /// All nodes' files, made into one.
    Total(MachineFile, fn(&[Share<'_>]) -> String),
    /// This node's file.
    Here(MachineFile),
    /// It follows from which nodes there are; the file is that of a node's own view.
    Told(MachineFile, fn(&[NodeId]) -> String),
    /// It leads elsewhere.
    Link(&'static str),
    Dir,
}

/// A file of `/cluster/proc/cluster/`.
pub(super) struct ClusterFile {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    pub(super) what: OfCluster,
}

/// What it is.
#[derive(Clone, Copy)]
pub(super) enum OfCluster {
    Shows(fn(&[NodeState]) -> String),
    /// A line for each event, when it comes.
    Events,
    /// A signal to a process group, also to one whose leader has ended.
    NoteGroup,
    /// Programs that are levelled.
    LevelList,
}

/// A file of `/cluster/proc/cluster/node<N>/`.
pub(super) struct NodeFile {
    pub(super) name: &'static str,
    pub(super) mode: u32,
    pub(super) what: OfNode,
}

/// What it is.
#[derive(Clone, Copy)]
pub(super) enum OfNode {
    Shows(fn(Option<&NodeLoad>) -> Result<String, Errno>),
    State,
    /// Takes 0 and 1.
    Switch(switches::Order),
    /// Tells 0 or 1.
    Tells(Switch),
    /// What its daemon counts.
    Metrics,
}

/// Directories here.
pub(super) const DIR_MODE: u32 = 0o555;

const fn file<W>(path: &'static str, mode: u32, what: W) -> File<W>
where
    W: Copy,
{
    File { path, mode, what }
}

#[rustfmt::skip]
pub(super) const PROCESS: &[File<OfProcess>] = &[
    file("where",         0o444, Moves(OfMoves::Where)),
    file("stat",          0o444, Read(ProcFile::Stat, as_it_is)),
    file("status",        0o444, Read(ProcFile::Status, as_it_is)),
    file("cmdline",       0o444, Read(ProcFile::Cmdline, as_it_is)),
    file("comm",          0o444, Read(ProcFile::Stat, show_comm)),
    // Anybody may try: whose process it is decides on the process's node, with EPERM as of kill(2).
    file("note",          0o222, Takes(Order::Note)),
    file("notepg",        0o222, Takes(Order::NoteGroup)),
    file("ctl",           0o222, Takes(Order::Ctl)),
    file("statm",         0o444, Read(ProcFile::Statm, as_it_is)),
    file("environ",       0o400, Read(ProcFile::Environ, as_it_is)),
    file("io",            0o400, Read(ProcFile::Io, as_it_is)),
    file("limits",        0o444, Read(ProcFile::Limits, as_it_is)),
    file("wchan",         0o444, Read(ProcFile::Wchan, as_it_is)),
    file("cgroup",        0o444, Read(ProcFile::Cgroup, as_it_is)),
    file("maps",          0o444, Read(ProcFile::Maps, as_it_is)),
    file("smaps",         0o444, Read(ProcFile::Smaps, as_it_is)),
    file("smaps_rollup",  0o444, Read(ProcFile::SmapsRollup, as_it_is)),
    file("mounts",        0o444, Read(ProcFile::Mounts, as_it_is)),
    file("mountinfo",     0o444, Read(ProcFile::Mountinfo, as_it_is)),
    file("schedstat",     0o444, Read(ProcFile::Schedstat, as_it_is)),
    file("oom_score",     0o444, Read(ProcFile::OomScore, as_it_is)),
    file("oom_score_adj", 0o444, Read(ProcFile::OomScoreAdj, as_it_is)),
    file("loginuid",      0o444, Read(ProcFile::Loginuid, as_it_is)),
    file("sessionid",     0o444, Read(ProcFile::Sessionid, as_it_is)),
    file("exe",           0o777, Link(ProcFile::Exe)),
    file("cwd",           0o777, Link(ProcFile::Cwd)),
    file("root",          0o777, Link(ProcFile::Root)),
    file("ns",            0o511, Dir(Names::Nothing)),
    file("ns/cgroup",     0o777, Link(ProcFile::Namespace(Namespace::Cgroup))),
    file("ns/ipc",        0o777, Link(ProcFile::Namespace(Namespace::Ipc))),
    file("ns/mnt",        0o777, Link(ProcFile::Namespace(Namespace::Mnt))),
    file("ns/net",        0o777, Link(ProcFile::Namespace(Namespace::Net))),
    file("ns/pid",        0o777, Link(ProcFile::Namespace(Namespace::Pid))),
    file("ns/pid_for_children",  0o777, Link(ProcFile::Namespace(Namespace::PidForChildren))),
    file("ns/time",       0o777, Link(ProcFile::Namespace(Namespace::Time))),
    file("ns/time_for_children", 0o777, Link(ProcFile::Namespace(Namespace::TimeForChildren))),
    file("ns/user",       0o777, Link(ProcFile::Namespace(Namespace::User))),
    file("ns/uts",        0o777, Link(ProcFile::Namespace(Namespace::Uts))),
    file("fd",            0o500, Dir(Names::Fds)),
    file("fdinfo",        0o555, Dir(Names::FdInfos)),
    file("task",          0o555, Dir(Names::Threads)),
    file("from",          0o444, Known(show_where)),
    file("nmigs",         0o444, Moves(OfMoves::Count)),
    file("cantmove",      0o444, Moves(OfMoves::Ties)),
    file("lock",          0o666, ReadsTakes(ProcFile::Lock, as_it_is, Order::Lock)),
    file("loadlevel",     0o666, ReadsTakes(ProcFile::Lock, invert, Order::Loadlevel)),
    file("goto",          0o222, Takes(Order::Goto)),
    file("wait",          0o444, Wait),
    file("why",           0o444, Moves(OfMoves::Why)),
    file("checkpoint",    0o222, Takes(Order::Checkpoint)),
    file("checkpoints",   0o444, Moves(OfMoves::Checkpoints)),
    file("restart",       0o222, Takes(Order::Restart)),
    file("moved",         0o444, Moves(OfMoves::Last)),
];

/// Rows that threads have not: what is done to a process is done to all of it.
pub(super) fn is_of_thread(file: &File<OfProcess>) -> bool {
    match file.what {
        Known(_) | Moves(_) | Takes(_) | ReadsTakes(..) | Wait => false,
        Dir(names) => names != Names::Threads,
        Read(of, _) => of != ProcFile::Lock,
        Link(_) => true,
    }
}

#[rustfmt::skip]
pub(super) const ROOT: &[File<OfRoot>] = &[
    file("stat",                  0o444, Total(MachineFile::Stat, totals::stat)),
    file("loadavg",               0o444, Total(MachineFile::Loadavg, totals::loadavg)),
    file("meminfo",               0o444, Total(MachineFile::Meminfo, totals::meminfo)),
    file("uptime",                0o444, Total(MachineFile::Uptime, totals::uptime)),
    file("cpuinfo",               0o444, Total(MachineFile::Cpuinfo, totals::cpuinfo)),
    file("vmstat",                0o444, Total(MachineFile::Vmstat, totals::vmstat)),
    file("diskstats",             0o444, Total(MachineFile::Diskstats, totals::diskstats)),
    file("net",                   0o555, OfRoot::Dir),
    file("net/dev",               0o444, Total(MachineFile::NetDev, totals::net_dev)),
    file("version",               0o444, Here(MachineFile::Version)),
    file("filesystems",           0o444, Here(MachineFile::Filesystems)),
    file("swaps",                 0o444, Here(MachineFile::Swaps)),
    file("cmdline",               0o444, Here(MachineFile::Cmdline)),
    file("mounts",                0o777, OfRoot::Link("self/mounts")),
    file("sys",                   0o555, OfRoot::Dir),
    file("sys/kernel",            0o555, OfRoot::Dir),
    file("sys/kernel/pid_max",    0o444, Told(MachineFile::PidMax, show_pid_max)),
    file("sys/kernel/osrelease",  0o444, Here(MachineFile::Osrelease)),
    file("sys/kernel/ostype",     0o444, Here(MachineFile::Ostype)),
    file("sys/kernel/version",    0o444, Here(MachineFile::KernelVersion)),
    file("sys/kernel/hostname",   0o444, Here(MachineFile::Hostname)),
    file("sys/kernel/ns_last_pid",  0o444, Here(MachineFile::LastPid)),
    file("sys/kernel/cap_last_cap", 0o444, Here(MachineFile::LastCap)),
    file("sys/kernel/random",     0o555, OfRoot::Dir),
    file("sys/kernel/random/boot_id", 0o444, Here(MachineFile::BootId)),
];

#[rustfmt::skip]
pub(super) const CLUSTER: &[ClusterFile] = &[
    ClusterFile { name: "nodes",         mode: 0o444, what: OfCluster::Shows(show_nodes) },
    ClusterFile { name: "loadlevellist", mode: 0o644, what: OfCluster::LevelList },
    ClusterFile { name: "events",        mode: 0o444, what: OfCluster::Events },
    ClusterFile { name: "notepg",        mode: 0o222, what: OfCluster::NoteGroup },
];

#[rustfmt::skip]
pub(super) const NODE: &[NodeFile] = &[
    NodeFile { name: "load",      mode: 0o444, what: OfNode::Shows(|load| tell(load, load::standard)) },
    NodeFile { name: "state",     mode: 0o444, what: OfNode::State },
    NodeFile { name: "speed",     mode: 0o444, what: OfNode::Shows(|load| tell(load, |load| load.speed.into())) },
    NodeFile { name: "cpus",      mode: 0o444, what: OfNode::Shows(|load| tell(load, |load| load.cpus.into())) },
    NodeFile { name: "mem",       mode: 0o444, what: OfNode::Shows(|load| tell(load, |load| load.mem_available_kib.saturating_mul(1024))) },
    NodeFile { name: "tmem",      mode: 0o444, what: OfNode::Shows(|load| tell(load, |load| load.mem_total_kib.saturating_mul(1024))) },
    NodeFile { name: "util",      mode: 0o444, what: OfNode::Shows(|load| tell(load, load::utilization)) },
    NodeFile { name: "loadlevel", mode: 0o644, what: OfNode::Switch(switches::Order::KeepNot(Switch::Unlevelled)) },
    NodeFile { name: "block",     mode: 0o644, what: OfNode::Switch(switches::Order::Keep(Switch::Block)) },
    NodeFile { name: "stay",      mode: 0o644, what: OfNode::Switch(switches::Order::Keep(Switch::Stay)) },
    NodeFile { name: "bring",     mode: 0o644, what: OfNode::Switch(switches::Order::Bring) },
    NodeFile { name: "expel",     mode: 0o644, what: OfNode::Switch(switches::Order::Expel) },
    NodeFile { name: "in_use",    mode: 0o444, what: OfNode::Tells(Switch::InUse) },
    NodeFile { name: "metrics",   mode: 0o444, what: OfNode::Metrics },
];

impl OfProcess {
    pub(super) const fn kind(self) -> FileKind {
        match self {
            Self::Known(_)
            | Self::Moves(_)
            | Self::Read(..)
            | Self::Takes(_)
            | Self::ReadsTakes(..)
            | Self::Wait => FileKind::File,
            Self::Link(_) => FileKind::Symlink,
            Self::Dir(_) => FileKind::Dir,
        }
    }
}

impl OfRoot {
    pub(super) const fn kind(self) -> FileKind {
        match self {
            Self::Total(..) | Self::Here(_) | Self::Told(..) => FileKind::File,
            Self::Link(_) => FileKind::Symlink,
            Self::Dir => FileKind::Dir,
        }
    }
}

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

fn is_locked(lock: &[u8]) -> bool {
    lock.starts_with(b"1")
}

fn invert(lock: Bytes) -> Bytes {
    Bytes::from_static(if is_locked(&lock) { b"0\n" } else { b"1\n" })
}

/// Above all cluster pids that these nodes can give.
fn show_pid_max(nodes: &[NodeId]) -> String {
    let last = nodes.iter().max().map_or(0, |node| i64::from(node.0));
    let max = (last + 1) * i64::from(KERNEL_PID_MAX);
    format!("{}\n", max.min(i64::from(i32::MAX)))
}

fn show_nodes(nodes: &[NodeState]) -> String {
    let mut out = String::new();
    for (node, state) in nodes {
        writeln!(out, "{node} {state}").expect("writing to a string succeeds");
    }
    out
}

fn tell(load: Option<&NodeLoad>, what: fn(&NodeLoad) -> u64) -> Result<String, Errno> {
    let load = load.ok_or(Errno(libc::EHOSTDOWN))?;
    Ok(format!("{}\n", what(load)))
}

/// Returns the state of a node that answers or not, and whose file data is being moved away or not.
pub(super) const fn state(answers: bool, drains: bool) -> &'static str {
    match (answers, drains) {
        (true, true) => "drain",
        (true, false) => "up",
        (false, _) => "down",
    }
}
