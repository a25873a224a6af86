//! The jobs that run on a node, and what is known of their levelling.

use super::super::super::group::Group;
use super::super::super::protocol::Level;
use super::super::Travel;
use crate::pids::ClusterPid;
use consistency::NodeId;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// Hears which process has come back.
#[derive(Default)]
struct TellReturn(OnceLock<Box<dyn Fn(i32) + Send + Sync>>);

impl fmt::Debug for TellReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TellReturn({})", self.0.get().is_some())
    }
}

/// What levelling is told, and tells. The mutexes are leaves.
#[derive(Debug, Default)]
pub(in crate::job::travel) struct Levels {
    tell_return: TellReturn,
    /// Jobs that have come from other nodes, or back from there.
    guests: Mutex<HashMap<i32, Hosted>>,
    /// What was last made of each job here.
    answers: Mutex<HashMap<i32, String>>,
    /// Looks at jobs, and moves.
    pub(super) rounds: AtomicU64,
    pub(super) moves: AtomicU64,
}

/// A job that runs here.
#[derive(Clone, Debug)]
pub(super) struct Hosted {
    /// Its cgroup.
    pub(super) dir: Option<PathBuf>,
    pub(super) since: Instant,
    /// From another node.
    pub(super) came: bool,
}

/// A copy's place among the jobs that run here.
#[derive(Debug)]
pub(in crate::job::travel) struct Came {
    travel: Arc<Travel>,
    pid: i32,
    since: Instant,
}

impl Drop for Came {
    fn drop(&mut self) {
        let mut guests = self.travel.levels.guests();
        // It may have come again.
        if guests
            .get(&self.pid)
            .is_some_and(|guest| guest.since == self.since)
        {
            guests.remove(&self.pid);
        }
    }
}

impl Levels {
    fn guests(&self) -> MutexGuard<'_, HashMap<i32, Hosted>> {
        self.guests.lock().expect("no holder panics")
    }

    pub(super) fn answers(&self) -> MutexGuard<'_, HashMap<i32, String>> {
        self.answers.lock().expect("no holder panics")
    }

    /// Returns the cgroup of a copy here.
    pub(in crate::job::travel) fn dir_of(&self, pid: i32) -> Option<PathBuf> {
        self.guests().get(&pid)?.dir.clone()
    }

    /// Says what levelling makes of a job here.
    pub(in crate::job::travel) fn why(&self, pid: i32, is_job: bool) -> String {
        if let Some(answer) = self.answers().get(&pid) {
            return answer.clone();
        }
        if is_job || self.guests().contains_key(&pid) {
            "stays unknown: its node has not looked at it yet".to_owned()
        } else {
            "stays no_job: it is not the program of a glurun job".to_owned()
        }
    }
}

impl Travel {
    /// Has a copy that has been made here be levelled until what this returns is dropped.
    pub(in crate::job::travel) fn came(self: &Arc<Self>, pid: i32, group: &Group) -> Came {
        let since = Instant::now();
        let hosted = Hosted {
            dir: group.dir().map(ToOwned::to_owned),
            since,
            came: true,
        };
        self.levels.guests().insert(pid, hosted);
        let locked = self.jobs().get(&pid).is_some_and(|job| job.level.locked);
        if let Some(tell) = self.levels.tell_return.0.get().filter(|_| locked) {
            tell(pid);
        }
        Came {
            travel: Arc::clone(self),
            pid,
            since,
        }
    }

    /// Returns the jobs that run here, by pid.
    pub(super) fn hosted(&self) -> BTreeMap<i32, Hosted> {
        let mut hosted = BTreeMap::new();
        for (pid, known) in &*self.jobs() {
            if let (false, Some(group)) = (known.seat.is_away(), known.group.get()) {
                let job = Hosted {
                    dir: group.dir().map(ToOwned::to_owned),
                    since: known.since,
                    came: false,
                };
                hosted.insert(*pid, job);
            }
        }
        hosted.extend(self.levels.guests().clone());
        hosted
    }

    /// Returns the home of a job that runs here.
    pub(super) fn home_of(&self, pid: i32) -> Option<NodeId> {
        if self.is_home_of(pid) {
            return Some(self.node);
        }
        let pid = ClusterPid::try_from(pid).ok()?;
        Some(pid.home())
    }

    /// Returns how often levelling has looked at jobs here, and how many it has moved.
    pub(in crate::job) fn levelled(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.levels.rounds), count(&self.levels.moves))
    }

    pub(in crate::job) fn tell_returns(&self, tell: Box<dyn Fn(i32) + Send + Sync>) {
        self.levels.tell_return.0.set(tell).ok();
    }

    /// Takes note that somebody has locked a process of this node, or asks for it to be levelled.
    pub(in crate::job) fn lock(&self, pid: i32, locked: bool) {
        if let Some(known) = self.jobs().get_mut(&pid) {
            let asked = !locked;
            known.level = Level { locked, asked };
        }
    }
}
