//! Several jobs of one command: where each may run, how many at a time, when they are ended, what becomes of them.

use super::copy::Sink;
use super::owner::Command;
use super::signals::Signals;
use super::{SIGNAL_STATUS, say, sys};
use crate::nodes::NodeSet;
use consistency::NodeId;
use gproc::job::protocol::{End, Failure, NodesReply};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Exit status of a command whose time was over, as that of timeout(1).
pub(super) const TIME_STATUS: u8 = 124;

/// How long processes that are to end may take, before they are killed.
const KILL_AFTER: Duration = Duration::from_secs(30);

/// What was asked for.
#[derive(Debug, Default)]
pub(super) struct Wish {
    pub(super) on: Option<NodeSet>,
    pub(super) except: Option<NodeSet>,
    /// Memory that a node must have free.
    pub(super) mem_mib: Option<u64>,
    /// Processors that it must have.
    pub(super) cpus: Option<u32>,
    /// One process on each node.
    pub(super) all: bool,
    /// Processes on so many nodes.
    pub(super) nodes: Option<usize>,
    pub(super) count: Option<usize>,
}

impl Wish {
    /// Returns the nodes that each process may run on (none: any). `known`: all nodes, whether they are up, and their load.
    pub(super) fn plan(
        &self,
        known: impl FnOnce() -> NodesReply,
    ) -> Result<Vec<Vec<NodeId>>, String> {
        let count = self.count.unwrap_or(1);
        let sized = self.mem_mib.is_some() || self.cpus.is_some();
        if !self.all && self.nodes.is_none() && self.except.is_none() && !sized {
            let on: Vec<NodeId> = self.on.iter().flat_map(NodeSet::iter).collect();
            return Ok(vec![on; count]);
        }
        let known = known()?;
        let of_set = |set: &Option<NodeSet>, node| set.as_ref().map(|set| set.contains(node));
        let up: Vec<NodeId> = known
            .into_iter()
            // Who names a node hears that it is down.
            .filter(|(node, up, _)| of_set(&self.on, *node).unwrap_or(*up))
            .filter(|(.., load)| {
                // One that has just joined has not reported yet.
                let is_new = load.cpus == 0;
                let mem = |mib| load.mem_available_kib >> 10 >= mib;
                is_new
                    || self.mem_mib.is_none_or(mem)
                        && self.cpus.is_none_or(|cpus| load.cpus >= cpus)
            })
            .map(|(node, ..)| node)
            .filter(|node| of_set(&self.except, *node) != Some(true))
            .collect();
        if up.is_empty() {
            return Err("no node is left to run on".into());
        }
        if self.all {
            return Ok(up.into_iter().map(|node| vec![node]).collect());
        }
        let Some(wanted) = self.nodes else {
            return Ok(vec![up; count]);
        };
        if wanted > up.len() {
            return Err(format!("{wanted} nodes are wanted and {} are up", up.len()));
        }
        let count = self.count.unwrap_or(wanted);
        let nodes = up[..wanted].iter().cycle().take(count);
        Ok(nodes.map(|node| vec![*node]).collect())
    }
}

/// How several jobs run.
#[derive(Debug)]
pub(super) struct Rules {
    /// So many at a time.
    pub(super) fanout: usize,
    /// One that fails ends all.
    pub(super) end_on_failure: bool,
    /// So long after the first has ended all are.
    pub(super) end_after_first: Option<Duration>,
    /// After so long all are ended.
    pub(super) limit: Option<Duration>,
    /// Equal outputs are shown once.
    pub(super) gather: bool,
}

/// Runs a job for each of `places`; returns the highest status.
pub(super) fn run(
    command: &Command,
    places: &[Vec<NodeId>],
    rules: &Rules,
    signals: &Signals,
) -> u8 {
    let socket = super::socket();
    let sinks: Vec<Arc<Sink>> = places.iter().map(|_| Arc::default()).collect();
    let (next, ending) = (AtomicUsize::new(0), AtomicBool::new(false));
    let status = std::thread::scope(|scope| {
        let (tell, ends) = mpsc::channel();
        for _ in 0..rules.fanout.min(places.len()) {
            let tell = tell.clone();
            let (socket, sinks, next, ending) = (&socket, &sinks, &next, &ending);
            scope.spawn(move || {
                while !ending.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(nodes) = places.get(at) else { return };
                    let sink = rules.gather.then(|| &sinks[at]);
                    let vnn = u32::try_from(at).expect("counts are small");
                    let end = run_one(command, socket, vnn, nodes, sink, signals);
                    tell.send(end).ok();
                }
            });
        }
        drop(tell);
        wait(&ends, command, rules, &ending, signals)
    });
    if rules.gather
        && let Err(error) = show(&sinks)
        && error.kind() == io::ErrorKind::BrokenPipe
    {
        sys::die_by(libc::SIGPIPE);
    }
    status
}

fn run_one(
    command: &Command,
    socket: &Path,
    vnn: u32,
    nodes: &[NodeId],
    sink: Option<&Arc<Sink>>,
    signals: &Signals,
) -> u8 {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match command.run_on(socket, vnn, nodes, sink, signals) {
        End::Exited(status) => byte(status),
        End::Killed(signal) => SIGNAL_STATUS.saturating_add(byte(signal)),
        End::Failed { kind, message } => {
            say(format_args!("glurun: process {vnn}: {message}"));
            kind.status()
        }
    }
}

/// Waits for the ends of all jobs, and brings them about as the rules have it.
fn wait(
    ends: &mpsc::Receiver<u8>,
    command: &Command,
    rules: &Rules,
    ending: &AtomicBool,
    signals: &Signals,
) -> u8 {
    let limit = rules.limit.map(|limit| Instant::now() + limit);
    let (mut highest, mut timed_out) = (0, false);
    let mut end_at = limit;
    let mut kill_at = None;
    loop {
        let now = Instant::now();
        let next = kill_at.or(end_at);
        let end = match next.map(|at: Instant| at.saturating_duration_since(now)) {
            Some(left) => ends.recv_timeout(left),
            None => ends.recv().map_err(RecvTimeoutError::from),
        };
        let end_all = match end {
            Ok(status) => {
                highest = highest.max(status);
                if let Some(more) = rules.end_after_first {
                    let end = Instant::now() + more;
                    end_at = Some(end_at.map_or(end, |at| at.min(end)));
                }
                command.is_over() || (status != 0 && rules.end_on_failure)
            }
            Err(RecvTimeoutError::Timeout) if kill_at.is_some() => {
                signals.send_to_all(libc::SIGKILL);
                kill_at = Some(Instant::now() + KILL_AFTER);
                false
            }
            Err(RecvTimeoutError::Timeout) => {
                timed_out = limit.is_some_and(|limit| limit <= Instant::now());
                true
            }
            Err(RecvTimeoutError::Disconnected) => {
                return if timed_out { TIME_STATUS } else { highest };
            }
        };
        if end_all && kill_at.is_none() {
            ending.store(true, Ordering::Relaxed);
            signals.send_to_all(libc::SIGTERM);
            kill_at = Some(Instant::now() + KILL_AFTER);
        }
    }
}

/// Shows what was gathered: equal outputs once, under the processes that wrote them.
fn show(sinks: &[Arc<Sink>]) -> io::Result<()> {
    let gathered = sinks.iter().map(|sink| sink.take());
    io::stdout().lock().write_all(&fold(gathered.collect()))
}

/// Returns outputs under the nodes that they came from, in the order of the first.
fn fold(gathered: Vec<(Option<NodeId>, Vec<u8>)>) -> Vec<u8> {
    const RULE: &str = "----------------\n";
    let mut groups: BTreeMap<Vec<u8>, (usize, Vec<Option<NodeId>>)> = BTreeMap::new();
    for (at, (node, output)) in gathered.into_iter().enumerate() {
        groups
            .entry(output)
            .or_insert((at, Vec::new()))
            .1
            .push(node);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, (first, _))| *first);
    let mut text = Vec::new();
    for (output, (_, from)) in groups {
        if output.is_empty() {
            continue;
        }
        let nodes = NodeSet::folded(from.iter().flatten().copied());
        let head = match from.len() {
            1 => nodes,
            count => format!("{nodes} ({count})"),
        };
        text.extend_from_slice(format!("{RULE}{head}\n{RULE}").as_bytes());
        text.extend_from_slice(&output);
        if !output.ends_with(b"\n") {
            text.push(b'\n');
        }
    }
    text
}

/// A failure that every job of a command shares.
pub(super) fn give_up(message: &str) -> ! {
    super::give_up("glurun", Failure::Cluster, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::node::NodeLoad;

    fn wish(line: &str) -> Wish {
        let mut wish = Wish::default();
        for word in line.split_whitespace() {
            match word.split_at(1) {
                ("w", set) => wish.on = Some(set.parse().expect("a set")),
                ("x", set) => wish.except = Some(set.parse().expect("a set")),
                ("a", "") => wish.all = true,
                ("N", count) => wish.nodes = Some(count.parse().expect("a count")),
                ("n", count) => wish.count = Some(count.parse().expect("a count")),
                ("m", mib) => wish.mem_mib = Some(mib.parse().expect("a size")),
                ("c", count) => wish.cpus = Some(count.parse().expect("a count")),
                _ => panic!("{word}"),
            }
        }
        wish
    }

    /// Node N has N processors and GiB of memory.
    fn known(node: u16) -> (NodeId, bool, NodeLoad) {
        let load = NodeLoad {
            cpus: node.into(),
            mem_available_kib: u64::from(node) << 20,
            ..NodeLoad::default()
        };
        (NodeId(node), node != 3, load)
    }

    /// Nodes 1 to 4, the third of which is down.
    #[track_caller]
    fn check(line: &str, expected: &[&[u16]]) {
        let known = || Ok((1..=4).map(known).collect());
        let plan = wish(line).plan(known).expect("a plan");
        let plan: Vec<Vec<u16>> = plan
            .iter()
            .map(|nodes| nodes.iter().map(|node| node.0).collect())
            .collect();
        assert_eq!(plan, expected, "{line}");
    }

    #[test]
    fn a_node_that_has_not_reported_yet_is_not_refused() {
        let known = || Ok(vec![(NodeId(1), true, NodeLoad::default())]);
        assert_eq!(wish("m64 c1").plan(known), Ok(vec![vec![NodeId(1)]]));
    }

    #[track_caller]
    fn check_refused(line: &str, why: &str) {
        let known = || Ok((1..=4).map(known).collect());
        let error = wish(line).plan(known).expect_err("is refused");
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn where_processes_run() {
        check("", &[&[]]);
        check("n3", &[&[], &[], &[]]);
        check("w1-3", &[&[1, 2, 3]]);
        check("x1", &[&[2, 4]]);
        check("w1-2 x1 n2", &[&[2], &[2]]);
        check("a", &[&[1], &[2], &[4]]);
        check("a w2-3", &[&[2], &[3]]);
        check("N2", &[&[1], &[2]]);
        check("N2 n3", &[&[1], &[2], &[1]]);
        check("N2 x1", &[&[2], &[4]]);
        check("m2048 n2", &[&[2, 4], &[2, 4]]);
        check("c4", &[&[4]]);
        check_refused("w1 m2048", "no node is left");
        check_refused("N4", "4 nodes are wanted and 3 are up");
        check_refused("w1 x1", "no node is left");
    }

    #[test]
    fn equal_outputs_are_shown_once() {
        let from = |node, text: &str| (Some(NodeId(node)), text.into());
        let text = fold(vec![
            from(1, "a\n"),
            from(2, "b"),
            from(3, "a\n"),
            from(4, ""),
            from(2, "a\n"),
        ]);
        let rule = "----------------\n";
        let expected = format!("{rule}node[1-3] (3)\n{rule}a\n{rule}node2\n{rule}b\n");
        assert_eq!(String::from_utf8(text).expect("text"), expected);
        assert_eq!(fold(vec![(None, Vec::new())]), b"");
    }
}
