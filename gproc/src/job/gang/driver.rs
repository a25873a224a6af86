//! Has the gangs of a node take their turns.

use super::super::group::Group;
use super::super::spawn::GroupSlot;
use super::{Gang, Turns, turn_at};
use async_trait::async_trait;
use consistency::{Instant, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// How often the list is read while there are gangs here.
const LIST_EVERY: Duration = Duration::from_millis(500);

/// Who knows the gangs of all nodes.
#[async_trait]
pub trait GangList: Send + Sync + 'static {
    /// Returns those that are on record.
    ///
    /// # Errors
    /// One line: why they are not known.
    async fn gangs(&self) -> Result<Vec<Gang>, String>;
}

/// The processes of gangs that run here.
#[derive(Debug)]
pub(in crate::job) struct Gangs {
    node: NodeId,
    here: Mutex<BTreeMap<u32, Process>>,
    came: Notify,
}

#[derive(Debug)]
struct Process {
    group: GroupSlot,
    held: bool,
}

/// The place of one process among them.
#[derive(Debug)]
pub(in crate::job) struct Member {
    gangs: Arc<Gangs>,
    pid: u32,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.gangs.here().remove(&self.pid);
    }
}

impl Gangs {
    pub(in crate::job) fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            here: Mutex::default(),
            came: Notify::new(),
        })
    }

    /// Has a process take turns until what this returns is dropped.
    pub(in crate::job) fn enter(self: &Arc<Self>, pid: u32, group: &GroupSlot) -> Member {
        let group = Arc::clone(group);
        self.here().insert(pid, Process { group, held: false });
        self.came.notify_one();
        let gangs = Arc::clone(self);
        Member { gangs, pid }
    }

    fn here(&self) -> MutexGuard<'_, BTreeMap<u32, Process>> {
        self.here.lock().expect("no holder panics")
    }

    fn are_none(&self) -> bool {
        self.here().is_empty()
    }

    /// Returns those of which it is to be changed whether they are held, as it is to be.
    fn changes(&self, held: &BTreeSet<u32>) -> Vec<(u32, GroupSlot, bool)> {
        let mut changes = Vec::new();
        for (pid, process) in &mut *self.here() {
            let hold = held.contains(pid);
            if std::mem::replace(&mut process.held, hold) != hold {
                changes.push((*pid, Arc::clone(&process.group), hold));
            }
        }
        changes
    }
}

/// Takes turns for as long as the daemon runs.
pub(in crate::job) async fn run(gangs: Arc<Gangs>, list: Arc<dyn GangList>) {
    let epoch = std::time::Instant::now();
    let clock = || Instant(u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX));
    let turns = Mutex::new(Turns::new(gangs.node));
    let lock = || turns.lock().expect("no holder panics");
    loop {
        if gangs.are_none() {
            gangs.came.notified().await;
            continue;
        }
        let reading = async {
            loop {
                let asked = clock();
                match list.gangs().await {
                    Ok(list) => lock().handle_list(asked, list),
                    Err(error) => tracing::debug!(error, "the gangs of others are not known"),
                }
                tokio::time::sleep(LIST_EVERY).await;
            }
        };
        // A read that waits holds up nobody's turn.
        let taking = async {
            while !gangs.are_none() {
                let (turn, left) = turn_at(since_1970());
                let held = lock().held(clock(), turn);
                apply(gangs.changes(&held)).await;
                tokio::time::sleep(left.min(LIST_EVERY)).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = taking => {}
        }
    }
}

/// Returns the time since 1970.
pub(in crate::job) fn since_1970() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

async fn apply(changes: Vec<(u32, GroupSlot, bool)>) {
    if changes.is_empty() {
        return;
    }
    let apply = move || {
        for (pid, group, hold) in changes {
            let held = group.get().map(|group: &Group| group.kept().hold(hold));
            if let Some(Err(error)) = held {
                tracing::warn!(pid, hold, %error, "a gang does not take its turn");
            }
        }
    };
    // Fails only when the runtime stops.
    tokio::task::spawn_blocking(apply).await.ok();
}
