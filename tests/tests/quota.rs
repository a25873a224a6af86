//! Limits of a directory tree, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use tests::{Cluster, wait_until};

const MIB: u64 = 1 << 20;

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[allow(unsafe_code)]
fn limit(path: &Path, what: &str, value: &str) -> std::io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero byte");
    let name = CString::new(format!("user.glu.quota.{what}")).expect("no zero byte");
    let data = value.as_ptr().cast();
    // SAFETY: two strings that end with zero, and as many bytes as are said.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), data, value.len(), 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// Returns size and free bytes, inodes in use and free, as df shows them for a path.
fn room(cluster: &Cluster, node: u32, path: &str) -> [u64; 4] {
    let output = cluster.sh(
        node,
        &format!("timeout 10 df -B1 --output=size,avail,iused,iavail /cluster/{path} | tail -1"),
    );
    let words = output.ok();
    let numbers: Vec<u64> = words
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    numbers.try_into().expect("four numbers")
}

#[test]
fn a_tree_keeps_to_its_limits() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    fs::create_dir_all(one.join("lab/old")).expect("mkdir");
    fs::create_dir(one.join("else")).expect("mkdir");
    fs::write(one.join("lab/old/there"), vec![1; 1 << 20]).expect("write");
    File::open(one.join("lab/old/there"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
    limit(&one.join("lab"), "bytes", "8388608").expect("set");
    limit(&one.join("lab"), "inodes", "20").expect("set");
    assert_eq!(
        errno(limit(&one.join("lab"), "bytes", "8M")),
        Some(libc::EINVAL)
    );
    // Two directories and a file of 1 MiB.
    let used = MIB + 2 * 4096;
    assert_eq!(
        room(&cluster, 2, "lab/old"),
        [8 * MIB, 8 * MIB - used, 3, 17]
    );
    assert!(room(&cluster, 2, "else")[0] > 8 * MIB);
    bytes(&cluster, &two);
    inodes(&two);
    borders(&one, &two);
    not_for_users(&cluster);
    survives(&cluster);
}

fn bytes(cluster: &Cluster, two: &Path) {
    let dd = cluster.sh(
        2,
        "dd if=/dev/zero of=/cluster/lab/big bs=64K count=1000 2>&1",
    );
    assert_ne!(dd.code(), Some(0), "62 MiB do not fit into 8");
    assert!(dd.stdout.contains("Disk quota exceeded"), "{dd}");
    let large = |path: &str| cluster.sh(1, &format!("stat -c %s /cluster/{path}")).ok();
    let size: u64 = large("lab/big").trim().parse().expect("a number");
    assert!((6 * MIB..7 * MIB).contains(&size), "{size}");
    // A small file is refused at its close, which a shell does not look at; a program does.
    let mut small = File::create(two.join("lab/small")).expect("create");
    let written = small
        .write_all(&vec![1; 200_000])
        .and_then(|()| small.sync_all());
    assert_eq!(errno(written), Some(libc::EDQUOT));
    // Room is there again once the file is gone.
    fs::remove_file(two.join("lab/small")).expect("unlink");
    File::options()
        .write(true)
        .open(two.join("lab/big"))
        .and_then(|file| file.set_len(0))
        .expect("truncate");
    fs::remove_file(two.join("lab/big")).expect("unlink");
    drop(small);
    wait_until("the room to be back", Duration::from_secs(20), || {
        room(cluster, 1, "lab") == [8 * MIB, 7 * MIB - 2 * 4096, 3, 17]
    });
    fs::write(two.join("lab/again"), vec![1; 4 << 20]).expect("write");
    File::open(two.join("lab/again"))
        .and_then(|file| file.sync_all())
        .expect("fsync");
}

fn inodes(two: &Path) {
    let made = (0..30)
        .map(|n| File::create(two.join(format!("lab/n{n}"))))
        .take_while(Result::is_ok)
        .count();
    // lab, old, there and again are there already.
    assert_eq!(made, 16);
    assert_eq!(
        errno(fs::create_dir(two.join("lab/dir"))),
        Some(libc::EDQUOT)
    );
    for n in 0..made {
        fs::remove_file(two.join(format!("lab/n{n}"))).expect("unlink");
    }
}

fn borders(one: &Path, two: &Path) {
    let exdev = Some(libc::EXDEV);
    fs::write(one.join("out"), "x").expect("write");
    assert_eq!(
        errno(fs::rename(two.join("out"), two.join("lab/in"))),
        exdev
    );
    assert_eq!(
        errno(fs::rename(one.join("lab/again"), one.join("again"))),
        exdev
    );
    assert_eq!(
        errno(fs::hard_link(two.join("out"), two.join("lab/in"))),
        exdev
    );
    fs::rename(two.join("lab/again"), two.join("lab/old/again")).expect("within");
}

fn not_for_users(cluster: &Cluster) {
    // The owner may set other attributes of his directory, and this one if he could set any.
    cluster.sh(1, "chown 1000 /cluster/lab").ok();
    let set = "perl -e '$p = \"/cluster/lab\"; $n = \"user.glu.quota.bytes\"; $v = \"9999999\"; \
               exit(syscall(188, $p, $n, $v, 7, 0) == 0 ? 0 : $!)'";
    let removal = "perl -e '$p = \"/cluster/lab\"; $n = \"user.glu.quota.bytes\"; \
                   exit(syscall(197, $p, $n) == 0 ? 0 : $!)'";
    for change in [set, removal] {
        let user = cluster.sh(2, &format!("setpriv --reuid 1000 --clear-groups {change}"));
        assert_eq!(user.code(), Some(libc::EPERM), "{user}");
    }
}

fn survives(cluster: &Cluster) {
    let used = 5 * MIB + 2 * 4096;
    let expected = [8 * MIB, 8 * MIB - used, 4, 16];
    wait_until(
        "what is gone to count no more",
        Duration::from_secs(20),
        || room(cluster, 1, "lab") == expected,
    );
    cluster.kill(1);
    cluster.start(1);
    wait_until("the tree to be back", Duration::from_secs(60), || {
        cluster
            .sh(1, "timeout 10 df -B1 --output=size /cluster/lab | tail -1")
            .code()
            == Some(0)
            && room(cluster, 1, "lab") == expected
    });
}
