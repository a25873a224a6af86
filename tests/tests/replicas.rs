//! Copies of file data, on real mounts of three nodes of which node 1 keeps the metadata.
//!
//! Needs root and /dev/fuse.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tests::{Cluster, Options, binary, wait_until, with_deadline};

/// How long it may take until the copies of a lost node are made anew: its lease, the time it is waited for (10 s in
/// development clusters), copying, and much slack for a busy machine.
const REPAIR: Duration = Duration::from_secs(120);
/// How long a read may take whose first choice is dead.
const READ: Duration = Duration::from_secs(60);

#[derive(Debug, Deserialize)]
struct Status {
    nodes: Vec<Node>,
    repair: Repair,
}

#[derive(Debug, Deserialize)]
struct Node {
    node: u32,
    up: bool,
    chunks: u64,
    draining: bool,
}

#[derive(Debug, Deserialize)]
struct Repair {
    complete: bool,
    lacking: u64,
    unreachable: u64,
    copying: u64,
}

/// Runs `glu` on node 1.
fn glu(cluster: &Cluster, words: &str) -> tests::Output {
    cluster.sh(1, &format!("{} {words}", binary("glu").display()))
}

fn status(cluster: &Cluster) -> Status {
    let text = glu(cluster, "status --json").ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn node(status: &Status, number: u32) -> &Node {
    let mut nodes = status.nodes.iter();
    nodes.find(|node| node.node == number).expect("a node")
}

/// Waits until node `away` is known to be down, and every chunk has its copies on the others.
fn wait_for_repair(cluster: &Cluster, away: &[u32]) {
    let mut last = None;
    wait_until("every chunk to have its copies", REPAIR, || {
        let now = status(cluster);
        let Repair {
            complete,
            lacking,
            unreachable,
            copying,
        } = now.repair;
        let down = away.iter().all(|number| !node(&now, *number).up);
        let done = down && complete && lacking == 0 && unreachable == 0 && copying == 0;
        last = Some(now);
        done
    });
    println!("{last:?}");
}

fn pattern(file: usize, size: usize) -> Vec<u8> {
    let byte = |i: usize| u8::try_from((i * 31 + file * 7) % 251).expect("below 256");
    (0..size).map(byte).collect()
}

const SIZES: [usize; 6] = [10_000, 70_000, 100_000, 1_000_000, 5_000_000, 9_000_000];

/// Writes files on a node, durably.
fn write(cluster: &Cluster, number: u32) {
    let dir = cluster.path(number).join(format!("by{number}"));
    fs::create_dir(&dir).expect("mkdir");
    for (at, size) in SIZES.into_iter().enumerate() {
        let mut file = File::create(dir.join(at.to_string())).expect("create");
        file.write_all(&pattern(at, size)).expect("write");
        file.sync_all().expect("fsync");
    }
}

/// Reads what `writer` wrote on another node.
fn check(cluster: &Cluster, reader: u32, writer: u32) {
    for (at, size) in SIZES.into_iter().enumerate() {
        let path = cluster.path(reader).join(format!("by{writer}/{at}"));
        let what = format!("{} to be read", path.display());
        let data = with_deadline(&what, READ, move || fs::read(path));
        let right = data.expect("readable") == pattern(at, size);
        assert!(right, "{size} bytes of node {writer} on node {reader}");
    }
}

/// Returns the files of the chunks in a node's store.
fn chunks(cluster: &Cluster, number: u32) -> Vec<PathBuf> {
    let store = cluster.state().join(format!("node{number}/state/chunks"));
    let mut found = Vec::new();
    for shard in fs::read_dir(store).expect("a store") {
        let shard = shard.expect("an entry").path();
        let name = shard.file_name().expect("a name").to_string_lossy();
        if name.len() == 2 && shard.is_dir() {
            found.extend(
                fs::read_dir(&shard)
                    .expect("a shard")
                    .map(|e| e.expect("an entry").path()),
            );
        }
    }
    found.sort();
    found
}

fn damage(chunk: &Path) {
    let mut bytes = fs::read(chunk).expect("a chunk");
    let last = bytes.len() - 1;
    bytes[last] ^= 0x55;
    fs::write(chunk, bytes).expect("writes");
}

/// One node after the other goes for good; in between everything gets its copies again.
#[test]
fn d2_two_nodes_lost_one_after_the_other() {
    // The metadata would need two of three voters; what is looked at here is the data.
    let cluster = Cluster::with(&Options {
        nodes: Some(3),
        voters: Some(1),
        ..Options::default()
    });
    for number in 1..=3 {
        write(&cluster, number);
    }
    cluster.kill(3);
    wait_for_repair(&cluster, &[3]);
    cluster.kill(2);
    for writer in 1..=3 {
        check(&cluster, 1, writer);
    }
    // What the first one still has is nobody's: it goes when it is back, and all is as it was.
    cluster.start(3);
    cluster.start(2);
    wait_for_repair(&cluster, &[]);
    for writer in 1..=3 {
        check(&cluster, 3, writer);
    }
    let listed = |status: &Status, number| node(status, number).chunks;
    wait_until("orphans to be deleted", REPAIR, || {
        let now = status(&cluster);
        (2..=3).all(|number| chunks(&cluster, number).len() as u64 == listed(&now, number))
    });
}

/// A damaged copy is not read, and is made good: the scrub finds it, the leader has it copied.
#[test]
fn a_damaged_copy_is_made_good() {
    let cluster = Cluster::up(3);
    write(&cluster, 2);
    wait_for_repair(&cluster, &[]);
    let before = chunks(&cluster, 2);
    assert!(!before.is_empty(), "the writer has the first copies");
    for chunk in &before {
        damage(chunk);
    }
    check(&cluster, 2, 2);
    let aside = cluster.state().join("node2/state/chunks/quarantine");
    wait_until("the damaged chunks to be set aside", REPAIR, || {
        fs::read_dir(&aside).expect("a directory").count() >= before.len()
    });
    wait_for_repair(&cluster, &[]);
    // Now others may go: what was damaged has two good copies again.
    cluster.kill(3);
    wait_for_repair(&cluster, &[3]);
    check(&cluster, 1, 2);
    check(&cluster, 2, 2);
}

/// An emptied node may go at once, and nothing is lost with it.
#[test]
fn a_drained_node_may_be_switched_off() {
    let cluster = Cluster::up(3);
    for number in 1..=3 {
        write(&cluster, number);
    }
    let said = cluster
        .node(1)
        .sh_within(REPAIR, &format!("{} drain 3", binary("glu").display()))
        .ok();
    assert!(said.contains("it may be switched off"), "{said}");
    let now = status(&cluster);
    assert_eq!((node(&now, 3).chunks, node(&now, 3).draining), (0, true));
    cluster.kill(3);
    for writer in 1..=3 {
        check(&cluster, 1, writer);
        check(&cluster, 2, writer);
    }
    let refused = glu(&cluster, "drain 9");
    assert!(
        refused.to_string().contains("there is no node 9"),
        "{refused}"
    );
    glu(&cluster, "undrain 3").ok();
    assert!(!node(&status(&cluster), 3).draining);
}

/// Returns which nodes have each chunk.
fn holders(cluster: &Cluster, nodes: u32) -> BTreeMap<String, BTreeSet<u32>> {
    let mut holders: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for node in 1..=nodes {
        for chunk in chunks(cluster, node) {
            let name = chunk.file_name().expect("a name").to_string_lossy();
            holders.entry(name.into_owned()).or_default().insert(node);
        }
    }
    holders
}

fn put(path: &Path, data: &[u8]) {
    let mut file = File::create(path).expect("create");
    file.write_all(data).expect("write");
    file.sync_all().expect("fsync");
}

/// Copies are in different racks, as many as the tree says, and some of them go to a node that joins.
#[test]
fn copies_follow_racks_trees_and_new_nodes() {
    const NODES: u32 = 4;
    const FILES: u8 = 24;
    let cluster = Cluster::with(&Options {
        nodes: Some(NODES),
        voters: Some(1),
        ..Options::default()
    });
    for (number, rack) in [(1, "a"), (2, "a"), (3, "b"), (4, "b")] {
        let path = cluster.state().join(format!("node{number}/glud.toml"));
        let text = fs::read_to_string(&path).expect("read the configuration");
        let changed = text.replace(
            "replicas = 2\n",
            &format!("replicas = 2\nrack = \"{rack}\"\n"),
        );
        assert_ne!(text, changed, "the line is there");
        fs::write(&path, changed).expect("write the configuration");
        cluster.kill(number);
        if number != 4 {
            cluster.start(number);
        }
    }
    let racks = |nodes: &BTreeSet<u32>| {
        let a = nodes.iter().filter(|node| **node <= 2).count();
        (a, nodes.len() - a)
    };

    let tree = cluster.path(1).join("tree");
    fs::create_dir(&tree).expect("mkdir");
    let wanted = |copies: &str| {
        let script = format!(
            "python3 -c \"import os; os.setxattr('/cluster/tree', 'user.glu.replicas', b'{copies}')\""
        );
        cluster.sh(1, &script).ok();
    };
    wanted("3");
    put(&tree.join("f"), &pattern(1, 1_000_000));
    // The number of the tree also counts for what is there already.
    for copies in ["3", "1", "2"] {
        wanted(copies);
        wait_until(&format!("{copies} copies"), REPAIR, || {
            let there = holders(&cluster, NODES);
            let count = |nodes: &BTreeSet<u32>| nodes.len().to_string() == copies;
            there.len() == 1 && there.values().all(count)
        });
    }

    for file in 0..FILES {
        let data = pattern(file.into(), 4 << 20);
        put(&cluster.path(1).join(file.to_string()), &data);
    }
    let apart = || {
        let there = holders(&cluster, NODES);
        there.len() > FILES.into() && there.values().all(|nodes| racks(nodes) == (1, 1))
    };
    wait_until("a copy of each chunk in each rack", REPAIR, apart);
    assert_eq!(chunks(&cluster, 4), Vec::<PathBuf>::new());
    // All copies of rack b are on node 3: node 4 takes some of them over.
    cluster.start(4);
    wait_until("the new node to have some", REPAIR, || {
        chunks(&cluster, 4).len() >= 3
    });
    wait_for_repair(&cluster, &[]);
    wait_until("a copy of each chunk in each rack, still", REPAIR, apart);
    let said = cluster
        .node(1)
        .sh_within(REPAIR, &format!("{} drain 3", binary("glu").display()))
        .ok();
    assert!(said.contains("it may be switched off"), "{said}");
    cluster.kill(3);
    for file in 0..FILES {
        let path = cluster.path(2).join(file.to_string());
        let what = format!("{} to be read", path.display());
        let data = with_deadline(&what, READ, move || fs::read(path));
        let right = data.expect("readable") == pattern(file.into(), 4 << 20);
        assert!(right, "file {file}");
    }
}
