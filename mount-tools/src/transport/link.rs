//! The calling end of a connection: sends calls and matches the answers to them.
//!
//! A link is born connected and dies once. Whoever waits for an answer then hears at once that the outcome
//! is unknown; whoever comes later hears that nothing was sent. Nothing here is ever retried.
//!
//! Lock order: `calls` is a leaf, held for a few instructions and never across an await.

use super::frame::{self, Frame, FrameError, FrameReader, Kind};
use super::hello::Close;
use super::traffic::Traffic;
use bytes::{Bytes, BytesMut};
use consistency::NodeId;
use gfs::net::{ByteStream, NetError, ServiceId};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, TransportErrorCode, WriteError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::warn;

/// The byte by which an acceptor says that a service has taken a stream.
pub(super) const STREAM_TAKEN: u8 = 1;

/// A connection to a peer, as its dialler holds it.
#[derive(Debug)]
pub(super) struct Link {
    peer: NodeId,
    connection: Connection,
    queue: mpsc::Sender<Frame>,
    ids: AtomicU64,
    calls: Mutex<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    /// Why the link has died.
    dead: Option<Arc<str>>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

#[derive(Debug)]
enum Answer {
    Frame(Frame),
    /// The connection died after the call was taken in.
    Lost(Arc<str>),
}

/// The receiving half of a new link, to be run.
#[derive(Debug)]
pub(super) struct LinkDriver {
    link: Arc<Link>,
    writer: SendStream,
    reader: RecvStream,
    queued: mpsc::Receiver<Frame>,
}

impl Link {
    /// Takes over a connection whose hellos were exchanged on the given streams.
    pub(super) fn new(
        peer: NodeId,
        connection: Connection,
        writer: SendStream,
        reader: RecvStream,
    ) -> (Arc<Self>, LinkDriver) {
        let (queue, queued) = mpsc::channel(frame::QUEUED_FRAMES_MAX);
        let link = Arc::new(Self {
            peer,
            connection,
            queue,
            ids: AtomicU64::new(1),
            calls: Mutex::default(),
        });
        let driver = LinkDriver {
            link: Arc::clone(&link),
            writer,
            reader,
            queued,
        };
        (link, driver)
    }

    /// Returns the connection that it is.
    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Returns what has gone over it.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic::of(&self.connection)
    }

    /// Calls a service. The caller keeps the deadline; the callee is told of it.
    pub(super) async fn call(
        &self,
        service: ServiceId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, NetError> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let frame = Frame {
            kind: Kind::Call,
            id,
            service: service as u8,
            deadline_ms: frame::deadline_ms(deadline),
            body,
        };
        let answer = self.expect_answer(id)?;
        let _forget = ForgetOnDrop { link: self, id };
        if frame.is_small() {
            // Fails only on a dead link, which has answered all who wait.
            self.queue.send(frame).await.ok();
        } else if let Err(error) = frame::send_alone(&self.connection, frame).await {
            // Cut off before the end, so the callee cannot have begun.
            return Err(self.unreachable(&error.to_string()));
        }
        match answer.await {
            Ok(Answer::Frame(frame)) => self.outcome(frame),
            Ok(Answer::Lost(why)) => Err(self.unreachable(&format!("{why}; outcome unknown"))),
            Err(_) => Err(self.unreachable("the transport has stopped; outcome unknown")),
        }
    }

    /// Opens a byte stream to a service, with its first bytes, and waits until it is taken.
    pub(super) async fn open(
        &self,
        service: ServiceId,
        first: Bytes,
    ) -> Result<ByteStream, NetError> {
        let stream = self.connection.open_bi().await;
        let (mut writer, mut reader) =
            stream.map_err(|error| self.unreachable(&error.to_string()))?;
        let frame = Frame {
            kind: Kind::Open,
            id: 0,
            service: service as u8,
            deadline_ms: 0,
            body: Bytes::new(),
        };
        let mut header = BytesMut::with_capacity(frame::HEADER_BYTES);
        frame.put_header(&mut header);
        let chunks = 1 + usize::from(!first.is_empty());
        let sent = writer
            .write_all_chunks(&mut [header.freeze(), first][..chunks])
            .await;
        // Who refuses the stream stops it in the middle, and says so below.
        if let Err(error) = sent
            && !matches!(error, WriteError::Stopped(_))
        {
            return Err(self.unreachable(&error.to_string()));
        }
        let mut taken = [0_u8; 1];
        match reader.read_exact(&mut taken).await {
            Ok(()) if taken == [STREAM_TAKEN] => Ok(byte_stream(writer, reader)),
            Ok(()) => Err(NetError::Malformed {
                to: self.peer,
                why: format!("a stream was answered with {}", taken[0]),
            }),
            Err(_) => Err(match self.connection.close_reason() {
                Some(reason) => self.unreachable(&reason.to_string()),
                None => self.unreachable(&format!("it has no service {service:?}")),
            }),
        }
    }

    /// Ends the connection; what waits fails.
    pub(super) fn close(&self, close: Close, why: &str) {
        self.connection.close(close.into(), why.as_bytes());
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().expect("no holder panics")
    }

    fn expect_answer(&self, id: u64) -> Result<oneshot::Receiver<Answer>, NetError> {
        let (sender, receiver) = oneshot::channel();
        let mut calls = self.calls();
        if let Some(why) = &calls.dead {
            let why = Arc::clone(why);
            drop(calls);
            return Err(self.unreachable(&why));
        }
        calls.waiting.insert(id, sender);
        Ok(receiver)
    }

    /// Hands an answer to who waits for it; late ones have nobody.
    fn deliver(&self, frame: Frame) {
        let waiting = self.calls().waiting.remove(&frame.id);
        if let Some(sender) = waiting {
            // Its call may have been given up in this very moment.
            sender.send(Answer::Frame(frame)).ok();
        }
    }

    fn is_awaited(&self, id: u64) -> bool {
        self.calls().waiting.contains_key(&id)
    }

    /// Fails everyone who waits or will come.
    fn die(&self, why: &str) {
        let why: Arc<str> = why.into();
        let mut calls = self.calls();
        calls.dead.get_or_insert_with(|| Arc::clone(&why));
        let waiting = std::mem::take(&mut calls.waiting);
        drop(calls);
        for sender in waiting.into_values() {
            sender.send(Answer::Lost(Arc::clone(&why))).ok();
        }
    }

    fn outcome(&self, frame: Frame) -> Result<Bytes, NetError> {
        let why = || String::from_utf8_lossy(&frame.body).into_owned();
        match frame.kind {
            Kind::Reply => Ok(frame.body),
            Kind::Refused => Err(self.unreachable(&why())),
            Kind::Failed | Kind::Call | Kind::Open => Err(NetError::Malformed {
                to: self.peer,
                why: why(),
            }),
        }
    }

    fn unreachable(&self, why: &str) -> NetError {
        NetError::Unreachable {
            to: self.peer,
            why: why.to_owned(),
        }
    }
}

impl LinkDriver {
    /// Moves frames until the connection ends; returns why it did.
    pub(super) async fn run(self) -> Arc<str> {
        let link = self.link;
        let _bury = DieOnDrop(Arc::clone(&link));
        let mut tasks = JoinSet::new();
        let writing = frame::write_frames(self.writer, self.queued);
        tasks.spawn(async move {
            writing
                .await
                .map_err(|error| FrameError::Gone(error.into()))
        });
        tasks.spawn(read_answers(Arc::clone(&link), self.reader));
        tasks.spawn(read_large_answers(Arc::clone(&link)));
        let why = match tasks.join_next().await {
            Some(Ok(Err(FrameError::Malformed(why)))) => {
                warn!(peer = %link.peer, why, "closing the connection");
                Close::Malformed.end(&link.connection, &why).await;
                format!("it broke the protocol: {why}")
            }
            // The acceptor ends the shared stream only with the connection.
            _ => words(
                &Close::Goodbye
                    .end(&link.connection, "the shared stream has ended")
                    .await,
            ),
        };
        let why: Arc<str> = why.into();
        link.die(&why);
        why
    }
}

async fn read_answers(link: Arc<Link>, reader: RecvStream) -> Result<(), FrameError> {
    let mut frames = FrameReader::new(reader);
    while let Some(frame) = frames.next().await? {
        check_answer(&frame)?;
        link.deliver(frame);
    }
    Ok(())
}

/// Reads answers that have streams of their own; the peer may have [`super::tls::LARGE_FRAMES_MAX`] of them.
async fn read_large_answers(link: Arc<Link>) -> Result<(), FrameError> {
    let mut reads = JoinSet::new();
    loop {
        tokio::select! {
            stream = link.connection.accept_uni() => {
                let stream = stream.map_err(std::io::Error::from)?;
                reads.spawn(read_large_answer(Arc::clone(&link), stream));
            }
            Some(read) = reads.join_next() => {
                // Else the peer gave up a single answer, or the connection is gone, which accept_uni tells.
                if let Ok(Err(FrameError::Malformed(why))) = read {
                    return Err(FrameError::Malformed(why));
                }
            }
        }
    }
}

async fn read_large_answer(link: Arc<Link>, mut stream: RecvStream) -> Result<(), FrameError> {
    let header = frame::read_header(&mut stream).await?;
    if !link.is_awaited(header.id()) {
        // Nobody waits any more: dropping the stream stops the sender.
        return Ok(());
    }
    let frame = frame::read_body(header, &mut stream).await?;
    check_answer(&frame)?;
    link.deliver(frame);
    Ok(())
}

fn check_answer(frame: &Frame) -> Result<(), FrameError> {
    match frame.kind {
        Kind::Reply | Kind::Refused | Kind::Failed => Ok(()),
        Kind::Call | Kind::Open => Err(FrameError::Malformed(format!(
            "{:?} where answers are expected",
            frame.kind
        ))),
    }
}

/// Joins the halves of a QUIC stream.
pub(super) fn byte_stream(writer: SendStream, reader: RecvStream) -> ByteStream {
    ByteStream {
        reader: Box::new(reader),
        writer: Box::new(writer),
    }
}

/// Returns whether TLS has ended a connection: QUIC has a range of codes for its alerts.
fn is_tls(code: TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

fn refused(error: &ConnectionError) -> String {
    format!("{error}; is it a node of this cluster, and is its certificate valid by both clocks?")
}

/// Says why a connection has ended, for people.
pub(super) fn words(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => format!("nothing heard for {:?}", super::tls::IDLE_MAX),
        ConnectionError::ApplicationClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason);
            format!("closed by the peer: {why}")
        }
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => refused(error),
        ConnectionError::TransportError(refusal) if is_tls(refusal.code) => refused(error),
        other => other.to_string(),
    }
}

/// Fails the calls of a link whose driver is dropped with its runtime.
struct DieOnDrop(Arc<Link>);

impl Drop for DieOnDrop {
    fn drop(&mut self) {
        self.0.die("the transport has stopped");
    }
}

/// Forgets a call that was given up; its answer, if one comes, is dropped.
struct ForgetOnDrop<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        self.link.calls().waiting.remove(&self.id);
    }
}
