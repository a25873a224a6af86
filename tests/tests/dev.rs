//! The development cluster itself, with a daemon that only mounts a tmpfs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;
use tests::{Cluster, DEADLINE, Options, scratch_dir, wait_until};

/// Mounts a tree of its own and says so, as glud does; counts its lives on the node's disk.
const STAND_IN: &str = r#"#!/bin/sh
set -eu
value() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" "$config"; }
config=$2
state=$(value state_dir)
echo life >>"$state/lives"
if [ -e "$state/broken" ]; then echo "cannot serve: broken" >&2; exit 3; fi
mount -t tmpfs tree "$(value mount_point)"
echo READY=1 >"$(value ready_file)"
exec sleep 1000000
"#;

fn stand_in() -> PathBuf {
    static SCRIPT: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = scratch_dir().join(format!("stand-in-glud-{}", std::process::id()));
        fs::write(&path, STAND_IN).expect("write the stand-in");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("make it a program");
        path
    });
    SCRIPT.clone()
}

fn cluster(nodes: u32) -> Cluster {
    Cluster::with(&Options {
        nodes: Some(nodes),
        glud: Some(stand_in()),
        ..Options::default()
    })
}

fn states(cluster: &Cluster) -> Vec<String> {
    cluster
        .status()
        .nodes
        .into_iter()
        .map(|node| node.state)
        .collect()
}

#[test]
fn each_node_has_its_own_name_pids_network_and_tree() {
    let cluster = cluster(2);
    for node in cluster.nodes() {
        let k = node.number();
        assert_eq!(
            node.sh("hostname; echo $GLU_NODE").ok(),
            format!("node{k}\n{k}")
        );
        let pid: u32 = node.sh("echo $$").ok().parse().expect("a pid");
        assert_eq!(pid / 65_536, k, "pid {pid} is in its node's range");
        assert_eq!(
            node.sh("ip -o -4 addr show | wc -l").ok(),
            "2",
            "loopback and eth0 only"
        );
        node.sh(&format!("echo {k} >/cluster/mine")).ok();
        let outside = fs::read_to_string(cluster.path(k).join("mine")).expect("seen from outside");
        assert_eq!(outside.trim(), k.to_string());
    }
    assert!(
        !Path::new("/cluster/mine").exists(),
        "the host sees no node's tree at /cluster"
    );
    let other = cluster.state().join("node1/cluster/from-node2");
    let script = format!("touch {} && ls /cluster", other.display());
    assert_eq!(cluster.node(2).sh(&script).ok(), "mine");
    assert_eq!(
        cluster.node(1).sh("ls /cluster").ok(),
        "from-node2\nmine",
        "one host, one disk"
    );
}

#[test]
fn exec_passes_everything_through() {
    let cluster = cluster(1);
    let node = cluster.node(1);
    assert_eq!(node.sh("exit 7").code(), Some(7));
    assert_eq!(
        node.sh("kill -TERM $$; exit 0").signal(),
        Some(libc::SIGTERM)
    );
    assert_eq!(
        node.sh("kill -KILL $$; exit 0").signal(),
        Some(libc::SIGKILL)
    );
    assert_eq!(
        cluster
            .dev(&["exec", "node1", "--", "no-such-program"])
            .code(),
        Some(127)
    );
    assert_eq!(
        cluster.dev(&["exec", "1", "--", "/etc/passwd"]).code(),
        Some(126)
    );
    let output = node.sh("echo out; echo err >&2");
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("out", "err")
    );
    let here = std::env::current_dir().expect("tests have a directory");
    assert_eq!(
        node.sh("pwd").ok(),
        here.display().to_string(),
        "the directory exists inside too"
    );
    let glu = tests::binary("glu");
    assert_eq!(node.sh("command -v glu").ok(), glu.display().to_string());
    assert_eq!(
        node.sh("grep SigBlk /proc/self/status").ok(),
        "SigBlk:\t0000000000000000"
    );
}

#[test]
fn exec_forwards_signals_and_takes_its_command_along() {
    let cluster = cluster(1);
    let node = cluster.node(1);
    let alive = |tag: &str| node.sh(&format!("pgrep -x -f 'sleep {tag}'")).code() == Some(0);

    let running =
        node.spawn("trap 'echo got TERM; exit 5' TERM; echo set; while :; do sleep 0.05; done");
    wait_until("the trap", DEADLINE, || running.stdout() == "set");
    signal(running.id(), libc::SIGTERM);
    let output = running.wait(DEADLINE);
    assert_eq!(
        (output.code(), output.stdout.as_str()),
        (Some(5), "set\ngot TERM")
    );

    let running = node.spawn("exec sleep 4711");
    wait_until("sleep 4711 to run", DEADLINE, || alive("4711"));
    signal(running.id(), libc::SIGKILL);
    wait_until("sleep 4711 to die with its watcher", DEADLINE, || {
        !alive("4711")
    });
    drop(running);
}

#[test]
fn a_killed_node_is_off_and_boots_on_its_own_disk() {
    let cluster = cluster(2);
    let node = cluster.node(2);
    let running = node.spawn("exec sleep 1000");
    node.sh("touch /cluster/volatile").ok();
    cluster.kill(2);
    assert_eq!(states(&cluster), ["up", "down"]);
    assert_eq!(
        running.wait(DEADLINE).signal(),
        Some(libc::SIGKILL),
        "its processes are gone"
    );
    let there = |path: &str| cluster.path(2).join(path).exists();
    assert!(!there("volatile"), "its tree is unmounted outside");
    let refused = cluster.dev(&["exec", "2", "--", "true"]);
    assert_eq!(refused.code(), Some(1));
    assert_eq!(
        refused.stderr,
        "glu: node2 is down: `glu dev start node2` boots it"
    );
    cluster.kill(2);
    cluster.start(2);
    cluster.start(2);
    assert_eq!(states(&cluster), ["up", "up"]);
    assert_eq!(node.sh("hostname").ok(), "node2");
    let lives = cluster.state().join("node2/state/lives");
    assert_eq!(
        fs::read_to_string(lives).expect("its disk is kept"),
        "life\nlife\n"
    );
    reaches(&cluster, 1, 2, true);
}

#[test]
fn a_cut_is_silence_in_both_directions() {
    let cluster = cluster(3);
    reaches(&cluster, 1, 2, true);
    cluster.cut(2);
    assert_eq!(states(&cluster), ["up", "cut", "up"]);
    reaches(&cluster, 1, 2, false);
    reaches(&cluster, 2, 3, false);
    reaches(&cluster, 1, 3, true);
    cluster.heal(2);
    assert_eq!(states(&cluster), ["up", "up", "up"]);
    reaches(&cluster, 1, 2, true);
    reaches(&cluster, 2, 3, true);
}

#[test]
fn a_dead_daemon_is_replaced_and_its_mount_too() {
    let cluster = cluster(1);
    let node = cluster.node(1);
    node.sh("touch /cluster/old; pkill -KILL -x -f 'sleep 1000000'")
        .ok();
    // In this order: the file that says ready goes before the mount does.
    let replaced = || !cluster.path(1).join("old").exists() && cluster.status().nodes[0].ready;
    wait_until("a new daemon with a new tree", DEADLINE, replaced);
    node.sh("touch /cluster/new").ok();
    assert!(
        cluster.path(1).join("new").exists(),
        "inside and outside see the new mount"
    );
    assert_eq!(
        node.sh("grep -c ' /cluster ' /proc/mounts").ok(),
        "2",
        "the bind and one tree"
    );
}

#[test]
fn a_node_that_cannot_serve_says_why() {
    let cluster = cluster(1);
    cluster.kill(1);
    fs::write(cluster.state().join("node1/state/broken"), "").expect("break it");
    let output = cluster.dev(&["start", "1"]);
    assert_eq!(output.code(), Some(1));
    for part in [
        "node1 does not serve",
        "exited with status 3",
        "cannot serve: broken",
    ] {
        assert!(output.stderr.contains(part), "{part} in {}", output.stderr);
    }
}

#[test]
fn clusters_do_not_meet_and_leave_nothing() {
    let first = cluster(1);
    let second = cluster(1);
    first.node(1).sh("touch /cluster/first").ok();
    assert_eq!(second.node(1).sh("ls /cluster").ok(), "");
    let (state, init) = (
        first.state().to_owned(),
        first.status().nodes[0].pid.expect("it is up"),
    );
    drop(first);
    assert!(!state.exists(), "its directory is removed");
    assert!(!runs(init), "its init has ended");
    let mounts = fs::read_to_string("/proc/mounts").expect("proc is mounted");
    assert!(
        !mounts.contains(&*state.to_string_lossy()),
        "nothing of it is mounted"
    );
    second
        .node(1)
        .sh("touch /cluster/second && test -d /run/glu")
        .ok();
    assert_eq!(states(&second), ["up"]);
}

#[test]
fn down_removes_what_is_left_of_a_crash() {
    let cluster = cluster(2);
    let record = cluster.state().join("cluster.json");
    let inits: Vec<_> = cluster
        .status()
        .nodes
        .iter()
        .filter_map(|node| node.pid)
        .collect();
    fs::write(&record, "{ torn").expect("tear the record");
    assert_eq!(cluster.dev(&["status"]).code(), Some(1));
    cluster.dev(&["down"]).ok();
    cluster.dev(&["down"]).ok();
    assert!(!cluster.state().exists());
    assert!(inits.iter().all(|pid| !runs(*pid)), "{inits:?} have ended");
}

#[test]
fn up_boots_what_is_down() {
    let cluster = cluster(2);
    cluster.kill(1);
    cluster.dev(&["up"]).ok();
    assert_eq!(states(&cluster), ["up", "up"]);
    let other = cluster.dev(&["up", "--nodes", "3"]);
    assert_eq!(other.code(), Some(2));
    assert!(other.stderr.contains("has 2 nodes"), "{}", other.stderr);
}

#[test]
fn mistakes_cost_one_line() {
    let cluster = cluster(1);
    let check = |args: &[&str], expected: &str| {
        let output = cluster.dev(args);
        assert_eq!(
            (output.code(), output.stderr.as_str()),
            (Some(2), expected),
            "{args:?}"
        );
    };
    let unknown =
        |name: &str| format!("glu: there is no node {name:?}: this cluster has node1 to node1");
    for command in ["kill", "start", "cut", "heal"] {
        check(&[command, "2"], &unknown("2"));
    }
    check(&["exec", "node9", "--", "true"], &unknown("node9"));
    check(&["up", "--nodes", "0"], "glu: a cluster has 1 to 47 nodes");
    check(
        &["frob"],
        "glu: unrecognized subcommand 'frob' (try --help)",
    );
    check(
        &["kill", "--hard", "1"],
        "glu: unexpected argument '--hard' found (try --help)",
    );
    check(
        &["kill"],
        "glu: the following required arguments were not provided: <NODE> (try --help)",
    );
}

/// Checks whether a connection attempt from one node to another is answered (there: refused).
#[track_caller]
fn reaches(cluster: &Cluster, from: u32, to: u32, expected: bool) {
    let script = format!("timeout 1 bash -c ': <>/dev/tcp/10.77.0.{to}/9' 2>&1 || true");
    let answered = || {
        let node = cluster.node(from);
        let said = node.sh_within(Duration::from_secs(20), &script).stdout;
        said.contains("refused")
    };
    if expected {
        // After a cut the kernel resolves the address again at its own pace.
        let what = format!("node{to} to answer node{from}");
        wait_until(&what, Duration::from_secs(20), answered);
    } else {
        assert!(!answered(), "node{to} answers node{from}");
    }
}

/// Returns whether the process runs; a zombie that nobody has reaped yet does not.
fn runs(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn signal(pid: u32, signal: i32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let signal = nix::sys::signal::Signal::try_from(signal).expect("a signal");
    nix::sys::signal::kill(pid, signal).expect("our own child takes signals");
}
