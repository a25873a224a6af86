//! The metadata of a cluster in a file, and back.
//!
//! Needs root and /dev/fuse.

use std::fs;
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, Options, binary, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A backup, more changes, and the tree as it was at the backup, in a new cluster over the old chunks: also on a node that
/// wrote to the old one until the end.
#[test]
fn a_backup_comes_back() {
    let old = Cluster::with(&one_voter());
    let dir = old.path(2).join("dir");
    fs::create_dir(&dir).expect("mkdir");
    write(&dir.join("small"), b"as it was");
    write(&dir.join("large"), &pattern(3 << 20));
    write(&dir.join("deleted later"), &pattern(1 << 20));
    let backup = old.state().join("backup");
    let made = old
        .sh(2, &format!("{} backup {}", glu(), backup.display()))
        .ok();
    assert!(
        made.contains("glu-dev") && made.contains("inodes"),
        "{made}"
    );
    write(&dir.join("small"), b"changed");
    write(&dir.join("new"), &pattern(2 << 20));
    let before = [1, 2].map(|node| chunk_files(&old, node));
    fs::remove_file(dir.join("deleted later")).expect("unlink");
    wait_until(
        "the chunks of the deleted file to be gone",
        PATIENCE,
        || [1, 2].map(|node| chunk_files(&old, node)) == before.map(|count| count - 1),
    );
    old.kill(2);
    old.kill(1);

    let new = Cluster::with(&one_voter());
    new.kill(2);
    new.kill(1);
    let state = |cluster: &Cluster, node: u32| cluster.state().join(format!("node{node}/state"));
    for node in [1, 2] {
        let chunks = state(&new, node).join("chunks");
        fs::remove_dir_all(&chunks).expect("remove");
        let mut copy = std::process::Command::new("cp");
        copy.arg("-a")
            .arg(state(&old, node).join("chunks"))
            .arg(chunks);
        assert!(copy.status().expect("cp runs").success());
    }
    let config = new.state().join("node1/glud.toml");
    let restore = |config: &Path| {
        let mut command = std::process::Command::new(binary("glu"));
        command
            .arg("restore")
            .arg(&backup)
            .arg("--config")
            .arg(config);
        command.output().expect("glu runs")
    };
    // Nothing that is there is overwritten, and nobody gets it who does not keep metadata.
    let refused = restore(&config);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && why.contains("move it away"),
        "{why}"
    );
    let refused = restore(&new.state().join("node2/glud.toml"));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && why.contains("on node 1"),
        "{why}"
    );
    fs::rename(state(&new, 1).join("meta"), state(&new, 1).join("old")).expect("move away");
    let restored = restore(&config);
    assert!(restored.status.success(), "{restored:?}");
    // What is lost is known before anybody reads it.
    let checked = std::process::Command::new(binary("glu"))
        .arg("fsck")
        .arg(state(&new, 1))
        .output()
        .expect("glu runs");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(4), "{said}");
    let faults: Vec<&str> = said.lines().filter(|line| line.contains("(D1)")).collect();
    assert!(!faults.is_empty(), "{said}");
    for fault in faults {
        assert!(fault.contains("/dir/deleted later"), "{said}");
    }
    new.start(1);
    new.start(2);

    for node in [1, 2] {
        let dir = new.path(node).join("dir");
        wait_until("the tree to be back", PATIENCE, || {
            dir.join("small").exists()
        });
        let read = |name: &str| fs::read(dir.join(name));
        assert_eq!(read("small").expect("read"), b"as it was");
        assert!(read("large").expect("read") == pattern(3 << 20));
        assert!(!dir.join("new").exists(), "made after the backup");
        // Its chunks are gone: that is an error, not zeros.
        let lost = read("deleted later").expect_err("the chunks are gone");
        assert_eq!(lost.raw_os_error(), Some(libc::EIO), "{lost}");
    }
    // Chunks get numbers that the old cluster never gave out.
    write(&new.path(2).join("next"), &pattern(2 << 20));
    assert!(fs::read(new.path(1).join("next")).expect("read") == pattern(2 << 20));
}

fn one_voter() -> Options {
    Options {
        nodes: Some(2),
        voters: Some(1),
        ..Options::default()
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write");
    let file = fs::File::open(path).expect("open");
    file.sync_all().expect("sync");
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

/// Counts the chunks of a node.
fn chunk_files(cluster: &Cluster, node: u32) -> usize {
    let chunks = cluster.state().join(format!("node{node}/state/chunks"));
    let mut count = 0;
    for shard in 0..256 {
        let shard = chunks.join(format!("{shard:02x}"));
        count += fs::read_dir(shard).map_or(0, Iterator::count);
    }
    count
}

fn glu() -> String {
    binary("glu").display().to_string()
}
