//! Starts programs on threads of their own (rule J4).
//!
//! The threads live as long as the daemon: the kernel ends a child when the *thread* that made it ends.

use super::forked::Forked;
use super::frame::FrameSender;
use super::group::{Group, Groups};
use super::leader::{self, Report};
use super::limits::Limits;
use super::private::Private;
use super::protocol::{Credentials, End, Failure, FromJob, Start};
use super::sys::{self, Launch, LaunchError, Step};
use super::terminal::{InputFile, Pty, WindowSize};
use super::travel::{AtHome, Original, Ticket, Travel, Wishes};
use bytes::Bytes;
use consistency::NodeId;
use nix::errno::Errno;
use nix::unistd::{Pid, geteuid};
use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Programs that can be on their way into exec at a time: one on a hanging mount holds a thread.
const THREADS: usize = 8;

/// Where programs are looked for if the job has no PATH, as execvp(3) does.
const PATH_DEFAULT: &[u8] = b"/bin:/usr/bin";

/// What a terminal has shown before a stop, the echo of Ctrl-Z above all, has so long to go before the news of it: it
/// passes through a queue of the kernel's that cannot be asked. If it comes later it is shown once the program goes on.
const SHOWN_WITHIN: Duration = Duration::from_millis(30);

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

/// What a program is to have besides.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The terminal among its descriptors.
    pub(super) pty: Option<Arc<Pty>>,
    /// The file to have as descriptor 0, if it can be opened.
    pub(super) input: Option<InputFile>,
    /// The name of its machine.
    pub(super) host_name: Option<Bytes>,
    /// Its end of the wire to its owner.
    pub(super) wire: Option<OwnedFd>,
    /// What it may use at most.
    pub(super) limits: Limits,
    /// It is of a gang.
    pub(super) gang: bool,
    /// What it has to itself.
    pub(super) private: Private,
    /// It runs already.
    pub(super) forked: Option<Forked>,
}

/// Starts programs.
#[derive(Debug)]
pub(super) struct Spawner(Arc<Queue>);

/// Orders that wait for a thread: at most one for each job that the agent has let in. One thread is woken for each, as a
/// wake-up costs more than the work.
#[derive(Debug, Default)]
struct Queue {
    orders: Mutex<Orders>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Orders {
    waiting: VecDeque<Order>,
    /// There will be no more.
    ended: bool,
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().expect("no holder panics"));
    }

    /// Waits for an order; `None`: there will be none.
    fn next(&self) -> Option<Order> {
        let orders = self.orders.lock().expect("no holder panics");
        let waits = |orders: &mut Orders| orders.waiting.is_empty() && !orders.ended;
        let orders = self.more.wait_while(orders, waits);
        orders.expect("no holder panics").waiting.pop_front()
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.0.change(|orders| orders.ended = true);
        self.0.more.notify_all();
    }
}

#[derive(Debug)]
struct Order {
    start: Box<Start>,
    stdio: [OwnedFd; 3],
    wanted: Wanted,
    group: GroupSlot,
    done: oneshot::Sender<Result<Process, SpawnError>>,
}

impl Spawner {
    /// Starts the threads; they end with the last reference to the spawner.
    /// `leader`: the program that leads sessions with a terminal.
    pub(super) fn new(
        node: NodeId,
        groups: Arc<Groups>,
        leader: Option<&Path>,
    ) -> io::Result<Self> {
        let leader = leader.map(|path| CString::new(path.as_os_str().as_bytes()));
        let host = Arc::new(Host {
            node,
            groups,
            leader: leader.transpose()?,
        });
        let spawner = Self(Arc::default());
        for _ in 0..THREADS {
            let (queue, host) = (Arc::clone(&spawner.0), Arc::clone(&host));
            std::thread::Builder::new()
                .name("glu-spawn".into())
                .spawn(move || {
                    while let Some(order) = queue.next() {
                        order.carry_out(&host);
                    }
                })?;
        }
        Ok(spawner)
    }

    /// Starts a program with these descriptors in a new group, which shows in `group` before the program runs.
    pub(super) async fn spawn(
        &self,
        start: Box<Start>,
        stdio: [OwnedFd; 3],
        wanted: Wanted,
        group: GroupSlot,
    ) -> Result<Process, SpawnError> {
        let (done, process) = oneshot::channel();
        let order = Order {
            start,
            stdio,
            wanted,
            group,
            done,
        };
        self.0.change(|orders| orders.waiting.push_back(order));
        self.0.more.notify_one();
        let gone = |_| SpawnError::cluster("the daemon is stopping");
        process.await.map_err(gone)?
    }
}

/// What all jobs of a node have in common.
struct Host {
    node: NodeId,
    groups: Arc<Groups>,
    leader: Option<CString>,
}

impl Order {
    fn carry_out(mut self, host: &Host) {
        let node = host.node;
        let group = match host.groups.group(self.wanted.limits, self.wanted.gang) {
            Ok(group) => self.group.get_or_init(|| group),
            Err(error) => {
                let error = match error.kind() {
                    io::ErrorKind::Unsupported => {
                        SpawnError::cluster(format!("node {node} does not take the job: {error}"))
                    }
                    _ => SpawnError::cluster(format!("node {node} cannot make a cgroup: {error}")),
                };
                self.done.send(Err(error)).ok();
                return;
            }
        };
        let file = self.wanted.input.take();
        let file = file.and_then(|file| open_input(&file, &self.start.credentials));
        let file = file.and_then(|(file, place)| {
            self.stdio[0] = file.try_clone().ok()?.into();
            Some((file, place))
        });
        let own_file = match file {
            Some(_) => None,
            None => file_of_owner(&self.stdio[0]),
        };
        let mut process = start(host, &self.start, &self.stdio, self.wanted, group);
        if let Ok(process) = &mut process {
            (process.file, process.own_file) = (file, own_file);
        }
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
    host: &Host,
    start: &Start,
    stdio: &[OwnedFd; 3],
    wanted: Wanted,
    group: &Group,
) -> Result<Process, SpawnError> {
    let node = host.node;
    let pty = wanted.pty;
    if let Some(forked) = wanted.forked {
        return adopt(node, forked, group);
    }
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
    let wire = wanted
        .wire
        .as_ref()
        .map(|_| format!("PMI_FD={}", sys::WIRE_FD));
    for variable in own.into_iter().chain(wire) {
        let name = &variable.as_bytes()[..=variable.find('=').expect("NAME=value")];
        env.retain(|old| !old.as_bytes().starts_with(name));
        env.push(CString::new(variable).expect("no NUL in a number"));
    }
    let cwd = c_string(&request.cwd, "the working directory")?;
    let candidates = c_strings(&candidates(program, &request.env), "the program's path")?;
    let setup = |error: io::Error| {
        SpawnError::cluster(format!("node {node} cannot set up a terminal: {error}"))
    };
    let (candidates, argv, report) = match (&pty, &host.leader) {
        (None, _) => (candidates, argv, None),
        (Some(_), Some(leader)) => {
            let own = [leader.clone(), leader_argument()];
            let (reader, writer) = io::pipe().map_err(setup)?;
            let argv = own.into_iter().chain(argv).collect();
            (vec![leader.clone()], argv, Some((reader, writer)))
        }
        (Some(_), None) => {
            let why = format!("node {node} has no terminals");
            return Err(SpawnError::cluster(why));
        }
    };

    let own = wanted.private.make().map_err(|error| {
        let rights = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; its daemon needs CAP_SYS_ADMIN and CAP_NET_ADMIN, which root has"
            }
            _ => "",
        };
        let private = wanted.private;
        let why = format!("node {node} cannot give a job its own {private}: {error}{rights}");
        SpawnError::cluster(why)
    })?;

    let launch = Launch {
        candidates: &candidates,
        argv: &argv,
        env: &env,
        cwd: &cwd,
        stdio: stdio.each_ref().map(AsFd::as_fd),
        host_name: wanted.host_name.as_deref(),
        report: report.as_ref().map(|(_, writer)| writer.as_fd()),
        kept: &[],
        pid: None,
        wire: wanted.wire.as_ref().map(AsFd::as_fd),
        cgroup: group.cgroup(),
        entrances: &group.kept().entrances(),
        namespaces: &own,
        credentials: credentials(node, start)?,
        limits: &start.limits,
        nice: start.nice,
        umask: request.umask,
        outlives: false,
        ignored: request.ignored,
    };
    let explain = |error| explain(node, error, program, &request.cwd);
    let (pid, pidfd) = sys::launch(&launch).map_err(explain)?;
    let (Some(pty), Some((reports, writer))) = (pty, report) else {
        return Ok(Process {
            pid,
            pidfd,
            forked: false,
            session: None,
            file: None,
            own_file: None,
            ticket: None,
        });
    };
    // Else the end of the leader would not show.
    drop(writer);
    match Report::read(&reports) {
        Ok(Report::Running(program)) => {
            let session = Some(Session {
                pty,
                program,
                reports: Arc::new(reports.into()),
            });
            Ok(Process {
                pid,
                pidfd,
                forked: false,
                session,
                file: None,
                own_file: None,
                ticket: None,
            })
        }
        other => {
            sys::wait(pidfd.as_fd()).ok();
            Err(match other {
                Ok(Report::NotStarted(errno)) => explain(Step::Exec.failed(errno)),
                Ok(other) => setup(io::Error::other(format!("{other:?} before the start"))),
                Err(error) => setup(error),
            })
        }
    }
}

/// Takes a process that runs already.
fn adopt(node: NodeId, forked: Forked, group: &Group) -> Result<Process, SpawnError> {
    let why = |error| SpawnError::cluster(format!("node {node} does not take a process: {error}"));
    forked.enter(group).map_err(why)?;
    Ok(Process {
        pid: forked.pid,
        pidfd: forked.pidfd,
        forked: true,
        session: None,
        file: None,
        own_file: None,
        ticket: None,
    })
}

/// Returns the input of a job if that is a file; one with its owner's descriptors shares the place in it with that.
fn file_of_owner(input: &OwnedFd) -> Option<File> {
    let file = File::from(input.try_clone().ok()?);
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    is_file.then_some(file)
}

/// Opens a file of the cluster's tree as the job's user, on this thread (rule J4), which for that time is the user to
/// the file system. `None`: it is not there, or not the one that is meant.
fn open_input(file: &InputFile, user: &Credentials) -> Option<(File, u64)> {
    let path = Path::new(OsStr::from_bytes(&file.path));
    let opened = sys::as_user(geteuid().is_root().then_some(user), || File::open(path));
    let mut opened = opened.ok()?;
    let found = opened.metadata().ok()?;
    let shared = nix::sys::statfs::fstatfs(&opened).ok()?.filesystem_type();
    let same = found.is_file() && found.ino() == file.inode;
    if !same || shared != nix::sys::statfs::FUSE_SUPER_MAGIC {
        return None;
    }
    let at = opened.seek(SeekFrom::Start(file.offset)).ok()?;
    Some((opened, at))
}

fn leader_argument() -> CString {
    CString::new(leader::ARGUMENT).expect("a constant without NUL")
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
    /// The program's, or that of the leader of its session.
    pid: Pid,
    pidfd: OwnedFd,
    /// It is its owner's child, not the daemon's.
    forked: bool,
    session: Option<Session>,
    /// The file it has as input, with its place at the start; the place is shared with the program.
    file: Option<(File, u64)>,
    /// The same of a file that its owner has opened, and shares, too.
    own_file: Option<File>,
    /// Once it may move.
    ticket: Option<Ticket>,
}

/// What a program with a terminal has besides.
#[derive(Debug)]
struct Session {
    pty: Arc<Pty>,
    program: Pid,
    /// What the leader reports.
    reports: Arc<OwnedFd>,
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        let pid = self.session.as_ref().map_or(self.pid, |of| of.program);
        pid.as_raw().unsigned_abs()
    }

    /// Lets it move from now on, with all its group.
    pub(super) fn may_move(
        &mut self,
        travel: &Arc<Travel>,
        group: &GroupSlot,
        tied: Option<&'static str>,
        user: Credentials,
        wishes: Wishes,
    ) {
        let file = self.file.as_ref().map(|(file, _)| file);
        let file = file.or(self.own_file.as_ref()).map(File::try_clone);
        let (Ok(pidfd), Ok(input_file)) = (self.pidfd.try_clone(), file.transpose()) else {
            return;
        };
        let original = Original {
            pid: self.pid().cast_signed(),
            pidfd,
            forked: self.forked,
            group: Arc::clone(group),
            input_file: input_file.map(Arc::new),
            terminal: self.session.as_ref().map(|session| AtHome {
                leader: self.pid.as_raw(),
                pty: Arc::clone(&session.pty),
                reports: Arc::clone(&session.reports),
            }),
        };
        self.ticket = Some(travel.register(original, tied, user, wishes));
    }

    /// Returns whether it is a child of its owner.
    pub(super) fn is_forked(&self) -> bool {
        self.forked
    }

    /// Returns whether another node has it, or this one again.
    pub(super) fn is_away(&self) -> bool {
        let ticket = self.ticket.as_ref();
        ticket.is_some_and(|ticket| ticket.seat().is_away())
    }

    /// Sends a signal; nothing happens if the program has ended.
    pub(super) fn signal(&self, number: i32, group: bool) {
        if self
            .ticket
            .as_ref()
            .is_some_and(|ticket| ticket.signal(number, group))
        {
            return;
        }
        let sent = match (&self.session, group) {
            (None, true) => sys::signal_group(self.pid, number),
            (None, false) => sys::signal(self.pidfd.as_fd(), number),
            (Some(session), group) => session.pty.signal(session.program, number, group),
        };
        if let Err(error) = sent {
            tracing::debug!(pid = %self.pid, number, %error, "a signal found no process");
        }
    }

    /// Gives its terminal another size.
    pub(super) fn resize(&self, size: WindowSize) {
        let Some(session) = &self.session else { return };
        if let Err(error) = session.pty.resize(size) {
            tracing::debug!(%error, "a terminal did not take its size");
        }
        if let Some(ticket) = &self.ticket {
            ticket.resize(size);
        }
    }

    /// Returns how many of its processes were ended for want of memory on nodes that it has moved to.
    pub(super) fn out_of_memory_elsewhere(&self) -> u64 {
        let ticket = self.ticket.as_ref();
        ticket.map_or(0, |ticket| ticket.seat().out_of_memory())
    }

    /// Returns whether it has a file as input.
    pub(super) fn reads_file(&self) -> bool {
        self.file.is_some()
    }

    /// Leaves its owner's file where it has read it on another node.
    pub(super) async fn leave_file(&self) {
        let at = self.ticket.as_ref().map(|ticket| ticket.seat().input_at());
        let file = self.own_file.as_ref().map(File::try_clone);
        if let (Some(Some(at)), Some(Ok(mut file))) = (at, file) {
            // As below.
            let place = tokio::task::spawn_blocking(move || file.seek(SeekFrom::Start(at)));
            if let Ok(Err(error)) = place.await {
                tracing::warn!(pid = %self.pid, %error, "a file is not where a job has left it");
            }
        }
    }

    /// Returns how far it has read in the file it has as input.
    pub(super) async fn read_of_file(&self) -> Option<u64> {
        let (file, start) = self.file.as_ref()?;
        let elsewhere = self.ticket.as_ref().map(|ticket| ticket.seat().input_at());
        if let Some(Some(at)) = elsewhere {
            return Some(at.wrapping_sub(*start));
        }
        let (mut file, start) = (file.try_clone().ok()?, *start);
        // It touches a file of the tree (rule J4), though only what the kernel knows of it.
        let place = tokio::task::spawn_blocking(move || file.stream_position());
        Some(place.await.ok()?.ok()?.wrapping_sub(start))
    }

    /// Waits for the program's end and takes it off the process table. Cancel-safe.
    pub(super) async fn ended(&self) -> io::Result<End> {
        let watched = sys::watch(self.pidfd.try_clone()?)?;
        let Some(ticket) = &self.ticket else {
            loop {
                let mut ready = watched.readable().await?;
                match sys::try_wait(self.pidfd.as_fd())? {
                    None => ready.clear_ready(),
                    Some(end) => return Ok(end),
                }
            }
        };
        let seat = ticket.seat();
        loop {
            if let Some(end) = seat.try_wait(self.pidfd.as_fd())? {
                return Ok(end);
            }
            tokio::select! {
                // What is left of a job that is away would be ready for ever.
                ready = watched.readable(), if !seat.is_away() => ready?.clear_ready(),
                () = seat.changed() => {}
            }
        }
    }

    /// Returns a task that tells each time a signal has stopped the program; nothing for one without a terminal.
    pub(super) fn watch_stops(&self, tell: FrameSender) -> io::Result<Option<JoinHandle<()>>> {
        let Some(session) = &self.session else {
            return Ok(None);
        };
        let reports = session.reports.try_clone()?;
        let mut reports = pipe::Receiver::from_owned_fd(reports)?;
        Ok(Some(tokio::spawn(async move {
            let mut bytes = [0; leader::REPORT_BYTES];
            while reports.read_exact(&mut bytes).await.is_ok() {
                if let Ok(Report::Stopped(signal)) = Report::decode(bytes) {
                    tokio::time::sleep(SHOWN_WITHIN).await;
                    tell.send(&FromJob::Stopped(signal)).await;
                }
            }
        })))
    }
}
