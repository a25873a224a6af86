//! `glud`: one node of the cluster, wired from its parts.
//!
//! ```text
//! transport -- router -- chunk store           (every node)
//!                     |- metadata log, leader  (voters; empty on the others, until they become voters)
//!                     |- callbacks -- client -- root -- FUSE
//!                     |- process, device and job agents
//! ```
//!
//! What starts first is what others need: services before the client, the client before the mount. It ends the other
//! way round: no new requests, everything flushed, then the services.

mod control;
mod desktop;
pub(crate) mod incarnation;
mod members;
mod metrics;
mod revoked;
mod rights;
pub mod watcher;

use crate::batch::scheduler;
use crate::config::{GludConfig, S3Config};
use crate::daemon::failure_file;
use crate::identity::NodeIdentity;
use crate::jobs::gangs::Gangs;
use crate::transport::{QuicTransport, Versions};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use consistency::Duration as Micros;
use consistency::wire::meta::Name;
use consistency::wire::request::NodeReport;
use gdev::export::{self, ExportAgent, ExportTree};
use gdev::{DevAgent, DevTree};
use gfs::client::Client;
use gfs::data::bucket::{Bucket, BucketConfig, WithBucket};
use gfs::data::disk::Disk;
use gfs::data::io::{Chunks, ChunksConfig};
use gfs::data::service::ChunkService;
use gfs::data::store::DirStore;
use gfs::data::{Places, keeper};
use gfs::net::{Router, ServiceId, Transport};
use gfs::root::Root;
use gfs::server::log::{LogConfig, Replicated};
use gfs::server::service::MetaServer;
use gfs::{client, fuse, server};
use gproc::keeper::PidKeeper;
use gproc::{ProcAgent, ProcTree, job};
use members::Members;
use metrics::Counted;
use std::convert::Infallible;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// This node's processes, as they see themselves.
const PROC: &str = "/proc";
/// This node's devices.
const DEV: &str = "/dev";
/// How often voters are asked whether they follow.
const HEARTBEAT: Duration = Duration::from_millis(80);
/// A voter that hears nothing for the upper end and up to the width of the range stands for election: at least four
/// heartbeats, and a second with what comes after it. An append has two thirds of the lower end.
const ELECTION: (Duration, Duration) = (Duration::from_millis(350), Duration::from_millis(500));
/// How often the node measures itself.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first session may take until somebody is told what is missing.
const SESSION_PATIENCE: Duration = Duration::from_secs(10);
/// How long flushing everything may take at the end.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);

/// How long after its end a scheduler is started again.
const SCHEDULER_AGAIN: Duration = Duration::from_secs(1);
/// How long a dead chunk stays on disks: a read may take so long from its map of extents to its chunks.
const DEAD_FOR: Duration = Duration::from_secs(10);

/// A running node.
#[derive(Debug)]
pub struct Node {
    config: GludConfig,
    /// The cluster's name.
    cluster: String,
    transport: Arc<QuicTransport>,
    meta: Arc<MetaServer>,
    log: Replicated<server::state::MetaState>,
    client: Arc<Client>,
    members: Arc<Members>,
    mount: Arc<fuse::Mounted>,
    jobs: Arc<job::Agent>,
    /// Ends the connection if the daemon is killed.
    _watcher: Child,
    /// Keeps new pids in this node's range for as long as the node runs.
    pids: Arc<PidKeeper>,
}

impl Node {
    /// Starts a node; returns when the tree is mounted and served.
    ///
    /// # Errors
    /// One line that says what is wrong and what to do.
    pub async fn start(config: GludConfig) -> Result<Self> {
        let tls = &config.tls;
        let identity = NodeIdentity::load(config.node, &tls.ca, &tls.cert, &tls.key)?;
        std::fs::create_dir_all(&config.state_dir).with_context(|| {
            format!(
                "{}: cannot make the state directory",
                config.state_dir.display()
            )
        })?;
        // First of all: its lock keeps a second daemon out.
        let disk = Disk::new(DirStore::open(config.state_dir.join("chunks"))?);
        let router = Arc::new(Router::default());
        let peers = config.peers.iter().map(|peer| (peer.id, peer.addr));
        let versions = versions();
        let upto = revoked::load(&config.state_dir)?;
        let transport = QuicTransport::start_with(
            versions,
            &identity,
            config.listen,
            peers,
            Arc::clone(&router),
            Handle::current(),
        )?;
        transport.revoke(&upto);
        let transport = Arc::new(transport);
        let nodes: Arc<dyn Transport> = Arc::clone(&transport) as _;
        let bucket = open_bucket(&config, identity.root().uuid())?;
        let network = match &bucket {
            None => nodes,
            Some(bucket) => {
                let service = ChunkService::new(bucket.clone());
                Arc::new(WithBucket::new(nodes, Arc::new(service)))
            }
        };

        let copying = config.repair.bytes_per_s();
        let chunk_service =
            ChunkService::new(disk.clone()).with_copies(Arc::clone(&network), copying);
        router.register(ServiceId::Chunk, Arc::new(chunk_service));
        let (meta, log) = Self::start_meta(&config, versions, &network, &router).await?;

        if let Some(bucket) = &bucket {
            let keeper = config.repair.keeper();
            tokio::spawn(Arc::clone(&meta).keep_bucket(bucket.clone(), keeper));
        }

        let first = measure(&disk, &config.rack).await;
        let report = Arc::new(Mutex::new(first));
        let rack = config.rack.clone();
        tokio::spawn(keep_measuring(disk.clone(), rack, Arc::clone(&report)));

        let members = Arc::new(Members::new(Arc::clone(&network), &config.voters));
        tokio::spawn(revoked::watch(
            config.state_dir.clone(),
            Arc::clone(&transport),
            Arc::clone(&meta),
            Arc::clone(&members),
        ));
        let leader = Arc::clone(&members);
        tokio::spawn(keeper::run(disk.clone(), leader, config.repair.keeper()));
        let places: Arc<dyn Places> = Arc::clone(&members) as _;
        let chunks_config = ChunksConfig {
            replicas: usize::from(config.replicas),
            bucket: bucket.is_some(),
            patience: config.request_timeout(),
            cache_bytes: config.cache_bytes() / 4,
        };
        let chunks = Chunks::new(Arc::clone(&network), Some(disk), places, chunks_config);
        let client_config = client::Config {
            incarnation: incarnation::next(&config.state_dir)?,
            request_deadline: config.request_timeout(),
            access_times: !config.mount.ro && !config.mount.noatime,
            dirty_bytes_max: config.cache_bytes() as u64 / 2,
            clean_bytes_max: config.cache_bytes() / 8,
            idle_nodes_max: config.cache_bytes() / 8 / client::NODE_BYTES_MAX,
            ..client::Config::default()
        };
        let report = Box::new(move || report.lock().expect("no holder panics").clone());
        let client = Client::start(
            client_config,
            Arc::clone(&network),
            &router,
            Arc::new(chunks),
            report,
        );
        let client = Arc::new(client);

        // This program, also after an update has put another in its place.
        let leader = Some(Path::new("/proc/self/exe"));
        let job_agent = job::Agent::with_leader(config.node, &instance(&config), leader)
            .context("prepare to run jobs (/dev/null, threads)")?;
        let metrics = {
            let jobs = Arc::clone(&job_agent);
            let (client, transport) = (Arc::clone(&client), Arc::clone(&transport));
            let (node, started) = (config.node, Instant::now());
            let count = move || Counted {
                version: versions.max,
                up: started.elapsed().as_secs(),
                leases: client.leases(),
                session: client.session().is_some(),
                leads: client.leader() == Some(node),
                traffic: transport.traffic(),
                levelled: jobs.levelled(),
                moves: jobs.moves_counted(),
            };
            Box::new(move || metrics::show(&count()))
        };
        let proc_agent = ProcAgent::new(config.node, PROC).with_metrics(metrics);
        let proc_agent = Arc::new(proc_agent);
        gproc::register(&router, Arc::clone(&proc_agent));
        let drains = Arc::clone(&members);
        let rights = Arc::new(rights::OfTree::new(
            Arc::clone(&client) as _,
            config.node,
            config.guests,
        ));
        let processes_agent = Arc::clone(&proc_agent);
        let processes = ProcTree::new(Arc::clone(&network), proc_agent)
            .with_draining(Box::new(move || drains.draining()))
            .with_switches(Arc::clone(&rights) as _);
        let processes = Arc::new(processes);
        tokio::spawn(Arc::clone(&members).watch(processes.events()));
        let events = processes.events();
        let audit = Box::new(move |what: &str| {
            tracing::info!("{what}");
            events.tell(what);
        });
        let dev_agent = DevAgent::new(config.node, DEV, config.devices.clone())
            .with_audit(audit)
            .with_record(config.state_dir.join("disks"));
        let dev_agent = Arc::new(dev_agent);
        gdev::register(&router, Arc::clone(&dev_agent));
        let devices = Arc::new(DevTree::new(Arc::clone(&network), dev_agent));
        let export_agent = Arc::new(ExportAgent::new(config.node, &config.root));
        export::register(&router, Arc::clone(&export_agent));
        let exports = Arc::new(ExportTree::new(Arc::clone(&network), export_agent));
        router.register(ServiceId::Job, job_agent.service());
        let transport_of_jobs: Arc<dyn Transport> = Arc::clone(&transport) as _;
        let files = Arc::clone(&client);
        let locked = move || {
            let locked = files.locked().into_iter();
            locked.map(|(ino, pid)| (ino.0, pid)).collect()
        };
        job_agent.let_jobs_move(
            &config.migration.criu,
            &instance(&config),
            transport_of_jobs,
            Arc::new(locked),
        );
        tokio::spawn(desktop::run(
            config.desktop.clone(),
            config.node,
            Arc::clone(&rights) as _,
            Arc::clone(&job_agent),
        ));
        let levelling = job::Levelling {
            nodes: Arc::clone(&members) as _,
            switches: Arc::clone(&rights) as _,
        };
        let gangs = Gangs::new(Arc::clone(&client) as _, Arc::clone(&members) as _);
        tokio::spawn(Arc::clone(&job_agent).take_turns(Arc::new(gangs)));
        job_agent.keep_checkpoints(job::Keeping {
            mount: config.mount_point.clone(),
            files: Arc::new(Files(Arc::clone(&client))),
            nodes: Arc::clone(&members) as _,
        });
        job_agent.tell_moves(processes.events());
        tokio::spawn(Arc::clone(&job_agent).level(levelling));
        let locks = Arc::clone(&job_agent);
        processes_agent.tell_locks(Box::new(move |pid, locked| locks.lock(pid, locked)));
        let locked = Arc::clone(&processes_agent);
        job_agent.tell_returns(Box::new(move |pid| locked.came_back(pid)));
        job_agent.ask_for_rights(rights);
        let forward = Arc::clone(&job_agent);
        processes_agent.forward_signals(Box::new(move |pid, number, group| {
            forward.forward(pid, number, group)
        }));
        let pids = PidKeeper::start(config.node, Path::new(PROC))?;

        let name = |name: &'static str| Name::new(name.as_bytes()).expect("a valid name");
        let nodes = config.nodes();
        let root = Root::new(Arc::clone(&client) as _)
            .with(name("proc"), Arc::clone(&processes) as _, ProcTree::ROOT)
            .with_nodes(move || nodes.iter().copied().collect())
            .with_per_node(name("proc"), processes, ProcTree::own_root)
            .with_per_node(name("dev"), devices, DevTree::root)
            .with_per_node(name("root"), exports, ExportTree::root);
        let fuse_config = fuse::Config {
            mount: config.mount.options(),
            locks: true,
            ..fuse::Config::default()
        };
        let connection = fuse::Connection::open(&config.mount_point, &fuse_config)?;
        client.mounted(connection.notifier()).await;
        let mount = Arc::new(connection.serve(Arc::new(root), &Handle::current())?);
        client.tell_watchers(mount.watching());
        let watcher = watcher::start(mount.abort_file().context("the FUSE connection")?)?;
        Ok(Self {
            config,
            cluster: identity.root().name().to_owned(),
            transport,
            meta,
            log,
            client,
            members,
            mount,
            jobs: job_agent,
            _watcher: watcher,
            pids: Arc::new(pids),
        })
    }

    /// Runs until SIGTERM or SIGINT, or until the mount is gone.
    ///
    /// # Errors
    /// If something could not be flushed or unmounted.
    pub async fn run(self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        self.await_session().await;
        let control = control::serve(&self)?;
        self.jobs.forget_checkpoints();
        let jobs = self.serve_jobs()?;
        if let Some(ready) = &self.config.ready_file {
            std::fs::write(ready, "ready\n")
                .with_context(|| format!("{}: cannot be written", ready.display()))?;
        }
        // Under systemd (`Type=notify`); elsewhere nobody is there to be told.
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::warn!(%error, "systemd was not told that the node serves");
        }
        tracing::info!(node = self.config.node.0, mount = %self.config.mount_point.display(), "serving");
        tokio::select! {
            _ = terminate.recv() => tracing::info!("asked to end"),
            _ = interrupt.recv() => tracing::info!("interrupted"),
            () = self.mount.ended() => tracing::warn!("the tree was unmounted"),
            never = self.keep_scheduler() => match never {},
        }
        control.abort();
        jobs.abort();
        self.stop().await
    }

    /// Has a scheduler of batch jobs beside this process; it ends when its node is cut off. Dropped, it is killed.
    async fn keep_scheduler(&self) -> Infallible {
        loop {
            let (mount, socket) = (&self.config.mount_point, &self.config.jobs_socket);
            match scheduler::start(mount, socket) {
                Ok(mut child) => {
                    let status = child.wait().await;
                    tracing::warn!(
                        ?status,
                        "the scheduler of batch jobs has ended, and is started again"
                    );
                }
                Err(error) => tracing::warn!(%error, "no scheduler of batch jobs"),
            }
            tokio::time::sleep(SCHEDULER_AGAIN).await;
        }
    }

    async fn stop(self) -> Result<()> {
        if let Some(ready) = &self.config.ready_file {
            // Gone already if the node never was ready.
            drop(std::fs::remove_file(ready));
        }
        let unmounted = self.mount.unmount();
        let flushed = tokio::time::timeout(FLUSH_PATIENCE, self.client.shutdown()).await;
        self.log.shutdown().await;
        self.transport.close().await;
        flushed.context("flushing everything took too long; unsynced changes are lost")??;
        Ok(unmounted?)
    }

    fn serve_jobs(&self) -> Result<JoinHandle<()>> {
        let path = &self.config.jobs_socket;
        let listener =
            job::bind(path).with_context(|| format!("{}: cannot listen", path.display()))?;
        let network: Arc<dyn Transport> = Arc::clone(&self.transport) as _;
        let members = Arc::clone(&self.members);
        let server = job::JobServer::new(Arc::clone(&self.jobs), network, members);
        Ok(tokio::spawn(Arc::new(server).serve(listener)))
    }

    /// Waits for the first session; says once what it is waiting for.
    async fn await_session(&self) {
        let waiting = async {
            while self.client.session().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::pin!(waiting);
        if tokio::time::timeout(SESSION_PATIENCE, &mut waiting)
            .await
            .is_err()
        {
            tracing::warn!(voters = ?self.config.voters, "waiting for the metadata leader");
            waiting.await;
        }
    }

    async fn start_meta(
        config: &GludConfig,
        versions: Versions,
        network: &Arc<dyn Transport>,
        router: &Router,
    ) -> Result<(Arc<MetaServer>, Replicated<server::state::MetaState>)> {
        let log_config = LogConfig {
            node: config.node,
            voters: config.voters.clone(),
            dir: config.state_dir.join("meta"),
            heartbeat: HEARTBEAT,
            election: ELECTION,
            snapshot_every: LogConfig::SNAPSHOT_EVERY,
            snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
        };
        let dir = log_config.dir.clone();
        let log: Replicated<server::state::MetaState> =
            Replicated::open(log_config, Arc::clone(network), router).await?;
        let version = log.read(server::state::MetaState::version);
        if version > versions.max {
            log.shutdown().await;
            bail!(
                "log {}: the metadata are of version {version}, this glud speaks up to {}: use the newer glud again",
                dir.display(),
                versions.max
            );
        }
        let term = Micros(u64::from(config.lease_term_ms) * 1_000);
        let service = server::service::Config {
            term,
            break_timeout: Micros(term.0 * 5),
            replicas: config.replicas,
            gone_after: config.repair.after(),
            dead_for: DEAD_FOR,
            bucket_bytes: config.store.s3.as_ref().map(S3Config::capacity),
        };
        let meta = MetaServer::start(service, log.clone(), Arc::clone(network), router);
        Ok((meta, log))
    }
}

/// The tree, for who makes what is written there durable.
struct Files(Arc<Client>);

#[async_trait]
impl job::Flush for Files {
    async fn flush(&self) -> Result<(), String> {
        let flushed = self.0.sync_all().await;
        flushed.map_err(|errno| errno.to_string())
    }
}

/// Loads the configuration and runs the node.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn main(config: &Path) -> Result<()> {
    let config = GludConfig::load(config)?;
    let filter =
        tracing_subscriber::EnvFilter::try_new(&config.log).expect("checked by the configuration");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("glud")
        .build()?;
    let failure = failure_file(&config.control_socket);
    let result = runtime.block_on(async {
        match Node::start(config).await {
            Ok(node) => {
                // Of an earlier start; there is none after most.
                drop(std::fs::remove_file(&failure));
                node.run().await
            }
            Err(error) => {
                note_failure(&failure, &error);
                Err(error)
            }
        }
    });
    // A blocking request to a dying disk must not keep the node from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// For tests of upgrades: makes the daemon speak this version and no other.
const SPEAK_ONLY: &str = "GLU_SPEAK_ONLY_VERSION";

fn versions() -> Versions {
    let only = std::env::var(SPEAK_ONLY).ok();
    let only = only.and_then(|version| version.parse().ok());
    only.map_or_else(Versions::default, |only| Versions {
        min: only,
        max: only,
    })
}

/// Says for `glu status` why the node cannot start.
fn note_failure(path: &Path, error: &anyhow::Error) {
    let dir = path.parent().unwrap_or(path);
    let noted =
        std::fs::create_dir_all(dir).and_then(|()| std::fs::write(path, format!("{error:#}\n")));
    if let Err(error) = noted {
        tracing::warn!(path = %path.display(), %error, "cannot note why the node does not start");
    }
}

/// Names this daemon among those of this machine, over its restarts.
fn instance(config: &GludConfig) -> String {
    let path = config.state_dir.as_os_str().as_encoded_bytes();
    let sum = path.iter().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(*byte))
    });
    format!("{sum:08x}-{}", config.node)
}

/// Prepares the way to the bucket, if file data goes there.
fn open_bucket(config: &GludConfig, cluster: &str) -> Result<Option<Disk>> {
    let Some(s3) = &config.store.s3 else {
        return Ok(None);
    };
    let bucket = BucketConfig {
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        bucket: s3.bucket.clone(),
        prefix: s3.prefix.clone(),
        credentials: s3.read_credentials()?,
        owner: cluster.to_owned(),
        cache_dir: config.state_dir.join("cache"),
        cache_bytes: u64::from(s3.cache_mib) << 20,
        capacity: s3.capacity(),
    };
    let bucket = Bucket::open(bucket, Handle::current())?;
    Ok(Some(Disk::new(bucket)))
}

async fn measure(disk: &Disk, rack: &str) -> NodeReport {
    let space = disk.space().await.ok();
    let load = tokio::task::spawn_blocking(gproc::measure).await;
    NodeReport {
        load: load.unwrap_or_default(),
        disk_total: space.map_or(0, |space| space.total),
        disk_free: space.map_or(0, |space| space.free),
        domain: rack.to_owned(),
    }
}

async fn keep_measuring(disk: Disk, rack: String, report: Arc<Mutex<NodeReport>>) {
    loop {
        tokio::time::sleep(REPORT_INTERVAL).await;
        let now = measure(&disk, &rack).await;
        *report.lock().expect("no holder panics") = now;
    }
}
