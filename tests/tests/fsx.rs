//! One file that two nodes change in turn, in all the ways in which a file can be read and changed, compared with an
//! array after each step. `FSX_OPS` sets the steps, `SEED` repeats a run. In a long one a node takes some steps before the
//! other's turn, for most of the time goes into handing the file over, and the file grows to several sizes.
//!
//! Needs root and /dev/fuse.

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tests::{Cluster, Dice};

const FILE_BYTES_MAX: usize = 1 << 20;
/// The sizes of a long run, one after the other: below a page cluster, of one chunk, of several.
const SIZES: [usize; 3] = [OP_BYTES_MAX + PAGE, FILE_BYTES_MAX, 9 << 20];
/// A node of a long run takes up to so many steps before the other's turn.
const TURN_STEPS_MAX: usize = 64;
const OP_BYTES_MAX: usize = 64 << 10;
const PAGE: usize = 4096;
/// After so many steps a long run says how far it is.
const TOLD: usize = 10_000;

/// One node's view of the file.
struct Node {
    path: PathBuf,
    file: File,
}

impl Node {
    fn open(path: PathBuf) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .expect("open");
        Self { path, file }
    }

    fn check(&self, what: &str, model: &[u8], at: usize, len: usize) {
        let size = self.file.metadata().expect("fstat").len();
        assert_eq!(size, model.len() as u64, "the size {what}");
        let mut read = vec![0xee; len];
        let got = self.file.read_at(&mut read, at as u64).expect("read");
        let end = model.len().min(at + len);
        let expected = model.get(at..end).unwrap_or_default();
        assert_eq!(got, expected.len(), "bytes from {at} {what}");
        same(&read[..got], expected, at, what);
    }

    /// The kernel learns of a file's growth on another node by a stat or a read, not by a page fault or a copy.
    fn learn_size(&self, least: usize) {
        let size = self.file.metadata().expect("fstat").len();
        assert!(size >= least as u64, "{size} bytes");
    }

    /// Works on a mapping of `len` bytes from `at`, which lie within the file.
    #[allow(unsafe_code)]
    fn mapped(&self, at: usize, len: usize, work: impl FnOnce(&mut [u8])) {
        self.learn_size(at + len);
        let first = at / PAGE * PAGE;
        let whole = NonZeroUsize::new(at + len - first).expect("not empty");
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let offset = i64::try_from(first).expect("small");
        // SAFETY: a fresh mapping that nothing else in this process refers to.
        let map = unsafe { mmap(None, whole, both, MapFlags::MAP_SHARED, &self.file, offset) };
        let map = map.expect("mmap");
        let start = map.cast::<u8>().as_ptr().wrapping_add(at - first);
        // SAFETY: the bytes are mapped and within the file, and nobody else writes the file meanwhile.
        work(unsafe { std::slice::from_raw_parts_mut(start, len) });
        // SAFETY: unmaps what was mapped above, once.
        unsafe { munmap(map, whole.get()) }.expect("munmap");
    }
}

fn same(got: &[u8], expected: &[u8], at: usize, what: &str) {
    if let Some(wrong) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!(
            "byte {} is {:#x}, not {:#x} {what}",
            at + wrong,
            got[wrong],
            expected[wrong]
        );
    }
}

/// Copies within a file; returns how many bytes were copied.
#[allow(unsafe_code)]
fn copy(file: &File, from: usize, to: usize, len: usize) -> usize {
    let [mut from, mut to] = [from, to].map(|at| i64::try_from(at).expect("small"));
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open, and the offsets are written while they live.
    let done = unsafe { libc::copy_file_range(fd, &raw mut from, fd, &raw mut to, len, 0) };
    assert!(
        done > 0,
        "copied {done}: {}",
        std::io::Error::last_os_error()
    );
    done.unsigned_abs()
}

/// Does one step on a node and on the model; says what it was.
fn step(dice: &mut Dice, node: &mut Node, model: &mut Vec<u8>, file_max: usize) -> String {
    let size = model.len();
    let at = dice.below(file_max - OP_BYTES_MAX);
    let len = 1 + dice.below(OP_BYTES_MAX);
    let fill = u8::try_from(1 + dice.below(255)).expect("a byte");
    let within = |at: usize| at.min(size)..(at + len).min(size);
    match dice.below(16) {
        0..=4 => {
            let data: Vec<u8> = (0..len)
                .map(|i| fill.wrapping_add(i.to_le_bytes()[0]))
                .collect();
            model.resize(size.max(at + len), 0);
            model[at..at + len].copy_from_slice(&data);
            node.file.write_all_at(&data, at as u64).expect("write");
            format!("write {at}+{len}")
        }
        5 | 6 => {
            model.resize(at, 0);
            node.file.set_len(at as u64).expect("truncate");
            format!("truncate {size} to {at}")
        }
        7 => {
            let range = within(at);
            model[range].fill(0);
            let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (at, len) = (
                at.try_into().expect("small"),
                len.try_into().expect("small"),
            );
            fallocate(&node.file, how, at, len).expect("punch");
            format!("punch {at}+{len}")
        }
        8 => {
            model.resize(size.max(at + len), 0);
            let (at, len) = (
                at.try_into().expect("small"),
                len.try_into().expect("small"),
            );
            fallocate(&node.file, FallocateFlags::empty(), at, len).expect("allocate");
            format!("allocate {at}+{len}")
        }
        9 => {
            let to = dice.below(file_max - OP_BYTES_MAX);
            let from = within(at);
            if from.is_empty() || to < from.end && from.start < to + from.len() {
                return "no copy".into();
            }
            let data = model[from.clone()].to_vec();
            model.resize(size.max(to + data.len()), 0);
            model[to..to + data.len()].copy_from_slice(&data);
            node.learn_size(from.end);
            let mut done = 0;
            while done < data.len() {
                done += copy(&node.file, from.start + done, to + done, data.len() - done);
            }
            format!("copy {}+{} to {to}", from.start, from.len())
        }
        10 | 11 => {
            let range = within(at);
            if range.is_empty() {
                return "no mapping".into();
            }
            model[range.clone()].fill(fill);
            node.mapped(range.start, range.len(), |bytes| bytes.fill(fill));
            format!("store {}+{}", range.start, range.len())
        }
        12 => {
            let range = within(at);
            if range.is_empty() {
                return "no mapping".into();
            }
            let what = format!("loaded from {}+{}", range.start, range.len());
            let expected = &model[range.clone()];
            node.mapped(range.start, range.len(), |bytes| {
                same(bytes, expected, range.start, &what);
            });
            what
        }
        13 => {
            *node = Node::open(node.path.clone());
            "open again".into()
        }
        14 => {
            node.file.sync_all().expect("fsync");
            "fsync".into()
        }
        _ => {
            node.check("after nothing", model, at, len);
            format!("read {at}+{len}")
        }
    }
}

/// Lets the nodes take `ops` steps, each node up to `turn_max` before the other's turn, in a file of these sizes.
fn nodes_in_turn(ops: usize, turn_max: usize, sizes: &[usize]) {
    let cluster = Cluster::up(2);
    let files = [1, 2].map(|node| cluster.path(node).join("f"));
    in_turn(files, ops, turn_max, sizes);
}

/// The same with two paths of one file.
fn in_turn(files: [PathBuf; 2], ops: usize, turn_max: usize, sizes: &[usize]) {
    let seed = std::env::var("SEED").map_or_else(
        |_| u64::from(std::process::id()) * 7919,
        |seed| seed.parse().expect("SEED is a number"),
    );
    println!("SEED={seed}");
    let mut nodes = files.map(Node::open);
    let mut dice = Dice::new(seed.max(1));
    let mut model = Vec::new();
    let (mut doer, mut left) = (0, 0);
    for number in 0..ops {
        if number % TOLD == 0 {
            println!("{number} steps");
        }
        if left == 0 {
            doer = dice.below(2);
            // As often one step as many.
            left = 1 + dice.below(2) * dice.below(turn_max);
        }
        left -= 1;
        let file_max = sizes[number / TOLD % sizes.len()];
        let done = step(&mut dice, &mut nodes[doer], &mut model, file_max);
        let (at, len) = (dice.below(file_max), 1 + dice.below(OP_BYTES_MAX));
        let what = format!("after step {number} ({done} on node {})", doer + 1);
        let looker = if left == 0 { dice.below(2) } else { doer };
        nodes[looker].check(&what, &model, at, len);
    }
    let end = model.len() + 1;
    for node in &nodes {
        node.check("in the end", &model, 0, end);
    }
}

#[test]
fn nodes_change_a_file_in_turn() {
    nodes_in_turn(1_000, 1, &[FILE_BYTES_MAX]);
}

/// A file of node 2, changed by node 1 and beside on its own node.
#[test]
fn a_node_and_an_owner_change_an_exported_file_in_turn() {
    let cluster = Cluster::up(2);
    let near = cluster.state().join("exported");
    std::fs::create_dir(&near).expect("made");
    cluster.export(2, &near, false);
    let below = near.strip_prefix("/").expect("absolute");
    let far = cluster.path(1).join("node2/root").join(below);
    let files = [far, near].map(|dir| dir.join("f"));
    in_turn(files, 1_000, TURN_STEPS_MAX, &[FILE_BYTES_MAX]);
}

#[test]
#[ignore = "many more steps, FSX_OPS of them: in make test-long"]
fn nodes_change_a_file_in_turn_for_long() {
    let ops = std::env::var("FSX_OPS").map_or(50_000, |ops| ops.parse().expect("a number"));
    nodes_in_turn(ops, TURN_STEPS_MAX, &SIZES);
}
