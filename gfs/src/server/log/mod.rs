//! The replicated log: drives a [`StateMachine`] through raft, the same way for one voter and for five.
//!
//! Words: a *command* is one change; a *batch* is the commands that share a log entry and an fsync; a
//! *reign* is one node's time as leader, and an [`Epoch`](consistency::Epoch) numbers it; the *mark* says
//! what the store has promised to hold.
//!
//! A command travels: [`Replicated::propose`] (encode, wait for room) -> [`proposer`] (gather a batch) ->
//! openraft -> [`store`] (append, sync) and [`network`] (to the other voters) -> [`machine`] (apply once a
//! majority has synced it, answer the callers).
//!
//! Rules:
//! - R1 A reply means: synced by a majority, and applied here.
//! - R2 [`ProposeError::NotLeader`], [`Unavailable`](ProposeError::Unavailable) and
//!   [`TooLarge`](ProposeError::TooLarge) mean: in no log, and never will be. Anything else that is no reply
//!   is [`Unknown`](ProposeError::Unknown).
//! - R3 A node never starts with less than it once promised: it says what is missing and does not start.
//! - R4 After a failed write the node takes no more commands until it is restarted: nobody knows what a
//!   disk holds after a failed fsync.
//! - R5 Every reign has its own epoch, also when the same node leads again after a restart.
//! - R6 The log is purged behind a snapshot that is durable, also behind one that the leader sent: else a crash leaves a
//!   log that begins after all there is.
//!
//! Who votes is in [`membership`].
//!
//! In the directory: `LOCK` (flock), `MARK`, `log/` (fjall), `snapshot-<index>`. What is above that knows it as a [`disk::Disk`].
//!
//! Lock order: the applied state, then the pending batches. The store's locks are leaves.
#![allow(
    clippy::result_large_err,
    reason = "openraft's traits ask for its storage error, which is large"
)]

mod directory;
mod disk;
mod election;
mod error;
#[cfg(test)]
mod faults;
mod growth;
mod inspect;
mod leadership;
mod machine;
mod mark;
mod membership;
mod network;
mod proposer;
mod raft;
mod saved;
mod seed;
#[cfg(test)]
mod simulated;
mod snapshot;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod words;
mod writer;

pub use error::{OpenError, ProposeError};
pub use inspect::{AtRest, at_rest};
pub use leadership::Leadership;
pub use seed::seed;
#[cfg(test)]
pub(crate) use simulated::{DiskFault, SimulatedDisk};

use crate::net::{Router, ServiceId, Transport};
use crate::server::machine::StateMachine;
use bytes::Bytes;
use consistency::{NodeId, wire};
use directory::{Closed, Directory, FOLDER};
use disk::Disk;
use election::{Campaigner, Heard};
use growth::Growth;
use leadership::Watcher;
use machine::{Applied, Machine, Probes};
use mark::MarkFile;
use network::{Network, RaftService, SNAPSHOT_CHUNK_BYTES};
use openraft::error::{CheckIsLeaderError, Fatal, InitializeError, RaftError};
use openraft::{Config, EmptyNode, SnapshotPolicy, StorageError};
use proposer::{Pending, Proposal, Proposer};
use raft::{Life, Raft};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use store::LogStore;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use words::{Asker, Words};

/// The largest command, encoded: one message carries it with room to spare.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;
const _: () = assert!(COMMAND_BYTES_MAX + (64 << 10) < wire::MESSAGE_BYTES_MAX);
/// Bytes of commands that wait or are under way; proposers beyond that wait for room.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What a command counts at least, which bounds their number as well.
const QUEUE_SHARE_MIN: usize = 4 << 10;
const _: () = assert!(COMMAND_BYTES_MAX <= QUEUE_BYTES_MAX);

/// How long a command may take; longer than an election on a busy machine, shorter than what a mount waits.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the confirmation of leadership may take: some heartbeats.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(2);
/// How long a snapshot's last chunk may take: it is synced and decoded before the answer.
const INSTALL_DEADLINE: Duration = Duration::from_secs(30);
/// How long a shutdown waits for the store's last user.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Entries that stay in the log behind a snapshot, for followers that are a little late.
const KEEP_ENTRIES: u64 = 1_000;
/// Entries that a new voter may lack when it begins to count. More would leave it without a say for a while, and the others,
/// if one of them is lost just then, without a majority.
const LAG_MAX: u64 = 64;

/// How a log is set up.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// This node.
    pub node: NodeId,
    /// The first set of voters. A log that exists keeps its own. A node that is not among them stands by: its log is
    /// empty, it follows nobody and does not vote, until a leader makes it a voter.
    pub voters: Vec<NodeId>,
    /// Where the log is; created if missing. One log, one directory.
    pub dir: PathBuf,
    /// How often a voter that has said nothing else is asked whether it follows; how long an append that has failed waits
    /// until it is sent again.
    pub heartbeat: Duration,
    /// The upper end is the leader's lease: how long voters keep to a leader that they have heard, and how long a
    /// majority's word lasts; some heartbeats. Who has heard none for that long waits for a draw from zero to the
    /// width of the range before it stands. An append has two thirds of the lower end to be synced by a follower before
    /// it is sent again, so keep that well above an fsync, on a busy machine too.
    pub election: (Duration, Duration),
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Bytes of commands between two snapshots, about: what a restart has to apply anew. More where the state is large:
    /// half of a snapshot's size.
    pub snapshot_bytes: u64,
}

impl LogConfig {
    /// Entries between two snapshots if nobody says otherwise.
    pub const SNAPSHOT_EVERY: u64 = 20_000;
    /// Bytes of commands between two snapshots if nobody says otherwise.
    pub const SNAPSHOT_BYTES: u64 = 32 << 20;
}

/// A handle on the replicated state; clones share it.
pub struct Replicated<M: StateMachine> {
    inner: Arc<Inner<M>>,
}

struct Inner<M: StateMachine> {
    raft: Raft,
    applied: Arc<RwLock<Applied<M>>>,
    probes: Arc<Probes<M>>,
    queue: mpsc::UnboundedSender<Proposal<M>>,
    room: Arc<Semaphore>,
    leadership: watch::Receiver<Leadership>,
    words: Words,
    lease: Duration,
    /// Held by a change of the voters that this node makes.
    changing: tokio::sync::Mutex<()>,
    /// The proposer, the watcher and the store, until the first shutdown takes them.
    running: Mutex<Option<Running>>,
}

struct Running {
    tasks: [JoinHandle<()>; 5],
    closed: Closed,
}

impl<M: StateMachine> Clone for Replicated<M> {
    fn clone(&self) -> Self {
        let inner = Arc::clone(&self.inner);
        Self { inner }
    }
}

impl<M: StateMachine> fmt::Debug for Replicated<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leadership = *self.inner.leadership.borrow();
        f.debug_tuple("Replicated").field(&leadership).finish()
    }
}

impl<M: StateMachine> Replicated<M> {
    /// Opens a log, recovers the state and joins the other voters.
    ///
    /// On the first start the voter with the lowest id founds the group. Returns before there is a
    /// leader: see [`Replicated::leadership`].
    ///
    /// # Errors
    /// Whatever keeps the directory from being used; it is then as it was.
    pub async fn open(
        config: LogConfig,
        transport: Arc<dyn Transport>,
        router: &Router,
    ) -> Result<Self, OpenError> {
        raft_config(&config)?;
        let recovered = {
            let config = config.clone();
            tokio::task::spawn_blocking(move || {
                let (directory, closed) = Directory::open(&config.dir)?;
                Ok((recover(&config, directory)?, closed))
            })
        };
        // A damaged database can make the code that reads it panic; to the user that is damage as well.
        let (recovered, closed) = recovered.await.unwrap_or_else(|panic| {
            let folder = config.dir.join(FOLDER);
            Err(OpenError::corrupt(
                &folder,
                format!("its recovery failed: {panic}"),
            ))
        })?;
        Self::start(config, recovered, closed, transport, router).await
    }

    /// As [`Replicated::open`], on a disk that is not real.
    #[cfg(test)]
    pub(crate) async fn open_on(
        disk: Arc<SimulatedDisk>,
        config: LogConfig,
        transport: Arc<dyn Transport>,
        router: &Router,
    ) -> Result<Self, OpenError> {
        let recovered = recover(&config, disk)?;
        let (_, closed) = oneshot::channel();
        Self::start(config, recovered, closed, transport, router).await
    }

    /// Starts what drives a recovered log.
    async fn start(
        config: LogConfig,
        recovered: Recovered<M>,
        closed: Closed,
        transport: Arc<dyn Transport>,
        router: &Router,
    ) -> Result<Self, OpenError> {
        let raft_config = Arc::new(raft_config(&config)?);
        let Recovered {
            store,
            machine,
            life,
            pending,
        } = recovered;
        let failed = |why: String| OpenError::Raft {
            dir: config.dir.clone(),
            why,
        };
        let words = Words::default();
        let network = Network {
            transport,
            words: words.clone(),
            backoff: config.heartbeat,
        };
        let (heard, lease, end) = (Heard::now(), config.election.1, store.end());
        let (applied, probes) = (machine.applied(), machine.probes());
        let growth = machine.growth();
        let raft = Raft::new(config.node.0, raft_config, network.clone(), store, machine)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let voters: BTreeSet<u16> = config.voters.iter().map(|voter| voter.0).collect();
        let service = RaftService {
            raft: raft.clone(),
            voters: voters.clone(),
            heard: Arc::clone(&heard),
            end: end.clone(),
            lease,
        };
        router.register(ServiceId::Raft, Arc::new(service));
        found(&raft, config.node, &voters).await.map_err(failed)?;

        let (leadership_in, leadership) = watch::channel(Leadership::NONE);
        let watcher = Watcher {
            raft: raft.clone(),
            leadership: leadership_in,
            words: words.clone(),
            heartbeat: config.heartbeat,
            lease,
        };
        let asker = Asker {
            raft: raft.clone(),
            network: network.clone(),
            heartbeat: config.heartbeat,
            lease,
        };
        let campaigner = Campaigner {
            raft: raft.clone(),
            network,
            heard,
            end,
            lease,
            spread: lease.saturating_sub(config.election.0),
        };
        let (queue, queued) = mpsc::unbounded_channel();
        let proposer = Proposer {
            raft: raft.clone(),
            queue: queued,
            pending,
            life,
            leadership: leadership.clone(),
        };
        let running = Running {
            tasks: [
                tokio::spawn(watcher.run()),
                tokio::spawn(proposer.run()),
                tokio::spawn(campaigner.run()),
                tokio::spawn(asker.run()),
                tokio::spawn(growth::keep_bounded(growth, raft.clone())),
            ],
            closed,
        };
        let inner = Inner {
            raft,
            applied,
            probes,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)),
            leadership,
            words,
            lease,
            changing: tokio::sync::Mutex::default(),
            running: Mutex::new(Some(running)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Commits a command and returns its reply, once a majority has it on disk and it is applied here.
    ///
    /// Commands keep the order in which they enter the queue, which is when the future is first polled
    /// as long as the queue has room. Dropping the future does not call the command back.
    ///
    /// # Errors
    /// [`ProposeError::Unknown`] leaves open whether the command is or will be applied; after the others
    /// it is not.
    pub async fn propose(&self, command: M::Command) -> Result<M::Reply, ProposeError> {
        let encoded = Bytes::from(wire::encode(&command));
        let bytes = encoded.len();
        if bytes > COMMAND_BYTES_MAX {
            let max = COMMAND_BYTES_MAX;
            return Err(ProposeError::TooLarge { bytes, max });
        }
        let leadership = *self.inner.leadership.borrow();
        if !leadership.leading {
            self.check_running()?;
            return Err(ProposeError::NotLeader(leadership.leader));
        }
        let deadline = Instant::now() + PROPOSE_DEADLINE;
        let share =
            u32::try_from(bytes.max(QUEUE_SHARE_MIN)).expect("a command is far below 4 GiB");
        let room = Arc::clone(&self.inner.room);
        // At once if possible: `acquire` may yield although there is room, which would upset the order.
        let room = match Arc::clone(&room).try_acquire_many_owned(share) {
            Ok(room) => room,
            Err(_) => timeout_at(deadline, room.acquire_many_owned(share))
                .await
                .map_err(|_| queue_full())?
                .expect("the semaphore is never closed"),
        };
        let (caller, reply) = oneshot::channel();
        let proposal = Proposal {
            command,
            encoded,
            caller,
            room,
        };
        if self.inner.queue.send(proposal).is_err() {
            return Err(ProposeError::Unavailable("it is shut down".into()));
        }
        match timeout_at(deadline, reply).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ProposeError::Unknown("the log was shut down".into())),
            Err(_) => {
                let why = format!("no majority answered within {PROPOSE_DEADLINE:?}");
                Err(ProposeError::Unknown(why))
            }
        }
    }

    /// Reads the applied state. Keep it short: commands wait meanwhile.
    ///
    /// The state is what this node has applied; for the newest, call [`Replicated::confirm_leader`] first.
    pub fn read<R>(&self, read: impl FnOnce(&M) -> R) -> R {
        let applied = self.inner.applied.read().expect("apply does not panic");
        read(&applied.machine)
    }

    /// Reads the applied state as of one entry, whose index is told, for as long as it takes: commands wait, other
    /// readers do not. The work is done where it may block.
    ///
    /// # Panics
    /// If `read` does.
    pub async fn read_at_length<R: Send + 'static>(
        &self,
        read: impl FnOnce(u64, &M) -> R + Send + 'static,
    ) -> R {
        let applied = Arc::clone(&self.inner.applied);
        let reading = tokio::task::spawn_blocking(move || {
            let applied = applied.read().expect("apply does not panic");
            let index = applied.last.map_or(0, |last| last.index);
            read(index, &applied.machine)
        });
        reading.await.expect("readers do not panic")
    }

    /// Returns the index of the last entry that is applied here, 0 if there is none.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        let applied = self.inner.applied.read().expect("apply does not panic");
        applied.last.map_or(0, |last| last.index)
    }

    /// Asks for a copy of the state as of the entry `index`: every voter has the same there. `None` if that was applied
    /// already; the receiver fails if the entry is skipped.
    ///
    /// # Panics
    /// Never: what is run elsewhere does not panic.
    pub async fn state_at(&self, index: u64) -> Option<oneshot::Receiver<M>> {
        let inner = Arc::clone(&self.inner);
        let asked =
            tokio::task::spawn_blocking(move || inner.probes.wait_for(&inner.applied, index));
        asked.await.expect("it does not panic")
    }

    /// Returns who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }

    /// Returns why this log has stopped for good, if it has (R4): the node neither leads nor votes until it is restarted.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        metrics.running_state.as_ref().err().map(fault)
    }

    /// Returns whether no other voter can lead at this moment: [`Replicated::leadership`] is told only when somebody
    /// looks, and a process that was stopped answers first what it was asked before. Who reads the state asks this
    /// afterwards.
    #[must_use]
    pub fn lease_holds(&self) -> bool {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow();
        self.inner.words.hold(&metrics, self.inner.lease)
    }

    /// Returns once it is certain that this node led at some time during the call and that
    /// [`Replicated::read`] sees everything that was acknowledged before it.
    ///
    /// Costs a round trip to a majority, and nothing with one voter.
    ///
    /// # Errors
    /// The node does not lead, or no majority answers.
    pub async fn confirm_leader(&self) -> Result<(), ProposeError> {
        if self.is_alone() && self.inner.leadership.borrow().ready {
            return Ok(());
        }
        let deadline = Instant::now() + CONFIRM_DEADLINE;
        match timeout_at(deadline, self.inner.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Err(forward.into())
            }
            Ok(Err(error)) => Err(ProposeError::Unavailable(error.to_string())),
            Err(_) => {
                let why = format!("no majority answered within {CONFIRM_DEADLINE:?}");
                Err(ProposeError::Unavailable(why))
            }
        }
    }

    /// Stops this node's part in the log and frees its directory. Commands under way get
    /// [`ProposeError::Unknown`]; a second call does nothing.
    pub async fn shutdown(&self) {
        let running = self.inner.running.lock().expect("no holder panics").take();
        let Some(running) = running else {
            return;
        };
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "the raft core did not end in order");
        }
        for task in running.tasks {
            task.abort();
        }
        if tokio::time::timeout(CLOSE_DEADLINE, running.closed)
            .await
            .is_err()
        {
            tracing::warn!("the log's store is still in use {CLOSE_DEADLINE:?} after its shutdown");
        }
    }

    fn is_alone(&self) -> bool {
        let metrics = self.inner.raft.server_metrics();
        let voters = metrics.borrow().membership_config.voter_ids().count();
        voters == 1
    }

    /// Tells a node that does not lead from one whose log has died.
    fn check_running(&self) -> Result<(), ProposeError> {
        let metrics = self.inner.raft.metrics();
        let state = metrics.borrow().running_state.clone();
        state.map_err(|fatal| ProposeError::Unavailable(fatal.to_string()))
    }
}

/// Says what went wrong without raft's own words around it.
fn fault(fatal: &Fatal<u16>) -> String {
    match fatal {
        Fatal::StorageError(StorageError::IO { source }) => source.to_string(),
        fatal => fatal.to_string(),
    }
}

fn queue_full() -> ProposeError {
    ProposeError::Unavailable(format!("its queue was full for {PROPOSE_DEADLINE:?}"))
}

/// Founds the group on its first start, or tries to lead at once where there is nobody else.
async fn found(raft: &Raft, node: NodeId, voters: &BTreeSet<u16>) -> Result<(), String> {
    let initialized = raft.is_initialized().await;
    if initialized.map_err(|error| error.to_string())? {
        let members = raft.server_metrics().borrow().membership_config.clone();
        let stored: BTreeSet<u16> = members.voter_ids().collect();
        if stored.iter().eq([&node.0]) {
            let elected = raft.trigger().elect().await;
            elected.map_err(|error| error.to_string())?;
        }
        return Ok(());
    }
    if voters.first() != Some(&node.0) {
        return Ok(());
    }
    let members: BTreeMap<u16, EmptyNode> = voters.iter().map(|id| (*id, EmptyNode {})).collect();
    match raft.initialize(members).await {
        // Another voter was faster to ask for this node's vote.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// What a log is before it runs.
struct Recovered<M: StateMachine> {
    store: LogStore,
    machine: Machine<M>,
    life: Arc<Life>,
    pending: Arc<Pending<M>>,
}

/// Reads what is on a disk. Blocks.
fn recover<M: StateMachine>(
    config: &LogConfig,
    disk: Arc<dyn Disk>,
) -> Result<Recovered<M>, OpenError> {
    let (life, pending) = (Arc::new(Life::new()), Arc::new(Pending::default()));
    let mark = open_mark(&*disk, config.node)?;
    let store = LogStore::open(Arc::clone(&disk), mark, Arc::clone(&life))?;
    let snapshot = snapshot::newest(&*disk, store.purged())?;
    let machine = Machine::new(
        Arc::clone(&disk),
        snapshot.as_deref(),
        Growth::up_to(config.snapshot_bytes),
        Arc::clone(&pending),
        Arc::clone(&life),
    );
    let machine = machine.map_err(|error| OpenError::unreadable(disk.path(), error))?;
    let store = store.purging_behind(machine.saved());
    Ok(Recovered {
        store,
        machine,
        life,
        pending,
    })
}

fn open_mark(disk: &dyn Disk, node: NodeId) -> Result<MarkFile, OpenError> {
    let dir = disk.path();
    if let Some(mark) = MarkFile::open(disk)? {
        let found = NodeId(mark.mark().node);
        if found != node {
            return Err(OpenError::Foreign {
                dir: dir.into(),
                found,
                expected: node,
            });
        }
        return Ok(mark);
    }
    // The mark is the first thing a log gets: without it, other parts are the rest of something.
    let rest = disk.has_table() || snapshot::any(disk).map_err(OpenError::io("list", dir))?;
    if rest {
        return Err(OpenError::corrupt(&dir.join(mark::NAME), "it is missing"));
    }
    MarkFile::create(disk, node)
}

fn raft_config(config: &LogConfig) -> Result<Config, OpenError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let raft_config = Config {
        cluster_name: "glu".into(),
        enable_elect: false,
        // What raft waits for an answer; that leaders are heard often enough is seen to by `words`.
        heartbeat_interval: millis(config.election.0 * 2 / 3),
        election_timeout_min: millis(config.election.0),
        election_timeout_max: millis(config.election.1),
        install_snapshot_timeout: millis(INSTALL_DEADLINE),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES as u64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        // How far behind a new voter may be, in entries, when it begins to count.
        replication_lag_threshold: LAG_MAX,
        max_in_snapshot_log_to_keep: config.snapshot_every.min(KEEP_ENTRIES),
        ..Config::default()
    };
    let raft_config = raft_config.validate();
    raft_config.map_err(|error| OpenError::Config(error.to_string()))
}
