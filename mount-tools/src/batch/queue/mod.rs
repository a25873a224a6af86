//! The queue: what users may ask of it, and what becomes of its jobs. Pure: time, nodes and ends of jobs are told.
//!
//! | state | ask | step | ended | recover |
//! | --- | --- | --- | --- | --- |
//! | held | release: waiting; cancel: ended | - | - | - |
//! | waiting | hold: held; cancel: ended | its turn: running; can never be: ended | - | - |
//! | running | cancel: ending | must leave: ending, to be put back; its time is over: ending | ended; lost: waiting again | waiting again, after [`FENCE`] |
//! | running, ending | cancel: to be cancelled | - | cancelled, or waiting | the same |
//! | ended | - | after [`KEPT`]: to the history | - | - |
//!
//! - B1: a job runs at most once at a time.
//! - B2: no node has more processors in use by jobs than it has.
//! - B3: during a reservation, none but jobs of its users run on its nodes.
//! - B4: only its owner and root change a job.

mod plan;
#[cfg(test)]
mod tests;

use super::job::{ARRAY_MAX, COUNT_MAX, Ending, Job, JobId, Outcome, Seconds, Spec, State, User};
use super::rules::{Partition, Reservation, check_name};
use consistency::NodeId;
pub(super) use plan::Machine;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How long a job that another scheduler has started may still run: until that scheduler has noticed that it is cut
/// off, and the nodes of the job that nobody speaks for it any more.
pub(super) const FENCE: Seconds = 20;
/// How long jobs that have ended are in the queue.
pub(super) const KEPT: Seconds = 24 * 3600;
/// How often a job is started at most.
const STARTS_MAX: u32 = 5;
/// Most jobs that have not ended, of all users.
const JOBS_MAX: usize = 50_000;
const TEXT_BYTES_MAX: usize = 1 << 20;

/// All jobs and rules.
#[derive(Debug, Default)]
pub(super) struct Queue {
    jobs: BTreeMap<JobId, Job>,
    rules: Rules,
    /// The highest number that was given.
    last: u64,
    /// Since when programs that are no jobs of the queue want a node's processors.
    busy: BTreeMap<NodeId, Seconds>,
    changed: BTreeSet<JobId>,
}

/// Partitions and reservations by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rules {
    pub(super) partitions: BTreeMap<String, Partition>,
    pub(super) reservations: BTreeMap<String, Reservation>,
}

/// What users ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    Submit(Box<Spec>),
    Cancel(Vec<JobId>),
    Hold(Vec<JobId>),
    Release(Vec<JobId>),
    /// Makes or replaces one; none: removes it.
    Partition(String, Option<Partition>),
    /// As above.
    Reservation(String, Option<Reservation>),
}

/// What they are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Answer {
    Submitted(u64),
    Done,
    /// Why not.
    Refused(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Start its processes, on each node as often as it is there.
    Start(JobId, Vec<NodeId>),
    /// End its processes.
    End(JobId),
}

impl Queue {
    /// Returns a queue as it was kept; `last` is the highest number that was given.
    pub(super) fn new(jobs: impl IntoIterator<Item = Job>, rules: Rules, last: u64) -> Self {
        let jobs: BTreeMap<JobId, Job> = jobs.into_iter().map(|job| (job.id, job)).collect();
        let known = jobs.keys().map(|id| id.number).max().unwrap_or(0);
        Self {
            jobs,
            rules,
            last: last.max(known),
            ..Self::default()
        }
    }

    /// Returns a job.
    pub(super) fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Returns partitions and reservations.
    pub(super) const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the highest number that was given.
    pub(super) const fn last(&self) -> u64 {
        self.last
    }

    /// Returns the jobs that have changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<JobId> {
        std::mem::take(&mut self.changed)
    }

    /// Answers a user; `actions` gets what is to be done now.
    pub(super) fn ask(
        &mut self,
        now: Seconds,
        user: User,
        request: Request,
        actions: &mut Vec<Action>,
    ) -> Answer {
        let done = |done: Result<(), String>| done.map(|()| Answer::Done);
        let answer = match request {
            Request::Submit(spec) => self.submit(now, user, *spec).map(Answer::Submitted),
            Request::Cancel(ids) => done(self.cancel(now, user, &ids, actions)),
            Request::Hold(ids) => done(self.for_each(user, &ids, |job| {
                if matches!(job.state, State::Waiting { .. }) {
                    job.state = State::Held;
                    job.reason = "held".into();
                }
            })),
            Request::Release(ids) => done(self.for_each(user, &ids, |job| {
                if job.state == State::Held {
                    job.state = State::Waiting { not_before: now };
                    job.reason.clear();
                }
            })),
            Request::Partition(name, partition) => done(self.set_partition(user, name, partition)),
            Request::Reservation(name, reservation) => {
                done(self.set_reservation(now, user, name, reservation))
            }
        };
        answer.unwrap_or_else(Answer::Refused)
    }

    /// Takes note of the end of a job's processes.
    /// `why`: what is to be said of it.
    pub(super) fn ended(&mut self, now: Seconds, id: JobId, outcome: Outcome, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let State::Running { since, ending, .. } = job.state else {
            return;
        };
        let again = job.spec.again && job.starts < STARTS_MAX;
        job.state = match (ending, outcome) {
            (Some(Ending::PutBack), _) => State::Waiting { not_before: now },
            (None, Outcome::Lost) if again => {
                job.reason = "a node was lost: it is started again".into();
                State::Waiting { not_before: now }
            }
            (ending, outcome) => State::Ended {
                since: Some(since),
                at: now,
                outcome: match ending {
                    Some(Ending::Cancelled) => Outcome::Cancelled,
                    Some(Ending::TimedOut) => Outcome::TimedOut,
                    _ => outcome,
                },
            },
        };
        if job.state.has_ended() {
            job.reason = why;
        }
        self.changed.insert(id);
    }

    /// Takes over from a scheduler that is gone, with the jobs that it had running.
    pub(super) fn recover(&mut self, now: Seconds) {
        for job in self.jobs.values_mut() {
            let State::Running { since, ending, .. } = job.state else {
                continue;
            };
            let cancelled = ending == Some(Ending::Cancelled);
            job.state = if job.spec.again && !cancelled && job.starts < STARTS_MAX {
                job.reason =
                    "the node that it was started from was lost: it is started again".into();
                State::Waiting {
                    not_before: now + FENCE,
                }
            } else {
                let outcome = if cancelled {
                    Outcome::Cancelled
                } else {
                    Outcome::Lost
                };
                State::Ended {
                    since: Some(since),
                    at: now,
                    outcome,
                }
            };
            self.changed.insert(job.id);
        }
    }

    /// Lets go of jobs that ended long ago, for the history.
    pub(super) fn forget(&mut self, now: Seconds) -> Vec<Job> {
        let waiting = self.jobs.values().filter(|job| !job.state.has_ended());
        let needed: BTreeSet<u64> = waiting
            .flat_map(|job| {
                job.spec
                    .after
                    .iter()
                    .map(|after| after.job)
                    .chain([job.id.number])
            })
            .collect();
        let old = |job: &&Job| match job.state {
            State::Ended { at, .. } => at + KEPT <= now && !needed.contains(&job.id.number),
            _ => false,
        };
        let old: Vec<JobId> = self.jobs.values().filter(old).map(|job| job.id).collect();
        old.iter().filter_map(|id| self.jobs.remove(id)).collect()
    }

    fn submit(&mut self, now: Seconds, user: User, mut spec: Spec) -> Result<u64, String> {
        self.check(user, &spec)?;
        let partition = spec.partition.as_ref();
        let partition = partition.and_then(|name| self.rules.partitions.get(name));
        spec.time = spec.time.or_else(|| partition.and_then(|of| of.time_max));
        let tasks = spec.array.len().max(1);
        if self
            .jobs
            .values()
            .filter(|job| !job.state.has_ended())
            .count()
            + tasks
            > JOBS_MAX
        {
            return Err(format!("the queue is full: {JOBS_MAX} jobs"));
        }
        self.last += 1;
        let number = self.last;
        let indices = match spec.array.is_empty() {
            true => vec![None],
            false => spec.array.iter().copied().map(Some).collect(),
        };
        for index in indices {
            let id = JobId { number, index };
            let state = match spec.held {
                true => State::Held,
                false => State::Waiting { not_before: now },
            };
            let job = Job {
                id,
                user,
                spec: spec.clone(),
                submitted: now,
                state,
                starts: 0,
                reason: String::new(),
            };
            self.jobs.insert(id, job);
            self.changed.insert(id);
        }
        Ok(number)
    }

    /// Refuses what can never run, as far as that is known.
    fn check(&self, user: User, spec: &Spec) -> Result<(), String> {
        let text: usize = spec.command.iter().map(String::len).sum();
        if spec.command.is_empty() || text > TEXT_BYTES_MAX {
            return Err("the command is empty, or longer than 1 MiB".into());
        }
        if !spec.directory.is_absolute() {
            return Err("the working directory is no absolute path".into());
        }
        if !(1..=COUNT_MAX).contains(&spec.count) || spec.cpus == 0 {
            return Err(format!(
                "1 to {COUNT_MAX} processes of 1 processor and more"
            ));
        }
        if spec.array.len() > ARRAY_MAX as usize || spec.array.iter().any(|&at| at > ARRAY_MAX) {
            return Err(format!(
                "arrays have at most {ARRAY_MAX} jobs and indices up to {ARRAY_MAX}"
            ));
        }
        if !spec.array.is_sorted_by(|a, b| a < b) {
            return Err("the indices of an array ascend".into());
        }
        for after in &spec.after {
            if !self.jobs.keys().any(|id| id.number == after.job) {
                return Err(format!("there is no job {} to wait for", after.job));
            }
        }
        let Some(name) = &spec.partition else {
            return Ok(());
        };
        let known = self.rules.partitions.get(name);
        let partition = known.ok_or_else(|| format!("there is no partition `{name}`"))?;
        if !partition.admits(user.uid) {
            return Err(format!("the partition `{name}` is not for you"));
        }
        match (spec.time, partition.time_max) {
            (Some(time), Some(most)) if time > most => Err(format!(
                "jobs of the partition `{name}` run for at most {most} s"
            )),
            _ => Ok(()),
        }
    }

    fn cancel(
        &mut self,
        now: Seconds,
        user: User,
        ids: &[JobId],
        actions: &mut Vec<Action>,
    ) -> Result<(), String> {
        self.for_each(user, ids, |job| match &mut job.state {
            State::Running { ending, .. } => {
                if ending.is_none() {
                    actions.push(Action::End(job.id));
                }
                *ending = Some(Ending::Cancelled);
            }
            State::Waiting { .. } | State::Held => {
                job.reason.clear();
                job.state = State::Ended {
                    since: None,
                    at: now,
                    outcome: Outcome::Cancelled,
                };
            }
            State::Ended { .. } => {}
        })
    }

    /// Changes the jobs that a user means, or none (B4).
    fn for_each(
        &mut self,
        user: User,
        ids: &[JobId],
        mut change: impl FnMut(&mut Job),
    ) -> Result<(), String> {
        let mut meant = BTreeSet::new();
        for id in ids {
            let before = meant.len();
            for job in self.jobs.values().filter(|job| id.means(job.id)) {
                if !user.may_change(job.user.uid) {
                    return Err(format!("job {} is not yours", job.id));
                }
                meant.insert(job.id);
            }
            if meant.len() == before {
                return Err(format!("there is no job {id}"));
            }
        }
        for id in meant {
            change(self.jobs.get_mut(&id).expect("it was found"));
            self.changed.insert(id);
        }
        Ok(())
    }

    fn set_partition(
        &mut self,
        user: User,
        name: String,
        partition: Option<Partition>,
    ) -> Result<(), String> {
        check_name(&name)?;
        if user.uid != 0 {
            return Err("only root makes partitions".into());
        }
        match partition {
            Some(partition) => drop(self.rules.partitions.insert(name, partition)),
            None if self.rules.partitions.remove(&name).is_none() => {
                return Err(format!("there is no partition `{name}`"));
            }
            None => {}
        }
        Ok(())
    }

    fn set_reservation(
        &mut self,
        now: Seconds,
        user: User,
        name: String,
        reservation: Option<Reservation>,
    ) -> Result<(), String> {
        check_name(&name)?;
        let old = self.rules.reservations.get(&name);
        if let Some(old) = old
            && !user.may_change(old.owner)
        {
            return Err(format!("the reservation `{name}` is not yours"));
        }
        let Some(reservation) = reservation else {
            let removed = self.rules.reservations.remove(&name);
            let none = || format!("there is no reservation `{name}`");
            return removed.map(drop).ok_or_else(none);
        };
        let owns = |node| {
            let mut all = self.rules.partitions.values();
            all.any(|partition| partition.owners.contains(&user.uid) && partition.has(node))
        };
        if user.uid != 0
            && let Some(node) = reservation.nodes.iter().find(|&node| !owns(node))
        {
            return Err(format!("node {node} is in no partition that you own"));
        }
        if reservation.until <= now.max(reservation.from) {
            return Err("the reservation ends before it begins, or is over".into());
        }
        let others = self.rules.reservations.iter();
        let crossing = others
            .filter(|(other, _)| **other != name)
            .find(|(_, other)| {
                let nodes = reservation
                    .nodes
                    .iter()
                    .any(|node| other.nodes.contains(node));
                nodes && other.from < reservation.until && reservation.from < other.until
            });
        if let Some((other, _)) = crossing {
            return Err(format!(
                "the reservation `{other}` has some of these nodes at that time"
            ));
        }
        let owner = user.uid;
        let reservation = Reservation {
            owner,
            ..reservation
        };
        self.rules.reservations.insert(name, reservation);
        Ok(())
    }
}
