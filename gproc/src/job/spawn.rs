//! Starts programs on threads of their own (rule J4).
//!
//! The threads live as long as the daemon: the kernel ends a child when the *thread* that made it ends.

use super::group::{Group, Groups};
use super::protocol::{Credentials, End, Failure, Start};
use super::sys::{self, Launch, LaunchError, Step};
use bytes::Bytes;
use consistency::NodeId;
use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{mpsc, oneshot};

/// Programs that can be on their way into exec at a time: one on a hanging mount holds a thread.
const THREADS: usize = 8;

/// Jobs that may wait for a thread.
const QUEUED_MAX: usize = 1024;

/// Where programs are looked for if the job has no PATH, as execvp(3) does.
const PATH_DEFAULT: &[u8] = b"/bin:/usr/bin";

/// A program that could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct SpawnError {
    pub(super) kind: Failure,
    pub(super) message: String,
}

impl SpawnError {
    pub(super) fn cluster(message: impl Into<String>) -> Self {
        Self {
            kind: Failure::Cluster,
            message: message.into(),
        }
    }
}

/// The group of a job, set once its thread has made it.
pub(super) type GroupSlot = Arc<OnceLock<Group>>;

/// Starts programs.
#[derive(Debug)]
pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
}

#[derive(Debug)]
struct Order {
    start: Box<Start>,
    stdio: [OwnedFd; 3],
    group: GroupSlot,
    done: oneshot::Sender<Result<Process, SpawnError>>,
}

impl Spawner {
    /// Starts the threads; they end with the last reference to the spawner.
    pub(super) fn new(node: NodeId, groups: Groups) -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>(QUEUED_MAX);
        let (queue, groups) = (Arc::new(Mutex::new(queue)), Arc::new(groups));
        for _ in 0..THREADS {
            let (queue, groups) = (Arc::clone(&queue), Arc::clone(&groups));
            std::thread::Builder::new()
                .name("glu-spawn".into())
                .spawn(move || {
                    loop {
                        let order = queue.lock().expect("no holder panics").blocking_recv();
                        let Some(order) = order else { return };
                        order.carry_out(node, &groups);
                    }
                })?;
        }
        Ok(Self { orders })
    }

    /// Starts a program with these descriptors in a new group, which shows in `group` before the program runs.
    pub(super) async fn spawn(
        &self,
        start: Box<Start>,
        stdio: [OwnedFd; 3],
        group: GroupSlot,
    ) -> Result<Process, SpawnError> {
        let (done, process) = oneshot::channel();
        let order = Order {
            start,
            stdio,
            group,
            done,
        };
        let gone = |_| SpawnError::cluster("the daemon is stopping");
        self.orders.send(order).await.map_err(|_| gone(()))?;
        process.await.map_err(|_| gone(()))?
    }
}

impl Order {
    fn carry_out(self, node: NodeId, groups: &Groups) {
        let group = match groups.group() {
            Ok(group) => self.group.get_or_init(|| group),
            Err(error) => {
                let error =
                    SpawnError::cluster(format!("node {node} cannot make a cgroup: {error}"));
                self.done.send(Err(error)).ok();
                return;
            }
        };
        let process = start(node, &self.start, &self.stdio, group);
        // Only the job holds its ends of pipes when its start is told.
        drop(self.stdio);
        if let Err(Ok(orphan)) = self.done.send(process) {
            // Whoever asked is gone.
            group.end();
            sys::wait(orphan.pidfd.as_fd()).ok();
        }
    }
}

fn start(
    node: NodeId,
    start: &Start,
    stdio: &[OwnedFd; 3],
    group: &Group,
) -> Result<Process, SpawnError> {
    let request = &start.request;
    let argv = c_strings(&request.argv, "an argument")?;
    let program = request
        .argv
        .first()
        .filter(|program| !program.is_empty())
        .ok_or_else(|| SpawnError {
            kind: Failure::NotFound,
            message: "no program is named".into(),
        })?;
    let mut env = c_strings(&request.env, "the environment")?;
    let own = [
        group.mark().to_owned(),
        format!("GLU_NODE={node}"),
        format!("GLU_NPID={}", request.npid),
        format!("GLU_VNN={}", request.vnn),
    ];
    for variable in own {
        let name = &variable.as_bytes()[..=variable.find('=').expect("NAME=value")];
        env.retain(|old| !old.as_bytes().starts_with(name));
        env.push(CString::new(variable).expect("no NUL in a number"));
    }
    let cwd = c_string(&request.cwd, "the working directory")?;
    let candidates = c_strings(&candidates(program, &request.env), "the program's path")?;

    let launch = Launch {
        candidates: &candidates,
        argv: &argv,
        env: &env,
        cwd: &cwd,
        stdio: stdio.each_ref().map(AsFd::as_fd),
        cgroup: group.cgroup(),
        credentials: credentials(node, start)?,
        limits: &start.limits,
        nice: start.nice,
        umask: request.umask,
        ignored: request.ignored,
    };
    let (pid, pidfd) =
        sys::launch(&launch).map_err(|error| explain(node, error, program, &request.cwd))?;
    Ok(Process { pid, pidfd })
}

/// Returns as whom to run; a daemon that is not root runs jobs of its own user only.
fn credentials(node: NodeId, start: &Start) -> Result<Option<&Credentials>, SpawnError> {
    let wanted = &start.credentials;
    let own = geteuid();
    if own.is_root() {
        Ok(Some(wanted))
    } else if own.as_raw() == wanted.uid {
        Ok(None)
    } else {
        Err(SpawnError::cluster(format!(
            "the daemon of node {node} runs as user {own}, so it can only run that user's programs"
        )))
    }
}

fn c_string(bytes: &Bytes, what: &str) -> Result<CString, SpawnError> {
    CString::new(&bytes[..]).map_err(|_| SpawnError::cluster(format!("{what} contains a NUL byte")))
}

fn c_strings(all: &[Bytes], what: &str) -> Result<Vec<CString>, SpawnError> {
    all.iter().map(|bytes| c_string(bytes, what)).collect()
}

/// Returns the files that a program's name can mean, looked up in the job's own PATH.
fn candidates(program: &Bytes, env: &[Bytes]) -> Vec<Bytes> {
    if program.contains(&b'/') {
        return vec![program.clone()];
    }
    let path = env.iter().find_map(|var| var.strip_prefix(b"PATH="));
    path.unwrap_or(PATH_DEFAULT)
        .split(|byte| *byte == b':')
        // An empty element means the working directory.
        .map(|dir| if dir.is_empty() { b"." } else { dir })
        .map(|dir| [dir, b"/", program].concat().into())
        .collect()
}

fn explain(node: NodeId, error: LaunchError, program: &Bytes, cwd: &Bytes) -> SpawnError {
    let why = error.errno.desc();
    let program = String::from_utf8_lossy(program);
    match error.step {
        Step::Exec => SpawnError {
            kind: match error.errno {
                Errno::ENOENT => Failure::NotFound,
                _ => Failure::NotExecutable,
            },
            message: format!("{program}: {why} (on node {node})"),
        },
        Step::Directory => SpawnError::cluster(format!(
            "cannot enter {} on node {node}: {why}; directories below /cluster are the same on all nodes",
            String::from_utf8_lossy(cwd)
        )),
        Step::Clone => SpawnError::cluster(format!("node {node} cannot make a process: {why}")),
        Step::Setup => SpawnError::cluster(format!("node {node} cannot set up {program}: {why}")),
        Step::Credentials => {
            SpawnError::cluster(format!("node {node} cannot run {program} as you: {why}"))
        }
    }
}

/// A running program, or one whose end nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Sends a signal; nothing happens if the program has ended.
    pub(super) fn signal(&self, number: i32, group: bool) {
        let sent = if group {
            sys::signal_group(self.pid, number)
        } else {
            sys::signal(self.pidfd.as_fd(), number)
        };
        if let Err(error) = sent {
            tracing::debug!(pid = %self.pid, number, %error, "a signal found no process");
        }
    }

    /// Waits for the program's end and takes it off the process table. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Result<End> {
        let watched = sys::watch(self.pidfd.try_clone()?)?;
        loop {
            let mut ready = watched.readable().await?;
            match sys::try_wait(self.pidfd.as_fd())? {
                None => ready.clear_ready(),
                Some(end) => return Ok(end),
            }
        }
    }
}
