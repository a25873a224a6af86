//! The process beside each daemon that starts the jobs of the queue.
//!
//! The main thread decides and starts; it alone has children, which get a signal when it ends (`setpriv --pdeathsig`).
//! Other threads wait for their ends, for requests, and write into the lock's file: a scheduler that cannot any more,
//! because its node is cut off, is gone before another one starts its jobs again (B1).

use super::job::{Job, JobId, Outcome, User, now};
use super::queue::{Action, Answer, FENCE, Machine, Queue, Rules};
use super::spool::Spool;
use crate::jobs::files::Files;
use crate::jobs::recorder;
use crate::nodes::NodeSet;
use crate::run::owner;
use anyhow::{Context, Result, bail};
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use gfs::root::Rights;
use gproc::job::protocol::Failure;
use gproc::job::{SOCKET_ENV, SOCKET_PATH};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, getgrouplist};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What makes `glud` a scheduler; the daemon's pid and the mount point follow.
pub const ARGUMENT: &str = "--schedule";

/// How often nodes are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the lock is seen to be held.
const BEAT: Duration = Duration::from_secs(1);
/// Without that for so long everything is ended.
const SILENCE_MAX: Duration = Duration::from_secs(6);
/// How long a job that is told to end may take, until it is killed.
const KILL_AFTER: Duration = Duration::from_secs(10);
/// How often what is old is cleared away.
const SWEEP: Duration = Duration::from_secs(60);
/// Words of a job's error that its reason shows, in bytes.
const REASON_BYTES_MAX: u64 = 500;
/// Where setpriv(1) and the shells are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// What this node's daemon needs to notice that its side of a job is gone comes on top: `SILENCE_MAX` of gproc::job.
const _: () = assert!(
    SILENCE_MAX.as_secs() + gproc::job::protocol::SILENCE_MAX.as_secs() < FENCE,
    "B1: a job may be started again while it runs"
);

/// Starts the scheduler of a node, whose daemon this is. Must be called on the main thread: it ends with that.
pub(crate) fn start(mount: &Path, jobs_socket: &Path) -> io::Result<tokio::process::Child> {
    tokio::process::Command::new(std::env::current_exe()?)
        .arg(ARGUMENT)
        .arg(std::process::id().to_string())
        .arg(mount)
        .env(SOCKET_ENV, jobs_socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
}

/// Is the scheduler, for as long as the daemon `parent` lives.
///
/// # Errors
/// One line: the queue cannot be read or written, or this node is cut off from it.
pub fn main(parent: u32, mount: &Path) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("ask for the parent death signal")?;
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .init();
    let spool = Spool::of(mount);
    spool
        .prepare()
        .with_context(|| format!("the queue under {}", mount.display()))?;
    recorder::start(mount, socket()).context("the record of jobs")?;
    let lock = spool.lock().context("the lock of the queue")?;
    let scheduler = Scheduler::take_over(mount, spool, &lock)?;
    scheduler.run()
}

fn socket() -> PathBuf {
    std::env::var_os(SOCKET_ENV).map_or_else(|| SOCKET_PATH.into(), PathBuf::from)
}

/// A node, whether it is up, and its load.
type Known = (NodeId, bool, NodeLoad);

/// What the main thread is told.
enum Event {
    Request,
    Ended(JobId, Outcome, String),
}

struct Scheduler {
    mount: PathBuf,
    spool: Spool,
    queue: Queue,
    /// Rules and highest number as they are kept.
    kept: (Rules, u64),
    running: Running,
    /// When jobs that are being ended are killed.
    ends: BTreeMap<JobId, Instant>,
    tell: Sender<Event>,
    told: mpsc::Receiver<Event>,
    /// Where `glurun` is, and the daemon's socket for it.
    glurun: PathBuf,
    socket: PathBuf,
    /// The record of all jobs that run.
    jobs: Files,
}

/// The children; shared with who ends them all.
type Running = Arc<Mutex<BTreeMap<JobId, Pid>>>;

impl Scheduler {
    fn take_over(mount: &Path, spool: Spool, lock: &File) -> Result<Self> {
        let running = Running::default();
        keep_beating(lock.try_clone()?, Arc::clone(&running));
        let mut queue = spool.load()?;
        let kept = (queue.rules().clone(), queue.last());
        queue.recover(now());
        let (tell, told) = mpsc::channel();
        watch(&spool.requests_dir(), tell.clone())?;
        let own = std::env::current_exe().context("find the path of glud")?;
        tracing::info!("schedules the batch jobs of the cluster");
        Ok(Self {
            mount: mount.to_owned(),
            spool,
            queue,
            kept,
            running,
            ends: BTreeMap::new(),
            tell,
            told,
            glurun: own.with_file_name("glurun"),
            socket: socket(),
            jobs: Files::of(mount),
        })
    }

    fn run(mut self) -> Result<()> {
        let mut swept = None;
        loop {
            self.answer()?;
            let nodes = self.nodes();
            self.lose_jobs(&nodes);
            let machines = self.machines(nodes);
            let actions = self.queue.step(now(), &machines);
            // What is started is known to the next scheduler first.
            self.save()?;
            self.act(actions);
            if swept.is_none_or(|swept: Instant| swept.elapsed() > SWEEP) {
                let old = self.queue.forget(now());
                self.spool.retire(&old)?;
                self.spool.sweep()?;
                swept = Some(Instant::now());
            }
            self.save()?;
            self.kill_late();
            match self.told.recv_timeout(TICK) {
                Ok(event) => self.take(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("nobody waits for requests any more"),
            }
            while let Ok(event) = self.told.try_recv() {
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: Event) {
        if let Event::Ended(id, outcome, why) = event {
            self.running.lock().expect("no holder panics").remove(&id);
            self.ends.remove(&id);
            self.queue.ended(now(), id, outcome, why);
        }
    }

    fn answer(&mut self) -> Result<()> {
        for mut asked in self.spool.requests().context("the requests")? {
            let mut actions = Vec::new();
            let request = std::mem::replace(&mut asked.request, Err(String::new()));
            let answer = match request {
                Ok(request) => self.queue.ask(now(), asked.user, request, &mut actions),
                Err(why) => Answer::Refused(why),
            };
            self.save()?;
            self.act(actions);
            self.spool.answer(&asked, &answer).context("an answer")?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let (rules, last) = &self.kept;
        self.spool
            .save(&mut self.queue, rules, *last)
            .context("the queue cannot be kept")?;
        if self.kept.1 != self.queue.last() || self.kept.0 != *self.queue.rules() {
            self.kept = (self.queue.rules().clone(), self.queue.last());
        }
        Ok(())
    }

    /// Returns the nodes as the leader knows them; none while nobody can tell.
    fn nodes(&self) -> Vec<Known> {
        match owner::nodes(&self.socket) {
            Ok(Ok(nodes)) => nodes,
            Ok(Err(why)) | Err(why) => {
                tracing::debug!(why, "the nodes are not known");
                Vec::new()
            }
        }
    }

    /// Says of the jobs of nodes that are lost that they are, too (J8).
    fn lose_jobs(&self, nodes: &[Known]) {
        if nodes.is_empty() {
            return;
        }
        let up = |home| nodes.iter().any(|(node, up, _)| *node == home && *up);
        if let Err(error) = self.jobs.lose(up, now()) {
            tracing::warn!(%error, "the record of jobs");
        }
    }

    fn machines(&self, nodes: Vec<Known>) -> Vec<Machine> {
        let users = self.queue.waiting_users().into_iter();
        let users: Vec<_> = users.map(|user| (user, groups_of(user))).collect();
        let machine = |(node, up, load): (_, _, NodeLoad)| Machine {
            node,
            // One that has just come has not told what it has. Where nothing waits nobody is asked.
            up: up && load.cpus > 0 && (users.is_empty() || !self.is_blocked(node)),
            cpus: load.cpus,
            runnable: f64::from(load.runnable),
            mem_free_mib: load.mem_available_kib >> 10,
            closed_to: self.closed_to(node, &users),
        };
        nodes.into_iter().map(machine).collect()
    }

    /// Returns whether a node takes no processes of other nodes.
    fn is_blocked(&self, node: NodeId) -> bool {
        let is_on = |name| {
            let file = format!("proc/cluster/node{node}/{name}");
            std::fs::read(self.mount.join(file)).is_ok_and(|value| value == b"1\n")
        };
        is_on("block") || is_on("in_use")
    }

    /// Returns which users with jobs that wait may not run them on a node. What is not known here its daemon knows.
    fn closed_to(&self, node: NodeId, users: &[(User, Vec<u32>)]) -> BTreeSet<u32> {
        // Nobody waits: nothing is to be found out.
        let dir = (!users.is_empty()).then(|| self.mount.join(format!("node{node}")));
        let Some(Ok(metadata)) = dir.map(|dir| dir.metadata()) else {
            return BTreeSet::new();
        };
        let rights = Rights {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode(),
        };
        let closed = |(user, groups): &&(User, Vec<u32>)| !rights.admit(user.uid, user.gid, groups);
        users
            .iter()
            .filter(closed)
            .map(|(user, _)| user.uid)
            .collect()
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start(id, on) => {
                    let job = self.queue.job(id).expect("the queue has what it starts");
                    if let Err(error) = self.start(job, &on) {
                        let why = format!("cannot be started: {error}");
                        self.queue.ended(now(), id, Outcome::Lost, why);
                    }
                }
                Action::End(id) => {
                    self.signal(id, Signal::SIGTERM);
                    self.ends.insert(id, Instant::now() + KILL_AFTER);
                }
            }
        }
    }

    fn kill_late(&mut self) {
        let late = |(_, until): &(&JobId, &Instant)| **until <= Instant::now();
        let late: Vec<JobId> = self.ends.iter().filter(late).map(|(id, _)| *id).collect();
        for id in late {
            self.ends.remove(&id);
            self.signal(id, Signal::SIGKILL);
        }
    }

    fn signal(&self, id: JobId, signal: Signal) {
        // While it is in the map it has not been waited for: its number is not another's.
        if let Some(pid) = self.running.lock().expect("no holder panics").get(&id) {
            kill(*pid, signal).ok();
        }
    }

    fn start(&self, job: &Job, on: &[NodeId]) -> io::Result<()> {
        let mut command = self.command(job, on);
        let mask = umask(Mode::from_bits_truncate(job.spec.umask));
        let child = command.spawn();
        umask(mask);
        let mut child = child?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let (id, tell, running) = (job.id, self.tell.clone(), Arc::clone(&self.running));
        running.lock().expect("no holder panics").insert(id, pid);
        std::thread::Builder::new()
            .name(format!("job {id}"))
            .spawn(move || {
                let why = first_words(&mut child);
                wait_unreaped(pid);
                // Nobody signals what is out of the map.
                running.lock().expect("no holder panics").remove(&id);
                let (outcome, why) = judge(child.wait(), why);
                // Only if this process ends.
                tell.send(Event::Ended(id, outcome, why)).ok();
            })?;
        Ok(())
    }

    /// Returns the command that runs a job as its user. Nothing that the user chooses is in the environment of
    /// setpriv(1), which runs as root.
    fn command(&self, job: &Job, on: &[NodeId]) -> Command {
        let spec = &job.spec;
        let user = job.user;
        let mut command = Command::new("setpriv");
        command
            .env_clear()
            .env("PATH", PATH)
            .env(SOCKET_ENV, &self.socket);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.args([
            "--reuid",
            &user.uid.to_string(),
            "--regid",
            &user.gid.to_string(),
        ]);
        let account = nix::unistd::User::from_uid(Uid::from_raw(user.uid));
        let groups = match account {
            Ok(Some(_)) => "--init-groups",
            Ok(None) | Err(_) => "--clear-groups",
        };
        command.args([groups, "--pdeathsig", "KILL", "--"]);
        command
            .arg(&self.glurun)
            .arg("--chdir")
            .arg(&spec.directory);
        command
            .arg("--export-file")
            .arg(self.spool.env_path(job.id.number));
        let mut export = format!("ALL,GLU_BATCH_ID={}", job.id);
        if let Some(index) = job.id.index {
            export.push_str(&format!(
                ",GLU_ARRAY_ID={},GLU_ARRAY_INDEX={index}",
                job.id.number
            ));
        }
        command.arg("--export").arg(export);
        command.arg("--output").arg(job.expand(&spec.output));
        if let Some(error) = &spec.error {
            command.arg("--error").arg(job.expand(error));
        }
        if spec.mem_mib > 0 {
            command.args(["--mem", &spec.mem_mib.to_string()]);
        }
        if let Some(cpus) = spec.cpus_max {
            command.args(["--cpus", &cpus.to_string()]);
        }
        if let Some(private) = spec.private {
            command.args(["--private", &private.to_string()]);
        }
        if spec.gang {
            command.arg("--gang");
        }
        let places: Vec<String> = on.iter().map(ToString::to_string).collect();
        command.arg("--places").arg(places.join(","));
        command
            .arg("--")
            .args(spec.command.iter().map(OsString::from));
        tracing::info!(job = %job.id, nodes = NodeSet::folded(on.iter().copied()), "starts");
        command
    }
}

/// Returns what a child says before it has its own descriptor for errors: why it could not begin.
fn first_words(child: &mut Child) -> String {
    let mut words = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read is not said.
        stderr.take(REASON_BYTES_MAX).read_to_end(&mut words).ok();
    }
    String::from_utf8_lossy(&words).trim().to_owned()
}

/// Waits for the end of a child, and leaves it to be waited for.
fn wait_unreaped(pid: Pid) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
}

/// Returns the groups that a job of a user has (see [`Scheduler::start`]).
fn groups_of(user: User) -> Vec<u32> {
    let account = nix::unistd::User::from_uid(Uid::from_raw(user.uid));
    let name = account
        .ok()
        .flatten()
        .map(|account| CString::new(account.name));
    let Some(Ok(name)) = name else {
        return Vec::new();
    };
    let groups = getgrouplist(&name, Gid::from_raw(user.gid));
    groups.into_iter().flatten().map(Gid::as_raw).collect()
}

fn judge(status: io::Result<ExitStatus>, why: String) -> (Outcome, String) {
    let status = match status {
        Ok(status) => status,
        Err(error) => return (Outcome::Lost, error.to_string()),
    };
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(Failure::Cluster.status()) && why.is_empty() => {
            (Outcome::Lost, "a node was lost; see its errors".into())
        }
        (Some(code), _) => (Outcome::Exited(code), why),
        (None, Some(signal)) => (Outcome::Killed(signal), why),
        (None, None) => (Outcome::Lost, why),
    }
}

/// Sees that the lock is held; ends everything when it is not, or nobody can say.
fn keep_beating(lock: File, running: Running) {
    // None: it is lost.
    let seen = Arc::new(Mutex::new(Some(Instant::now())));
    let beaten = Arc::clone(&seen);
    std::thread::spawn(move || {
        while Spool::beat(&lock).is_ok() {
            *beaten.lock().expect("no holder panics") = Some(Instant::now());
            std::thread::sleep(BEAT);
        }
        *beaten.lock().expect("no holder panics") = None;
    });
    std::thread::spawn(move || {
        let held = |seen: Option<Instant>| seen.is_some_and(|at| at.elapsed() < SILENCE_MAX);
        while held(*seen.lock().expect("no holder panics")) {
            std::thread::sleep(BEAT / 4);
        }
        for pid in running.lock().expect("no holder panics").values() {
            kill(*pid, Signal::SIGKILL).ok();
        }
        tracing::warn!("the lock of the batch queue is lost: its jobs are ended");
        std::process::exit(1);
    });
}

/// Tells of new requests, also of those that users of other nodes make.
fn watch(dir: &Path, tell: Sender<Event>) -> Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("inotify")?;
    inotify
        .add_watch(dir, AddWatchFlags::IN_MOVED_TO)
        .context("watch the requests")?;
    std::thread::spawn(move || {
        loop {
            match inotify.read_events() {
                Ok(_) if tell.send(Event::Request).is_err() => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return tracing::warn!(%error, "requests are seen late"),
            }
        }
    });
    Ok(())
}
