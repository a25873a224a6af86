//! Snapshots kept for those who listed the tree and now read what they found.
//!
//! `ps` lists the tree and then opens three files of each process; all of them come out of the snapshot that the
//! listing took, as long as the reader goes on to processes that it has not read yet. Who has not listed is answered by
//! the process's node, one by one and as of now.

use crate::cluster::View;
use crate::pids::ClusterPid;
use crate::wire::Record;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a snapshot is served to the thread that took it, and again after each process that it goes on to.
pub const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(1);
/// How long it is served at most: a reader of many processes is slow where the machine is busy, and one that asked
/// their nodes for each of them would be slower still.
pub(super) const SNAPSHOT_WHOLE_AGE_MAX: Duration = Duration::from_secs(60);
/// Upper limit of the snapshots kept; the oldest gives way.
pub const SNAPSHOTS_MAX: usize = 32;

/// The last snapshot of each reader (thread).
#[derive(Debug)]
pub(super) struct Readers {
    age_max: Duration,
    snapshots: Mutex<HashMap<u32, Snapshot>>,
}

#[derive(Debug)]
struct Snapshot {
    taken: Instant,
    until: Instant,
    /// How far its reader has come: programs go through the processes in the order of the listing.
    reached: Option<ClusterPid>,
    view: Arc<View>,
}

impl Snapshot {
    fn is_served(&self, now: Instant) -> bool {
        now < self.until
    }

    /// Notes that its reader asks for a process.
    fn go_on(&mut self, pid: ClusterPid, now: Instant, age_max: Duration) {
        if self.reached < Some(pid) {
            self.reached = Some(pid);
            self.until = (now + age_max).min(self.taken + SNAPSHOT_WHOLE_AGE_MAX);
        }
    }
}

impl Readers {
    /// Makes a place for snapshots that are served up to an age.
    pub(super) fn new(age_max: Duration) -> Self {
        Self {
            age_max,
            snapshots: Mutex::default(),
        }
    }

    /// Keeps a snapshot for a reader and sees to it that it goes again.
    pub(super) fn keep(self: &Arc<Self>, reader: u32, taken: Instant, view: &Arc<View>) {
        let mut snapshots = self.lock();
        if !snapshots.contains_key(&reader) && snapshots.len() >= SNAPSHOTS_MAX {
            let oldest = snapshots.iter().min_by_key(|(_, kept)| kept.taken);
            if let Some(oldest) = oldest.map(|(reader, _)| *reader) {
                snapshots.remove(&oldest);
            }
        }
        // Not from when it was taken: that may last longer than it is to be served.
        let until = Instant::now() + self.age_max;
        let snapshot = Snapshot {
            taken,
            until,
            reached: None,
            view: Arc::clone(view),
        };
        snapshots.insert(reader, snapshot);
        drop(snapshots);
        let readers = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut until = until;
            loop {
                tokio::time::sleep_until(until.into()).await;
                let Some(readers) = readers.upgrade() else {
                    return;
                };
                let mut snapshots = readers.lock();
                match snapshots.get(&reader).filter(|kept| kept.taken == taken) {
                    Some(kept) if kept.is_served(Instant::now()) => until = kept.until,
                    Some(_) => {
                        snapshots.remove(&reader);
                        return;
                    }
                    // It has taken another.
                    None => return,
                }
            }
        });
    }

    /// Returns the snapshot of a reader.
    pub(super) fn view(&self, reader: u32) -> Option<Arc<View>> {
        let snapshots = self.lock();
        let kept = snapshots.get(&reader)?;
        kept.is_served(Instant::now())
            .then(|| Arc::clone(&kept.view))
    }

    /// Returns the snapshot of a reader who asks for a process.
    pub(super) fn view_at(&self, reader: u32, pid: ClusterPid) -> Option<Arc<View>> {
        let mut snapshots = self.lock();
        let kept = snapshots.get_mut(&reader)?;
        let now = Instant::now();
        kept.is_served(now).then(|| {
            kept.go_on(pid, now, self.age_max);
            Arc::clone(&kept.view)
        })
    }

    /// Returns a process as it is in the snapshot of a reader who asks for it.
    pub(super) fn record(&self, reader: u32, pid: ClusterPid) -> Option<Record> {
        self.view_at(reader, pid)?.processes.get(&pid).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Snapshot>> {
        self.snapshots.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: &str) -> ClusterPid {
        ClusterPid::parse(number.as_bytes()).expect("a pid")
    }

    #[test]
    fn who_goes_on_is_served_on() {
        let taken = Instant::now();
        let mut snapshot = Snapshot {
            taken,
            until: taken + SNAPSHOT_AGE_MAX,
            reached: None,
            view: Arc::default(),
        };
        let at = |secs: f64| taken + Duration::from_secs_f64(secs);
        let mut ask = |number, secs: f64| {
            snapshot.go_on(pid(number), at(secs), SNAPSHOT_AGE_MAX);
            snapshot.until
        };
        assert_eq!(ask("65540", 0.9), at(1.9));
        // Who asks for the same again and again wants to know what becomes of it.
        assert_eq!(ask("65540", 1.8), at(1.9));
        assert_eq!(ask("65539", 1.8), at(1.9));
        assert_eq!(ask("65541", 1.8), at(2.8));
        assert_eq!(ask("65542", 59.5), at(60.0));
        assert!(snapshot.is_served(at(59.9)) && !snapshot.is_served(at(60.0)));
    }
}
