//! Whose turn it is, and where.
//!
//! Jobs start in the order of their priority, then of their numbers, as soon as enough processors are free. One that
//! needs more than are free lets others pass, but no longer than [`PATIENCE`]: then what gets free is for it.

use super::{Action, Queue};
use crate::batch::job::{Dependency, Ending, Job, JobId, Kind, Outcome, Seconds, State, User};
use crate::nodes::NodeSet;
use consistency::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// How long a job lets others pass.
const PATIENCE: Seconds = 600;
/// How long others must want a node's processors until jobs that run there only when it is idle leave it.
const BUSY_FOR: Seconds = 5;
/// From which part of its processors on a node is not idle.
const BUSY_SHARE: f64 = 0.5;

/// A node as it is now.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::batch) struct Machine {
    pub(in crate::batch) node: NodeId,
    pub(in crate::batch) up: bool,
    pub(in crate::batch) cpus: u32,
    /// Processes that run or want to.
    pub(in crate::batch) runnable: f64,
    pub(in crate::batch) mem_free_mib: u64,
    /// Users who have jobs that wait, and may not run them there.
    pub(in crate::batch) closed_to: BTreeSet<u32>,
}

/// What is left of a node.
#[derive(Clone, Copy, Debug)]
struct Room {
    cpus: u32,
    mem_mib: u64,
    idle: bool,
}

/// What jobs use, counted once a step.
#[derive(Default)]
struct Usage {
    cpus: BTreeMap<NodeId, u32>,
    arrays: BTreeMap<u64, u32>,
    /// Jobs of a user in a partition.
    users: BTreeMap<(u32, Option<String>), u32>,
}

impl Usage {
    fn add(&mut self, job: &Job, on: &[NodeId]) {
        for node in on {
            let cpus = self.cpus.entry(*node).or_default();
            *cpus = cpus.saturating_add(job.spec.cpus);
        }
        *self.arrays.entry(job.id.number).or_default() += 1;
        *self.users.entry(Self::user(job)).or_default() += 1;
    }

    fn user(job: &Job) -> (u32, Option<String>) {
        (job.user.uid, job.spec.partition.clone())
    }

    fn cpus(&self, node: NodeId) -> u32 {
        self.cpus.get(&node).copied().unwrap_or(0)
    }

    fn of_array(&self, job: &Job) -> u32 {
        self.arrays.get(&job.id.number).copied().unwrap_or(0)
    }

    fn of_user(&self, job: &Job) -> u32 {
        self.users.get(&Self::user(job)).copied().unwrap_or(0)
    }
}

/// Whether what a job waits for has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wait {
    Over,
    On,
    ForEver,
}

impl Queue {
    /// Returns the users of the jobs that wait.
    pub(in crate::batch) fn waiting_users(&self) -> BTreeSet<User> {
        let waiting = self.jobs.values();
        let waiting = waiting.filter(|job| matches!(job.state, State::Waiting { .. }));
        waiting.map(|job| job.user).collect()
    }

    /// Decides what is to be done now.
    pub(in crate::batch) fn step(&mut self, now: Seconds, machines: &[Machine]) -> Vec<Action> {
        let mut actions = Vec::new();
        self.rules.reservations.retain(|_, of| now < of.until);
        self.end_what_can_never_be(now);
        self.note_who_is_busy(now, machines);
        self.make_way(now, &mut actions);
        self.start(now, machines, &mut actions);
        actions
    }

    fn end_what_can_never_be(&mut self, now: Seconds) {
        let never = |job: &&Job| {
            let waits = matches!(job.state, State::Waiting { .. } | State::Held);
            waits && self.wait(&job.spec.after) == Wait::ForEver
        };
        let never: Vec<JobId> = self.jobs.values().filter(never).map(|job| job.id).collect();
        for id in never {
            let job = self.jobs.get_mut(&id).expect("it was found");
            job.reason = "what it waited for did not come to that".into();
            job.state = State::Ended {
                since: None,
                at: now,
                outcome: Outcome::Never,
            };
            self.changed.insert(id);
        }
    }

    fn wait(&self, after: &[Dependency]) -> Wait {
        let mut all = Wait::Over;
        for dependency in after {
            for job in self.all_of(dependency.job) {
                let one = match (dependency.kind, &job.state) {
                    (Kind::AfterOk, State::Ended { outcome, .. }) if !outcome.is_success() => {
                        Wait::ForEver
                    }
                    (Kind::AfterNotOk, State::Ended { outcome, .. }) if outcome.is_success() => {
                        Wait::ForEver
                    }
                    (_, State::Ended { .. }) | (Kind::After, State::Running { .. }) => Wait::Over,
                    _ => Wait::On,
                };
                match one {
                    Wait::ForEver => return one,
                    Wait::On => all = one,
                    Wait::Over => {}
                }
            }
        }
        all
    }

    /// Returns a job, or all of an array.
    fn all_of(&self, number: u64) -> impl Iterator<Item = &Job> {
        let index = None;
        // The number alone is the first of its kind.
        let (first, next) = (number, number.saturating_add(1));
        let [first, next] = [first, next].map(|number| JobId { number, index });
        self.jobs.range(first..next).map(|(_, job)| job)
    }

    /// Returns what runs now.
    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for job in self.jobs.values() {
            if let State::Running { on, .. } = &job.state {
                usage.add(job, on);
            }
        }
        usage
    }

    fn note_who_is_busy(&mut self, now: Seconds, machines: &[Machine]) {
        let usage = self.usage();
        for machine in machines {
            let others = machine.runnable - f64::from(usage.cpus(machine.node));
            if others >= f64::from(machine.cpus) * BUSY_SHARE {
                self.busy.entry(machine.node).or_insert(now);
            } else {
                self.busy.remove(&machine.node);
            }
        }
    }

    /// Has jobs end whose time is over, and leave nodes that others are entitled to (B3).
    fn make_way(&mut self, now: Seconds, actions: &mut Vec<Action>) {
        let Self {
            jobs,
            rules,
            busy,
            changed,
            ..
        } = self;
        for job in jobs.values_mut() {
            let State::Running {
                since,
                on,
                ending: ending @ None,
            } = &mut job.state
            else {
                continue;
            };
            if job.spec.time.is_some_and(|time| *since + time <= now) {
                *ending = Some(Ending::TimedOut);
                actions.push(Action::End(job.id));
                changed.insert(job.id);
                continue;
            }
            let reserved = |node: &NodeId| {
                let mut all = rules.reservations.iter();
                all.find(|(_, of)| of.excludes(job.user.uid, *node, now, now))
            };
            let wanted = |node: &&NodeId| {
                job.spec.when_idle && busy.get(node).is_some_and(|since| since + BUSY_FOR <= now)
            };
            job.reason = if let Some((name, _)) = on.iter().find_map(reserved) {
                format!("it had to leave a node that is reserved: {name}")
            } else if let Some(node) = on.iter().find(wanted) {
                format!("it had to leave node {node}, which others use")
            } else {
                continue;
            };
            *ending = Some(Ending::PutBack);
            actions.push(Action::End(job.id));
            changed.insert(job.id);
        }
    }

    fn start(&mut self, now: Seconds, machines: &[Machine], actions: &mut Vec<Action>) {
        let mut usage = self.usage();
        let room = |machine: &Machine| Room {
            cpus: machine.cpus.saturating_sub(usage.cpus(machine.node)),
            mem_mib: machine.mem_free_mib,
            idle: !self.busy.contains_key(&machine.node),
        };
        let up = machines.iter().filter(|machine| machine.up);
        let mut rooms: BTreeMap<NodeId, Room> = up.map(|of| (of.node, room(of))).collect();
        let waiting = self
            .jobs
            .values()
            .filter(|job| matches!(job.state, State::Waiting { .. }));
        let mut turns: Vec<(i64, JobId)> =
            waiting.map(|job| (-self.priority(job), job.id)).collect();
        turns.sort_unstable();
        for (_, id) in turns {
            let job = &self.jobs[&id];
            let turn = self.may_start(now, job, &usage);
            let waits_for_room = turn.is_ok();
            let found = turn.and_then(|()| {
                let closed = |of: &&Machine| of.closed_to.contains(&job.user.uid);
                let closed = machines.iter().filter(closed).map(|of| of.node).collect();
                let nodes = self.find_room(now, job, &rooms, &closed);
                nodes.ok_or_else(|| why_not(job, machines))
            });
            let job = self.jobs.get_mut(&id).expect("it was found");
            match found {
                Ok(on) => {
                    for node in &on {
                        let room = rooms.get_mut(node).expect("it was found there");
                        room.cpus -= job.spec.cpus;
                        room.mem_mib -= job.spec.mem_mib;
                    }
                    usage.add(job, &on);
                    job.starts += 1;
                    job.reason.clear();
                    actions.push(Action::Start(id, on.clone()));
                    job.state = State::Running {
                        since: now,
                        on,
                        ending: None,
                    };
                    self.changed.insert(id);
                }
                Err(why) => {
                    if job.reason != why {
                        job.reason = why;
                        self.changed.insert(id);
                    }
                    let impatient = job.submitted + PATIENCE <= now && !job.spec.when_idle;
                    if waits_for_room && impatient {
                        break;
                    }
                }
            }
        }
    }

    fn priority(&self, job: &Job) -> i64 {
        let partition = job.spec.partition.as_ref();
        let partition = partition.and_then(|name| self.rules.partitions.get(name));
        i64::from(job.spec.priority) + partition.map_or(0, |of| i64::from(of.priority))
    }

    /// Tells why it is not a job's turn whatever is free.
    fn may_start(&self, now: Seconds, job: &Job, usage: &Usage) -> Result<(), String> {
        let State::Waiting { not_before } = job.state else {
            return Err(String::new());
        };
        if now < not_before {
            return Err(job.reason.clone());
        }
        if let Some(begin) = job.spec.begin.filter(|&begin| now < begin) {
            return Err(format!(
                "begins in {} s",
                begin.saturating_sub(now).div_ceil(60) * 60
            ));
        }
        if self.wait(&job.spec.after) != Wait::Over {
            return Err("waits for other jobs".into());
        }
        if let Some(limit) = job.spec.array_limit
            && usage.of_array(job) >= limit
        {
            return Err(format!("{limit} of its array run"));
        }
        let Some(name) = &job.spec.partition else {
            return Ok(());
        };
        let Some(partition) = self.rules.partitions.get(name) else {
            return Err(format!("there is no partition `{name}` any more"));
        };
        match partition.jobs_per_user {
            Some(limit) if usage.of_user(job) >= limit => {
                Err(format!("{limit} jobs of its owner run in {name}"))
            }
            _ => Ok(()),
        }
    }

    /// Returns a node for each of a job's processes, the emptiest first (B2).
    fn find_room(
        &self,
        now: Seconds,
        job: &Job,
        rooms: &BTreeMap<NodeId, Room>,
        closed: &BTreeSet<NodeId>,
    ) -> Option<Vec<NodeId>> {
        let spec = &job.spec;
        let until = now + spec.time.unwrap_or(0);
        let reserved = |node| {
            let mut all = self.rules.reservations.values();
            all.any(|of| of.excludes(job.user.uid, node, now, until))
        };
        let partition = spec
            .partition
            .as_ref()
            .and_then(|name| self.rules.partitions.get(name));
        let mut rooms: BTreeMap<NodeId, Room> = rooms
            .iter()
            .filter(|(node, room)| {
                is_meant(job, **node)
                    && !closed.contains(node)
                    && partition.is_none_or(|partition| partition.has(**node))
                    && !reserved(**node)
                    && (room.idle || !spec.when_idle)
            })
            .map(|(node, room)| (*node, *room))
            .collect();
        let place = |_| {
            let fits = |room: &Room| room.cpus >= spec.cpus && room.mem_mib >= spec.mem_mib;
            let fitting = rooms.iter_mut().filter(|(_, room)| fits(room));
            let (node, room) =
                fitting.max_by_key(|(node, room)| (room.cpus, std::cmp::Reverse(**node)))?;
            room.cpus -= spec.cpus;
            room.mem_mib -= spec.mem_mib;
            Some(*node)
        };
        (0..spec.count).map(place).collect()
    }
}

/// Returns whether a job's owner lets it run on a node.
fn is_meant(job: &Job, node: NodeId) -> bool {
    let has = |set: &Option<NodeSet>| set.as_ref().map(|set| set.contains(node));
    has(&job.spec.nodes).unwrap_or(true) && !has(&job.spec.exclude).unwrap_or(false)
}

/// Tells why there is no room for a job.
fn why_not(job: &Job, machines: &[Machine]) -> String {
    let need = u64::from(job.spec.count) * u64::from(job.spec.cpus);
    let closed = |of: &Machine| of.closed_to.contains(&job.user.uid);
    let meant = machines
        .iter()
        .filter(|of| of.up && is_meant(job, of.node) && !closed(of));
    let have: u64 = meant.map(|of| u64::from(of.cpus)).sum();
    if have < need {
        return format!("needs {need} processors, the nodes that it may use have {have}");
    }
    format!("waits for {need} free processors")
}
