//! Voters whose disks fail: they step down and say so, and nothing acknowledged is lost.

use super::super::faults::{self, Fault};
use super::*;

/// The leader's disk fails: another leads, and the failed one is as good as dead until it is started again.
async fn a_failed_leader(fault: Fault, words: &str) {
    let mut three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let old = three.leader(None).await;
    for value in 0..10 {
        push(&three.logs[old], value).await.expect("it leads");
    }
    assert_eq!(three.logs[old].fault(), None);
    faults::set(three.dirs[old].path(), Some(fault));
    let open = push(&three.logs[old], 77).await;
    assert!(
        matches!(open, Err(ProposeError::Unknown(_))),
        "{fault:?}: {open:?}"
    );
    let new = three.leader(Some(old)).await;
    let refused = push(&three.logs[old], 78).await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable(_))),
        "{fault:?}: {refused:?}"
    );
    let said = three.logs[old].fault().expect("it has failed");
    assert!(said.contains(words), "{fault:?}: {said}");
    assert!(!three.logs[old].leadership().borrow().leading);
    for value in 10..20 {
        push(&three.logs[new], value).await.expect("it leads");
    }

    // It votes no more: with it alone the new leader has no majority.
    let third = 3 - old - new;
    three.net.cut(id(third));
    let alone = push(&three.logs[new], 88).await;
    assert!(alone.is_err(), "{fault:?}: {alone:?}");
    three.net.heal(id(third));

    faults::set(three.dirs[old].path(), None);
    three.logs[old].shutdown().await;
    let at = u16::try_from(old).expect("there are three");
    three.logs[old] = three.open(at).await;
    let leader = three.leader(None).await;
    push(&three.logs[leader], 99).await.expect("it leads");
    let expected = values(&three.logs[leader]);
    // 77 was on one disk at most; whether 88, which nobody acknowledged, comes back the logs decide.
    let sure: Vec<u64> = expected.iter().copied().filter(|n| *n < 20).collect();
    assert_eq!(sure, Vec::from_iter(0..20), "{fault:?}");
    three.agree(&expected).await;
    three.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_is_replaced() {
    a_failed_leader(Fault::Full, "make room, then restart this node").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_broken_is_replaced() {
    a_failed_leader(Fault::Broken, "check the disk, then restart this node").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_tears_a_write_is_replaced() {
    a_failed_leader(Fault::Torn, "check the disk").await;
}

/// A follower whose disk fails is missed by nobody, and does not vote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_disk_is_broken_does_not_vote() {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let leader = three.leader(None).await;
    let (broken, other) = ((leader + 1) % 3, (leader + 2) % 3);
    faults::set(three.dirs[broken].path(), Some(Fault::Broken));
    for value in 0..10 {
        push(&three.logs[leader], value).await.expect("it leads");
    }
    wait("the disk to be found broken", || {
        three.logs[broken].fault().is_some()
    })
    .await;
    three.net.cut(id(leader));
    let until = Instant::now() + ELECTION.1 * 5;
    while Instant::now() < until {
        assert!(!three.logs[other].leadership().borrow().leading);
        tokio::time::sleep(HEARTBEAT).await;
    }
    three.net.heal(id(leader));
    let leader = three.leader(Some(broken)).await;
    push(&three.logs[leader], 10).await.expect("it leads");
    faults::set(three.dirs[broken].path(), None);
    three.stop().await;
}

/// A disk that hangs for seconds: another leads meanwhile, and what the slow one has promised is right afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_is_replaced_and_comes_back() {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let old = three.leader(None).await;
    push(&three.logs[old], 0).await.expect("it leads");
    faults::set(three.dirs[old].path(), Some(Fault::Slow(ELECTION.1 * 6)));
    let hangs = three.logs[old].clone();
    let hangs = tokio::spawn(async move { push(&hangs, 77).await });
    let new = three.leader(Some(old)).await;
    faults::set(three.dirs[old].path(), None);
    push(&three.logs[new], 1).await.expect("it leads");
    let outcome = hangs.await.expect("no panic");
    let expected = values(&three.logs[new]);
    let there = expected.contains(&77);
    assert!(outcome.is_err() || there, "{outcome:?}, {expected:?}");
    three.agree(&expected).await;
    assert_eq!(three.logs[old].fault(), None);
    three.stop().await;
}

/// Followers whose disks hang hold up what is to be committed; nobody else could lead, and nobody's session ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_goes_on_while_disks_of_followers_hang() {
    a_leader_goes_on(|three, followers| {
        for follower in followers {
            let slow = Fault::Slow(ELECTION.1 * 4);
            faults::set(three.dirs[follower].path(), Some(slow));
        }
    })
    .await;
}

/// On a busy machine the others answer too late for raft, but within the lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_goes_on_while_answers_are_late() {
    a_leader_goes_on(|three, _| three.net.answer_late(ELECTION.1 / 2)).await;
}

async fn a_leader_goes_on(held_up: impl FnOnce(&Three, [usize; 2])) {
    let three = Three::start(LogConfig::SNAPSHOT_EVERY).await;
    let leader = three.leader(None).await;
    push(&three.logs[leader], 0).await.expect("it leads");
    let leadership = *three.logs[leader].leadership().borrow();
    held_up(&three, [(leader + 1) % 3, (leader + 2) % 3]);
    let waits = three.logs[leader].clone();
    let waits = tokio::spawn(async move { push(&waits, 1).await });
    let until = Instant::now() + ELECTION.1 * 3;
    while Instant::now() < until {
        assert!(three.logs[leader].lease_holds());
        assert_eq!(*three.logs[leader].leadership().borrow(), leadership);
        assert!(!waits.is_finished(), "no follower has said that it has it");
        tokio::time::sleep(HEARTBEAT).await;
    }
    for dir in &three.dirs {
        faults::set(dir.path(), None);
    }
    three.net.answer_late(Duration::ZERO);
    waits.await.expect("no panic").expect("it leads");
    three.agree(&[0, 1]).await;
    three.stop().await;
}
