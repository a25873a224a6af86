//! A file that grows on another node while it is read here (docs/decisions/0006).
//!
//! The tree plays the client's part of a break: it has the kernel forget the pages, again while READs were answered
//! meanwhile, and only then makes the file longer. So no page of a shorter file is there once the file is longer. Every
//! byte ever written is the same, so that a zero is none of the file's.

use super::{Fs, within};
use gfs::tree::Kernel;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const FULL: usize = 4096;
const STEP: usize = 16;

/// Returns how many of all reads saw a zero while a file grew from nothing to a page, `rounds` times.
fn reads_with_zeros(rounds: usize, direct: bool) -> (usize, usize) {
    let fs = Fs::new();
    fs.tree.direct_io(direct);
    let (path, ino) = (fs.path("file"), fs.tree.put("file", b""));
    drop(fs::read(&path));
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (over, file) = (Arc::clone(&over), File::open(&path).expect("it is there"));
            thread::spawn(move || {
                let (mut zeros, mut reads) = (0, 0);
                let mut bytes = [b'x'; FULL];
                while !over.load(Ordering::Relaxed) {
                    let len = file.read_at(&mut bytes, 0).expect("readable");
                    zeros += usize::from(bytes[..len].contains(&0));
                    reads += 1;
                    // Else there is never a moment without a READ.
                    thread::sleep(Duration::from_micros(50));
                }
                (zeros, reads)
            })
        })
        .collect();
    let (looking, looked_at) = (Arc::clone(&over), path.clone());
    let looker = thread::spawn(move || {
        while !looking.load(Ordering::Relaxed) {
            fs::metadata(&looked_at).expect("it is there");
        }
    });
    let (tree, notifier) = (Arc::clone(&fs.tree), fs.mounted().notifier());
    within("growing", move || {
        for len in (0..rounds).flat_map(|_| (0..=FULL).step_by(STEP)) {
            loop {
                let reads = tree.ended("read");
                notifier.forget_data(ino).expect("the kernel takes it");
                if tree.put_unless_read("file", &vec![b'a'; len], reads) {
                    break;
                }
            }
            notifier.forget_attr(ino).expect("the kernel takes it");
        }
    });
    over.store(true, Ordering::Relaxed);
    within("the looker ends", move || looker.join()).expect("it can look");
    let seen = readers
        .into_iter()
        .map(|reader| within("a reader ends", move || reader.join()).expect("it can read"));
    seen.fold((0, 0), |sum, (zeros, reads)| (sum.0 + zeros, sum.1 + reads))
}

/// What W3 relies on.
#[test]
fn a_direct_read_of_a_growing_file_sees_no_zeros() {
    let (zeros, reads) = reads_with_zeros(200, true);
    assert_eq!(zeros, 0, "of {reads} reads");
}

/// What W3 is for: a kernel that passes this test needs no W3.
#[test]
#[ignore = "shows a race of the kernel: run by hand"]
fn a_buffered_read_of_a_growing_file_sees_no_zeros() {
    let (zeros, reads) = reads_with_zeros(2000, false);
    assert_eq!(zeros, 0, "of {reads} reads");
}
