//! What the leader remembers of the repair under its reign: who is away since when, what is under way, what was
//! reported, how far it has looked. Sans-io.

use super::plan::{Finding, Job, View};
use crate::server::state::Listed;
use consistency::wire::chunk::VERIFY_CHUNKS_MAX;
use consistency::wire::request::{NodeStatus, RepairStatus};
use consistency::{ChunkId, Epoch, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How many jobs a node takes part in at a time, as a source or a target.
const JOBS_PER_NODE: usize = 4;
/// How long a chunk rests after a job has failed.
const REST: Duration = Duration::from_secs(5);
/// How many reports of bad copies are remembered; the nodes report again what they find again.
const REPORTS_MAX: usize = 100_000;
/// Moves that only make things better, at a time.
const IMPROVEMENTS_MAX: usize = 2;

/// How a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// Nothing was listed otherwise: it is tried again later.
    Failed,
    /// Its step may still be committed: nothing else happens to the chunk under this reign.
    Unknown,
}

/// See the module page.
#[derive(Debug)]
pub(crate) struct Book {
    reign: Option<Epoch>,
    /// Since when a node has had no session.
    away: BTreeMap<NodeId, Instant>,
    gone: BTreeSet<NodeId>,
    /// Chunks with a job under way.
    busy: BTreeSet<ChunkId>,
    /// Jobs of each node.
    jobs: BTreeMap<NodeId, usize>,
    improvements: BTreeSet<ChunkId>,
    rests: BTreeMap<ChunkId, Instant>,
    reports: BTreeSet<(NodeId, ChunkId)>,
    /// Where to look next.
    cursor: ChunkId,
    pass: Pass,
    /// The last pass found something to do.
    pressed: bool,
    status: RepairStatus,
    /// What the nodes were like when it looked last.
    seen: Vec<(NodeId, bool, bool, bool)>,
}

/// What was found since looking began at the first chunk.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    lacking: u64,
    unreachable: u64,
    todo: bool,
    /// Something came or went meanwhile: what was counted says nothing.
    disturbed: bool,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            reign: None,
            away: BTreeMap::new(),
            gone: BTreeSet::new(),
            busy: BTreeSet::new(),
            jobs: BTreeMap::new(),
            improvements: BTreeSet::new(),
            rests: BTreeMap::new(),
            reports: BTreeSet::new(),
            cursor: ChunkId(0),
            pass: Pass::default(),
            pressed: false,
            status: RepairStatus::default(),
            seen: Vec::new(),
        }
    }
}

impl Book {
    /// Begins anew under a reign.
    pub(crate) fn begin(&mut self, reign: Option<Epoch>) {
        *self = Self {
            reign,
            ..Self::default()
        };
    }

    pub(crate) const fn reign(&self) -> Option<Epoch> {
        self.reign
    }

    /// Looks who is there; returns whether all chunks are to be looked at again. Fills in who is gone: nobody waits for
    /// those that are `shut_out`.
    pub(crate) fn note_nodes(
        &mut self,
        now: Instant,
        view: &mut View,
        gone_after: Duration,
        shut_out: &BTreeSet<NodeId>,
    ) -> bool {
        for status in &view.nodes {
            if status.up {
                self.away.remove(&status.node);
            } else {
                self.away.entry(status.node).or_insert(now);
            }
        }
        let gone = self.away.iter().filter(|(node, since)| {
            now.duration_since(**since) >= gone_after || shut_out.contains(node)
        });
        self.gone = gone.map(|(node, _)| *node).collect();
        view.gone.clone_from(&self.gone);
        let seen = view.nodes.iter().map(|status| {
            let gone = self.gone.contains(&status.node);
            (status.node, status.up, gone, status.draining)
        });
        let seen = seen.collect();
        let changed = self.seen != seen;
        self.seen = seen;
        if changed {
            self.look_again();
        }
        changed
    }

    /// Has all chunks looked at again.
    pub(crate) fn look_again(&mut self) {
        self.status.complete = false;
        self.pass.disturbed = self.cursor != ChunkId(0);
    }

    pub(crate) fn is_gone(&self, node: NodeId) -> bool {
        self.gone.contains(&node)
    }

    /// Returns the chunks with a job under way: copies of theirs are no orphans (D3).
    pub(crate) fn busy(&self) -> BTreeSet<ChunkId> {
        self.busy.clone()
    }

    /// Returns how it stands; `nodes` are as they are now, which it may not have seen yet.
    pub(crate) fn status(&self, nodes: &[NodeStatus]) -> RepairStatus {
        let now = nodes
            .iter()
            .map(|status| (status.node, status.up, status.draining));
        let seen = self
            .seen
            .iter()
            .map(|(node, up, _, draining)| (*node, *up, *draining));
        RepairStatus {
            complete: self.status.complete && now.eq(seen),
            copying: self.busy.len() as u64,
            ..self.status
        }
    }

    /// Takes a node's word that its copies may be bad.
    pub(crate) fn report(&mut self, node: NodeId, chunks: impl IntoIterator<Item = ChunkId>) {
        let room = REPORTS_MAX.saturating_sub(self.reports.len());
        let new = chunks.into_iter().take(room);
        self.reports.extend(new.map(|chunk| (node, chunk)));
    }

    /// Returns where to look next.
    pub(crate) const fn cursor(&self) -> ChunkId {
        self.cursor
    }

    /// Returns what is known to be to do: whether it is worth looking again soon.
    pub(crate) fn is_pressed(&self) -> bool {
        !self.status.complete || self.pressed || !self.reports.is_empty()
    }

    /// Looks at some chunks from the cursor on, and begins what is to be done. `end`: no chunks follow.
    pub(crate) fn plan(
        &mut self,
        now: Instant,
        view: &View,
        chunks: impl IntoIterator<Item = Listed>,
        end: bool,
    ) -> Vec<Job> {
        let mut begun = Vec::new();
        self.rests.retain(|_, until| *until > now);
        let improving = self.status.complete && !self.pressed;
        for chunk in chunks {
            self.cursor = ChunkId(chunk.id.0 + 1);
            let idle = !self.busy.contains(&chunk.id) && !self.rests.contains_key(&chunk.id);
            let finding = view.look(&chunk, |node| self.is_free(node));
            let Finding {
                lacking,
                unreachable,
                todo,
                job,
            } = finding;
            self.pass.lacking += u64::from(lacking);
            self.pass.unreachable += u64::from(unreachable);
            self.pass.todo |= todo || !idle;
            let better = |book: &Self| {
                let few = book.improvements.len() < IMPROVEMENTS_MAX;
                let may = improving && few && !todo;
                may.then(|| view.improve(&chunk, |node| book.is_free(node)))?
            };
            let job = match (idle, job) {
                (false, _) => None,
                (true, Some(job)) => Some(job),
                (true, None) => better(self).inspect(|_| {
                    self.improvements.insert(chunk.id);
                }),
            };
            if let Some(job) = job {
                self.start(&job);
                begun.push(job);
            }
        }
        if end {
            self.end_pass();
        }
        begun
    }

    fn end_pass(&mut self) {
        let pass = std::mem::take(&mut self.pass);
        self.cursor = ChunkId(0);
        self.status.complete = !pass.disturbed;
        if !pass.disturbed {
            self.status.lacking = pass.lacking;
            self.status.unreachable = pass.unreachable;
        }
        self.pressed = pass.todo;
    }

    /// Begins to ask a node again about copies that it has reported. Of a chunk with a job under way the answer would
    /// say nothing.
    pub(crate) fn checks(&mut self, now: Instant, view: &View) -> Vec<Job> {
        self.rests.retain(|_, until| *until > now);
        let mut by_node: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
        let idle = |chunk: &ChunkId| !self.busy.contains(chunk) && !self.rests.contains_key(chunk);
        let up = |node: NodeId| view.is_up(node);
        let mut taken = BTreeSet::new();
        for (node, chunk) in &self.reports {
            let chunks = by_node.entry(*node).or_default();
            let fits = chunks.len() < VERIFY_CHUNKS_MAX && idle(chunk) && up(*node);
            if fits && self.is_free(*node) && taken.insert(*chunk) {
                chunks.push(*chunk);
            }
        }
        let full = by_node.into_iter().filter(|(_, chunks)| !chunks.is_empty());
        let checks = full.map(|(node, chunks)| Job::Check { node, chunks });
        let checks: Vec<Job> = checks.collect();
        for check in &checks {
            if let Job::Check { node, chunks } = check {
                for chunk in chunks {
                    self.reports.remove(&(*node, *chunk));
                }
            }
            self.start(check);
        }
        // Who is not there has nothing to say.
        self.reports.retain(|(node, _)| up(*node));
        checks
    }

    fn is_free(&self, node: NodeId) -> bool {
        self.jobs.get(&node).copied().unwrap_or(0) < JOBS_PER_NODE
    }

    fn start(&mut self, job: &Job) {
        self.busy.extend(job.chunks());
        for node in job.nodes() {
            *self.jobs.entry(node).or_default() += 1;
        }
    }

    /// A job has ended.
    pub(crate) fn end(&mut self, now: Instant, job: &Job, outcome: Outcome) {
        for node in job.nodes() {
            if let Some(jobs) = self.jobs.get_mut(&node) {
                *jobs = jobs.saturating_sub(1);
            }
        }
        for chunk in job.chunks() {
            if outcome != Outcome::Unknown {
                self.busy.remove(&chunk);
            }
            let improved = self.improvements.remove(&chunk);
            match outcome {
                // It was as it should be before, too.
                Outcome::Done if improved => {}
                Outcome::Done => self.look_again(),
                Outcome::Failed => drop(self.rests.insert(chunk, now + REST)),
                Outcome::Unknown => {}
            }
        }
    }
}

impl Job {
    fn chunks(&self) -> Vec<ChunkId> {
        match self {
            Self::Copy { chunk, .. } | Self::Trim { chunk, .. } => vec![*chunk],
            Self::Check { chunks, .. } => chunks.clone(),
        }
    }

    /// Returns the nodes that have work with it.
    fn nodes(&self) -> Vec<NodeId> {
        match self {
            Self::Copy { source, to, .. } => vec![*source, *to],
            Self::Trim { keep, .. } => keep.clone(),
            Self::Check { node, .. } => vec![*node],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consistency::wire::request::NodeReport;

    #[test]
    fn nobody_waits_for_a_node_that_was_shut_out() {
        let gone = |up, shut_out: &[u16]| {
            let status = |node| NodeStatus::new(NodeId(node), up, NodeReport::default());
            let mut view = View {
                nodes: [1, 2].map(status).to_vec(),
                ..View::default()
            };
            let shut_out = shut_out.iter().copied().map(NodeId).collect();
            let mut book = Book::default();
            book.note_nodes(
                Instant::now(),
                &mut view,
                Duration::from_secs(60),
                &shut_out,
            );
            view.gone.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(gone(false, &[]), []);
        assert_eq!(gone(false, &[2]), [NodeId(2)]);
        // It has a session, and so a certificate that is good.
        assert_eq!(gone(true, &[2]), []);
    }
}
