//! Locks that go to the tree.

use super::signals::signalled;
use super::{Fs, wait_until, within};
use gfs::fuse::Config;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use std::fs::File;
use std::io;

fn locking() -> Fs {
    let fs = Fs::with(&Config {
        locks: true,
        ..Config::default()
    });
    fs.tree.put("file", b"12345");
    fs
}

fn open(fs: &Fs) -> File {
    let file = File::options().read(true).write(true).open(fs.path("file"));
    file.expect("the file opens")
}

fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("a lock type"),
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

#[test]
fn flock_and_fcntl_are_told_apart() {
    let fs = locking();
    let file = open(&fs);
    within("locks", move || {
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e);
        let file = lock
            .expect("flock")
            .unlock()
            .map_err(|(_, e)| e)
            .expect("unlock");
        fcntl(&file, FcntlArg::F_SETLK(&range(libc::F_RDLCK, 0, 5))).expect("fcntl");
        fcntl(&file, FcntlArg::F_SETLKW(&range(libc::F_WRLCK, 0, 0))).expect("fcntl");
    });
    let expected = [
        (true, libc::F_WRLCK, false),
        (true, libc::F_UNLCK, false),
        (false, libc::F_RDLCK, false),
        (false, libc::F_WRLCK, true),
    ];
    assert_eq!(fs.tree.locks()[..4], expected);
}

#[test]
fn a_lock_in_the_way_is_shown() {
    let fs = locking();
    let file = open(&fs);
    let get = move |start| {
        let mut lock = range(libc::F_RDLCK, start, 5);
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).expect("F_GETLK");
        (i32::from(lock.l_type), lock.l_start, lock.l_len)
    };
    let (taken, free) = within("F_GETLK", move || (get(12), get(20)));
    assert_eq!(taken, (libc::F_WRLCK, 10, 10));
    assert_eq!(free.0, libc::F_UNLCK);
}

#[test]
fn any_signal_ends_the_wait_for_a_lock() {
    let fs = locking();
    let file = open(&fs);
    let thread = signalled(&fs, "setlk", move || {
        let lock = range(libc::F_WRLCK, 0, 0);
        fcntl(&file, FcntlArg::F_SETLKW(&lock)).map_err(io::Error::from)
    });
    wait_until("the wait is dropped", || fs.tree.dropped("setlk") == 1);
    fs.tree.unblock("setlk");
    wait_until("fcntl ends", || thread.is_finished());
    let error = thread.join().expect("no panic").err();
    assert_eq!(error.map(|e| e.kind()), Some(io::ErrorKind::Interrupted));
}

#[test]
fn without_the_option_locks_stay_in_the_kernel() {
    let fs = Fs::new();
    fs.tree.put("file", b"");
    let file = open(&fs);
    let lock = within("flock", move || {
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e)
    });
    drop(lock.expect("flock"));
    assert_eq!(fs.tree.began("setlk"), 0);
}
