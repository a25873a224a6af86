//! What `glu fsck` says of a node's directory, with real daemons.
//!
//! Needs root and /dev/fuse.

use serde::Deserialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tests::{Cluster, binary};

#[derive(Debug, Deserialize)]
struct Report {
    node: Option<u16>,
    inodes: u64,
    chunks: u64,
    faults: Vec<Fault>,
}

#[derive(Debug, Deserialize)]
struct Fault {
    part: String,
    rule: Option<String>,
    what: String,
}

/// A node is checked only while its daemon is stopped; what is damaged then is named with its file.
#[test]
fn a_stopped_node_is_checked() {
    let cluster = Cluster::up(2);
    let state = |node: u32| cluster.state().join(format!("node{node}/state"));
    fs::create_dir(cluster.path(2).join("dir")).expect("mkdir");
    let file = fs::File::create_new(cluster.path(2).join("dir/file")).expect("create");
    std::io::Write::write_all(&mut &file, &vec![7; 1 << 20]).expect("write");
    file.sync_all().expect("sync");
    drop(file);

    let running = fsck(&state(1), &[]);
    assert_eq!(running.status.code(), Some(1), "{running:?}");
    let why = String::from_utf8_lossy(&running.stderr);
    assert!(why.contains("in use by another process"), "{why}");
    assert_eq!(why.lines().count(), 1, "{why}");

    cluster.kill(1);
    cluster.kill(2);
    let (code, report) = report(&state(1));
    assert_eq!((code, report.node), (Some(0), Some(1)), "{report:?}");
    assert!(report.inodes >= 3 && report.chunks >= 1, "{report:?}");
    let text = fsck(&state(1), &[]);
    assert!(String::from_utf8_lossy(&text.stdout).contains("nothing is wrong"));
    // A node that keeps no metadata has nothing to compare with but the checksums.
    let (code, report) = self::report(&state(2));
    assert_eq!((code, report.node), (Some(0), None), "{report:?}");
    assert!(report.chunks >= 1, "{report:?}");

    let chunk = chunks(&state(1)).pop().expect("there is one");
    let bytes = fs::read(&chunk).expect("read");
    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    fs::write(&chunk, damaged).expect("write");
    let (code, report) = self::report(&state(1));
    assert_eq!((code, report.faults.len()), (Some(4), 1), "{report:?}");
    let fault = &report.faults[0];
    assert_eq!(
        (&*fault.part, fault.rule.as_deref()),
        ("chunks", Some("D1"))
    );
    assert!(fault.what.contains("/dir/file"), "{fault:?}");
    assert!(
        fault.what.contains("another copy is on node 2"),
        "{fault:?}"
    );
    fs::write(&chunk, bytes).expect("write");

    // What was checked is what is served.
    cluster.start(1);
    cluster.start(2);
    let read = fs::read(cluster.path(2).join("dir/file")).expect("read");
    assert!(read == vec![7; 1 << 20]);
}

fn fsck(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(binary("glu"));
    let output = command.arg("fsck").arg(dir).args(args).output();
    output.expect("glu runs")
}

fn report(dir: &Path) -> (Option<i32>, Report) {
    let output = fsck(dir, &["--json"]);
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

fn chunks(state: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).expect("list");
        entries.map(|entry| entry.expect("listed").path())
    };
    let shards = list(&state.join("chunks")).filter(|dir| {
        let name = dir.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.len() == 2)
    });
    shards
        .flat_map(|shard| list(&shard).collect::<Vec<_>>())
        .collect()
}
