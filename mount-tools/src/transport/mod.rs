//! The transport: calls and byte streams between nodes over QUIC.
//!
//! Words: a **link** is a connection as its dialler has it, a **session** the same connection as its acceptor
//! has it. A node dials whom it calls, so two nodes that call each other have two connections, and on each
//! the questions go one way and the answers the other. A **shared stream** carries the small frames of a
//! connection; large frames and byte streams have streams of their own ([`frame`]).
//!
//! Rules:
//! - TLS proves every peer ([`tls`]); a service gets the proved id with each call.
//! - Nothing is retried here. `Unreachable` says "outcome unknown" where the callee may have acted.
//! - The endpoint, the connections and all frames live on one thread with a current-thread runtime (the
//!   network thread). Services run on the runtime they were given, prompt ones begin on the network thread
//!   and move over at their first wait. Why: docs/decisions/0005.
//! - What a node says to itself never gets here, or into any buffer: it goes to the router.
//!
//! Lock order: `Shared::peers`, then a peer's state; `Shared::sessions`, `spoken`, `past`, `revoked` and a link's `calls` are
//! leaves. None is held across an await.

mod frame;
mod hello;
mod link;
mod local;
mod peer;
mod revoked;
mod serve;
mod tls;
mod traffic;

use crate::identity::{ClusterRoot, IdentityError, NodeIdentity};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::MESSAGE_BYTES_MAX;
use gfs::net::{ByteStream, NetError, Router, ServiceId, Transport};
pub use hello::Versions;

use hello::Close;
use nix::sys::socket::{setsockopt, sockopt};
use peer::Peer;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime};
use revoked::Revoked;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;
use std::{fmt, io, thread};
use tls::Tls;
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;
pub use traffic::Traffic;

/// How long opening a byte stream may take.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// How long peers get to acknowledge that this node says goodbye.
const GOODBYE_MAX: Duration = Duration::from_millis(500);

/// Kernel buffer of the socket, each way: a burst of a full window must fit, or it is lost on arrival.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Why the transport could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}: free the port, or correct `listen`")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The network thread could not be started.
    #[error("cannot start the network thread: {0}")]
    Thread(io::Error),
    /// The identity is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS library refuses the identity.
    #[error("TLS refuses this node's identity: {0}")]
    Tls(String),
}

/// The real [`Transport`]: QUIC with mutual TLS.
///
/// Its futures need a tokio runtime with time around them.
pub struct QuicTransport {
    shared: Arc<Shared>,
    /// Ends the network thread, after the goodbyes of the endpoint, if one is sent.
    stop: Mutex<Option<oneshot::Sender<Option<Endpoint>>>>,
}

/// What all connections share.
struct Shared {
    local: NodeId,
    root: ClusterRoot,
    tls: Tls,
    endpoint: Endpoint,
    router: Arc<Router>,
    /// The runtime of the network thread.
    net: Handle,
    /// The runtime of the services.
    handlers: Handle,
    versions: Versions,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    sessions: Mutex<BTreeMap<NodeId, Connection>>,
    /// What was last spoken with each node.
    spoken: Mutex<BTreeMap<NodeId, u32>>,
    /// What went over connections that have ended.
    past: Mutex<BTreeMap<NodeId, Traffic>>,
    revoked: Revoked,
}

impl QuicTransport {
    /// Listens on `listen` as the node of `identity`; `peers` are the other nodes. Calls of peers are
    /// answered by the services of `router`, on the runtime of `handlers`.
    ///
    /// # Errors
    /// If the address is taken or the identity is unusable.
    pub fn start(
        identity: &NodeIdentity,
        listen: SocketAddr,
        peers: impl IntoIterator<Item = (NodeId, SocketAddr)>,
        router: Arc<Router>,
        handlers: Handle,
    ) -> Result<Self, TransportError> {
        Self::start_with(
            Versions::default(),
            identity,
            listen,
            peers,
            router,
            handlers,
        )
    }

    /// Likewise, as a node that speaks `versions`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        versions: Versions,
        identity: &NodeIdentity,
        listen: SocketAddr,
        peers: impl IntoIterator<Item = (NodeId, SocketAddr)>,
        router: Arc<Router>,
        handlers: Handle,
    ) -> Result<Self, TransportError> {
        let (stop, stopped) = oneshot::channel();
        let net = start_thread(stopped)?;
        let transport = Self {
            shared: Shared::bind(versions, identity, listen, router, net, handlers)?,
            stop: Mutex::new(Some(stop)),
        };
        transport.set_peers(peers);
        Ok(transport)
    }

    /// Returns the address it listens on.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.shared.endpoint.local_addr()
    }

    /// Replaces the list of the other nodes. Connections to nodes that stay where they are live on; those to
    /// nodes that are gone or have moved are closed.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        let mut known = self.shared.peers.write().expect("no holder panics");
        let mut before = std::mem::take(&mut *known);
        for (id, addr) in peers {
            if id == self.shared.local {
                continue;
            }
            let same = before.remove(&id).filter(|peer| peer.addr() == addr);
            known.insert(id, same.unwrap_or_else(|| Peer::new(id, addr)));
        }
        let gone: Vec<_> = before.into_values().collect();
        drop(known);
        for peer in gone {
            peer.remove();
        }
    }

    /// Says goodbye to all peers, so that their calls fail at once and not when they have heard nothing for
    /// a while, and stops. Calls from now on fail.
    pub async fn close(&self) {
        let endpoint = &self.shared.endpoint;
        endpoint.close(Close::Goodbye.into(), b"the node stops");
        // A peer that does not acknowledge is dead or slow; either way it will find out.
        timeout(GOODBYE_MAX, endpoint.wait_idle()).await.ok();
        self.stop(None);
    }

    /// Returns the peers that could not be reached when it was last tried, with the reason.
    #[must_use]
    pub fn troubles(&self) -> Vec<(NodeId, String)> {
        let peers = self.shared.peers.read().expect("no holder panics");
        let trouble = |(id, peer): (&NodeId, &Arc<Peer>)| Some((*id, peer.trouble()?));
        peers.iter().filter_map(trouble).collect()
    }

    /// Returns what has been sent to each peer and received from it since the start.
    #[must_use]
    pub fn traffic(&self) -> BTreeMap<NodeId, Traffic> {
        let peers = self.shared.peers.read().expect("no holder panics");
        let mut all: BTreeMap<_, _> = peers.keys().map(|id| (*id, Traffic::default())).collect();
        let links = peers
            .iter()
            .filter_map(|(id, peer)| Some((*id, peer.traffic()?)));
        let links: Vec<_> = links.collect();
        drop(peers);
        let sessions = self.shared.sessions();
        let sessions = sessions.iter().map(|(id, of)| (*id, Traffic::of(of)));
        let sessions: Vec<_> = sessions.collect();
        let past = self.shared.past.lock().expect("no holder panics").clone();
        for (id, more) in past.into_iter().chain(links).chain(sessions) {
            // Of those that were taken out of the cluster nobody asks.
            if let Some(sum) = all.get_mut(&id) {
                *sum += more;
            }
        }
        all
    }

    fn stop(&self, goodbye: Option<Endpoint>) {
        if let Some(stop) = self.stop.lock().expect("no holder panics").take() {
            // Refused only if the thread has died of a panic.
            stop.send(goodbye).ok();
        }
    }

    fn peer(&self, id: NodeId) -> Result<Arc<Peer>, NetError> {
        let peers = self.shared.peers.read().expect("no holder panics");
        peers
            .get(&id)
            .cloned()
            .ok_or_else(|| NetError::Unreachable {
                to: id,
                why: "there is no such node: add it to peers".to_owned(),
            })
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        let endpoint = &self.shared.endpoint;
        endpoint.close(Close::Goodbye.into(), b"the node stops");
        self.stop(Some(endpoint.clone()));
    }
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "QuicTransport({} of {})",
            self.shared.local, self.shared.root
        )
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn local(&self) -> NodeId {
        self.shared.local
    }

    fn nodes(&self) -> Vec<NodeId> {
        let peers = self.shared.peers.read().expect("no holder panics");
        let mut nodes: Vec<_> = peers.keys().copied().chain([self.shared.local]).collect();
        nodes.sort_unstable();
        nodes
    }

    fn version_of(&self, node: NodeId) -> Option<u32> {
        if node == self.shared.local {
            return Some(self.shared.versions.max);
        }
        // Who is away may come back as another version.
        let peer = self.peer(node).ok()?;
        if peer.trouble().is_some() {
            return None;
        }
        let spoken = self.shared.spoken.lock().expect("no holder panics");
        spoken.get(&node).copied()
    }

    async fn call(
        &self,
        to: NodeId,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        assert!(
            body.len() <= MESSAGE_BYTES_MAX,
            "a request for {service:?} of {} bytes is over the limit of a message",
            body.len()
        );
        let answer = async {
            if to == self.shared.local {
                return local::call(&self.shared, service, body).await;
            }
            let link = self.peer(to)?.link(&self.shared).await?;
            link.call(service, body, deadline).await
        };
        timeout(deadline, answer).await.unwrap_or({
            Err(NetError::Deadline {
                to,
                service,
                after: deadline,
            })
        })
    }

    async fn open(&self, to: NodeId, service: ServiceId) -> Result<ByteStream, NetError> {
        self.open_with(to, service, Bytes::new()).await
    }

    async fn open_with(
        &self,
        to: NodeId,
        service: ServiceId,
        first: Bytes,
    ) -> Result<ByteStream, NetError> {
        if to == self.shared.local {
            return local::open(&self.shared, service, first).await;
        }
        let stream = async {
            let link = self.peer(to)?.link(&self.shared).await?;
            link.open(service, first).await
        };
        timeout(OPEN_MAX, stream).await.unwrap_or({
            Err(NetError::Deadline {
                to,
                service,
                after: OPEN_MAX,
            })
        })
    }
}

impl Shared {
    fn bind(
        versions: Versions,
        identity: &NodeIdentity,
        listen: SocketAddr,
        router: Arc<Router>,
        net: Handle,
        handlers: Handle,
    ) -> Result<Arc<Self>, TransportError> {
        let tls = Tls::new(identity)?;
        let cannot_listen = |source| TransportError::Listen {
            addr: listen,
            source,
        };
        let socket = bind(listen).map_err(cannot_listen)?;
        let mut config = EndpointConfig::default();
        config
            .max_udp_payload_size(tls::DATAGRAM_BYTES_MAX)
            .expect("the largest there is");
        // The endpoint's driver is started on the runtime that is entered here.
        let _on_net = net.enter();
        let endpoint = Endpoint::new(
            config,
            Some((*tls.accept(listen)).clone()),
            socket,
            Arc::new(TokioRuntime),
        )
        .map_err(cannot_listen)?;
        let shared = Arc::new(Self {
            local: identity.node(),
            root: identity.root().clone(),
            tls,
            endpoint,
            router,
            net: net.clone(),
            handlers,
            versions,
            peers: RwLock::default(),
            sessions: Mutex::default(),
            spoken: Mutex::default(),
            past: Mutex::default(),
            revoked: Revoked::default(),
        });
        net.spawn(serve::accept(Arc::clone(&shared)));
        Ok(shared)
    }

    /// Notes in which version a peer and this node talk.
    fn note_version(&self, peer: NodeId, version: u32) {
        self.spoken
            .lock()
            .expect("no holder panics")
            .insert(peer, version);
    }

    /// Counts a connection that has ended.
    fn note_traffic(&self, peer: NodeId, traffic: Traffic) {
        let mut past = self.past.lock().expect("no holder panics");
        *past.entry(peer).or_default() += traffic;
    }

    /// Who was taken out of the configuration has lost its say, whatever its certificate is good for.
    fn is_peer(&self, node: NodeId) -> bool {
        self.peers
            .read()
            .expect("no holder panics")
            .contains_key(&node)
    }

    /// Notes that a peer is alive.
    fn heard(&self, peer: NodeId) {
        let peers = self.peers.read().expect("no holder panics");
        if let Some(peer) = peers.get(&peer) {
            peer.forgive();
        }
    }

    /// Notes a peer's connection. A peer has one: an older one is what is left of its former life.
    fn admit(&self, peer: NodeId, connection: &Connection) {
        if let Some(older) = self.sessions().insert(peer, connection.clone()) {
            older.close(Close::Replaced.into(), b"there is a newer connection");
        }
    }

    fn dismiss(&self, peer: NodeId, connection: &Connection) {
        let mut sessions = self.sessions();
        if sessions
            .get(&peer)
            .is_some_and(|now| now.stable_id() == connection.stable_id())
        {
            sessions.remove(&peer);
        }
        drop(sessions);
        self.note_traffic(peer, Traffic::of(connection));
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<NodeId, Connection>> {
        self.sessions.lock().expect("no holder panics")
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({})", self.local)
    }
}

/// Starts the network thread; it ends when `stopped` is told or abandoned.
fn start_thread(stopped: oneshot::Receiver<Option<Endpoint>>) -> Result<Handle, TransportError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let main = async {
        if let Ok(Some(endpoint)) = stopped.await {
            timeout(GOODBYE_MAX, endpoint.wait_idle()).await.ok();
        }
    };
    thread::Builder::new()
        .name("glu-net".to_owned())
        .spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let handle = runtime.as_ref().map(|runtime| runtime.handle().clone());
            let told = sender.send(handle.map_err(|error| io::Error::from(error.kind())));
            if let (Ok(runtime), Ok(())) = (runtime, told) {
                runtime.block_on(main);
            }
        })
        .map_err(TransportError::Thread)?;
    let handle = receiver.recv().expect("the thread sends before it ends");
    handle.map_err(TransportError::Thread)
}

fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(addr)?;
    // Beyond the system's limit only root may go; below it, the rest is slower, not wrong.
    let size = &SOCKET_BUFFER_BYTES;
    let received = setsockopt(&socket, sockopt::RcvBufForce, size)
        .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, size));
    let sent = setsockopt(&socket, sockopt::SndBufForce, size)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, size));
    if let Err(error) = received.and(sent) {
        warn!(%error, "cannot enlarge the socket's buffers; bulk transfers will be slower");
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
