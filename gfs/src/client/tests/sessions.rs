//! Sessions that lapse, end and begin anew.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT};
use super::{wait, within};
use crate::client::Config;
use crate::error::Errno;
use crate::tree::Tree;
use consistency::wire::meta::INLINE_BYTES_MAX;
use consistency::{ChunkId, NodeId};
use std::sync::atomic::Ordering;
use std::time::Duration;

const TERM: Duration = Duration::from_millis(600);

fn impatient() -> Config {
    Config {
        request_deadline: Duration::from_millis(1_500),
        ..Config::default()
    }
}

/// Cuts node 2, which is `one`, off until its session is lost, and waits for its next.
async fn lose_session(cluster: &Cluster, one: &Mount) {
    cluster.net.cut(NodeId(2));
    wait("the session has lapsed", || one.client.session().is_none()).await;
    cluster.net.heal(NodeId(2));
    wait("there is a new session", || one.client.session().is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_stops_instead_of_serving_old_state() {
    // S5
    let cluster = Cluster::with_term(TERM).await;
    let one = cluster.node(2).await;
    let two = cluster.node_with(3, impatient()).await;
    one.create("f").await.expect("created");
    one.write("f", 0, b"old").await.expect("written");
    assert_eq!(&two.read("f").await.expect("readable")[..], b"old");
    two.stat("f").await.expect("there");
    cluster.net.cut(NodeId(3));
    // The other node's write waits until the lease of the one that is cut off has run out.
    within("the write", one.write("f", 0, b"new"))
        .await
        .expect("written");
    {
        let cache = two.kernel.cache();
        assert!(cache.pages.is_empty(), "pages outlived the lease");
        assert!(cache.attrs.is_empty(), "attributes outlived the lease");
    }
    assert_eq!(two.read("f").await, Err(Errno::EIO));
    cluster.net.heal(NodeId(3));
    wait("there is a new session", || two.client.session().is_some()).await;
    assert_eq!(&two.read("f").await.expect("readable")[..], b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_lost_with_a_session_are_told_by_fsync() {
    // S4
    let cluster = Cluster::with_term(TERM).await;
    let one = cluster.node_with(2, impatient()).await;
    one.create("f").await.expect("created");
    one.write("f", 0, b"synced").await.expect("written");
    one.fsync("f").await.expect("synced");
    let (ino, _open) = one.open("f", libc::O_WRONLY).await.expect("opened");
    one.write("f", 0, b"never seen").await.expect("written");
    lose_session(&cluster, &one).await;
    assert_eq!(one.fsync("f").await, Err(Errno::EIO));
    assert_eq!(one.fsync("f").await, Ok(()), "told once");
    assert_eq!(&one.read("f").await.expect("readable")[..], b"synced");
    assert_eq!(one.walk("f").await, Ok(ino));
}

/// Numbers are of one session: an answer that comes when its session has just ended brings none for the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_do_not_outlive_their_session() {
    let cluster = Cluster::with_term(TERM).await;
    let one = cluster.node(2).await;
    let core = &one.client.core;
    let ticket = |session| core.ticket(session).expect("it is the present one");
    let old = ticket(one.client.session().expect("there is one"));
    lose_session(&cluster, &one).await;
    core.keep_ids(&old, 1..2);
    assert_eq!(core.dirty.take_id(), None);
    let new = ticket(one.client.session().expect("there is one"));
    core.keep_ids(&new, 7..8);
    assert_eq!(core.dirty.take_id(), Some(ChunkId(7)));
}

/// S4: what was written under a lost session does not come up under the next, where others have changed the file since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_does_not_outlive_its_session() {
    let cluster = Cluster::with_term(TERM).await;
    let (one, two) = (cluster.node(2).await, cluster.node(3).await);
    one.create("f").await.expect("created");
    let (_, _open) = one.open("f", libc::O_WRONLY).await.expect("opened");
    let large = vec![b'l'; INLINE_BYTES_MAX + 1];
    one.write("f", 0, &large).await.expect("written");
    let gate = cluster.chunks.gate.write().await;
    let syncing = tokio::spawn({
        let one = one.clone();
        async move { one.fsync("f").await }
    });
    let begun = || cluster.chunks.writes.load(Ordering::SeqCst) > 0;
    wait("a chunk is about to be written", begun).await;
    lose_session(&cluster, &one).await;
    two.write("f", 0, b"theirs").await.expect("written");
    two.fsync("f").await.expect("synced");
    // Owned again, under the new session.
    one.write("f", 6, b" and ours").await.expect("written");
    drop(gate);
    let synced = within("the fsync", syncing).await.expect("no panic");
    assert_eq!(synced, Err(Errno::EIO));
    assert_eq!(one.fsync("f").await, Ok(()), "told once");
    assert_eq!(
        &two.read("f").await.expect("readable")[..],
        b"theirs and ours"
    );
}

/// S3: who only reads the file does not take the error away from the one who wrote, nor does another writer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_writer_hears_that_changes_are_lost() {
    let cluster = Cluster::with_term(TERM).await;
    let one = cluster.node_with(2, impatient()).await;
    one.create("f").await.expect("created");
    let (ino, writer) = one.open("f", libc::O_WRONLY).await.expect("opened");
    let (_, other) = one.open("f", libc::O_WRONLY).await.expect("opened");
    one.write("f", 0, b"never seen").await.expect("written");
    lose_session(&cluster, &one).await;
    let (_, reader) = one.open("f", libc::O_RDONLY).await.expect("opened");
    let close = async |fh| {
        let closed = one.client.flush(ROOT, ino, fh, 0).await;
        one.client.release(ino, fh).await;
        closed
    };
    assert_eq!(close(reader.fh).await, Ok(()));
    assert_eq!(close(other.fh).await, Err(Errno::EIO));
    // A child closes its copy of the descriptor when it executes a program.
    let copy = one.client.flush(ROOT, ino, writer.fh, 0).await;
    assert_eq!(copy, Err(Errno::EIO));
    let fsync = async || one.client.fsync(ROOT, ino, writer.fh, false).await;
    assert_eq!(fsync().await, Err(Errno::EIO));
    assert_eq!(fsync().await, Ok(()), "told once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_cut_goes_unnoticed() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    one.create("f").await.expect("created");
    let session = one.client.session();
    cluster.net.cut(NodeId(2));
    let creating = tokio::spawn({
        let one = one.clone();
        async move { one.create("g").await }
    });
    one.write("f", 0, b"local").await.expect("written");
    tokio::task::yield_now().await;
    cluster.net.heal(NodeId(2));
    within("the create", creating)
        .await
        .expect("no panic")
        .expect("created");
    assert_eq!(one.client.session(), session);
    assert_eq!(&one.read("f").await.expect("readable")[..], b"local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_changes_are_flushed_without_being_asked() {
    let cluster = Cluster::start().await;
    let config = Config {
        flush_after: Duration::from_millis(50),
        ..Config::default()
    };
    let one = cluster.node_with(2, config).await;
    for n in 0..20 {
        one.create(&format!("f{n}")).await.expect("created");
        one.write(&format!("f{n}"), 0, b"x").await.expect("written");
    }
    let core = &one.client.core;
    wait("everything is flushed", || {
        core.nodes.iter().all(|node| !node.state().is_dirty())
    })
    .await;
    one.faults.ops();
    one.fsync("f0").await.expect("synced");
    assert_eq!(one.faults.ops(), 0, "nothing was left to flush");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_wait_when_too_much_is_unflushed() {
    let cluster = Cluster::start().await;
    let config = Config {
        dirty_bytes_max: 1 << 20,
        ..Config::default()
    };
    let one = cluster.node_with(2, config).await;
    one.create("f").await.expect("created");
    for n in 0..40_u64 {
        let data = vec![n as u8; 100_000];
        let written = one.write("f", n * 100_000, &data);
        within("there is room", written).await.expect("written");
    }
    let two = cluster.node(3).await;
    for n in 0..40_u64 {
        let read = two.read_at("f", n * 100_000, 100_000).await;
        assert_eq!(read.expect("readable"), vec![n as u8; 100_000]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_inodes_are_given_back() {
    use crate::tree::Tree;
    let cluster = Cluster::start().await;
    let config = Config {
        idle_nodes_max: 0,
        ..Config::default()
    };
    let one = cluster.node_with(2, config).await;
    let ino = one.create("f").await.expect("created");
    one.write("f", 0, b"kept").await.expect("written");
    one.client.forget(ino, 1);
    let core = &one.client.core;
    wait("the node is gone", || core.nodes.get(&ino).is_none()).await;
    assert_eq!(core.leases().held(ino), None);
    one.kernel.cache().dentries.clear();
    assert_eq!(&one.read("f").await.expect("readable")[..], b"kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_answers_the_lookups_that_follow() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    for n in 0..20 {
        one.create(&format!("f{n}")).await.expect("created");
    }
    for n in 0..20 {
        // Not owned any more, so that a listing can tell of it.
        two.stat(&format!("f{n}")).await.expect("there");
    }
    let three = cluster.node(4).await;
    three.list("", false).await.expect("listed");
    three.faults.ops();
    for n in 0..20 {
        three.stat(&format!("f{n}")).await.expect("there");
    }
    assert_eq!(three.faults.ops(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_looks_for_many_absent_names_is_told_all_that_exist() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    two.faults.ops();
    for n in 0..100 {
        let there = two.exists(&format!("g{n}")).await.expect("looks");
        assert!(!there);
    }
    assert!(two.faults.ops() < 12, "one by one at first");
    one.create("g7").await.expect("created");
    assert!(two.exists("g7").await.expect("looks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_file_is_given_back_at_once() {
    use crate::tree::Tree;
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    let ino = one.create("f").await.expect("created");
    one.write("f", 0, b"never flushed").await.expect("written");
    one.unlink("f").await.expect("removed");
    one.faults.ops();
    one.client.forget(ino, 1);
    let core = &one.client.core;
    wait("the node is gone", || core.nodes.get(&ino).is_none()).await;
    assert_eq!(one.faults.ops(), 0, "its bytes are not worth a flush");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_leaves_nothing_behind() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.write("f", 0, b"kept").await.expect("written");
    one.client.shutdown().await.expect("flushed");
    cluster.net.cut(NodeId(2));
    assert_eq!(&two.read("f").await.expect("readable")[..], b"kept");
}
