//! A cluster is upgraded node by node while it is in use.
//!
//! Needs root and /dev/fuse. `GLU_OLD_GLUD` names a daemon of the version before (scripts/upgrade-test.sh builds one);
//! without it the present one speaks that version and no other.

use serde::Deserialize;
use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tests::{Cluster, Options, binary, scratch_dir, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const NEW: u32 = 12;
const NODES: u32 = 3;

#[derive(Debug, Deserialize)]
struct Status {
    metadata_version: Option<u32>,
}

/// A stand-in for the daemon that runs the old one until a node is upgraded.
struct Daemons(PathBuf);

impl Daemons {
    fn new() -> Self {
        let dir = scratch_dir().join(format!("upgrade-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("mkdir");
        let (new, old) = (binary("glud"), env::var_os("GLU_OLD_GLUD"));
        let old = match old {
            Some(old) => PathBuf::from(old).display().to_string(),
            None => format!("env GLU_SPEAK_ONLY_VERSION={} {}", NEW - 1, new.display()),
        };
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n*node1*) n=1 ;;\n*node2*) n=2 ;;\n*) n=3 ;;\nesac\nif [ -e {}/new-$n ]; then exec {} \"$@\"; fi\nexec {old} \"$@\"\n",
            dir.display(),
            new.display(),
        );
        let path = dir.join("glud");
        fs::write(&path, script).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self(dir)
    }

    fn upgrade(&self, node: u32) {
        fs::write(self.0.join(format!("new-{node}")), "").expect("write");
    }

    fn downgrade(&self, node: u32) {
        fs::remove_file(self.0.join(format!("new-{node}"))).expect("remove");
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_cluster_in_use_is_upgraded_node_by_node() {
    let daemons = Daemons::new();
    let cluster = Cluster::with(&Options {
        nodes: Some(NODES),
        glud: Some(daemons.0.join("glud")),
        ..Options::default()
    });
    let stop = AtomicBool::new(false);
    // Whoever restarts a node has its lock; the writer there waits meanwhile.
    let up: Vec<Mutex<()>> = (0..NODES).map(|_| Mutex::default()).collect();
    let written: Vec<AtomicU64> = (0..NODES).map(|_| AtomicU64::new(0)).collect();
    let slot = |node: u32| usize::try_from(node - 1).expect("small");
    thread::scope(|scope| {
        for node in 1..=NODES {
            let (cluster, stop) = (&cluster, &stop);
            let (up, written) = (&up[slot(node)], &written[slot(node)]);
            scope.spawn(move || {
                // Where nobody else looks: what this node makes and removes there by itself an older leader must be told,
                // too.
                let own = cluster.path(node).join(format!("own{node}"));
                fs::create_dir(&own).expect("mkdir");
                while !stop.load(Ordering::Relaxed) {
                    let running = up.lock().unwrap_or_else(PoisonError::into_inner);
                    let n = written.load(Ordering::Relaxed);
                    write(&cluster.path(node).join(format!("{node}-{n}")), n)
                        .unwrap_or_else(|error| panic!("node {node}, file {n}: {error}"));
                    File::create(own.join(n.to_string())).expect("create");
                    if let Err(error) = fs::remove_file(own.join((n / 2).to_string())) {
                        // What it alone knew went with the killed daemon (S4), or it was removed before.
                        assert_eq!(error.kind(), ErrorKind::NotFound, "node {node}, file {n}");
                    }
                    written.store(n + 1, Ordering::Relaxed);
                    drop(running);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        let stopped = StopOnDrop(&stop);
        for node in 1..=NODES {
            progress(&written, 5);
            assert_ne!(version(&cluster, node), Some(NEW), "node {node}");
            let restarting = up[slot(node)]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            cluster.kill(node);
            daemons.upgrade(node);
            cluster.start(node);
            drop(restarting);
            println!("node {node} is upgraded");
        }
        progress(&written, 5);
        wait_until("the metadata to be of the new version", PATIENCE, || {
            (1..=NODES).all(|node| version(&cluster, node) == Some(NEW))
        });
        progress(&written, 5);
        drop(stopped);
    });
    let made: u64 = written
        .iter()
        .map(|written| written.load(Ordering::Relaxed))
        .sum();
    println!("{made} files");
    for node in 1..=NODES {
        for writer in 1..=NODES {
            for n in 0..written[slot(writer)].load(Ordering::Relaxed) {
                let path = cluster.path(node).join(format!("{writer}-{n}"));
                assert_eq!(fs::read_to_string(path).expect("read"), content(n));
            }
        }
    }
    if env::var_os("GLU_OLD_GLUD").is_some() {
        return;
    }
    // There is no way back: an old daemon leaves the newer store as it is, and says so.
    cluster.kill(3);
    daemons.downgrade(3);
    let refused = cluster.dev(&["start", "3"]);
    assert!(!refused.status.success(), "{refused}");
    let log = fs::read_to_string(cluster.state().join("node3/glud.log")).expect("the log");
    let why = format!("of version {NEW}, this glud speaks up to {}", NEW - 1);
    assert!(log.contains(&why), "{log}");
    cluster.kill(3);
    daemons.upgrade(3);
    cluster.start(3);
    let path = cluster.path(3).join("1-0");
    wait_until("node 3 to serve", PATIENCE, || path.exists());
}

/// Ends the writers, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn content(n: u64) -> String {
    n.to_string().repeat(3_000)
}

/// Inline content, or a chunk: both ways of the data are used.
fn write(path: &Path, n: u64) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content(n).as_bytes())?;
    file.sync_all()
}

fn progress(written: &[AtomicU64], files: u64) {
    let count = || -> Vec<u64> { written.iter().map(|n| n.load(Ordering::Relaxed)).collect() };
    let before = count();
    wait_until("all writers to go on", PATIENCE, || {
        count()
            .iter()
            .zip(&before)
            .all(|(now, before)| now - before >= files)
    });
}

/// Returns the version of a node's metadata; an old daemon tells none.
fn version(cluster: &Cluster, node: u32) -> Option<u32> {
    let script = format!("{} status --json", binary("glu").display());
    let output = cluster.sh(node, &script);
    if !output.status.success() {
        return None;
    }
    let status: Status = serde_json::from_str(&output.stdout).expect("JSON");
    status.metadata_version
}
