//! A node, from its start to its death: the runtime that it has for itself, and what runs there.

use super::chunks::{COPIES, ChunkWay};
use super::kernel::Mount;
use super::model::Who;
use super::net::SimTransport;
use super::program::Program;
use super::shared::Shared;
use crate::client::{Client, Config};
use crate::data::simulated::SimulatedStore;
use crate::net::{Router, Transport};
use crate::server::log::{LogConfig, Replicated, SimulatedDisk};
use crate::server::service::{Config as ServerConfig, MetaServer};
use consistency::wire::request::NodeReport;
use consistency::{Duration as Micros, NodeId};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use tests::Dice;
use tokio::runtime::Runtime;

/// The first nodes are the voters, until others take their place.
pub(super) const VOTERS: u16 = 3;
const TERM: Micros = Micros::from_millis(2_000);

thread_local! {
    static PARKED: Cell<u32> = const { Cell::new(0) };
    static RUNNER: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// Makes the runtime of one life of a node.
pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .on_thread_park(|| {
            PARKED.set(PARKED.get() + 1);
            RUNNER.with_borrow(|runner| {
                if let Some(runner) = runner {
                    runner.wake_by_ref();
                }
            });
        })
        .build()
        .expect("a runtime without threads and sockets")
}

/// Returns when everything that can go on at this moment has: the first time that there is nothing to do, timers are
/// looked at; the second time it is over.
async fn until_idle() {
    PARKED.set(0);
    poll_fn(|context| {
        RUNNER.replace(Some(context.waker().clone()));
        if PARKED.get() < 2 {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    })
    .await;
}

/// Lets everything go on that can at this moment.
pub(super) fn run_until_idle(runtime: &Runtime) {
    runtime.block_on(until_idle());
    RUNNER.take();
}

/// What runs on a node from its start on.
pub(super) struct Life {
    pub(super) shared: Arc<Shared>,
    pub(super) chunks: Arc<SimulatedStore>,
    pub(super) who: Who,
    pub(super) disk: Arc<SimulatedDisk>,
    pub(super) router: Arc<Router>,
    pub(super) dice: Dice,
}

impl Life {
    pub(super) async fn run(self) {
        let node = NodeId(self.who.node);
        let transport: Arc<dyn Transport> = Arc::new(SimTransport {
            shared: Arc::clone(&self.shared),
            who: self.who,
            router: Arc::clone(&self.router),
        });
        let (shared, who, store) = (&self.shared, self.who, &self.chunks);
        let way = ChunkWay::start(shared, who, store, &transport, &self.router);
        if let Err(why) = self.serve(&transport).await {
            if self.shared.lives(self.who) {
                self.shared
                    .fail(format!("node {node} does not start: {why}"));
            }
            return;
        }
        let config = Config {
            incarnation: self.who.life,
            request_deadline: Duration::from_secs(5),
            flush_after: Duration::from_secs(1),
            compare_clocks_every: Duration::from_millis(300),
            ..Config::default()
        };
        let store = self.chunks;
        let report = Box::new(move || {
            let room = store.room();
            NodeReport {
                disk_total: room.total,
                disk_free: room.free,
                ..NodeReport::default()
            }
        });
        let client = Client::start(config, transport, &self.router, Arc::new(way), report);
        let client = Arc::new(client);
        if let Some(host) = self.shared.state().hosts.get_mut(&node) {
            host.client = Some(Arc::downgrade(&client));
        }
        let mut program = Program {
            mount: Mount::new(client).await,
            values: (u64::from(self.who.node) << 40) | (u64::from(self.who.life) << 32),
            shared: self.shared,
            who: self.who,
            dice: self.dice,
        };
        program.run().await;
        // The node goes on serving.
        std::future::pending::<()>().await;
    }

    async fn serve(&self, transport: &Arc<dyn Transport>) -> Result<(), String> {
        let node = NodeId(self.who.node);
        let config = LogConfig {
            node,
            voters: (1..=VOTERS).map(NodeId).collect(),
            dir: "/simulated".into(),
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(250), Duration::from_millis(500)),
            snapshot_every: 20,
            snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
        };
        let disk = Arc::clone(&self.disk);
        let log = Replicated::open_on(disk, config, Arc::clone(transport), &self.router).await;
        let log = log.map_err(|error| error.to_string())?;
        if let Some(host) = self.shared.state().hosts.get_mut(&node) {
            host.log = Some(log.clone());
        }
        let config = ServerConfig {
            term: TERM,
            break_timeout: Micros::from_millis(1_500),
            replicas: COPIES,
            gone_after: Duration::from_secs(2),
            dead_for: Duration::from_secs(1),
            bucket_bytes: None,
        };
        MetaServer::start(config, log, Arc::clone(transport), &self.router);
        Ok(())
    }
}
