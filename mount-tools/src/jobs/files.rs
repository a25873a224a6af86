//! The directory of the record.
//!
//! ```text
//! .glu/jobs/            root's, 0755
//!   node3.json          the jobs whose home is node 3, for everybody to read; absent: there are none
//! ```

use super::record::{Fate, Job, Record, Seconds};
use crate::batch::{read_json, write_json};
use anyhow::{Context, Result};
use consistency::NodeId;
use gproc::job::forget_homes;
use gproc::pids::ClusterPid;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where it is in the tree.
const DIR: [&str; 2] = [".glu", "jobs"];

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Files(PathBuf);

/// How long a job may take until it is on record with all of its processes.
const BEGUN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What tells a file from another one in its place.
pub(super) type Mark = (u64, i64, i64);

impl Files {
    /// Returns that of a tree.
    pub(crate) fn of(mount: &Path) -> Self {
        Self(mount.join(DIR[0]).join(DIR[1]))
    }

    /// Makes it, and removes what a recorder of this home has left half done.
    pub(super) fn prepare(&self, home: NodeId) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        fs::set_permissions(&self.0, Permissions::from_mode(0o755))?;
        let half = format!(".{}.", name(home));
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(half.as_bytes())
            {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Reads the file of a home. One that is damaged is none: its home writes it anew.
    pub(super) fn read(&self, home: NodeId) -> io::Result<Option<Record>> {
        match read_json(&self.path(home)) {
            Ok(record) => Ok(record),
            Err(error) => match error.downcast::<io::Error>() {
                Ok(error) => Err(error),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "no record of jobs");
                    Ok(None)
                }
            },
        }
    }

    /// Writes the file of a home, or removes it.
    pub(super) fn write(&self, home: NodeId, record: Option<&Record>) -> io::Result<()> {
        match record {
            Some(record) => write_json(&self.path(home), record, None),
            None => remove(&self.path(home)),
        }
    }

    /// Returns what shows that the file of a home is the same as before; none: there is none.
    pub(super) fn mark(&self, home: NodeId) -> io::Result<Option<Mark>> {
        match fs::metadata(self.path(home)) {
            Ok(about) => Ok(Some((about.ino(), about.mtime(), about.mtime_nsec()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says of the jobs of homes that are not `up` that they are lost, and forgets them in time.
    pub(crate) fn lose(&self, up: impl Fn(NodeId) -> bool, now: Seconds) -> io::Result<()> {
        for home in self.homes()?.into_iter().filter(|home| !up(*home)) {
            let Some(mut record) = self.read(home)? else {
                continue;
            };
            match record.lose(now) {
                Fate::Leave => {}
                Fate::Write => {
                    tracing::info!(node = %home, "the jobs of a node are lost with it");
                    self.write(home, Some(&record))?;
                }
                Fate::Remove => {
                    self.write(home, None)?;
                    // CK5: nobody is left who would start a job from them.
                    let mount = self.0.ancestors().nth(DIR.len()).unwrap_or(&self.0);
                    forget_homes(mount, |of| of != home)?;
                }
            }
        }
        Ok(())
    }

    /// Returns all jobs with their homes.
    pub(super) fn jobs(&self) -> Result<Vec<(NodeId, Job)>> {
        let place = || format!("{}: cannot be read", self.0.display());
        let mut jobs = Vec::new();
        for home in self.homes().with_context(place)? {
            // One that is not there any more has no jobs.
            let record = self.read(home).with_context(place)?;
            let of_home = record.into_iter().flat_map(|record| record.jobs);
            jobs.extend(of_home.map(|job| (home, job)));
        }
        jobs.sort_unstable_by_key(|(_, job)| job.npid);
        Ok(jobs)
    }

    /// Returns the process that is on record as this one of a job. It may have ended, and its number be another's.
    pub(crate) fn process(&self, npid: ClusterPid, vnn: u32) -> Option<ClusterPid> {
        let job = self.job(npid)?;
        let process = job.processes.iter().find(|of| of.vnn == vnn)?;
        ClusterPid::of(NodeId(process.node), i32::try_from(process.pid).ok()?)
    }

    /// Returns the job of this number that runs, as it is on record.
    pub(super) fn job(&self, npid: ClusterPid) -> Option<Job> {
        let record = self.read(npid.home()).ok()??;
        let runs = |job: &Job| job.npid == npid.number() && job.lost.is_none();
        record.jobs.into_iter().find(runs)
    }

    /// Returns the node of each process that a job has, once all of them have begun.
    ///
    /// # Errors
    /// One line: there is no such job, or not all of it begins.
    pub(crate) fn places(&self, npid: ClusterPid) -> Result<Vec<NodeId>, String> {
        let until = Instant::now() + BEGUN_WITHIN;
        loop {
            let job = self.job(npid);
            let begun = job.as_ref().filter(|job| job.begun >= job.count);
            if let Some(job) = begun {
                let processes = job.processes.iter();
                return Ok(processes.map(|process| NodeId(process.node)).collect());
            }
            if Instant::now() > until {
                return Err(match job {
                    Some(job) => format!("job {npid}: {} of {} have begun", job.begun, job.count),
                    None => no_job(npid),
                });
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn homes(&self) -> io::Result<Vec<NodeId>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut homes = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            let number = file.to_str().and_then(|file| {
                let number = file.strip_prefix("node")?.strip_suffix(".json")?;
                number.parse().ok()
            });
            homes.extend(number.map(NodeId));
        }
        Ok(homes)
    }

    fn path(&self, home: NodeId) -> PathBuf {
        self.0.join(name(home))
    }
}

/// Says that there is no job of this number.
pub(crate) fn no_job(npid: ClusterPid) -> String {
    format!("{npid} is no job that runs: `glu jobs` shows them")
}

/// Where the file of a home is in the tree.
pub(super) fn path_of(home: NodeId) -> [String; 3] {
    let [first, second] = DIR;
    [first.into(), second.into(), name(home)]
}

fn name(home: NodeId) -> String {
    format!("node{home}.json")
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::record::Process;

    #[test]
    fn files_of_homes() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files::of(dir.path());
        assert!(files.jobs().expect("nothing is there").is_empty());
        let [first, second] = [NodeId(1), NodeId(2)];
        files.prepare(first).expect("made");
        let job = |npid, node: u16| Job {
            npid,
            uid: 5,
            started: 7,
            count: 1,
            begun: 1,
            command: vec!["ls".into()],
            processes: vec![Process {
                vnn: 3,
                node,
                pid: u32::from(node) << 16 | 9,
            }],
            lost: None,
            gang: None,
        };
        let record = |job| {
            let text = r#"{"version":1,"daemon":1,"jobs":[]}"#;
            let mut record: Record = serde_json::from_str(text).expect("a record");
            record.jobs.push(job);
            record
        };
        files
            .write(first, Some(&record(job(65_600, 2))))
            .expect("written");
        files
            .write(second, Some(&record(job(131_100, 1))))
            .expect("written");
        let mark = files.mark(first).expect("there");
        assert!(mark.is_some());
        let npid = |number: i32| ClusterPid::try_from(number).expect("a pid");
        let process = files.process(npid(65_600), 3).expect("on record");
        assert_eq!(process.number(), 131_081);
        assert_eq!(files.process(npid(65_600), 4), None);
        assert_eq!(files.process(npid(65_601), 3), None);

        files.lose(|node| node == first, 100).expect("kept");
        let jobs = files.jobs().expect("reads");
        let seen: Vec<_> = jobs.iter().map(|(home, job)| (home.0, job.lost)).collect();
        assert_eq!(seen, [(1, None), (2, Some(100))]);
        assert_eq!(files.process(npid(131_100), 3), None, "it is lost");
        for home in ["node1", "node2"] {
            let checkpoints = dir.path().join(".glu/checkpoints").join(home);
            fs::create_dir_all(&checkpoints).expect("made");
            fs::write(checkpoints.join("9.1"), "").expect("written");
        }
        files.lose(|node| node == first, 1000).expect("kept");
        // CK5
        let left = fs::read_dir(dir.path().join(".glu/checkpoints")).expect("there");
        let left: Vec<_> = left
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["node1"]);
        assert_eq!(files.mark(second).expect("no error"), None);
        assert_eq!(files.mark(first).expect("there"), mark);

        fs::write(dir.path().join(".glu/jobs/node1.json"), "damaged").expect("written");
        fs::write(dir.path().join(".glu/jobs/.node1.json.x"), "").expect("written");
        assert_eq!(files.read(first).expect("is none"), None);
        files.prepare(first).expect("there");
        let names = fs::read_dir(dir.path().join(".glu/jobs")).expect("there");
        assert_eq!(names.count(), 1);
    }
}
