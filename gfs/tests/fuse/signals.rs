//! Signals to who waits for a tree that does not answer.

use super::sys::{send_usr1, survive_usr1};
use super::{Fs, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How soon a process must be gone after the signal that ends it.
const GONE_WITHIN: Duration = Duration::from_secs(2);

fn spawn(fs: &Fs, command: &str) -> Child {
    Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .current_dir("/")
        .env("D", fs.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh starts")
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    kill(pid, signal).expect("the child is there");
}

fn assert_gone(what: &str, mut child: Child) {
    let until = Instant::now() + GONE_WITHIN;
    while child.try_wait().expect("it is our child").is_none() {
        assert!(
            Instant::now() < until,
            "{what}: still there {GONE_WITHIN:?} after its signal"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

fn wait_for(fs: &Fs, operation: &'static str, began: usize) {
    wait_until(&format!("{operation} reaches the tree"), || {
        fs.tree.began(operation) > began && !fs.mounted().waiting().is_empty()
    });
}

/// Runs a command that blocks in `operation`, ends it, and returns the mount.
fn ends_by(last: Signal, operation: &'static str, command: &str) -> Fs {
    let fs = Fs::new();
    fs.tree.put("file", &[b'x'; 100_000]);
    fs.tree.block(operation);
    let child = spawn(&fs, command);
    wait_for(&fs, operation, 0);
    signal(&child, last);
    assert_gone(command, child);
    fs
}

fn is_killable(operation: &'static str, command: &str) {
    let fs = ends_by(Signal::SIGKILL, operation, command);
    wait_until("the operation is dropped", || {
        fs.tree.dropped(operation) > 0
    });
    fs.tree.unblock(operation);
}

#[test]
fn killable_while_it_looks_up() {
    is_killable("lookup", "stat $D/absent");
}

#[test]
fn killable_while_it_opens() {
    is_killable("open", "cat $D/file");
}

#[test]
fn killable_while_it_reads_around_the_cache() {
    let fs = Fs::new();
    fs.tree.put("file", &[b'x'; 100_000]);
    fs.tree.direct_io(true);
    fs.tree.block("read");
    let child = spawn(&fs, "cat $D/file");
    wait_for(&fs, "read", 0);
    signal(&child, Signal::SIGKILL);
    assert_gone("cat", child);
}

#[test]
fn killable_while_it_reads_with_o_direct() {
    let fs = ends_by(
        Signal::SIGKILL,
        "read",
        "dd if=$D/file of=/dev/null iflag=direct bs=4096 count=1",
    );
    fs.tree.unblock("read");
}

/// Pages are read by the kernel on its own account; the process waits for the page and can be killed there.
#[test]
fn killable_while_it_reads_through_the_cache() {
    let fs = ends_by(Signal::SIGKILL, "read", "cat $D/file");
    fs.tree.unblock("read");
}

#[test]
fn killable_while_it_writes() {
    is_killable(
        "write",
        "dd if=/dev/zero of=$D/file bs=4096 count=1 conv=notrunc",
    );
}

#[test]
fn killable_while_it_truncates() {
    is_killable("setattr", "truncate -s 5 $D/file");
}

#[test]
fn killable_while_it_makes_a_directory() {
    is_killable("make", "mkdir $D/new");
}

#[test]
fn killable_while_it_creates() {
    is_killable("create", "touch $D/new");
}

#[test]
fn killable_while_it_removes() {
    is_killable("unlink", "rm -f $D/file");
}

#[test]
fn killable_while_it_renames() {
    is_killable("rename", "mv $D/file $D/new");
}

#[test]
fn killable_while_it_lists() {
    is_killable("readdir", "ls -f $D");
}

#[test]
fn killable_while_it_syncs() {
    is_killable("fsync", "sync $D/file");
}

#[test]
fn other_fatal_signals_end_it_too() {
    for last in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        ends_by(last, "make", "mkdir $D/new").tree.unblock("make");
    }
}

/// The second signal comes without a word from the kernel.
#[test]
fn killable_after_a_signal_that_it_survived() {
    let fs = Fs::new();
    fs.tree.block("lookup");
    let child = spawn(
        &fs,
        "perl -e '$SIG{USR1} = sub {}; stat(\"$ENV{D}/absent\")'",
    );
    wait_for(&fs, "lookup", 0);
    signal(&child, Signal::SIGUSR1);
    thread::sleep(Duration::from_millis(120)); // Long enough to be looked at twice, and spared.
    assert_eq!(fs.tree.dropped("lookup"), 0);
    signal(&child, Signal::SIGKILL);
    assert_gone("perl", child);
    fs.tree.unblock("lookup");
}

/// A close must give back locks even if its process is being killed.
#[test]
fn a_close_goes_on_without_its_process() {
    let fs = Fs::new();
    fs.tree.put("file", b"x");
    fs.tree.block("flush");
    let child = spawn(&fs, "cat $D/file");
    wait_for(&fs, "flush", 0);
    signal(&child, Signal::SIGKILL);
    assert_gone("cat", child);
    fs.tree.unblock("flush");
    wait_until("the flush comes to its end", || {
        fs.tree.ended("flush") == fs.tree.began("flush")
    });
    assert_eq!(fs.tree.dropped("flush"), 0);
    wait_until("the file is released", || fs.tree.open_files() == 0);
}

/// Runs `call` in a thread, signals that while `operation` waits, and returns the thread.
pub fn signalled<T: Send + 'static>(
    fs: &Fs,
    operation: &'static str,
    call: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    survive_usr1();
    let began = fs.tree.began(operation);
    fs.tree.block(operation);
    let thread = thread::spawn(call);
    wait_for(fs, operation, began);
    send_usr1(&thread);
    thread
}

fn survives<T: Send + 'static>(
    fs: &Fs,
    operation: &'static str,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = signalled(fs, operation, call);
    thread::sleep(Duration::from_millis(120)); // Long enough to be looked at twice, and spared.
    assert!(!thread.is_finished(), "{operation} has ended early");
    fs.tree.unblock(operation);
    wait_until(operation, || thread.is_finished());
    thread.join().expect("no panic")
}

#[test]
fn a_handled_signal_does_not_end_what_a_disk_would_finish() {
    let fs = Fs::new();
    fs.tree.put("file", b"12345");
    fs.tree.direct_io(true);
    let dir = fs.path("dir");
    survives(&fs, "make", move || fs::create_dir(dir)).expect("mkdir succeeds");
    let file = fs.path("file");
    let content = survives(&fs, "read", move || fs::read(file)).expect("read succeeds");
    assert_eq!(content, b"12345");
    let file = fs.path("volatile");
    let absent = survives(&fs, "lookup", move || fs::metadata(file));
    assert_eq!(
        absent.err().map(|e| e.kind()),
        Some(io::ErrorKind::NotFound)
    );
}

#[test]
fn a_handled_signal_ends_a_read_of_a_stream() {
    let fs = Fs::new();
    let path = fs.path("stream");
    let thread = signalled(&fs, "read", move || {
        File::open(path).and_then(|mut file| file.read(&mut [0; 100]))
    });
    wait_until("the read ends", || thread.is_finished());
    let read = thread.join().expect("no panic");
    assert_eq!(
        read.err().map(|e| e.kind()),
        Some(io::ErrorKind::Interrupted)
    );
    wait_until("the operation is dropped", || fs.tree.dropped("read") == 1);
    fs.tree.unblock("read");
}

#[test]
fn what_waits_can_be_listed() {
    let fs = Fs::new();
    fs.tree.block("make");
    let path = fs.path("new");
    let thread = thread::spawn(move || fs::create_dir(path));
    wait_for(&fs, "make", 0);
    let waiting = fs.mounted().waiting();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].opcode.name(), "MKDIR");
    assert_eq!(waiting[0].ino, consistency::InodeNo::ROOT);
    assert_ne!(waiting[0].pid, 0);
    fs.tree.unblock("make");
    wait_until("mkdir", || thread.is_finished());
    thread.join().expect("no panic").expect("mkdir succeeds");
    assert!(fs.mounted().waiting().is_empty());
}

/// Two workers, many threads, interrupts at any moment: each request is answered once and none is lost.
#[test]
fn interrupts_at_any_moment_lose_nothing() {
    survive_usr1();
    let fs = Fs::new();
    let path = fs.path("stream");
    let until = Instant::now() + Duration::from_secs(1);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                let mut interrupted = 0_u32;
                let mut file = loop {
                    match OpenOptions::new().read(true).open(&path) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        file => break file.expect("the stream opens"),
                    }
                };
                while Instant::now() < until {
                    match file.read(&mut [0; 16]) {
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                            interrupted += 1;
                        }
                        read => drop(read.expect("the stream can be read")),
                    }
                }
                interrupted
            })
        })
        .collect();
    let mut blocked = false;
    while Instant::now() < until {
        blocked = !blocked;
        if blocked {
            fs.tree.block("read");
        } else {
            fs.tree.unblock("read");
        }
        for reader in readers.iter().filter(|reader| !reader.is_finished()) {
            send_usr1(reader);
        }
        thread::sleep(Duration::from_micros(300));
    }
    fs.tree.unblock("read");
    wait_until("all readers end", || {
        readers.iter().all(JoinHandle::is_finished)
    });
    let interrupted: u32 = readers
        .into_iter()
        .map(|reader| reader.join().expect("no panic"))
        .sum();
    assert!(interrupted > 0, "some reads were interrupted");
    wait_until("nothing waits", || fs.mounted().waiting().is_empty());
}
