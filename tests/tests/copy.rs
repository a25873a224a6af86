//! Copies within the tree, which share chunks, on real mounts of two nodes.
//!
//! Needs root and /dev/fuse.

use nix::unistd::{Whence, lseek};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use tests::Cluster;

const MIB: usize = 1 << 20;
/// The chunks of a file that is gone are deleted 10 s later, one after the other.
const DELETED_WITHIN: Duration = Duration::from_secs(60);

/// Returns bytes that differ from MiB to MiB.
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let page = |at: usize| (at / 4096).to_le_bytes();
    (0..len).map(|at| page(at)[at % 3] ^ seed).collect()
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options.open(path).expect("open")
}

/// Returns the bytes in the chunk stores of all nodes.
fn stored(cluster: &Cluster) -> u64 {
    fn below(dir: &Path) -> u64 {
        let Ok(entries) = fs::read_dir(dir) else {
            return 0;
        };
        let size = |entry: fs::DirEntry| match entry.metadata() {
            Ok(attr) if attr.is_dir() => below(&entry.path()),
            Ok(attr) => attr.len(),
            // Deleted just now.
            Err(_) => 0,
        };
        entries.filter_map(Result::ok).map(size).sum()
    }
    let dir = |number: u32| cluster.state().join(format!("node{number}/state/chunks"));
    cluster.nodes().map(|node| below(&dir(node.number()))).sum()
}

/// Copies up to `len` bytes with one call.
#[allow(unsafe_code)]
fn copy_range(source: &File, from: i64, target: &File, to: i64, len: usize) -> nix::Result<usize> {
    let (mut from, mut to) = (from, to);
    let (source, target) = (source.as_raw_fd(), target.as_raw_fd());
    // SAFETY: both files are open, both offsets live.
    let copied =
        unsafe { libc::copy_file_range(source, &raw mut from, target, &raw mut to, len, 0) };
    let copied = nix::errno::Errno::result(copied)?;
    Ok(usize::try_from(copied).expect("not negative"))
}

fn copy_whole(source: &File, from: usize, target: &File, to: usize, len: usize) {
    let at = |base: usize, done: usize| i64::try_from(base + done).expect("small");
    let mut done = 0;
    while done < len {
        let copied = copy_range(source, at(from, done), target, at(to, done), len - done);
        let copied = copied.expect("copy");
        assert!(copied > 0, "the source ends after {done} bytes");
        done += copied;
    }
}

#[track_caller]
fn same(path: &Path, expected: &[u8]) {
    assert!(
        fs::read(path).expect("read") == expected,
        "{}",
        path.display()
    );
}

#[test]
fn a_copy_takes_no_space_and_outlives_its_source() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    let data = bytes(64 * MIB, 1);
    let control = &data[..8 * MIB];
    for (name, data) in [("a", &data[..]), ("control", control)] {
        let file = open(&one.join(name));
        file.write_all_at(data, 0).expect("write");
        file.sync_all().expect("fsync");
    }
    let before = stored(&cluster);
    let twice = 2 * (data.len() + control.len()) as u64;
    assert!(before >= twice, "two copies of two files");
    cluster
        .sh(
            2,
            "cp --reflink=auto /cluster/a /cluster/b && sync /cluster/b",
        )
        .ok();
    cluster
        .sh(
            1,
            "cp --reflink=auto /cluster/b /cluster/c && sync /cluster/c",
        )
        .ok();
    // But for what the cluster keeps for itself.
    let after = stored(&cluster);
    assert!(after < before + 64 * 1024, "{} bytes more", after - before);
    for dir in [&one, &two] {
        same(&dir.join("b"), &data);
        same(&dir.join("c"), &data);
        let blocks = |name: &str| fs::metadata(dir.join(name)).expect("stat").blocks();
        assert_eq!(blocks("b"), blocks("a"), "each of them counts");
    }
    // A change of one is not seen in the others.
    let file = open(&two.join("b"));
    file.write_all_at(b"changed", 10 * MIB as u64)
        .expect("write");
    file.sync_all().expect("fsync");
    same(&one.join("a"), &data);
    for name in ["a", "b", "control"] {
        fs::remove_file(one.join(name)).expect("unlink");
    }
    drop(file);
    let begun = Instant::now();
    while stored(&cluster) > before - 2 * control.len() as u64 {
        assert!(
            begun.elapsed() < DELETED_WITHIN,
            "the control's chunks stay"
        );
        thread::sleep(Duration::from_millis(100));
    }
    for number in [1, 2] {
        cluster.sh(number, "echo 3 >/proc/sys/vm/drop_caches").ok();
        same(&cluster.path(number).join("c"), &data);
    }
}

#[test]
fn a_sparse_file_stays_sparse() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    let file = open(&one.join("a"));
    file.set_len(24 * MIB as u64).expect("grow");
    for at in [5, 10, 20_u8] {
        let data = bytes(2 * MIB, at);
        let at = u64::from(at) * MIB as u64;
        file.write_all_at(&data, at).expect("write");
    }
    let borders = |path: &Path| {
        let file = File::open(path).expect("open");
        let (mut borders, mut at) = (Vec::new(), 0);
        while let Ok(data) = lseek(&file, at, Whence::SeekData) {
            at = lseek(&file, data, Whence::SeekHole).expect("data ends");
            borders.extend([data, at]);
        }
        borders
    };
    let expected = borders(&one.join("a"));
    assert_eq!(expected.len(), 6);
    cluster
        .sh(2, "cp --reflink=auto /cluster/a /cluster/b")
        .ok();
    // With one call after the other, holes included.
    let (source, target) = (File::open(two.join("a")), open(&two.join("c")));
    copy_whole(&source.expect("open"), 0, &target, 0, 24 * MIB);
    let whole = fs::read(one.join("a")).expect("read");
    for dir in [&one, &two] {
        for name in ["b", "c"] {
            same(&dir.join(name), &whole);
            assert_eq!(borders(&dir.join(name)), expected, "{name}");
            let blocks = fs::metadata(dir.join(name)).expect("stat").blocks();
            assert_eq!(blocks, 6 * MIB as u64 / 512, "{name}");
        }
    }
}

#[test]
fn pages_of_the_target_are_not_older_than_the_copy() {
    let cluster = Cluster::up(2);
    let dirs = [cluster.path(1), cluster.path(2)];
    let old = bytes(6 * MIB, 7);
    fs::write(dirs[0].join("b"), &old).expect("write");
    let mut expected = old;
    for round in 0..6_u8 {
        let here = &dirs[usize::from(round % 2)];
        let data = bytes(2 * MIB, round);
        fs::write(here.join("a"), &data).expect("write");
        // Both kernels have all pages of it.
        for dir in &dirs {
            same(&dir.join("b"), &expected);
        }
        let at = 1000 + usize::from(round) * 700_001;
        let (source, target) = (File::open(here.join("a")), open(&here.join("b")));
        copy_whole(&source.expect("open"), 0, &target, at, data.len());
        let end = at + data.len();
        expected.resize(expected.len().max(end), 0);
        expected[at..end].copy_from_slice(&data);
        for dir in &dirs {
            same(&dir.join("b"), &expected);
        }
    }
}

#[test]
fn what_a_copy_may_not_do() {
    let cluster = Cluster::up(2);
    let dir = cluster.path(1);
    let data = bytes(4 * MIB, 3);
    fs::write(dir.join("a"), &data).expect("write");
    let file = open(&dir.join("a"));
    let len = 2 * MIB;
    let overlapping = copy_range(&file, 0, &file, 1000, len);
    assert_eq!(overlapping, Err(nix::errno::Errno::EINVAL));
    let append = OpenOptions::new().append(true).open(dir.join("a"));
    let appended = copy_range(&file, 0, &append.expect("open"), 0, len);
    assert_eq!(appended, Err(nix::errno::Errno::EBADF));
    let reader = File::open(dir.join("a")).expect("open");
    let read_only = copy_range(&file, 0, &reader, 0, len);
    assert_eq!(read_only, Err(nix::errno::Errno::EBADF));
    // As on ext4: the limit on the size of files cuts a copy short, and refuses what begins behind it.
    let script = "trap '' XFSZ; ulimit -f 3072; cp --reflink=auto /cluster/a /cluster/short";
    let limited = cluster.sh(2, script);
    assert!(!limited.status.success(), "{limited}");
    let short = fs::read(dir.join("short")).expect("read");
    assert!(short == data[..short.len()] && short.len() <= 3 * MIB);
    // Within one file.
    copy_whole(&file, 0, &file, len, len);
    let expected = [&data[..len], &data[..len]].concat();
    same(&cluster.path(2).join("a"), &expected);
}
