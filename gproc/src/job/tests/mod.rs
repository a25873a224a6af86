//! Jobs through a real unix socket and a network in memory: two nodes in one process, which must be root's.

mod attributes;
mod faults;
mod streams;

use super::agent::Agent;
use super::frame::{FrameReader, FrameWriter};
use super::protocol::*;
use super::server::{JobServer, bind};
use super::terminal::Extra;
use super::view::Nodes;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use consistency::wire::request::{NodeReport, NodeStatus};
use gfs::net::mem::{MemNet, MemTransport};
use gfs::net::{ByteStream, NetError, Router, Service, ServiceId, Transport};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::fs::File;
use std::io::{IoSlice, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Every wait of these tests ends by then; the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);

/// Two nodes; the socket is node 1's.
struct Cluster {
    dir: tempfile::TempDir,
    agents: [Arc<Agent>; 2],
    transport: Arc<MemTransport>,
    router_there: Arc<Router>,
}

struct FixedNodes;

#[async_trait]
impl Nodes for FixedNodes {
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
        let load = NodeLoad {
            cpus: 2,
            speed: 1000,
            mem_available_kib: 1 << 20,
            ..NodeLoad::default()
        };
        let report = NodeReport {
            load,
            ..NodeReport::default()
        };
        Ok([HERE, THERE]
            .map(|node| NodeStatus::new(node, true, report.clone()))
            .into())
    }
}

impl Cluster {
    fn new() -> Self {
        Self::with_silence(SILENCE_MAX)
    }

    fn with_silence(silence: Duration) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let net = MemNet::default();
        let (transport, _) = net.join(HERE);
        let (_, router_there) = net.join(THERE);
        let agents = [HERE, THERE].map(|node| {
            let instance = format!("test-{}-{number}.{node}", std::process::id());
            Agent::new(node, &instance).expect("an agent starts")
        });
        router_there.register(ServiceId::Job, agents[1].service());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = bind(&dir.path().join("sock")).expect("binds");
        let server = JobServer::new(
            Arc::clone(&agents[0]),
            Arc::clone(&transport) as Arc<dyn Transport>,
            Arc::new(FixedNodes),
        )
        .with_silence(silence);
        tokio::spawn(Arc::new(server).serve(listener));
        Self {
            dir,
            agents,
            transport,
            router_there,
        }
    }

    async fn connect(&self) -> UnixStream {
        let path = self.dir.path().join("sock");
        UnixStream::connect(path).await.expect("the server listens")
    }

    async fn start(&self, request: Request) -> Job {
        self.say(Hello::Run(Box::new(request))).await
    }

    async fn start_with(&self, request: Request, extras: Vec<Extra>) -> Job {
        self.say(Hello::RunWith(Box::new(request), extras)).await
    }

    async fn say(&self, hello: Hello) -> Job {
        let mut stream = self.connect().await;
        let hello = frame(&hello);
        stream.write_all(&hello).await.expect("sends");
        let (reader, writer) = stream.into_split();
        Job::new(reader, writer)
    }

    /// Starts a job by node 2's agent straight away, with what home would vouch for.
    async fn start_vouched(&self, start: Start) -> Job {
        let stream = self.transport.open(THERE, ServiceId::Job).await;
        let ByteStream { reader, mut writer } = stream.expect("opens");
        let first = frame(&ToJob::Start(Box::new(start)));
        writer.write_all(&first).await.expect("sends");
        Job::new(reader, writer)
    }
}

/// A script for `sh` on a node.
fn script(node: NodeId, text: &str) -> Request {
    program(node, &["sh", "-c", text])
}

fn program(node: NodeId, argv: &[&str]) -> Request {
    let path = std::env::var("PATH").expect("PATH is set");
    Request {
        argv: argv
            .iter()
            .map(|arg| Bytes::from(arg.to_string()))
            .collect(),
        env: vec![Bytes::from(format!("PATH={path}"))],
        cwd: Bytes::from_static(b"/"),
        umask: 0o22,
        ignored: 0,
        stdio: [Stdio::Pipe; 3],
        nodes: vec![node],
        npid: 77,
        vnn: 0,
    }
}

/// The owner's end of a job, for tests that look at single frames.
struct Job {
    reader: FrameReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    writer: FrameWriter,
    out: Vec<u8>,
    err: Vec<u8>,
    wire: Vec<u8>,
    /// Bytes of input that may be sent.
    credit: usize,
    input_closed: bool,
    /// How much of the input the job has read.
    input_taken: Option<u64>,
    /// Processes that the kernel has ended for want of memory.
    ended_for_memory: u64,
    pid: u32,
    relayed: bool,
}

impl Job {
    fn new(
        reader: impl tokio::io::AsyncRead + Send + Unpin + 'static,
        writer: impl tokio::io::AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self {
            reader: FrameReader::new(Box::new(reader)),
            writer: FrameWriter::new(writer),
            out: Vec::new(),
            err: Vec::new(),
            wire: Vec::new(),
            credit: INPUT_WINDOW as usize,
            input_closed: false,
            input_taken: None,
            ended_for_memory: 0,
            pid: 0,
            relayed: false,
        }
    }

    async fn send(&self, frame: &ToJob) {
        self.writer.sender().send(frame).await;
    }

    async fn signal(&self, number: i32, group: bool) {
        self.send(&ToJob::Signal { number, group }).await;
    }

    /// Takes the next frame; output is kept, and credit for it given.
    async fn step(&mut self) -> Option<End> {
        let frame = timeout(DEADLINE, self.reader.next(FRAME_BYTES_MAX)).await;
        let frame = frame.unwrap_or_else(|_| {
            panic!(
                "no frame within {DEADLINE:?}; output so far: {:?}",
                self.text()
            )
        });
        match frame
            .expect("well formed")
            .expect("Ended comes before the end")
        {
            FromJob::Started { pid, relayed, .. } => {
                self.pid = pid;
                self.relayed = relayed;
            }
            FromJob::Output { stream, bytes } => {
                let kept = match stream {
                    Stream::Out => &mut self.out,
                    Stream::Err => &mut self.err,
                    Stream::Wire => &mut self.wire,
                    Stream::Other(_) => unreachable!("it has not moved"),
                };
                kept.extend_from_slice(&bytes);
                let bytes = u32::try_from(bytes.len()).expect("small");
                self.send(&ToJob::Credit { stream, bytes }).await;
            }
            FromJob::InputCredit(bytes) => self.credit += bytes as usize,
            FromJob::InputClosed => self.input_closed = true,
            FromJob::InputLeft { taken, .. } => self.input_taken = Some(taken),
            FromJob::OutOfMemory(processes) => self.ended_for_memory = processes,
            FromJob::Ping
            | FromJob::Stopped(_)
            | FromJob::Modes(_)
            | FromJob::InputFromFile
            | FromJob::Note(_)
            | FromJob::InputRead(_)
            | FromJob::Entered { .. }
            | FromJob::Told(_) => {}
            FromJob::Ended(end) => return Some(end),
        }
        None
    }

    async fn until_out_has(&mut self, text: &str) {
        while !self.text().contains(text) {
            let end = self.step().await;
            assert_eq!(
                end,
                None,
                "ended before it wrote {text:?}: {:?}",
                self.text()
            );
        }
    }

    async fn end(&mut self) -> End {
        loop {
            if let Some(end) = self.step().await {
                return end;
            }
        }
    }

    /// Sends all of `input` as credit allows, then its end, and waits for the job's.
    async fn feed(&mut self, mut input: &[u8]) -> End {
        while self.pid == 0 {
            assert_eq!(self.step().await, None, "ended before it started");
        }
        loop {
            if !self.relayed {
                return self.end().await;
            }
            if self.input_closed {
                return self.end().await;
            }
            let len = input.len().min(self.credit).min(DATA_BYTES_MAX);
            if len > 0 {
                let (piece, rest) = input.split_at(len);
                self.send(&ToJob::Input(Bytes::copy_from_slice(piece)))
                    .await;
                self.credit -= len;
                input = rest;
                continue;
            }
            if input.is_empty() {
                self.send(&ToJob::InputEnd).await;
                return self.end().await;
            }
            if let Some(end) = self.step().await {
                return end;
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {DEADLINE:?} until {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Returns whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[track_caller]
fn failed(end: End) -> (Failure, String) {
    match end {
        End::Failed { kind, message } => (kind, message),
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn vouched(request: Request) -> Start {
    Start {
        request,
        credentials: Credentials {
            uid: 12_345,
            gid: 23_456,
            groups: vec![34_567, 45_678],
        },
        limits: vec![Limit {
            resource: libc::RLIMIT_NOFILE,
            soft: 100,
            hard: 200,
        }],
        nice: 5,
    }
}

/// Sends a first frame with descriptors.
fn send_with(stream: &UnixStream, frame: &[u8], descriptors: &[RawFd]) {
    let control = [ControlMessage::ScmRights(descriptors)];
    let pieces = [IoSlice::new(frame)];
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &pieces,
        &control,
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(frame.len()), "the socket has room");
}
