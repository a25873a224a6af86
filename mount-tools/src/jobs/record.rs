//! What is on record of the jobs of one home, and what becomes of it. Pure: news, what is kept in the file and the time are
//! told.
//!
//! | of a job that is on record | its home tells that it runs | its home tells everything but it | the daemon of its home is another one | its home is lost |
//! | --- | --- | --- | --- | --- |
//! | running | as told | removed: it has ended | lost | lost |
//! | lost | as told | lost | lost | removed after [`LOST_KEPT`] |
//!
//! What is lost is removed after [`LOST_KEPT`] in any case. J8: a record that its home has written has each of its jobs that is
//! old enough, and no job twice; one that runs no more is there as lost, and not for ever.

use consistency::NodeId;
use gproc::job::gang::Gang;
use gproc::job::protocol::{JobsNews, RunningJob};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Seconds since 1970, as the clock of who writes has them.
pub(super) type Seconds = u64;

/// How long what was lost is shown, in seconds.
pub(super) const LOST_KEPT: Seconds = 30;

/// The version of the file.
const VERSION: u32 = 1;

/// The file of one home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Which daemon of its home has told this.
    daemon: u64,
    pub(super) jobs: Vec<Job>,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) npid: u32,
    pub(super) uid: u32,
    pub(super) started: Seconds,
    pub(super) count: u32,
    /// How many of them have begun.
    pub(super) begun: u32,
    /// The beginning of program and arguments; none where processes are hidden from other users.
    pub(super) command: Vec<String>,
    pub(super) processes: Vec<Process>,
    /// When it was found that its home was lost with it.
    #[serde(default)]
    pub(super) lost: Option<Seconds>,
    /// The first turn of a gang (J10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gang: Option<u64>,
}

/// One process of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) vnn: u32,
    /// Where it was started.
    pub(super) node: u16,
    pub(super) pid: u32,
}

/// What is to be done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Leave,
    Write,
    Remove,
}

/// What a home's recorder knows.
#[derive(Debug)]
pub(super) struct Book {
    /// Commands are nobody's business.
    hides: bool,
    /// As it was in the file, until all is told.
    kept: Option<Record>,
    daemon: Option<u64>,
    jobs: BTreeMap<u32, Job>,
    complete: bool,
    changed: bool,
    #[cfg(test)]
    mutant: Option<tests::Mutant>,
}

impl Book {
    /// Begins to be told, with what is in the file.
    pub(super) fn new(kept: Option<Record>, hides: bool) -> Self {
        Self {
            hides,
            kept,
            daemon: None,
            jobs: BTreeMap::new(),
            complete: false,
            changed: false,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Takes what home tells.
    pub(super) fn take(&mut self, news: JobsNews, now: Seconds) {
        self.daemon = Some(news.daemon);
        self.changed |= !news.jobs.is_empty();
        for of in news.jobs {
            match of.job {
                Some(job) => self
                    .jobs
                    .insert(of.npid, Job::new(of.npid, job, self.hides)),
                None => self.jobs.remove(&of.npid),
            };
        }
        if !news.more && !self.complete {
            self.complete = true;
            self.settle(news.daemon, now);
        }
    }

    /// Finds out what became of the jobs that were on record.
    fn settle(&mut self, daemon: u64, now: Seconds) {
        let Some(kept) = self.kept.take() else { return };
        self.changed = true;
        // The same daemon knows each of its jobs: others have ended.
        let another = kept.daemon != daemon;
        #[cfg(test)]
        let another = match self.mutant {
            Some(tests::Mutant::ForgetsLost) => false,
            Some(tests::Mutant::KeepsEnded) => true,
            None => another,
        };
        for mut job in kept.jobs {
            let lost = another || job.lost.is_some();
            if lost && !self.jobs.contains_key(&job.npid) {
                job.lost.get_or_insert(now);
                self.jobs.insert(job.npid, job);
            }
        }
    }

    /// Removes what was lost long ago.
    pub(super) fn expire(&mut self, now: Seconds) {
        let before = self.jobs.len();
        self.jobs.retain(|_, job| !job.has_expired(now));
        self.changed |= self.jobs.len() < before;
    }

    /// Returns what is to be in the file, once that is known; nothing: it is to be removed.
    pub(super) fn record(&self) -> Option<Option<Record>> {
        let daemon = self.daemon.filter(|_| self.complete)?;
        let record = (!self.jobs.is_empty()).then(|| Record {
            version: VERSION,
            daemon,
            jobs: self.jobs.values().cloned().collect(),
        });
        Some(record)
    }

    /// Returns whether that has changed since it was last asked.
    pub(super) fn take_changed(&mut self) -> bool {
        self.complete && std::mem::take(&mut self.changed)
    }
}

impl Job {
    fn new(npid: u32, job: RunningJob, hides: bool) -> Self {
        let words = job.command.iter();
        let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
        let processes = job.members.iter().map(|member| Process {
            vnn: member.vnn,
            node: member.node.0,
            pid: member.pid,
        });
        let mut processes: Vec<Process> = processes.collect();
        processes.sort_unstable_by_key(|process| process.vnn);
        Self {
            npid,
            uid: job.uid,
            started: job.started,
            count: job.count,
            begun: job.begun,
            command: if hides { Vec::new() } else { words.collect() },
            processes,
            lost: None,
            gang: job.gang,
        }
    }

    /// Returns it as one of the gangs that take turns, if so.
    fn as_gang(&self) -> Option<Gang> {
        let since = self.gang.filter(|_| self.lost.is_none())?;
        let processes = self.processes.iter();
        Some(Gang {
            npid: self.npid,
            since,
            processes: processes
                .map(|process| (NodeId(process.node), process.pid))
                .collect(),
        })
    }

    fn has_expired(&self, now: Seconds) -> bool {
        let age = self.lost.map(|at| now.saturating_sub(at));
        age.is_some_and(|age| age >= LOST_KEPT)
    }
}

impl Record {
    /// Returns the gangs that run.
    pub(super) fn gangs(&self) -> Vec<Gang> {
        self.jobs.iter().filter_map(Job::as_gang).collect()
    }

    /// The home of these jobs is lost, and they with it.
    pub(super) fn lose(&mut self, now: Seconds) -> Fate {
        let before = self.jobs.len();
        self.jobs.retain(|job| !job.has_expired(now));
        let mut changed = self.jobs.len() < before;
        for job in &mut self.jobs {
            changed |= job.lost.is_none();
            job.lost.get_or_insert(now);
        }
        match (self.jobs.is_empty(), changed) {
            (true, _) => Fate::Remove,
            (false, true) => Fate::Write,
            (false, false) => Fate::Leave,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use gproc::job::protocol::JobNews;
    use std::collections::BTreeSet;

    /// Books that do not keep J8.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Mutant {
        ForgetsLost,
        KeepsEnded,
    }

    fn job() -> RunningJob {
        RunningJob {
            uid: 5,
            started: 100,
            command: vec!["sleep".into(), "9".into()],
            count: 1,
            begun: 1,
            members: vec![gproc::job::protocol::Member {
                vnn: 0,
                node: NodeId(2),
                pid: 131_080,
            }],
            gang: None,
        }
    }

    fn news(daemon: u64, runs: &[u32], ended: &[u32]) -> JobsNews {
        let runs = runs.iter().map(|&npid| JobNews {
            npid,
            job: Some(job()),
        });
        let ended = ended.iter().map(|&npid| JobNews { npid, job: None });
        JobsNews {
            home: NodeId(1),
            daemon,
            jobs: runs.chain(ended).collect(),
            more: false,
        }
    }

    /// Returns the jobs on record, and whether each is lost.
    fn seen(record: Option<&Record>) -> Vec<(u32, bool)> {
        let jobs = record.into_iter().flat_map(|record| &record.jobs);
        jobs.map(|job| (job.npid, job.lost.is_some())).collect()
    }

    fn written(book: &Book) -> Option<Record> {
        book.record().expect("all is told")
    }

    #[test]
    fn a_record_goes_through_its_file() {
        let mut book = Book::new(None, false);
        assert_eq!(book.record(), None);
        book.take(news(1, &[7], &[]), 0);
        let record = written(&book).expect("a job");
        let text = serde_json::to_string(&record).expect("plain data");
        assert_eq!(
            text,
            r#"{"version":1,"daemon":1,"jobs":[{"npid":7,"uid":5,"started":100,"count":1,"begun":1,"command":["sleep","9"],"processes":[{"vnn":0,"node":2,"pid":131080}],"lost":null}]}"#
        );
        assert_eq!(
            serde_json::from_str::<Record>(&text).expect("reads"),
            record
        );
        book.take(news(1, &[], &[7]), 0);
        assert!(book.take_changed() && !book.take_changed());
        assert_eq!(written(&book), None);
    }

    #[test]
    fn gangs_of_a_record() {
        let mut book = Book::new(None, false);
        let mut told = news(1, &[7, 8], &[]);
        told.jobs[1].job.as_mut().expect("runs").gang = Some(41);
        book.take(told, 0);
        let record = written(&book).expect("jobs");
        let text = serde_json::to_string(&record).expect("plain data");
        let mut record: Record = serde_json::from_str(&text).expect("reads");
        let gang = Gang {
            npid: 8,
            since: 41,
            processes: BTreeSet::from([(NodeId(2), 131_080)]),
        };
        assert_eq!(record.gangs(), [gang]);
        record.lose(10);
        assert_eq!(record.gangs(), [], "it is lost with its home");
    }

    #[test]
    fn hidden_processes_have_no_commands() {
        let mut book = Book::new(None, true);
        book.take(news(1, &[7], &[]), 0);
        assert!(written(&book).expect("a job").jobs[0].command.is_empty());
    }

    #[test]
    fn what_became_of_the_jobs_in_the_file() {
        let check = |daemon, expected: &[(u32, bool)]| {
            let mut first = Book::new(None, false);
            first.take(news(1, &[7, 8], &[]), 0);
            let mut book = Book::new(written(&first), false);
            book.take(news(daemon, &[8, 9], &[]), 10);
            assert_eq!(seen(written(&book).as_ref()), expected);
            book.expire(10 + LOST_KEPT);
            assert_eq!(seen(written(&book).as_ref()), [(8, false), (9, false)]);
        };
        check(1, &[(8, false), (9, false)]);
        check(2, &[(7, true), (8, false), (9, false)]);
    }

    #[test]
    fn a_lost_home_is_forgotten_in_time() {
        let mut book = Book::new(None, false);
        book.take(news(1, &[7], &[]), 0);
        let mut record = written(&book).expect("a job");
        assert_eq!(record.lose(10), Fate::Write);
        assert_eq!(seen(Some(&record)), [(7, true)]);
        assert_eq!(record.lose(11), Fate::Leave);
        assert_eq!(record.lose(10 + LOST_KEPT), Fate::Remove);
    }

    /// Returns the first promise that a world of random events breaks.
    fn world(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
        let mut state = seed.wrapping_mul(2).wrapping_add(1);
        let mut dice = |sides: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % sides
        };
        let open = |file: &Option<Record>| {
            let mut book = Book::new(file.clone(), false);
            book.mutant = mutant;
            book
        };
        let (mut daemon, mut now, mut next) = (1, 0, 0_u32);
        let mut running = BTreeSet::new();
        let mut told: BTreeSet<u32> = BTreeSet::new();
        let mut file: Option<Record> = None;
        let mut book = open(&file);
        // Jobs that a daemon took with it while they were on record, and until when that must be seen.
        let mut owed: BTreeMap<u32, Seconds> = BTreeMap::new();
        // Those of which the next daemon cannot know whether they had ended by then.
        let mut unsure: BTreeSet<u32> = BTreeSet::new();
        for step in 0..200 {
            match dice(8) {
                0 | 1 => {
                    next += 1;
                    running.insert(next);
                }
                2 => {
                    let at = dice(1 + running.len() as u64);
                    let at = running.iter().nth(usize::try_from(at).expect("few"));
                    at.copied().map(|ended| running.remove(&ended));
                }
                3 => now += dice(10),
                // The daemon ends, and another one begins.
                4 if dice(4) == 0 => {
                    daemon += 1;
                    let on_record = file.iter().flat_map(|record| &record.jobs);
                    unsure.extend(on_record.clone().map(|job| job.npid));
                    let lost = on_record.filter(|job| running.contains(&job.npid));
                    owed.extend(lost.map(|job| (job.npid, job.lost.unwrap_or(now) + LOST_KEPT)));
                    running.clear();
                    told.clear();
                    book = open(&file);
                }
                // The recorder ends, and another one begins.
                5 if dice(4) == 0 => {
                    let on_record = file.iter().flat_map(|record| &record.jobs);
                    let lost = on_record.filter(|job| job.lost.is_some());
                    unsure.extend(lost.map(|job| job.npid));
                    told.clear();
                    book = open(&file);
                }
                // Home is thought to be lost, rightly or not.
                6 if dice(3) == 0 => {
                    if let Some(record) = &mut file
                        && record.lose(now) == Fate::Remove
                    {
                        file = None;
                    }
                }
                _ => {
                    let runs: Vec<u32> = running.difference(&told).copied().collect();
                    let ended: Vec<u32> = told.difference(&running).copied().collect();
                    book.take(news(daemon, &runs, &ended), now);
                    told = running.clone();
                    book.expire(now);
                    file = written(&book);
                    let seen = seen(file.as_ref());
                    let live = seen.iter().filter(|(_, lost)| !lost).map(|(npid, _)| *npid);
                    let live: BTreeSet<u32> = live.collect();
                    if live != running {
                        return Err(format!("step {step}: {live:?} and not {running:?} run"));
                    }
                    owed.retain(|_, until| now < *until);
                    let lost: BTreeSet<u32> = seen.iter().map(|(npid, _)| *npid).collect();
                    if let Some(missing) = owed.keys().find(|npid| !lost.contains(npid)) {
                        return Err(format!("step {step}: {missing} was lost, and nobody told"));
                    }
                    let may_be = |npid: &u32| running.contains(npid) || unsure.contains(npid);
                    if let Some(more) = lost.iter().find(|npid| !may_be(npid)) {
                        return Err(format!("step {step}: {more} has ended, and is called lost"));
                    }
                }
            }
        }
        book.take(news(daemon, &[], &[]), now);
        book.expire(now + LOST_KEPT);
        match seen(written(&book).as_ref()).iter().find(|(_, lost)| *lost) {
            Some((npid, _)) => Err(format!("{npid} is lost for ever")),
            None => Ok(()),
        }
    }

    #[test]
    fn worlds_keep_the_record() {
        for seed in 0..2_000 {
            world(seed, None).unwrap_or_else(|why| panic!("SEED={seed}: {why}"));
        }
    }

    #[test]
    fn mutants_are_caught() {
        for mutant in [Mutant::ForgetsLost, Mutant::KeepsEnded] {
            let caught = (0..200).any(|seed| world(seed, Some(mutant)).is_err());
            assert!(caught, "{mutant:?}");
        }
    }
}
