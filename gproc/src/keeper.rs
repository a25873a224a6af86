//! Keeps the pids that the kernel gives out inside the node's range.
//!
//! The kernel counts upwards from its cursor (`ns_last_pid`, the pid given last). A thread looks at it every
//! [`PERIOD`] and moves it back to the start of the range once it has passed the middle. The upper half is the
//! guard: the fastest known storm (100,000 threads a second) passes 5,000 pids in a period, so even a thread that
//! runs six periods late keeps the range.
//!
//! A write that races with a fork can be lost, so each write is read back and repeated. `pid_max` is raised and
//! never lowered to the end of the range: a process that moved here keeps its pid, which lies in another range.
//!
//! A node with so many processes and threads that few pids of its range are free goes through it faster and at last
//! past its end. Even then no number stands for two processes: what has a pid of another range is shown above
//! `pid_max`. [`PidKeeper::trouble`] tells when that comes near.

use crate::pids::{KERNEL_PID_MAX, RANGE_PIDS, range};
use consistency::NodeId;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How often the cursor is looked at.
pub const PERIOD: Duration = Duration::from_millis(50);
/// How often a write that does not hold is repeated before it counts as failed.
pub const WRITE_ATTEMPTS_MAX: u32 = 64;

/// Why the pids of a node cannot be kept in its range.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Only nodes 1 to 63 have one.
    #[error("node {0} has no pid range: there are ranges for nodes 1 to 63")]
    NoRange(NodeId),
    /// The kernel's files cannot be used.
    #[error("cannot {what} {}: {error} (needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE)", path.display())]
    Kernel {
        /// What failed.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody else moves it, too.
    #[error("the pid cursor does not stay in {range:?} ({attempts} writes; last seen at {seen})")]
    Elsewhere {
        /// Where it belongs.
        range: Range<i32>,
        /// Writes made.
        attempts: u32,
        /// Where it is.
        seen: i32,
    },
}

/// How long what has been seen counts as trouble.
const TROUBLE_FOR: Duration = Duration::from_secs(60);

/// Keeps the cursor as long as it lives.
#[derive(Debug)]
pub struct PidKeeper {
    range: Range<i32>,
    seen: Arc<Mutex<Seen>>,
    /// Dropped to end the thread.
    _alive: mpsc::Sender<()>,
}

/// What has been seen of the cursor lately. Its lock is a leaf.
#[derive(Debug, Default)]
struct Seen {
    /// It was so far on.
    highest: Option<(Instant, i32)>,
    /// It cannot be moved.
    failure: Option<String>,
}

impl Seen {
    fn note(&mut self, now: Instant, kept: Result<i32, KeepError>) {
        match kept {
            Ok(seen) => {
                self.failure = None;
                let old = |(at, _): &(Instant, i32)| now.duration_since(*at) >= TROUBLE_FOR;
                self.highest.take_if(|highest| old(highest));
                if self.highest.is_none_or(|(_, highest)| seen >= highest) {
                    self.highest = Some((now, seen));
                }
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
    }

    fn trouble(&self, range: &Range<i32>) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(format!("pids may not be unique in the cluster: {failure}"));
        }
        let (_, highest) = self.highest?;
        let guard = range.end - RANGE_PIDS / 4;
        if highest >= range.end {
            Some(format!(
                "its pids have left {} to {}: new processes have cluster pids above {KERNEL_PID_MAX} until old ones end",
                range.start,
                range.end - 1
            ))
        } else if highest >= guard {
            Some(format!(
                "its pids run out: {highest} of {} to {} was reached, so many processes and threads are there",
                range.start,
                range.end - 1
            ))
        } else {
            None
        }
    }
}

impl PidKeeper {
    /// Moves the cursor of the pid namespace of `proc_path` into the range of `node` and keeps it there.
    ///
    /// # Errors
    /// [`KeepError`] if the first move fails. Later failures are logged and tried again a period later.
    pub fn start(node: NodeId, proc_path: &Path) -> Result<Self, KeepError> {
        let range = range(node).ok_or(KeepError::NoRange(node))?;
        let kernel = proc_path.join("sys/kernel");
        raise_pid_max(&Number(kernel.join("pid_max")))?;
        let mut cursor = Number(kernel.join("ns_last_pid"));
        keep(&mut cursor, &range)?;
        let seen = Arc::<Mutex<Seen>>::default();
        let (kept_range, noted) = (range.clone(), Arc::clone(&seen));
        let (alive, ended) = mpsc::channel();
        let run = move || {
            while ended.recv_timeout(PERIOD) == Err(mpsc::RecvTimeoutError::Timeout) {
                let kept = keep(&mut cursor, &range);
                if let Err(error) = &kept {
                    tracing::error!(%error, "pids of this node may not be unique in the cluster");
                }
                let mut seen = noted.lock().expect("no holder panics");
                seen.note(Instant::now(), kept);
            }
        };
        let spawned = thread::Builder::new().name("pid-keeper".into()).spawn(run);
        spawned.map_err(|error| KeepError::Kernel {
            what: "start a thread for",
            path: kernel,
            error,
        })?;
        Ok(Self {
            range: kept_range,
            seen,
            _alive: alive,
        })
    }

    /// Returns what is wrong with the pids of this node, if anything is or was a moment ago.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let seen = self.seen.lock().expect("no holder panics");
        seen.trouble(&self.range)
    }
}

/// Something that counts pids.
trait Cursor {
    fn read(&self) -> Result<i32, KeepError>;
    fn write(&mut self, last: i32) -> Result<(), KeepError>;
}

/// A number in a file of the kernel.
struct Number(PathBuf);

impl Number {
    fn error(&self, what: &'static str, error: io::Error) -> KeepError {
        KeepError::Kernel {
            what,
            path: self.0.clone(),
            error,
        }
    }
}

impl Cursor for Number {
    fn read(&self) -> Result<i32, KeepError> {
        let text = std::fs::read_to_string(&self.0).map_err(|error| self.error("read", error))?;
        text.trim()
            .parse()
            .map_err(|error| self.error("read", io::Error::other(error)))
    }

    fn write(&mut self, last: i32) -> Result<(), KeepError> {
        std::fs::write(&self.0, last.to_string()).map_err(|error| self.error("write", error))
    }
}

fn raise_pid_max(pid_max: &Number) -> Result<(), KeepError> {
    if pid_max.read()? < KERNEL_PID_MAX {
        Number(pid_max.0.clone()).write(KERNEL_PID_MAX)?;
    }
    Ok(())
}

/// Moves the cursor to the start of the range unless it is in the first half; returns where it was.
fn keep(cursor: &mut impl Cursor, range: &Range<i32>) -> Result<i32, KeepError> {
    // The cursor is the pid before the next one.
    let home = range.start - 1..range.start + RANGE_PIDS / 2;
    let found = cursor.read()?;
    let mut seen = found;
    if seen >= range.end {
        tracing::warn!(seen, ?range, "pids have left this node's range");
    }
    for _ in 0..WRITE_ATTEMPTS_MAX {
        if home.contains(&seen) {
            return Ok(found);
        }
        cursor.write(home.start)?;
        seen = cursor.read()?;
    }
    Err(KeepError::Elsewhere {
        range: range.clone(),
        attempts: WRITE_ATTEMPTS_MAX,
        seen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that loses the first `lost` writes and forks `forks` times after each.
    struct Kernel {
        last: i32,
        lost: u32,
        forks: i32,
        writes: u32,
    }

    impl Cursor for Kernel {
        fn read(&self) -> Result<i32, KeepError> {
            Ok(self.last)
        }

        fn write(&mut self, last: i32) -> Result<(), KeepError> {
            self.writes += 1;
            if self.writes > self.lost {
                self.last = last;
            }
            self.last += self.forks;
            Ok(())
        }
    }

    #[track_caller]
    fn check(last: i32, lost: u32, expected: Option<(i32, u32)>) {
        let mut kernel = Kernel {
            last,
            lost,
            forks: 3,
            writes: 0,
        };
        let kept = keep(&mut kernel, &(65_536..131_072));
        assert_eq!(
            kept.is_ok().then_some((kernel.last, kernel.writes)),
            expected
        );
    }

    #[test]
    fn the_cursor_goes_back_at_half_of_the_range() {
        check(65_535, 0, Some((65_535, 0)));
        check(98_303, 0, Some((98_303, 0)));
        check(98_304, 0, Some((65_538, 1)));
        check(140_000, 0, Some((65_538, 1)));
        check(300, 0, Some((65_538, 1)));
    }

    #[test]
    fn a_lost_write_is_repeated_but_not_for_ever() {
        check(98_304, 2, Some((65_538, 3)));
        check(98_304, WRITE_ATTEMPTS_MAX, None);
    }

    #[test]
    fn trouble_is_told_before_and_when_it_comes_and_not_for_ever() {
        let range = 65_536..131_072;
        let (mut seen, start) = (Seen::default(), Instant::now());
        let mut told = |after_s: u64, cursor: Result<i32, KeepError>| {
            seen.note(start + Duration::from_secs(after_s), cursor);
            seen.trouble(&range)
                .map(|trouble| trouble.split(':').next().unwrap_or_default().to_owned())
        };
        assert_eq!(told(0, Ok(98_400)), None);
        let near = Some("its pids run out".to_owned());
        let left = Some("its pids have left 65536 to 131071".to_owned());
        assert_eq!(told(1, Ok(114_688)), near);
        assert_eq!(told(2, Ok(65_600)), near);
        assert_eq!(told(3, Ok(131_072)), left);
        assert_eq!(told(62, Ok(65_600)), left);
        assert_eq!(told(63, Ok(65_600)), None);
        let failed = told(64, Err(KeepError::NoRange(NodeId(64))));
        assert_eq!(
            failed,
            Some("pids may not be unique in the cluster".to_owned())
        );
        assert_eq!(told(65, Ok(65_600)), None);
    }

    #[test]
    fn the_files_of_the_kernel_are_written() {
        let proc = tempfile::tempdir().expect("a directory");
        let kernel = proc.path().join("sys/kernel");
        std::fs::create_dir_all(&kernel).expect("made");
        std::fs::write(kernel.join("pid_max"), "32768\n").expect("written");
        std::fs::write(kernel.join("ns_last_pid"), "811\n").expect("written");
        let keeper = PidKeeper::start(NodeId(2), proc.path()).expect("kept");
        let read = |name: &str| std::fs::read_to_string(kernel.join(name)).expect("read");
        assert_eq!(
            (read("pid_max").as_str(), read("ns_last_pid").as_str()),
            ("4194304", "131071")
        );
        drop(keeper);
        let error = PidKeeper::start(NodeId(64), proc.path()).expect_err("no range");
        assert!(error.to_string().contains("node 64"), "{error}");
        std::fs::remove_file(kernel.join("ns_last_pid")).expect("removed");
        let error = PidKeeper::start(NodeId(2), proc.path()).expect_err("no file");
        assert!(error.to_string().contains("ns_last_pid"), "{error}");
    }
}
