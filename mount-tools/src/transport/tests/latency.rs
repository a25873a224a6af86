//! What a call costs, between two processes on loopback; the decision it led to is docs/decisions/0005.
//!
//! `cargo test --release -p mount-tools -- --ignored transport_latency --nocapture`

use super::*;
use crate::identity::{CA_CERT_FILE, NODE_CERT_FILE, NODE_KEY_FILE};
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const ROUNDS: usize = 5;
const SMALL: [u8; 64] = [0; 64];

/// Tells the second process where its identity is.
const PEER_DIR: &str = "GLU_LATENCY_PEER_DIR";

/// Median and 99th percentile in microseconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
    (at(50), at(99))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One call at a time.
async fn one_at_a_time(node: &Node, service: ServiceId) -> (f64, f64) {
    let mut times = Vec::new();
    for _ in 0..4_000 {
        let started = Instant::now();
        node.ask(2, service, &SMALL[..]).await.expect("answered");
        times.push(started.elapsed());
    }
    percentiles(times)
}

/// Calls per second with so many in flight.
async fn in_flight(node: &Node, width: usize, calls: u32, service: ServiceId, body: Bytes) -> f64 {
    let started = Instant::now();
    let mut flying = FuturesUnordered::new();
    for _ in 0..calls {
        if flying.len() == width {
            flying.next().await;
        }
        let body = body.clone();
        flying.push(async move { node.ask(2, service, body).await.expect("answered") });
    }
    while flying.next().await.is_some() {}
    f64::from(calls) / started.elapsed().as_secs_f64()
}

/// The same question and answer over bare TCP between two threads: what this machine is able to do.
fn tcp_at_a_time() -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        stream.set_nodelay(true).expect("TCP");
        let mut body = SMALL;
        while stream.read_exact(&mut body).is_ok() {
            stream.write_all(&body).expect("open");
        }
    });
    let mut stream = TcpStream::connect(addr).expect("listening");
    stream.set_nodelay(true).expect("TCP");
    let mut body = SMALL;
    let mut times = Vec::new();
    for _ in 0..4_000 {
        let started = Instant::now();
        stream.write_all(&body).expect("open");
        stream.read_exact(&mut body).expect("open");
        times.push(started.elapsed());
    }
    percentiles(times)
}

/// The second process: prints its address and answers until its input ends.
fn be_the_peer(dir: &Path) {
    let file = |name| dir.join(name);
    let identity = NodeIdentity::load(
        NodeId(2),
        &file(CA_CERT_FILE),
        &file(NODE_CERT_FILE),
        &file(NODE_KEY_FILE),
    );
    let node = Node::start(identity.expect("stored"), 0);
    let count = service(|_, body| {
        Box::pin(async move { Some(Bytes::copy_from_slice(&body.len().to_le_bytes())) })
    });
    node.router.register(ServiceId::Meta, count);
    node.router
        .register(ServiceId::Callback, Arc::new(Prompt(echo())));
    println!("\naddr {}", node.addr());
    let mut rest = Vec::new();
    io::stdin().read_to_end(&mut rest).expect("a pipe");
}

fn start_peer(dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().expect("a file"))
        .args(["--ignored", "--nocapture", "transport_latency"])
        .env(PEER_DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let addr = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("addr ")?.parse().ok());
    (child, addr.expect("the peer says where it is"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn transport_latency() {
    if let Some(dir) = std::env::var_os(PEER_DIR) {
        return be_the_peer(Path::new(&dir));
    }
    let ca = ClusterCa::for_test();
    let dir = tempfile::tempdir().expect("a directory");
    let issue = |id| ca.issue(NodeId(id)).expect("in range");
    issue(2).store(dir.path()).expect("an empty directory");
    let (mut peer, addr) = start_peer(dir.path());
    let one = Node::start(issue(1), 0);
    one.transport.set_peers([(NodeId(2), addr)]);

    let large = Bytes::from(vec![0; 1 << 20]);
    let small = Bytes::from_static(&SMALL);
    in_flight(&one, 64, 20_000, ServiceId::Chunk, small.clone()).await;
    let mut tcp = vec![];
    let (mut single, mut many) = (vec![], vec![]);
    let (mut prompt_single, mut prompt_many) = (vec![], vec![]);
    let (mut bulk, mut bulk_4) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        tcp.push(tcp_at_a_time());
        let (spawned, prompt) = (ServiceId::Chunk, ServiceId::Callback);
        single.push(one_at_a_time(&one, spawned).await);
        prompt_single.push(one_at_a_time(&one, prompt).await);
        many.push(in_flight(&one, 64, 40_000, spawned, small.clone()).await);
        prompt_many.push(in_flight(&one, 64, 40_000, prompt, small.clone()).await);
        bulk.push(in_flight(&one, 1, 300, ServiceId::Meta, large.clone()).await);
        bulk_4.push(in_flight(&one, 4, 300, ServiceId::Meta, large.clone()).await);
    }
    let call = |all: &[(f64, f64)]| {
        let p50 = median(all.iter().map(|(p50, _)| *p50));
        let p99 = median(all.iter().map(|(_, p99)| *p99));
        format!("p50 {p50:.1} us, p99 {p99:.1} us")
    };
    let rate = |all: &[f64]| median(all.iter().copied());
    println!("bare TCP:        {}", call(&tcp));
    println!(
        "service spawned: {}; 64 at once: {:.0}/s",
        call(&single),
        rate(&many)
    );
    println!(
        "service prompt:  {}; 64 at once: {:.0}/s",
        call(&prompt_single),
        rate(&prompt_many)
    );
    let mb = |all: &[f64]| rate(all) * 1.048_576;
    println!(
        "1 MiB: {:.0} MB/s; 4 at once: {:.0} MB/s",
        mb(&bulk),
        mb(&bulk_4)
    );
    drop(peer.stdin.take());
    peer.wait().expect("it ends with its input");
}
