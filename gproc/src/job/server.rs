//! The unix socket on which a node takes jobs from its users.

use super::agent::{Agent, FIRST_FRAME_WITHIN, Hop};
use super::forked::Forked;
use super::frame::{FrameReader, FrameSender, FrameWriter};
use super::peer::Peer;
use super::place::{PlaceError, Placer, Work};
use super::protocol::{
    End, FIRST_BYTES_MAX, FromJob, Hello, NodesReply, PING_EVERY, Request, SILENCE_MAX, Start,
    Told, checked_len, malformed,
};
use super::relay::{Job, relay};
use super::roll::{GATHER, Heard, Roll};
use super::sys;
use super::terminal::{EXTRAS_MAX, Extra};
use super::view::{Nodes, View};
use crate::pids::ClusterPid;
use consistency::wire::decode;
use consistency::wire::request::NodeStatus;
use consistency::{Instant, NodeId};
use gfs::net::Transport;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections of users at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 8192;

/// Pause after a failed accept (no descriptors left), in which connections may end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Listens at `path`, which any user may connect to; a socket that was left there is replaced.
///
/// # Errors
/// Of the file system and of bind(2).
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
    Ok(listener)
}

/// Takes jobs from users and has them run where they fit best.
pub struct JobServer {
    agent: Arc<Agent>,
    transport: Arc<dyn Transport>,
    view: View,
    placer: Mutex<Placer>,
    roll: Arc<Roll>,
    /// Time 0 of the placer.
    epoch: std::time::Instant,
    /// Silence after which a host counts as lost.
    silence: Duration,
    connections: Arc<Semaphore>,
}

impl JobServer {
    /// Makes the server of one node.
    #[must_use]
    pub fn new(agent: Arc<Agent>, transport: Arc<dyn Transport>, nodes: Arc<dyn Nodes>) -> Self {
        Self {
            roll: Roll::new(transport.local()),
            agent,
            transport,
            view: View::new(nodes),
            placer: Mutex::default(),
            epoch: std::time::Instant::now(),
            silence: SILENCE_MAX,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Takes a host for lost after another time than [`SILENCE_MAX`].
    ///
    /// # Panics
    /// If that is no longer than [`PING_EVERY`]: a host with a quiet job would count as lost.
    #[must_use]
    pub fn with_silence(mut self, silence: Duration) -> Self {
        assert!(silence > PING_EVERY, "an idle host is silent that long");
        self.silence = silence;
        self
    }

    /// Serves connections until the task is dropped; those that are open go on.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        loop {
            let connections = Arc::clone(&self.connections);
            let slot = connections.acquire_owned().await.expect("never closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        server.connection(stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a job");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: UnixStream) {
        let first = timeout(FIRST_FRAME_WITHIN, receive_hello(&stream)).await;
        let (hello, descriptors) = match first {
            Ok(Ok(first)) => first,
            other => {
                tracing::debug!(?other, "a connection asked for nothing");
                return;
            }
        };
        let peer = Peer::of(&stream);
        let (reader, writer) = stream.into_split();
        let (reader, writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        let (request, extras) = match hello {
            Hello::Nodes => {
                writer.sender().send(&self.nodes().await).await;
                return writer.finish().await;
            }
            Hello::Jobs => {
                if peer.is_ok_and(|peer| peer.credentials.uid == 0) {
                    self.tell_of_jobs(reader, writer).await;
                }
                return;
            }
            Hello::Run(request) => (request, Vec::new()),
            Hello::RunWith(request, extras) => (request, extras),
        };
        if extras.len() > EXTRAS_MAX {
            let why = format!("a job may want {EXTRAS_MAX} things, not {}", extras.len());
            return refuse(writer, End::lost(why)).await;
        }
        match peer {
            Ok(peer) => {
                let forked = extras.iter().find_map(|extra| match extra {
                    Extra::Forked(pid) => Some((pid, Forked::of(*pid, &peer))),
                    _ => None,
                });
                let forked = match forked {
                    Some((pid, Err(errno))) => {
                        let gone = Told::Gone(Err(errno as i32));
                        writer.sender().send(&FromJob::Told(gone)).await;
                        let why = format!("process {pid} is not taken: {}", errno.desc());
                        return refuse(writer, End::lost(why)).await;
                    }
                    Some((_, Ok(forked))) => Some(forked),
                    None => None,
                };
                let start = Box::new(Start {
                    request: *request,
                    credentials: peer.credentials,
                    limits: peer.limits,
                    nice: peer.nice,
                });
                let npid = ClusterPid::of(self.transport.local(), peer.pid);
                let npid = npid.map_or(start.request.npid, ClusterPid::number);
                let vouched = Vouched {
                    npid,
                    start,
                    forked,
                };
                self.run(vouched, extras, descriptors, reader, writer).await;
            }
            Err(error) => {
                let why = format!("the daemon cannot tell who you are: {error}");
                refuse(writer, End::lost(why)).await;
            }
        }
    }

    async fn nodes(&self) -> NodesReply {
        let nodes = self.view.nodes().await.map_err(|error| error.to_string())?;
        let nodes = nodes.iter();
        Ok(nodes
            .map(|status| (status.node, status.up, status.report.load))
            .collect())
    }

    /// Tells somebody of the jobs of this home for as long as the connection lasts.
    async fn tell_of_jobs(
        &self,
        mut reader: FrameReader<impl tokio::io::AsyncRead + Unpin>,
        writer: FrameWriter,
    ) {
        let sender = writer.sender();
        let telling = async {
            let mut changes = self.roll.changes();
            let mut heard = Heard::default();
            let mut first = true;
            loop {
                changes.mark_unchanged();
                let now = std::time::Instant::now();
                let (mut pieces, young) = self.roll.news(&mut heard, now);
                // Who has just begun to ask knows then that this is all.
                if first && pieces.is_empty() {
                    pieces.push(self.roll.nothing());
                }
                first = false;
                for piece in &pieces {
                    if !sender.send(piece).await {
                        return;
                    }
                }
                // The sender of changes lives as long as this server.
                if !young && changes.changed().await.is_err() {
                    return;
                }
                tokio::time::sleep(GATHER).await;
            }
        };
        tokio::select! {
            () = telling => {}
            () = drain(&mut reader) => {}
        }
    }

    async fn run(
        &self,
        vouched: Vouched,
        mut extras: Vec<Extra>,
        descriptors: Option<[OwnedFd; 3]>,
        mut reader: FrameReader<impl tokio::io::AsyncRead + Unpin>,
        writer: FrameWriter,
    ) {
        let Vouched {
            npid,
            start,
            forked,
        } = vouched;
        let placed = match self.place(&start).await {
            Ok(placed) => placed,
            Err(why) => return refuse(writer, End::lost(why)).await,
        };
        let seat = self.roll.enter(npid, &start, &extras);
        let here = placed.node == self.transport.local();
        // This node stays its home: of a job that is to end with its owner's alone, and of one that is here.
        let moves = forked.is_some() || restarts(&extras);
        if here && forked.is_some() {
            return refuse(writer, End::lost("it is here already")).await;
        }
        if here || moves {
            let (agent, mut descriptors) = (&self.agent, descriptors);
            let goes_to = (!here).then_some(placed.node);
            if restarts(&extras) {
                // Files here would keep it here.
                descriptors = None;
                extras.retain(|extra| !matches!(extra, Extra::InputFile(_)));
            }
            let hop = Hop::Local {
                seat,
                goes_to,
                forked,
            };
            return agent
                .run(start, extras, descriptors, reader, writer, hop)
                .await;
        }
        drop(descriptors);
        // Home vouches for it (rule J1): sudo, for one, goes by it.
        extras.retain(|extra| !matches!(extra, Extra::HostName(_)));
        if let Ok(name) = nix::unistd::gethostname() {
            extras.push(Extra::HostName(name.into_encoded_bytes().into()));
        }
        let sender = writer.sender();
        let transport = &*self.transport;
        let end = relay(
            transport,
            placed.node,
            Job {
                start,
                extras,
                seat: Some(seat),
            },
            &mut reader,
            &sender,
            self.silence,
        );
        if let Some(end) = end.await {
            tell(&sender, end).await;
        }
        drop(sender);
        tokio::select! {
            () = writer.finish() => {}
            () = drain(&mut reader) => {}
        }
    }

    async fn place(&self, start: &Start) -> Result<Placed<'_>, String> {
        let work = work(start);
        let unknown = |error| format!("the load of the nodes is not known: {error}");
        let nodes = self.view.nodes().await.map_err(unknown)?;
        let asked = self.admitted(&nodes, start).await?;
        if let Ok(placed) = self.place_on(&nodes, &asked, work) {
            return Ok(placed);
        }
        // A node that has come up since is not refused.
        let nodes = self.view.fresh().await.map_err(unknown)?;
        let asked = self.admitted(&nodes, start).await?;
        self.place_on(&nodes, &asked, work)
            .map_err(|error| error.to_string())
    }

    /// Returns which of the nodes in question are open to the job's user (J5); none: any.
    async fn admitted(&self, nodes: &[NodeStatus], start: &Start) -> Result<Vec<NodeId>, String> {
        let asked = &start.request.nodes;
        let mut in_question = asked.clone();
        if asked.is_empty() {
            in_question.extend(nodes.iter().filter(|of| of.up).map(|of| of.node));
        }
        let (mut open, mut closed) = (Vec::new(), None);
        for node in in_question {
            let guest = node != self.transport.local();
            let admissions = self.agent.admissions();
            match admissions.admit(node, &start.credentials, guest).await {
                Ok(()) => open.push(node),
                Err(refused) => closed = Some(refused),
            }
        }
        match closed {
            None => Ok(asked.clone()),
            Some(refused) if open.is_empty() => Err(refused.to_string()),
            Some(_) => Ok(open),
        }
    }

    fn place_on(
        &self,
        nodes: &[NodeStatus],
        asked: &[NodeId],
        work: Work,
    ) -> Result<Placed<'_>, PlaceError> {
        let now = Instant(u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX));
        let mut placer = self.placer.lock().expect("no holder panics");
        let (node, ticket) = placer.place(now, nodes, asked, work)?;
        Ok(Placed {
            node,
            ticket,
            placer: &self.placer,
        })
    }
}

impl fmt::Debug for JobServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobServer")
            .field("agent", &self.agent)
            .finish_non_exhaustive()
    }
}

/// What this node, as a job's home, knows of it by itself.
struct Vouched {
    /// Names its command.
    npid: u32,
    start: Box<Start>,
    /// It runs already.
    forked: Option<Forked>,
}

/// A placement that counts until it is dropped.
struct Placed<'a> {
    node: NodeId,
    ticket: super::place::Ticket,
    placer: &'a Mutex<Placer>,
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        let mut placer = self.placer.lock().expect("no holder panics");
        placer.finished(self.ticket);
    }
}

/// Returns what a job does: its command in its directory, for its user; of several of one command each is its own.
fn work(start: &Start) -> Work {
    let Request { argv, cwd, vnn, .. } = &start.request;
    let mut hasher = DefaultHasher::new();
    (argv, cwd, vnn, start.credentials.uid).hash(&mut hasher);
    Work(hasher.finish())
}

/// Returns whether a job is to go on when its node is lost.
fn restarts(extras: &[Extra]) -> bool {
    let restarts = |extra: &Extra| matches!(extra, Extra::Checkpoints(of) if of.restart);
    extras.iter().any(restarts)
}

async fn tell(sender: &FrameSender, end: End) {
    sender.send(&FromJob::Ended(end)).await;
}

async fn refuse(writer: FrameWriter, end: End) {
    tell(&writer.sender(), end).await;
    writer.finish().await;
}

/// Reads until the other end is gone.
async fn drain(reader: &mut FrameReader<impl tokio::io::AsyncRead + Unpin>) {
    while let Ok(Some(_)) = reader.next_whole(FIRST_BYTES_MAX).await {}
}

/// Receives the first frame and the three descriptors that may come with it.
async fn receive_hello(stream: &UnixStream) -> io::Result<(Hello, Option<[OwnedFd; 3]>)> {
    let mut descriptors = Vec::new();
    let mut header = [0; 4];
    receive_exact(stream, &mut header, &mut descriptors).await?;
    let mut body = vec![0; checked_len(header, FIRST_BYTES_MAX)?];
    receive_exact(stream, &mut body, &mut descriptors).await?;
    let hello = decode(&body).map_err(malformed)?;
    let descriptors = match descriptors.len() {
        0 => None,
        _ => Some(descriptors.try_into().map_err(|_| {
            let why = "descriptors come by three or not at all";
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?),
    };
    Ok((hello, descriptors))
}

async fn receive_exact(
    stream: &UnixStream,
    mut buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<()> {
    while !buffer.is_empty() {
        let len = stream
            .async_io(Interest::READABLE, || {
                sys::receive(stream.as_fd(), buffer, descriptors)
            })
            .await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[len..];
    }
    Ok(())
}
