//! The host's end of jobs: starts a program, carries its input and output, and sees to it that nothing of it is
//! left when its owner or the program itself has ended (rule J2).

use super::LEVEL_ENV;
use super::admission::{Admission, Admissions};
use super::barrier::Barriers;
use super::forked::{self, Forked};
use super::frame::{FrameReader, FrameSender, FrameWriter};
use super::gang::driver::{self, GangList, Gangs};
use super::group::{Group, Groups};
use super::limits::Limits;
use super::pause::{Guests, Its};
use super::private::Private;
use super::protocol::{
    End, FIRST_BYTES_MAX, FRAME_BYTES_MAX, FromJob, KILLED_WITHIN, PING_EVERY, SILENCE_MAX, Start,
    ToJob, Told,
};
use super::roll::Seat;
use super::spawn::{GroupSlot, Process, SpawnError, Spawner, Wanted};
use super::stdio::{Pipes, Pumps, Violation, Wire};
use super::terminal::{Checkpoints, Extra, InputFile, Pty, WindowSize};
use super::travel::{self, Engine, FileLocks, Keeping, Levelling, Locked, Travel, Wishes};
use crate::events::Events;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use gfs::net::{ByteStream, Service, Transport};
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

/// Jobs of all owners that one node runs at a time.
pub const JOBS_MAX: usize = 4096;

/// How long the first frame of a connection may take.
pub(super) const FIRST_FRAME_WITHIN: Duration = Duration::from_secs(10);

/// Signals that may come before the program runs.
const EARLY_SIGNALS_MAX: usize = 64;

/// Runs jobs on this node.
pub struct Agent {
    node: NodeId,
    spawner: Spawner,
    slots: Semaphore,
    guests: AtomicU32,
    null: File,
    travel: Arc<Travel>,
    admissions: Arc<Admissions>,
    barriers: Arc<Barriers>,
    gangs: Arc<Gangs>,
    waiting_guests: Arc<Guests>,
}

/// Between whom the frames go.
#[derive(Debug)]
pub(super) enum Hop {
    /// Owner and this node: the kernel tells when the owner is gone.
    Local {
        /// What home knows of the job.
        seat: Seat,
        /// The node that it is to run on, if that is another one.
        goes_to: Option<NodeId>,
        /// It runs already.
        forked: Option<Forked>,
    },
    /// Home and this node: pings tell.
    Remote,
}

impl Hop {
    const fn is_remote(&self) -> bool {
        matches!(self, Self::Remote)
    }

    fn take_forked(&mut self) -> Option<Forked> {
        match self {
            Self::Local { forked, .. } => forked.take(),
            Self::Remote => None,
        }
    }
}

/// The owner has gone or has broken the protocol: there is nobody to tell how the job ended.
struct OwnerLost;

impl Agent {
    /// Prepares a node for jobs. `instance` names this daemon on the machine (cluster and node): what an earlier
    /// daemon of that name left running is killed.
    ///
    /// # Errors
    /// If no thread can be started or `/dev/null` is missing.
    pub fn new(node: NodeId, instance: &str) -> io::Result<Arc<Self>> {
        Self::with_leader(node, instance, None)
    }

    /// As [`Self::new`], on a node that has terminals: `leader` is the path of a program that is
    /// [`leader::main`](super::leader::main) when its first argument is [`leader::ARGUMENT`](super::leader::ARGUMENT).
    ///
    /// # Errors
    /// As [`Self::new`], and if the path contains a NUL.
    pub fn with_leader(
        node: NodeId,
        instance: &str,
        leader: Option<&Path>,
    ) -> io::Result<Arc<Self>> {
        let groups = Arc::new(Groups::new(instance));
        let admissions = Arc::<Admissions>::default();
        let guests = Arc::<Guests>::default();
        let travel = Travel::new(
            node,
            Arc::clone(&groups),
            Arc::clone(&admissions),
            Arc::clone(&guests),
            leader,
        );
        Ok(Arc::new(Self {
            node,
            travel: Arc::new(travel),
            admissions,
            barriers: Arc::default(),
            gangs: Gangs::new(node),
            waiting_guests: guests,
            spawner: Spawner::new(node, groups, leader)?,
            slots: Semaphore::new(JOBS_MAX),
            guests: AtomicU32::new(0),
            null: File::options().read(true).write(true).open("/dev/null")?,
        }))
    }

    /// Lets jobs move, by the CRIU at this path and over this transport. `instance` as for [`Self::new`].
    pub fn let_jobs_move(
        &self,
        criu: &Path,
        instance: &str,
        transport: Arc<dyn Transport>,
        locked: Locked,
    ) {
        let engine = Engine::new(criu, instance, FileLocks::new(locked));
        self.travel.enable(engine, transport);
    }

    /// Lets checkpoints of jobs be made.
    pub fn keep_checkpoints(&self, keeping: Keeping) {
        self.travel.keep(keeping);
    }

    /// Removes the checkpoints that an earlier daemon of this node has left; call it once the tree is mounted, before there are
    /// jobs.
    pub fn forget_checkpoints(&self) {
        self.travel.forget_checkpoints();
    }

    /// Runs from now on only the processes of those that a node is for (J5).
    pub fn ask_for_rights(&self, admission: Arc<dyn Admission>) {
        self.admissions.ask(admission);
    }

    pub(super) fn admissions(&self) -> &Admissions {
        &self.admissions
    }

    /// Takes a signal for a process of this node that moves or has moved; `None`: it has not. 0 is not sent.
    pub fn forward(&self, pid: i32, number: i32, group: bool) -> Option<Result<(), Errno>> {
        self.travel.forward(pid, number, group)
    }

    /// Takes note that a process of this node has been locked, or not any more.
    pub fn lock(&self, pid: i32, locked: bool) {
        self.travel.lock(pid, locked);
    }

    /// Has somebody hear which process, that is locked, has come back to this node.
    pub fn tell_returns(&self, tell: Box<dyn Fn(i32) + Send + Sync>) {
        self.travel.tell_returns(tell);
    }

    /// Has readers of `events` know of moves, of this node's jobs and of what other nodes tell.
    pub fn tell_moves(&self, events: Arc<Events>) {
        self.travel.tell_moves(events);
    }

    /// Returns how often levelling has looked at jobs here, and how many it has moved.
    #[must_use]
    pub fn levelled(&self) -> (u64, u64) {
        self.travel.levelled()
    }

    /// Returns what moves of this node's jobs have cost.
    #[must_use]
    pub fn moves_counted(&self) -> travel::MovesCounted {
        self.travel.moves_counted()
    }

    /// Levels the jobs that run here, for as long as the daemon runs.
    pub async fn level(self: Arc<Self>, means: Levelling) {
        travel::level(Arc::clone(&self.travel), means).await;
    }

    /// Has the gangs that run here take their turns, for as long as the daemon runs.
    pub async fn take_turns(self: Arc<Self>, list: Arc<dyn GangList>) {
        driver::run(Arc::clone(&self.gangs), list).await;
    }

    /// Has the processes of other nodes that run here stand still from now on, or go on (J12).
    pub async fn pause_guests(&self, pause: bool) {
        let guests = Arc::clone(&self.waiting_guests);
        // Fails only when the runtime stops.
        let paused = tokio::task::spawn_blocking(move || guests.pause(pause));
        paused.await.ok();
    }

    /// Returns what to register for `ServiceId::Job`.
    #[must_use]
    pub fn service(self: &Arc<Self>) -> Arc<dyn Service> {
        Arc::new(JobService(Arc::clone(self)))
    }

    /// Returns how many jobs of other nodes run here, for the node's load report.
    #[must_use]
    pub fn guests(&self) -> u32 {
        self.guests.load(Ordering::Relaxed)
    }

    /// Runs a job from start to end. `descriptors`: the owner's own, for a job of this node.
    pub(super) async fn run(
        &self,
        start: Box<Start>,
        extras: Vec<Extra>,
        descriptors: Option<[OwnedFd; 3]>,
        reader: FrameReader<impl AsyncRead + Unpin>,
        writer: FrameWriter,
        hop: Hop,
    ) {
        let mut owner = Owner {
            reader,
            hop,
            heard: Instant::now(),
        };
        let sender = writer.sender();
        let group = GroupSlot::default();
        let end = self
            .conduct(start, extras, descriptors, &group, &mut owner, &sender)
            .await;
        if let Ok(end) = end {
            sender.send(&FromJob::Ended(end)).await;
            drop(sender);
            // A stopped owner takes its time to read; a lost one shows on its side of the connection.
            tokio::select! {
                () = writer.finish() => {}
                () = owner.gone() => {}
            }
        }
        // Removing a cgroup may wait for the kernel, and for processes that die slowly.
        tokio::task::spawn_blocking(move || drop(group));
    }

    async fn conduct(
        &self,
        start: Box<Start>,
        extras: Vec<Extra>,
        descriptors: Option<[OwnedFd; 3]>,
        group: &GroupSlot,
        owner: &mut Owner<impl AsyncRead + Unpin>,
        sender: &FrameSender,
    ) -> Result<End, OwnerLost> {
        let Ok(_slot) = self.slots.try_acquire() else {
            let why = format!("node {} runs {JOBS_MAX} jobs already", self.node);
            return Ok(End::lost(why));
        };
        let user = start.credentials.clone();
        let levelled = is_levelled(&start);
        let guest = owner.hop.is_remote();
        if let Err(refused) = self.admissions.admit(self.node, &user, guest).await {
            return Ok(End::lost(refused.to_string()));
        }
        let _guest = guest.then(|| Guest::new(&self.guests));
        let streams = Streams::new(&start, &extras, descriptors, &self.null);
        let wire = extras.contains(&Extra::Wire).then(Wire::new).transpose();
        let (streams, wire) = match streams.and_then(|streams| Ok((streams, wire?))) {
            Ok(made) => made,
            Err(error) => {
                let why = format!(
                    "node {} cannot make pipes or a terminal: {error}",
                    self.node
                );
                return Ok(End::lost(why));
            }
        };
        let Streams { pipes, stdio, pty } = streams;
        let (wire, job_wire) = wire.map(|Wire { ours, job }| (ours, job)).unzip();
        let limits = limits(&extras);
        let gang = extras.contains(&Extra::Gang);
        let checkpoints = checkpoints(&extras);
        let private = private(&extras);
        let nodes = start.request.nodes.clone();
        let wanted = Wanted {
            pty: pty.clone(),
            // Of pipes alone the first can be something else.
            input: pipes.as_ref().and_then(|_| input_file(&extras)),
            // At home the machine has it.
            host_name: host_name(&extras).filter(|_| owner.hop.is_remote()),
            wire: job_wire,
            limits,
            gang,
            private,
            forked: owner.hop.take_forked(),
        };

        let vnn = start.request.vnn;
        let command = command(&extras).map(|number| (user.uid, number));
        let spawned = self.spawn(start, stdio, wanted, group, owner).await?;
        let mut process = match spawned {
            Ok(process) => process,
            Err(SpawnError { kind, message }) => return Ok(End::Failed { kind, message }),
        };
        let tied = match (&wire, gang) {
            (Some(_), _) => Some("wire"),
            (None, true) => Some("gang"),
            (None, false) => None,
        };
        let wishes = Wishes {
            levelled,
            checkpoints,
            private,
            limits,
            nodes,
            to_owner: sender.clone(),
        };
        process.may_move(&self.travel, group, tied, user, wishes);
        let mut to = None;
        if let Hop::Local { seat, goes_to, .. } = &owner.hop {
            seat.runs(self.node, process.pid());
            to = *goes_to;
        }
        let pid = process.pid().cast_signed();
        let waits = || {
            let its = Its::Slot(Arc::clone(group));
            self.waiting_guests.enter(pid, its)
        };
        let _place = guest.then(waits);
        let _turns = gang.then(|| self.gangs.enter(process.pid(), group));
        let mut node = self.node;
        if let Some(to) = to.take_if(|_| process.is_forked()) {
            if let Err(ended) = self.depart(&process, to, owner, sender).await {
                end_group(group).await;
                reap(&process).await;
                return ended;
            }
            node = to;
        }
        let started = FromJob::Started {
            node,
            pid: process.pid(),
            relayed: pipes.is_some(),
        };
        if process.reads_file() {
            sender.send(&FromJob::InputFromFile).await;
        }
        let followed = pipes.is_some() && extras.contains(&Extra::FollowInput);
        if followed {
            sender.send(&FromJob::InputRead(0)).await;
        }
        sender.send(&started).await;
        if let Some(to) = to {
            let (travel, sender) = (Arc::clone(&self.travel), sender.clone());
            tokio::spawn(async move { travel.send(pid, to, &sender).await });
        }
        let stops = process.watch_stops(sender.clone());
        let mut pumps = pipes
            .map(|pipes| pipes.start(followed, sender))
            .unwrap_or_default();
        if let Some(wire) = wire {
            pumps.start_wire(wire, sender, |queue| {
                let (key, vnn) = (command?, vnn);
                Some(self.barriers.join(key, vnn, sender.clone(), queue))
            });
        }
        let program = owner
            .serve(&process, &mut pumps, pty.as_deref(), sender)
            .await;

        // The program has ended or its owner has: the rest goes with it.
        end_group(group).await;
        if let Ok(Some(stops)) = stops {
            stops.abort();
        }
        match program {
            Ok(end) => {
                let end = end.unwrap_or_else(|error| {
                    End::lost(format!("node {} lost track of the job: {error}", self.node))
                });
                let taken = pumps.stop_input().await;
                let taken = process.read_of_file().await.or(taken);
                process.leave_file().await;
                pumps.job_is_gone();
                owner.serve_output(&mut pumps).await?;
                let here = group
                    .get()
                    .map_or(0, |group| group.kept().ended_for_memory());
                let ended = here + process.out_of_memory_elsewhere();
                if ended > 0 {
                    sender.send(&FromJob::OutOfMemory(ended)).await;
                }
                tell_what_is_left(&extras, taken, pty.as_deref(), sender).await;
                Ok(end)
            }
            Err(OwnerLost) => {
                reap(&process).await;
                Err(OwnerLost)
            }
        }
    }

    /// Has a process that waits for it go on on another node. If that cannot be its owner hears why, and it is to be ended.
    async fn depart(
        &self,
        process: &Process,
        to: NodeId,
        owner: &mut Owner<impl AsyncRead + Unpin>,
        sender: &FrameSender,
    ) -> Result<(), Result<End, OwnerLost>> {
        let mut gone = pin!(self.travel.go_now(process.pid().cast_signed(), to));
        let gone = loop {
            tokio::select! {
                gone = &mut gone => break gone,
                frame = owner.next() => match frame {
                    Ok(ToJob::Signal { number, group }) => process.signal(number, group),
                    Ok(ToJob::Ping) => {}
                    Ok(_) | Err(OwnerLost) => return Err(Err(OwnerLost)),
                },
            }
        };
        sender.send(&FromJob::Told(Told::Gone(gone))).await;
        if let Err(errno) = gone {
            let why = Errno::from_raw(errno).desc();
            return Err(Ok(End::lost(format!("it cannot go to node {to}: {why}"))));
        }
        process.signal(forked::GO, false);
        Ok(())
    }

    /// Starts the program and sends it what signals have come meanwhile. An owner that goes meanwhile ends it, even on
    /// its way into exec.
    async fn spawn(
        &self,
        start: Box<Start>,
        stdio: [OwnedFd; 3],
        wanted: Wanted,
        group: &GroupSlot,
        owner: &mut Owner<impl AsyncRead + Unpin>,
    ) -> Result<Result<Process, SpawnError>, OwnerLost> {
        let pty = wanted.pty.clone();
        let spawned = self.spawner.spawn(start, stdio, wanted, Arc::clone(group));
        let mut spawned = pin!(spawned);
        let mut signals = Vec::new();
        let result = loop {
            tokio::select! {
                biased;
                result = &mut spawned => break result,
                frame = owner.next() => match frame {
                    Ok(ToJob::Ping) => {}
                    Ok(ToJob::Signal { number, group }) if signals.len() < EARLY_SIGNALS_MAX => {
                        signals.push((number, group));
                    }
                    Ok(ToJob::Resize(size)) if pty.is_some() => resize(pty.as_deref(), size),
                    _ => {
                        end_group(group).await;
                        if let Ok(process) = spawned.await {
                            end_group(group).await;
                            reap(&process).await;
                        }
                        return Err(OwnerLost);
                    }
                },
            }
        };
        if let Ok(process) = &result {
            for (number, to_group) in signals {
                process.signal(number, to_group);
            }
        }
        Ok(result)
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("node", &self.node)
            .field("guests", &self.guests)
            .finish_non_exhaustive()
    }
}

/// What a job has for descriptors 0 to 2.
struct Streams {
    /// The other ends; `None`: the job has the owner's own descriptors.
    pipes: Option<Pipes>,
    stdio: [OwnedFd; 3],
    pty: Option<Arc<Pty>>,
}

impl Streams {
    fn new(
        start: &Start,
        extras: &[Extra],
        descriptors: Option<[OwnedFd; 3]>,
        null: &File,
    ) -> io::Result<Self> {
        let terminal = extras.iter().find_map(|extra| match extra {
            Extra::Terminal(terminal) => Some(terminal),
            _ => None,
        });
        match (terminal, descriptors) {
            (None, Some(stdio)) => Ok(Self {
                pipes: None,
                stdio,
                pty: None,
            }),
            (terminal, _) => {
                let open = |like| Pty::open(like, start.credentials.uid).map(Arc::new);
                let pty = terminal.map(open).transpose()?;
                let (pipes, stdio) = Pipes::new(&start.request, pty.as_deref(), null)?;
                Ok(Self {
                    pipes: Some(pipes),
                    stdio,
                    pty,
                })
            }
        }
    }
}

/// Returns whether a job is to be levelled, whatever its program is.
fn is_levelled(start: &Start) -> bool {
    let named = |entry: &Bytes| {
        let value = entry.strip_prefix(LEVEL_ENV.as_bytes())?;
        Some(value == b"=1")
    };
    let mut named = start.request.env.iter().filter_map(named);
    named.next().unwrap_or(false)
}

fn input_file(extras: &[Extra]) -> Option<InputFile> {
    extras.iter().find_map(|extra| match extra {
        Extra::InputFile(file) => Some(file.clone()),
        _ => None,
    })
}

fn limits(extras: &[Extra]) -> Limits {
    let limits = extras.iter().find_map(|extra| match extra {
        Extra::Limits(limits) => Some(*limits),
        _ => None,
    });
    limits.unwrap_or_default()
}

/// Returns the command in whose barriers the job is.
fn command(extras: &[Extra]) -> Option<u64> {
    extras.iter().find_map(|extra| match extra {
        Extra::Gather(number) => Some(*number),
        _ => None,
    })
}

fn checkpoints(extras: &[Extra]) -> Option<Checkpoints> {
    extras.iter().find_map(|extra| match extra {
        Extra::Checkpoints(checkpoints) => Some(*checkpoints),
        _ => None,
    })
}

fn private(extras: &[Extra]) -> Private {
    let private = extras.iter().find_map(|extra| match extra {
        Extra::Private(private) => Some(*private),
        _ => None,
    });
    private.unwrap_or_default()
}

fn host_name(extras: &[Extra]) -> Option<Bytes> {
    extras.iter().find_map(|extra| match extra {
        Extra::HostName(name) => Some(name.clone()),
        _ => None,
    })
}

/// Tells the owner what a job that is gone has left of its input and of its terminal.
async fn tell_what_is_left(
    extras: &[Extra],
    taken: Option<u64>,
    pty: Option<&Pty>,
    sender: &FrameSender,
) {
    let Some(taken) = taken else { return };
    if let Some(pty) = pty {
        // Before the look at what is unread changes them.
        if let Ok(modes) = pty.modes() {
            sender.send(&FromJob::Modes(modes)).await;
        }
        let unread = pty.take_unread().unwrap_or_default();
        sender.send(&FromJob::InputLeft { taken, unread }).await;
    } else if extras.contains(&Extra::TellInput) || extras.contains(&Extra::FollowInput) {
        let unread = Bytes::new();
        sender.send(&FromJob::InputLeft { taken, unread }).await;
    }
}

fn resize(pty: Option<&Pty>, size: WindowSize) {
    if let Some(Err(error)) = pty.map(|pty| pty.resize(size)) {
        tracing::debug!(%error, "a terminal did not take its size");
    }
}

/// Ends all processes of a job. The common case, that none is left, is answered at once.
async fn end_group(group: &GroupSlot) {
    if group.get().is_none_or(Group::is_surely_empty) {
        return;
    }
    let group = Arc::clone(group);
    let ended = tokio::task::spawn_blocking(move || {
        if let Some(group) = group.get() {
            group.end();
        }
    });
    // Fails only when the runtime stops; the guardian ends the job then.
    ended.await.ok();
}

/// Takes a killed program off the process table.
async fn reap(process: &Process) {
    if process.is_away() {
        // Its host ends it when it is dropped, which frees the pid too.
        return;
    }
    if timeout(KILLED_WITHIN, process.ended()).await.is_err() {
        tracing::warn!(pid = process.pid(), "a killed job does not die");
    }
}

/// Counts a job of another node as long as it lives.
struct Guest<'a>(&'a AtomicU32);

impl<'a> Guest<'a> {
    fn new(guests: &'a AtomicU32) -> Self {
        guests.fetch_add(1, Ordering::Relaxed);
        Self(guests)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The other end of a job's connection.
struct Owner<R> {
    reader: FrameReader<R>,
    hop: Hop,
    /// When the last frame came.
    heard: Instant,
}

impl<R: AsyncRead + Unpin> Owner<R> {
    /// Returns the next frame. Cancel-safe.
    async fn next(&mut self) -> Result<ToJob, OwnerLost> {
        let next = self.reader.next(FRAME_BYTES_MAX);
        let frame = match self.hop {
            Hop::Local { .. } => next.await,
            Hop::Remote => timeout_at(self.heard + SILENCE_MAX, next)
                .await
                .unwrap_or_else(|silent| Err(silent.into())),
        };
        self.heard = Instant::now();
        match frame {
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => Err(OwnerLost),
            Err(error) => {
                tracing::debug!(%error, "a job's connection broke");
                Err(OwnerLost)
            }
        }
    }

    /// Serves the connection while the program runs; returns how it ended.
    async fn serve(
        &mut self,
        process: &Process,
        pumps: &mut Pumps,
        pty: Option<&Pty>,
        sender: &FrameSender,
    ) -> Result<io::Result<End>, OwnerLost> {
        let mut ended = pin!(process.ended());
        let mut ping = interval(PING_EVERY);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frame = tokio::select! {
                end = &mut ended => return Ok(end),
                frame = self.next() => frame?,
                _ = ping.tick(), if self.hop.is_remote() => {
                    sender.send_if_idle(&FromJob::Ping);
                    continue;
                }
            };
            match frame {
                ToJob::Signal { number, group } => process.signal(number, group),
                ToJob::Resize(size) if pty.is_some() => process.resize(size),
                other => pumps.take(other).map_err(|violation| lost(&violation))?,
            }
        }
    }

    /// Serves the connection after the program until all output is sent.
    async fn serve_output(&mut self, pumps: &mut Pumps) -> Result<(), OwnerLost> {
        loop {
            let frame = tokio::select! {
                biased;
                () = pumps.outputs_sent() => return Ok(()),
                frame = self.next() => frame?,
            };
            match frame {
                // They come too late.
                ToJob::Signal { .. }
                | ToJob::Resize(_)
                | ToJob::Input(_)
                | ToJob::InputEnd
                | ToJob::Wire(_)
                | ToJob::Passed(_) => {}
                other => pumps.take(other).map_err(|violation| lost(&violation))?,
            }
        }
    }

    /// Waits until the other end is gone.
    async fn gone(&mut self) {
        while self.next().await.is_ok() {}
    }
}

fn lost(violation: &Violation) -> OwnerLost {
    tracing::warn!(%violation, "ended a job");
    OwnerLost
}

/// The agent as other nodes see it.
struct JobService(Arc<Agent>);

#[async_trait]
impl Service for JobService {
    /// Jobs have no calls.
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        None
    }

    async fn accept(&self, from: NodeId, stream: ByteStream) {
        let agent = Arc::clone(&self.0);
        // A task of its own: a transport that gives up on its connection may drop this future, but the job's
        // processes still have to be ended.
        let job = tokio::spawn(async move {
            let mut reader = FrameReader::new(stream.reader);
            let first = timeout(FIRST_FRAME_WITHIN, reader.next(FIRST_BYTES_MAX)).await;
            let (start, extras) = match first {
                Ok(Ok(Some(ToJob::Start(start)))) => (start, Vec::new()),
                Ok(Ok(Some(ToJob::StartWith(start, extras)))) => (start, extras),
                Ok(Ok(Some(ToJob::Receive(arrival)))) => {
                    let writer = FrameWriter::new(stream.writer);
                    let travel = Arc::clone(&agent.travel);
                    return travel::host(travel, *arrival, reader, writer).await;
                }
                Ok(Ok(Some(ToJob::Ask { pid, asked }))) => {
                    let writer = FrameWriter::new(stream.writer);
                    let told = agent.travel.ask(pid, asked).await;
                    writer.sender().send(&FromJob::Told(told)).await;
                    return writer.finish().await;
                }
                other => {
                    tracing::warn!(%from, ?other, "refused a stream that starts no job");
                    return;
                }
            };
            let writer = FrameWriter::new(stream.writer);
            agent
                .run(start, extras, None, reader, writer, Hop::Remote)
                .await;
        });
        job.await.ok();
    }
}
