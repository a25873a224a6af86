//! A node whose machine or key was lost is shut out, for good.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Options, binary, wait_until, with_deadline};

/// How long until every node refuses it.
const REFUSED: Duration = Duration::from_secs(5);
/// Its session ends with the lease term, which is 4 s in `glu dev`; on a busy machine a little later.
const FREE: Duration = Duration::from_secs(15);
/// Its copies are made anew without waiting for `[repair] after_s`, and another node takes its vote.
const MADE_ANEW: Duration = Duration::from_secs(30);

/// No other node talks to it, also after a restart, the leader or a node that keeps no metadata; both sides say why. Its locks
/// are free after the term, its file data has its copies on others, another votes in its place. A machine with a new
/// certificate takes its number.
#[test]
fn a_revoked_node_is_shut_out() {
    let cluster = Cluster::with(&Options {
        nodes: Some(4),
        ..Options::default()
    });
    assert_eq!(cluster.status().voters, [1, 2, 3]);
    let leader = cluster.leader(None);
    let lost = if leader == 3 { 2 } else { 3 };
    let left: Vec<u32> = (1..=4).filter(|node| *node != lost).collect();
    // Its first copies are there.
    for name in ["a", "b", "c"] {
        let mut file = File::create_new(cluster.path(lost).join(name)).expect("create");
        file.write_all(&vec![b'x'; 1 << 20]).expect("write");
        file.sync_all().expect("sync");
    }
    let lock = File::create_new(cluster.path(lost).join("lock")).expect("create");
    lock.lock().expect("flock");

    let refused = cluster.sh(1, &glu("node revoke 9"));
    assert!(refused.stderr.contains("there is no node 9"), "{refused}");
    // A cluster that has just begun may know of one disk alone, and make the second copies later.
    wait_until("two copies of each file", MADE_ANEW, || {
        status(&cluster, left[0]).contains("all file data has its copies")
    });
    let revoked = Instant::now();
    let said = cluster.sh(1, &glu(&format!("node revoke {lost}"))).ok();
    assert!(said.contains(&format!("node {lost} is revoked")), "{said}");

    let why = format!("certificates of node {lost} were revoked at");
    wait_until("the node to say why it is alone", REFUSED, || {
        let said = status(&cluster, lost);
        let state = format!("node {lost}, revoked");
        said.contains(&state) && said.contains("cannot be reached") && said.contains(&why)
    });
    println!("the node knew after {:?}", revoked.elapsed());
    for node in &left {
        let log = cluster.state().join(format!("node{node}/glud.log"));
        wait_until("each other node to refuse it", REFUSED, || {
            let log = fs::read_to_string(&log).expect("the log");
            log.contains("their certificates are refused")
        });
    }
    println!("all refused it after {:?}", revoked.elapsed());

    let other = cluster.path(left[0]).join("lock");
    with_deadline("the lock that it held", FREE, move || {
        File::open(other).and_then(|file| file.lock())
    })
    .expect("flock");
    println!("its lock was free after {:?}", revoked.elapsed());
    wait_until(
        "its copies and its vote to be with others",
        MADE_ANEW,
        || {
            let said = status(&cluster, left[0]);
            let line = said
                .lines()
                .find(|line| line.contains(&format!("node{lost}")));
            line.is_some_and(|line| line.contains("revoked"))
                && said.contains("all file data has its copies")
                && !cluster.status().voters.contains(&lost)
        },
    );
    println!(
        "copies and vote were with others after {:?}",
        revoked.elapsed()
    );
    for (node, name) in left.iter().zip(["a", "b", "c"]) {
        let read = fs::read(cluster.path(*node).join(name)).expect("read");
        assert_eq!(read.len(), 1 << 20);
    }

    // Who starts knows it before it listens.
    cluster.kill(4);
    cluster.start(4);
    let log = fs::read_to_string(cluster.state().join("node4/glud.log")).expect("the log");
    let again = log.rsplit("serving").nth(1).expect("it has served twice");
    assert!(again.contains("their certificates are refused"), "{again}");

    // Neither comes its daemon up again, nor does it harm anybody.
    drop(lock);
    cluster.kill(lost);
    let mut start = std::process::Command::new(binary("glu"))
        .args(["dev", "--state"])
        .arg(cluster.state())
        .args(["start", &lost.to_string()])
        .spawn()
        .expect("glu runs");
    wait_until("the node to be refused when it starts", DEADLINE, || {
        let log = cluster.state().join(format!("node{lost}/glud.log"));
        let log = fs::read_to_string(log).expect("the log");
        let starts = log.matches("this node is shut out of the cluster").count();
        starts >= 2
    });
    start.kill().expect("our child");
    start.wait().expect("our child");
    cluster.kill(lost);
    fs::write(cluster.path(left[0]).join("d"), "d").expect("write");

    // A new machine: another certificate, and an empty disk.
    let dir = cluster.state().join(format!("node{lost}"));
    fs::remove_dir_all(dir.join("tls")).expect("remove");
    fs::remove_dir_all(dir.join("state")).expect("remove");
    fs::create_dir(dir.join("state")).expect("mkdir");
    let (ca, tls) = (cluster.state().join("ca"), dir.join("tls"));
    let issue = format!("node issue --ca {} {lost} {}", ca.display(), tls.display());
    cluster.sh(1, &glu(&issue)).ok();
    cluster.start(lost);
    let read = fs::read_to_string(cluster.path(lost).join("d")).expect("read");
    assert_eq!(read, "d");
    let said = status(&cluster, left[0]);
    assert!(!said.contains("revoked"), "{said}");
}

/// Without its vote the others could agree to nothing any more.
#[test]
fn a_voter_that_the_others_need_is_not_revoked() {
    let cluster = Cluster::up(1);
    let refused = cluster.sh(1, &glu("node revoke 1"));
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("glu voters replace 1"), "{refused}");
    fs::write(cluster.path(1).join("f"), "f").expect("write");
}

fn status(cluster: &Cluster, node: u32) -> String {
    cluster.sh(node, &glu("status")).stdout
}

fn glu(arguments: &str) -> String {
    format!("{} {arguments}", binary("glu").display())
}
