//! Two nodes change one directory as fast as they can: no deadlock, no lost entry. `HAMMER_OPS` sets the operations of
//! each node.
//!
//! Needs root and /dev/fuse.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tests::{Cluster, with_deadline};

#[test]
fn two_nodes_hammer_one_directory() {
    let ops: usize = std::env::var("HAMMER_OPS")
        .map_or(2_000, |ops| ops.parse().expect("HAMMER_OPS is a number"));
    let cluster = Cluster::up(2);
    let dir = cluster.path(1).join("shared");
    fs::create_dir(&dir).expect("mkdir");
    let began = Instant::now();
    let nodes = [1, 2].map(|node| {
        let dir = cluster.path(node).join("shared");
        std::thread::spawn(move || hammer(&dir, node, ops))
    });
    let limit =
        Duration::from_secs(60) + Duration::from_millis(20) * u32::try_from(ops).expect("fits");
    let kept = with_deadline("two nodes hammering one directory", limit, move || {
        let mut kept = BTreeSet::new();
        for node in nodes {
            kept.extend(node.join().expect("no operation failed"));
        }
        kept
    });
    println!(
        "{ops} operations on each of 2 nodes in {:?}",
        began.elapsed()
    );
    for node in [1, 2] {
        let listed: BTreeSet<String> = names(&cluster.path(node).join("shared"));
        assert_eq!(
            listed, kept,
            "node {node} lists something else than what was left"
        );
        for name in &kept {
            let path = cluster.path(node).join("shared").join(name);
            assert!(
                path.symlink_metadata().is_ok(),
                "node {node} lists {name} but does not find it"
            );
        }
    }
}

/// Creates, renames and unlinks; returns the names that must be there at the end.
fn hammer(dir: &Path, node: u32, ops: usize) -> BTreeSet<String> {
    let path = |name: &str| -> PathBuf { dir.join(name) };
    let mut kept = BTreeSet::new();
    for i in 0..ops / 3 {
        let (first, second) = (format!("n{node}-a{i}"), format!("n{node}-b{i}"));
        fs::write(path(&first), &first).unwrap_or_else(|e| panic!("create {first}: {e}"));
        fs::rename(path(&first), path(&second)).unwrap_or_else(|e| panic!("rename {first}: {e}"));
        assert!(
            !path(&first).exists(),
            "{first} is still there after its rename"
        );
        if i % 10 == 0 {
            let content =
                fs::read_to_string(path(&second)).unwrap_or_else(|e| panic!("read {second}: {e}"));
            assert_eq!(content, first);
            kept.insert(second);
        } else {
            fs::remove_file(path(&second)).unwrap_or_else(|e| panic!("unlink {second}: {e}"));
        }
    }
    kept
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("readdir");
    entries
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("ASCII")
        })
        .collect()
}

/// Appends from two nodes to one file lose no record and tear none (O_APPEND, S7).
#[test]
fn two_nodes_append_to_one_file() {
    use std::io::Write;
    const RECORDS: usize = 300;
    let cluster = Cluster::up(2);
    let nodes = [1, 2].map(|node| {
        let path = cluster.path(node).join("log");
        std::thread::spawn(move || {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .expect("open");
            for i in 0..RECORDS {
                file.write_all(format!("node {node} record {i:05}\n").as_bytes())
                    .expect("append");
            }
        })
    });
    with_deadline(
        "two nodes appending to one file",
        Duration::from_secs(120),
        move || {
            for node in nodes {
                node.join().expect("no append failed");
            }
        },
    );
    for reader in [1, 2] {
        let log = fs::read_to_string(cluster.path(reader).join("log")).expect("read");
        for node in [1, 2] {
            let found: Vec<&str> = log
                .lines()
                .filter(|line| line.starts_with(&format!("node {node} ")))
                .collect();
            let expected: Vec<String> = (0..RECORDS)
                .map(|i| format!("node {node} record {i:05}"))
                .collect();
            assert_eq!(found, expected, "read on node {reader}");
        }
        assert_eq!(log.lines().count(), 2 * RECORDS, "read on node {reader}");
    }
}
