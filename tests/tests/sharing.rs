//! Nodes that use the same file at the same time, as hard as they can: everybody gets on, and memory that they map is one
//! memory. `HAMMER_SECONDS` sets how long they fight.
//!
//! Needs root and /dev/fuse.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use tests::{Cluster, with_deadline};

/// Four nodes append to one file, read it, and create and remove names in one directory: each gets at least a tenth of
/// all operations, and no append is lost.
#[test]
fn nobody_starves() {
    const NODES: u32 = 4;
    const RECORD: &[u8] = b"0123456789abcde\n";
    let seconds = std::env::var("HAMMER_SECONDS").map_or(5, |s| s.parse().expect("a number"));
    let cluster = Cluster::up(NODES);
    fs::create_dir(cluster.path(1).join("dir")).expect("mkdir");
    fs::write(cluster.path(1).join("log"), "").expect("create");
    let start = Arc::new(Barrier::new(NODES as usize));
    let nodes: Vec<_> = (1..=NODES)
        .map(|node| {
            let (root, start) = (cluster.path(node), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let end = Instant::now() + Duration::from_secs(seconds);
                let mut rounds = 0_u32;
                while Instant::now() < end {
                    append(&root.join("log"), RECORD);
                    let read = fs::read(root.join("log")).expect("read");
                    assert!(
                        read.ends_with(RECORD),
                        "node {node} does not see a whole record at the end"
                    );
                    let name = root.join("dir").join(format!("n{node}"));
                    fs::write(&name, "").expect("create");
                    fs::remove_file(&name).expect("unlink");
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    let rounds: Vec<u32> = with_deadline(
        "four nodes that fight",
        Duration::from_secs(seconds + 60),
        move || {
            let joined = nodes.into_iter().map(|node| node.join());
            joined.map(|rounds| rounds.expect("no error")).collect()
        },
    );
    let all: u32 = rounds.iter().sum();
    println!("{rounds:?} rounds in {seconds} s");
    assert!(
        rounds.iter().all(|&node| node * 10 >= all),
        "somebody starves: {rounds:?}"
    );
    let log = fs::read(cluster.path(1).join("log")).expect("read");
    assert_eq!(log.len(), all as usize * RECORD.len(), "appends were lost");
    assert!(log.chunks(RECORD.len()).all(|record| record == RECORD));
}

fn append(path: &Path, record: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("open");
    file.write_all(record).expect("append");
}

/// A page that is mapped shared.
struct Mapped(std::ptr::NonNull<AtomicU32>);

// SAFETY: it is only used through atomics.
#[allow(unsafe_code)]
unsafe impl Send for Mapped {}

const PAGE: usize = 4096;

impl Mapped {
    #[allow(unsafe_code)]
    fn new(path: &Path) -> Self {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("open");
        let protection =
            nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping that nothing else refers to.
        let map = unsafe {
            nix::sys::mman::mmap(
                None,
                NonZeroUsize::new(PAGE).expect("not zero"),
                protection,
                nix::sys::mman::MapFlags::MAP_SHARED,
                &file,
                0,
            )
        };
        Self(map.expect("mmap").cast())
    }

    #[allow(unsafe_code)]
    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < PAGE / size_of::<AtomicU32>());
        // SAFETY: inside the page.
        let word = unsafe { self.0.add(index) };
        // SAFETY: aligned, and mapped as long as `self` lives.
        unsafe { word.as_ref() }
    }
}

impl Drop for Mapped {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: unmaps what `new` mapped, once.
        let unmapped = unsafe { nix::sys::mman::munmap(self.0.cast(), PAGE) };
        unmapped.expect("munmap");
    }
}

/// Peterson's lock (1981) is right only on memory that all see in one order: two nodes count in one mapped page.
#[test]
fn petersons_lock_on_mapped_memory() {
    const ROUNDS: u32 = 100;
    const TURN: usize = 2;
    const COUNT: usize = 3;
    let cluster = Cluster::up(2);
    fs::write(cluster.path(1).join("page"), [0; PAGE]).expect("write");
    let over = Arc::new(AtomicBool::new(false));
    let nodes: Vec<_> = [(0_usize, 1, 1_u32), (1, 0, 2)]
        .map(|(me, other, node)| {
            let (path, over) = (cluster.path(node).join("page"), Arc::clone(&over));
            std::thread::spawn(move || {
                let page = Mapped::new(&path);
                let turn = u32::from(me == 0);
                for _ in 0..ROUNDS {
                    page.word(me).store(1, Ordering::SeqCst);
                    page.word(TURN).store(turn, Ordering::SeqCst);
                    while page.word(other).load(Ordering::SeqCst) == 1
                        && page.word(TURN).load(Ordering::SeqCst) == turn
                    {
                        assert!(!over.load(Ordering::Relaxed), "given up");
                        std::thread::yield_now();
                    }
                    let count = page.word(COUNT).load(Ordering::SeqCst);
                    page.word(COUNT).store(count + 1, Ordering::SeqCst);
                    page.word(me).store(0, Ordering::SeqCst);
                }
            })
        })
        .into();
    with_deadline(
        "two nodes that take turns",
        Duration::from_secs(120),
        move || {
            for node in nodes {
                node.join().expect("no fault");
            }
        },
    );
    over.store(true, Ordering::Relaxed);
    for node in [1, 2] {
        let page = Mapped::new(&cluster.path(node).join("page"));
        let count = page.word(COUNT).load(Ordering::SeqCst);
        assert_eq!(count, 2 * ROUNDS, "node {node} lost counts");
    }
}

/// A counter in a mapped page, incremented without atomics' help under a fcntl lock on the same file.
#[test]
fn a_mapped_counter_under_a_lock() {
    const ROUNDS: u32 = 100;
    let cluster = Cluster::up(2);
    fs::write(cluster.path(1).join("page"), [0; PAGE]).expect("write");
    let nodes = [1, 2].map(|node| {
        let path = cluster.path(node).join("page");
        std::thread::spawn(move || {
            let page = Mapped::new(&path);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .expect("open");
            for _ in 0..ROUNDS {
                lock(&file, libc::F_WRLCK);
                let count = page.word(0).load(Ordering::Relaxed);
                page.word(0).store(count + 1, Ordering::Relaxed);
                lock(&file, libc::F_UNLCK);
            }
        })
    });
    with_deadline(
        "two nodes that count",
        Duration::from_secs(120),
        move || {
            for node in nodes {
                node.join().expect("no fault");
            }
        },
    );
    for node in [1, 2] {
        let page = Mapped::new(&cluster.path(node).join("page"));
        let count = page.word(0).load(Ordering::Relaxed);
        assert_eq!(count, 2 * ROUNDS, "node {node} lost counts");
    }
}

/// Locks or unlocks the whole file, for the open file.
fn lock(file: &File, kind: i32) {
    let range = libc::flock {
        l_type: i16::try_from(kind).expect("a lock type"),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_OFD_SETLKW(&range)).expect("lock");
}
