//! Checkpoints: images of a job that goes on, in the cluster's tree, from which it is started again when its node is lost.
//!
//! Home decides ([`rules`](super::rules)) and writes them ([`shelf`]); the node that runs the job makes them. What is told of
//! here is what home needs besides: the nodes, the tree, and the time until a copy that home has lost cannot run any more.

mod replay;
mod shelf;
mod sizes;

pub(super) use replay::Replay;
pub use shelf::forget_homes;
pub(super) use shelf::{Saved, Shelf};

use super::super::frame::FrameSender;
use super::super::place;
use super::super::protocol::{Credentials, FromJob, GONE_AFTER, Told};
use super::super::view::Nodes;
use super::rules::NotKept;
use super::wire::{IMAGE_BYTES_MAX, Image};
use super::{Known, Order, STAY, Travel};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::request::NodeStatus;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long until it is tried again to hear of the nodes.
const AGAIN: Duration = Duration::from_secs(1);
/// What a job has written may take so long to be durable; it stands still meanwhile.
const FLUSHED_WITHIN: Duration = Duration::from_secs(10);

/// Makes durable what the programs of this node have written.
#[async_trait]
pub trait Flush: Send + Sync + 'static {
    /// Returns when all of it is, what the kernel had not passed on excepted.
    ///
    /// # Errors
    /// Why some of it is not.
    async fn flush(&self) -> Result<(), String>;
}

/// What checkpoints need.
pub struct Keeping {
    /// Where the tree is.
    pub mount: PathBuf,
    /// Flushes the tree.
    pub files: Arc<dyn Flush>,
    /// Knows the nodes and their loads.
    pub nodes: Arc<dyn Nodes>,
}

impl fmt::Debug for Keeping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeping")
            .field("mount", &self.mount)
            .finish_non_exhaustive()
    }
}

/// The checkpoints of one job. CK5: they go with this.
#[derive(Debug)]
pub(super) struct Checkpoints {
    shelf: Shelf,
    pid: i32,
    /// Held by who writes; tells that nothing is to be written any more.
    over: Arc<Mutex<bool>>,
    /// Held while what earlier jobs have left is removed.
    clearing: Clearing,
}

pub(super) type Clearing = Arc<tokio::sync::Mutex<()>>;

impl Checkpoints {
    /// Keeps one; returns its size.
    pub(super) async fn put(&self, number: u64, saved: Saved) -> io::Result<u64> {
        let (shelf, pid, over) = (self.shelf.clone(), self.pid, Arc::clone(&self.over));
        // Else it might go with them.
        drop(self.clearing.lock().await);
        on_thread(move || {
            let over = over.lock().expect("no holder panics");
            if *over {
                return Err(io::ErrorKind::Interrupted.into());
            }
            shelf.check()?;
            shelf.put(pid, number, &saved)
        })
        .await
    }

    /// Returns one, as it is to be started.
    pub(super) async fn get(&self, number: u64) -> io::Result<Saved> {
        let (shelf, pid) = (self.shelf.clone(), self.pid);
        on_thread(move || {
            shelf.check()?;
            let mut saved = shelf.get(pid, number)?;
            saved.images = without_sizes(saved.images, &shelf)?;
            Ok(saved)
        })
        .await
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        let (shelf, pid, over) = (self.shelf.clone(), self.pid, Arc::clone(&self.over));
        let clear = move || {
            *over.lock().expect("no holder panics") = true;
            if let Err(error) = shelf.check().and_then(|()| shelf.clear(pid)) {
                tracing::warn!(pid, %error, "left checkpoints behind");
            }
        };
        let thread = std::thread::Builder::new().name("glu-checkpoint".into());
        if let Err(error) = thread.spawn(clear) {
            tracing::warn!(pid, %error, "left checkpoints behind");
        }
    }
}

/// What has grown since is the same file all the same.
fn without_sizes(images: Vec<Image>, shelf: &Shelf) -> io::Result<Vec<Image>> {
    let is_files = |image: &Image| image.name == sizes::FILES;
    let (files, mut images): (Vec<_>, Vec<_>) = images.into_iter().partition(is_files);
    let whole: Vec<u8> = files
        .iter()
        .flat_map(|image| &image.bytes)
        .copied()
        .collect();
    let mut below = shelf.mount().as_os_str().as_encoded_bytes().to_vec();
    below.push(b'/');
    let whole = Bytes::from(sizes::without(&whole, &below)?);
    let starts = (0..whole.len()).step_by(IMAGE_BYTES_MAX);
    images.extend(starts.map(|at| Image {
        name: sizes::FILES.to_owned(),
        bytes: whole.slice(at..whole.len().min(at + IMAGE_BYTES_MAX)),
    }));
    Ok(images)
}

/// Does on a thread of its own what touches the tree, which may hang (J4).
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (tell, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("glu-checkpoint".into());
    thread.spawn(move || tell.send(work()).ok())?;
    done.await.map_err(|_| io::ErrorKind::BrokenPipe)?
}

/// Returns the time, in seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Travel {
    /// Lets checkpoints be made, from now on.
    pub(in crate::job) fn keep(&self, keeping: Keeping) {
        self.keeping.set(keeping).ok();
    }

    fn keeping(&self) -> io::Result<&Keeping> {
        self.keeping
            .get()
            .ok_or_else(|| io::Error::other("no checkpoints are made here"))
    }

    /// Returns the place for those of a job.
    pub(super) fn checkpoints(&self, pid: i32) -> io::Result<Checkpoints> {
        Ok(Checkpoints {
            shelf: Shelf::new(&self.keeping()?.mount, self.node),
            pid,
            over: Arc::default(),
            clearing: Arc::clone(&self.clearing),
        })
    }

    /// Removes what an earlier daemon of this node has left; call it once the tree is mounted. CK5: its jobs ended with it.
    /// Nobody waits for that but who has new ones.
    pub(in crate::job) fn forget_checkpoints(&self) {
        let (Ok(keeping), Ok(clearing)) =
            (self.keeping(), Arc::clone(&self.clearing).try_lock_owned())
        else {
            return;
        };
        let shelf = Shelf::new(&keeping.mount, self.node);
        tokio::spawn(async move {
            let cleared = on_thread(move || shelf.check().and_then(|()| shelf.clear_all()));
            if let Err(error) = cleared.await {
                tracing::warn!(%error, "checkpoints of earlier jobs are left");
            }
            drop(clearing);
        });
    }

    /// Makes durable what was written here (CK6), what is in mapped pages, too.
    pub(super) async fn flush(&self) -> io::Result<()> {
        let keeping = self.keeping()?;
        let mount = keeping.mount.clone();
        let flush = async {
            on_thread(move || Ok(nix::unistd::syncfs(File::open(mount)?)?)).await?;
            keeping.files.flush().await.map_err(io::Error::other)
        };
        match timeout(FLUSHED_WITHIN, flush).await {
            Ok(flushed) => flushed.map_err(|error| {
                io::Error::other(format!(
                    "what was written could not be made durable: {error}"
                ))
            }),
            Err(_) => Err(io::Error::other(format!(
                "what was written is not durable after {FLUSHED_WITHIN:?}"
            ))),
        }
    }

    /// Makes a checkpoint of a job of this node; returns its number when it is durable, or an errno and a line.
    pub(super) async fn checkpoint(
        &self,
        known: Option<Known>,
        pid: i32,
    ) -> Result<u64, (i32, String)> {
        let ties = self.ties_at_rest(known.as_ref(), pid).await;
        let busy = || (libc::EBUSY, NotKept::Busy.to_string());
        let mut ties = ties.ok_or_else(busy)?;
        // It goes on here.
        ties.remove(STAY);
        let Some(known) = known.filter(|_| ties.is_empty()) else {
            let ties: Vec<&str> = ties.into_iter().collect();
            return Err((libc::EOPNOTSUPP, ties.join(" ")));
        };
        // MV12: where it can be started from it.
        self.look(&known, pid).await;
        let (answer, told) = oneshot::channel();
        let ended = || (libc::ESRCH, "it has ended".to_owned());
        if known.orders.send(Order::Keep { answer }).await.is_err() {
            return Err(ended());
        }
        let told = told.await.map_err(|_| ended())?;
        told.map_err(|why| {
            let errno = match why {
                NotKept::Busy => libc::EBUSY,
                NotKept::Ended => libc::ESRCH,
                NotKept::NoImages(_) => libc::EAGAIN,
                NotKept::NotWritten { errno, .. } => errno,
            };
            (errno, why.to_string())
        })
    }

    /// As [`Self::checkpoint`], for who asks by the job's pid.
    pub(super) async fn told_kept(&self, known: Option<Known>, pid: i32) -> Told {
        let kept = self.checkpoint(known, pid).await;
        Told::Kept(kept.map_err(|(errno, why)| {
            if errno != libc::EOPNOTSUPP {
                tracing::warn!(pid, %why, "there is no new checkpoint of a job");
            }
            errno
        }))
    }

    /// Moves a job that has just begun to where it is to run; where that cannot be it runs here.
    pub(in crate::job) async fn send(
        self: &Arc<Self>,
        pid: i32,
        to: NodeId,
        to_owner: &FrameSender,
    ) {
        if let Err(errno) = self.go_now(pid, to).await
            && errno != libc::ESRCH
        {
            let why = nix::errno::Errno::from_raw(errno).desc();
            let here = self.node;
            let note = format!("the job runs on node {here}, not {to}, and ends with that: {why}");
            to_owner.send(&FromJob::Note(note)).await;
        }
    }

    /// Makes a checkpoint of a job every so often for as long as it lives. CK2: the user hears of the first that fails, and of
    /// the next one after a good one.
    pub(super) async fn checkpoint_every(
        self: Arc<Self>,
        pid: i32,
        every: Duration,
        to_owner: FrameSender,
    ) {
        let mut is_told = false;
        loop {
            tokio::time::sleep(every).await;
            let Some(known) = self.jobs().get(&pid).cloned() else {
                return;
            };
            match self.checkpoint(Some(known), pid).await {
                Ok(_) => is_told = false,
                // It moves, or somebody else has asked for one.
                Err((libc::EBUSY, _)) => {}
                Err((_, why)) if is_told => tracing::debug!(pid, %why, "no checkpoint of a job"),
                Err((_, why)) => {
                    is_told = true;
                    tracing::warn!(pid, %why, "no checkpoint of a job");
                    let note = format!("no checkpoint was made, and the job goes on: {why}");
                    to_owner.send(&FromJob::Note(note)).await;
                }
            }
        }
    }

    /// Returns once a copy of which home has heard nothing since the call cannot run any more (CK1). This node is then
    /// known not to be the one that is cut off.
    pub(super) async fn fence(&self) {
        tokio::time::sleep(GONE_AFTER).await;
        while self.nodes().await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn nodes(&self) -> io::Result<Vec<NodeStatus>> {
        let nodes = self.keeping()?.nodes.nodes().await;
        nodes.map_err(io::Error::other)
    }

    /// Returns the least loaded node among some, or all if these are none, that takes this job of this user and was not tried.
    pub(super) async fn node_for(
        &self,
        pid: i32,
        user: &Credentials,
        among: &[NodeId],
        tried: &BTreeSet<NodeId>,
    ) -> Option<NodeId> {
        let mut nodes = self.nodes().await.ok()?;
        nodes.retain(|of| {
            let asked = among.is_empty() || among.contains(&of.node);
            asked && of.up && !of.draining && !tried.contains(&of.node)
        });
        let used = self.jobs().get(&pid).map(|known| known.programs().used());
        let used = used.unwrap_or_default();
        let score = |of: &NodeStatus| place::score(&of.report.load, 0.0);
        nodes.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.node.cmp(&b.node)));
        for of in nodes {
            let guest = of.node != self.node;
            let admitted = self.admissions.admit(of.node, user, guest).await.is_ok();
            if admitted && self.lacks(&used, of.node).await.is_empty() {
                return Some(of.node);
            }
        }
        None
    }
}
