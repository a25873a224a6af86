//! The client of the cluster file system: what `/cluster` is on one node.
//!
//! [`Client`] implements [`crate::tree::Tree`]: it answers from what it caches under leases, asks the metadata
//! leader otherwise, changes files locally under an exclusive lease and flushes them, and answers the leader's
//! breaks.
//!
//! # Words
//! - A **node** ([`node::Node`]) is one inode as known here.
//! - A **ticket** belongs to a request that may bring grants: it holds the request's stamp.
//! - A fact is **covered** when its grant was installed: only then may it be cached, here or in the kernel.
//! - To **own** a file is to hold it exclusively: what is known here is the truth, until the ack of a break.
//!
//! # Rules
//! - K1: a reply that lets the kernel cache counts in `holds` from the lease check on until it has been delivered;
//!   a break waits for that before it tells the kernel to forget.
//! - R1: a READ answered outside the lease may leave a page in the kernel; a break tells the kernel to forget
//!   again until none was answered since, and only then is acked.
//! - W1: a file that may have a writable shared mapping is owned while the kernel has pages of it.
//! - W2: a direct write leaves no page from before it. W3: a file that is open for writing here, or that other nodes
//!   change, is read past the pages by those who open it now (see [`sharing`]).
//! - W4: chunks of other files are shared only in a flush that is answered before the copy is (see [`share`]).
//! - G1 to G3: see [`makes`].
//! - C1: see [`clock`]. E1: a kernel without epochs never caches names. S5: nothing is served from a cache once
//!   the session may have ended.
//! - L9: the names and the attributes that a change of ours touches are not served until it is answered, because
//!   others may have seen the change already. The rest of the inode is served as before.
//!
//! Lock order: see [`node`].

mod accesses;
mod ahead;
mod call;
mod callback;
mod clock;
mod content;
mod dirty;
mod facts;
mod failure;
mod flush;
mod locks;
mod makes;
mod names;
mod node;
mod notify;
mod ops;
mod pack;
mod pages;
mod rates;
mod release;
mod session;
mod share;
mod sharing;
#[cfg(test)]
mod tests;
mod watches;

use crate::data::ChunkIo;
use crate::error::Errno;
use crate::net::{Router, ServiceId, Transport};
use crate::tree::{Kernel, Watching};
use accesses::Accesses;
use ahead::Ahead;
use call::{Announcements, Bystander, Calls};
use clock::Clock;
use consistency::lease;
use consistency::wire::request::NodeReport;
use consistency::{InodeNo, NodeId, SessionId};
use dashmap::DashMap;
use flush::DirtyFiles;
use locks::Locks;
use lru::LruCache;
use makes::Makes;
use node::{Node, Removal};
use notify::Notifier;
use ops::statfs::StatFsCache;
use pages::CleanContent;
use release::Releases;
use session::Phase;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use watches::Replays;

/// Memory that an inode takes here at most, its name and its lease included.
pub const NODE_BYTES_MAX: usize = 512;

/// Settings of a [`Client`].
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Grows with every start of this node: sessions are opened by number (see `MetaRequest::OpenSession`).
    pub incarnation: u32,
    /// How long a request waits for the leader before it fails with EIO (S5).
    pub request_deadline: Duration,
    /// How long a change may stay on this node alone.
    pub flush_after: Duration,
    /// Bytes of unflushed changes; above it writers wait.
    pub dirty_bytes_max: u64,
    /// Bytes of content cached under shared leases, extent maps included.
    pub clean_bytes_max: usize,
    /// Inodes that stay cached although the kernel does not know them (any more): those of a listing that it is
    /// about to look up, or has evicted and will want again.
    pub idle_nodes_max: usize,
    /// Reads change times of access.
    pub access_times: bool,
    /// How often this node's clock is compared with the leader's. In the default, clocks that differ by 2 % show where
    /// answers take 0.1 s.
    pub compare_clocks_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            incarnation: 1,
            request_deadline: Duration::from_secs(30),
            flush_after: Duration::from_secs(5),
            dirty_bytes_max: 256 << 20,
            clean_bytes_max: 64 << 20,
            idle_nodes_max: 16_384,
            access_times: true,
            compare_clocks_every: Duration::from_secs(10),
        }
    }
}

/// Tells the leader how this node is doing, with every renewal.
pub type Report = Box<dyn Fn() -> NodeReport + Send + Sync>;

/// The files of `/cluster` on this node.
#[derive(Debug)]
pub struct Client {
    core: Arc<Core>,
}

impl Client {
    /// Starts a client: registers its callback service and begins to look for the leader. Requests wait for the
    /// session. Must be called inside a tokio runtime.
    pub fn start(
        config: Config,
        transport: Arc<dyn Transport>,
        router: &Router,
        chunks: Arc<dyn ChunkIo>,
        report: Report,
    ) -> Self {
        let core = Arc::new(Core {
            config,
            transport,
            chunks,
            report,
            kernel: Notifier::default(),
            clock: Clock::new(),
            leases: Mutex::new(lease::Client::new()),
            rates: Mutex::default(),
            nodes: DashMap::new(),
            phase: watch::Sender::new(Phase::None),
            calls: Calls::default(),
            locks: Arc::default(),
            dirty: DirtyFiles::default(),
            makes: Makes::default(),
            clean: CleanContent::new(config.clean_bytes_max),
            releases: Releases::default(),
            accesses: Accesses::new(config.access_times),
            ahead: Ahead::default(),
            idle: Mutex::new(LruCache::unbounded()),
            statfs: StatFsCache::default(),
            replays: Replays::default(),
            watched: AtomicBool::new(false),
            next_fh: AtomicU64::new(1),
            attempts: AtomicU64::new(u64::from(config.incarnation) << 32),
        });
        // The kernel never looks the root up, and never forgets it.
        core.pin(InodeNo::ROOT).state().lookups = 1;
        let service = callback::Callbacks::new(&core);
        router.register(ServiceId::Callback, Arc::new(service));
        router.register(ServiceId::Reign, Arc::new(Announcements::new(&core)));
        if router.service(ServiceId::Meta).is_none() {
            router.register(ServiceId::Meta, Arc::new(Bystander::new(&core)));
        }
        tokio::spawn(session::run(Arc::clone(&core)));
        tokio::spawn(flush::run(Arc::clone(&core)));
        tokio::spawn(makes::run(Arc::clone(&core)));
        tokio::spawn(release::run(Arc::clone(&core)));
        tokio::spawn(accesses::run(Arc::clone(&core)));
        tokio::spawn(rates::run(Arc::clone(&core)));
        Self { core }
    }

    /// Gives the client the kernel of its mount. Until then nothing is cached there.
    pub async fn mounted(&self, kernel: Arc<dyn Kernel>) {
        self.core.kernel.mounted(kernel).await;
    }

    /// Tells the watchers of the mount what other nodes do, from now on.
    pub fn tell_watchers(&self, watching: Arc<dyn Watching>) {
        tokio::spawn(watches::run(Arc::clone(&self.core), watching));
    }

    /// Returns the current session, if there is one.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.core.phase.borrow().session()
    }

    /// Returns whether a session's term goes on, by this node's clock: one that has stood still may not know yet that it is over.
    #[cfg(test)]
    pub(crate) fn in_term(&self) -> bool {
        self.core.clock.now() < self.core.leases().valid_until()
    }

    /// Returns the leader that this node asks, if it knows of one.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.core.calls.known_leader()
    }

    /// Returns the inodes that programs of this node have locked (flock(2), fcntl(2)), each with the processes that asked.
    #[must_use]
    pub fn locked(&self) -> Vec<(InodeNo, u32)> {
        self.core.locks.holders()
    }

    /// Returns how many leases this node holds.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.core.leases().held_count()
    }

    /// Says what is wrong with this node's clock, if something is: it runs apart from the leader's.
    #[must_use]
    pub fn clock_trouble(&self) -> Option<String> {
        self.core.rates().apart().map(rates::trouble)
    }

    /// Makes durable what this node has been told to write so far, by whomever.
    ///
    /// # Errors
    /// The first error of a flush; the changes of that file are lost.
    pub async fn sync_all(&self) -> Result<(), Errno> {
        self.core.flush_everything().await
    }

    /// Flushes everything, gives all leases back, and stops. The mount must be gone.
    ///
    /// # Errors
    /// The first error of a flush; the changes of that file are lost.
    pub async fn shutdown(&self) -> Result<(), Errno> {
        let flushed = self.core.flush_everything().await;
        self.core.tell_accesses().await;
        self.core.release_everything().await;
        self.core.phase.send_replace(Phase::Stopped);
        flushed
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Ends the background tasks, which keep the core alive.
        self.core.phase.send_replace(Phase::Stopped);
    }
}

/// The client, as its operations and tasks share it.
struct Core {
    config: Config,
    transport: Arc<dyn Transport>,
    chunks: Arc<dyn ChunkIo>,
    report: Report,
    kernel: Notifier,
    clock: Clock,
    leases: Mutex<lease::Client>,
    rates: Mutex<lease::Rates>,
    nodes: DashMap<InodeNo, Arc<Node>>,
    phase: watch::Sender<Phase>,
    calls: Calls,
    locks: Arc<Locks>,
    dirty: DirtyFiles,
    makes: Makes,
    clean: CleanContent,
    releases: Releases,
    accesses: Accesses,
    ahead: Ahead,
    /// Nodes that nobody uses, by last use.
    idle: Mutex<LruCache<InodeNo, ()>>,
    statfs: StatFsCache,
    replays: Replays,
    /// Some node watches something.
    watched: AtomicBool,
    next_fh: AtomicU64,
    /// Last attempt to open a session.
    attempts: AtomicU64,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("phase", &*self.phase.borrow())
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}

impl Core {
    fn leases(&self) -> MutexGuard<'_, lease::Client> {
        self.leases.lock().expect("no holder panics")
    }

    fn rates(&self) -> MutexGuard<'_, lease::Rates> {
        self.rates.lock().expect("no holder panics")
    }

    /// Returns the node of an inode and keeps it in the table while the pin lives.
    fn pin(self: &Arc<Self>, ino: InodeNo) -> Pin {
        let entry = self.nodes.entry(ino);
        let node = entry.or_insert_with(|| Arc::new(Node::new(ino)));
        // Under the table's lock: a node with a pin is not removed.
        node.pins.fetch_add(1, Ordering::AcqRel);
        Pin {
            core: Arc::clone(self),
            node: Arc::clone(&node),
        }
    }

    /// Returns the node of an inode if there is one.
    fn pin_known(self: &Arc<Self>, ino: InodeNo) -> Option<Pin> {
        let node = self.nodes.get(&ino)?;
        node.pins.fetch_add(1, Ordering::AcqRel);
        Some(Pin {
            core: Arc::clone(self),
            node: Arc::clone(&node),
        })
    }

    /// Looks at a node whose last pin has gone: unless the kernel or a handle needs it, its changes are flushed, or
    /// it is kept idle for a while, or its lease is given back.
    fn collect(self: &Arc<Self>, node: &Arc<Node>) {
        {
            let mut state = node.state();
            // What was made or removed here is looked at again when that is committed.
            let told = !state.made && state.removal == Removal::None;
            if state.lookups > 0 || state.opens > 0 || !told || state.names.uncommitted() > 0 {
                return;
            }
            if state.is_dirty() && !state.flushing {
                if !state.is_orphan() {
                    drop(state);
                    self.spawn_last_flush(node.ino);
                    return;
                }
                // Nobody can ever read the bytes of a file without name, handle or lookup.
                state.drop_data();
                self.account(node.ino, &mut state);
            } else if state.attr.is_some() && !state.is_orphan() && !state.is_dirty() {
                drop(state);
                self.keep_idle(node.ino);
                return;
            }
        }
        self.discard(node);
    }

    /// Keeps a node that may be wanted again, and discards the one that was used longest ago if there are too many.
    fn keep_idle(&self, ino: InodeNo) {
        let oldest = {
            let mut idle = self.idle.lock().expect("no holder panics");
            idle.put(ino, ());
            let full = idle.len() > self.config.idle_nodes_max;
            full.then(|| idle.pop_lru()).flatten()
        };
        let Some((oldest, ())) = oldest else { return };
        let node = self.nodes.get(&oldest).map(|node| Arc::clone(&node));
        if let Some(node) = node {
            self.discard(&node);
        }
    }

    /// Removes a node if nobody needs it.
    fn discard(&self, node: &Arc<Node>) {
        let removed = self.nodes.remove_if(&node.ino, |_, current| {
            let unused = current.pins.load(Ordering::Acquire) == 0 && current.state().is_idle();
            if unused {
                // Under the table's lock: a node made anew for this inode installs its grants after this.
                let lease = self.leases().forget(node.ino);
                if let Some(lease) = lease {
                    self.releases.push(node.ino, lease);
                }
            }
            unused
        });
        if removed.is_some() {
            self.clean.forget(node.ino);
        }
    }

    /// Runs an operation in a task of its own, so that it survives a caller who gives up; the caller waits at
    /// most the request deadline.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
    ) -> Result<T, Errno> {
        let task = tokio::spawn(work);
        match tokio::time::timeout(self.config.request_deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(failed)) => {
                tracing::error!(%failed, "an operation's task ended early");
                Err(Errno::EIO)
            }
            Err(_) => Err(Errno::EIO),
        }
    }

    /// As [`detached`](Self::detached), for a change of names and of the attributes of some inodes. If its caller gives
    /// up, nobody knows whether it was made (S1): the kernel keeps nothing from before.
    async fn detached_change<T: Send + 'static>(
        &self,
        changed: &[InodeNo],
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
    ) -> Result<T, Errno> {
        let done = self.detached(work).await;
        if matches!(done, Err(Errno::EIO)) {
            // Neither of them waits for a request that is under way.
            self.kernel.forget_all_names().await;
            for ino in changed {
                self.kernel.forget_attr(*ino).await;
            }
        }
        done
    }
}

/// A node in use.
struct Pin {
    core: Arc<Core>,
    node: Arc<Node>,
}

impl Deref for Pin {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.node.pins.fetch_add(1, Ordering::AcqRel);
        Self {
            core: Arc::clone(&self.core),
            node: Arc::clone(&self.node),
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.node.pins.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.core.collect(&self.node);
        }
    }
}
