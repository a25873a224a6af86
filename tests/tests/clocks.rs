//! S6: one clock. A node whose own clock is an hour off, with its daemon and its programs, builds as all others do.
//! L3: one whose clock runs too slowly for leases says so.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::{Cluster, Options, binary, scratch_dir, wait_until};

/// The node whose clock is off.
const OFF: u32 = 2;
/// The library would change what stat(2) returns as well, which no wrong clock does.
const FAKE: &str = "NO_FAKE_STAT=1 faketime -m --exclude-monotonic -f +1h";

/// Nine seconds in ten.
const SLOW: &str = "NO_FAKE_STAT=1 faketime -m -f '+0 x0.9'";

/// Clusters of this process so far.
static FAKED: AtomicU32 = AtomicU32::new(0);

/// A cluster of three nodes, one of them with a daemon that runs by a faked clock.
fn cluster(fake: &str) -> Cluster {
    let number = FAKED.fetch_add(1, Ordering::Relaxed);
    let glud = scratch_dir().join(format!("glud-faked-{}-{number}", std::process::id()));
    let script = format!(
        "#!/bin/sh\ncase $2 in */node{OFF}/*) exec env {fake} {glud} \"$@\" ;; esac\nexec {glud} \"$@\"\n",
        glud = binary("glud").display()
    );
    fs::write(&glud, script).expect("write the script");
    fs::set_permissions(&glud, Permissions::from_mode(0o755)).expect("make it a program");
    Cluster::with(&Options {
        nodes: Some(3),
        glud: Some(glud),
        ..Options::default()
    })
}

/// Runs a script by the clock of its node.
#[track_caller]
fn sh(cluster: &Cluster, node: u32, script: &str) -> String {
    let faked = format!("{FAKE} sh -c '{script}'");
    cluster
        .sh(node, if node == OFF { &faked } else { script })
        .ok()
}

#[test]
fn s6_a_clock_that_is_off_is_not_seen() {
    let cluster = cluster(FAKE);
    let seconds = |node| -> i64 { sh(&cluster, node, "date +%s").parse().expect("a number") };
    assert!(seconds(OFF) - seconds(1) > 3500, "its clock is off");
    cluster.sh(1, "mkdir /cluster/w").ok();
    let rule = r"out: in\n\tcat in >out; echo >>log\n";
    cluster
        .sh(1, &format!("printf '{rule}' >/cluster/w/Makefile"))
        .ok();
    let mut last = (0, 0);
    for round in 0..6_u32 {
        let node = |step| (round + step) % 3 + 1;
        let edit = format!("echo {round} >/cluster/w/in");
        sh(&cluster, node(0), &edit);
        sh(&cluster, node(1), "make -s -C /cluster/w");
        let path = cluster.path(node(2)).join("w");
        let time = |name| {
            let found = fs::metadata(path.join(name)).expect("stat");
            (found.mtime(), found.mtime_nsec())
        };
        assert!(
            last < time("in"),
            "round {round}: edited after it was built"
        );
        assert!(
            time("in") < time("out"),
            "round {round}: built after it was edited"
        );
        last = time("out");
        // Up to date everywhere, and built once.
        for node in 1..=3 {
            sh(&cluster, node, "make -s -q -C /cluster/w");
        }
        let built = cluster.sh(node(2), "cat /cluster/w/out; wc -l </cluster/w/log");
        assert_eq!(built.ok(), format!("{round}\n{}", round + 1));
    }
}

#[test]
fn l3_a_clock_that_runs_too_slowly_is_told() {
    let cluster = cluster(SLOW);
    let glu = binary("glu").display().to_string();
    let status = |node| cluster.sh(node, &format!("{glu} status")).ok();
    let what = "the status of the node whose clock is slow";
    wait_until(what, Duration::from_secs(60), || {
        status(OFF).contains("node 2: while the leader's clock went")
    });
    assert!(!status(1).contains("clock"), "{}", status(1));
    let log = fs::read_to_string(cluster.state().join("node2/glud.log")).expect("the log");
    assert!(log.contains("what it shows may be old"), "{log}");
}
