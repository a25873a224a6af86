//! The jobs whose home this node is, for who keeps them on record (`glu jobs`).
//!
//! A job takes a [`Seat`] when it is asked for and leaves it with the connection of its owner; taking one costs a look at a
//! map. Whoever keeps the record asks with [`Hello::Jobs`](super::protocol::Hello::Jobs) and is told what has changed, some
//! time later and of many at once: what has ended by then was never there.
//!
//! | | a job younger than [`AGE_MIN`] | an older one | one that has ended |
//! | --- | --- | --- | --- |
//! | was not told of | later | told | nothing |
//! | was told of | - | told again if it has changed | told |

use super::gang::driver::since_1970;
use super::gang::{Turn, first_turn};
use super::protocol::{JobNews, JobsNews, Member, RunningJob, Start};
use super::terminal::Extra;
use consistency::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// How old a job is at least that is told of.
pub const AGE_MIN: Duration = Duration::from_millis(500);

/// How long changes are gathered before they are told.
pub(super) const GATHER: Duration = Duration::from_millis(250);

/// Bytes of a command that are kept.
const COMMAND_BYTES_MAX: usize = 1000;

/// Jobs in one message; with the processes of each it stays within the first frame's limit.
const JOBS_PER_NEWS: usize = 16;

/// How processes of one command are told their number, in the environment.
const COUNT: &[u8] = b"GLU_COUNT=";

/// The jobs of one home.
#[derive(Debug)]
pub(super) struct Roll {
    home: NodeId,
    /// Tells this daemon from earlier ones of the node.
    daemon: u64,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<u32, Entry>,
    /// Counts changes.
    version: u64,
    /// Counts seats.
    seats: u64,
}

/// All processes of one owner.
#[derive(Debug)]
struct Entry {
    uid: u32,
    at: SystemTime,
    since: Instant,
    command: Vec<bytes::Bytes>,
    count: u32,
    begun: u32,
    /// Its first turn, if it is a gang.
    gang: Option<Turn>,
    seats: u32,
    members: BTreeMap<u64, Member>,
    version: u64,
}

/// What somebody was told of: each job at the version it then had.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<u32, u64>);

impl Roll {
    pub(super) fn new(home: NodeId) -> Arc<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let daemon = since.map_or(0, |since| since.as_nanos());
        Arc::new(Self {
            home,
            daemon: u64::try_from(daemon).unwrap_or(u64::MAX),
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Enters a process of the command of `npid`, whom the kernel has told (J1).
    pub(super) fn enter(self: &Arc<Self>, npid: u32, start: &Start, extras: &[Extra]) -> Seat {
        let mut inner = self.lock();
        inner.seats += 1;
        let seat = inner.seats;
        let entry = inner.jobs.entry(npid).or_insert_with(|| Entry {
            uid: start.credentials.uid,
            at: SystemTime::now(),
            since: Instant::now(),
            command: shortened(&start.request.argv),
            count: 0,
            begun: 0,
            gang: extras
                .contains(&Extra::Gang)
                .then(|| first_turn(since_1970())),
            seats: 0,
            members: BTreeMap::new(),
            version: 0,
        });
        entry.seats += 1;
        // What they are told themselves, or as many as have come.
        let parallel = extras.contains(&Extra::Wire);
        let told = parallel.then(|| count(&start.request.env)).flatten();
        let at_least = told.unwrap_or(0).max(start.request.vnn.saturating_add(1));
        entry.count = entry.count.max(at_least);
        self.note(&mut inner, npid);
        Seat {
            roll: Arc::clone(self),
            npid,
            vnn: start.request.vnn,
            seat,
        }
    }

    /// Returns what is awaited before there is more to tell.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns what is new to somebody, in messages that are small enough, and whether a job is there that is too young.
    pub(super) fn news(&self, heard: &mut Heard, now: Instant) -> (Vec<JobsNews>, bool) {
        let inner = self.lock();
        let mut news = Vec::new();
        heard.0.retain(|&npid, _| {
            let runs = inner.jobs.contains_key(&npid);
            if !runs {
                news.push(JobNews { npid, job: None });
            }
            runs
        });
        let mut young = false;
        for (&npid, entry) in &inner.jobs {
            if now.saturating_duration_since(entry.since) < AGE_MIN {
                young = true;
            } else if heard.0.insert(npid, entry.version) != Some(entry.version) {
                let job = Some(entry.tell());
                news.push(JobNews { npid, job });
            }
        }
        drop(inner);
        let mut pieces: Vec<JobsNews> = Vec::new();
        let mut rest = news.into_iter().peekable();
        while rest.peek().is_some() {
            let jobs: Vec<JobNews> = rest.by_ref().take(JOBS_PER_NEWS).collect();
            let more = rest.peek().is_some();
            pieces.push(self.piece(jobs, more));
        }
        (pieces, young)
    }

    /// Returns a message in which nothing is new.
    pub(super) fn nothing(&self) -> JobsNews {
        self.piece(Vec::new(), false)
    }

    fn piece(&self, jobs: Vec<JobNews>, more: bool) -> JobsNews {
        JobsNews {
            home: self.home,
            daemon: self.daemon,
            jobs,
            more,
        }
    }

    fn change(&self, npid: u32, change: impl FnOnce(&mut Entry)) {
        let mut inner = self.lock();
        if let Some(entry) = inner.jobs.get_mut(&npid) {
            change(entry);
            if entry.seats == 0 {
                inner.jobs.remove(&npid);
            }
        }
        self.note(&mut inner, npid);
    }

    fn note(&self, inner: &mut Inner, npid: u32) {
        inner.version += 1;
        let version = inner.version;
        if let Some(entry) = inner.jobs.get_mut(&npid) {
            entry.version = version;
        }
        self.changed.send_replace(version);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Entry {
    fn tell(&self) -> RunningJob {
        let started = self.at.duration_since(SystemTime::UNIX_EPOCH);
        RunningJob {
            uid: self.uid,
            started: started.map_or(0, |since| since.as_secs()),
            command: self.command.clone(),
            count: self.count,
            begun: self.begun,
            gang: self.gang,
            members: self.members.values().cloned().collect(),
        }
    }
}

/// The place of one process, for as long as its owner is connected.
#[derive(Debug)]
pub(super) struct Seat {
    roll: Arc<Roll>,
    npid: u32,
    vnn: u32,
    seat: u64,
}

impl Seat {
    /// The process runs, with this pid of this node.
    pub(super) fn runs(&self, node: NodeId, pid: u32) {
        let member = Member {
            vnn: self.vnn,
            node,
            pid,
        };
        self.roll.change(self.npid, |entry| {
            entry.begun = entry.begun.saturating_add(1);
            entry.members.insert(self.seat, member);
        });
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.roll.change(self.npid, |entry| {
            entry.members.remove(&self.seat);
            entry.seats -= 1;
        });
    }
}

/// Returns the beginning of a command.
fn shortened(argv: &[bytes::Bytes]) -> Vec<bytes::Bytes> {
    let mut left = COMMAND_BYTES_MAX;
    let mut words = Vec::new();
    for word in argv {
        if left == 0 {
            break;
        }
        // A copy: a part of the request would keep all of it.
        let kept = word.len().min(left);
        words.push(bytes::Bytes::copy_from_slice(&word[..kept]));
        left = left.saturating_sub(kept + 1);
    }
    words
}

/// Returns how many processes a command has, as its processes are told.
fn count(env: &[bytes::Bytes]) -> Option<u32> {
    let value = env.iter().find_map(|variable| variable.strip_prefix(COUNT));
    std::str::from_utf8(value?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Credentials, Request, Stdio};
    use super::*;
    use bytes::Bytes;

    fn start(vnn: u32, env: &[&'static str]) -> Start {
        let words = |words: &[&'static str]| words.iter().map(|word| Bytes::from(*word)).collect();
        Start {
            request: Request {
                argv: words(&["sleep", "1000"]),
                env: words(env),
                cwd: Bytes::from("/"),
                umask: 0,
                ignored: 0,
                stdio: [Stdio::Null; 3],
                nodes: Vec::new(),
                npid: 1,
                vnn,
            },
            credentials: Credentials {
                uid: 5,
                gid: 6,
                groups: Vec::new(),
            },
            limits: Vec::new(),
            nice: 0,
        }
    }

    /// Returns the jobs that are told of and how many processes of each run; none: it has ended.
    fn told(roll: &Roll, heard: &mut Heard, now: Instant) -> Vec<(u32, Option<usize>)> {
        let (pieces, _) = roll.news(heard, now);
        let news = pieces.into_iter().flat_map(|piece| piece.jobs);
        news.map(|news| (news.npid, news.job.map(|job| job.members.len())))
            .collect()
    }

    #[test]
    fn what_has_changed_is_told_once() {
        let roll = Roll::new(NodeId(1));
        let mut heard = Heard::default();
        let seats =
            [0, 1].map(|vnn| roll.enter(70_000, &start(vnn, &["GLU_COUNT=2"]), &[Extra::Wire]));
        let (young, old) = (Instant::now(), Instant::now() + AGE_MIN);
        assert_eq!(told(&roll, &mut heard, young), []);
        assert!(roll.news(&mut heard, young).1, "one is too young");
        assert_eq!(told(&roll, &mut heard, old), [(70_000, Some(0))]);
        seats[0].runs(NodeId(2), 131_080);
        seats[1].runs(NodeId(3), 196_620);
        let (pieces, young) = roll.news(&mut heard, old);
        let job = pieces[0].jobs[0].job.clone().expect("it runs");
        assert_eq!((job.uid, job.count, job.begun, young), (5, 2, 2, false));
        assert_eq!(job.command, ["sleep", "1000"]);
        let places: Vec<_> = job.members.iter().map(|of| (of.vnn, of.node.0)).collect();
        assert_eq!(places, [(0, 2), (1, 3)]);
        assert_eq!(told(&roll, &mut heard, old), []);
        let [first, second] = seats;
        drop(first);
        assert_eq!(told(&roll, &mut heard, old), [(70_000, Some(1))]);
        drop(second);
        assert_eq!(told(&roll, &mut heard, old), [(70_000, None)]);
        assert_eq!(told(&roll, &mut heard, old), []);
    }

    #[test]
    fn short_jobs_are_never_told_of() {
        let roll = Roll::new(NodeId(1));
        let mut heard = Heard::default();
        drop(roll.enter(70_000, &start(0, &[]), &[]));
        let later = Instant::now() + AGE_MIN;
        assert_eq!(told(&roll, &mut heard, later), []);
    }

    #[test]
    fn many_jobs_come_in_pieces() {
        let roll = Roll::new(NodeId(1));
        let seats = (0..40_u32).map(|at| roll.enter(70_000 + at, &start(0, &[]), &[]));
        let seats: Vec<Seat> = seats.collect();
        let later = Instant::now() + AGE_MIN;
        let (pieces, _) = roll.news(&mut Heard::default(), later);
        let sizes: Vec<_> = pieces.iter().map(|of| (of.jobs.len(), of.more)).collect();
        assert_eq!(sizes, [(16, true), (16, true), (8, false)]);
        drop(seats);
    }

    #[test]
    fn a_long_command_is_cut_off() {
        let words = [Bytes::from(vec![b'a'; 990]), Bytes::from(vec![b'b'; 990])];
        let kept: Vec<usize> = shortened(&words).iter().map(Bytes::len).collect();
        assert_eq!(kept, [990, 9]);
        assert_eq!(shortened(&vec![Bytes::from_static(b"x"); 5000]).len(), 500);
    }
}
