//! Decides a round.

use super::lasting::Lasting;
use super::{
    Answer, BUSY_FOR, Because, DEMAND_MIN, FAILED_FOR, Go, Job, MUCH_PART, NotMoved, Rules,
    SEEN_AFTER, SPARE_PART, Standing, View, Why,
};
use consistency::wire::node::NodeLoad;
use consistency::{Duration, Instant, NodeId};
use std::collections::{BTreeMap, VecDeque};

const MINUTE: Duration = Duration::from_millis(60_000);
/// Loads closer than this are the same.
const EPSILON: f64 = 1e-9;

/// Levels the jobs of a node.
#[derive(Debug, Default)]
pub(crate) struct Leveller {
    rules: Rules,
    /// LV1: what nodes have to do; of this one, beside its jobs.
    lasting: Lasting,
    /// LV3: when jobs were sent.
    begun: VecDeque<Instant>,
    /// What was sent and may not show yet.
    sent: Vec<Sent>,
    /// Jobs that are left alone until then.
    failed: BTreeMap<i32, (Instant, String)>,
    /// Nodes that have refused a job, until then.
    refused: BTreeMap<(i32, NodeId), Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    pid: i32,
    to: NodeId,
    at: Instant,
    demand: f64,
    memory_kib: u64,
}

/// A node as it will be when it feels what was sent.
#[derive(Clone, Copy, Debug)]
struct Seen {
    node: NodeId,
    takes: bool,
    demand: f64,
    cpus: f64,
    speed: f64,
    memory_kib: u64,
    available_kib: u64,
}

/// How good a move is, among those for the same reason.
type Rank = (Because, f64, f64);

impl Leveller {
    #[cfg(test)]
    pub(super) fn with_rules(rules: Rules) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// Returns what becomes of each job, by pid. What goes is taken as sent: [`Self::moved`] or [`Self::not_moved`] follows.
    pub(crate) fn decide(&mut self, now: Instant, view: &View) -> BTreeMap<i32, Answer> {
        self.forget(now);
        let here = view.nodes.iter().find(|node| node.node == view.here);
        let seen: Vec<Seen> = self.seen(now, view);
        let place = seen.iter().find(|seen| seen.node == view.here).copied();
        let mut answers = BTreeMap::new();
        let mut best: Option<(Rank, &Job, Go)> = None;
        for job in &view.jobs {
            let wish = match (may_go(job), here, place) {
                (Err(why), ..) => Err(why),
                (Ok(()), Some(here), Some(place)) => self.wish(now, job, here.state, place, &seen),
                (Ok(()), ..) => Err(Why::NotKnown),
            };
            let answer = match wish {
                Err(why) => why,
                Ok(_) if self.begun.len() >= self.rules.moves_per_minute => Why::Enough,
                Ok((rank, go)) => {
                    let better = best
                        .as_ref()
                        .is_none_or(|(than, ..)| comes_before(rank, *than));
                    if better {
                        best = Some((rank, job, go));
                    }
                    Why::Next
                }
            };
            answers.insert(job.pid, Answer::Stays(answer));
        }
        if let Some((_, job, go)) = best {
            answers.insert(job.pid, Answer::Goes(go));
            self.begun.push_back(now);
            self.sent.push(Sent {
                pid: job.pid,
                to: go.to,
                at: now,
                demand: job.demand,
                memory_kib: job.memory_kib,
            });
        }
        answers
    }

    /// Takes note that a job has gone.
    pub(crate) fn moved(&mut self, now: Instant, pid: i32) {
        if let Some(sent) = self.sent.iter_mut().rfind(|sent| sent.pid == pid) {
            sent.at = now;
        }
    }

    /// Takes note that a job has not gone.
    pub(crate) fn not_moved(&mut self, now: Instant, pid: i32, why: NotMoved) {
        let last = self.sent.iter().rposition(|sent| sent.pid == pid);
        let sent = last.map(|last| self.sent.remove(last));
        match why {
            NotMoved::Refused => {
                if let Some(sent) = sent {
                    self.refused.insert((pid, sent.to), now + FAILED_FOR);
                }
            }
            NotMoved::Busy => {
                let why = "it is moving already, or locked".to_owned();
                self.failed.insert(pid, (now + BUSY_FOR, why));
            }
            NotMoved::Ended => {}
            NotMoved::Tied => drop(self.begun.pop_back()),
            NotMoved::Failed(why) => {
                self.failed.insert(pid, (now + FAILED_FOR, why));
            }
        }
    }

    fn forget(&mut self, now: Instant) {
        self.failed.retain(|_, (until, _)| *until > now);
        self.refused.retain(|_, until| *until > now);
        let felt_after = self.rules.felt_after;
        self.sent.retain(|sent| now.since(sent.at) < felt_after);
        while self
            .begun
            .front()
            .is_some_and(|begun| now.since(*begun) >= MINUTE)
        {
            self.begun.pop_front();
        }
    }

    /// Returns the nodes that have told of themselves, with what was sent.
    fn seen(&mut self, now: Instant, view: &View) -> Vec<Seen> {
        let told = view.nodes.iter().filter(|node| node.load.cpus > 0);
        let of_jobs: f64 = view.jobs.iter().map(|job| job.demand).sum();
        let window = self.rules.lasting;
        told.map(|node| {
            let mut seen = Seen::new(node.node, &node.load);
            let is_here = node.node == view.here;
            seen.takes = node.state.takes() && !is_here;
            if !is_here {
                self.lasting.look(now, window, node.node, seen.demand);
                seen.demand = self.lasting.most(node.node);
            }
            for sent in &self.sent {
                if sent.to == node.node {
                    seen.demand += sent.demand;
                    seen.available_kib = seen.available_kib.saturating_sub(sent.memory_kib);
                } else if is_here && now.since(sent.at) < SEEN_AFTER {
                    seen.demand = (seen.demand - sent.demand).max(0.0);
                    seen.available_kib += sent.memory_kib;
                }
            }
            if is_here {
                let beside = (seen.demand - of_jobs).max(0.0);
                self.lasting.look(now, window, node.node, beside);
                seen.demand = of_jobs + self.lasting.least(node.node);
            }
            seen
        })
        .collect()
    }

    /// Returns where a job should go, or why it should not.
    fn wish(
        &self,
        now: Instant,
        job: &Job,
        state: super::State,
        here: Seen,
        seen: &[Seen],
    ) -> Result<(Rank, Go), Why> {
        // LV4
        if state.off {
            return Err(Why::Off);
        }
        if let Some((_, why)) = self.failed.get(&job.pid) {
            return Err(Why::Failed(why.clone()));
        }
        let fits = |there: &&Seen| {
            there.takes
                && there.has_room_for(job)
                && !self.refused.contains_key(&(job.pid, there.node))
        };
        let open: Vec<&Seen> = seen.iter().filter(fits).collect();
        let go = |to: NodeId, because| Go {
            pid: job.pid,
            to,
            because,
        };
        let leaves = match (state.drains, state.in_use && job.guest) {
            (true, _) => Some(Because::Drains),
            (false, true) => Some(Because::InUse),
            (false, false) => None,
        };
        if let Some(because) = leaves {
            let home = open.iter().find(|there| there.node == job.home);
            let best = open.iter().min_by(|a, b| {
                let (a, b) = (a.slowness_with(job), b.slowness_with(job));
                a.total_cmp(&b)
            });
            let to = home.or(best).ok_or(Why::NoNode)?.node;
            return Ok(((because, 0.0, 0.0), go(to, because)));
        }
        // LV5
        if here.is_short() && job.memory_kib >= here.memory_kib / MUCH_PART {
            let most = open.iter().max_by_key(|there| there.available_kib);
            let to = most.ok_or(Why::NoNode)?.node;
            #[expect(clippy::cast_precision_loss, reason = "it only orders")]
            let much = job.memory_kib as f64;
            return Ok(((Because::Memory, much, 0.0), go(to, Because::Memory)));
        }
        // LV2
        let age = now.since(job.since);
        if job.came && age < self.rules.residence {
            return Err(Why::Came);
        }
        if age < self.rules.age_min {
            return Err(Why::Young);
        }
        if job.demand < DEMAND_MIN {
            return Err(Why::Idle);
        }
        if open.is_empty() {
            return Err(Why::NoNode);
        }
        let gains = open
            .iter()
            .filter_map(|there| Some((self.gain(job, age, here, there)?, **there)));
        let best = gains.max_by(|(a, at), (b, bt)| {
            let close = (a - b).abs() < EPSILON;
            let order = if close {
                at.speed.total_cmp(&bt.speed)
            } else {
                a.total_cmp(b)
            };
            // Of equals the first.
            order.then(bt.node.cmp(&at.node))
        });
        let crowded = here.demand > here.cpus;
        match best {
            Some((gain, there)) => {
                let because = if crowded {
                    Because::Crowded
                } else {
                    Because::Faster
                };
                Ok(((because, gain, there.speed), go(there.node, because)))
            }
            None if crowded => Err(Why::NoGain),
            None => Err(Why::WellOff),
        }
    }

    /// Returns by how much less all are held up, if a job gains by a move (LV1).
    fn gain(&self, job: &Job, age: Duration, here: Seen, there: &Seen) -> Option<f64> {
        let (now, then) = (here.slowness(here.demand), there.slowness_with(job));
        if then > now * (1.0 - self.rules.gain) {
            return None;
        }
        let cost = self.rules.cost.0 + job.memory_kib / self.rules.kib_per_ms.max(1) * 1_000;
        #[expect(clippy::cast_precision_loss, reason = "times are far below 2^52 us")]
        let (age, cost) = (age.0 as f64, cost as f64);
        if age * (1.0 - then / now) <= cost {
            return None;
        }
        let (loses, adds) = (
            here.held_up(here.demand - job.demand, here.demand),
            there.held_up(there.demand, there.demand + job.demand),
        );
        (adds < loses * (1.0 - self.rules.hysteresis)).then_some(loses - adds)
    }
}

impl Seen {
    fn new(node: NodeId, load: &NodeLoad) -> Self {
        // A report may be nonsense; it must not win by that.
        let demand = if load.runnable.is_finite() {
            f64::from(load.runnable.max(0.0))
        } else {
            f64::MAX / 4.0
        };
        Self {
            node,
            takes: false,
            demand,
            cpus: f64::from(load.cpus.max(1)),
            speed: f64::from(load.speed.max(1)) / 1_000.0,
            memory_kib: load.mem_total_kib,
            available_kib: load.mem_available_kib,
        }
    }

    fn slowness(&self, demand: f64) -> f64 {
        (demand / self.cpus).max(1.0) / self.speed
    }

    /// Returns the sum of slowness over demands from one to another: the integral of [`Self::slowness`].
    fn held_up(&self, from: f64, to: f64) -> f64 {
        let upto = |demand: f64| {
            let demand = demand.max(0.0);
            let over = demand.max(self.cpus);
            let flat = demand.min(self.cpus);
            (flat + (over * over - self.cpus * self.cpus) / (2.0 * self.cpus)) / self.speed
        };
        upto(to) - upto(from)
    }

    fn slowness_with(&self, job: &Job) -> f64 {
        self.slowness(self.demand + job.demand)
    }

    const fn is_short(&self) -> bool {
        self.available_kib < self.memory_kib / SPARE_PART
    }

    /// LV5
    const fn has_room_for(&self, job: &Job) -> bool {
        self.available_kib.saturating_sub(job.memory_kib) >= self.memory_kib / SPARE_PART * 2
    }
}

/// LV4
fn may_go(job: &Job) -> Result<(), Why> {
    match &job.standing {
        Standing::Levelled => Ok(()),
        Standing::Locked => Err(Why::Locked),
        Standing::NotListed => Err(Why::NotListed),
        Standing::Tied(ties) => Err(Why::Tied(ties.clone())),
        Standing::Unknown => Err(Why::Unknown),
    }
}

fn comes_before(one: Rank, other: Rank) -> bool {
    let more = |a: f64, b: f64| b.total_cmp(&a);
    let order = one
        .0
        .cmp(&other.0)
        .then(more(one.1, other.1))
        .then(more(one.2, other.2));
    order.is_lt()
}
