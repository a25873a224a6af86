//! Levels the jobs that run here ([`crate::level`]): looks what they want and how loaded the nodes are, asks the policy,
//! and has the home of a job that is to go move it, as a write to its `goto` would.
//!
//! A home says whether a job may be levelled ([`Level`]) and has the last word at the move; the node that runs it decides,
//! for it alone sees what the job wants. So two nodes never decide about one job.

mod hosted;
mod jobs;

use super::super::protocol::{Asked, Level, Told};
use super::super::view::Nodes;
use super::guest::blocking;
use super::{MOVED_WITHIN, Travel, ask};
use crate::level::demand::Gauge;
use crate::level::{Answer, Go, Job, Leveller, Node, NotMoved, Standing, State, View, Why, list};
use crate::load;
use crate::tree::{Switch, Switches};
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use gfs::error::Errno;
use hosted::Hosted;
pub(super) use hosted::Levels;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the jobs are looked at.
const LEVEL_EVERY: Duration = Duration::from_secs(1);
/// The same after a move: others may go as well.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long it may take to find out how the nodes are.
const KNOWN_WITHIN: Duration = Duration::from_secs(3);
/// How long a home's word about a job is good for.
const LEVEL_FOR: Duration = Duration::from_secs(2);
/// How long a job that cannot move is not asked about again.
const TIED_FOR: Duration = Duration::from_secs(10);
/// A job's reasons to stay are logged at most so often.
const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// What levelling needs.
pub struct Levelling {
    /// Knows the nodes and their loads.
    pub nodes: Arc<dyn Nodes>,
    /// Knows what is switched.
    pub switches: Arc<dyn Switches>,
}

impl fmt::Debug for Levelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Levelling").finish_non_exhaustive()
    }
}

struct Driver {
    travel: Arc<Travel>,
    means: Levelling,
    began: Instant,
    leveller: Leveller,
    gauges: HashMap<i32, Gauge>,
    levels: HashMap<i32, (Instant, Option<Level>)>,
    tied: HashMap<i32, (Instant, String)>,
    /// When reasons were logged, and which.
    logged: HashMap<i32, (Instant, String)>,
}

/// Levels for as long as the daemon runs.
pub(in crate::job) async fn run(travel: Arc<Travel>, means: Levelling) {
    let mut driver = Driver {
        travel,
        means,
        began: Instant::now(),
        leveller: Leveller::default(),
        gauges: HashMap::new(),
        levels: HashMap::new(),
        tied: HashMap::new(),
        logged: HashMap::new(),
    };
    loop {
        let moved = driver.round().await;
        let pause = if moved { AGAIN_AFTER } else { LEVEL_EVERY };
        tokio::time::sleep(pause).await;
    }
}

impl Driver {
    /// Looks once; returns whether a job was moved.
    async fn round(&mut self) -> bool {
        let hosted = self.travel.hosted();
        self.forget(&hosted);
        if hosted.is_empty() {
            return false;
        }
        let standings = self.standings(&hosted).await;
        let levelled = standings
            .iter()
            .filter(|(_, standing)| **standing == Standing::Levelled);
        let levelled: Vec<i32> = levelled.map(|(pid, _)| *pid).collect();
        // Of what is not levelled nothing is measured, and of nodes nothing is asked for its sake.
        let nodes = if levelled.is_empty() {
            Vec::new()
        } else {
            match tokio::time::timeout(KNOWN_WITHIN, self.look_at_nodes()).await {
                Ok(Ok(nodes)) => nodes,
                // Then nothing moves.
                Ok(Err(error)) => {
                    tracing::debug!(%error, "nothing is levelled: the nodes are not known");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            }
        };
        let mut wants = self.measure(&hosted, levelled).await;
        let jobs = standings.into_iter().filter_map(|(pid, standing)| {
            let Hosted { since, came, .. } = *hosted.get(&pid)?;
            let (demand, memory_kib) = wants.remove(&pid).unwrap_or_default();
            let home = self.travel.home_of(pid).unwrap_or(self.travel.node);
            Some(Job {
                pid,
                home,
                guest: home != self.travel.node || self.travel.guests.has(pid),
                since: self.clock(since),
                came,
                demand,
                memory_kib,
                standing,
            })
        });
        let jobs = jobs.collect();
        let here = self.travel.node;
        let mut view = View { here, nodes, jobs };
        loop {
            let now = self.clock(Instant::now());
            let answers = self.leveller.decide(now, &view);
            let go = answers.values().find_map(|answer| match answer {
                Answer::Goes(go) => Some(*go),
                Answer::Stays(_) => None,
            });
            let ties = match go {
                Some(go) => self.ties(go.pid).await,
                None => None,
            };
            if let (Some(go), Some(ties)) = (go, ties) {
                let now = self.clock(Instant::now());
                self.leveller.not_moved(now, go.pid, NotMoved::Tied);
                let until = Instant::now() + TIED_FOR;
                self.tied.insert(go.pid, (until, ties.clone()));
                for job in view.jobs.iter_mut().filter(|job| job.pid == go.pid) {
                    job.standing = Standing::Tied(ties.clone());
                }
                continue;
            }
            self.tell(&answers);
            let rounds = &self.travel.levels.rounds;
            rounds.fetch_add(1, Ordering::Relaxed);
            return match go {
                Some(go) => self.go(go).await,
                None => false,
            };
        }
    }

    fn clock(&self, at: Instant) -> consistency::Instant {
        // Later than any age: what was there before this has begun is as old as this.
        let since = at.saturating_duration_since(self.began);
        consistency::Instant(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn forget(&mut self, hosted: &BTreeMap<i32, Hosted>) {
        let now = Instant::now();
        self.gauges.retain(|pid, _| hosted.contains_key(pid));
        self.levels.retain(|pid, _| hosted.contains_key(pid));
        self.logged.retain(|pid, _| hosted.contains_key(pid));
        self.tied
            .retain(|pid, (until, _)| hosted.contains_key(pid) && *until > now);
        let mut answers = self.travel.levels.answers();
        answers.retain(|pid, _| hosted.contains_key(pid));
    }

    /// Returns the nodes.
    async fn look_at_nodes(&self) -> Result<Vec<Node>, String> {
        let told = self.means.nodes.nodes().await;
        let told = told.map_err(|error| error.to_string())?;
        let here = self.travel.node;
        let own = blocking(load::measure).await;
        let nodes = told.into_iter().map(|status| async move {
            let node = status.node;
            let version = self.travel.transport().ok();
            let version = version.and_then(|transport| transport.version_of(node));
            let old = node != here && version.is_none_or(|version| version < Asked::Level.since());
            let state = State {
                down: !status.up || old,
                drains: status.draining,
                ..State::default()
            };
            let state = match state.down {
                true => state,
                false => self.switched(node, state).await.map_err(|error| {
                    format!("whether node {node} takes jobs is not known: {error}")
                })?,
            };
            let load: NodeLoad = if node == here {
                own
            } else {
                status.report.load
            };
            Ok(Node { node, load, state })
        });
        futures::future::try_join_all(nodes).await
    }

    async fn switched(&self, node: NodeId, state: State) -> Result<State, Errno> {
        let is_on = |switch| self.means.switches.is_on(node, switch);
        let (blocks, in_use, off) = futures::try_join!(
            is_on(Switch::Block),
            is_on(Switch::InUse),
            is_on(Switch::Unlevelled)
        )?;
        Ok(State {
            blocks,
            in_use,
            off,
            ..state
        })
    }

    /// Returns the demand and memory of some jobs; what is not known yet of one that has just been started is nothing.
    async fn measure(
        &mut self,
        hosted: &BTreeMap<i32, Hosted>,
        levelled: Vec<i32>,
    ) -> HashMap<i32, (f64, u64)> {
        let dir = |pid: &i32| hosted.get(pid).and_then(|job| job.dir.clone());
        let groups = levelled.into_iter().map(|pid| (pid, dir(&pid)));
        let groups: Vec<_> = groups.collect();
        let mut gauges = std::mem::take(&mut self.gauges);
        let (wants, gauges) = blocking(move || {
            let wants = groups.into_iter().map(|(pid, dir)| {
                let pids = jobs::members(dir, pid);
                let demand = jobs::demand(gauges.entry(pid).or_default(), &pids);
                let memory_kib = pids.iter().map(|pid| jobs::memory_kib(*pid)).sum();
                (pid, (demand.unwrap_or_default(), memory_kib))
            });
            (wants.collect(), gauges)
        })
        .await;
        self.gauges = gauges;
        wants
    }

    /// Returns whether jobs may be levelled.
    async fn standings(&mut self, hosted: &BTreeMap<i32, Hosted>) -> BTreeMap<i32, Standing> {
        let now = Instant::now();
        let known = |pid: &i32| self.levels.get(pid).is_some_and(|(until, _)| *until > now);
        let unknown = hosted.keys().filter(|pid| !known(pid));
        let asked = unknown.map(|pid| async {
            let level = match self.ask_home(*pid, Asked::Level).await {
                Some(Told::Level(level)) => Some(level),
                _ => None,
            };
            (*pid, level)
        });
        let levels = futures::future::join_all(asked).await;
        let until = Instant::now() + LEVEL_FOR;
        for (pid, level) in levels {
            self.levels.insert(pid, (until, level));
        }
        let level = |pid: &i32| self.levels.get(pid).and_then(|(_, level)| *level);
        let open = |pid: &&i32| level(pid).is_some_and(|level| !level.locked && !level.asked);
        let open = hosted.keys().filter(open).copied();
        let listed = self.listed(open.collect()).await;
        let standing = |pid: &i32| match (level(pid), self.tied.get(pid)) {
            (None, _) => Standing::Unknown,
            (Some(Level { locked: true, .. }), _) => Standing::Locked,
            (Some(Level { asked, .. }), _) if !asked && !listed.contains(pid) => {
                Standing::NotListed
            }
            (Some(_), Some((_, ties))) => Standing::Tied(ties.clone()),
            (Some(_), None) => Standing::Levelled,
        };
        hosted.keys().map(|pid| (*pid, standing(pid))).collect()
    }

    /// Returns the jobs among these whose programs are on the list.
    async fn listed(&self, pids: Vec<i32>) -> BTreeSet<i32> {
        if pids.is_empty() {
            return BTreeSet::new();
        }
        let list = tokio::time::timeout(KNOWN_WITHIN, self.means.switches.list());
        let list = match list.await {
            Ok(Ok(list)) => list,
            // Then nothing is, for now.
            Ok(Err(error)) => {
                tracing::debug!(%error, "loadlevellist is not known");
                String::new()
            }
            Err(_) => String::new(),
        };
        if list.is_empty() {
            return BTreeSet::new();
        }
        let is_listed = move |pid: &i32| list::has(&list, &jobs::comm(*pid), &jobs::path(*pid));
        blocking(move || pids.into_iter().filter(is_listed).collect()).await
    }

    /// Returns why a job cannot move, if so.
    async fn ties(&self, pid: i32) -> Option<String> {
        match self.ask_home(pid, Asked::Ties).await {
            Some(Told::Ties(ties)) if ties.is_empty() => None,
            Some(Told::Ties(ties)) => Some(ties.join(" ")),
            _ => Some("its home does not answer".to_owned()),
        }
    }

    async fn ask_home(&self, pid: i32, asked: Asked) -> Option<Told> {
        let home = self.travel.home_of(pid)?;
        if home == self.travel.node {
            return Some(self.travel.ask(pid, asked).await);
        }
        let transport = self.travel.transport().ok()?;
        ask(&**transport, home, pid, asked).await.ok()
    }

    /// Moves a job; returns whether it has moved.
    async fn go(&mut self, go: Go) -> bool {
        let pid = go.pid;
        tracing::info!(pid, to = %go.to, why = %Answer::Goes(go), "levelling moves a job");
        let asked = self.ask_home(pid, Asked::GoFor(go.to, go.because));
        let told = tokio::time::timeout(MOVED_WITHIN, asked).await;
        let now = self.clock(Instant::now());
        let not_moved = match told {
            Ok(Some(Told::Gone(Ok(())))) => {
                self.leveller.moved(now, pid);
                self.travel.levels.moves.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Ok(Some(Told::Gone(Err(libc::ECONNREFUSED | libc::ENOEXEC)))) => NotMoved::Refused,
            Ok(Some(Told::Gone(Err(libc::EBUSY)))) => NotMoved::Busy,
            Ok(Some(Told::Gone(Err(libc::ESRCH)))) => NotMoved::Ended,
            Ok(Some(Told::Gone(Err(errno)))) => NotMoved::Failed(Errno(errno).to_string()),
            _ => NotMoved::Failed("its home does not answer".to_owned()),
        };
        tracing::info!(pid, to = %go.to, ?not_moved, "levelling did not move a job");
        self.leveller.not_moved(now, pid, not_moved);
        false
    }

    /// Has what was decided be known.
    fn tell(&mut self, answers: &BTreeMap<i32, Answer>) {
        let now = Instant::now();
        for (pid, answer) in answers {
            let text = answer.to_string();
            let before = self.logged.get(pid);
            let due = before.is_none_or(|(at, before)| {
                *before != text && now.duration_since(*at) >= LOGGED_EVERY
            });
            if due && matches!(answer, Answer::Stays(_)) {
                // Of most jobs there is no more to say than that nobody has asked for them to be levelled.
                if *answer == Answer::Stays(Why::NotListed) {
                    tracing::debug!(pid, why = %text, "levelling leaves a job");
                } else {
                    tracing::info!(pid, why = %text, "levelling leaves a job");
                }
                self.logged.insert(*pid, (now, text.clone()));
            }
            self.travel.levels.answers().insert(*pid, text);
        }
    }
}
