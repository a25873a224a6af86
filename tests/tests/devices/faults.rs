//! Devices that come and go, nodes that are cut off, and much that is read and written.

use super::{Disk, LONG, TERM, at, open_classes, terminal, wait_for_requests};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;
use tests::{Cluster, wait_until};

#[test]
fn devices_come_and_go() {
    let cluster = Cluster::up(2);
    let name = format!("glu-test-{}", std::process::id());
    let there = |node: u32| {
        let look = format!("ls /cluster/node2/dev | grep -x {name}");
        let listed = cluster.sh(node, &look).status.success();
        let stat = format!("test -e /cluster/node2/dev/{name}");
        (listed, cluster.sh(node, &stat).status.success())
    };
    assert_eq!(there(1), (false, false));
    cluster.sh(2, &format!("mknod /dev/{name} c 1 5")).ok();
    wait_until("the device to appear", LONG, || there(1) == (true, true));
    let read = format!("head -c 1000 /cluster/node2/dev/{name} | wc -c");
    let got = cluster.sh(1, &read);
    cluster.sh(2, &format!("rm /dev/{name}")).ok();
    assert_eq!(got.ok(), "1000");
    wait_until("the device to go", LONG, || there(1) == (false, false));
    assert_eq!(there(2), (false, false), "nor on its own node");
}

#[test]
fn a_node_that_is_cut_off_takes_its_devices_along() {
    let cluster = Cluster::up(3);
    open_classes(&cluster, 2, &["terminal"]);
    let (pty, slave) = terminal();
    let path = at(&cluster, 1, &slave);
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let mut reader = open().expect("opened");
    let mut writer = reader.try_clone().expect("a copy");
    let waits = std::thread::spawn(move || reader.read(&mut [0; 9]).map_err(|e| e.raw_os_error()));
    wait_for_requests(&cluster, 1, 1);
    cluster.cut(2);
    let cut = Instant::now();
    assert_eq!(waits.join().expect("no panic"), Err(Some(libc::EIO)));
    assert!(cut.elapsed() < TERM, "{:?}", cut.elapsed());
    let late = writer.write(b"lost").expect_err("its node is gone");
    assert_eq!(late.raw_os_error(), Some(libc::ENODEV));
    cluster.heal(2);
    let mut again = None;
    wait_until("the device is back", LONG, || {
        again = open().ok();
        again.is_some()
    });
    let mut again = again.expect("opened");
    let mut master = File::from(pty.master.try_clone().expect("a copy"));
    master.write_all(b"typed").expect("written");
    let mut got = [0; 5];
    again.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"typed", "nothing of the old open file is left");
}

/// `DEVICE_MIB` (64) says how much.
#[test]
fn what_is_copied_both_ways_is_the_same() {
    let mib: u64 = std::env::var("DEVICE_MIB").map_or(64, |mib| mib.parse().expect("a number"));
    let cluster = Cluster::up(2);
    open_classes(&cluster, 2, &["block"]);
    let disk = Disk::new(&cluster, "large", mib << 20);
    let remote = disk.remote();
    let source = Path::new("/cluster/source").to_owned();
    let made = format!("head -c {} /dev/urandom", mib << 20);
    let run = |node, script: &str| cluster.node(node).sh_within(10 * LONG, script).ok();
    run(1, &format!("{made} >{}", source.display()));
    let sum = |node, path: &Path| run(node, &format!("sha256sum <{}", path.display()));
    let expected = sum(1, &source);
    let copy = format!(
        "dd if={} of={remote} bs=1M conv=notrunc,fsync 2>/dev/null",
        source.display()
    );
    run(1, &copy);
    assert_eq!(sum(2, &disk.backing), expected, "written");
    let back = Path::new("/cluster/back");
    run(
        1,
        &format!("dd if={remote} of={} bs=1M 2>/dev/null", back.display()),
    );
    assert_eq!(sum(1, back), expected, "read");
    let sizes = format!("dd if={remote} bs=777 count=1000 skip=5 2>/dev/null | sha256sum");
    let near = format!(
        "dd if={} bs=777 count=1000 skip=5 2>/dev/null | sha256sum",
        source.display()
    );
    assert_eq!(run(1, &sizes), run(1, &near), "unaligned");
}
