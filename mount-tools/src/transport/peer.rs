//! The way to one other node: dialled when somebody wants it, given up when it breaks.
//!
//! | state | a call | ends |
//! | --- | --- | --- |
//! | Down, until a time | fails at once with the last reason | at that time, or when the peer dials us |
//! | Down, after it | dials and waits | - |
//! | Dialling | waits | Up, or Down with a longer pause |
//! | Up | is sent | Down when the connection ends, without a pause if it has lived for some time |
//!
//! Calls fail at once during the pause because their callers have something better to do than to wait for a
//! dead node (another replica, another voter); the pause is short enough for those who have not.

use super::Shared;
use super::hello::{Close, Hello};
use super::link::{Link, LinkDriver, words};
use super::traffic::Traffic;
use consistency::NodeId;
use gfs::net::NetError;
use quinn::ConnectionError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

/// Time for a connection with its handshake and hello, from both ends.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(2);

/// Pause after the first dial that failed; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Resets in one greeting after which it is given up.
const RESETS_MAX: u32 = 3;

/// Another node and the connection this node has to it.
#[derive(Debug)]
pub(super) struct Peer {
    id: NodeId,
    addr: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug)]
enum State {
    Down {
        until: Instant,
        why: Arc<str>,
        failures: u32,
    },
    Dialling,
    Up(Arc<Link>),
    /// The peer was taken out of the cluster; its connection is not made again.
    Gone,
}

/// What a caller has to do in a state.
enum Step {
    Use(Arc<Link>),
    Fail(Arc<str>),
    Wait,
    Dial,
}

impl Peer {
    pub(super) fn new(id: NodeId, addr: SocketAddr) -> Arc<Self> {
        let idle = State::Down {
            until: Instant::now(),
            why: "not dialled yet".into(),
            failures: 0,
        };
        Arc::new(Self {
            id,
            addr,
            state: watch::Sender::new(idle),
        })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the connection, which is made if there is none.
    pub(super) async fn link(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
    ) -> Result<Arc<Link>, NetError> {
        let mut changes = None;
        loop {
            let step = self.state.borrow().step();
            match step {
                Step::Use(link) => return Ok(link),
                Step::Fail(why) => return Err(self.unreachable(&why)),
                Step::Wait => {}
                Step::Dial => self.dial(shared),
            }
            // Subscribed before the state is looked at again, so that no change is missed.
            match &mut changes {
                None => changes = Some(self.state.subscribe()),
                Some(changes) => changes
                    .changed()
                    .await
                    .expect("the sender is borrowed by this call"),
            }
        }
    }

    /// Returns why there is no connection, if the last attempt has failed.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Down { why, failures, .. } if *failures > 0 => Some(why.to_string()),
            State::Down { .. } | State::Dialling | State::Up(_) | State::Gone => None,
        }
    }

    /// Returns what has gone over the connection, if there is one.
    pub(super) fn traffic(&self) -> Option<Traffic> {
        match &*self.state.borrow() {
            State::Up(link) => Some(link.traffic()),
            State::Down { .. } | State::Dialling | State::Gone => None,
        }
    }

    /// Ends a pause: the peer was just heard.
    pub(super) fn forgive(&self) {
        self.state.send_if_modified(|state| match state {
            State::Down { until, .. } => {
                *until = Instant::now();
                true
            }
            State::Dialling | State::Up(_) | State::Gone => false,
        });
    }

    /// Takes the peer out of use.
    pub(super) fn remove(&self) {
        if let State::Up(link) = self.state.send_replace(State::Gone) {
            link.close(Close::Goodbye, "taken out of the cluster");
        }
    }

    /// Closes the connection if it was made with a certificate that is not good any more.
    pub(super) fn refuse(&self, shared: &Shared) {
        let State::Up(link) = self.state.borrow().clone() else {
            return;
        };
        if let Some(why) = shared.refusal(self.id, link.connection()) {
            link.close(Close::Revoked, &why);
        }
    }

    /// Starts to dial unless somebody else has.
    fn dial(self: &Arc<Self>, shared: &Arc<Shared>) {
        let now = Instant::now();
        let mut failures_before = None;
        self.state.send_if_modified(|state| match *state {
            State::Down {
                until, failures, ..
            } if until <= now => {
                failures_before = Some(failures);
                *state = State::Dialling;
                true
            }
            State::Down { .. } | State::Dialling | State::Up(_) | State::Gone => false,
        });
        if let Some(failures) = failures_before {
            let (dialler, net) = (Dialler(Arc::clone(self)), Arc::clone(shared));
            shared
                .net
                .spawn(async move { dialler.0.connect(&net, failures).await });
        }
    }

    /// Makes a connection and stays with it to its end.
    async fn connect(&self, shared: &Shared, failures: u32) {
        let greeted = timeout(GREETING_MAX, greet(shared, self)).await;
        match greeted.unwrap_or_else(|_| Err("no greeting in time".to_owned())) {
            Ok((link, driver)) => {
                info!(peer = %self.id, addr = %self.addr, "connected");
                let wanted = self.state.send_if_modified(|state| {
                    let wanted = !matches!(state, State::Gone);
                    if wanted {
                        *state = State::Up(Arc::clone(&link));
                    }
                    wanted
                });
                if !wanted {
                    link.close(Close::Goodbye, "taken out of the cluster");
                }
                // It may have been revoked while it was greeted.
                self.refuse(shared);
                let born = Instant::now();
                let why = driver.run().await;
                info!(peer = %self.id, %why, "connection lost");
                if let Some(ended) = link.connection().close_reason()
                    && Close::Revoked.is(&ended)
                {
                    shared.revoked.note_own(words(&ended));
                }
                if born.elapsed() > PAUSE_MAX {
                    self.down(Duration::ZERO, &why, 0);
                } else {
                    self.failed(&why, failures);
                }
                shared.note_traffic(self.id, link.traffic());
            }
            Err(why) => {
                // Once in a row is news.
                if failures == 0 {
                    info!(peer = %self.id, addr = %self.addr, why, "cannot connect");
                } else {
                    debug!(peer = %self.id, addr = %self.addr, why, failures, "cannot connect");
                }
                self.failed(&why, failures);
            }
        }
    }

    /// Notes one more failure in a row; a connection that does not last is one, too.
    fn failed(&self, why: &str, failures: u32) {
        let pause = PAUSE_MIN.saturating_mul(1 << failures.min(16));
        self.down(pause.min(PAUSE_MAX), why, failures.saturating_add(1));
    }

    fn down(&self, pause: Duration, why: &str, failures: u32) {
        self.state.send_if_modified(|state| {
            let wanted = !matches!(state, State::Gone);
            if wanted {
                *state = State::Down {
                    until: Instant::now() + pause,
                    why: why.into(),
                    failures,
                };
            }
            wanted
        });
    }

    fn unreachable(&self, why: &str) -> NetError {
        NetError::Unreachable {
            to: self.id,
            why: why.to_owned(),
        }
    }
}

/// Who moves a peer out of `Dialling` and `Up`, also when it is dropped because its runtime has stopped.
struct Dialler(Arc<Peer>);

impl Drop for Dialler {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let abandoned = matches!(state, State::Dialling | State::Up(_));
            if abandoned {
                *state = State::Down {
                    until: Instant::now() + PAUSE_MAX,
                    why: "the transport has stopped".into(),
                    failures: 0,
                };
            }
            abandoned
        });
    }
}

/// Connects in the newest version that both speak.
async fn greet(shared: &Shared, peer: &Peer) -> Result<(Arc<Link>, LinkDriver), String> {
    let (mut version, mut resets) = (shared.versions.max, 0);
    loop {
        match greet_in(shared, peer, version).await {
            Err(Refused::Version(why)) if version > shared.versions.min => {
                debug!(peer = %peer.id, version, why, "offering an older version");
                version -= 1;
            }
            Err(Refused::Reset(_)) if resets < RESETS_MAX => resets += 1,
            Err(Refused::Revoked(why)) => {
                shared.revoked.note_own(why.clone());
                return Err(why);
            }
            Err(Refused::Version(why) | Refused::Reset(why) | Refused::Otherwise(why)) => {
                return Err(why);
            }
            Ok(greeted) => return Ok(greeted),
        }
    }
}

/// Why there is no connection.
enum Refused {
    /// The peer does not speak the version.
    Version(String),
    /// The peer knows nothing of the connection: it has restarted, or its word why it has closed was lost.
    Reset(String),
    /// The peer says that this node's certificate was revoked.
    Revoked(String),
    Otherwise(String),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Otherwise(why)
    }
}

impl From<ConnectionError> for Refused {
    fn from(error: ConnectionError) -> Self {
        let why = words(&error);
        if Close::Version.is(&error) {
            Self::Version(why)
        } else if Close::Revoked.is(&error) {
            Self::Revoked(why)
        } else if error == ConnectionError::Reset {
            Self::Reset(why)
        } else {
            Self::Otherwise(why)
        }
    }
}

/// Connects, and exchanges hellos on what becomes the shared stream.
async fn greet_in(
    shared: &Shared,
    peer: &Peer,
    version: u32,
) -> Result<(Arc<Link>, LinkDriver), Refused> {
    let name = shared.root.node_name(peer.id);
    let config = shared.tls.dial(peer.addr);
    let connecting = shared
        .endpoint
        .connect_with(config, peer.addr, &name)
        .map_err(|error| error.to_string())?;
    let connection = connecting.await?;
    if let Some(why) = shared.refusal(peer.id, &connection) {
        connection.close(Close::Revoked.into(), why.as_bytes());
        return Err(why.into());
    }
    let (mut writer, mut reader) = connection.open_bi().await?;
    let node = shared.local;
    // Sending fails only if the connection does, which the answer tells better.
    Hello { version, node }.send(&mut writer).await.ok();
    let hello = Hello::receive(&mut reader).await.map_err(|error| {
        match (connection.close_reason(), error) {
            (Some(reason), _) => Refused::from(reason),
            (None, error) => error.to_string().into(),
        }
    })?;
    if hello.version != version {
        let why = format!("it answers in version {}, not {version}", hello.version);
        connection.close(Close::Version.into(), why.as_bytes());
        return Err(why.into());
    }
    if hello.node != peer.id {
        let why = format!("it says it is node {}", hello.node);
        connection.close(Close::Identity.into(), why.as_bytes());
        return Err(why.into());
    }
    shared.note_version(peer.id, version);
    Ok(Link::new(peer.id, connection, writer, reader))
}

impl State {
    fn step(&self) -> Step {
        match self {
            Self::Up(link) => Step::Use(Arc::clone(link)),
            Self::Dialling => Step::Wait,
            Self::Gone => Step::Fail("it was taken out of the cluster".into()),
            Self::Down { until, why, .. } if Instant::now() < *until => Step::Fail(Arc::clone(why)),
            Self::Down { .. } => Step::Dial,
        }
    }
}
