//! fallocate, SEEK_HOLE and SEEK_DATA, copy_file_range: as on the local file system, whichever node looks.
//!
//! Needs root and /dev/fuse.

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use tests::{Cluster, scratch_dir};

const KIB: i64 = 1 << 10;
/// Size of the file before each call.
const SIZE: i64 = LEN as i64;
const LEN: usize = 512 << 10;

const KEEP: FallocateFlags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::FALLOC_FL_PUNCH_HOLE;
const ZERO: FallocateFlags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
const ALLOCATE: FallocateFlags = FallocateFlags::empty();

/// A directory of the local file system that goes with the test.
struct Local(PathBuf);

impl Local {
    fn new(name: &str) -> Self {
        let path = scratch_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("mkdir");
        Self(path)
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn update(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    options.open(path).expect("open")
}

/// Makes a file without holes.
fn solid(path: &Path) -> File {
    let file = update(path);
    file.set_len(0).expect("truncate");
    let bytes: Vec<u8> = (1..=251).cycle().take(LEN).collect();
    file.write_all_at(&bytes, 0).expect("write");
    file
}

/// What there is to see of a file, but for the number of blocks.
fn seen(path: &Path) -> (Vec<u8>, u64) {
    let attr = fs::metadata(path).expect("stat");
    (fs::read(path).expect("read"), attr.size())
}

/// Where data and holes begin, by turns.
fn borders(file: &File) -> Vec<i64> {
    let mut borders = Vec::new();
    let mut at = 0;
    while let Ok(data) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, data, Whence::SeekHole).expect("data ends");
        borders.extend([data, at]);
    }
    borders
}

#[test]
fn fallocate_is_that_of_the_local_file_system() {
    let cluster = Cluster::up(2);
    let local = Local::new("fallocate");
    let ours = [cluster.path(1), cluster.path(2)];
    let cases: [(FallocateFlags, i64, i64); 17] = [
        (ALLOCATE, 64 * KIB, 128 * KIB),
        (ALLOCATE, SIZE - 1, 10_000),
        (ALLOCATE, SIZE + 1_000, 1),
        (KEEP, SIZE, 64 * KIB),
        (KEEP, 2 * SIZE, 64 * KIB),
        (PUNCH | KEEP, 64 * KIB, 128 * KIB),
        (PUNCH | KEEP, 1, 10_000),
        (PUNCH | KEEP, SIZE - 5_000, 10_000),
        (PUNCH | KEEP, 0, SIZE),
        (PUNCH | KEEP, 2 * SIZE, KIB),
        (PUNCH, 0, KIB),
        (ZERO, 64 * KIB, 128 * KIB),
        (ZERO, 777, 5),
        (ZERO, SIZE - 5_000, 10_000),
        (ZERO | KEEP, SIZE - 5_000, 10_000),
        (ALLOCATE, 0, 0),
        (PUNCH | KEEP, -1, KIB),
    ];
    for (flags, offset, len) in cases {
        let case = format!("{flags:?} {offset} {len}");
        for (here, there) in [(0, 1), (1, 0)] {
            let [model, real] = [&local.0, &ours[here]].map(|dir| {
                let file = solid(&dir.join("f"));
                fallocate(&file, flags, offset, len)
            });
            assert_eq!(real, model, "{case}");
            let expected = seen(&local.0.join("f"));
            assert!(
                seen(&ours[there].join("f")) == expected,
                "{case}: elsewhere"
            );
            assert!(seen(&ours[here].join("f")) == expected, "{case}: here");
        }
    }
    // These are refused cleanly.
    let file = solid(&ours[0].join("f"));
    for flags in [
        FallocateFlags::FALLOC_FL_COLLAPSE_RANGE,
        FallocateFlags::FALLOC_FL_INSERT_RANGE,
    ] {
        let refused = fallocate(&file, flags, 0, 64 * KIB);
        assert_eq!(refused, Err(nix::errno::Errno::EOPNOTSUPP), "{flags:?}");
    }
    assert_eq!(file.metadata().expect("fstat").len(), LEN as u64);
}

#[test]
fn data_and_holes_are_found() {
    let cluster = Cluster::up(2);
    let local = Local::new("holes");
    let dirs = [local.0.clone(), cluster.path(1), cluster.path(2)];
    let make = |dir: &Path| {
        let file = update(&dir.join("f"));
        file.set_len(0).expect("truncate");
        file.set_len(4 << 20).expect("grow");
        file.write_all_at(&[1; 64 << 10], 1 << 20).expect("write");
        file.write_all_at(&[1; 128 << 10], 2 << 20).expect("write");
        let hole = (2 << 20) + 32 * KIB;
        fallocate(&file, PUNCH | KEEP, hole, 64 * KIB).expect("punch");
        file
    };
    let expected = borders(&make(&dirs[0]));
    assert_eq!(expected.len(), 6, "three pieces of data");
    for maker in [1, 2] {
        let file = make(&dirs[maker]);
        assert_eq!(borders(&file), expected, "before anything is flushed");
        for dir in &dirs[1..] {
            assert_eq!(borders(&File::open(dir.join("f")).expect("open")), expected);
        }
        for whence in [Whence::SeekData, Whence::SeekHole] {
            let end = lseek(&file, 4 << 20, whence);
            assert_eq!(end, Err(nix::errno::Errno::ENXIO));
        }
        assert_eq!(lseek(&file, 3 << 20, Whence::SeekHole), Ok(3 << 20));
        assert_eq!(
            lseek(&file, 3 << 20, Whence::SeekData),
            Err(nix::errno::Errno::ENXIO)
        );
    }
}

/// Copies up to `len` bytes; the offsets move by what was copied, which is returned.
#[allow(unsafe_code)]
fn copy_range(
    source: &File,
    from: &mut i64,
    target: &File,
    to: &mut i64,
    len: usize,
) -> nix::Result<usize> {
    let (source, target) = (source.as_raw_fd(), target.as_raw_fd());
    // SAFETY: both files are open, both offsets live.
    let copied = unsafe { libc::copy_file_range(source, from, target, to, len, 0) };
    let copied = nix::errno::Errno::result(copied)?;
    Ok(usize::try_from(copied).expect("not negative"))
}

#[test]
fn ranges_are_copied() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    let source = solid(&one.join("source"));
    let bytes = fs::read(one.join("source")).expect("read");
    for dir in [&one, &two] {
        let source = File::open(dir.join("source")).expect("open");
        let target = update(&dir.join("target"));
        target.set_len(0).expect("truncate");
        let (mut from, mut to) = (1_000, 3_000);
        let mut left = 300_000;
        while left > 0 {
            let copied = copy_range(&source, &mut from, &target, &mut to, left).expect("copy");
            assert!(copied > 0);
            left -= copied;
        }
        for reader in [&one, &two] {
            let got = fs::read(reader.join("target")).expect("read");
            assert_eq!(got.len(), 303_000);
            assert!(got[..3_000].iter().all(|byte| *byte == 0));
            assert!(got[3_000..] == bytes[1_000..301_000]);
        }
    }
    drop(source);
}

#[test]
fn a_file_may_be_as_large_as_an_offset() {
    let cluster = Cluster::up(2);
    let (one, two) = (cluster.path(1), cluster.path(2));
    let largest = i64::MAX as u64;
    let file = update(&one.join("f"));
    file.set_len(largest).expect("grow");
    assert_eq!(fs::metadata(two.join("f")).expect("stat").len(), largest);
    // The kernel's page cache ends with the last whole page.
    let last = largest - largest % 4096 - 4096;
    file.write_all_at(b"end", last).expect("write far out");
    let there = File::open(two.join("f")).expect("open");
    let mut bytes = [1_u8; 5];
    there.read_exact_at(&mut bytes, last - 1).expect("read");
    assert_eq!(&bytes, b"\0end\0");
    assert!(there.metadata().expect("fstat").blocks() < 1 << 12);
    let data = lseek(&there, 0, Whence::SeekData).expect("there is data");
    let data = u64::try_from(data).expect("an offset");
    assert!(data <= last && data > last - (8 << 20));
    file.set_len(3).expect("cut");
    assert_eq!(fs::read(two.join("f")).expect("read"), b"\0\0\0");
}
