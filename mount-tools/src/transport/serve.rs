//! The answering end: accepts connections, learns who speaks, and hands calls and streams to the router.
//!
//! A peer that breaks the protocol loses its connection, with one line in the log; nobody else notices. What
//! a peer can make this node hold is bounded: [`CALLS_MAX`] small calls, [`tls::LARGE_FRAMES_MAX`] large
//! ones, [`tls::STREAMS_MAX`] streams, and what its windows allow to be under way. At a bound its next frames
//! stay unread, and flow control makes the peer wait.
//!
//! A call that was begun runs to its end, also when nobody waits for the answer any more: a service must not
//! be cut in the middle of a change. Its deadline only keeps it from being begun too late.

use super::Shared;
use super::frame::{self, Frame, FrameError, FrameReader, Kind};
use super::hello::{Close, Hello};
use super::link::{STREAM_TAKEN, byte_stream, words};
use super::peer::GREETING_MAX;
use super::revoked::certificate;
use super::tls;
use consistency::NodeId;
use consistency::wire::MESSAGE_BYTES_MAX;
use futures::FutureExt as _;
use gfs::net::{Service, ServiceId};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, error, info, warn};

/// Small calls of one peer that may be under way at once. Calls can wait for other calls of the same peer
/// (a flush lets a break be acknowledged, which lets an open proceed), so this has to be far above what a
/// node's processes can have waiting at once; with bodies at their limit it is 256 MiB.
pub(super) const CALLS_MAX: usize = 4_096;

/// Greetings under way at once, of all comers; more are refused.
const GREETINGS_MAX: usize = 128;
/// From here on a comer has to prove its address before it costs anything.
const GREETINGS_UNPROVED_MAX: usize = 32;

/// An accepted connection.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    peer: NodeId,
    connection: Connection,
    answers: mpsc::Sender<Frame>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// A service that is there.
type Called = (ServiceId, Arc<dyn Service>);

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    while let Some(incoming) = shared.endpoint.accept().await {
        let Ok(greeting) = Arc::clone(&greetings).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let crowded = greetings.available_permits() < GREETINGS_MAX - GREETINGS_UNPROVED_MAX;
        if crowded && incoming.may_retry() {
            // Cannot fail, because it may.
            incoming.retry().ok();
            continue;
        }
        tokio::spawn(welcome(Arc::clone(&shared), incoming, greeting));
    }
}

/// Greets a comer and serves it to the end of its connection.
async fn welcome(shared: Arc<Shared>, incoming: Incoming, greeting: OwnedSemaphorePermit) {
    let addr = incoming.remote_address();
    let greeted = timeout(GREETING_MAX, greet(&shared, incoming)).await;
    drop(greeting);
    match greeted.unwrap_or_else(|_| Err("no greeting in time".to_owned())) {
        Ok((peer, connection, writer, reader)) => {
            shared.heard(peer);
            shared.admit(peer, &connection);
            // It may have been revoked since it was greeted, before it was among those that are closed then.
            if let Some(why) = shared.refusal(peer, &connection) {
                connection.close(Close::Revoked.into(), why.as_bytes());
            }
            serve(
                Arc::clone(&shared),
                peer,
                connection.clone(),
                writer,
                reader,
            )
            .await;
            shared.dismiss(peer, &connection);
        }
        Err(why) => info!(%addr, why, "refused a connection"),
    }
}

type Greeted = (NodeId, Connection, SendStream, RecvStream);

async fn greet(shared: &Shared, incoming: Incoming) -> Result<Greeted, String> {
    let config = shared.tls.accept(incoming.remote_address());
    let connecting = incoming
        .accept_with(config)
        .map_err(|error| words(&error))?;
    let connection = connecting.await.map_err(|error| words(&error))?;
    let refuse = |close: Close, why: String| {
        connection.close(close.into(), why.as_bytes());
        why
    };
    let (mut writer, mut reader) = connection
        .accept_bi()
        .await
        .map_err(|error| words(&error))?;
    let hello = Hello::receive(&mut reader)
        .await
        .map_err(|error| refuse(Close::Malformed, error.to_string()))?;
    if let Some(why) = hello.version_conflict(shared.versions) {
        return Err(refuse(Close::Version, why));
    }
    let proved = certificate(&connection).is_some_and(|it| shared.root.is_node(&it, hello.node));
    if !proved {
        let why = format!("its certificate is not that of node {}", hello.node);
        return Err(refuse(Close::Identity, why));
    }
    if let Some(why) = shared.refusal(hello.node, &connection) {
        return Err(refuse(Close::Revoked, why));
    }
    if !shared.is_peer(hello.node) {
        let why = format!(
            "node {} is not among the peers of node {}: add it there, if it is to take part",
            hello.node, shared.local
        );
        return Err(refuse(Close::Identity, why));
    }
    let answer = Hello {
        version: hello.version,
        node: shared.local,
    };
    answer
        .send(&mut writer)
        .await
        .map_err(|error| error.to_string())?;
    shared.note_version(hello.node, hello.version);
    Ok((hello.node, connection, writer, reader))
}

async fn serve(
    shared: Arc<Shared>,
    peer: NodeId,
    connection: Connection,
    writer: SendStream,
    reader: RecvStream,
) {
    let (answers, queued) = mpsc::channel(frame::QUEUED_FRAMES_MAX);
    let session = Arc::new(Session {
        shared,
        peer,
        connection,
        answers,
        small: Arc::new(Semaphore::new(CALLS_MAX)),
        large: Arc::new(Semaphore::new(tls::LARGE_FRAMES_MAX as usize)),
    });
    let mut tasks = JoinSet::new();
    let writing = frame::write_frames(writer, queued);
    tasks.spawn(async move {
        writing
            .await
            .map_err(|error| FrameError::Gone(error.into()))
    });
    tasks.spawn(Arc::clone(&session).read_calls(reader));
    tasks.spawn(Arc::clone(&session).read_large_calls());
    tasks.spawn(Arc::clone(&session).accept_streams());
    match tasks.join_next().await {
        Some(Ok(Err(FrameError::Malformed(why)))) => session.violated(&why),
        // The dialler ends the shared stream only with the connection.
        Some(Ok(Ok(()))) => session.violated("the shared stream has ended"),
        Some(Ok(Err(FrameError::Gone(_))) | Err(_)) | None => {}
    }
    let ended = Close::Goodbye.end(&session.connection, "").await;
    let why = words(&ended);
    if Close::Revoked.is(&ended) {
        session.shared.revoked.note_own(why.clone());
    }
    debug!(%peer, why, "peer's connection ended");
}

impl Session {
    /// Reads the small calls.
    async fn read_calls(self: Arc<Self>, reader: RecvStream) -> Result<(), FrameError> {
        let mut frames = FrameReader::new(reader);
        while let Some(frame) = frames.next().await? {
            let permit = acquire(&self.small).await;
            self.begin(frame, permit)?;
        }
        Ok(())
    }

    /// Reads calls that have streams of their own.
    async fn read_large_calls(self: Arc<Self>) -> Result<(), FrameError> {
        let mut reads = JoinSet::new();
        loop {
            let accept = async {
                let permit = acquire(&self.large).await;
                (permit, self.connection.accept_uni().await)
            };
            tokio::select! {
                (permit, stream) = accept => {
                    let stream = stream.map_err(io::Error::from)?;
                    reads.spawn(Arc::clone(&self).read_large_call(stream, permit));
                }
                Some(read) = reads.join_next() => {
                    // Else the peer gave up a single call, or the connection is gone, which accept_uni tells.
                    if let Ok(Err(FrameError::Malformed(why))) = read {
                        return Err(FrameError::Malformed(why));
                    }
                }
            }
        }
    }

    async fn read_large_call(
        self: Arc<Self>,
        mut stream: RecvStream,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), FrameError> {
        let header = in_time(frame::read_header(&mut stream)).await?;
        let deadline = header.deadline();
        match timeout(deadline, frame::read_body(header, &mut stream)).await {
            Ok(frame) => self.begin(frame?, permit),
            // Nobody waits any more: dropping the stream stops the sender.
            Err(_) => Ok(()),
        }
    }

    /// Starts to answer a call: on this thread if its service is prompt, else on the services' runtime.
    fn begin(
        self: &Arc<Self>,
        frame: Frame,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), FrameError> {
        if frame.kind != Kind::Call {
            let why = format!("{:?} where calls are expected", frame.kind);
            return Err(FrameError::Malformed(why));
        }
        let expires = Instant::now() + Duration::from_millis(frame.deadline_ms.into());
        let called = self.service(frame.service);
        let prompt = called
            .as_ref()
            .is_some_and(|(_, service)| service.is_prompt());
        let session = Arc::clone(self);
        let mut work = Box::pin(async move {
            // A call that waited for too long has nobody who waits for it.
            if Instant::now() < expires {
                session.answer(called, frame, expires).await;
            }
            drop(permit);
        });
        if prompt {
            // What it spawns does not belong on this thread.
            let _on_handlers = self.shared.handlers.enter();
            if (&mut work).now_or_never().is_some() {
                return Ok(());
            }
        }
        self.shared.handlers.spawn(work);
        Ok(())
    }

    async fn answer(&self, called: Option<Called>, call: Frame, expires: Instant) {
        let id = call.id;
        let Some((name, service)) = called else {
            let why = format!("it has no service {}", service_name(call.service));
            return self
                .send(Frame::answer(Kind::Refused, id, why), expires)
                .await;
        };
        // The panic of one service is its own; without an answer the caller would wait for nothing.
        let reply = AssertUnwindSafe(service.call(self.peer, call.body)).catch_unwind();
        let answer = match reply.await {
            Ok(Some(reply)) if reply.len() > MESSAGE_BYTES_MAX => {
                error!(service = ?name, bytes = reply.len(), "reply over the limit of a message");
                let why = format!(
                    "a reply of {} bytes is over the limit of {MESSAGE_BYTES_MAX}",
                    reply.len()
                );
                Frame::answer(Kind::Failed, id, why)
            }
            Ok(Some(reply)) => Frame::answer(Kind::Reply, id, reply),
            Ok(None) => return self.violated(&format!("malformed body for {name:?}")),
            Err(_) => Frame::answer(
                Kind::Failed,
                id,
                format!("its {name:?} failed at this call"),
            ),
        };
        self.send(answer, expires).await;
    }

    /// Sends an answer while somebody waits for it. Errors mean that the connection is gone.
    async fn send(&self, answer: Frame, expires: Instant) {
        let sending = async {
            if answer.is_small() {
                self.answers.send(answer).await.ok();
            } else {
                frame::send_alone(&self.connection, answer).await.ok();
            }
        };
        timeout_at(expires, sending).await.ok();
    }

    /// Accepts byte streams.
    async fn accept_streams(self: Arc<Self>) -> Result<(), FrameError> {
        let mut opens = JoinSet::new();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => {
                    let (writer, reader) = stream.map_err(io::Error::from)?;
                    opens.spawn(Arc::clone(&self).hand_over(writer, reader));
                }
                Some(open) = opens.join_next() => {
                    // Else the peer gave up a single stream, or the connection is gone, which accept_bi tells.
                    if let Ok(Err(FrameError::Malformed(why))) = open {
                        return Err(FrameError::Malformed(why));
                    }
                }
            }
        }
    }

    /// Reads for whom a stream is, and hands it over.
    async fn hand_over(
        self: Arc<Self>,
        mut writer: SendStream,
        mut reader: RecvStream,
    ) -> Result<(), FrameError> {
        let open = in_time(frame::read_open(&mut reader)).await?;
        let Some((_, service)) = self.service(open.service) else {
            writer.reset(0_u32.into()).ok();
            return Ok(());
        };
        writer
            .write_all(&[STREAM_TAKEN])
            .await
            .map_err(io::Error::from)?;
        let peer = self.peer;
        self.shared
            .handlers
            .spawn(async move { service.accept(peer, byte_stream(writer, reader)).await });
        Ok(())
    }

    fn service(&self, number: u8) -> Option<Called> {
        let name = ServiceId::ALL.into_iter().find(|id| *id as u8 == number)?;
        Some((name, self.shared.router.service(name)?))
    }

    /// Closes the connection of a peer that broke the protocol; says so once.
    fn violated(&self, why: &str) {
        if self.connection.close_reason().is_none() {
            warn!(peer = %self.peer, addr = %self.connection.remote_address(), why, "closing the connection");
            self.connection
                .close(Close::Malformed.into(), why.as_bytes());
        }
    }
}

/// Bounds the wait for a header, which is sent together with the stream it opens.
async fn in_time<T>(header: impl Future<Output = Result<T, FrameError>>) -> Result<T, FrameError> {
    timeout(GREETING_MAX, header).await.unwrap_or_else(|_| {
        let why = "a stream that does not say what it is for".to_owned();
        Err(FrameError::Malformed(why))
    })
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_owned()
        .await
        .expect("it is never closed")
}

fn service_name(number: u8) -> String {
    ServiceId::ALL
        .into_iter()
        .find(|id| *id as u8 == number)
        .map_or_else(|| number.to_string(), |id| format!("{id:?} (yet)"))
}
