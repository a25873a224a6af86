//! Keeps other nodes' processes off while the owner of this one works at it, as HTCondor does: what is read from its
//! consoles shows that. The state is a switch of the node (`in_use`), so that every node knows it; what runs here stays, and
//! stands still if he wants that.

use crate::config::DesktopConfig;
use consistency::NodeId;
use gproc::job::Agent;
use gproc::{Switch, Switches};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How often it is looked. The kernel is not more exact than 8 s about reads from terminals.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Guests that are levelled have so long to leave before they are frozen.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// Keeps the switch of this node as its devices have it, for as long as the daemon runs.
pub(super) async fn run(
    config: DesktopConfig,
    node: NodeId,
    switches: Arc<dyn Switches>,
    jobs: Arc<Agent>,
) {
    let mut known = None;
    let mut presence = Presence::default();
    loop {
        let wanted = in_use(&config).await;
        presence.look(wanted, Instant::now());
        if config.freeze {
            jobs.pause_guests(presence.freezes(Instant::now())).await;
        }
        if known != Some(wanted) {
            match keep(&*switches, node, wanted).await {
                Ok(()) => known = Some(wanted),
                Err(error) => {
                    tracing::debug!(%error, "cannot say yet whether the node is in use");
                }
            }
        }
        if config.idle_s == 0 && known.is_some() {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Since when the owner has been there.
#[derive(Debug, Default)]
struct Presence(Option<Instant>);

impl Presence {
    fn look(&mut self, in_use: bool, now: Instant) {
        self.0 = in_use.then(|| self.0.unwrap_or(now));
    }

    /// Returns whether guests have had the time to leave.
    fn freezes(&self, now: Instant) -> bool {
        self.0
            .is_some_and(|since| now.duration_since(since) >= LEAVE_WITHIN)
    }
}

async fn keep(
    switches: &dyn Switches,
    node: NodeId,
    wanted: bool,
) -> Result<(), gfs::error::Errno> {
    if switches.is_on(node, Switch::InUse).await? != wanted {
        switches.set(node, Switch::InUse, wanted).await?;
        tracing::info!(in_use = wanted, "the node's owner");
    }
    Ok(())
}

async fn in_use(config: &DesktopConfig) -> bool {
    if config.idle_s == 0 {
        return false;
    }
    let (watch, idle) = (
        config.watch.clone(),
        Duration::from_secs(config.idle_s.into()),
    );
    let looked = tokio::task::spawn_blocking(move || {
        let last = watch.iter().filter_map(|path| last_read(path)).max();
        last.is_some_and(|last| is_recent(last, SystemTime::now(), idle))
    });
    looked.await.unwrap_or(false)
}

/// Returns when a device, or one of a directory, was last read.
fn last_read(path: &Path) -> Option<SystemTime> {
    let read = |path: &PathBuf| std::fs::metadata(path).ok()?.accessed().ok();
    match std::fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|entry| read(&entry.ok()?.path())).max(),
        Err(_) => read(&path.to_owned()),
    }
}

/// A time that is to come is that of a clock that was set back: it counts as now.
fn is_recent(last: SystemTime, now: SystemTime, idle: Duration) -> bool {
    now.duration_since(last).map_or(true, |since| since < idle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes};

    #[test]
    fn guests_have_time_to_leave() {
        let start = Instant::now();
        let mut presence = Presence::default();
        let mut check = |seconds, in_use, expected| {
            let now = start + Duration::from_secs(seconds);
            presence.look(in_use, now);
            assert_eq!(presence.freezes(now), expected, "after {seconds} s");
        };
        check(0, false, false);
        check(2, true, false);
        check(11, true, false);
        check(12, true, true);
        check(14, false, false);
        check(16, true, false);
    }

    #[test]
    fn the_last_read_of_any_device_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let now = SystemTime::now();
        for (name, ago) in [("a", 500), ("b", 100)] {
            let file = File::create(dir.path().join(name)).expect("makes it");
            let at = now - Duration::from_secs(ago);
            file.set_times(FileTimes::new().set_accessed(at))
                .expect("sets it");
        }
        let check = |path: &Path, idle, expected| {
            let last = last_read(path);
            let recent = last.is_some_and(|last| is_recent(last, now, Duration::from_secs(idle)));
            assert_eq!(recent, expected, "{path:?} {idle}");
        };
        check(&dir.path().join("a"), 400, false);
        check(&dir.path().join("a"), 600, true);
        check(dir.path(), 99, false);
        check(dir.path(), 101, true);
        check(Path::new("/no/such/device"), 1000, false);
        let later = now + Duration::from_secs(5);
        assert!(is_recent(later, now, Duration::from_secs(1)));
    }
}
