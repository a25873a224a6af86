use super::*;
use crate::data::store::{DirStore, OpenError};
use crate::data::testing::{Cluster, TestPlaces, bytes, eventually, serve};
use crate::data::{BLOCK_BYTES, ChunkStore};
use crate::net::mem::MemNet;
use consistency::wire::chunk::ChunkReply;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ID: ChunkId = ChunkId(1);

fn nodes(ids: &[u16]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// Writes a chunk from `client` and expects it on exactly the nodes `expected`, whole and readable by node 1.
#[track_caller]
fn check_stored(
    cluster: &Cluster,
    result: Result<Vec<NodeId>, Errno>,
    data: &Bytes,
    expected: &[u16],
) {
    assert_eq!(result, Ok(nodes(expected)));
    for node in expected {
        let there = cluster.node(*node).store.get(ID, 0, CHUNK_BYTES_MAX);
        assert_eq!(there.as_ref(), Ok(data), "on node {node}");
    }
}

#[tokio::test]
async fn write_stores_here_and_elsewhere() {
    let data = bytes(100_000);
    for (count, replicas, expected) in [
        (1, 2, &[1][..]),
        (3, 1, &[1]),
        (3, 2, &[1, 2]),
        (3, 3, &[1, 2, 3]),
        (2, 3, &[1, 2]),
    ] {
        let mut cluster = Cluster::new(count);
        cluster.config.replicas = replicas;
        let result = cluster.client(1).write(ID, data.clone(), 0).await;
        check_stored(&cluster, result, &data, expected);
    }
    let cluster = Cluster::new(3);
    check_stored(
        &cluster,
        cluster.client(3).write(ID, data.clone(), 0).await,
        &data,
        &[3, 1],
    );
    let cluster = Cluster::new(3);
    check_stored(
        &cluster,
        cluster.diskless(1).write(ID, data.clone(), 0).await,
        &data,
        &[2, 3],
    );
}

#[tokio::test]
async fn a_node_that_is_cut_off_is_replaced() {
    let data = bytes(1000);
    let cluster = Cluster::new(3);
    cluster.net.cut(NodeId(2));
    check_stored(
        &cluster,
        cluster.client(1).write(ID, data.clone(), 0).await,
        &data,
        &[1, 3],
    );
    let cluster = Cluster::new(3);
    cluster.net.cut(NodeId(1));
    check_stored(
        &cluster,
        cluster.client(1).write(ID, data.clone(), 0).await,
        &data,
        &[1],
    );
}

#[tokio::test]
async fn a_node_that_hangs_is_replaced_before_its_deadline() {
    let data = bytes(1000);
    let cluster = Cluster::new(3);
    cluster.node(2).spy.stick();
    let begun = Instant::now();
    check_stored(
        &cluster,
        cluster.client(1).write(ID, data.clone(), 0).await,
        &data,
        &[1, 3],
    );
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "took {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn full_disks() {
    let fill = |cluster: &Cluster, node| {
        let refusal = &cluster.node(node).store.refuse_puts;
        *refusal.lock().expect("no holder panics") = Some(ChunkFailure::NoSpace);
    };
    let data = bytes(1000);
    let cluster = Cluster::new(3);
    fill(&cluster, 1);
    check_stored(
        &cluster,
        cluster.client(1).write(ID, data.clone(), 0).await,
        &data,
        &[2, 3],
    );
    fill(&cluster, 2);
    check_stored(
        &cluster,
        cluster.client(1).write(ID, data.clone(), 0).await,
        &data,
        &[3],
    );
    fill(&cluster, 3);
    assert_eq!(
        cluster.client(1).write(ID, data, 0).await,
        Err(Errno(libc::ENOSPC))
    );
}

#[tokio::test]
async fn a_write_that_nobody_can_take_is_an_error() {
    let cluster = Cluster::new(2);
    cluster.net.cut(NodeId(2));
    assert_eq!(
        cluster.diskless(1).write(ID, bytes(10), 0).await,
        Err(Errno::EIO)
    );
    assert_eq!(
        Cluster::new(1).diskless(1).write(ID, bytes(10), 0).await,
        Err(Errno::EIO)
    );
    *cluster
        .node(1)
        .store
        .refuse_puts
        .lock()
        .expect("no holder panics") = Some(ChunkFailure::Disk("gone".into()));
    assert_eq!(
        cluster.client(1).write(ID, bytes(10), 0).await,
        Err(Errno::EIO)
    );
}

#[tokio::test]
async fn read_returns_exactly_the_range() {
    let cluster = Cluster::new(2);
    let data = bytes(10 * BLOCK_BYTES + 77);
    cluster.plant(ID, &data, &[1, 2]);
    let end = 10 * BLOCK_BYTES + 77;
    for replicas in [&[1, 2][..], &[2]] {
        let client = cluster.client(1);
        for (offset, len) in [
            (0, 1),
            (0, end),
            (end - 1, 1),
            (BLOCK_BYTES - 1, 2),
            (5, 3 * BLOCK_BYTES),
            (77, 0),
            (100, end - 100),
        ] {
            let part = data.slice(offset as usize..(offset + len) as usize);
            assert_eq!(
                client.read(ID, &nodes(replicas), offset, len).await,
                Ok(part),
                "{len} bytes at {offset}"
            );
        }
        for (offset, len) in [
            (0, end + 1),
            (end, 1),
            (end + BLOCK_BYTES, 1),
            (u32::MAX, u32::MAX),
            (CHUNK_BYTES_MAX, 1),
        ] {
            assert_eq!(
                client.read(ID, &nodes(replicas), offset, len).await,
                Err(Errno::EIO),
                "{len} bytes at {offset}"
            );
        }
    }
}

#[tokio::test]
async fn read_prefers_this_node_and_falls_back() {
    let cluster = Cluster::new(3);
    let data = bytes(1000);
    cluster.plant(ID, &data, &[1, 2]);
    let gets = || (cluster.node(2).spy.gets(), cluster.node(3).spy.gets());
    let read =
        async |client: Chunks, replicas: &[u16]| client.read(ID, &nodes(replicas), 0, 1000).await;
    assert_eq!(read(cluster.client(1), &[2, 1]).await, Ok(data.clone()));
    assert_eq!(gets(), (0, 0), "it is here");
    assert_eq!(read(cluster.client(1), &[3, 2]).await, Ok(data.clone()));
    assert_eq!(gets(), (1, 1), "missing at the first, but at the second");
    assert_eq!(read(cluster.client(1), &[3]).await, Err(Errno::EIO));
    assert_eq!(read(cluster.client(1), &[]).await, Err(Errno::EIO));
    assert_eq!(read(cluster.diskless(1), &[1]).await, Err(Errno::EIO));
    assert_eq!(
        read(cluster.client(3), &[3, 2]).await,
        Ok(data.clone()),
        "missing here, but there"
    );
    let repaired = || cluster.node(3).store.get(ID, 0, CHUNK_BYTES_MAX) == Ok(data.clone());
    eventually("what was missing here is brought back", repaired).await;
}

#[tokio::test]
async fn a_replica_that_is_cut_off_or_lies_is_passed_over() {
    let data = bytes(1000);
    let lies = [
        ChunkReply::Done,
        ChunkReply::Data {
            data: data.clone(),
            crc: 1,
        },
        ChunkReply::Data {
            data: Bytes::new(),
            crc: 0,
        },
        ChunkReply::Data {
            data: bytes(CHUNK_BYTES_MAX),
            crc: crc32fast::hash(&bytes(CHUNK_BYTES_MAX)),
        },
        ChunkReply::Space { total: 0, free: 0 },
        ChunkReply::Failed(ChunkFailure::Corrupt),
        ChunkReply::Failed(ChunkFailure::Busy),
    ];
    for lie in lies {
        let cluster = Cluster::new(3);
        cluster.plant(ID, &data, &[2, 3]);
        cluster.node(2).spy.lie(lie);
        assert_eq!(
            cluster.client(1).read(ID, &nodes(&[2, 3]), 0, 1000).await,
            Ok(data.clone())
        );
        assert_eq!(
            cluster.client(1).read(ID, &nodes(&[2]), 0, 1000).await,
            Err(Errno::EIO)
        );
    }
    let cluster = Cluster::new(3);
    cluster.plant(ID, &data, &[2, 3]);
    cluster.net.cut(NodeId(2));
    assert_eq!(
        cluster.client(1).read(ID, &nodes(&[2, 3]), 0, 1000).await,
        Ok(data)
    );
}

#[tokio::test]
async fn a_slow_replica_is_overtaken_and_then_asked_last() {
    let cluster = Cluster::new(3);
    let data = bytes(1000);
    cluster.plant(ID, &data, &[2, 3]);
    cluster.plant(ChunkId(2), &data, &[2, 3]);
    cluster.node(2).spy.stick();
    let client = cluster.client(1);
    let begun = Instant::now();
    assert_eq!(
        client.read(ID, &nodes(&[2, 3]), 0, 1000).await,
        Ok(data.clone())
    );
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "took {:?}",
        begun.elapsed()
    );
    assert_eq!(
        client.read(ChunkId(2), &nodes(&[2, 3]), 0, 1000).await,
        Ok(data)
    );
    assert_eq!(cluster.node(2).spy.gets(), 1, "once was enough");
}

#[tokio::test]
async fn a_read_waits_for_a_node_to_come_back() {
    let mut cluster = Cluster::new(2);
    cluster.config.patience = Duration::from_secs(10);
    let data = bytes(1000);
    cluster.plant(ID, &data, &[2]);
    let client = cluster.client(1);
    cluster.net.cut(NodeId(2));
    let replicas = nodes(&[2]);
    let mut read = client.read(ID, &replicas, 0, 1000);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut read).await;
    assert!(early.is_err(), "still waiting, got {early:?}");
    cluster.net.heal(NodeId(2));
    assert_eq!(read.await, Ok(data));
}

#[tokio::test]
async fn a_block_is_fetched_once() {
    let cluster = Cluster::new(2);
    let data = bytes(1000);
    cluster.plant(ID, &data, &[2]);
    let (client, replicas) = (Arc::new(cluster.client(1)), nodes(&[2]));
    cluster.node(2).store.shut();
    let read = || {
        let (client, replicas) = (Arc::clone(&client), replicas.clone());
        tokio::spawn(async move { client.read(ID, &replicas, 0, 1000).await })
    };
    // Whoever began the fetch gives up; the others get what came of it.
    let gives_up = read();
    eventually("the first read has asked", || {
        cluster.node(2).spy.gets() == 1
    })
    .await;
    let others = (0..16).map(|_| read()).collect::<Vec<_>>();
    gives_up.abort();
    assert!(gives_up.await.expect_err("it was aborted").is_cancelled());
    cluster.node(2).store.open();
    for other in others {
        assert_eq!(other.await.expect("no panic"), Ok(data.clone()));
    }
    assert_eq!(
        client.read(ID, &replicas, 5, 100).await,
        Ok(data.slice(5..105))
    );
    assert_eq!(cluster.node(2).spy.gets(), 1);
}

/// Reads a chunk of `len` bytes at the offsets given, 4 KiB each time, and returns how many requests that took.
async fn gets_for(len: u32, offsets: impl IntoIterator<Item = u32>) -> usize {
    let cluster = Cluster::new(2);
    let data = bytes(len);
    cluster.plant(ID, &data, &[2]);
    let (client, replicas) = (cluster.client(1), nodes(&[2]));
    for offset in offsets {
        let part = data.slice(offset as usize..offset as usize + 4096);
        assert_eq!(
            client.read(ID, &replicas, offset, 4096).await,
            Ok(part),
            "at {offset}"
        );
    }
    cluster.node(2).spy.gets()
}

#[tokio::test]
async fn a_stream_is_read_ahead_and_scattered_reads_are_not() {
    let mib = 1 << 20;
    assert_eq!(
        gets_for(4 * mib, (0..4 * mib).step_by(4096)).await,
        8,
        "512 KiB at a time"
    );
    let gets = gets_for(mib + 4096, (0..mib + 4096).step_by(4096)).await;
    assert_eq!(gets, 3, "nothing is asked for after the end");
    let scattered = [3 * mib, mib, 2 * mib, 3 * mib + 4096, mib + 8192, 2 * mib];
    assert_eq!(gets_for(4 * mib, scattered).await, 3, "one for each block");
}

#[tokio::test]
async fn the_cache_keeps_to_its_size() {
    let mut cluster = Cluster::new(2);
    cluster.config.cache_bytes = 3 * BLOCK_BYTES as usize;
    let data = bytes(CHUNK_BYTES_MAX);
    cluster.plant(ID, &data, &[2]);
    let (client, replicas) = (cluster.client(1), nodes(&[2]));
    assert_eq!(
        client.read(ID, &replicas, 0, CHUNK_BYTES_MAX).await,
        Ok(data.clone())
    );
    assert_eq!(client.cache.bytes(), 3 * BLOCK_BYTES as usize);
    assert_eq!(
        client.read(ID, &replicas, 0, CHUNK_BYTES_MAX).await,
        Ok(data)
    );
}

/// Two nodes with real disks.
struct Real {
    dirs: Vec<tempfile::TempDir>,
    clients: Vec<Chunks>,
}

impl Real {
    /// Starts the nodes on what is in `dirs`.
    async fn start(dirs: Vec<tempfile::TempDir>) -> Self {
        let net = MemNet::default();
        let mut clients = Vec::new();
        for (dir, id) in dirs.iter().zip(1..) {
            let (transport, router) = net.join(NodeId(id));
            let disk = Disk::new(open(dir.path()).await);
            serve(&router, disk.clone());
            let config = ChunksConfig {
                patience: Duration::ZERO,
                ..ChunksConfig::default()
            };
            clients.push(Chunks::new(
                transport,
                Some(disk),
                Arc::new(TestPlaces {
                    targets: nodes(&[id, 3 - id]),
                    located: Arc::default(),
                }),
                config,
            ));
        }
        Self { dirs, clients }
    }

    /// Changes the last byte of the only chunk of a node.
    fn damage(&self, node: usize) {
        let path = only_chunk(self.dirs[node].path());
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("opened");
        let last = file.metadata().expect("metadata").len() - 1;
        let mut byte = [0];
        file.read_exact_at(&mut byte, last).expect("read");
        file.write_all_at(&[byte[0] ^ 0x80], last).expect("written");
    }
}

/// Opens a store once the last request to its predecessor, a repair perhaps, has ended.
async fn open(root: &Path) -> DirStore {
    let store = std::cell::OnceCell::new();
    eventually("the store is no longer in use", || {
        match DirStore::open(root) {
            Ok(opened) => store.set(opened).is_ok(),
            Err(OpenError::InUse { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    store.into_inner().expect("it was opened")
}

fn only_chunk(root: &Path) -> PathBuf {
    let chunk = root.join("00").join(format!("{:016x}", ID.0));
    assert!(chunk.exists(), "{} is there", chunk.display());
    chunk
}

#[tokio::test]
async fn damage_on_a_disk_is_covered_and_repaired_by_the_other_replica() {
    let dirs = (0..2)
        .map(|_| tempfile::tempdir().expect("a temporary directory"))
        .collect();
    let cluster = Real::start(dirs).await;
    let data = bytes(3 * BLOCK_BYTES);
    let replicas = cluster.clients[0]
        .write(ID, data.clone(), 0)
        .await
        .expect("written");
    assert_eq!(replicas, nodes(&[1, 2]));
    let read =
        |node: usize| cluster.clients[node].read(ID, &replicas, BLOCK_BYTES, 2 * BLOCK_BYTES);
    let part = data.slice(BLOCK_BYTES as usize..);
    let good = std::fs::read(only_chunk(cluster.dirs[0].path())).expect("read");
    cluster.damage(0);
    assert_eq!(read(0).await, Ok(part.clone()));
    assert_eq!(read(1).await, Ok(part));
    eventually("the damage is repaired", || {
        cluster
            .dirs
            .iter()
            .map(|dir| std::fs::read(only_chunk(dir.path())).expect("read"))
            .all(|file| file == good)
    })
    .await;

    let cluster = Real::start(restart(cluster)).await;
    cluster.damage(0);
    cluster.damage(1);
    for client in &cluster.clients {
        assert_eq!(
            client.read(ID, &replicas, 0, BLOCK_BYTES).await,
            Ok(data.slice(..BLOCK_BYTES as usize))
        );
        assert_eq!(
            client.read(ID, &replicas, 2 * BLOCK_BYTES, 1).await,
            Err(Errno::EIO),
            "both are damaged"
        );
    }
}

/// Stops all nodes and returns their disks.
fn restart(cluster: Real) -> Vec<tempfile::TempDir> {
    cluster.dirs
}

#[tokio::test]
async fn chunks_are_there_after_a_restart() {
    let dirs = (0..2)
        .map(|_| tempfile::tempdir().expect("a temporary directory"))
        .collect();
    let cluster = Real::start(dirs).await;
    let data = bytes(CHUNK_BYTES_MAX);
    let replicas = cluster.clients[1]
        .write(ID, data.clone(), 0)
        .await
        .expect("written");
    assert_eq!(replicas, nodes(&[2, 1]));
    let cluster = Real::start(restart(cluster)).await;
    for client in &cluster.clients {
        assert_eq!(
            client.read(ID, &replicas, 0, CHUNK_BYTES_MAX).await,
            Ok(data.clone())
        );
        assert_eq!(
            client.read(ID, &nodes(&[2]), 0, CHUNK_BYTES_MAX).await,
            Ok(data.clone())
        );
    }
}
