//! How the processes of one command find each other: the server of PMI-1, the Process Management Interface of MPICH and
//! its kin ("PMI: A Scalable Parallel Process-Management Interface for Extreme-Scale Systems", 2010; the messages are
//! those of MPICH's `simple_pmi.c`). Pure: messages and ends of processes are told.
//!
//! A process asks a line on its wire, and is answered a line: names and values that all of them share, and a barrier,
//! which is passed when all are in it. That is also what `glu_barrier()` of libglu uses.
//!
//! | a process | of all others |
//! | --- | --- |
//! | has called `init` and ends before `finalize` | are ended: they would wait for it for ever |
//! | ends, while some are in a barrier or before they enter it | the same |
//! | `abort` | the same |

use consistency::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Longest line.
const LINE_BYTES_MAX: usize = 16 << 10;
/// Longest name and value, as processes are told.
const NAME_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 1024;
/// Most values of one command.
const VALUES_MAX: usize = 1 << 20;
/// The one space of names.
const SPACE: &str = "glu";
/// Where processes are: MPICH shares memory between those of one node.
const MAPPING: &str = "PMI_process_mapping";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Do {
    /// Tell a process this line.
    Tell(u32, String),
    /// Give a token back on the line of this process: those of its message go on.
    Pass(u32, u32),
    /// End them all; why.
    End(String),
}

/// The server of one command.
#[derive(Debug)]
pub(super) struct Pmi {
    size: u32,
    places: BTreeMap<u32, NodeId>,
    values: BTreeMap<String, String>,
    /// What came of a line that is not whole.
    partial: BTreeMap<u32, Vec<u8>>,
    /// Who is in the barrier.
    barrier: BTreeSet<u32>,
    /// Who of them has said so itself.
    alone: Vec<u32>,
    /// The messages about the others: on whose line they came, and their tokens.
    gathered: Vec<(u32, u32)>,
    /// Who has said `init` and not `finalize`.
    bound: BTreeSet<u32>,
    /// Who waits until all have a place.
    curious: Vec<u32>,
    gone: Option<u32>,
}

impl Pmi {
    /// Returns the server of `size` processes.
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            places: BTreeMap::new(),
            values: BTreeMap::new(),
            partial: BTreeMap::new(),
            barrier: BTreeSet::new(),
            alone: Vec::new(),
            gathered: Vec::new(),
            bound: BTreeSet::new(),
            curious: Vec::new(),
            gone: None,
        }
    }

    /// Takes note of where a process runs.
    pub(super) fn started(&mut self, process: u32, node: NodeId) -> Vec<Do> {
        self.places.insert(process, node);
        if self.places.len() < self.size as usize {
            return Vec::new();
        }
        let mapping = self.mapping();
        let curious = std::mem::take(&mut self.curious).into_iter();
        curious.map(|who| Do::Tell(who, found(&mapping))).collect()
    }

    /// Takes note of a process's end.
    pub(super) fn ended(&mut self, process: u32) -> Vec<Do> {
        self.partial.remove(&process);
        self.gone.get_or_insert(process);
        if self.bound.remove(&process) || !self.barrier.is_empty() {
            return vec![Do::End(format!(
                "process {process} has ended, and others wait for it"
            ))];
        }
        Vec::new()
    }

    /// Takes what a process has written.
    pub(super) fn take(&mut self, process: u32, bytes: &[u8]) -> Vec<Do> {
        let mut text = self.partial.remove(&process).unwrap_or_default();
        text.extend_from_slice(bytes);
        let mut todo = Vec::new();
        let mut rest = &text[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&rest[..end]).into_owned();
            todo.extend(self.line(process, &line));
            rest = &rest[end + 1..];
        }
        if rest.len() > LINE_BYTES_MAX {
            todo.push(Do::End(format!(
                "process {process} writes no PMI to descriptor 3"
            )));
        } else {
            self.partial.insert(process, rest.to_vec());
        }
        todo
    }

    fn line(&mut self, process: u32, line: &str) -> Vec<Do> {
        let words = line.split(' ').filter_map(|word| word.split_once('='));
        let words: BTreeMap<&str, &str> = words.collect();
        let word = |name: &str| words.get(name).copied().unwrap_or_default();
        let answer = match word("cmd") {
            "init" => {
                self.bound.insert(process);
                let rc = if word("pmi_version") == "1" { 0 } else { -1 };
                format!("cmd=response_to_init pmi_version=1 pmi_subversion=1 rc={rc}")
            }
            "get_maxes" => format!(
                "cmd=maxes kvsname_max=64 keylen_max={NAME_BYTES_MAX} vallen_max={VALUE_BYTES_MAX}"
            ),
            "get_appnum" => "cmd=appnum appnum=0".into(),
            "get_my_kvsname" => format!("cmd=my_kvsname kvsname={SPACE}"),
            "get_universe_size" => format!("cmd=universe_size size={}", self.size),
            "put" => self.put(word("key"), word("value")),
            "get" if word("key") == MAPPING && self.places.len() < self.size as usize => {
                self.curious.push(process);
                return Vec::new();
            }
            "get" if word("key") == MAPPING => found(&self.mapping()),
            "get" => match self.values.get(word("key")) {
                Some(value) => found(value),
                None => "cmd=get_result rc=-1 msg=key_not_found value=unknown".into(),
            },
            "barrier_in" => return self.enter(process),
            "finalize" => {
                self.bound.remove(&process);
                "cmd=finalize_ack".into()
            }
            "abort" => {
                return vec![Do::End(format!(
                    "process {process} has asked for the end of all"
                ))];
            }
            "publish_name" => "cmd=publish_result rc=-1 msg=not_supported".into(),
            "unpublish_name" => "cmd=unpublish_result rc=-1 msg=not_supported".into(),
            "lookup_name" => "cmd=lookup_result rc=-1 msg=not_supported".into(),
            other => {
                let what = if other.is_empty() { line } else { other };
                return vec![Do::End(format!(
                    "process {process} asks for `{what}`, which is not there"
                ))];
            }
        };
        vec![Do::Tell(process, answer)]
    }

    fn put(&mut self, name: &str, value: &str) -> String {
        let result = |rc, why| format!("cmd=put_result rc={rc} msg={why}");
        if name.is_empty() || name.len() > NAME_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return result(-1, "bad_size");
        }
        if self.values.contains_key(name) {
            return result(-1, "duplicate_key");
        }
        if self.values.len() >= VALUES_MAX {
            return result(-1, "too_many");
        }
        self.values.insert(name.into(), value.into());
        result(0, "success")
    }

    fn enter(&mut self, process: u32) -> Vec<Do> {
        self.alone.push(process);
        self.enter_all(&[process])
    }

    /// Takes note that processes of one node are in the barrier; nodes gather them (`gproc::job::gather`).
    pub(super) fn entered(&mut self, through: u32, token: u32, processes: &[u32]) -> Vec<Do> {
        self.gathered.push((through, token));
        self.enter_all(processes)
    }

    fn enter_all(&mut self, processes: &[u32]) -> Vec<Do> {
        if let Some(gone) = self.gone {
            return vec![Do::End(format!(
                "process {gone} has ended, and others wait for it"
            ))];
        }
        let known = processes.iter().filter(|process| **process < self.size);
        self.barrier.extend(known);
        if self.barrier.len() < self.size as usize {
            return Vec::new();
        }
        self.barrier.clear();
        let alone = std::mem::take(&mut self.alone).into_iter();
        let alone = alone.map(|who| Do::Tell(who, "cmd=barrier_out".into()));
        let gathered = std::mem::take(&mut self.gathered).into_iter();
        let gathered = gathered.map(|(through, token)| Do::Pass(through, token));
        alone.chain(gathered).collect()
    }

    /// Returns which processes share a node, as blocks of (first node, nodes, processes of each).
    fn mapping(&self) -> String {
        let mut known = Vec::new();
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        for node in self.places.values() {
            let at = known.iter().position(|of| of == node).unwrap_or_else(|| {
                known.push(*node);
                known.len() - 1
            });
            match blocks.last_mut() {
                Some((last, count)) if *last == at => *count += 1,
                _ => blocks.push((at, 1)),
            }
        }
        let blocks = blocks
            .iter()
            .map(|(at, count)| format!(",({at},1,{count})"));
        format!("(vector{})", blocks.collect::<String>())
    }
}

fn found(value: &str) -> String {
    format!("cmd=get_result rc=0 msg=success value={value}")
}

#[cfg(test)]
mod worlds;

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(process: u32, line: &str) -> Do {
        Do::Tell(process, line.into())
    }

    #[track_caller]
    fn check(pmi: &mut Pmi, process: u32, line: &str, expected: &[Do]) {
        assert_eq!(
            pmi.take(process, format!("{line}\n").as_bytes()),
            expected,
            "{line}"
        );
    }

    #[test]
    fn processes_find_each_other() {
        let mut pmi = Pmi::new(2);
        let init = "cmd=init pmi_version=1 pmi_subversion=1";
        let inited = "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0";
        check(&mut pmi, 0, init, &[tell(0, inited)]);
        check(&mut pmi, 1, init, &[tell(1, inited)]);
        let put = "cmd=put kvsname=glu key=P0 value=tcp:1.2.3.4=5";
        check(
            &mut pmi,
            0,
            put,
            &[tell(0, "cmd=put_result rc=0 msg=success")],
        );
        check(
            &mut pmi,
            0,
            put,
            &[tell(0, "cmd=put_result rc=-1 msg=duplicate_key")],
        );
        check(&mut pmi, 0, "cmd=barrier_in", &[]);
        let out = "cmd=barrier_out";
        check(&mut pmi, 1, "cmd=barrier_in", &[tell(0, out), tell(1, out)]);
        let got = "cmd=get_result rc=0 msg=success value=tcp:1.2.3.4=5";
        check(&mut pmi, 1, "cmd=get kvsname=glu key=P0", &[tell(1, got)]);
        let none = "cmd=get_result rc=-1 msg=key_not_found value=unknown";
        check(&mut pmi, 1, "cmd=get kvsname=glu key=P1", &[tell(1, none)]);
        // Before the last one runs nobody knows where all are.
        let mapping = "cmd=get kvsname=glu key=PMI_process_mapping";
        assert_eq!(pmi.started(1, NodeId(3)), []);
        check(&mut pmi, 1, mapping, &[]);
        let known = "cmd=get_result rc=0 msg=success value=(vector,(0,1,1),(1,1,1))";
        assert_eq!(pmi.started(0, NodeId(2)), [tell(1, known)]);
        check(&mut pmi, 0, mapping, &[tell(0, known)]);
        check(&mut pmi, 0, "cmd=finalize", &[tell(0, "cmd=finalize_ack")]);
        assert_eq!(pmi.ended(0), []);
    }

    #[test]
    fn processes_of_a_node_are_told_together() {
        let mut pmi = Pmi::new(5);
        for (process, node) in [(0, 7), (1, 7), (2, 9), (3, 7), (4, 7)] {
            pmi.started(process, NodeId(node));
        }
        assert_eq!(pmi.mapping(), "(vector,(0,1,2),(1,1,1),(0,1,2))");
    }

    #[test]
    fn nobody_waits_for_who_is_gone() {
        let ends = |todo: &[Do]| matches!(todo, [Do::End(_)]);
        let mut pmi = Pmi::new(2);
        pmi.take(0, b"cmd=init pmi_version=1 pmi_subversion=1\n");
        assert!(ends(&pmi.ended(0)), "it has not said finalize");
        let mut pmi = Pmi::new(2);
        pmi.take(0, b"cmd=barrier_in\n");
        assert!(ends(&pmi.ended(1)), "the other waits");
        let mut pmi = Pmi::new(2);
        assert_eq!(pmi.ended(1), []);
        assert!(
            ends(&pmi.take(0, b"cmd=barrier_in\n")),
            "the other will never come"
        );
    }

    #[test]
    fn lines_come_in_pieces_and_nonsense_ends_all() {
        let mut pmi = Pmi::new(1);
        assert_eq!(pmi.take(0, b"cmd=get_app"), []);
        let answers = [tell(0, "cmd=appnum appnum=0"), tell(0, "cmd=barrier_out")];
        assert_eq!(pmi.take(0, b"num\ncmd=barrier_in\n"), answers);
        for nonsense in ["hello", "cmd=spawn", "cmd="] {
            let todo = pmi.take(0, format!("{nonsense}\n").as_bytes());
            assert!(matches!(&todo[..], [Do::End(_)]), "{nonsense}");
        }
        let todo = pmi.take(0, &vec![b'x'; LINE_BYTES_MAX + 1]);
        assert!(matches!(&todo[..], [Do::End(_)]));
    }
}
