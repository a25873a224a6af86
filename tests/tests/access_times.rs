//! Times of access by the rule of relatime, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::{TimeSpec, TimeValLike};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, wait_until};

/// A way to read what has a name.
type Read = fn(&Path);

/// A time of access is told after some 5 s.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

fn atime(path: &Path) -> (i64, i64) {
    let attr = fs::symlink_metadata(path).expect("stat");
    (attr.atime(), attr.atime_nsec())
}

fn changed(path: &Path) -> (i64, i64) {
    let attr = fs::symlink_metadata(path).expect("stat");
    (attr.ctime(), attr.ctime_nsec())
}

fn set_atime(path: &Path, secs: i64) {
    let time = TimeSpec::seconds(secs);
    let how = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &time, &TimeSpec::UTIME_OMIT, how).expect("utimensat");
}

#[test]
fn the_first_read_after_a_change_counts() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::write(one.join("f"), "content").expect("write");
    fs::create_dir(one.join("d")).expect("mkdir");
    symlink("f", one.join("l")).expect("symlink");
    let reads: [(&str, Read); 3] = [
        ("f", |path| drop(fs::read(path).expect("read"))),
        ("d", |path| {
            assert_eq!(fs::read_dir(path).expect("list").count(), 0);
        }),
        ("l", |path| drop(fs::read_link(path).expect("readlink"))),
    ];
    for (name, read) in reads {
        let (here, there) = (two.join(name), one.join(name));
        let before = atime(&here);
        assert_eq!(atime(&there), before);
        read(&here);
        let first = atime(&here);
        assert!(first > changed(&here), "{name} was read after it was made");
        wait_until("the other node is told", TOLD_WITHIN, || {
            atime(&there) == first
        });
        // Not the second time, on either node.
        read(&here);
        read(&there);
        assert_eq!((atime(&here), atime(&there)), (first, first), "{name}");
        // A time that is set is a change.
        set_atime(&there, 86_400);
        assert_eq!(atime(&here), (86_400, 0), "{name}");
        if name == "l" {
            // The kernel has the target.
            continue;
        }
        read(&here);
        // The kernel had the pages: it is told after the open.
        wait_until("the node shows the second read", TOLD_WITHIN, || {
            atime(&here) > first
        });
        let again = atime(&here);
        wait_until("the other node is told", TOLD_WITHIN, || {
            atime(&there) == again
        });
    }
}

#[test]
fn a_time_that_was_set_stays() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::write(one.join("f"), "content").expect("write");
    assert_eq!(fs::read(two.join("f")).expect("read"), b"content");
    // The other node has not told yet that it has read.
    set_atime(&one.join("f"), 5);
    assert_eq!(atime(&two.join("f")), (5, 0));
    // Told before this one, by the same node.
    fs::write(two.join("g"), "content").expect("write");
    fs::read(two.join("g")).expect("read");
    let told = atime(&two.join("g"));
    wait_until("the other node is told", TOLD_WITHIN, || {
        atime(&one.join("g")) == told
    });
    assert_eq!(
        (atime(&one.join("f")), atime(&two.join("f"))),
        ((5, 0), (5, 0))
    );
}

#[test]
fn what_does_not_count() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::write(one.join("f"), "content").expect("write");
    let before = atime(&two.join("f"));
    let flags = OFlag::O_RDONLY | OFlag::O_NOATIME;
    let file = open(&two.join("f"), flags, Mode::empty()).expect("open");
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).expect("read");
    assert_eq!(text, "content");
    assert_eq!(atime(&two.join("f")), before);
    // Nobody reads through it.
    drop(File::open(two.join("f")).expect("open"));
    let link = AtFlags::AT_SYMLINK_FOLLOW;
    nix::unistd::linkat(AT_FDCWD, &two.join("f"), AT_FDCWD, &two.join("g"), link).expect("link");
    assert_eq!(atime(&two.join("g")), before);
}
