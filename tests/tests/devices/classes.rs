//! Classes that are closed by default, or for reading alone.
//!
//! Few machines that run tests have a clock, a mouse or a watchdog. So a device that every kernel has stands for them:
//! node 2 is shown a sysfs which says that its driver is of that class. What is read is the driver's own answer.

use super::{LONG, open_classes};
use tests::{Cluster, wait_until};

/// Four bytes, for who may read it.
const DEVICE: &str = "cpu_dma_latency";

/// Has node 2 take the device for one of a class.
fn pretend(cluster: &Cluster, class: &str) {
    let script = format!(
        "set -e; number=$(printf '%d:%d' $(stat -c '0x%t 0x%T' /dev/{DEVICE})); cd /sys/dev/char
         mountpoint -q . || {{ mount -t tmpfs none /sys/dev/char; cd /sys/dev/char; }}
         mkdir -p $number; ln -sfn /sys/class/{class} $number/subsystem"
    );
    cluster.sh(2, &script).ok();
}

/// What comes of reading and of writing the device from node 1.
fn used(cluster: &Cluster) -> (String, String) {
    let path = format!("/cluster/node2/dev/{DEVICE}");
    let end = |output: tests::Output| {
        if output.status.success() {
            return output.stdout;
        }
        let words = output.stderr.lines().next().unwrap_or_default();
        words.rsplit(": ").next().unwrap_or_default().to_owned()
    };
    let read = format!("head -c 4 {path} >/dev/null && head -c 4 {path} | wc -c");
    // Four bytes are a number, of microseconds.
    let write = format!("printf '\\0\\0\\0\\0' >{path} && echo 4");
    let (read, write) = (cluster.sh(1, &read), cluster.sh(1, &write));
    (end(read), end(write))
}

#[test]
fn clocks_input_and_watchdogs() {
    let cluster = Cluster::up(2);
    let check = |class: &str, read: &str, write: &str| {
        pretend(&cluster, class);
        let (got, put) = used(&cluster);
        assert_eq!((got.as_str(), put.as_str()), (read, write), "{class}");
    };
    let why = || {
        let why = format!("getfattr --only-values -n user.glu.why /cluster/node2/dev/{DEVICE}");
        cluster.sh(1, &why).ok()
    };
    let (closed, read_only) = ("Permission denied", "Read-only file system");
    for class in ["input", "hidraw", "watchdog", "misc"] {
        check(class, closed, closed);
        let key = if class == "misc" { "other" } else { class };
        let told = why();
        assert!(
            told.contains(&format!("[devices] {key} in its glud.toml")),
            "{told}"
        );
    }
    check("rtc", "4", read_only);
    assert!(why().contains("[devices] rtc in its glud.toml"));
    // A watchdog is known by its number as well, also where there is none.
    let name = format!("glu-watchdog-{}", std::process::id());
    cluster
        .sh(2, &format!("mknod -m 666 /dev/{name} c 10 130"))
        .ok();
    let look = format!("cat /cluster/node2/dev/{name}");
    let there = format!("test -e /cluster/node2/dev/{name}");
    wait_until("the device to appear", LONG, || {
        cluster.sh(1, &there).status.success()
    });
    let refused = cluster.sh(1, &look).to_string();
    assert!(refused.contains(closed), "{refused}");

    open_classes(&cluster, 2, &["input", "hidraw", "watchdog", "rtc"]);
    for class in ["input", "hidraw", "watchdog", "rtc"] {
        check(class, "4", "4");
    }
    check("misc", closed, closed);
    // Of another machine's user nothing more is asked than of its own: the mode.
    pretend(&cluster, "input");
    let stranger = format!(
        "{} --clear-groups cat /cluster/node2/dev/{DEVICE}",
        super::STRANGER
    );
    let refused = cluster.sh(1, &stranger).to_string();
    assert!(refused.contains(closed), "{refused}");
    // What its node would say: there is no watchdog.
    let own = cluster.sh(2, &format!("cat /dev/{name}")).to_string();
    let other = cluster.sh(1, &look).to_string();
    cluster.sh(2, &format!("rm /dev/{name}")).ok();
    for told in [own, other] {
        assert!(told.contains("No such device"), "{told}");
    }
}
