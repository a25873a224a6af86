//! Replies, breaks and deliveries to the kernel that cross each other.

use super::cluster::Cluster;
use super::mount::{Mount, ROOT, name};
use super::{wait, within};
use crate::client::Config;
use crate::error::Errno;
use crate::tree::{NewMode, OpenFlags, Tree};
use consistency::InodeNo;
use consistency::wire::meta::{FileKind, NewNode, Op};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Waits until a node carries a break of an inode out.
async fn break_of(mount: &Mount, ino: InodeNo) {
    wait("the break has come", || {
        let node = mount.client.core.nodes.get(&ino).map(|node| node.clone());
        node.is_some_and(|node| node.state().breaking.is_some())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_a_break_overtook_is_not_cached() {
    // L2, for attributes and for a name.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    assert_eq!(two.walk("f").await, Ok(ino));
    two.kernel.cache().attrs.clear();
    // The other node's change breaks the grant while its reply is still on its way.
    one.chown("f", 1).await.expect("changed");
    two.faults
        .hold(|op| matches!(op, Op::GetAttr { .. } | Op::Lookup { .. }));
    let stat = tokio::spawn({
        let two = two.clone();
        async move { two.fstat(ino).await }
    });
    two.faults.holding().await;
    one.chown("f", 2).await.expect("changed");
    two.faults.let_go();
    let old = within("the reply", stat)
        .await
        .expect("no panic")
        .expect("an answer");
    assert!(old.uid <= 2);
    assert_eq!(two.fstat(ino).await.expect("there").uid, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absence_that_a_break_overtook_is_not_cached() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    two.faults.hold(|op| matches!(op, Op::Lookup { .. }));
    let looking = tokio::spawn({
        let two = two.clone();
        async move { two.exists("f").await }
    });
    two.faults.holding().await;
    one.create("f").await.expect("created");
    two.faults.let_go();
    within("the reply", looking)
        .await
        .expect("no panic")
        .expect("an answer");
    assert_eq!(two.exists("f").await, Ok(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_break_waits_for_replies_on_their_way_to_the_kernel() {
    // K1
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    two.walk("f").await.expect("there");
    let reply = two.client.getattr(ROOT, ino, None).await.expect("there");
    assert!(!reply.ttl.is_zero(), "cacheable");
    let changing = tokio::spawn({
        let one = one.clone();
        async move { one.chown("f", 1).await }
    });
    // It has come, and is being held up.
    break_of(&two, ino).await;
    assert!(!changing.is_finished());
    let told = two.kernel.told();
    assert!(
        !told.contains(&format!("attr {ino}")),
        "too early: {told:?}"
    );
    drop(reply);
    within("the change", changing)
        .await
        .expect("no panic")
        .expect("changed");
    assert!(two.kernel.told().contains(&format!("attr {ino}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_in_flight_is_answered_during_the_break_that_waits_for_it() {
    // R1 and F1: the READ holds its page's lock, which the break's invalidation waits for.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    one.write("f", 0, b"old!").await.expect("written");
    let (_, opened) = two.open("f", libc::O_RDONLY).await.expect("opened");
    assert_eq!(
        &two.read_page(ino, opened.fh).await.expect("read")[..],
        b"old!"
    );
    // Lose the content but not the lease, so that the READ has to ask.
    two.kernel.cache().pages.clear();
    two.client.core.pin(ino).state().content = None;
    two.faults.hold(|op| matches!(op, Op::Load { .. }));
    let reading = tokio::spawn({
        let two = two.clone();
        async move { two.read_page(ino, opened.fh).await }
    });
    two.faults.holding().await;
    let writing = tokio::spawn({
        let one = one.clone();
        async move { one.write("f", 0, b"new!").await }
    });
    break_of(&two, ino).await;
    two.faults.let_go();
    within("the READ", reading)
        .await
        .expect("no panic")
        .expect("read");
    within("the write", writing)
        .await
        .expect("no panic")
        .expect("written");
    assert_eq!(
        &two.read_page(ino, opened.fh).await.expect("read")[..],
        b"new!"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_from_during_a_break_is_not_given_out_after_it() {
    // R1: here the invalidation has passed the page before the READ took its lock, so it does not wait for it.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    one.write("f", 0, b"old!").await.expect("written");
    two.read("f").await.expect("readable");
    // A reply on its way to the kernel holds the break up.
    two.kernel.cache().attrs.clear();
    let reply = two.client.getattr(ROOT, ino, None).await.expect("there");
    let writing = tokio::spawn({
        let one = one.clone();
        async move { one.write("f", 0, b"new!").await }
    });
    break_of(&two, ino).await;
    two.client.core.pin(ino).state().content = None;
    two.faults.hold(|op| matches!(op, Op::Load { .. }));
    let reading = tokio::spawn({
        let client = two.client.clone();
        let how = OpenFlags(libc::O_RDONLY);
        async move { client.read(ROOT, ino, 0, 0, 100, how).await }
    });
    two.faults.holding().await;
    drop(reply);
    within("the write", writing)
        .await
        .expect("no panic")
        .expect("written");
    two.faults.let_go();
    let read = within("the READ", reading).await.expect("no panic");
    assert_eq!(&read.expect("read").data[..], b"new!");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_may_be_stored_into_is_not_read_during_a_break() {
    // W1: under no lease, the store would be lost.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    one.write("f", 0, b"data").await.expect("written");
    let (_, opened) = two.open("f", libc::O_RDWR).await.expect("opened");
    let reply = two.client.getattr(ROOT, ino, None).await.expect("known");
    let changing = tokio::spawn({
        let one = one.clone();
        async move { one.chown("f", 1).await }
    });
    break_of(&two, ino).await;
    let mut reading = tokio::spawn({
        let two = two.clone();
        async move { two.read_page(ino, opened.fh).await }
    });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut reading).await;
    assert!(early.is_err(), "nobody owns the page");
    drop(reply);
    within("the change", changing)
        .await
        .expect("no panic")
        .expect("changed");
    let page = within("the READ", reading).await.expect("no panic");
    assert_eq!(&page.expect("read")[..], b"data");
    assert!(two.client.core.owned(ino));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stuck_names_do_not_hold_up_a_break() {
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    // Who makes a name, too, has looked for it before (E2).
    assert_eq!(two.exists("g").await, Ok(false));
    for _ in 0..3 {
        assert_eq!(two.exists("f").await, Ok(false));
    }
    two.kernel.told();
    two.kernel.stuck_names.store(true, Ordering::SeqCst);
    for (name, all) in [("g", false), ("f", true)] {
        within("the create", one.create(name))
            .await
            .expect("created");
        let told = two.kernel.told();
        assert_eq!(told.contains(&"epoch".to_owned()), all, "{name}: {told:?}");
        assert_eq!(two.exists(name).await, Ok(true));
    }
    two.kernel.stuck_names.store(false, Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_asked_for_again_under_the_same_number() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    one.faults.lose.store(2, Ordering::SeqCst);
    one.create("f").await.expect("created, once");
    one.faults.lose.store(1, Ordering::SeqCst);
    one.rename("f", "g").await.expect("renamed, once");
    one.faults.lose.store(1, Ordering::SeqCst);
    one.unlink("g").await.expect("removed, once");
    assert_eq!(one.list("", false).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_change_still_happens() {
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    one.faults.hold(|op| matches!(op, Op::Create { .. }));
    let creating = tokio::spawn({
        let one = one.clone();
        async move { one.create("f").await }
    });
    one.faults.holding().await;
    creating.abort();
    one.faults.let_go();
    let root = InodeNo::ROOT;
    let there = async {
        let f = name("f");
        while one
            .client
            .lookup(ROOT, root, &f)
            .await
            .expect("asked")
            .attr
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within("the file is there", there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_changes_in_flight_are_not_served_from_before() {
    // L9: the leader has made the change, others have seen it, the reply is still on its way.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    let root = InodeNo::ROOT;
    one.faults.hold(|op| matches!(op, Op::Unlink { .. }));
    let removing = tokio::spawn({
        let one = one.clone();
        async move { one.client.unlink(ROOT, root, &name("f"), false).await }
    });
    one.faults.holding().await;
    assert_eq!(two.exists("f").await, Ok(false));
    let seen = one
        .client
        .lookup(ROOT, root, &name("f"))
        .await
        .expect("asked");
    assert!(seen.attr.is_none(), "the daemon serves the old state");
    assert!(seen.ttl.is_zero(), "and lets nobody keep the new one yet");
    one.faults.let_go();
    within("the reply", removing)
        .await
        .expect("no panic")
        .expect("removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_of_a_change_is_not_cached() {
    // The reply is lost, another node undoes the change, the change is asked for again.
    let cluster = Cluster::start().await;
    let [one, two] = [cluster.node(2).await, cluster.node(3).await];
    one.create("f").await.expect("created");
    one.faults.hold(|op| matches!(op, Op::Unlink { .. }));
    one.faults.lose.store(1, Ordering::SeqCst);
    let removing = tokio::spawn({
        let one = one.clone();
        async move { one.unlink("f").await }
    });
    one.faults.holding().await;
    two.create("f").await.expect("created anew");
    one.faults.let_go();
    let removed = within("the reply", removing).await.expect("no panic");
    removed.expect("it was removed");
    assert_eq!(one.exists("f").await, Ok(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_from_before_an_own_change_that_told_nothing_are_not_cached() {
    // L9: the change's first reply is lost, the second is the stored result without a grant, and a reply from before
    // the change comes last.
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    let ino = one.create("f").await.expect("created");
    one.fsync("f").await.expect("synced");
    one.client.core.pin(ino).state().drop_data();
    one.faults.hold(|op| matches!(op, Op::GetAttr { .. }));
    let stat = tokio::spawn({
        let client = one.client.clone();
        async move { client.getattr(ROOT, ino, None).await }
    });
    one.faults.holding().await;
    one.faults.lose.store(1, Ordering::SeqCst);
    one.chown("f", 7).await.expect("changed");
    one.faults.let_go();
    let reply = within("the reply", stat).await.expect("no panic");
    assert!(reply.expect("there").ttl.is_zero(), "it may be old");
    assert_eq!(one.fstat(ino).await.expect("there").uid, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absence_from_before_an_own_change_that_told_nothing_is_not_cached() {
    // L9. Interrupted, a LOOKUP does not hold its directory any more.
    let cluster = Cluster::start().await;
    let one = cluster.node(2).await;
    let (root, f) = (InodeNo::ROOT, name("f"));
    one.faults.hold(|op| matches!(op, Op::Lookup { .. }));
    let looking = tokio::spawn({
        let (client, f) = (one.client.clone(), f.clone());
        async move { client.lookup(ROOT, root, &f).await }
    });
    one.faults.holding().await;
    one.faults.lose.store(1, Ordering::SeqCst);
    let how = NewNode::Special {
        kind: FileKind::Fifo,
        rdev: 0,
    };
    let made = one
        .client
        .make(ROOT, root, &f, how, NewMode::exactly(0o600))
        .await;
    drop(made.expect("made"));
    one.faults.let_go();
    drop(within("the reply", looking).await.expect("no panic"));
    let found = one.client.lookup(ROOT, root, &f).await.expect("asked");
    assert!(found.attr.is_some(), "absence was cached");
}

/// World 1418: the caller was told EIO after the deadline, and its kernel went on to show what was before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_waits_for_leaves_nothing_old_in_the_kernel() {
    let cluster = Cluster::start().await;
    let config = Config {
        request_deadline: Duration::from_millis(300),
        ..Config::default()
    };
    let [one, two] = [cluster.node_with(2, config).await, cluster.node(3).await];
    let ino = one.create("f").await.expect("created");
    assert_eq!(two.walk("f").await, Ok(ino));
    assert_eq!(one.exists("new").await, Ok(false));
    let uid = one.stat("f").await.expect("there").uid;
    one.faults
        .hold(|op| matches!(op, Op::Create { .. } | Op::SetAttr { .. }));
    assert_eq!(one.create("new").await, Err(Errno::EIO));
    assert_eq!(one.chown("f", uid + 1).await.err(), Some(Errno::EIO));
    assert_eq!(two.exists("new").await, Ok(true));
    assert_eq!(two.stat("f").await.expect("there").uid, uid + 1);
    assert_eq!(one.exists("new").await, Ok(true));
    assert_eq!(one.stat("f").await.expect("there").uid, uid + 1);
    one.faults.let_go();
}
