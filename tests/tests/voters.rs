//! The set of voters changes while the tree is in use.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use tests::{Cluster, DEADLINE, Options, binary, wait_until, with_deadline};

/// How long a write may wait for a lost leader.
const PATIENCE: Duration = Duration::from_secs(25);

/// One voter becomes three without being made anew, and outlives its node; who stays away is replaced. Somebody
/// writes all the time.
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
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    let refused = cluster.sh(2, &format!("{} voters set 1 2", glu()));
    assert_eq!(refused.code(), Some(2), "{refused}");
    thread::scope(|scope| {
        // On a node that is not restarted until the end.
        let writer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let n = made.load(Ordering::Relaxed);
                let mut file = File::create(cluster.path(4).join(format!("dir/{n}")))?;
                file.write_all(n.to_string().as_bytes())?;
                // Until then its node alone knows of it, which loses its power in the end (S4).
                file.sync_all()?;
                made.store(n + 1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(10));
            }
            std::io::Result::Ok(())
        });
        for node in [2, 3] {
            become_ready(&cluster, node, "[1, 2, 3]");
        }
        assert_eq!(set(&cluster, 1, "1 2 3"), "1 2 3");
        assert_eq!(cluster.status().voters, [1, 2, 3]);
        cluster.kill(1);
        let leader = cluster.leader(Some(1));
        let before = made.load(Ordering::Relaxed);
        wait_until("the writer to go on", PATIENCE, || {
            made.load(Ordering::Relaxed) > before + 2
        });
        println!("node 1 is gone; node {leader} leads");
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer").expect("no write fails");
    });
    // Node 1 stays away.
    become_ready(&cluster, 4, "[2, 3, 4]");
    let leader = cluster.leader(Some(1));
    assert_eq!(set(&cluster, leader, "2 3 4"), "2 3 4");
    let lost = cluster.leader(None);
    cluster.kill(lost);
    let left = (2..=4).find(|node| *node != lost).expect("two are left");
    let path = cluster.path(left).join("g");
    with_deadline("a write with two of the new three", PATIENCE, move || {
        fs::write(path, "new")
    })
    .expect("write");
    cluster.leader(Some(lost));
    assert_eq!(cluster.status().voters, [2, 3, 4]);
    for node in (2..=4).filter(|node| *node != lost) {
        let read = |name: &str| fs::read_to_string(cluster.path(node).join(name)).expect("read");
        assert_eq!([read("f"), read("g")], ["kept", "new"]);
        let count = fs::read_dir(cluster.path(node).join("dir"))
            .expect("list")
            .count() as u64;
        assert_eq!(count, made.load(Ordering::Relaxed));
    }
}

/// Boots a node with a configuration in which it is a voter, so that it can be made one.
fn become_ready(cluster: &Cluster, node: u32, voters: &str) {
    let path = cluster.state().join(format!("node{node}/glud.toml"));
    let text = fs::read_to_string(&path).expect("read the configuration");
    let changed = text.replace("voters = [1]", &format!("voters = {voters}"));
    assert_ne!(text, changed, "the line is there");
    fs::write(&path, changed).expect("write the configuration");
    cluster.kill(node);
    cluster.start(node);
}

fn set(cluster: &Cluster, leader: u32, voters: &str) -> String {
    let script = format!("{} voters set {voters}", glu());
    cluster.node(leader).sh_within(2 * DEADLINE, &script).ok()
}

fn glu() -> String {
    binary("glu").display().to_string()
}
