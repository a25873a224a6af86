#![allow(clippy::cast_possible_truncation, reason = "the numbers are small")]

use super::*;
use crate::data::contract::{self, pattern as bytes, put};
use nix::mount::{MsFlags, mount, umount};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

const BLOCK: u32 = crate::data::BLOCK_BYTES;

fn store() -> (tempfile::TempDir, DirStore) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = DirStore::open(dir.path()).expect("a new store");
    (dir, store)
}

/// Changes one byte of the file of a chunk, counted from the end if negative.
fn damage(store: &DirStore, id: u64, at: i64) {
    let path = store.path(ChunkId(id));
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("the chunk is there");
    let size = file.metadata().expect("metadata").len();
    let at = if at < 0 {
        size.checked_add_signed(at).expect("inside")
    } else {
        at.unsigned_abs()
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("inside");
    file.write_all_at(&[byte[0] ^ 1], at).expect("writable");
}

fn tmp_files(dir: &Path) -> usize {
    fs::read_dir(dir.join(TMP)).expect("tmp is there").count()
}

/// What each store does.
#[test]
fn it_is_a_chunk_store() {
    contract::check(|check| {
        let (dir, store) = store();
        check(&store);
        assert_eq!(tmp_files(dir.path()), 0, "nothing is left of what was put");
    });
}

#[track_caller]
fn check_damage(store: &DirStore, at: i64, good: &[u32], corrupt: &[u32]) {
    let data = bytes(3 * BLOCK, 0);
    put(store, 1, &data).expect("put");
    damage(store, 1, at);
    for block in good {
        assert!(
            store.get(ChunkId(1), block * BLOCK, BLOCK).is_ok(),
            "block {block} is not touched"
        );
    }
    for block in corrupt {
        assert_eq!(
            store.get(ChunkId(1), block * BLOCK + 5, 1),
            Err(ChunkFailure::Corrupt),
            "block {block}"
        );
    }
    assert_eq!(put(store, 1, &data), Ok(()), "the right bytes heal it");
    assert_eq!(store.get(ChunkId(1), 0, 3 * BLOCK).expect("healed"), data);
}

#[test]
fn damage_is_found_and_healed() {
    let (_dir, store) = store();
    let store = &store;
    check_damage(store, -1, &[0, 1], &[2]);
    check_damage(store, -i64::from(2 * BLOCK), &[0, 2], &[1]);
    for header_byte in [0, 8, 12, 16, 24, 31] {
        check_damage(store, header_byte, &[], &[0, 1, 2]);
    }
}

#[test]
fn a_truncated_file_is_corrupt() {
    let (_dir, store) = store();
    for size in [0, 1, 15, 20, 31, 32, 100, u64::from(BLOCK)] {
        put(&store, 1, &bytes(3 * BLOCK, 0)).expect("put");
        let file = File::options()
            .write(true)
            .open(store.path(ChunkId(1)))
            .expect("there");
        file.set_len(size).expect("truncated");
        assert_eq!(
            store.get(ChunkId(1), 2 * BLOCK, 1),
            Err(ChunkFailure::Corrupt),
            "{size} bytes left"
        );
    }
}

#[test]
fn chunks_survive_a_restart_and_leftovers_do_not() {
    let (dir, store) = store();
    put(&store, 1, b"abc").expect("put");
    fs::write(dir.path().join(TMP).join("0"), b"half a chu").expect("written");
    drop(store);
    let store = DirStore::open(dir.path()).expect("opens again");
    assert_eq!(tmp_files(dir.path()), 0);
    assert_eq!(
        store.get(ChunkId(1), 0, 3).expect("still there"),
        &b"abc"[..]
    );
    put(&store, 2, b"def").expect("put");
}

/// Opens a store where `prepare` has been at work and expects an error with these words.
#[track_caller]
fn check_open(prepare: impl FnOnce(&Path), words: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("chunks");
    prepare(&root);
    let error = DirStore::open(&root).expect_err("a bad store").to_string();
    assert!(
        error.contains(words) && error.contains(root.to_str().expect("utf-8")),
        "{error}"
    );
    if root.is_dir() {
        assert!(!root.join("00").exists(), "a bad store is left alone");
    }
}

#[test]
fn bad_stores_are_refused() {
    let with_format = |format: &'static str| {
        move |root: &Path| {
            fs::create_dir(root).expect("made");
            fs::write(root.join(FORMAT), format).expect("written");
        }
    };
    check_open(
        |root| fs::write(root, "").expect("written"),
        "not a directory",
    );
    check_open(
        with_format("glu chunk store, version 2\n"),
        "has version 2, this glud knows up to 1; install",
    );
    check_open(
        with_format("something else"),
        "FORMAT says \"something else\"",
    );
    check_open(with_format(""), "FORMAT says \"\"");
    let with_other = |root: &Path| {
        fs::create_dir(root).expect("made");
        fs::write(root.join("letter.txt"), "").expect("written");
    };
    check_open(with_other, "holds \"letter.txt\"");
}

#[test]
fn one_store_at_a_time() {
    let (dir, store) = store();
    let error = DirStore::open(dir.path())
        .expect_err("it is open")
        .to_string();
    assert!(error.contains("in use by another process"), "{error}");
    drop(store);
    DirStore::open(dir.path()).expect("the lock ends with the store");
}

#[test]
fn an_unfinished_store_and_a_new_file_system_are_empty() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("LOCK"), "").expect("written");
    fs::write(dir.path().join("FORMAT.new"), "glu ch").expect("written");
    fs::create_dir(dir.path().join("lost+found")).expect("made");
    DirStore::open(dir.path()).expect("made over it");
}

/// A file system in memory; mounting one needs root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mounted = mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        );
        mounted.is_ok().then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(errno) = umount(self.0.path()) {
            eprintln!("umount {}: {errno}", self.0.path().display());
        }
    }
}

#[test]
fn a_full_disk_is_no_space_and_leaves_nothing() {
    let Some(disk) = Tmpfs::mount("size=2m,mode=700") else {
        println!("skipped: mounting a tmpfs needs root");
        return;
    };
    let store = DirStore::open(disk.0.path()).expect("a new store");
    let data = bytes(1 << 20, 0);
    put(&store, 1, &data).expect("there is room for one");
    let before = store.space().expect("space");
    assert!(
        before.total == 2 << 20 && before.free < 1 << 20,
        "{before:?}"
    );
    assert_eq!(put(&store, 2, &data), Err(ChunkFailure::NoSpace));
    assert_eq!(
        store.space().expect("space"),
        before,
        "nothing is left of it"
    );
    assert_eq!(store.ids(), Ok(vec![ChunkId(1)]));
    store.delete(&[ChunkId(1)]).expect("deleted");
    assert_eq!(put(&store, 2, &data), Ok(()));
}

#[test]
fn puts_per_second() {
    let (_dir, store) = store();
    let data = bytes(BLOCK, 0);
    let each = 8;
    for threads in [1, 8, 32] {
        let start = Instant::now();
        thread::scope(|scope| {
            for thread in 0..threads {
                let (store, data) = (&store, &data);
                scope.spawn(move || {
                    for put_no in 0..each {
                        put(store, threads * 1000 + put_no * threads + thread, data).expect("put");
                    }
                });
            }
        });
        let rate = (threads * each) as f64 / start.elapsed().as_secs_f64();
        println!("{threads} at a time: {rate:.0} puts of 64 KiB per second");
    }
    assert_eq!(store.ids().expect("ids").len(), (1 + 8 + 32) * 8);
}
