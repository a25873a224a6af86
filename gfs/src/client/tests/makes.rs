//! What a node makes by itself (G1 to G3).

use super::cluster::{Cluster, Faults};
use super::mount::{Mount, ROOT, name};
use super::{wait, within};
use crate::error::Errno;
use crate::tree::Tree;
use consistency::NodeId;
use consistency::wire::meta::{NAMES_SINCE, Op, OpReply, XattrMode};
use consistency::wire::request::{MetaReply, MetaRequest};
use std::sync::atomic::Ordering;
use std::time::Duration;

const TERM: Duration = Duration::from_millis(2_000);

/// Returns the operations sent since the last call.
fn sent(faults: &Faults) -> Vec<Op> {
    let sent = std::mem::take(&mut *faults.sent.lock().expect("no holder panics"));
    let op = |request| match request {
        MetaRequest::Op { op, .. } => Some(op),
        _ => None,
    };
    sent.into_iter().filter_map(op).collect()
}

fn creates(ops: &[Op]) -> usize {
    let create = |op: &&Op| matches!(op, Op::Create { .. });
    ops.iter().filter(create).count()
}

/// Starts two nodes; the first has made directory `d`, in which nothing else has happened.
async fn nodes() -> (Cluster, Mount, Mount) {
    let cluster = Cluster::with_term(TERM).await;
    let (first, second) = (cluster.node(2).await, cluster.node(3).await);
    // Makes sure that the log may use what is new.
    let foreseeable = async {
        for number in 0.. {
            first.mkdir(&format!("try{number}")).await.expect("makes");
            sent(&first.faults);
            let file = format!("try{number}/f");
            first.create(&file).await.expect("makes");
            if creates(&sent(&first.faults)) == 0 {
                break;
            }
        }
    };
    within("the log is of a version that knows of it", foreseeable).await;
    first.mkdir("d").await.expect("makes");
    sent(&first.faults);
    (cluster, first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_names_are_one_request() {
    let (_cluster, first, second) = nodes().await;
    for number in 0..200 {
        let file = format!("d/{number}");
        first.create(&file).await.expect("makes");
        first.write(&file, 0, b"text").await.expect("writes");
        assert_eq!(first.stat(&file).await.expect("is there").size, 4);
    }
    first.mkdir("d/e").await.expect("makes");
    first.create("d/e/f").await.expect("makes");
    assert_eq!(creates(&sent(&first.faults)), 0);
    assert_eq!(second.list("d", false).await.expect("lists").len(), 201);
    assert_eq!(second.read("d/7").await.expect("reads"), "text");
    assert!(second.exists("d/e/f").await.expect("looks"));
    let ops = sent(&first.faults);
    let makes = ops.iter().filter(|op| matches!(op, Op::Make(_))).count();
    assert!(makes <= 3, "{makes} for 202 names");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g1_a_name_that_others_know_of_is_asked_for() {
    let (_cluster, first, second) = nodes().await;
    first.create("d/a").await.expect("makes");
    assert!(!second.exists("d/b").await.expect("looks"));
    sent(&first.faults);
    first.create("d/b").await.expect("makes");
    assert_eq!(creates(&sent(&first.faults)), 1);
    assert!(second.exists("d/b").await.expect("looks"));
    assert_eq!(first.create("d/b").await, Err(Errno(libc::EEXIST)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_left_alone_in_a_directory_that_others_know_makes_by_itself() {
    let (_cluster, first, second) = nodes().await;
    first.create("d/a").await.expect("makes");
    let alone = async {
        for round in 0.. {
            let files: Vec<_> = (0..32).map(|n| format!("d/{round}-{n}")).collect();
            // So fast that the first gives all its names up.
            let made = files.iter().map(async |file| {
                // As a kernel does.
                second.exists(file).await?;
                second.create(file).await
            });
            futures::future::try_join_all(made).await.expect("makes");
            if creates(&sent(&second.faults)) == 0 {
                return files;
            }
        }
        unreachable!("the range has no end");
    };
    let files = within("it makes some by itself", alone).await;
    assert!(first.exists(&files[7]).await.expect("looks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g1_what_a_directory_hands_down_is_asked_for() {
    let (_cluster, first, _second) = nodes().await;
    let dir = first.walk("d").await.expect("is there");
    let quota = name("user.glu.quota.inodes");
    let set = first
        .client
        .setxattr(ROOT, dir, &quota, "3".into(), XattrMode::Any, false);
    set.await.expect("sets");
    sent(&first.faults);
    // The directory counts.
    for file in ["d/a", "d/b"] {
        first.create(file).await.expect("makes");
    }
    assert_eq!(first.create("d/c").await, Err(Errno::EDQUOT));
    assert_eq!(creates(&sent(&first.faults)), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g2_a_directory_with_names_is_not_empty() {
    let (_cluster, first, _second) = nodes().await;
    first.mkdir("d/e").await.expect("makes");
    first.create("d/e/f").await.expect("makes");
    let dir = first.walk("d").await.expect("is there");
    let removed = first.client.unlink(ROOT, dir, &name("e"), true).await;
    assert_eq!(removed, Err(Errno(libc::ENOTEMPTY)));
    assert_eq!(first.list("d/e", true).await.expect("lists"), ["f"]);
    first.unlink("d/e/f").await.expect("removes");
    first.create("d/e/g").await.expect("makes");
    first.rename("d/e/g", "d/h").await.expect("moves");
    assert_eq!(first.list("d", false).await.expect("lists").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g3_a_look_waits_for_what_was_made() {
    let (_cluster, first, second) = nodes().await;
    first.faults.hold(|op| matches!(op, Op::Make(_)));
    first.create("d/a").await.expect("makes");
    let looking = {
        let second = second.clone();
        tokio::spawn(async move { second.exists("d/a").await })
    };
    first.faults.holding().await;
    tokio::task::yield_now().await;
    assert!(!looking.is_finished(), "the break must wait for the commit");
    first.faults.let_go();
    let found = within("the look is answered", looking).await.expect("ends");
    assert_eq!(found, Ok(true));
}

fn unlinks(ops: &[Op]) -> usize {
    let unlink = |op: &&Op| matches!(op, Op::Unlink { .. });
    ops.iter().filter(unlink).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_removals_are_one_request() {
    let (cluster, first, second) = nodes().await;
    first.mkdir("d/e").await.expect("makes");
    let mut files = Vec::new();
    for number in 0..100 {
        let file = first.create(&format!("d/e/{number}")).await;
        files.push(file.expect("makes"));
    }
    // Half of them the leader knows of.
    let dir = first.walk("d").await.expect("is there");
    first.client.fsyncdir(ROOT, dir).await.expect("syncs");
    for number in 100..150 {
        let file = format!("d/e/{number}");
        first.create(&file).await.expect("makes");
        first.write(&file, 0, b"text").await.expect("writes");
    }
    sent(&first.faults);
    for number in 0..150 {
        first
            .unlink(&format!("d/e/{number}"))
            .await
            .expect("removes");
    }
    assert!(!first.exists("d/e/7").await.expect("looks"));
    let removed = first.client.unlink(ROOT, dir, &name("e"), true).await;
    removed.expect("is empty");
    first.create("d/e").await.expect("the name is free");
    assert_eq!(second.list("d", false).await.expect("lists"), ["e"]);
    let ops = sent(&first.faults);
    assert_eq!(unlinks(&ops), 0);
    let told = ops.iter().filter(|op| matches!(op, Op::Names(_))).count();
    assert!(told <= 4, "{told} for 202 names");
    for file in &files {
        first.client.forget(*file, 1);
    }
    let gone = || files.iter().all(|file| !cluster.knows(*file));
    wait("they are reaped", gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g4_what_others_know_of_is_asked_for() {
    let (_cluster, first, second) = nodes().await;
    let file = first.create("d/a").await.expect("makes");
    first.create("d/b").await.expect("makes");
    // By its number, as who has it open: the directory stays with the first.
    first.fsync("d/b").await.expect("syncs");
    second
        .client
        .getattr(ROOT, file, None)
        .await
        .expect("looks");
    sent(&first.faults);
    first.unlink("d/a").await.expect("removes");
    assert_eq!(unlinks(&sent(&first.faults)), 1);
    first.unlink("d/b").await.expect("removes");
    assert_eq!(unlinks(&sent(&first.faults)), 0);
    let left = second.client.getattr(ROOT, file, None).await;
    assert!(left.is_ok_and(|reply| reply.attr.nlink == 0));
}

/// V1: in the middle of an upgrade the lead may go to a node that does not speak of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g4_a_leader_of_an_older_version_is_told_one_by_one() {
    let (_cluster, first, second) = nodes().await;
    for file in ["d/a", "d/b", "d/c"] {
        first.create(file).await.expect("makes");
    }
    first.fsync("d/c").await.expect("syncs");
    sent(&first.faults);
    first.unlink("d/a").await.expect("removes");
    first.create("d/e").await.expect("makes");
    first.unlink("d/b").await.expect("removes");
    assert_eq!(sent(&first.faults).len(), 0, "it is told later");
    first
        .faults
        .version
        .store(NAMES_SINCE - 1, Ordering::Relaxed);
    let list = second.list("d", false);
    let left = within("the older leader is told", list)
        .await
        .expect("lists");
    assert_eq!(left.len(), 2);
    assert_eq!(unlinks(&sent(&first.faults)), 2);
    first.unlink("d/c").await.expect("removes");
    assert_eq!(unlinks(&sent(&first.faults)), 1, "it is asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g4_a_directory_with_names_is_not_removed() {
    let (_cluster, first, _second) = nodes().await;
    first.mkdir("d/e").await.expect("makes");
    first.create("d/e/f").await.expect("makes");
    let dir = first.walk("d").await.expect("is there");
    let removed = first.client.unlink(ROOT, dir, &name("e"), true).await;
    assert_eq!(removed, Err(Errno(libc::ENOTEMPTY)));
    let removed = first.client.unlink(ROOT, dir, &name("e"), false).await;
    assert_eq!(removed, Err(Errno(libc::EISDIR)));
    assert!(first.exists("d/e/f").await.expect("looks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_is_left_alone_removes_by_itself() {
    let (_cluster, first, second) = nodes().await;
    let mut files: Vec<_> = (0..1_000).map(|number| format!("d/{number}")).collect();
    for file in &files {
        first.create(file).await.expect("makes");
    }
    assert_eq!(second.list("d", false).await.expect("lists").len(), 1_000);
    sent(&first.faults);
    let alone = async {
        loop {
            // So fast that the second gives all its names up.
            let some = files.split_off(files.len() - 32);
            let removed = some.iter().map(async |file| first.unlink(file).await);
            futures::future::try_join_all(removed)
                .await
                .expect("removes");
            if unlinks(&sent(&first.faults)) == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("it removes some by itself", alone).await;
    let left = second.list("d", false).await.expect("lists");
    assert_eq!(left.len(), files.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_listing_brings_what_another_node_owns() {
    let (_cluster, first, second) = nodes().await;
    for number in 0..50 {
        let file = format!("d/{number}");
        first.create(&file).await.expect("makes");
        first.write(&file, 0, b"text").await.expect("writes");
    }
    assert_eq!(second.list("d", true).await.expect("lists").len(), 50);
    sent(&second.faults);
    for number in 0..50 {
        let file = second.stat(&format!("d/{number}")).await;
        assert_eq!(file.expect("is there").size, 4);
    }
    let asked = sent(&second.faults).len();
    assert!(asked < 10, "{asked} questions for 50 files");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn small_files_are_read_ahead() {
    let (_cluster, first, second) = nodes().await;
    for number in 0..200 {
        let file = format!("d/{number}");
        first.create(&file).await.expect("makes");
        first.write(&file, 0, b"text").await.expect("writes");
    }
    sent(&second.faults);
    let (mut read, mut loads) = (0, 0);
    while loads < read + 30 {
        assert!(read < 200, "{loads} loads for {read} files");
        let text = second.read(&format!("d/{read}")).await;
        assert_eq!(text.expect("reads"), "text", "{read}");
        read += 1;
        let load = |op: &Op| matches!(op, Op::Load { .. });
        loads += sent(&second.faults).iter().filter(|op| load(op)).count();
    }
    // What others change is read again.
    for number in 0..50 {
        let file = format!("d/{number}");
        first.write(&file, 0, b"more").await.expect("writes");
        let text = second.read(&file).await;
        assert_eq!(text.expect("reads"), "more", "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g3_a_look_waits_for_what_was_removed() {
    let (_cluster, first, second) = nodes().await;
    let file = first.create("d/a").await.expect("makes");
    first.fsync("d/a").await.expect("syncs");
    first.faults.hold(|op| matches!(op, Op::Names(_)));
    first.unlink("d/a").await.expect("removes");
    let by_name = {
        let second = second.clone();
        tokio::spawn(async move { second.exists("d/a").await })
    };
    let by_number = tokio::spawn(async move { second.client.getattr(ROOT, file, None).await });
    first.faults.holding().await;
    tokio::task::yield_now().await;
    let early = by_name.is_finished() || by_number.is_finished();
    assert!(!early, "breaks must wait for the commit");
    first.faults.let_go();
    let found = within("the look is answered", by_name).await.expect("ends");
    assert_eq!(found, Ok(false));
    let left = within("the look is answered", by_number).await;
    // It may be reaped by then.
    let left = left.expect("ends").map(|reply| reply.attr.nlink);
    assert!(left == Ok(0) || left == Err(Errno::ESTALE), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s4_a_removal_goes_with_the_session() {
    let (cluster, first, second) = nodes().await;
    first.create("d/a").await.expect("makes");
    first.fsync("d/a").await.expect("syncs");
    let dir = first.walk("d").await.expect("is there");
    let session = first.client.session().expect("there is one");
    cluster.net.cut(NodeId(2));
    first.unlink("d/a").await.expect("removes");
    assert!(!first.exists("d/a").await.expect("looks"));
    wait("the session is lost", || first.client.session().is_none()).await;
    cluster.net.heal(NodeId(2));
    let anew = || first.client.session().is_some_and(|now| now != session);
    wait("there is a new session", anew).await;
    assert_eq!(first.client.fsyncdir(ROOT, dir).await, Err(Errno::EIO));
    assert!(first.exists("d/a").await.expect("looks"));
    assert!(second.exists("d/a").await.expect("looks"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s3_a_synced_name_is_with_the_leader() {
    let (cluster, first, _second) = nodes().await;
    let file = first.create("d/a").await.expect("makes");
    first.fsync("d/a").await.expect("syncs");
    assert!(cluster.knows(file), "after fsync of the file");
    let other = first.create("d/b").await.expect("makes");
    let dir = first.walk("d").await.expect("is there");
    first.client.fsyncdir(ROOT, dir).await.expect("syncs");
    assert!(cluster.knows(other), "after fsync of the directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn m4_a_new_leader_that_was_told_nothing_answers_from_the_record() {
    let (cluster, first, _second) = nodes().await;
    first.create("d/a").await.expect("makes");
    first.fsync("d/a").await.expect("syncs");
    let sent = std::mem::take(&mut *first.faults.sent.lock().expect("no holder panics"));
    let is_make = |request: &MetaRequest| {
        matches!(
            request,
            MetaRequest::Op {
                op: Op::Make(_),
                ..
            }
        )
    };
    let make = sent.into_iter().find(is_make).expect("was sent");
    // It tells the new leader nothing of its leases.
    cluster.net.cut(NodeId(2));
    cluster.replace_leader();
    let reply = cluster.ask(2, make).await;
    let MetaReply::Op { result, .. } = reply else {
        panic!("{reply:?}");
    };
    assert!(matches!(result, Ok(OpReply::Made { .. })), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_nobody_asks_for_is_committed_before_long() {
    let (cluster, first, _second) = nodes().await;
    let file = first.create("d/a").await.expect("makes");
    wait("it is with the leader", || cluster.knows(file)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s3_who_syncs_what_went_with_the_session_is_told() {
    let (cluster, first, second) = nodes().await;
    let dir = first.walk("d").await.expect("is there");
    let session = first.client.session().expect("there is one");
    cluster.net.cut(NodeId(2));
    let file = first.create("d/a").await.expect("makes");
    let moving = {
        let first = first.clone();
        tokio::spawn(async move { first.rename("d/a", "d/b").await })
    };
    wait("the session is lost", || first.client.session().is_none()).await;
    cluster.net.heal(NodeId(2));
    let anew = || first.client.session().is_some_and(|now| now != session);
    wait("there is a new session", anew).await;
    // Were it made under the new session, an empty file could get the name: the commit may have come through.
    let moved = within("the change ends", moving).await.expect("no panic");
    assert_eq!(moved, Err(Errno::EIO));
    assert_eq!(first.client.fsyncdir(ROOT, dir).await, Err(Errno::EIO));
    assert!(!first.exists("d/a").await.expect("looks"));
    assert!(!second.exists("d/a").await.expect("looks"));
    assert!(!cluster.knows(file));
    first.create("d/a").await.expect("makes it anew");
    assert!(second.exists("d/a").await.expect("looks"));
}
