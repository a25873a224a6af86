//! The set of voters changes while the tree is in use.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Options, binary, wait_until, with_deadline};

/// How long a write may wait for a lost leader.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long until a lost voter is replaced: it must have been away for `[repair] after_s`, which is 10 s in `glu dev`.
const REPLACED: Duration = Duration::from_secs(40);

/// One voter becomes three, none of which was configured as one, and outlives its node; who stays away is replaced, and
/// becomes a voter again when it has come back. No daemon is restarted for that. Somebody writes all the time.
#[test]
fn voters_are_added_and_replaced() {
    let cluster = Cluster::with(&Options {
        nodes: Some(4),
        voters: Some(1),
        ..Options::default()
    });
    assert_eq!(cluster.status().voters, [1]);
    let mut file = File::create_new(cluster.path(2).join("f")).expect("create");
    file.write_all(b"kept").expect("write");
    file.sync_all().expect("sync");
    drop(file);
    fs::create_dir(cluster.path(4).join("dir")).expect("mkdir");
    refused(&cluster, "set 1 2", "2 voters: choose 1, 3 or 5");
    refused(&cluster, "add 1 2", "node 1 is a voter already");
    refused(&cluster, "add 2 9", "there is no node 9");
    refused(&cluster, "remove 1", "0 voters");
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let _stopped_in_the_end = Stop(&stop);
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let n = made.load(Ordering::Relaxed);
                let mut file = File::create(cluster.path(4).join(format!("dir/{n}")))?;
                file.write_all(n.to_string().as_bytes())?;
                file.sync_all()?;
                made.store(n + 1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
            std::io::Result::Ok(())
        });
        let goes_on = |what: &str| {
            let before = made.load(Ordering::Relaxed);
            wait_until(&format!("the writer to go on {what}"), PATIENCE, || {
                made.load(Ordering::Relaxed) > before + 2
            });
        };
        // From a node that keeps no metadata.
        assert_eq!(voters(&cluster, 4, "add 2 3"), "1 2 3");
        assert_eq!(cluster.status().voters, [1, 2, 3]);
        goes_on("with three voters");
        cluster.kill(1);
        let leader = cluster.leader(Some(1));
        goes_on("without node 1");
        // Node 1 stays away, node 4 takes its place by itself.
        let killed = Instant::now();
        wait_until("node 4 to take the place of node 1", REPLACED, || {
            cluster.status().voters == [2, 3, 4]
        });
        println!(
            "node 1 was replaced {:?} after node {leader} led",
            killed.elapsed()
        );
        goes_on("with the new three");
        cluster.start(1);
        assert_eq!(voters(&cluster, 1, "list"), "2 3 4");
        assert_eq!(voters(&cluster, 1, "replace 2 1"), "1 3 4");
        goes_on("with node 1 again");
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer").expect("no write fails");
    });
    // Of the three that there are now any may be lost; node 2 is none, and leads no longer than until it hears of that.
    wait_until("one of the new three to lead", PATIENCE, || {
        cluster.leader(None) != 2
    });
    let lost = cluster.leader(None);
    cluster.kill(lost);
    let path = cluster.path(2).join("g");
    with_deadline("a write with two of the new three", PATIENCE, move || {
        fs::write(path, "new")
    })
    .expect("write");
    for node in (1..=4).filter(|node| *node != lost) {
        let read = |name: &str| fs::read_to_string(cluster.path(node).join(name)).expect("read");
        assert_eq!([read("f"), read("g")], ["kept", "new"]);
        let count = fs::read_dir(cluster.path(node).join("dir"))
            .expect("list")
            .count() as u64;
        assert_eq!(count, made.load(Ordering::Relaxed));
    }
}

/// A voter that is emptied hands its vote on, also the leader: then it may be switched off.
#[test]
fn a_drained_voter_is_replaced() {
    let cluster = Cluster::with(&Options {
        nodes: Some(4),
        ..Options::default()
    });
    assert_eq!(cluster.status().voters, [1, 2, 3]);
    let leader = cluster.leader(None);
    fs::write(cluster.path(4).join("f"), "kept").expect("write");
    let drain = format!("{} drain {leader}", glu());
    let said = cluster.node(4).sh_within(2 * DEADLINE, &drain).ok();
    assert!(said.contains("it may be switched off"), "{said}");
    let left: Vec<u32> = (1..=4).filter(|node| *node != leader).collect();
    let voters: Vec<u32> = cluster.status().voters;
    assert_eq!(voters, left);
    cluster.kill(leader);
    for node in left {
        let path = cluster.path(node).join("f");
        let read = with_deadline("a look without node", PATIENCE, move || {
            fs::read_to_string(path)
        });
        assert_eq!(read.expect("read"), "kept");
    }
}

/// Ends the writer, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `glu voters` on a node.
fn voters(cluster: &Cluster, node: u32, arguments: &str) -> String {
    let script = format!("{} voters {arguments}", glu());
    cluster.node(node).sh_within(2 * DEADLINE, &script).ok()
}

#[track_caller]
fn refused(cluster: &Cluster, arguments: &str, why: &str) {
    let output = cluster.sh(2, &format!("{} voters {arguments}", glu()));
    assert_ne!(output.code(), Some(0), "{output}");
    assert!(output.to_string().contains(why), "{output}");
}

fn glu() -> String {
    binary("glu").display().to_string()
}
