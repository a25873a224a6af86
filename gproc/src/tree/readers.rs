//! Snapshots kept for those who listed the tree and now read what they found.
//!
//! `ps` lists the tree and then opens three files of each process; all of them come out of the snapshot that the
//! listing took. Who has not listed is answered by the process's node, one by one and as of now.

use crate::cluster::View;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a snapshot is served to the thread that took it.
pub const SNAPSHOT_AGE_MAX: Duration = Duration::from_secs(1);
/// Upper limit of the snapshots kept; the oldest gives way.
pub const SNAPSHOTS_MAX: usize = 32;

/// The last snapshot of each reader (thread).
#[derive(Debug)]
pub(super) struct Readers {
    age_max: Duration,
    views: Mutex<HashMap<u32, (Instant, Arc<View>)>>,
}

impl Readers {
    /// Makes a place for snapshots that are served up to an age.
    pub(super) fn new(age_max: Duration) -> Self {
        Self {
            age_max,
            views: Mutex::default(),
        }
    }

    /// Keeps a snapshot for a reader and sees to it that it goes again.
    pub(super) fn keep(self: &Arc<Self>, reader: u32, taken: Instant, view: &Arc<View>) {
        let mut views = self.views.lock().expect("no holder panics");
        if !views.contains_key(&reader) && views.len() >= SNAPSHOTS_MAX {
            let oldest = views.iter().min_by_key(|(_, (taken, _))| *taken);
            if let Some(oldest) = oldest.map(|(reader, _)| *reader) {
                views.remove(&oldest);
            }
        }
        views.insert(reader, (taken, Arc::clone(view)));
        let gone = taken + self.age_max;
        let readers = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(gone.into()).await;
            if let Some(readers) = readers.upgrade() {
                let mut views = readers.views.lock().expect("no holder panics");
                views.retain(|_, (taken, _)| taken.elapsed() < readers.age_max);
            }
        });
    }

    /// Returns the snapshot of a reader.
    pub(super) fn view(&self, reader: u32) -> Option<Arc<View>> {
        let views = self.views.lock().expect("no holder panics");
        let (taken, view) = views.get(&reader)?;
        (taken.elapsed() < self.age_max).then(|| Arc::clone(view))
    }
}
