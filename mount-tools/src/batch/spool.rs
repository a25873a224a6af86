//! The queue's directory on the cluster's tree.
//!
//! ```text
//! .glu/batch/           root's, 0755
//!   lock                held by the scheduler that works, whose pid is in it
//!   jobs/12_3.json      a job, for everybody to read
//!   env/12              the environment of job 12, its user's alone
//!   rules.json          partitions and reservations
//!   last                the highest number of a job
//!   history             jobs that ended long ago, a line each
//!   requests/           everybody may make files there (1733): the owner of a file is who asks
//!   answers/            to each request, its user's alone
//! ```
//!
//! A file is written under another name, synced, and then given its name.

use super::job::{Job, User};
use super::queue::{Answer, Queue, Request, Rules};
use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// Where it is in the tree.
const OWN: &str = ".glu";
const BATCH: &str = "batch";
const RULES_NAME: &str = "rules.json";
/// The path of the rules from the root of the tree.
pub(crate) const RULES: [&str; 3] = [OWN, BATCH, RULES_NAME];

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long answers are kept for who asked.
const ANSWERS_KEPT: Duration = Duration::from_secs(3600);
/// How often a scheduler asks for the queue.
const LOCK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_EVERY: Duration = Duration::from_millis(10);

/// The directory.
#[derive(Clone, Debug)]
pub(super) struct Spool(PathBuf);

/// A request that was found.
#[derive(Debug)]
pub(super) struct Asked {
    name: String,
    pub(super) user: User,
    /// What, or why it is none.
    pub(super) request: Result<Request, String>,
}

impl Spool {
    /// Returns the one of a tree.
    pub(super) fn of(mount: &Path) -> Self {
        Self(mount.join(OWN).join(BATCH))
    }

    /// Makes what is missing of it.
    pub(super) fn prepare(&self) -> io::Result<()> {
        for (name, mode) in [
            ("jobs", 0o755),
            ("env", 0o711),
            ("answers", 0o711),
            ("requests", 0o1733),
        ] {
            let dir = self.0.join(name);
            fs::create_dir_all(&dir)?;
            fs::set_permissions(&dir, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    /// Waits until nobody else has the queue. It asks again and again: a request that waits for ever on each node would
    /// be in the way of whoever looks for one that hangs. The lock goes with the file that is returned, and nothing else is
    /// asked for then: the daemon that it is on may be gone before.
    pub(super) fn lock(&self) -> io::Result<File> {
        let path = self.0.join("lock");
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_EVERY),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        let holder = format!("{:>10}\n", std::process::id());
        file.write_all_at(holder.as_bytes(), 0)?;
        Ok(file)
    }

    /// Fails if the lock was lost, which any fsync of its open file tells from then on, or if the leader cannot be asked:
    /// F_GETLK does, and changes nothing.
    pub(super) fn beat(lock: &File) -> io::Result<()> {
        let mut any = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).expect("small"),
            l_whence: i16::try_from(libc::SEEK_SET).expect("small"),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(lock, FcntlArg::F_GETLK(&mut any))?;
        lock.sync_all()
    }

    /// Returns the directory where requests arrive.
    pub(super) fn requests_dir(&self) -> PathBuf {
        self.0.join("requests")
    }

    /// Returns where the environment of a job is.
    pub(super) fn env_path(&self, number: u64) -> PathBuf {
        self.0.join("env").join(number.to_string())
    }

    /// Reads the queue.
    pub(super) fn load(&self) -> Result<Queue> {
        let last: Option<u64> = self.read_one("last")?;
        let rules: Option<Rules> = self.read_one(RULES_NAME)?;
        Ok(Queue::new(
            self.jobs()?,
            rules.unwrap_or_default(),
            last.unwrap_or(0),
        ))
    }

    /// Keeps the jobs that have changed, the rules if they are other ones than `rules`, and the highest number.
    pub(super) fn save(&self, queue: &mut Queue, rules: &Rules, last: u64) -> io::Result<()> {
        // The number first: it must never be given again.
        if queue.last() != last {
            self.write("last", &queue.last())?;
        }
        if queue.rules() != rules {
            self.write(RULES_NAME, queue.rules())?;
        }
        let changed = queue.take_changed();
        for id in &changed {
            if let Some(job) = queue.job(*id) {
                self.write(&format!("jobs/{id}.json"), job)?;
            }
        }
        if !changed.is_empty() {
            File::open(self.0.join("jobs"))?.sync_all()?;
        }
        Ok(())
    }

    /// Moves jobs to the history.
    pub(super) fn retire(&self, jobs: &[Job]) -> io::Result<()> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for job in jobs {
            serde_json::to_writer(&mut lines, job)?;
            lines.push(b'\n');
        }
        let path = self.0.join("history");
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        file.write_all(&lines)?;
        file.sync_all()?;
        for job in jobs {
            fs::remove_file(self.0.join(format!("jobs/{}.json", job.id)))?;
            remove_if_there(&self.env_path(job.id.number))?;
        }
        Ok(())
    }

    /// Returns what is asked. Files that are no requests of anybody are removed.
    pub(super) fn requests(&self) -> io::Result<Vec<Asked>> {
        let mut asked = Vec::new();
        for entry in fs::read_dir(self.requests_dir())? {
            let file_name = entry?.file_name();
            let name = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name.filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let path = self.requests_dir().join(&file_name);
            match read_request(&path) {
                Ok((user, request)) => asked.push(Asked {
                    name: name.into(),
                    user,
                    request,
                }),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "no request: removed");
                    remove_if_there(&path)?;
                }
            }
        }
        Ok(asked)
    }

    /// Answers a request, and is through with it.
    pub(super) fn answer(&self, asked: &Asked, answer: &Answer) -> io::Result<()> {
        let env = self.requests_dir().join(format!("{}.env", asked.name));
        match answer {
            Answer::Submitted(number) => match fs::rename(&env, self.env_path(*number)) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                moved => moved?,
            },
            Answer::Done | Answer::Refused(_) => remove_if_there(&env)?,
        }
        let name = format!("answers/{}.json", asked.name);
        self.write_for(&name, answer, Some(asked.user))?;
        remove_if_there(&self.requests_dir().join(format!("{}.json", asked.name)))
    }

    /// Removes answers that nobody has fetched, and what was left of requests that were never finished.
    pub(super) fn sweep(&self) -> io::Result<()> {
        for dir in [self.0.join("answers"), self.requests_dir()] {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                let Ok(about) = fs::symlink_metadata(&path) else {
                    continue;
                };
                let age = SystemTime::now().duration_since(about.modified()?);
                if !about.is_dir() && age.is_ok_and(|age| age > ANSWERS_KEPT) {
                    remove_if_there(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Asks the scheduler, with an environment for what is submitted, and waits for its answer.
    pub(super) fn ask(
        &self,
        request: &Request,
        env: Option<&[(OsString, OsString)]>,
    ) -> Result<Answer> {
        let dir = self.requests_dir();
        let make = || {
            let mut file = tempfile::Builder::new()
                .prefix(".")
                .suffix(".json")
                .rand_bytes(24)
                .tempfile_in(&dir)?;
            serde_json::to_writer(file.as_file_mut(), request)?;
            io::Result::Ok(file)
        };
        let place = || format!("{}: cannot ask; is glud running?", dir.display());
        let until = Instant::now() + ANSWER_WITHIN;
        let file = loop {
            match make() {
                // The scheduler of a cluster that has just begun is about to make the directory.
                Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < until => {
                    std::thread::sleep(ANSWER_EVERY);
                }
                made => break made.with_context(place)?,
            }
        };
        let name = file
            .path()
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let name = name.trim_start_matches('.').to_owned();
        if let Some(env) = env {
            let path = dir.join(name.replace(".json", ".env"));
            let mut bytes = Vec::new();
            for (name, value) in env {
                bytes.extend_from_slice(name.as_bytes());
                bytes.push(b'=');
                bytes.extend_from_slice(value.as_bytes());
                bytes.push(0);
            }
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path);
            file.and_then(|mut file| file.write_all(&bytes))
                .with_context(place)?;
        }
        file.persist(dir.join(&name)).with_context(place)?;
        let answer = self.0.join("answers").join(&name);
        loop {
            if let Some(answer) = read_json(&answer)? {
                return Ok(answer);
            }
            if Instant::now() > until {
                // Unless it has just been taken up, it will not be.
                if fs::remove_file(dir.join(&name)).is_ok() {
                    bail!(
                        "no scheduler has answered for {} s; `glu status` shows the nodes",
                        ANSWER_WITHIN.as_secs()
                    );
                }
                bail!(
                    "the scheduler has taken it up and not answered; `glubatch list` shows the jobs"
                );
            }
            std::thread::sleep(ANSWER_EVERY);
        }
    }

    /// Returns the jobs of the queue.
    pub(super) fn jobs(&self) -> Result<Vec<Job>> {
        let dir = self.0.join("jobs");
        let place = || format!("{}: cannot be read", dir.display());
        let mut jobs = Vec::new();
        for entry in fs::read_dir(&dir).with_context(place)? {
            let name = entry.with_context(place)?.file_name();
            let hidden = name.as_bytes().first() == Some(&b'.');
            // One that is not there any more is history by now.
            if !hidden && let Some(job) = read_json(&dir.join(&name))? {
                jobs.push(job);
            }
        }
        jobs.sort_unstable_by_key(|job: &Job| job.id);
        Ok(jobs)
    }

    /// Returns the jobs that are not in the queue any more, the oldest first.
    pub(super) fn history(&self) -> Result<Vec<Job>> {
        let path = self.0.join("history");
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let line = |line: io::Result<String>| {
            let job = line.map(|line| serde_json::from_str(&line));
            job?.with_context(|| format!("{}: a line is no job", path.display()))
        };
        BufReader::new(file).lines().map(line).collect()
    }

    /// Returns partitions and reservations.
    pub(super) fn rules(&self) -> Result<Rules> {
        Ok(self.read_one(RULES_NAME)?.unwrap_or_default())
    }

    fn read_one<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        read_json(&self.0.join(name))
    }

    fn write(&self, name: &str, what: &impl Serialize) -> io::Result<()> {
        self.write_for(name, what, None)
    }

    /// Writes a file for everybody to read, or for one user alone.
    fn write_for(&self, name: &str, what: &impl Serialize, user: Option<User>) -> io::Result<()> {
        write_json(&self.0.join(name), what, user)
    }
}

/// Writes a file for everybody to read, or for one user alone: all of it or nothing, under a hidden name first.
pub(crate) fn write_json(path: &Path, what: &impl Serialize, user: Option<User>) -> io::Result<()> {
    let dir = path.parent().expect("names have directories");
    let mut hidden = OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    hidden.push(".");
    let mut file = tempfile::Builder::new().prefix(&hidden).tempfile_in(dir)?;
    serde_json::to_writer(file.as_file_mut(), what)?;
    match user {
        Some(user) => fchown(file.as_file(), Some(user.uid), Some(user.gid))?,
        None => file
            .as_file()
            .set_permissions(Permissions::from_mode(0o644))?,
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Reads a request; fails if the file is nobody's request.
fn read_request(path: &Path) -> io::Result<(User, Result<Request, String>)> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)?;
    let about = file.metadata()?;
    // Another name of it: the owner of a file is not who has made the link.
    if !about.is_file() || about.nlink() != 1 {
        return Err(io::Error::other("no file, or one with several names"));
    }
    let mut text = String::new();
    file.take(REQUEST_BYTES_MAX).read_to_string(&mut text)?;
    let request = serde_json::from_str(&text).map_err(|error| format!("not understood: {error}"));
    let user = User {
        uid: about.uid(),
        gid: about.gid(),
    };
    Ok((user, request))
}

/// Reads a file; none: it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("{}: cannot be read", path.display()))?,
    };
    let read = serde_json::from_slice(&text);
    read.map(Some)
        .with_context(|| format!("{}: is damaged", path.display()))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
