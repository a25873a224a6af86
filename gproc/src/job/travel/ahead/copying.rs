//! The source's part: sends what a job has while it runs, and what has changed once it is frozen.

use super::super::super::frame::FrameSender;
use super::super::super::group::Group;
use super::super::engine::{Engine, Kind};
use super::super::pipes::members;
use super::super::places::reached;
use super::super::wire::{Image, Piece};
use super::memory::{Processes, count, own_pages};
use super::pagemap::{At, pagemaps};
use super::{Gone, Range};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_blocking};

/// Jobs that have fewer pages to themselves go whole: that takes no longer.
const PAGES_MIN: u64 = 4096;
/// What changes in one round of looks is little, in bytes.
const LITTLE: u64 = 4 << 20;
/// Rounds at most, and how long no other begins.
const ROUNDS_MAX: u32 = 5;
const WITHIN: Duration = Duration::from_secs(60);
/// Who writes this part of its pages in this time writes faster than pages go: it goes whole.
const RESTLESS_PART: usize = 4;
const RESTLESS_IN: Duration = Duration::from_millis(50);
/// Threads that look at memory while the job stands still.
const WORKERS_MAX: usize = 4;

/// Sends a piece to where it is to go; `false`: that is gone.
pub(in super::super) type Sink = Box<dyn FnMut(Piece) -> bool + Send>;

/// Sends pieces as messages of a stream. It blocks.
pub(in super::super) fn by<T: serde::Serialize + 'static>(
    sender: FrameSender,
    message: fn(Piece) -> T,
) -> Sink {
    Box::new(move |piece| sender.send_blocking(&message(piece)))
}

/// Pages that are on their way while their job runs; they stop when this is dropped.
#[derive(Debug)]
pub(in super::super) struct Copying {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Option<Gone>>,
}

impl Copying {
    /// Starts to send what the processes of a cgroup have, the leader of their session excepted: it does not move.
    pub(in super::super) fn start(dir: PathBuf, pid: i32, leader: Option<i32>, send: Sink) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = spawn_blocking(move || {
            reached("source: before pages go ahead");
            let find = || travellers(&dir, pid, leader);
            copy(find, pid, &stopped, send).unwrap_or_else(|error| {
                tracing::debug!(pid, %error, "no pages go ahead");
                None
            })
        });
        Self { stop, task }
    }

    /// Waits until most pages are there. `None`: none have gone. Cancel-safe; not to be asked again after that.
    pub(in super::super) async fn done(&mut self) -> Option<Gone> {
        (&mut self.task).await.expect("it does not panic")
    }

    /// Stops it; no piece is sent after that.
    pub(in super::super) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.done().await;
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits until most pages are there; for ever if none are on their way. Cancel-safe.
pub(in super::super) async fn copied(copying: &mut Option<Copying>) -> Option<Gone> {
    match copying {
        Some(copying) => copying.done().await,
        None => std::future::pending().await,
    }
}

/// Returns the processes of a job that move with it.
fn travellers(dir: &Path, pid: i32, leader: Option<i32>) -> io::Result<BTreeSet<i32>> {
    let mut members = members(dir, pid)?;
    members.retain(|pid| Some(*pid) != leader);
    Ok(members)
}

fn copy(
    find: impl Fn() -> io::Result<BTreeSet<i32>>,
    pid: i32,
    stopped: &AtomicBool,
    mut send: Sink,
) -> io::Result<Option<Gone>> {
    // What cannot be counted has ended.
    let pages: u64 = find()?.into_iter().flat_map(count).sum();
    if pages < PAGES_MIN {
        return Ok(None);
    }
    let begun = Instant::now();
    let mut gone = Gone::new(RandomState::new().hash_one(pid));
    if is_restless(&gone, &find()?) {
        return Ok(None);
    }
    let mut last = u64::MAX;
    for round in 0..ROUNDS_MAX {
        let before = gone.bytes;
        let (ranges, memory) = memory_of(&find()?);
        // What is written faster than it can be sent only another way would have.
        let goes_on = gone.estimate(&gone.sample(&ranges, &memory)) <= last / 2;
        if !goes_on || begun.elapsed() > WITHIN {
            break;
        }
        gone.send_changed(
            &ranges,
            NonZero::<usize>::MIN,
            &memory,
            true,
            |piece| match !stopped.load(Ordering::Relaxed) && send(piece) {
                true => Ok(()),
                false => Err(io::ErrorKind::BrokenPipe.into()),
            },
        )?;
        let sent = gone.bytes - before;
        tracing::debug!(pid, round, sent, after = ?begun.elapsed(), "pages have gone ahead");
        if sent <= LITTLE {
            break;
        }
        last = sent;
    }
    Ok(Some(gone))
}

/// Returns whether a job writes so much that what goes ahead is of no use when it is there.
fn is_restless(gone: &Gone, processes: &BTreeSet<i32>) -> bool {
    let (ranges, memory) = memory_of(processes);
    let before = gone.sample(&ranges, &memory);
    std::thread::sleep(RESTLESS_IN);
    let now = gone.sample(&ranges, &memory);
    let written = now.iter().filter(|(at, sum)| before.get(at) != Some(sum));
    written.count() > now.len() / RESTLESS_PART
}

/// Returns what processes have to themselves, and who reads it.
fn memory_of(processes: &BTreeSet<i32>) -> (Vec<Range>, Processes) {
    // What has ended has none.
    let ranges = processes.iter().flat_map(|pid| own_pages(*pid)).flatten();
    (ranges.collect(), Processes::open(processes))
}

/// Freezes a job and makes images of it that lack what has gone ahead, and what is sent now because it has changed. Fails, and the
/// job goes on, where that cannot be.
pub(in super::super) fn dump(
    engine: &Engine,
    group: &Group,
    pid: i32,
    kind: Kind,
    gone: &mut Gone,
    mut send: Sink,
) -> io::Result<Vec<Image>> {
    let (images, served) = engine.dump_partly(group, pid, kind)?;
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let workers = NonZero::new(cores.min(WORKERS_MAX)).unwrap_or(NonZero::<usize>::MIN);
    let before = gone.bytes;
    let sent = lacking(served.images().dir()).and_then(|lacking| {
        let memory = Processes::open(served.members());
        gone.send_changed(&lacking, workers, &memory, false, |piece| {
            match send(piece) {
                true => Ok(()),
                false => Err(io::ErrorKind::BrokenPipe.into()),
            }
        })
    });
    // CRIU lets it go; it stays frozen.
    drop(served);
    if let Err(error) = sent {
        group.freeze(false)?;
        return Err(error);
    }
    tracing::debug!(pid, sent = gone.bytes - before, "all pages have gone");
    Ok(images)
}

/// Returns the pages that images lack.
fn lacking(images: &Path) -> io::Result<Vec<Range>> {
    let mut ranges = Vec::new();
    for (pid, pagemap) in pagemaps(images)? {
        let entries = pagemap.entries.into_iter();
        let lacking = entries.filter(|entry| entry.at == At::Nowhere);
        ranges.extend(lacking.map(|entry| Range {
            pid,
            address: entry.address,
            pages: entry.pages,
        }));
    }
    Ok(ranges)
}
