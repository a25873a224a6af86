//! A node's process agent: tells the others about the processes here.

use crate::load::Meter;
use crate::pids::ClusterPid;
use crate::procfs::{Procfs, STUCK_AFTER};
use crate::reading::NotRead;
use crate::wait;
use crate::wire::{PAGE_BYTES_MAX, ProcFile, ProcReply, ProcRequest, Record, Who};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::{decode, encode};
use gfs::net::Service;
use nix::errno::Errno;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};

/// How many scans a snapshot may take.
const SCANS_MAX: usize = 6;
/// How long a file of a process may take to be read.
pub const READ_PATIENCE: Duration = Duration::from_secs(1);
/// How many requests about single processes are served at a time; more wait for their turn, within the caller's
/// deadline.
pub const READS_MAX: usize = 32;
/// How many ends of processes are waited for at a time; each wait holds a descriptor.
pub const WAITS_MAX: usize = 256;

/// Tells what the daemon counts, as the text format of Prometheus has it.
pub type Metrics = Box<dyn Fn() -> String + Send + Sync>;

/// Takes signals for processes that move: pid, signal (0: would it?), whether to its group. `None`: it does not move, so
/// the kernel is the one to send it.
pub type Forward = Box<dyn Fn(i32, i32, bool) -> Option<Result<(), Errno>> + Send + Sync>;

/// Hears which process, by the kernel's number, is locked now or not.
pub type TellLock = Box<dyn Fn(i32, bool) + Send + Sync>;

/// Answers [`ProcRequest`]s out of the node's procfs.
pub struct ProcAgent {
    node: NodeId,
    procfs: Arc<Procfs>,
    meter: Arc<Meter>,
    metrics: Metrics,
    forward: OnceLock<Forward>,
    tell_lock: OnceLock<TellLock>,
    reads: Arc<Semaphore>,
    waits: Semaphore,
    /// The last scan; whoever holds it may make the next one.
    scan: Arc<Mutex<Option<Scan>>>,
}

#[derive(Debug)]
struct Scan {
    begun: Instant,
    records: Arc<Vec<Record>>,
}

impl ProcAgent {
    /// Answers for `node` from the procfs at `proc_path`, which must be that of the pid namespace the node's
    /// processes are in.
    #[must_use]
    pub fn new(node: NodeId, proc_path: impl Into<PathBuf>) -> Self {
        let proc_path: PathBuf = proc_path.into();
        Self {
            node,
            meter: Arc::new(Meter::new(&proc_path)),
            metrics: Box::new(String::new),
            forward: OnceLock::new(),
            tell_lock: OnceLock::new(),
            procfs: Arc::new(Procfs::new(node, proc_path)),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            waits: Semaphore::new(WAITS_MAX),
            scan: Arc::default(),
        }
    }

    /// Has the node tell these to who reads its `metrics`.
    #[must_use]
    pub fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Has signals that a process may be sent go on to where it is.
    pub fn forward_signals(&self, forward: Forward) {
        self.forward.set(forward).ok();
    }

    /// Takes note that a process that is locked has come back to this node, under the kernel's number that it had.
    pub fn came_back(&self, pid: i32) {
        if let Some(pid) = ClusterPid::of(self.node, pid) {
            self.procfs.came_back(pid);
        }
    }

    /// Has somebody hear of locks.
    pub fn tell_locks(&self, tell: TellLock) {
        self.tell_lock.set(tell).ok();
    }

    /// Sends a signal once: by the kernel, or by way of what moves the process. The rights are those to what is here
    /// of it in either case.
    async fn signal(
        &self,
        pid: ClusterPid,
        number: i32,
        group: bool,
        send: impl Fn(&Procfs, i32) -> Result<(), Errno> + Copy + Send + 'static,
    ) -> ProcReply {
        let forward = self.forward.get().filter(|_| number > 0);
        let forward = forward.filter(|forward| forward(pid.kernel(), 0, group).is_some());
        if let Some(forward) = forward {
            let allowed = self.act(move |procfs| send(procfs, 0)).await;
            if !matches!(allowed, ProcReply::Done(Ok(()))) {
                return allowed;
            }
            if let Some(sent) = forward(pid.kernel(), number, group) {
                return ProcReply::Done(sent.map_err(|errno| errno as i32));
            }
        }
        self.act(move |procfs| send(procfs, number)).await
    }

    /// As on a mount with hidepid.
    #[cfg(test)]
    pub(crate) fn hiding(mut self, hidden: Option<u32>) -> Self {
        let procfs = Arc::get_mut(&mut self.procfs).expect("nobody else has it yet");
        procfs.hidden = hidden;
        self
    }

    /// Returns the node this agent answers for.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Returns the procfs this agent reads.
    #[must_use]
    pub fn proc_path(&self) -> &Path {
        self.procfs.path()
    }

    /// Returns the process here that a thread belongs to; `None` if there is no such thread.
    pub async fn process_of(&self, thread: u32) -> Option<ClusterPid> {
        let thread = i32::try_from(thread).ok()?;
        let procfs = Arc::clone(&self.procfs);
        blocking(move || procfs.process_of(thread)).await
    }

    /// Answers a request.
    pub async fn answer(&self, request: ProcRequest) -> ProcReply {
        match request {
            ProcRequest::Snapshot { after } => self.page(after).await,
            ProcRequest::Identify(pid) => {
                let procfs = Arc::clone(&self.procfs);
                ProcReply::Identity(self.read(move || procfs.identify(pid)).await)
            }
            ProcRequest::Read {
                pid,
                birth,
                thread,
                file,
                who,
            } => {
                let procfs = Arc::clone(&self.procfs);
                let read = self.read(move || procfs.read(pid, birth, thread, file, who));
                match tokio::time::timeout(READ_PATIENCE, read).await {
                    Ok(Ok(content)) => ProcReply::Content(Ok(content)),
                    Ok(Err(NotRead::Errno(errno))) => ProcReply::Content(Err(errno as i32)),
                    Ok(Err(NotRead::Stuck)) | Err(_) => {
                        tracing::warn!(%pid, ?file, "cannot read: the process waits for its memory");
                        ProcReply::Failed
                    }
                }
            }
            ProcRequest::Lock {
                pid,
                birth,
                lock,
                who,
            } => {
                let done = self.act(move |procfs| procfs.lock(pid, birth, lock, who));
                let done = done.await;
                if let (ProcReply::Done(Ok(())), Some(tell)) = (&done, self.tell_lock.get()) {
                    tell(pid.kernel(), lock);
                }
                done
            }
            ProcRequest::Wait { pid, birth, who } => {
                let turn = self.waits.acquire().await.expect("it is never closed");
                let ended = wait::wait(Arc::clone(&self.procfs), pid, birth, who).await;
                drop(turn);
                ProcReply::Content(ended.map_err(|errno| errno as i32))
            }
            ProcRequest::Column { file, who, after } => self.column(file, who, after).await,
            ProcRequest::Machine(file) => {
                let procfs = Arc::clone(&self.procfs);
                match blocking(move || procfs.machine(file)).await {
                    Ok(content) => ProcReply::Machine(content),
                    Err(error) => {
                        tracing::warn!(?file, %error, "cannot read");
                        ProcReply::Failed
                    }
                }
            }
            ProcRequest::Signal {
                pid,
                birth,
                number,
                who,
            } => {
                let send = move |procfs: &Procfs, number| procfs.signal(pid, birth, number, who);
                self.signal(pid, number, false, send).await
            }
            ProcRequest::SignalGroup {
                group,
                birth,
                number,
                who,
            } => {
                let send =
                    move |procfs: &Procfs, number| procfs.signal_group(group, birth, number, who);
                self.signal(group, number, true, send).await
            }
            ProcRequest::Metrics => ProcReply::Machine((self.metrics)().into()),
            ProcRequest::Load => {
                let meter = Arc::clone(&self.meter);
                ProcReply::Load(blocking(move || meter.measure()).await)
            }
        }
    }

    /// Returns all processes here, none of them as it was before the call. Calls that come while a scan is running
    /// share the next one: any number of readers costs two scans' time each.
    ///
    /// # Errors
    /// If procfs cannot be read.
    pub async fn processes(&self) -> io::Result<Arc<Vec<Record>>> {
        let asked = Instant::now();
        let mut last = Arc::clone(&self.scan).lock_owned().await;
        if let Some(scan) = last.as_ref().filter(|scan| scan.begun >= asked) {
            return Ok(Arc::clone(&scan.records));
        }
        let procfs = Arc::clone(&self.procfs);
        // A task of its own keeps the lock even if the caller gives up: there is never more than one scan.
        let scan = tokio::spawn(async move {
            let begun = Instant::now();
            let records = Arc::new(unstuck(&procfs, Procfs::records).await?);
            *last = Some(Scan {
                begun,
                records: Arc::clone(&records),
            });
            Ok(records)
        });
        scan.await.expect("a scan does not panic")
    }

    async fn page(&self, after: Option<ClusterPid>) -> ProcReply {
        let records = match after {
            None => self.processes().await,
            Some(_) => {
                let last = self.scan.lock().await;
                Ok(last
                    .as_ref()
                    .map_or_else(Arc::default, |scan| Arc::clone(&scan.records)))
            }
        };
        match records {
            Ok(records) => page(&records, after),
            Err(error) => {
                tracing::error!(%error, path = %self.proc_path().display(), "cannot list processes");
                ProcReply::Failed
            }
        }
    }

    /// Reads a file of all processes behind `after`.
    async fn column(&self, file: ProcFile, who: Who, after: Option<ClusterPid>) -> ProcReply {
        if !file.is_quick() {
            return ProcReply::Failed;
        }
        let read = move |procfs: &Procfs, memory, done: &AtomicUsize| {
            procfs.column(file, who, after, memory, done)
        };
        match unstuck(&self.procfs, read).await {
            Ok((cells, more)) => ProcReply::Column { cells, more },
            Err(error) => {
                tracing::error!(%error, path = %self.proc_path().display(), "cannot list processes");
                ProcReply::Failed
            }
        }
    }

    async fn act(
        &self,
        act: impl FnOnce(&Procfs) -> Result<(), Errno> + Send + 'static,
    ) -> ProcReply {
        let procfs = Arc::clone(&self.procfs);
        let done = self.read(move || act(&procfs)).await;
        ProcReply::Done(done.map_err(|errno| errno as i32))
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce() -> T + Send + 'static) -> T {
        let turn = Arc::clone(&self.reads).acquire_owned().await;
        blocking(move || {
            // Held by the read itself: one that is stuck counts even after its caller has given up.
            let _turn = turn.expect("it is never closed");
            read()
        })
        .await
    }
}

impl fmt::Debug for ProcAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcAgent")
            .field("node", &self.node)
            .field("procfs", &self.procfs)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Service for ProcAgent {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body)
            .inspect_err(|error| tracing::warn!(%from, %error, "refused a process request"))
            .ok()?;
        Some(encode(&self.answer(request).await).into())
    }
}

/// Reads something of all processes. A scan that gets stuck at one is left to itself, and the next one passes that
/// process by; the last one reads no memory of processes, so it cannot get stuck.
async fn unstuck<T: Send + 'static>(
    procfs: &Arc<Procfs>,
    read: impl Fn(&Procfs, bool, &AtomicUsize) -> io::Result<T> + Clone + Send + 'static,
) -> io::Result<T> {
    for _ in 1..SCANS_MAX {
        let done = Arc::<AtomicUsize>::default();
        let (procfs, counted, read) = (Arc::clone(procfs), Arc::clone(&done), read.clone());
        let mut read = pin!(blocking(move || read(&procfs, true, &counted)));
        let mut seen = None;
        loop {
            if let Ok(read) = tokio::time::timeout(STUCK_AFTER, read.as_mut()).await {
                return read;
            }
            let now = Some(done.load(Ordering::Relaxed));
            if seen == now {
                break;
            }
            seen = now;
        }
    }
    let procfs = Arc::clone(procfs);
    blocking(move || read(&procfs, false, &AtomicUsize::new(0))).await
}

/// Cuts the page behind `after` out of a snapshot.
fn page(records: &[Record], after: Option<ClusterPid>) -> ProcReply {
    let from = after.map_or(0, |after| {
        records.partition_point(|record| record.identity.pid <= after)
    });
    let mut room = PAGE_BYTES_MAX;
    let fits = |record: &&Record| {
        let left = room.checked_sub(size(record));
        room = left.unwrap_or(room);
        left.is_some()
    };
    let page = records[from..].iter().take_while(fits).cloned();
    let page = page.collect::<Vec<_>>();
    ProcReply::Snapshot {
        more: from + page.len() < records.len(),
        records: page,
    }
}

/// Returns an upper limit of a record's size on the wire.
fn size(record: &Record) -> usize {
    let cmdline = record.cmdline.as_ref().map_or(0, Bytes::len);
    record.stat.len() + record.status.len() + cmdline + 64
}

/// Runs what may block: a read of another process's memory waits for that process's page faults.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work)
        .await
        .expect("a read of procfs does not panic")
}
