//! Watchers (inotify) on one node are told what other nodes do: each event once, in order.
//!
//! Needs root and /dev/fuse.

use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, Running, wait_until};

const WATCH: &str = env!("CARGO_BIN_EXE_watch");
/// The daemon looks for new watches about every half second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a recursive watcher on node 2.
fn watch(cluster: &Cluster, dir: &str) -> Running {
    watch_on(cluster, 2, 1, dir)
}

/// Starts a recursive watcher on a node, and waits until it is told what another one does.
fn watch_on(cluster: &Cluster, node: u32, other: u32, dir: &str) -> Running {
    let watcher = cluster.node(node).spawn_command(&[WATCH, dir]);
    effective_from(cluster, other, &watcher, dir);
    watcher
}

/// Waits until what node 1 does in `dir` is told.
fn effective(cluster: &Cluster, watcher: &Running, dir: &str) {
    effective_from(cluster, 1, watcher, dir);
}

fn effective_from(cluster: &Cluster, other: u32, watcher: &Running, dir: &str) {
    let mut probes = 0;
    wait_until("the watch to count on other nodes", PATIENCE, || {
        cluster
            .sh(
                other,
                &format!("mkdir {dir}/probe{probes} && rmdir {dir}/probe{probes}"),
            )
            .ok();
        probes += 1;
        // The end of one that the watcher found itself says nothing.
        watcher.stdout().contains(&format!("IN_CREATE {dir}/probe"))
    });
    let end = format!("{dir}/probes-end/");
    cluster
        .sh(other, &format!("mkdir {end} && rmdir {end}"))
        .ok();
    wait_until("the last probe", PATIENCE, || {
        watcher.stdout().contains(&format!("IN_DELETE {end}"))
    });
}

/// Returns the events so far, without those of probes.
fn events(watcher: &Running) -> Vec<String> {
    let text = watcher.stdout();
    let lines = text.lines().filter(|line| !line.contains("/probe"));
    lines.map(str::to_owned).collect()
}

#[track_caller]
fn check(watcher: &Running, expected: &[&str]) {
    let end = Instant::now() + PATIENCE;
    while events(watcher).len() < expected.len() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(events(watcher), expected);
}

#[test]
fn remote_changes_are_told_once() {
    let cluster = Cluster::up(3);
    cluster
        .sh(1, "mkdir -p /cluster/w/old /cluster/elsewhere")
        .ok();
    let watcher = watch(&cluster, "/cluster/w");
    let mut expected = vec![];
    // By two nodes, one after the other.
    cluster
        .sh(
            1,
            "mkdir /cluster/w/sub && ln -s x /cluster/w/link && mkfifo /cluster/w/fifo",
        )
        .ok();
    cluster
        .sh(
            3,
            "chmod 700 /cluster/w/fifo && mv /cluster/w/fifo /cluster/w/old/p",
        )
        .ok();
    expected.extend([
        "IN_CREATE /cluster/w/sub/",
        "IN_CREATE /cluster/w/link",
        "IN_CREATE /cluster/w/fifo",
        "IN_ATTRIB /cluster/w/fifo",
        "IN_MOVED_FROM /cluster/w/fifo move 0",
        "IN_MOVED_TO /cluster/w/old/p move 0",
    ]);
    check(&watcher, &expected);
    // A directory made after the watcher began is watched, too.
    effective(&cluster, &watcher, "/cluster/w/sub");
    cluster
        .sh(
            3,
            "ln /cluster/w/old/p /cluster/w/sub/q && rm /cluster/w/old/p",
        )
        .ok();
    cluster
        .sh(1, "rm /cluster/w/sub/q && rmdir /cluster/w/sub")
        .ok();
    expected.extend([
        "IN_CREATE /cluster/w/sub/q",
        "IN_DELETE /cluster/w/old/p",
        "IN_DELETE /cluster/w/sub/q",
        "IN_DELETE_SELF /cluster/w/sub",
        "IN_DELETE /cluster/w/sub/",
    ]);
    check(&watcher, &expected);
    // Content is told when it has left the node that wrote it.
    cluster
        .sh(1, "echo text >/cluster/w/f && sync /cluster/w/f")
        .ok();
    expected.extend([
        "IN_CREATE /cluster/w/f",
        "IN_MODIFY /cluster/w/f",
        "IN_CLOSE_WRITE /cluster/w/f",
    ]);
    check(&watcher, &expected);
    // A writer that goes on is told as such, its end once.
    // The kernel makes one of two like events that nobody has read.
    let script = "exec 3>/cluster/w/log; echo 1 >&3; sync /cluster/w/log
        until [ -e /cluster/go ]; do :; done
        echo 2 >&3; sync /cluster/w/log; exec 3>&-; rm /cluster/w/log";
    let writer = cluster.spawn(1, script);
    expected.extend(["IN_CREATE /cluster/w/log", "IN_MODIFY /cluster/w/log"]);
    check(&watcher, &expected);
    cluster.sh(1, "touch /cluster/go").ok();
    writer.wait(DEADLINE).ok();
    expected.extend([
        "IN_MODIFY /cluster/w/log",
        "IN_CLOSE_WRITE /cluster/w/log",
        "IN_DELETE /cluster/w/log",
    ]);
    check(&watcher, &expected);
    // N4: node 2's kernel forgets the name of the watched directory, and nobody there looks it up again.
    cluster.sh(1, "mkdir /cluster/other /cluster/w/t").ok();
    effective(&cluster, &watcher, "/cluster/w/t");
    cluster.sh(3, "rmdir /cluster/other").ok();
    cluster
        .sh(1, "mkfifo /cluster/w/t/p && rm -r /cluster/w/t")
        .ok();
    expected.extend([
        "IN_CREATE /cluster/w/t/",
        "IN_CREATE /cluster/w/t/p",
        "IN_DELETE /cluster/w/t/p",
        "IN_DELETE_SELF /cluster/w/t",
        "IN_DELETE /cluster/w/t/",
    ]);
    check(&watcher, &expected);
    // What the watcher's own node does is told by its own kernel, and by nobody else.
    cluster
        .sh(
            2,
            "mkfifo /cluster/w/own && rm /cluster/w/own && mkdir /cluster/elsewhere/x",
        )
        .ok();
    cluster.sh(1, "mv /cluster/w/f /cluster/w/link").ok();
    expected.extend([
        "IN_CREATE /cluster/w/own",
        "IN_DELETE /cluster/w/own",
        "IN_MOVED_FROM /cluster/w/f move 1",
        "IN_MOVED_TO /cluster/w/link move 1",
    ]);
    check(&watcher, &expected);
    assert_eq!(
        cluster.sh(2, "cat /cluster/w/link; ls /cluster/w").ok(),
        "text\nlink\nold"
    );
}

/// Many changes at once: none is missing, none comes twice, and the tree is what it is.
#[test]
fn many_changes_are_told_in_order() {
    let cluster = Cluster::up(2);
    cluster.sh(1, "mkdir /cluster/w").ok();
    let watcher = watch(&cluster, "/cluster/w");
    let busy = cluster.spawn(
        2,
        "while [ ! -e /cluster/done ]; do ls -l /cluster/w; done >/dev/null 2>&1; true",
    );
    let script = "cd /cluster/w && for i in $(seq 100); do mkdir d && rmdir d; mkfifo a$i && mv a$i b$i; done; touch /cluster/done";
    cluster.sh(1, script).ok();
    busy.wait(DEADLINE).ok();
    let expected: Vec<String> = (1..=100)
        .flat_map(|i| {
            [
                "IN_CREATE /cluster/w/d/".to_owned(),
                "IN_DELETE /cluster/w/d/".to_owned(),
                format!("IN_CREATE /cluster/w/a{i}"),
                format!("IN_MOVED_FROM /cluster/w/a{i} move {}", i - 1),
                format!("IN_MOVED_TO /cluster/w/b{i} move {}", i - 1),
            ]
        })
        .collect();
    // The watcher adds a watch to each directory that comes, so the end of some of them is told to it as well.
    let found = || {
        let events = events(&watcher).into_iter();
        let found = events.filter(|line| !line.starts_with("IN_DELETE_SELF"));
        found.collect::<Vec<_>>()
    };
    wait_until("500 events", PATIENCE, || found().len() >= expected.len());
    assert_eq!(found(), expected);
    assert_eq!(cluster.sh(2, "ls /cluster/w | wc -l").ok(), "100");
}

/// N6: the leader's node loses its power while events are told; the next leader goes on, none is missing or comes twice.
#[test]
fn a_lost_leader_loses_no_events() {
    const FILES: usize = 400;
    let cluster = Cluster::up(3);
    let leader = cluster.leader(None);
    let others: Vec<u32> = (1..=3).filter(|node| *node != leader).collect();
    cluster.sh(others[0], "mkdir /cluster/w").ok();
    let watcher = watch_on(&cluster, others[0], others[1], "/cluster/w");
    let script =
        format!("cd /cluster/w && for i in $(seq {FILES}); do mkfifo a$i && mv a$i b$i; done");
    let writer = cluster.spawn(others[1], &script);
    wait_until("the first events", PATIENCE, || {
        events(&watcher).len() > FILES / 10
    });
    cluster.kill(leader);
    let heard = events(&watcher).len();
    println!("{heard} events were told when the leader was lost");
    writer.wait(2 * PATIENCE).ok();
    let expected: Vec<String> = (1..=FILES)
        .flat_map(|i| {
            [
                format!("IN_CREATE /cluster/w/a{i}"),
                format!("IN_MOVED_FROM /cluster/w/a{i} move {}", i - 1),
                format!("IN_MOVED_TO /cluster/w/b{i} move {}", i - 1),
            ]
        })
        .collect();
    wait_until("all events", PATIENCE, || {
        events(&watcher).len() >= expected.len()
    });
    assert_eq!(events(&watcher), expected);
}
