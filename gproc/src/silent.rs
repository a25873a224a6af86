//! What is shown of a node that does not answer: its processes as they were, for a while, and then itself.
//!
//! Nobody can say then whether they live. They are never taken for ended: a listing has a *stand-in* for all of them, as
//! if a kernel thread of that node waited (`[node3-silent]`), and any other number of the node is an error, not absence.

use crate::pids::ClusterPid;
use crate::text;
use crate::wire::{Birth, Identity, Record};
use bytes::Bytes;
use consistency::NodeId;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the processes of a node that does not answer are shown as they were.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// No process that a node names began at the same time as its kernel.
const STAND_IN_BIRTH: Birth = Birth(0);

/// What a node said last.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Its processes, and when it was asked for them.
    pub(crate) processes: Option<(Instant, Arc<Vec<Record>>)>,
    /// When it did not answer.
    pub(crate) silent: Option<Instant>,
}

impl Heard {
    /// Returns what is shown of the node.
    pub(crate) fn as_it_was(&mut self, node: NodeId) -> Vec<Record> {
        self.processes
            .take_if(|(at, _)| at.elapsed() >= SILENCE_MAX);
        match &self.processes {
            Some((_, records)) => records.iter().map(Record::of_silent_node).collect(),
            None => stand_in(node).into_iter().collect(),
        }
    }

    /// Returns one process of that.
    pub(crate) fn process_as_it_was(&self, pid: ClusterPid) -> Option<Record> {
        self.silent?;
        let known = self.processes.as_ref();
        match known.filter(|(at, _)| at.elapsed() < SILENCE_MAX) {
            Some((_, records)) => {
                let place = records.binary_search_by_key(&pid, |record| record.identity.pid);
                Some(records[place.ok()?].of_silent_node())
            }
            None => stand_in(pid.home()).filter(|record| record.identity.pid == pid),
        }
    }
}

impl Record {
    fn of_silent_node(&self) -> Self {
        let (stat, status) = text::of_silent_node(&self.stat, &self.status);
        Self {
            stat: stat.into(),
            status: status.into(),
            ..self.clone()
        }
    }
}

impl Identity {
    /// Returns whether it stands for the processes of a node of which nothing is known.
    pub(crate) fn is_stand_in(&self) -> bool {
        self.pid.may_be_stand_in() && self.birth == STAND_IN_BIRTH
    }
}

fn stand_in(node: NodeId) -> Option<Record> {
    let pid = ClusterPid::stand_in(node)?;
    let (stat, status) = text::stand_in(pid.number(), &format!("node{node}-silent"));
    Some(Record {
        identity: Identity {
            pid,
            birth: STAND_IN_BIRTH,
            uid: 0,
            gid: 0,
            hidden: None,
        },
        stat: stat.into(),
        status: status.into(),
        cmdline: Some(Bytes::new()),
    })
}
