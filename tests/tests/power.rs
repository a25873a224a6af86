//! Power loss, killed daemons, cut networks: nothing that was synced or seen is lost, the others go on.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tests::{Cluster, wait_until, with_deadline};

/// How long the others may wait for a lost node: its lease term and some slack for a busy machine.
const PATIENCE: Duration = Duration::from_secs(25);

/// S3: what was synced before the power went is there after the boot; also on the node that leads.
#[test]
fn s3_synced_data_survives_power_loss() {
    let cluster = Cluster::up(2);
    for victim in [2, 1] {
        let dir = cluster.path(victim).join(format!("synced-{victim}"));
        fs::create_dir(&dir).expect("mkdir");
        let sizes = [0_usize, 1, 10_000, 100_000, 5_000_000];
        for size in sizes {
            let mut file = File::create(dir.join(size.to_string())).expect("create");
            file.write_all(&pattern(size)).expect("write");
            file.sync_all().expect("fsync");
        }
        cluster.kill(victim);
        cluster.start(victim);
        for node in [1, 2] {
            for size in sizes {
                let path = cluster.path(node).join(format!("synced-{victim}/{size}"));
                wait_until(
                    &format!("{} to be readable", path.display()),
                    PATIENCE,
                    || fs::read(&path).is_ok(),
                );
                assert!(
                    fs::read(&path).expect("readable") == pattern(size),
                    "{} bytes on node {node}",
                    size
                );
            }
        }
    }
}

/// S2: what another node has seen is there after the writer and the reader lost power.
#[test]
fn s2_seen_means_safe() {
    let cluster = Cluster::up(3);
    fs::write(cluster.path(2).join("seen"), pattern(200_000)).expect("write");
    assert!(fs::read(cluster.path(3).join("seen")).expect("read") == pattern(200_000));
    cluster.kill(2);
    cluster.kill(3);
    cluster.start(2);
    cluster.start(3);
    let path = cluster.path(3).join("seen");
    wait_until("the file to be readable", PATIENCE, || {
        fs::read(&path).is_ok()
    });
    assert!(fs::read(&path).expect("readable") == pattern(200_000));
}

/// S4: a dead holder's lease is waited out, then its files can be written; a file that it alone knew may be old, never
/// torn.
#[test]
fn s4_others_go_on_after_a_node_dies() {
    let cluster = Cluster::up(3);
    let file = cluster.path(2).join("held");
    fs::write(&file, "first").expect("write");
    assert_eq!(
        fs::read_to_string(cluster.path(3).join("held")).expect("read"),
        "first"
    );
    let held = fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .expect("open");
    held.write_all_at(b"FIRST", 0)
        .expect("write under an exclusive lease");
    drop(held);
    cluster.kill(2);
    let path = cluster.path(3).join("held");
    let content = with_deadline("a read of a file whose holder died", PATIENCE, move || {
        fs::read_to_string(path)
    });
    let content = content.expect("readable");
    assert!(content == "first" || content == "FIRST", "torn: {content}");
    let path = cluster.path(3).join("held");
    with_deadline("a write to a file whose holder died", PATIENCE, move || {
        fs::write(path, "second")
    })
    .expect("write");
    cluster.start(2);
    let path = cluster.path(2).join("held");
    wait_until("node 2 to see it", PATIENCE, || {
        fs::read_to_string(&path).is_ok_and(|content| content == "second")
    });
}

/// S5: a node that is cut off does not show old data; after the network is back it shows the new.
#[test]
fn s5_cut_off_means_stopped_not_stale() {
    let cluster = Cluster::up(2);
    fs::write(cluster.path(1).join("f"), "old").expect("write");
    let far = cluster.path(2).join("f");
    assert_eq!(fs::read_to_string(&far).expect("read"), "old");
    cluster.cut(2);
    let near = cluster.path(1).join("f");
    with_deadline(
        "a write that conflicts with a cut-off node",
        PATIENCE,
        move || fs::write(near, "new"),
    )
    .expect("write");
    // The write has returned, so no look that starts now may see the old state.
    let cut_off = far.clone();
    let seen = with_deadline(
        "a read on a cut-off node",
        Duration::from_secs(60),
        move || fs::read_to_string(cut_off),
    );
    assert!(
        seen.as_ref().map_or(true, |content| content == "new"),
        "stale: {seen:?}"
    );
    cluster.heal(2);
    wait_until("node 2 to be back", PATIENCE, || {
        fs::read_to_string(&far).is_ok_and(|content| content == "new")
    });
}

/// A daemon killed in the middle of a build: the others go on, and the node comes back.
#[test]
fn killed_daemon_in_a_build() {
    let cluster = Cluster::up(3);
    let dir = cluster.path(1).join("build");
    fs::create_dir(&dir).expect("mkdir");
    for i in 0..40 {
        fs::write(dir.join(format!("{i}.in")), format!("{i}")).expect("write");
    }
    fs::write(
        dir.join("Makefile"),
        "OUT = $(patsubst %.in,%.out,$(wildcard *.in))\nall: $(OUT)\n%.out: %.in\n\tcp $< $@\n",
    )
    .expect("write");
    let make = cluster.spawn(1, "cd /cluster/build && make -j2 all");
    wait_until("the build to have begun", PATIENCE, || {
        dir.join("5.out").exists()
    });
    cluster.kill(3);
    let output = make.wait(Duration::from_secs(120));
    assert!(output.status.success(), "{output:?}");
    cluster.start(3);
    let path = cluster.path(3).join("build");
    wait_until("node 3 to see the build", PATIENCE, || {
        (0..40).all(|i| {
            fs::read_to_string(path.join(format!("{i}.out"))).is_ok_and(|out| out == i.to_string())
        })
    });
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| u8::try_from(i * 31 % 251).expect("below 256"))
        .collect()
}
