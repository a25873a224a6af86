//! What is seen of the cluster at one time.

use crate::nodes::NodeSet;
use crate::stat::{self, State};
use crate::table::{
    self, Process, Stat, command_line, constant, effective_user, number, printable,
};
use anyhow::Result;
use gproc::pids::ClusterPid;
use nix::errno::Errno;
use nix::unistd::SysconfVar;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) root: PathBuf,
    /// The daemon's.
    pub(super) socket: PathBuf,
    pub(super) only: Option<NodeSet>,
}

/// Nodes and processes at one time.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) taken: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) processes: Vec<Seen>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) node: u16,
    pub(super) state: State,
    pub(super) reason: String,
    pub(super) cpus: Option<u64>,
    /// Percent of its processors that is used.
    pub(super) used: Option<u64>,
    /// In bytes, as is the next.
    pub(super) memory: Option<u64>,
    pub(super) memory_free: Option<u64>,
    /// What its daemon counts; `None` if it does not say.
    pub(super) counted: Option<Counted>,
}

/// What a daemon counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) leases: u64,
    /// Bytes to and from all others.
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// Which process: a number and the time it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) pid: u32,
    pub(super) start: u64,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: Id,
    pub(super) node: u16,
    pub(super) user: String,
    pub(super) state: char,
    /// Processor time since it began, in milliseconds.
    pub(super) cpu_ms: u64,
    pub(super) rss_kib: u64,
    pub(super) name: String,
    pub(super) args: String,
}

impl Place {
    /// Looks at everything.
    ///
    /// # Errors
    /// There is no table of processes, or no such node.
    pub(super) fn look(&self) -> Result<Sample> {
        let nodes = stat::nodes(&self.root, &self.socket, self.only.as_ref())?;
        let nodes = nodes.into_iter().map(|node| Node {
            node: node.node,
            state: node.state,
            reason: node.reason,
            cpus: node.cpus,
            used: used(&self.root, node.node),
            memory: node.memory,
            memory_free: node.memory_free,
            counted: counted(&self.root, node.node),
        });
        let nodes = nodes.collect();
        let mut users = HashMap::new();
        let taken = Instant::now();
        let all = table::all(&self.root)?;
        let wanted = |process: &&Process| {
            let only = self.only.as_ref();
            only.is_none_or(|only| only.contains(process.pid().home()))
        };
        let processes = all.iter().filter(wanted);
        // What ends while it is read is not shown.
        let processes = processes.filter_map(|process| Seen::read(process, &mut users));
        Ok(Sample {
            taken,
            nodes,
            processes: processes.collect(),
        })
    }

    /// Sends a signal to that process, never to a later one of its number.
    ///
    /// # Errors
    /// As kill(2).
    pub(super) fn signal(&self, id: Id, number: i32) -> Result<(), Errno> {
        let pid = ClusterPid::parse(id.pid.to_string().as_bytes()).ok_or(Errno::ESRCH)?;
        let process = Process::open(&self.root, pid)?;
        let stat = Stat::parse(&process.read("stat")?).ok_or(Errno::EPROTO)?;
        if stat.start != id.start {
            return Err(Errno::ESRCH);
        }
        process.order("note", &number.to_string())
    }
}

impl Seen {
    fn read(process: &Process, users: &mut HashMap<u32, String>) -> Option<Self> {
        let stat = Stat::parse(&process.read("stat").ok()?)?;
        let uid = effective_user(&process.read("status").ok()?)?;
        let user = users.entry(uid).or_insert_with(|| table::user_name(uid));
        let name = printable(&stat.name);
        let line = process.read("cmdline").ok()?;
        let page_kib = constant(SysconfVar::PAGE_SIZE, 4096) / 1024;
        Some(Self {
            id: Id {
                pid: process.pid().number(),
                start: stat.start,
            },
            node: process.pid().home().0,
            user: user.clone(),
            state: stat.state,
            cpu_ms: stat.ticks.saturating_mul(1000) / constant(SysconfVar::CLK_TCK, 100),
            rss_kib: stat.resident_pages.saturating_mul(page_kib),
            args: command_line(&line, &name),
            name,
        })
    }
}

fn used(root: &Path, node: u16) -> Option<u64> {
    let text = std::fs::read(root.join(format!("cluster/node{node}/util")));
    number(&text.ok()?)
}

fn counted(root: &Path, node: u16) -> Option<Counted> {
    let text = std::fs::read_to_string(root.join(format!("cluster/node{node}/metrics")));
    Some(read_metrics(&text.ok()?))
}

/// Reads what is shown here of a node's `metrics`.
fn read_metrics(text: &str) -> Counted {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for sample in samples {
        let (name, value) = sample.rsplit_once(' ').unwrap_or((sample, ""));
        let name = name.split('{').next().unwrap_or(name);
        let sum = sums.entry(name).or_default();
        *sum = sum.saturating_add(value.parse().unwrap_or(0));
    }
    let sum = |name| sums.get(name).copied().unwrap_or(0);
    Counted {
        leases: sum("glu_leases"),
        sent: sum("glu_sent_bytes_total"),
        received: sum("glu_received_bytes_total"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_a_tree_tells() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, text).expect("written");
        };
        let metrics = "# TYPE glu_leases gauge\nglu_leases 7\nglu_sent_bytes_total{peer=\"2\"} 5\nglu_sent_bytes_total{peer=\"3\"} 6\nnonsense\n";
        write("cluster/node1/metrics", metrics);
        write("cluster/node1/load", "12\n");
        fs::create_dir(root.path().join("cluster/node2")).expect("made");
        let zeros = ["0"; 7].join(" ");
        let stat = format!("65600 (a b) R 1 1 1 {zeros} 30 12 0 0 20 0 1 0 99 4096 5\n");
        write("65600/stat", &stat);
        write("65600/status", "Uid:\t4294967\t4294967\t0\t0\n");
        write("65600/cmdline", "a\0b\0");
        write("65600/note", "");
        // It ends while it is looked at.
        fs::create_dir(root.path().join("131080")).expect("made");
        let mut place = Place {
            root: root.path().to_owned(),
            socket: root.path().join("socket"),
            only: None,
        };
        let sample = place.look().expect("a tree");
        let counted: Vec<_> = sample.nodes.iter().map(|node| node.counted).collect();
        let expected = Counted {
            leases: 7,
            sent: 11,
            received: 0,
        };
        assert_eq!(counted, [Some(expected), None]);
        let id = Id {
            pid: 65_600,
            start: 99,
        };
        let expected = Seen {
            id,
            node: 1,
            user: "4294967".into(),
            state: 'R',
            cpu_ms: 42_000 / constant(SysconfVar::CLK_TCK, 100),
            rss_kib: 5 * constant(SysconfVar::PAGE_SIZE, 4096) / 1024,
            name: "a b".into(),
            args: "a b".into(),
        };
        assert_eq!(sample.processes, [expected]);

        assert_eq!(place.signal(id, 15), Ok(()));
        let note = fs::read_to_string(root.path().join("65600/note")).expect("there");
        assert_eq!(note, "15");
        let later = Id { start: 100, ..id };
        assert_eq!(place.signal(later, 9), Err(Errno::ESRCH));
        let gone = Id { pid: 65_601, ..id };
        assert_eq!(place.signal(gone, 9), Err(Errno::ESRCH));

        place.only = Some("2".parse().expect("a set"));
        let sample = place.look().expect("a tree");
        assert_eq!((sample.nodes.len(), sample.processes.len()), (1, 0));
        place.only = Some("3".parse().expect("a set"));
        place.look().expect_err("no such node");
    }
}
