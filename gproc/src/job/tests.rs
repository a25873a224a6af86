//! Jobs through a real unix socket and a network in memory: two nodes in one process, which must be root's.

use super::agent::Agent;
use super::frame::{FrameReader, FrameWriter};
use super::protocol::*;
use super::server::{JobServer, bind};
use super::view::Nodes;
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::meta::{NodeReport, NodeStatus};
use consistency::wire::node::NodeLoad;
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
            .map(|node| NodeStatus {
                node,
                up: true,
                report,
            })
            .into())
    }
}

impl Cluster {
    fn new() -> Self {
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
        .with_silence(Duration::from_millis(500));
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
        let mut stream = self.connect().await;
        let hello = frame(&Hello::Run(Box::new(request)));
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
    /// Bytes of input that may be sent.
    credit: usize,
    input_closed: bool,
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
            credit: INPUT_WINDOW as usize,
            input_closed: false,
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
                };
                kept.extend_from_slice(&bytes);
                let bytes = u32::try_from(bytes.len()).expect("small");
                self.send(&ToJob::Credit { stream, bytes }).await;
            }
            FromJob::InputCredit(bytes) => self.credit += bytes as usize,
            FromJob::InputClosed => self.input_closed = true,
            FromJob::Ping => {}
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_as_its_program_does() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        for (text, expected) in [
            ("exit 0", End::Exited(0)),
            ("exit 3", End::Exited(3)),
            ("exit 255", End::Exited(255)),
            ("kill -TERM $$", End::Killed(libc::SIGTERM)),
            ("kill -KILL $$", End::Killed(libc::SIGKILL)),
            ("kill -40 $$", End::Killed(40)),
        ] {
            let end = cluster.start(script(node, text)).await.end().await;
            assert_eq!(end, expected, "{text} on {node}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_stay_apart_and_are_complete() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let text = "echo out; echo err >&2; echo $GLU_NODE $GLU_NPID $GLU_VNN";
        let mut job = cluster.start(script(node, text)).await;
        assert_eq!(job.end().await, End::Exited(0));
        assert_eq!(job.text(), format!("out\n{node} 77 0\n"));
        assert_eq!(job.err, b"err\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_for_both_outputs_keeps_the_order() {
    let cluster = Cluster::new();
    let mut request = script(THERE, "for i in 1 2 3; do echo o$i; echo e$i >&2; done");
    request.stdio[2] = Stdio::SameAsOut;
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Exited(0));
    assert_eq!(job.text(), "o1\ne1\no2\ne2\no3\ne3\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_passes_unchanged() {
    let cluster = Cluster::new();
    let input: Vec<u8> = (0..8_u32 << 18)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    for node in [HERE, THERE] {
        let mut job = cluster.start(program(node, &["cat"])).await;
        assert_eq!(job.feed(&input).await, End::Exited(0));
        assert!(job.out == input, "cat on {node} changed its input");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_input_is_bounded_and_does_not_keep_the_job() {
    let cluster = Cluster::new();
    let mut job = cluster.start(script(THERE, "read line; echo $line")).await;
    let input = b"first\n".repeat(1 << 20);
    assert_eq!(job.feed(&input).await, End::Exited(0));
    assert_eq!(job.out, b"first\n");

    let mut job = cluster
        .start(script(THERE, "exec <&-; echo closed; sleep 600"))
        .await;
    job.until_out_has("closed").await;
    job.send(&ToJob::Input(Bytes::from_static(b"x"))).await;
    while !job.input_closed {
        assert_eq!(job.step().await, None);
    }
    job.signal(libc::SIGTERM, true).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGTERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_devices_are_not_carried() {
    let cluster = Cluster::new();
    let text = "for fd in 0 1 2; do readlink /proc/self/fd/$fd >&3; done 3>\"$OUT\"";
    let file = cluster.dir.path().join("links");
    let mut request = script(THERE, text);
    let variable = format!("OUT={}", file.display());
    request.env.push(Bytes::from(variable));
    request.stdio = [Stdio::Null; 3];
    assert_eq!(cluster.start(request).await.end().await, End::Exited(0));
    let links = std::fs::read_to_string(file).expect("the job wrote it");
    assert_eq!(links.lines().next(), Some("/dev/null"));
    assert_eq!(links.lines().nth(2), Some("/dev/null"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_program_or_its_group() {
    let cluster = Cluster::new();
    let text = "trap 'echo got; exit 7' USR1; sleep 600 & echo ready; wait";
    for node in [HERE, THERE] {
        let mut job = cluster.start(script(node, text)).await;
        job.until_out_has("ready").await;
        job.signal(libc::SIGUSR1, false).await;
        assert_eq!(job.end().await, End::Exited(7), "on {node}");
        assert_eq!(job.text(), "ready\ngot\n");
    }
    let mut job = cluster
        .start(script(
            THERE,
            "trap '' INT; echo ready; sleep 600; echo woken",
        ))
        .await;
    job.until_out_has("ready").await;
    job.signal(libc::SIGTERM, true).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGTERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ignored_signals_stay_ignored_and_others_have_their_default() {
    let cluster = Cluster::new();
    let mut request = script(THERE, "kill -HUP $$; echo alive; kill -PIPE $$");
    request.ignored = 1 << (libc::SIGHUP - 1);
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Killed(libc::SIGPIPE));
    assert_eq!(job.text(), "alive\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_stops_the_job_but_not_its_signals() {
    let cluster = Cluster::new();
    let mut job = cluster.start(program(THERE, &["yes"])).await;
    let mut got = 0;
    // No credit is given, so the window is all that comes.
    while got < OUTPUT_WINDOW as usize {
        let frame = timeout(DEADLINE, job.reader.next::<FromJob>(FRAME_BYTES_MAX)).await;
        match frame
            .expect("in time")
            .expect("well formed")
            .expect("not over")
        {
            FromJob::Output { bytes, .. } => got += bytes.len(),
            FromJob::Started { .. } | FromJob::Ping => {}
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(got, OUTPUT_WINDOW as usize);
    job.signal(libc::SIGTERM, false).await;
    job.send(&ToJob::Closed(Stream::Out)).await;
    assert!(matches!(job.end().await, End::Killed(_)));
    assert!(job.out.is_empty(), "more than the window came");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_output_is_sigpipe_for_the_job() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let mut job = cluster.start(program(node, &["yes"])).await;
        job.until_out_has("y\n").await;
        job.send(&ToJob::Closed(Stream::Out)).await;
        assert_eq!(job.end().await, End::Killed(libc::SIGPIPE));
    }
}

/// Starts a daemonised grandchild, which ignores what can be ignored; the test gets its pid as the first line.
const DAEMONISED: &str =
    "setsid sh -c 'trap \"\" HUP TERM; (echo $$; exec sleep 600) & exec sleep 600' & ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_owner() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        let text = format!("{DAEMONISED} wait");
        let mut job = cluster.start(script(node, &text)).await;
        job.until_out_has("\n").await;
        let grandchild = job.text().trim().to_owned();
        let program = job.pid.to_string();
        assert!(runs(&grandchild) && runs(&program));
        drop(job);
        wait_until("the owner's end has ended the job", || {
            !runs(&grandchild) && !runs(&program)
        })
        .await;
    }
    wait_until("no guest is counted", || cluster.agents[1].guests() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_outlives_its_program() {
    let cluster = Cluster::new();
    let text = format!("{DAEMONISED} read x; exit 4");
    let mut job = cluster.start(script(THERE, &text)).await;
    job.until_out_has("\n").await;
    let grandchild = job.text().trim().to_owned();
    assert_eq!(job.feed(b"x\n").await, End::Exited(4));
    assert!(!runs(&grandchild), "it ends before its job is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_jobs_at_once() {
    let cluster = Cluster::new();
    let all = (0..100).map(|vnn: u32| {
        let mut request = script(HERE, "echo $GLU_VNN; exit 5");
        request.nodes.clear();
        request.vnn = vnn;
        let cluster = &cluster;
        async move {
            let mut job = cluster.start(request).await;
            assert_eq!(job.end().await, End::Exited(5));
            assert_eq!(job.text(), format!("{vnn}\n"));
        }
    });
    futures::future::join_all(all).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_its_owners_attributes() {
    let cluster = Cluster::new();
    let text = "pwd; umask; id -u; id -g; id -G; ulimit -Sn; ulimit -Hn; nice; echo $A";
    let mut request = script(THERE, text);
    request.cwd = Bytes::from_static(b"/usr/bin");
    request.umask = 0o27;
    request.env.push(Bytes::from_static(b"A=some thing"));
    let mut job = cluster.start_vouched(vouched(request)).await;
    assert_eq!(job.end().await, End::Exited(0));
    assert_eq!(
        job.text(),
        "/usr/bin\n0027\n12345\n23456\n23456 34567 45678\n100\n200\n5\nsome thing\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_may_do_what_its_user_may() {
    let cluster = Cluster::new();
    let mut job = cluster
        .start_vouched(vouched(script(THERE, "cat /etc/shadow")))
        .await;
    assert_eq!(job.end().await, End::Exited(1));
    let dir = cluster.dir.path().join("private");
    std::fs::create_dir(&dir).expect("makes a directory");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&dir, private).expect("closes it");
    let mut request = script(THERE, "true");
    request.cwd = Bytes::from(dir.display().to_string());
    let mut job = cluster.start_vouched(vouched(request)).await;
    let (kind, message) = failed(job.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(message.contains("Permission denied"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_tells_who_asks() {
    let cluster = Cluster::new();
    let own = std::process::Command::new("id").arg("-G").output();
    let own = String::from_utf8(own.expect("id runs").stdout).expect("numbers");
    let mut job = cluster.start(script(THERE, "id -G; ulimit -Hn")).await;
    assert_eq!(job.end().await, End::Exited(0));
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("own limit");
    assert_eq!(job.text(), format!("{own}{files}\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_is_told() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path().to_owned();
    std::fs::write(dir.join("data"), "no program").expect("writes");
    let at = |name: &str| dir.join(name).display().to_string();
    for node in [HERE, THERE] {
        for (argv0, expected, message) in [
            ("no-such-program", Failure::NotFound, "No such file"),
            ("/no/such/program", Failure::NotFound, "No such file"),
            ("", Failure::NotFound, "no program"),
            (&*at("data"), Failure::NotExecutable, "Permission denied"),
            ("/etc", Failure::NotExecutable, "Permission denied"),
        ] {
            let mut job = cluster.start(program(node, &[argv0])).await;
            let (kind, text) = failed(job.end().await);
            assert_eq!(kind, expected, "{argv0}");
            assert!(text.contains(message), "{text}");
        }
    }
    let mut request = script(THERE, "true");
    request.cwd = Bytes::from_static(b"/no/such/directory");
    let (kind, text) = failed(cluster.start(request).await.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(
        text.starts_with("cannot enter /no/such/directory on node 2: No such"),
        "{text}"
    );
    let mut job = cluster.start(script(NodeId(9), "true")).await;
    let (kind, text) = failed(job.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(text.contains("node 9 is not in the cluster"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_found_in_the_jobs_own_path() {
    let cluster = Cluster::new();
    let tool = cluster.dir.path().join("tool");
    // Without an interpreter: the shell runs it, as it would here.
    std::fs::write(&tool, "echo tool $1; exit 6").expect("writes");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&tool, executable).expect("makes it executable");
    let mut request = program(THERE, &["tool", "arg"]);
    request.env = vec![Bytes::from_static(b"PATH=/no/such:")];
    request.cwd = Bytes::from(cluster.dir.path().display().to_string());
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Exited(6));
    assert_eq!(job.text(), "tool arg\n");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_job_gets_the_owners_own_descriptors() {
    let cluster = Cluster::new();
    let null = File::open("/dev/null").expect("exists");
    let mut file = tempfile::tempfile().expect("a file");
    for (node, direct) in [(HERE, true), (THERE, false)] {
        let stream = cluster.connect().await;
        let hello = frame(&Hello::Run(Box::new(script(
            node,
            "echo direct; cat; echo e >&2",
        ))));
        let fds = [null.as_raw_fd(), file.as_raw_fd(), file.as_raw_fd()];
        send_with(&stream, &hello, &fds);
        let (reader, writer) = stream.into_split();
        let mut job = Job::new(reader, writer);
        assert_eq!(job.feed(b"").await, End::Exited(0));
        let mut text = String::new();
        file.rewind().expect("seeks");
        file.read_to_string(&mut text).expect("reads");
        file.set_len(0).expect("truncates");
        file.rewind().expect("seeks");
        let expected = if direct {
            ("direct\ne\n", "")
        } else {
            ("", "direct\n")
        };
        assert_eq!((&*text, &*job.text()), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_owners_cost_their_connection_only() {
    let cluster = Cluster::new();
    let null = File::open("/dev/null").expect("exists");
    let run = frame(&Hello::Run(Box::new(script(HERE, "sleep 600"))));
    for (first, descriptors) in [
        (&b"\xff\xff\xff\xff"[..], 0),
        (b"\x01\0\0\0\x63", 0),
        (b"", 0),
        (&run, 1),
        (&run, 4),
        (&run, 64),
    ] {
        let mut stream = cluster.connect().await;
        if descriptors > 0 {
            send_with(&stream, first, &vec![null.as_raw_fd(); descriptors]);
        } else {
            stream.write_all(first).await.expect("sends");
        }
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        let closed = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
        // A reset is as good as an end.
        closed.expect("the server closes the connection").ok();
        assert_eq!(answer, b"", "{first:?} with {descriptors} descriptors");
    }

    let too_much = ToJob::Input(Bytes::from(vec![0; DATA_BYTES_MAX]));
    let credit = ToJob::Credit {
        stream: Stream::Out,
        bytes: u32::MAX,
    };
    let start = ToJob::Start(Box::new(vouched(script(THERE, "true"))));
    for node in [HERE, THERE] {
        for (frame, times) in [
            // More than the window and what the pipe takes.
            (&too_much, 9),
            (&credit, 1),
            (&start, 1),
            (&ToJob::Input(Bytes::new()), 1),
        ] {
            let mut job = cluster.start(script(node, "echo $$; sleep 600")).await;
            job.until_out_has("\n").await;
            for _ in 0..times {
                job.send(frame).await;
            }
            let pid = job.text().trim().to_owned();
            wait_until("the job of a hostile owner has ended", || !runs(&pid)).await;
        }
    }
    let mut job = cluster.start(script(HERE, "echo up; read x; exit 9")).await;
    job.until_out_has("up").await;
    job.signal(-1, false).await;
    job.signal(1_000_000, true).await;
    assert_eq!(
        job.feed(b"").await,
        End::Exited(9),
        "the server still serves"
    );
}

/// Accepts a job, says that it runs, and then nothing; keeps the stream or drops it.
struct Mute {
    keep: bool,
}

#[async_trait]
impl Service for Mute {
    async fn call(&self, _from: NodeId, _body: Bytes) -> Option<Bytes> {
        None
    }

    async fn accept(&self, _from: NodeId, mut stream: ByteStream) {
        let started = FromJob::Started {
            node: THERE,
            pid: 1,
            relayed: true,
        };
        stream.writer.write_all(&frame(&started)).await.ok();
        if self.keep {
            // Takes what comes and never answers.
            let mut nowhere = tokio::io::sink();
            tokio::io::copy(&mut stream.reader, &mut nowhere).await.ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_host_is_told() {
    let cluster = Cluster::new();
    for (keep, why) in [
        (true, "nothing came from it"),
        (false, "its daemon has ended"),
    ] {
        cluster
            .router_there
            .register(ServiceId::Job, Arc::new(Mute { keep }));
        let mut job = cluster.start(script(THERE, "true")).await;
        let (kind, text) = failed(job.end().await);
        assert_eq!(kind, Failure::Cluster);
        assert!(text.starts_with("node 2 was lost with the job: "), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told() {
    let cluster = Cluster::new();
    let mut stream = cluster.connect().await;
    stream
        .write_all(&frame(&Hello::Nodes))
        .await
        .expect("sends");
    let mut answer = Vec::new();
    let read = timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    read.expect("in time").expect("reads");
    let nodes = read_frame::<NodesReply>(&mut &*answer, FIRST_BYTES_MAX);
    let nodes = nodes
        .expect("well formed")
        .expect("a reply")
        .expect("known");
    let nodes: Vec<_> = nodes
        .iter()
        .map(|(node, up, load)| (*node, *up, load.cpus))
        .collect();
    assert_eq!(nodes, [(HERE, true, 2), (THERE, true, 2)]);
}

#[test]
fn a_socket_that_was_left_is_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let _context = runtime.enter();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path: &Path = &dir.path().join("sock");
    drop(bind(path).expect("binds"));
    bind(path).expect("binds again");
}

/// Prints what a job costs; `cargo test -- --nocapture latency`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency_of_a_null_job() {
    let cluster = Cluster::new();
    let rounds = 50;
    let mut line = String::new();
    let start = Instant::now();
    for _ in 0..rounds {
        let status = std::process::Command::new("true").status();
        assert!(status.expect("runs").success());
    }
    line += &format!("local spawn {:?}", start.elapsed() / rounds);
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.expect("exists");
    for (node, direct) in [(HERE, true), (HERE, false), (THERE, false)] {
        let start = Instant::now();
        for _ in 0..rounds {
            let mut job = if direct {
                let stream = cluster.connect().await;
                let hello = frame(&Hello::Run(Box::new(program(node, &["true"]))));
                send_with(&stream, &hello, &[null.as_raw_fd(); 3]);
                let (reader, writer) = stream.into_split();
                Job::new(reader, writer)
            } else {
                cluster.start(program(node, &["true"])).await
            };
            assert_eq!(job.end().await, End::Exited(0));
        }
        let kind = if direct { "own descriptors" } else { "pipes" };
        line += &format!(", node {node} with {kind} {:?}", start.elapsed() / rounds);
    }
    println!("null job: {line}");
}
