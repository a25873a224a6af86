//! How many threads run or want to, on the average, by what the kernel counts of each (`schedstat`): nanoseconds that it
//! ran, and that it waited for a processor.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time of threads, by thread.
type Times = HashMap<i32, u64>;

/// Measures the demand of some processes, between one look and the next.
#[derive(Debug, Default)]
struct Meter {
    last: Option<(Instant, Times)>,
}

impl Meter {
    /// Returns the demand since the last look; `None`: there was none, or it was just now. Threads that have ended
    /// meanwhile do not count.
    fn measure(&mut self, proc_path: &Path, pids: impl IntoIterator<Item = i32>) -> Option<f64> {
        let mut times = Times::new();
        for pid in pids {
            // It has ended.
            add(proc_path, pid, &mut times).ok();
        }
        let now = Instant::now();
        let demand = self.last.as_ref().and_then(|(then, before)| {
            let passed = now.duration_since(*then).as_nanos();
            let counted = times.iter().map(|(thread, time)| {
                // A thread that was not there yet has had all its time since.
                time.saturating_sub(before.get(thread).copied().unwrap_or(0))
            });
            let counted: u64 = counted.sum();
            #[expect(clippy::cast_precision_loss, reason = "an average")]
            (passed > 0).then(|| counted as f64 / passed as f64)
        });
        self.last = Some((now, times));
        demand
    }
}

/// The demand over the last window that was long enough.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    meter: Meter,
    looked: Option<Instant>,
    demand: Option<f64>,
}

impl Gauge {
    /// Returns the demand of processes, averaged over at least `window`; `None`: it is not known yet. They are asked for
    /// only when they are looked at.
    pub(crate) fn measure<P: IntoIterator<Item = i32>>(
        &mut self,
        window: Duration,
        proc_path: &Path,
        pids: impl FnOnce() -> Option<P>,
    ) -> Option<f64> {
        if self.looked.is_none_or(|at| at.elapsed() >= window) {
            let demand = self.meter.measure(proc_path, pids()?);
            self.demand = demand.or(self.demand);
            self.looked = Some(Instant::now());
        }
        self.demand
    }
}

fn add(proc_path: &Path, pid: i32, times: &mut Times) -> io::Result<()> {
    let dir = proc_path.join(pid.to_string()).join("task");
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let text = fs::read_to_string(entry.path().join("schedstat"));
        if let Some(time) = text.ok().as_deref().and_then(time) {
            times.insert(thread, time);
        }
    }
    Ok(())
}

/// Returns the time that a thread has run and waited.
fn time(schedstat: &str) -> Option<u64> {
    let mut words = schedstat.split_whitespace().map(str::parse::<u64>);
    let (ran, waited) = (words.next()?.ok()?, words.next()?.ok()?);
    Some(ran.saturating_add(waited))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_threads() {
        assert_eq!(time("7 5 3\n"), Some(12));
        assert_eq!(time("7\n"), None);
        assert_eq!(time("x 5 3\n"), None);
    }

    #[test]
    fn threads_that_run_count() {
        let proc = tempfile::tempdir().expect("a directory");
        let write = |pid: i32, thread: i32, text: &str| {
            let dir = proc.path().join(format!("{pid}/task/{thread}"));
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join("schedstat"), text).expect("written");
        };
        let mut meter = Meter::default();
        write(7, 7, "1000 0 1");
        assert_eq!(meter.measure(proc.path(), [7, 8]), None);
        let (then, _) = meter.last.as_mut().expect("a look");
        *then -= Duration::from_secs(1);
        write(7, 7, "500001000 250000000 2");
        write(7, 9, "125000000 125000000 2");
        let demand = meter.measure(proc.path(), [7, 8]).expect("two looks");
        assert!((0.9..=1.01).contains(&demand), "{demand}");
    }
}
