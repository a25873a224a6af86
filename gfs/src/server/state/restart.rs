//! How long a voter takes to be back with very many inodes: `RESTART_INODES` sets how many.

use super::*;
use crate::net::mem::MemNet;
use crate::server::log::{LogConfig, ProposeError, Replicated};
use consistency::wire::meta::{Name, NewNode, Op};
use futures::StreamExt;
use std::path::Path;
use std::time::{Duration, Instant};

const NODE: NodeId = NodeId(1);
/// Commands under way while the tree is made.
const WIDTH: usize = 4_096;
const PAUSE: Duration = Duration::from_millis(20);
const NAMES_PER_DIRECTORY: u64 = 1_000;

async fn open(dir: &Path, snapshot_every: u64) -> Replicated<MetaState> {
    let (transport, router) = MemNet::default().join(NODE);
    let config = LogConfig {
        node: NODE,
        voters: vec![NODE],
        dir: dir.into(),
        heartbeat: Duration::from_millis(80),
        election: (Duration::from_millis(350), Duration::from_millis(500)),
        snapshot_every,
        snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
    };
    let log = Replicated::open(config, transport, &router).await;
    let log = log.expect("the directory is sound");
    let mut leadership = log.leadership();
    let ready = leadership.wait_for(|now| now.ready);
    let ready = tokio::time::timeout(Duration::from_secs(600), ready);
    drop(ready.await.expect("the lone voter leads"));
    log
}

async fn commit(log: &Replicated<MetaState>, body: Body) {
    let now = Timestamp::default();
    loop {
        let body = body.clone();
        match log.propose(Command { now, body }).await {
            Ok(_) => return,
            // The first election is hardly over, or the machine stood still.
            Err(ProposeError::NotLeader(_)) => tokio::time::sleep(PAUSE).await,
            Err(error) => panic!("{error}"),
        }
    }
}

fn create(seq: u64, parent: InodeNo, node: NewNode) -> Body {
    Body::Change {
        session: SessionId(1),
        seq: OpSeq(seq),
        done_below: OpSeq(seq.saturating_sub(WIDTH as u64 * 2)),
        op: Op::Create {
            parent,
            name: Some(Name::new(format!("name-{seq}")).expect("valid")),
            node,
            mode: 0o755,
            umask: 0,
            uid: 0,
            gid: 0,
            exclusive: true,
        },
    }
}

/// Returns the name of the newest finished snapshot.
fn newest_snapshot(dir: &Path) -> Option<String> {
    let entries = std::fs::read_dir(dir).expect("list");
    let names = entries.map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.to_string_lossy().into_owned()
    });
    let finished = |name: &String| name.starts_with("snapshot-") && !name.ends_with(".tmp");
    names.filter(finished).max()
}

#[test]
#[ignore = "it takes long in a build for development; its figures are in docs/results/numbers.md"]
fn a_snapshot_is_measured() {
    let inodes = std::env::var("RESTART_INODES");
    let inodes: u64 = inodes.map_or(1_000_000, |n| n.parse().expect("a number"));
    let dirs = inodes / NAMES_PER_DIRECTORY;
    let mut state = MetaState::default();
    let mut apply = |body| {
        state.apply(&Command {
            now: Timestamp::default(),
            body,
        });
    };
    apply(Body::OpenSession {
        node: NODE,
        attempt: 1,
    });
    let began = Instant::now();
    for seq in 1..=inodes {
        let made = if seq <= dirs {
            create(seq, InodeNo::ROOT, NewNode::Dir)
        } else {
            let parent = InodeNo(InodeNo::ROOT.0 + 1 + seq % dirs);
            create(seq, parent, NewNode::File)
        };
        apply(made);
    }
    println!("{inodes} inodes made in {:?}", began.elapsed());
    let began = Instant::now();
    let copy = state.clone();
    println!("copied in {:?}", began.elapsed());
    let began = Instant::now();
    drop(copy);
    println!("dropped in {:?}", began.elapsed());
    let began = Instant::now();
    let bytes = state.snapshot();
    println!("{} bytes encoded in {:?}", bytes.len(), began.elapsed());
    let began = Instant::now();
    let restored = MetaState::restore(&bytes).expect("it is whole");
    println!("decoded in {:?}", began.elapsed());
    assert!(restored == state, "the state comes back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; its figures are in docs/results/numbers.md"]
async fn a_restart_is_measured() {
    let inodes = std::env::var("RESTART_INODES");
    let inodes: u64 = inodes.map_or(1_000_000, |n| n.parse().expect("a number"));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = open(dir.path(), LogConfig::SNAPSHOT_EVERY).await;
    let session = Body::OpenSession {
        node: NODE,
        attempt: 1,
    };
    commit(&log, session).await;
    let began = Instant::now();
    let dirs = inodes / NAMES_PER_DIRECTORY;
    for seq in 1..=dirs {
        commit(&log, create(seq, InodeNo::ROOT, NewNode::Dir)).await;
    }
    let files = (dirs + 1..=inodes).map(|seq| {
        let parent = InodeNo(InodeNo::ROOT.0 + 1 + seq % dirs);
        commit(&log, create(seq, parent, NewNode::File))
    });
    let files = futures::stream::iter(files).buffered(WIDTH);
    files.collect::<()>().await;
    let made = log.read(|state| state.counts().inodes);
    println!("{made} inodes made in {:?}", began.elapsed());
    log.shutdown().await;
    drop(log);

    let began = Instant::now();
    let older = newest_snapshot(dir.path());
    let log = open(dir.path(), 1).await;
    println!("restart from {older:?} and the log: {:?}", began.elapsed());
    assert_eq!(log.read(|state| state.counts().inodes), made);
    let end = Instant::now() + Duration::from_secs(600);
    let (mut seq, mut times) = (inodes, Vec::new());
    while newest_snapshot(dir.path()) == older {
        assert!(Instant::now() < end, "no snapshot is made");
        seq += 1;
        let began = Instant::now();
        commit(&log, create(seq, InodeNo::ROOT, NewNode::File)).await;
        times.push(began.elapsed());
    }
    let longest = times.iter().max().expect("some were made");
    println!("while a snapshot is made a command takes {longest:?} at most");
    let made = log.read(|state| state.counts().inodes);
    log.shutdown().await;
    drop(log);

    let began = Instant::now();
    let log = open(dir.path(), LogConfig::SNAPSHOT_EVERY).await;
    println!("restart from a snapshot: {:?}", began.elapsed());
    assert_eq!(log.read(|state| state.counts().inodes), made);
    log.shutdown().await;
}
