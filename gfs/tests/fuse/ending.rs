//! How mounts begin and end.

use super::memtree::MemTree;
use super::{DEADLINE, Fs, wait_until, within};
use gfs::fuse::{Config, Connection, MountError};
use gfs::tree::Kernel;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::thread;

fn mount_error(point: &Path) -> MountError {
    match Connection::open(point, &Config::default()) {
        Ok(_) => panic!("mounted on {}", point.display()),
        Err(error) => error,
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("a mount table");
    let point = point.to_str().expect("a plain path");
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(point))
}

#[test]
fn a_bad_mount_point_is_refused_in_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing");
    assert!(matches!(mount_error(&missing), MountError::NoPoint { .. }));
    let below = missing.join("deeper");
    assert!(matches!(mount_error(&below), MountError::NoPoint { .. }));
    let file = dir.path().join("file");
    File::create(&file).expect("a file");
    assert!(matches!(mount_error(&file), MountError::NotDir { .. }));
    let fs = Fs::new();
    let error = mount_error(fs.dir.path());
    assert!(matches!(error, MountError::Taken { .. }));
    assert!(
        error
            .to_string()
            .contains("fuse.glu is mounted there already"),
        "{error}"
    );
}

#[test]
fn a_dead_mount_is_recognised() {
    let fs = Fs::new();
    fs.mounted().abort().expect("it can be aborted");
    wait_until("the session ends", || fs.mounted().is_ended());
    let point = fs.dir.path().to_owned();
    let error = within("mount on a dead mount", move || mount_error(&point));
    assert!(matches!(error, MountError::Taken { .. }), "{error}");
}

#[test]
fn unmounting_ends_the_session() {
    let fs = Fs::new();
    assert!(is_mounted(fs.dir.path()));
    fs.mounted().unmount().expect("nobody uses it");
    assert!(fs.mounted().is_ended());
    assert!(!is_mounted(fs.dir.path()));
    fs.mounted()
        .unmount()
        .expect("a second time there is nothing to do");
}

#[test]
fn dropping_unmounts() {
    let dir = tempfile::tempdir().expect("a directory");
    let unserved = Connection::open(dir.path(), &Config::default()).expect("root and /dev/fuse");
    assert!(is_mounted(dir.path()));
    drop(unserved);
    assert!(!is_mounted(dir.path()));
}

#[test]
fn an_unmount_by_others_ends_the_session() {
    let fs = Fs::new();
    let point = fs.dir.path().to_owned();
    within("umount", move || nix::mount::umount(&point)).expect("nobody uses it");
    wait_until("the session ends", || fs.mounted().is_ended());
    let ended = fs
        .runtime
        .as_ref()
        .expect("running")
        .block_on(async { tokio::time::timeout(DEADLINE, fs.mounted().ended()).await });
    ended.expect("its end is told");
}

/// What the daemon itself looked at (K2) is let go after a while.
#[test]
fn looks_of_the_daemon_do_not_keep_a_mount() {
    let fs = Fs::new();
    let (path, ino) = (fs.path("file"), fs.tree.put("file", b"1"));
    let notifier = fs.mounted().notifier();
    within("a look that may cross", move || {
        drop(fs::metadata(&path));
        notifier.forget_attr(ino).expect("the kernel takes it");
        drop(fs::metadata(&path));
    });
    let point = fs.dir.path().to_owned();
    wait_until("nobody uses it", || nix::mount::umount(&point).is_ok());
    wait_until("the session ends", || fs.mounted().is_ended());
}

#[test]
fn open_files_do_not_keep_a_mount() {
    let fs = Fs::new();
    fs.tree.put("file", &[1; 10]);
    fs.tree.direct_io(true);
    let mut file = File::open(fs.path("file")).expect("it opens");
    fs.mounted().unmount().expect("in use, but it ends");
    assert!(!is_mounted(fs.dir.path()));
    let read = within("read of an aborted file", move || file.read(&mut [0; 10]));
    assert!(read.is_err(), "the file is dead");
}

#[test]
fn a_tree_that_never_answers_does_not_keep_a_mount() {
    let fs = Fs::new();
    fs.tree.block("make");
    let path = fs.path("new");
    let mkdir = thread::spawn(move || fs::create_dir(path));
    wait_until("mkdir is with the tree", || fs.tree.began("make") == 1);
    fs.mounted().unmount().expect("in use, but it ends");
    wait_until("mkdir ends", || mkdir.is_finished());
    assert!(mkdir.join().expect("no panic").is_err());
    wait_until("the operation is dropped", || fs.tree.dropped("make") == 1);
}

#[test]
fn an_abort_fails_what_waits_and_what_comes() {
    let fs = Fs::new();
    fs.tree.block("make");
    let path = fs.path("new");
    let mkdir = thread::spawn(move || fs::create_dir(path));
    wait_until("mkdir is with the tree", || fs.tree.began("make") == 1);
    fs.mounted().abort().expect("it can be aborted");
    wait_until("mkdir ends", || mkdir.is_finished());
    assert!(mkdir.join().expect("no panic").is_err());
    let root = fs.path("");
    let stat = within("stat", move || fs::metadata(root));
    assert_eq!(
        stat.err().and_then(|e| e.raw_os_error()),
        Some(libc::ENOTCONN)
    );
}

/// The number of an ended mount may belong to another one by now.
#[test]
fn an_abort_of_an_ended_mount_hits_nobody() {
    let first = Fs::new();
    first.mounted().unmount().expect("nobody uses it");
    let others: Vec<_> = (0..4).map(|_| Fs::new()).collect();
    drop(first.mounted().abort());
    for other in &others {
        let root = other.path("");
        within("stat", move || fs::metadata(root)).expect("it is alive");
    }
}

/// Whoever waits when the runtime ends gets an error.
#[test]
fn the_end_of_the_runtime_leaves_nobody_waiting() {
    let mut fs = Fs::new();
    fs.tree.block("lookup");
    let path = fs.path("x");
    let stat = thread::spawn(move || fs::metadata(path));
    wait_until("the lookup waits", || !fs.mounted().waiting().is_empty());
    fs.runtime.take().expect("running").shutdown_background();
    wait_until("stat ends", || stat.is_finished());
    let error = stat.join().expect("no panic").err();
    assert_eq!(error.and_then(|e| e.raw_os_error()), Some(libc::EIO));
    let path = fs.path("y");
    let later = within("stat", move || fs::metadata(path));
    assert_eq!(later.err().and_then(|e| e.raw_os_error()), Some(libc::EIO));
}

#[test]
fn requests_wait_for_the_tree_to_be_served() {
    let dir = tempfile::tempdir().expect("a directory");
    let connection = Connection::open(dir.path(), &Config::default()).expect("root and /dev/fuse");
    let root = dir.path().to_owned();
    let stat = thread::spawn(move || fs::metadata(root));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mounted = connection
        .serve(MemTree::new(), runtime.handle())
        .expect("threads");
    wait_until("stat ends", || stat.is_finished());
    let meta: io::Result<_> = stat.join().expect("no panic");
    assert!(meta.expect("the root is there").is_dir());
    mounted.unmount().expect("nobody uses it");
}
