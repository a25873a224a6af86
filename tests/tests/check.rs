//! `glu check`: the leader checks the cluster while it serves.
//!
//! Needs root and /dev/fuse.

use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tests::{Cluster, binary, wait_until};

/// Twice the time between two sweeps of development clusters, and much slack.
const OVERDUE: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
struct Check {
    index: u64,
    inodes: u64,
    voters: Vec<Voter>,
    nodes: Vec<Node>,
    faults: Vec<Fault>,
}

#[derive(Debug, Deserialize)]
struct Voter {
    sum: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Node {
    node: u32,
    copies: u64,
    good: u64,
    bad: u64,
    unlisted: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    part: String,
    rule: String,
    what: String,
}

/// The voters agree while somebody writes all the time; a damaged and a missing copy are named with their files, and a
/// voter that is away is, too.
#[test]
fn a_cluster_in_use_is_checked() {
    let cluster = Cluster::up(3);
    // Nothing but the check looks for damage.
    for node in 1..=3 {
        let path = cluster.state().join(format!("node{node}/glud.toml"));
        let text = fs::read_to_string(&path).expect("read the configuration");
        let changed = text
            .replace("sweep_s = 5", "sweep_s = 3600")
            .replace("scrub_s = 30", "scrub_s = 3600");
        assert_ne!(text, changed, "the lines are there");
        fs::write(&path, changed).expect("write the configuration");
        cluster.kill(node);
        cluster.start(node);
    }
    for name in ["damaged", "missing", "sound"] {
        let path = cluster.path(2).join(name);
        fs::write(&path, vec![name.as_bytes()[0]; 1 << 20]).expect("write");
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .expect("sync");
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                fs::write(cluster.path(3).join(format!("f{}", n % 50)), "x").expect("write");
            }
        });
        let (code, check) = check(&cluster, 3, &[]);
        assert_eq!(code, Some(0), "{check:?}");
        assert_eq!(check.faults.len(), 0, "{check:?}");
        assert!(check.index > 0 && check.inodes >= 5, "{check:?}");
        let sums: Vec<_> = check
            .voters
            .iter()
            .map(|voter| voter.sum.as_ref())
            .collect();
        assert!(sums.len() == 3 && sums[0].is_some(), "{check:?}");
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{check:?}");
        let copies: u64 = check.nodes.iter().map(|node| node.copies).sum();
        let good: u64 = check.nodes.iter().map(|node| node.good).sum();
        assert!(copies >= 6 && good == copies, "{check:?}");
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer");
    });

    // All three have their first copy on the writer's node.
    let chunks = chunks(&cluster, 2);
    let of = |byte: u8| {
        let found = chunks.iter().find(|chunk| {
            let bytes = fs::read(chunk).expect("read");
            bytes.last() == Some(&byte)
        });
        found.expect("its chunk").clone()
    };
    let mut bytes = fs::read(of(b'd')).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(of(b'd'), bytes).expect("write");
    fs::remove_file(of(b'm')).expect("remove");
    // Damage in the middle is seen by who reads it.
    let (code, found) = check(&cluster, 1, &["--data"]);
    assert_eq!(code, Some(4), "{found:?}");
    assert_eq!(found.faults.len(), 2, "{found:?}");
    for (fault, name) in found.faults.iter().zip(["/damaged", "/missing"]) {
        assert_eq!((&*fault.part, &*fault.rule), ("chunks", "D1"));
        assert!(fault.what.starts_with("node 2: chunk"), "{fault:?}");
        assert!(fault.what.contains(name), "{fault:?}");
        assert!(fault.what.contains("another copy is on node"), "{fault:?}");
    }
    let node = found.nodes.iter().find(|node| node.node == 2);
    assert_eq!(node.map(|node| node.bad), Some(2), "{found:?}");

    let leader = cluster.leader(None);
    let away = if leader == 3 { 2 } else { 3 };
    cluster.kill(away);
    let (_, found) = check(&cluster, leader, &[]);
    let silent = found.voters.iter().filter(|voter| voter.error.is_some());
    assert_eq!(silent.count(), 1, "{found:?}");
}

/// A file that nobody can delete.
struct Stuck(PathBuf);

impl Stuck {
    fn make(from: &Path, to: PathBuf) -> Self {
        fs::copy(from, &to).expect("copies");
        chattr("+i", &to);
        Self(to)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(what: &str, path: &Path) {
    let status = Command::new("chattr").arg(what).arg(path).status();
    assert!(status.expect("chattr runs").success(), "{}", path.display());
}

/// A node whose sweep cannot delete what no file has there: a chunk of a deleted file, one copy too many, and a number that
/// nobody has given out are named. What the next sweep deletes is not.
#[test]
fn what_no_file_has_and_no_sweep_deletes_is_named() {
    let cluster = Cluster::up(3);
    let write = |node: u32, name: &str| {
        let path = cluster.path(node).join(name);
        fs::write(&path, vec![name.as_bytes()[0]; 1 << 20]).expect("write");
        let file = fs::File::open(&path).expect("open");
        file.sync_all().expect("sync");
        let chunks = chunks(&cluster, node);
        let last =
            |chunk: &&PathBuf| fs::read(chunk).expect("read").last() == Some(&name.as_bytes()[0]);
        let chunk = chunks.iter().find(last).expect("its chunk");
        let name = chunk.strip_prefix(store(&cluster, node));
        name.expect("in the store").to_owned()
    };
    let there = |node: u32, chunk: &Path| store(&cluster, node).join(chunk).exists();
    let kept = write(1, "kept");
    // Two copies of three nodes: one has none.
    let other = (2..=3).find(|node| !there(*node, &kept));
    let other = other.expect("a node without a copy");
    // A session keeps the numbers that it was given, to its end: that of the node which is restarted.
    let deleted = write(other, "deleted");
    let aside = cluster.state().join("aside");
    fs::copy(store(&cluster, other).join(&deleted), &aside).expect("copies");
    fs::remove_file(cluster.path(other).join("deleted")).expect("removes");
    wait_until("its chunk to be deleted", OVERDUE, || {
        (1..=3).all(|node| !there(node, &deleted))
    });

    cluster.kill(other);
    let unknown = Path::new("00/0000000100000000");
    let planted = [
        (&*aside, &*deleted),
        (&store(&cluster, 1).join(&kept), &*kept),
        (&*aside, unknown),
    ];
    let stuck = planted.map(|(from, name)| Stuck::make(from, store(&cluster, other).join(name)));
    cluster.start(other);
    let mut found = None;
    wait_until("what was planted to be overdue", OVERDUE, || {
        let (_, check) = check(&cluster, 1, &[]);
        let enough = check.faults.len() >= 3;
        found = Some(check);
        enough
    });
    let found = found.expect("checked");
    assert_eq!(found.faults.len(), 3, "{found:?}");
    for fault in &found.faults {
        assert_eq!((&*fault.part, &*fault.rule), ("chunks", "D3"));
        let node = format!("node {other}: chunk");
        assert!(fault.what.starts_with(&node), "{fault:?}");
    }
    let named = |what: &str| found.faults.iter().any(|fault| fault.what.contains(what));
    assert!(named("no file has it"), "{found:?}");
    assert!(named("a copy too many") && named("/kept"), "{found:?}");
    assert!(named("has not given that number out"), "{found:?}");
    let node = found.nodes.iter().find(|node| node.node == other);
    assert_eq!(node.and_then(|node| node.unlisted), Some(3), "{found:?}");

    // Once it can be deleted, the next sweep does so; but for what may be of use to somebody.
    drop(stuck);
    wait_until("the sweep to delete it", OVERDUE, || {
        !there(other, &deleted) && !there(other, &kept)
    });
    let (code, found) = check(&cluster, 1, &[]);
    assert_eq!((code, found.faults.len()), (Some(4), 1), "{found:?}");
    fs::remove_file(store(&cluster, other).join(unknown)).expect("removes");
    let (code, found) = check(&cluster, 1, &[]);
    assert_eq!(code, Some(0), "{found:?}");
}

fn store(cluster: &Cluster, node: u32) -> PathBuf {
    cluster.state().join(format!("node{node}/state/chunks"))
}

fn check(cluster: &Cluster, node: u32, args: &[&str]) -> (Option<i32>, Check) {
    let script = format!("{} check --json {}", glu(), args.join(" "));
    let output = cluster.sh(node, &script);
    let check = serde_json::from_str(&output.stdout);
    let check = check.unwrap_or_else(|error| panic!("{error}: {output}"));
    (output.code(), check)
}

fn chunks(cluster: &Cluster, node: u32) -> Vec<PathBuf> {
    let chunks = store(cluster, node);
    let shards = (0..256).map(|shard| chunks.join(format!("{shard:02x}")));
    let files = shards.flat_map(|shard| fs::read_dir(shard).expect("list"));
    files.map(|entry| entry.expect("listed").path()).collect()
}

fn glu() -> String {
    binary("glu").display().to_string()
}
