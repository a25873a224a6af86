//! What can go wrong outside of us costs one clear line with the cause and the cure, never a panic or a hang.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, Options, binary, scratch_dir, wait_until, with_deadline};

/// Runs `script` in node 1 and checks that it fails with one line that has all of `words`.
#[track_caller]
fn check(cluster: &Cluster, script: &str, words: &[&str]) {
    let output = cluster.sh(1, script);
    assert!(!output.status.success(), "{script}: {output:?}");
    let lines: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("glu"))
        .collect();
    assert_eq!(lines.len(), 1, "one line: {output:?}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is not in: {}", lines[0]);
    }
    assert!(!output.stderr.contains("panicked"), "{output:?}");
}

#[test]
fn mistakes_of_the_administrator() {
    let cluster = Cluster::up(1);
    let glud = binary("glud");
    let glud = glud.display();
    let state = cluster.state().join("node1");
    let config = state.join("glud.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    let with = |name: &str, from: &str, to: &str| {
        let path = state.join(name);
        assert!(text.contains(from), "{from:?} is not in the configuration");
        fs::write(&path, text.replace(from, to)).expect("write");
        path.display().to_string()
    };
    check(
        &cluster,
        &format!("{glud} --config /nowhere/glud.toml"),
        &["/nowhere/glud.toml", "No such file"],
    );
    check(
        &cluster,
        &format!("{glud} --no-such-option"),
        &["--no-such-option"],
    );
    check(
        &cluster,
        &format!("{glud} --config {}", config.display()),
        &["in use"],
    );
    let unknown = with("unknown.toml", "replicas", "replikas");
    check(
        &cluster,
        &format!("{glud} --config {unknown}"),
        &["unknown.toml:", "replikas"],
    );

    // A second node of its own, as far as it gets.
    let spare = "/tmp/glu-spare-$$";
    let other = with(
        "other.toml",
        &format!("{}/state", state.display()),
        "/tmp/glu-spare/state",
    );
    let elsewhere = |command: &str| {
        format!(
            "rm -rf /tmp/glu-spare {spare}; mkdir -p /tmp/glu-spare; {command}; s=$?; rm -rf /tmp/glu-spare; exit $s"
        )
    };
    let port = fs::read_to_string(&other)
        .expect("read")
        .replace(":7177\"\nstate", ":7178\"\nstate");
    fs::write(&other, &port).expect("write");
    check(
        &cluster,
        &elsewhere(&format!("{glud} --config {other}")),
        &["mount"],
    );
    let no_fuse = format!(
        "unshare -m sh -c 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec {glud} --config {other}'"
    );
    check(
        &cluster,
        &elsewhere(&no_fuse),
        &["/dev/fuse", "modprobe fuse"],
    );
    // The node itself was not disturbed.
    fs::write(cluster.path(1).join("alive"), "yes").expect("the tree works");
}

/// A damaged log is refused with its name; nothing is made up, and repairing it brings everything back.
#[test]
fn a_damaged_store_is_refused() {
    let cluster = Cluster::up(1);
    fs::write(cluster.path(1).join("kept"), "kept").expect("write");
    fs::File::open(cluster.path(1).join("kept"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
    cluster.kill(1);
    let meta = cluster.state().join("node1/state/meta");
    let log = meta.join("log");
    let aside = meta.join("aside");
    fs::rename(&log, &aside).expect("take the log away");
    let output = cluster.dev(&["start", "1"]);
    assert!(!output.status.success(), "{output:?}");
    assert!(
        output.stderr.contains("meta"),
        "the store is named: {output:?}"
    );
    cluster.kill(1);
    if log.exists() {
        fs::remove_dir_all(&log).expect("remove");
    }
    fs::rename(&aside, &log).expect("put it back");
    cluster.start(1);
    let path = cluster.path(1).join("kept");
    wait_until("the file to be back", Duration::from_secs(20), || {
        fs::read(&path).is_ok_and(|bytes| bytes == b"kept")
    });
}

/// A node that cannot take part says why, in its log and in `glu status`; the others say so of it; and nothing is harmed.
#[test]
fn a_node_that_does_not_fit_says_why() {
    let cluster = Cluster::up(2);
    let other = Cluster::up(2);
    let glu = binary("glu").display().to_string();
    let status = |node: u32| cluster.sh(node, &format!("{glu} status"));
    let log = || fs::read_to_string(cluster.state().join("node2/glud.log")).expect("the log");
    fs::write(cluster.path(2).join("kept"), "kept").expect("write");
    fs::File::open(cluster.path(2).join("kept"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
    cluster.kill(2);

    // A store of the future.
    let format = cluster.state().join("node2/state/chunks/FORMAT");
    let present = fs::read_to_string(&format).expect("read");
    fs::write(&format, "glu chunk store, version 99\n").expect("write");
    let refused = cluster.dev(&["start", "2"]);
    assert!(!refused.status.success(), "{refused}");
    let why = "has version 99, this glud knows up to 1; install a newer glud";
    assert!(log().contains(why), "{}", log());
    let said = status(2);
    assert!(said.stderr.contains("its last start failed"), "{said}");
    assert!(said.stderr.contains(why), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
    fs::write(&format, present).expect("write");
    cluster.kill(2);

    // The identity of another node, and of a node of another cluster, which hears nothing of this one.
    let tls = cluster.state().join("node2/tls");
    let own = cluster.state().join("node2/tls-own");
    fs::rename(&tls, &own).expect("rename");
    copy(&cluster.state().join("node1/tls"), &tls);
    let refused = cluster.dev(&["start", "2"]);
    assert!(!refused.status.success(), "{refused}");
    let why = "is not the certificate of node 2";
    assert!(log().contains(why), "{}", log());
    assert!(status(2).stderr.contains(why), "{}", status(2));
    cluster.kill(2);
    fs::remove_dir_all(&tls).expect("remove");
    copy(&other.state().join("node2/tls"), &tls);
    // It does not come up: nobody talks to it.
    let mut start = std::process::Command::new(binary("glu"))
        .args(["dev", "--state"])
        .arg(cluster.state())
        .args(["start", "2"])
        .spawn()
        .expect("glu runs");
    wait_until("both to say why", Duration::from_secs(30), || {
        // Whoever wants something of the node makes its daemon dial.
        let listed = cluster.sh(1, "ls /cluster/node2/dev");
        assert!(!listed.status.success(), "{listed}");
        let words = "is it a node of this cluster";
        let said = status(1).stdout;
        log().contains("cannot connect peer=1")
            && log().contains(words)
            && said.contains("node 2 cannot be reached: ")
            && said.contains(words)
    });
    start.kill().expect("our child");
    start.wait().expect("our child");
    cluster.kill(2);
    fs::remove_dir_all(&tls).expect("remove");
    fs::rename(&own, &tls).expect("rename");
    cluster.start(2);
    let path = cluster.path(2).join("kept");
    wait_until("the file to be back", Duration::from_secs(20), || {
        fs::read(&path).is_ok_and(|bytes| bytes == b"kept")
    });
    assert!(!status(2).stderr.contains("failed"));
}

/// A node whose certificate has expired says so, and comes back once that is put right.
#[test]
fn an_expired_certificate_says_so() {
    let glud = scratch_dir().join(format!("glud-years-ahead-{}", std::process::id()));
    let ahead = "NO_FAKE_STAT=1 faketime -m --exclude-monotonic -f +11y";
    let script = format!(
        "#!/bin/sh\n[ -e \"${{2%/*}}/ahead\" ] && exec env {ahead} {glud} \"$@\"\nexec {glud} \"$@\"\n",
        glud = binary("glud").display()
    );
    fs::write(&glud, script).expect("write the script");
    fs::set_permissions(&glud, Permissions::from_mode(0o755)).expect("make it a program");
    let cluster = Cluster::with(&Options {
        nodes: Some(2),
        glud: Some(glud.clone()),
        ..Options::default()
    });
    fs::write(cluster.path(1).join("kept"), "kept").expect("write");
    let state = cluster.state().join("node2");
    cluster.kill(2);
    fs::write(state.join("ahead"), "").expect("write");
    let refused = cluster.dev(&["start", "2"]);
    assert!(!refused.status.success(), "{refused}");
    let log = fs::read_to_string(state.join("glud.log")).expect("the log");
    let why =
        "node.pem has expired: issue a new certificate with `glu`, or correct this machine's clock";
    assert!(log.contains(why), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    let glu = binary("glu").display().to_string();
    let said = cluster.sh(2, &format!("{glu} status"));
    assert!(said.stderr.contains("its last start failed"), "{said}");
    assert!(said.stderr.contains(why), "{said}");
    assert_eq!(said.stderr.lines().count(), 1, "{said}");
    cluster.kill(2);
    fs::remove_file(state.join("ahead")).expect("remove");
    cluster.start(2);
    let path = cluster.path(2).join("kept");
    assert_eq!(fs::read(path).expect("read"), b"kept");
    fs::remove_file(glud).expect("remove");
}

fn copy(from: &Path, to: &Path) {
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    assert!(copy.status().expect("cp runs").success());
}

/// A full disk is ENOSPC for the writer and nothing else: what was synced stays, and room made is room used.
#[test]
fn a_full_disk() {
    let cluster = Cluster::up(1);
    cluster.kill(1);
    // Outside the cluster's directory, where a kill unmounts everything.
    let small = scratch_dir().join(format!("full-disk-{}", std::process::id()));
    fs::create_dir_all(&small).expect("mkdir");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64m", "none"])
        .arg(&small)
        .status()
        .expect("mount runs");
    assert!(mounted.success());
    let unmount = Unmount(small.clone());
    let state = cluster.state().join("node1/state");
    fs::remove_dir_all(&state).expect("remove");
    std::os::unix::fs::symlink(&small, &state).expect("symlink");
    cluster.start(1);
    let dir = cluster.path(1);
    fs::write(dir.join("first"), "kept").expect("write");
    fs::File::open(dir.join("first"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
    let big = dir.join("big");
    let failed = with_deadline(
        "writing more than fits",
        Duration::from_secs(120),
        move || {
            use std::io::Write;
            let mut file = fs::File::create(big)?;
            for _ in 0..96 {
                file.write_all(&vec![1; 1 << 20])?;
                file.sync_all()?;
            }
            Ok::<(), std::io::Error>(())
        },
    );
    let error = failed.expect_err("96 MiB do not fit on 64 MiB");
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    assert_eq!(fs::read(dir.join("first")).expect("read"), b"kept");
    cluster.kill(1);
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let status = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
        let unmounted =
            status.is_ok_and(|status| status.success()) && fs::remove_dir(&self.0).is_ok();
        assert!(
            unmounted || std::thread::panicking(),
            "cannot unmount {}",
            self.0.display()
        );
    }
}
