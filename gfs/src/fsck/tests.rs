//! A node's directory as its daemon leaves it, and what fsck says of each damage.

use super::*;
use crate::net::mem::MemNet;
use crate::server::log::{LogConfig, ProposeError, Replicated, seed};
use crate::server::ops::testing::World;
use crate::server::state::{Body, Reply};
use consistency::Timestamp;
use consistency::wire::meta::Op;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

const ME: NodeId = NodeId(1);
/// That of `/d/two`, which has another copy.
const TWO: ChunkId = ChunkId(1);
/// That of `/d/one`, which has none.
const ONE: ChunkId = ChunkId(2);

/// A state with two files that have chunks on node 1.
fn state() -> MetaState {
    let mut world = World::new("mkdir d; touch d/one; touch d/two");
    world.run(&Op::AllocateChunks { count: 7 }).expect("given");
    world.give_chunk("d/two", TWO, &[NodeId(1), NodeId(2)]);
    world.give_chunk("d/one", ONE, &[NodeId(1)]);
    world.state
}

/// A node's directory with that state and its chunks.
fn node_with(state: &MetaState) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    seed(&dir.path().join("meta"), ME, 77, &state.snapshot()).expect("a new log");
    let store = DirStore::open(dir.path().join("chunks")).expect("a new store");
    for chunk in [TWO, ONE] {
        put(&store, chunk);
    }
    dir
}

fn put(store: &DirStore, chunk: ChunkId) {
    let data = [7; 600];
    let crc = crc32fast::hash(&data);
    store.put(chunk, &data, crc).expect("stored");
}

fn chunk_file(dir: &TempDir, chunk: ChunkId) -> PathBuf {
    dir.path().join(format!("chunks/00/{:016x}", chunk.0))
}

/// Damages a sound node and checks that one fault tells of it, with all of `words`.
#[track_caller]
fn check_damage(words: &[&str], damage: impl FnOnce(&TempDir)) {
    let dir = node_with(&state());
    assert_eq!(check(dir.path()).expect("checked").faults, []);
    damage(&dir);
    let before = entries(dir.path());
    let faults = check(dir.path()).expect("checked").faults;
    let lines: Vec<_> = faults.iter().map(Fault::to_string).collect();
    let named = |line: &&String| words.iter().all(|word| line.contains(word));
    assert_eq!(
        lines.iter().filter(named).count(),
        1,
        "{words:?}: {lines:?}"
    );
    assert_eq!(entries(dir.path()), before, "nothing was made or removed");
}

/// What there is beside the log's own database.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for name in [
        "meta",
        "chunks",
        "chunks/00",
        "chunks/tmp",
        "chunks/quarantine",
    ] {
        let list = fs::read_dir(dir.join(name)).into_iter().flatten();
        all.extend(list.map(|entry| entry.expect("listed").path()));
    }
    all.sort();
    all
}

#[test]
fn a_sound_node_has_no_faults() {
    let dir = node_with(&state());
    let expected = Report {
        node: Some(ME),
        index: 77,
        inodes: 4,
        chunks: 2,
        chunk_bytes: 1_200,
        ..Report::default()
    };
    assert_eq!(check(dir.path()).expect("checked"), expected);
}

#[test]
fn damaged_chunks_are_named_with_their_files() {
    check_damage(
        &[
            "chunk 1: checksum",
            "another copy is on node 2",
            "part of /d/two",
            "(D1)",
        ],
        |dir| {
            let path = chunk_file(dir, TWO);
            let mut bytes = fs::read(&path).expect("read");
            *bytes.last_mut().expect("not empty") ^= 1;
            fs::write(&path, bytes).expect("written");
        },
    );
    check_damage(
        &[
            "chunk 2: no such chunk",
            "only copy",
            "part of /d/one",
            "(D1)",
        ],
        |dir| fs::remove_file(chunk_file(dir, ONE)).expect("removed"),
    );
    check_damage(&["chunk 2: it has 100 bytes instead of 600"], |dir| {
        fs::remove_file(chunk_file(dir, ONE)).expect("removed");
        let store = DirStore::open(dir.path().join("chunks")).expect("opened");
        let crc = crc32fast::hash(&[7; 100]);
        store.put(ONE, &[7; 100], crc).expect("stored");
    });
    check_damage(&["chunks/00/readme is no chunk"], |dir| {
        fs::write(dir.path().join("chunks/00/readme"), "").expect("written");
    });
    check_damage(&["01/0000000000000002 is no chunk"], |dir| {
        let misplaced = dir.path().join("chunks/01/0000000000000002");
        fs::copy(chunk_file(dir, ONE), misplaced)
            .map(drop)
            .expect("copied");
    });
    check_damage(&["chunks: cannot be read", "list the chunks"], |dir| {
        fs::remove_dir(dir.path().join("chunks/77")).expect("removed");
    });
}

#[test]
fn chunks_of_nobody_are_counted() {
    let dir = node_with(&state());
    let store = DirStore::open(dir.path().join("chunks")).expect("opened");
    // Given to the session, which may flush it yet; given to nobody; not given out yet, as far as this log goes.
    for chunk in [ChunkId(3), ChunkId(99)] {
        put(&store, chunk);
    }
    drop(store);
    assert_eq!(check(dir.path()).expect("checked").orphans, 0);
    let mut ended = state();
    let session = ended.sessions().next().expect("there is one").0;
    ended.apply(&Command {
        now: Timestamp::default(),
        body: Body::EndSession(session),
    });
    fs::remove_dir_all(dir.path().join("meta")).expect("removed");
    seed(&dir.path().join("meta"), ME, 77, &ended.snapshot()).expect("a new log");
    let report = check(dir.path()).expect("checked");
    assert_eq!((report.orphans, report.faults), (1, Vec::new()));
}

#[test]
fn a_damaged_log_is_told_and_the_chunks_are_read_all_the_same() {
    check_damage(&["log: ", "MARK is corrupt", "missing"], |dir| {
        fs::remove_file(dir.path().join("meta/MARK")).expect("removed");
    });
    check_damage(&["log: ", "no snapshot is there"], |dir| {
        let snapshot = dir.path().join("meta/snapshot-00000000000000000077");
        fs::remove_file(snapshot).expect("removed");
    });
    check_damage(&["log: ", "is corrupt", "checksum"], |dir| {
        let snapshot = dir.path().join("meta/snapshot-00000000000000000077");
        let mut bytes = fs::read(&snapshot).expect("read");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&snapshot, bytes).expect("written");
    });
    let dir = node_with(&state());
    fs::remove_dir_all(dir.path().join("meta/log")).expect("removed");
    fs::remove_file(chunk_file(&dir, ONE)).expect("removed");
    let path = chunk_file(&dir, TWO);
    fs::write(path, "x").expect("written");
    let report = check(dir.path()).expect("checked");
    let lines: Vec<_> = report.faults.iter().map(Fault::to_string).collect();
    assert!(
        lines[0].contains("log") && lines[0].contains("is missing"),
        "{lines:?}"
    );
    assert!(lines[1].contains("chunk 1: checksum"), "{lines:?}");
}

#[test]
fn a_broken_rule_is_named() {
    let mut broken = state();
    broken.inode_mut(consistency::InodeNo::ROOT).attr.nlink = 9;
    let dir = node_with(&broken);
    let faults = check(dir.path()).expect("checked").faults;
    let lines: Vec<_> = faults.iter().map(Fault::to_string).collect();
    assert_eq!(lines, ["metadata: inode 1: counts 9 links of 3 (T3)"]);
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let nothing = tempfile::tempdir().expect("a temporary directory");
    let refused = check(nothing.path())
        .expect_err("there is nothing")
        .to_string();
    assert!(refused.contains("state directory"), "{refused}");
    assert_eq!(fs::read_dir(nothing.path()).expect("listed").count(), 0);
    let dir = node_with(&state());
    let store = DirStore::open(dir.path().join("chunks")).expect("opened");
    let refused = check(dir.path()).expect_err("in use").to_string();
    assert!(refused.contains("in use"), "{refused}");
    drop(store);
    let format = dir.path().join("chunks/FORMAT");
    fs::write(format, "glu chunk store, version 99\n").expect("written");
    let refused = check(dir.path()).expect_err("from the future").to_string();
    assert!(refused.contains("install a newer glud"), "{refused}");
}

/// What lies in the log behind the snapshot counts as well: a seeded log takes commands as any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_behind_the_snapshot_is_applied() {
    let dir = node_with(&state());
    let (transport, router) = MemNet::default().join(ME);
    let config = LogConfig {
        node: ME,
        voters: vec![ME],
        dir: dir.path().join("meta"),
        heartbeat: Duration::from_millis(50),
        election: (Duration::from_millis(250), Duration::from_millis(500)),
        snapshot_every: LogConfig::SNAPSHOT_EVERY,
        snapshot_bytes: LogConfig::SNAPSHOT_BYTES,
    };
    let log: Replicated<MetaState> = Replicated::open(config, transport, &router)
        .await
        .expect("a seeded log is a log");
    let mut leadership = log.leadership();
    let ready = leadership.wait_for(|leadership| leadership.ready);
    drop(ready.await.expect("a lone voter leads"));
    let in_use = check(dir.path()).expect_err("in use").to_string();
    assert!(in_use.contains("another process"), "{in_use}");
    let body = Body::Drain {
        node: ME,
        drain: true,
    };
    let command = Command {
        now: Timestamp::default(),
        body,
    };
    let commit = async {
        // The proposer may hear of the leadership after this test does.
        loop {
            match log.propose(command.clone()).await {
                Err(ProposeError::NotLeader(_)) => tokio::task::yield_now().await,
                outcome => return outcome,
            }
        }
    };
    let reply = tokio::time::timeout(Duration::from_secs(10), commit).await;
    assert_eq!(reply.expect("in time"), Ok(Reply::Done));
    log.shutdown().await;
    let log = log::at_rest::<MetaState>(&dir.path().join("meta")).expect("readable");
    assert!(log.state.draining().contains(&ME));
    assert!(log.index > 77, "{}", log.index);
    assert_eq!(log.voters, [ME]);
    assert_eq!(check(dir.path()).expect("checked").faults, []);
}
