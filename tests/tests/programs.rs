//! Programs that people use, unmodified, on a tree that two nodes use at the same time.
//!
//! Needs root, /dev/fuse, and git, sqlite3, tar and dpkg-deb.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::{Cluster, with_deadline};

const LONG: Duration = Duration::from_secs(120);

/// `git gc` packs and prunes on one node while the other asks for status and log all the time.
#[test]
fn git_on_two_nodes_at_once() {
    let cluster = Cluster::up(2);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let script = format!(
        "set -e
         export HOME=/tmp GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
         git init -q /cluster/origin && cd /cluster/origin
         git config user.name a && git config user.email a@b
         cp -r '{0}'/consistency/src '{0}'/gfs/src .
         git add . && git commit -q -m first
         git clone -q /cluster/origin /cluster/clone && cd /cluster/clone
         git config user.name a && git config user.email a@b
         for i in 1 2 3 4 5 6; do echo $i >> count; git add count; git commit -q -m $i; done",
        sources.display()
    );
    cluster.node(1).sh_within(LONG, &script).ok();
    let look = cluster.spawn(
        2,
        "set -e; cd /cluster/clone; touch /cluster/looking
         until test -e /cluster/done; do
             test -z \"$(git status --porcelain)\"
             test $(git log --oneline | wc -l) = 7
         done",
    );
    let gc = "set -e; cd /cluster/clone; until test -e /cluster/looking; do :; done
              git gc -q --prune=now; touch /cluster/done; git fsck --strict";
    cluster.node(1).sh_within(LONG, gc).ok();
    look.wait(LONG).ok();
    cluster.sh(2, "cd /cluster/clone && git fsck --strict").ok();
}

/// SQLite's write-ahead log lives on locks and on shared memory: both nodes write, and nothing is lost.
#[test]
fn sqlite_with_writers_on_two_nodes() {
    let cluster = Cluster::up(2);
    let sql = "pragma journal_mode=wal; create table t(who integer, n integer);";
    let made = cluster.sh(1, &format!("sqlite3 /cluster/db '{sql}'")).ok();
    assert_eq!(made, "wal");
    let writers = [1, 2].map(|node| {
        let script = format!(
            "set -e
             for i in $(seq 1 30); do
                 sqlite3 -cmd '.timeout 60000' /cluster/db \"insert into t values({node}, $i);\"
             done"
        );
        cluster.spawn(node, &script)
    });
    for writer in writers {
        writer.wait(LONG).ok();
    }
    let check = "select who, count(*), sum(n) from t group by who; pragma integrity_check;";
    for node in [1, 2] {
        let found = cluster.sh(node, &format!("sqlite3 /cluster/db '{check}'"));
        assert_eq!(found.ok(), "1|30|465\n2|30|465\nok", "on node {node}");
    }
}

/// Editors write a new file and rename it over the old one; whoever reads sees one of the two, whole.
#[test]
fn a_save_by_rename_is_never_seen_half() {
    const SAVES: usize = 200;
    let cluster = Cluster::up(2);
    let text = |n: usize| format!("{n}\n").repeat(3_000);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::write(one.join("text"), text(0)).expect("write");
    let over = Arc::new(AtomicBool::new(false));
    let reader = {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut last = 0;
            let mut reads = 0;
            while !over.load(Ordering::Relaxed) {
                let read = fs::read_to_string(two.join("text")).expect("there is always one");
                let first = read.lines().next().expect("never empty");
                let n = first.parse().expect("a number");
                assert!(n >= last, "save {n} was read after save {last}");
                assert!(read == text(n), "save {n} was read in part");
                last = n;
                reads += 1;
            }
            reads
        })
    };
    for n in 1..=SAVES {
        fs::write(one.join("text.new"), text(n)).expect("write");
        fs::rename(one.join("text.new"), one.join("text")).expect("rename");
    }
    over.store(true, Ordering::Relaxed);
    let reads = with_deadline("the reader ends", LONG, move || {
        reader.join().expect("no torn read")
    });
    assert!(reads > 0, "nothing was read meanwhile");
}

/// What cargo has built on one node is fresh on the other, and what is changed there is built anew, and no more.
#[test]
fn cargo_on_two_nodes() {
    let cluster = Cluster::up(2);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let copy = format!(
        "set -e; mkdir /cluster/project; cd /cluster/project
         cp -r '{0}/consistency' '{0}/Cargo.lock' .
         sed 's/^members = .*/members = [\"consistency\"]/' '{0}/Cargo.toml' > Cargo.toml",
        sources.display()
    );
    cluster.sh(1, &copy).ok();
    let cargo = |node: u32, command: &str| {
        let script = format!(
            "cd /cluster/project; unset CARGO_TARGET_DIR
             cargo {command} --offline --color never -p consistency 2>&1"
        );
        cluster.node(node).sh_within(5 * LONG, &script).ok()
    };
    cargo(1, "build");
    cargo(1, "test --no-run");
    for command in ["build", "test --no-run"] {
        let said = cargo(2, command);
        assert!(said.contains("Finished"), "{said}");
        assert!(!said.contains("Compiling"), "built again: {said}");
    }
    cluster
        .sh(2, "echo >> /cluster/project/consistency/src/lib.rs")
        .ok();
    let said = cargo(1, "build");
    assert_eq!(said.matches("Compiling").count(), 1, "{said}");
    let said = cargo(2, "build");
    assert!(!said.contains("Compiling"), "built again: {said}");
}

/// Archives made on one node unpack to the same on the other.
#[test]
fn archives_and_copies() {
    let cluster = Cluster::up(2);
    let make = "set -e; cd /cluster
        mkdir -p tree/DEBIAN tree/usr/share/thing
        printf 'Package: thing\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b>\\nDescription: d\\n' \
            > tree/DEBIAN/control
        head -c 3000000 /dev/urandom > tree/usr/share/thing/big
        ln -s big tree/usr/share/thing/link; ln tree/usr/share/thing/big tree/usr/share/thing/hard
        truncate -s 10M tree/usr/share/thing/sparse
        dpkg-deb -b --root-owner-group tree thing.deb > /dev/null
        tar -cf tree.tar tree";
    cluster.node(1).sh_within(LONG, make).ok();
    let unpack = "set -e; cd /cluster
        mkdir out; tar -C out -xf tree.tar; diff -r tree out/tree
        test \"$(stat -c %h out/tree/usr/share/thing/big)\" = 2
        dpkg-deb -x thing.deb deb; diff -r tree/usr deb/usr
        cp -a --reflink=auto tree copy; diff -r tree copy
        test $(stat -c %b copy/usr/share/thing/sparse) = 0";
    cluster.node(2).sh_within(LONG, unpack).ok();
    cluster
        .sh(
            1,
            "cd /cluster && diff -r out/tree copy && rm -r out deb copy",
        )
        .ok();
}
