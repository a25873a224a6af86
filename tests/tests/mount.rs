//! `mount -t glu`: more mounts of the tree on one node, with mount(8) itself and the helper as it is installed.
//!
//! Needs root, /dev/fuse and overlayfs (for an /sbin of the node's own).

use std::fs;
use std::process::Command;
use tests::{Cluster, Output, binary};

/// Brings up a cluster whose node 1 has the programs installed, and a directory `/tmp/glu-mount.<n>` to mount on.
fn cluster(nodes: u32) -> Cluster {
    let cluster = Cluster::up(nodes);
    let root = cluster.state().join("installed");
    let programs = binary("glud");
    let programs = programs.parent().expect("programs lie in a directory");
    let output = Command::new("make")
        .args(["--silent", "install"])
        .arg(format!("DESTDIR={}", root.display()))
        .arg(format!("BIN_DIR={}", programs.display()))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("make runs");
    assert!(output.status.success(), "{output:?}");
    for program in ["glu", "glud", "glurun", "glumake", "glumake-sh"] {
        let path = root.join("usr/local/bin").join(program);
        assert!(path.is_file(), "{} is installed", path.display());
    }
    let sbin = root.join("sbin");
    cluster
        .sh(
            1,
            &format!(
                "mount -t overlay -o lowerdir={}:$(readlink -f /sbin) glu-sbin $(readlink -f /sbin)
                mount -t tmpfs none /mnt && mkdir /mnt/1 /mnt/2 /mnt/fstab.d
                mkdir -p /cluster/sub/deep && echo one >/cluster/sub/f && echo top >/cluster/f
                printf '#!/bin/sh\\necho ran\\n' >/cluster/sub/program && chmod +x /cluster/sub/program",
                sbin.display()
            ),
        )
        .ok();
    cluster
}

/// Checks that a command fails with one line that has all of `words`.
#[track_caller]
fn check_refused(output: &Output, words: &[&str]) {
    assert!(!output.status.success(), "{output}");
    assert_eq!(output.stderr.lines().count(), 1, "one line: {output}");
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is not in: {output}");
    }
}

#[test]
fn directories_flags_and_tables() {
    let cluster = cluster(2);
    let sh = |script: &str| cluster.sh(1, script);
    sh("mount -t glu :/sub /mnt/1").ok();
    sh("mount -t glu -o ro,noexec glu /mnt/2").ok();
    assert_eq!(sh("cat /mnt/1/f /mnt/2/f").ok(), "one\ntop");

    // The tables of mounts.
    let shown = |point: &str| sh(&format!("findmnt -n -o SOURCE,FSTYPE,OPTIONS {point}")).ok();
    let (first, second) = (shown("/mnt/1"), shown("/mnt/2"));
    assert!(
        first.starts_with("glu[/sub] fuse.glu rw,nosuid,nodev,"),
        "{first}"
    );
    assert!(
        second.contains("fuse.glu ") && second.contains("ro,nosuid,nodev,noexec"),
        "{second}"
    );
    assert_eq!(
        sh("grep -c '^glu /mnt/[12] fuse.glu r[ow],nosuid,nodev' /proc/mounts").ok(),
        "2"
    );
    let usage = |point: &str| {
        let text = sh(&format!("df --output=source,fstype,size,target {point}")).ok();
        text.lines().last().expect("a line").to_owned()
    };
    let (here, there) = (usage("/mnt/1"), usage("/cluster"));
    let words: Vec<&str> = here.split_whitespace().collect();
    assert_eq!(
        (words[0], words[1], words[3]),
        ("glu", "fuse.glu", "/mnt/1")
    );
    assert_eq!(
        there.split_whitespace().nth(2),
        Some(words[2]),
        "one size: {here}, {there}"
    );

    // The flags are those of each mount alone; what is seen is one tree, also from another node.
    check_refused(&sh("echo no >/mnt/2/f"), &["Read-only"]);
    assert_eq!(sh("/mnt/2/sub/program").code(), Some(126), "noexec");
    assert_eq!(sh("/mnt/1/program").ok(), "ran");
    sh("echo two >/mnt/1/f").ok();
    assert_eq!(
        cluster
            .sh(2, "cat /cluster/sub/f; echo three >/cluster/sub/f")
            .ok(),
        "two"
    );
    assert_eq!(
        sh("cat /mnt/1/f /mnt/2/sub/f /cluster/sub/f").ok(),
        "three\nthree\nthree"
    );
    cluster
        .sh(2, "mv /cluster/sub /cluster/moved && touch /cluster/other")
        .ok();
    assert_eq!(
        sh("stat /cluster/moved >/dev/null; cd /mnt/1 && pwd -P && cat f && ls").ok(),
        "/mnt/1\nthree\ndeep\nf\nprogram",
        "the directory stays mounted under its new name"
    );

    // Each goes alone; what is in use goes with -l, and lives as long as it is used.
    let used = cluster.spawn(
        1,
        "cd /mnt/1 && echo in && while [ ! -e stop ]; do sleep 0.05; done; cat f",
    );
    tests::wait_until("the user of /mnt/1", tests::DEADLINE, || {
        used.stdout() == "in"
    });
    check_refused(&sh("umount /mnt/1"), &["busy"]);
    sh("umount -l /mnt/1").ok();
    assert_eq!(sh("findmnt -n /mnt/1").code(), Some(1));
    sh("touch /cluster/moved/stop").ok();
    assert_eq!(used.wait(tests::DEADLINE).ok(), "in\nthree");
    sh("umount /mnt/2").ok();
    assert_eq!(sh("cat /cluster/f").ok(), "top");
}

/// Names are forgotten one by one: with all names of a directory would go what is mounted below it, and the path of who
/// works there.
#[test]
fn changes_of_other_nodes_leave_mounts_and_places_alone() {
    let cluster = Cluster::up(2);
    let script = "mkdir -p /cluster/a/b/m && mount -t tmpfs inner /cluster/a/b/m && echo in >/cluster/a/b/m/f
        cd /cluster/a/b && echo ready && until [ -e stop ]; do ls .. >/dev/null; sleep 0.01; done
        pwd -P; cat m/f; findmnt -n -o FSTYPE /cluster/a/b/m; cat ../../a/b/stop";
    let inside = cluster.spawn(2, script);
    tests::wait_until("a mount and a place on node 2", tests::DEADLINE, || {
        inside.stdout() == "ready"
    });
    let change = "set -e; for dir in /cluster /cluster/a /cluster/a/b; do
            cd $dir; touch $(seq 1 300); mv 1 one; ln 2 two; chmod 700 .; ls -l >/dev/null; rm one two $(seq 2 300)
        done; chmod 755 /cluster; echo stop >/cluster/a/b/stop.new; mv /cluster/a/b/stop.new /cluster/a/b/stop";
    cluster.sh(1, change).ok();
    assert_eq!(
        inside.wait(tests::DEADLINE).ok(),
        "ready\n/cluster/a/b\nin\ntmpfs\nstop"
    );
}

/// A node that makes a name holds its kernel's lock of the directory, and cannot have the kernel forget a name there for
/// another node: it must not need to.
#[test]
fn names_made_on_two_nodes_at_once_leave_mounts_alone() {
    let cluster = Cluster::up(2);
    let script =
        "mkdir -p /cluster/a/m && mount -t tmpfs inner /cluster/a/m && echo in >/cluster/a/m/f";
    cluster.sh(2, script).ok();
    // The same directories, and files of each node's own beside them, as builds do.
    let make = |node: u32| {
        let script = format!(
            "cd /cluster/a; for n in $(seq 1 200); do mkdir dir$n; touch file{node}.$n; done 2>/dev/null; echo done"
        );
        cluster.spawn(node, &script)
    };
    let both = [make(1), make(2)];
    for each in both {
        assert_eq!(each.wait(tests::DEADLINE).ok(), "done");
    }
    let left = "cat /cluster/a/m/f; findmnt -n -o FSTYPE /cluster/a/m; ls /cluster/a | wc -l";
    assert_eq!(cluster.sh(2, left).ok(), "in\ntmpfs\n601");
}

#[test]
fn remounts_and_fstab() {
    let cluster = cluster(1);
    let sh = |script: &str| cluster.sh(1, script);
    let lines = "cluster:/sub /mnt/1 glu noexec,_netdev,nofail,soft,timeo=300,x-systemd.requires=glud.service 0 0\\n\
        glu /mnt/2 glu ro,allow_dev,allow_suid,_netdev 0 0\\n";
    sh(&format!(
        "printf '{lines}' >/mnt/fstab.d/fstab && mount --bind /mnt/fstab.d/fstab /etc/fstab"
    ))
    .ok();
    // The second time changes nothing.
    for _ in 0..2 {
        sh("mount -a -t glu").ok();
        assert_eq!(sh("grep -c ' /mnt/[12] ' /proc/mounts").ok(), "2");
    }
    let options = |point: &str| sh(&format!("findmnt -n -o VFS-OPTIONS {point}")).ok();
    assert_eq!(options("/mnt/1"), "rw,nosuid,nodev,noexec,relatime");
    assert_eq!(
        options("/mnt/2"),
        "ro,relatime",
        "root may have devices and setuid"
    );

    // With the line of fstab, and without one.
    sh("mount -o remount,rw /mnt/2").ok();
    assert_eq!(options("/mnt/2"), "rw,relatime");
    sh("umount /mnt/2; mount -t glu :/sub/deep /mnt/2 && : >/etc/fstab").ok();
    sh("mount -o remount,ro /mnt/2").ok();
    assert_eq!(options("/mnt/2"), "ro,nosuid,nodev,relatime");
    assert_eq!(
        options("/mnt/1"),
        "rw,nosuid,nodev,noexec,relatime",
        "it alone"
    );
    check_refused(&sh("touch /mnt/2/x"), &["Read-only"]);
    sh("mount -o remount,rw,noatime /mnt/2 && touch /mnt/2/x").ok();
    assert_eq!(options("/mnt/2"), "rw,nosuid,nodev,noatime");
    sh("touch /cluster/still-writable").ok();
    let busy = sh("exec 3>/mnt/2/x; mount -o remount,ro /mnt/2");
    check_refused(&busy, &["mount.glu", "open for writing"]);
    sh("mount -o remount,ro /cluster").ok();
    check_refused(&sh("touch /cluster/x"), &["Read-only"]);
    sh("mount -o remount,rw /cluster && touch /cluster/x").ok();

    // A tree that is read-only as a whole; the node's own /sbin and /mnt went with its power.
    cluster.kill(1);
    let config = cluster.state().join("node1/glud.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    assert!(text.contains("ro = false"), "{text}");
    fs::write(&config, text.replace("ro = false", "ro = true")).expect("write");
    cluster.start(1);
    let helper = binary("mount-glu");
    let helper = helper.display();
    let mounted = sh(&format!("mount -t tmpfs none /mnt && {helper} glu /mnt"));
    assert!(
        mounted
            .stderr
            .contains("warning: /mnt: the node's whole tree"),
        "{mounted}"
    );
    assert_eq!(mounted.code(), Some(0), "{mounted}");
    check_refused(&sh("touch /mnt/y"), &["Read-only"]);
    let remount = sh(&format!("{helper} -o remount,rw glu /mnt"));
    check_refused(&remount, &["mount.glu", "whole tree is read-only"]);
}

#[test]
fn mistakes_and_dead_daemons() {
    let cluster = cluster(1);
    let sh = |script: &str| cluster.sh(1, script);
    let refused = |options: &str, words: &[&str]| {
        let output = sh(&format!("mount -t glu {options}"));
        check_refused(&output, words);
        assert!(output.stderr.starts_with("mount.glu: "), "{output}");
        assert_eq!(sh("findmnt -n /mnt/1").code(), Some(1), "{output}");
    };
    refused(
        "-o rsize=8192 :/sub /mnt/1",
        &["rsize=8192", "known are ro rw"],
    );
    refused("-o hard :/sub /mnt/1", &["hard", "300 tenths", "glud.toml"]);
    refused("-o timeo=50 :/sub /mnt/1", &["timeo=50", "300 tenths"]);
    refused(":/nothing /mnt/1", &[":/nothing", "No such file"]);
    refused(":/f /mnt/1", &[":/f", "Not a directory"]);
    refused("other:/sub /mnt/1", &["other", "glu-dev"]);
    refused("sub /mnt/1", &["sub", "glu-dev"]);
    refused("-o remount,ro glu /mnt/1", &["/mnt/1", "no glu mount"]);
    refused("-o socket=/no/sock :/sub /mnt/1", &["/no/sock", "start it"]);
    let user =
        sh("setpriv --reuid 65534 --regid 65534 --clear-groups /sbin/mount.glu :/sub /mnt/1");
    check_refused(&user, &["mount.glu", "root"]);
    sh("ln -s /sub/deep /cluster/link && ln -s / /cluster/sub/up").ok();
    sh("mount -t glu :/link /mnt/1").ok();
    assert_eq!(sh("findmnt -n -o SOURCE /mnt/1").ok(), "glu[/sub/deep]");
    let twice = sh("mount -t glu -o ro :/sub/deep /mnt/1");
    check_refused(&twice, &["already", "-o remount"]);
    sh("umount /mnt/1; mount -t glu :/sub/up /mnt/1").ok();
    assert_eq!(
        sh("cat /mnt/1/f").ok(),
        "top",
        "no link leads out of the tree"
    );

    // A daemon in good order takes its mounts along, a killed one leaves them dead; both can be mounted anew.
    for signal in ["TERM", "KILL"] {
        sh(&format!(
            "pid=$(pgrep -o -x glud) && kill -{signal} $pid && while [ -e /proc/$pid ]; do sleep 0.02; done"
        ))
        .ok();
        if signal == "TERM" {
            assert_eq!(
                sh("findmnt -n /mnt/1").code(),
                Some(1),
                "it went with its daemon"
            );
        }
        tests::wait_until("a new daemon", tests::DEADLINE, || {
            cluster.status().nodes[0].ready && fs::read(cluster.path(1).join("f")).is_ok()
        });
        sh("mount -t glu :/sub /mnt/1").ok();
        assert_eq!(sh("cat /mnt/1/f").ok(), "one");
        assert_eq!(sh("grep -c ' /mnt/1 ' /proc/mounts").ok(), "1");
    }
}

/// `soft` gives up after its time; `hard` waits until the cluster is back.
#[test]
fn soft_gives_up_and_hard_waits() {
    let (hard, soft) = (2, 3);
    let cluster = Cluster::up(3);
    cluster.sh(1, "mkdir /cluster/d && touch /cluster/d/f").ok();
    for node in [hard, soft] {
        cluster.kill(node);
        let config = cluster.state().join(format!("node{node}/glud.toml"));
        let mut text = fs::read_to_string(&config).expect("the configuration");
        let changes = [
            ("request_timeout_s = 30", "request_timeout_s = 1"),
            ("hard = false", "hard = true"),
        ];
        for (from, to) in &changes[..if node == hard { 2 } else { 1 }] {
            assert!(text.contains(from), "{from:?} is in {text}");
            text = text.replace(from, to);
        }
        fs::write(&config, text).expect("write");
        cluster.start(node);
    }
    let helper = binary("mount-glu");
    let helper = helper.display();
    cluster
        .sh(hard, &format!("{helper} -f -o hard glu /mnt"))
        .ok();
    check_refused(
        &cluster.sh(hard, &format!("{helper} -f -o timeo=10 glu /mnt")),
        &["timeo=10", "for ever (hard)"],
    );
    cluster
        .sh(soft, &format!("{helper} -f -o soft,timeo=10 glu /mnt"))
        .ok();
    cluster.cut(hard);
    cluster.cut(soft);
    let waits = cluster.spawn(hard, "stat -c %F /cluster/d/f");
    let gives_up = cluster.sh(soft, "stat /cluster/d/f");
    check_refused(&gives_up, &["Input/output error"]);
    cluster.heal(hard);
    cluster.heal(soft);
    assert_eq!(
        waits.wait(tests::DEADLINE).ok(),
        "regular empty file",
        "it waited"
    );
}
