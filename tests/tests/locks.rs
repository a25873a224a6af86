//! Locks across nodes: flock(2), fcntl(2) of processes (POSIX) and of open files (OFD).
//!
//! Needs root and /dev/fuse.

use libc::{F_OFD_SETLK, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK};
use nix::errno::Errno;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tests::{Cluster, DEADLINE, with_deadline};

/// Tells its pid, locks the file of its first argument, makes that of its second to tell so, and stays; at SIGUSR1
/// tells whether it can write through the descriptor that it locked through.
const HOLD: &str = "import fcntl,os,signal,sys
signal.pthread_sigmask(signal.SIG_BLOCK,[signal.SIGUSR1])
print(os.getpid(),flush=True)
f=open(sys.argv[1],'r+')
fcntl.lockf(f,fcntl.LOCK_EX)
open(sys.argv[2],'w').close()
signal.sigwait([signal.SIGUSR1])
try:
    os.pwrite(f.fileno(),b'held',0)
    print('written')
except OSError as e:
    print(e.errno)
";

/// Increments the number in the file of its first argument as often as its second says, each time under a fcntl lock.
const COUNT: &str = "import fcntl,os,sys
fd=os.open(sys.argv[1],os.O_RDWR)
for _ in range(int(sys.argv[2])):
    fcntl.lockf(fd,fcntl.LOCK_EX)
    number=int(os.pread(fd,16,0))+1
    os.pwrite(fd,str(number).encode(),0)
    fcntl.lockf(fd,fcntl.LOCK_UN)
";

/// The term of a session, and some time for a busy machine.
const LOST_WITHIN: Duration = Duration::from_secs(4 + 5);

fn flock_of(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("a lock type"),
        l_whence: 0,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: i32, kind: i32, start: i64, len: i64) -> Result<(), Errno> {
    let mut lock = flock_of(kind, start, len);
    sys::fcntl_lock(file.as_raw_fd(), command, &mut lock)
}

/// Takes or gives back an OFD lock: the threads of this process are nobody to each other.
fn ofd(file: &File, kind: i32, start: i64, len: i64) -> Result<(), Errno> {
    fcntl(file, F_OFD_SETLK, kind, start, len)
}

fn flock(file: &File, how: i32) -> Result<(), Errno> {
    sys::flock(file.as_raw_fd(), how)
}

fn open(path: &Path) -> File {
    let file = File::options().read(true).write(true).open(path);
    file.unwrap_or_else(|e| panic!("open {}: {e}", path.display()))
}

/// Makes a file; returns its path on either node.
fn make(cluster: &Cluster, name: &str) -> [PathBuf; 2] {
    let paths = [1, 2].map(|node| cluster.path(node).join(name));
    fs::write(&paths[0], "0").expect("make the file");
    paths
}

/// What it shows, and how.
type Case = (&'static str, fn(&Cluster));

#[test]
fn locks() {
    // One cluster, one test: clusters are expensive on a small machine.
    let cluster = Cluster::up(3);
    let cases: &[Case] = &[
        ("ranges exclude each other between nodes", ranges),
        ("ranges as in Connectathon's tlock", tlock),
        ("the families are independent", families),
        ("close and release give locks back", close),
        ("a counter under fcntl locks, four processes", counter_fcntl),
        ("a counter under flock", counter_flock),
        ("a waiter wakes promptly", wakes),
        ("a signal ends a wait", alarm),
        ("a wait can be aborted from outside", aborted),
        ("a waiter can be killed", killed_waiter),
        ("the death of a process gives its locks back", killed_holder),
        ("deadlock", deadlock),
        ("F_GETLK", getlk),
        ("a lock lost with its session", lost),
        ("the leader boots again", leader_change),
        ("the death of a node", node_death),
    ];
    for (what, case) in cases {
        let began = Instant::now();
        case(&cluster);
        println!("{what}: {:?}", began.elapsed());
    }
}

fn ranges(cluster: &Cluster) {
    let [a, b] = make(cluster, "ranges").map(|path| open(&path));
    let free =
        |start, len| ofd(&b, F_WRLCK, start, len).and_then(|()| ofd(&b, F_UNLCK, start, len));
    let taken = Err(Errno::EAGAIN);
    assert_eq!(ofd(&a, F_WRLCK, 10, 10), Ok(()));
    assert_eq!(free(10, 1), taken);
    assert_eq!(free(19, 5), taken);
    assert_eq!(free(0, 10), Ok(()));
    assert_eq!(free(20, 0), Ok(()));
    // Split, merged, to the end.
    assert_eq!(ofd(&a, F_UNLCK, 14, 2), Ok(()));
    assert_eq!(free(14, 2), Ok(()));
    assert_eq!(free(13, 1), taken);
    assert_eq!(free(16, 1), taken);
    assert_eq!(ofd(&a, F_WRLCK, 14, 0), Ok(()));
    assert_eq!(free(1 << 40, 1), taken);
    // Downgraded in part: readers come in there only. The other reader is then in the way of an upgrade.
    assert_eq!(ofd(&a, F_RDLCK, 12, 2), Ok(()));
    assert_eq!(ofd(&b, F_RDLCK, 11, 2), taken);
    assert_eq!(ofd(&b, F_RDLCK, 12, 2), Ok(()));
    assert_eq!(ofd(&a, F_WRLCK, 0, 0), taken);
    assert_eq!(ofd(&b, F_UNLCK, 0, 0), Ok(()));
    assert_eq!(ofd(&a, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(free(12, 1), taken);
    assert_eq!(ofd(&a, F_UNLCK, 0, 0), Ok(()));
    assert_eq!(free(0, 0), Ok(()));
}

/// What tlock does with a parent and a child, done with the open files of two nodes.
fn tlock(cluster: &Cluster) {
    const END: i64 = i64::MAX;
    let files = make(cluster, "tlock").map(|path| open(&path));
    let (parent, child) = (0, 1);
    // Whose turn, what it does, to which bytes (length 0: to the end), and whether it can.
    let check = |steps: &[(usize, i32, i64, i64, bool)]| {
        for &(who, kind, start, len, free) in steps {
            let done = ofd(&files[who], kind, start, len);
            let expected = if free { Ok(()) } else { Err(Errno::EAGAIN) };
            let step = (who, kind, start, len);
            assert_eq!(done, expected, "{step:?} of {steps:?}");
            if who == child && kind != F_UNLCK && free {
                // The child only tests.
                ofd(&files[who], F_UNLCK, start, len).expect("unlock");
            }
        }
        for file in &files {
            ofd(file, F_UNLCK, 0, 0).expect("unlock");
        }
    };
    // 1: everything of an unlocked file is free.
    let anything = [(0, 1), (0, 0), (1, 1), (1, 0), (END - 1, 1), (END, 0)];
    for (start, len) in anything {
        check(&[(parent, F_WRLCK, start, len, true)]);
    }
    // 2 to 6: the whole file, parts of it, its last bytes.
    check(&[
        (parent, F_WRLCK, 0, 0, true),
        (child, F_WRLCK, 0, 1, false),
        (child, F_WRLCK, 0, 0, false),
        (child, F_WRLCK, 1, 0, false),
        (child, F_WRLCK, END, 1, false),
    ]);
    check(&[
        (parent, F_WRLCK, 0, 1, true),
        (child, F_WRLCK, 0, 1, false),
        (child, F_WRLCK, 0, 0, false),
        (child, F_WRLCK, 1, 0, true),
    ]);
    check(&[
        (parent, F_WRLCK, 1, 1, true),
        (child, F_WRLCK, 0, 1, true),
        (child, F_WRLCK, 0, 0, false),
        (child, F_WRLCK, 1, 1, false),
        (child, F_WRLCK, 2, 0, true),
    ]);
    check(&[
        (parent, F_WRLCK, 0, 1, true),
        (parent, F_WRLCK, 2, 1, true),
        (child, F_WRLCK, 0, 0, false),
        (child, F_WRLCK, 1, 1, true),
        (child, F_WRLCK, 2, 1, false),
        (child, F_WRLCK, 3, 0, true),
    ]);
    check(&[
        (parent, F_WRLCK, END, 1, true),
        (child, F_WRLCK, END - 1, 1, true),
        (child, F_WRLCK, END - 1, 2, false),
        (child, F_WRLCK, END, 0, false),
    ]);
    // 8, 9: what ends behind the last byte is no range.
    for file in &files {
        assert_eq!(ofd(file, F_WRLCK, END, 2), Err(Errno::EOVERFLOW));
        assert_eq!(ofd(file, F_WRLCK, 0, -1), Err(Errno::EINVAL));
    }
    // 10: of several ranges one is given back after the other.
    check(&[
        (parent, F_WRLCK, 0, 3, true),
        (parent, F_WRLCK, 5, 3, true),
        (parent, F_UNLCK, 1, 1, true),
        (child, F_WRLCK, 0, 1, false),
        (child, F_WRLCK, 1, 1, true),
        (child, F_WRLCK, 2, 1, false),
        (child, F_WRLCK, 3, 2, true),
        (parent, F_UNLCK, 2, 4, true),
        (child, F_WRLCK, 1, 5, true),
        (child, F_WRLCK, 6, 1, false),
    ]);
    // Readers share, and only they.
    check(&[
        (parent, F_RDLCK, 0, 10, true),
        (child, F_RDLCK, 5, 10, true),
        (child, F_WRLCK, 9, 1, false),
        (child, F_WRLCK, 10, 1, true),
    ]);
    // 11: what is locked does not depend on the size of the file.
    files[0].set_len(0).expect("truncate");
    assert_eq!(ofd(&files[0], F_WRLCK, 3, 5), Ok(()));
    files[1]
        .write_all_at(b"longer than that", 0)
        .expect("write");
    assert_eq!(ofd(&files[1], F_WRLCK, 3, 5), Err(Errno::EAGAIN));
    files[1].set_len(1).expect("truncate");
    assert_eq!(ofd(&files[1], F_WRLCK, 7, 1), Err(Errno::EAGAIN));
    check(&[(parent, F_UNLCK, 0, 0, true), (child, F_WRLCK, 0, 0, true)]);
}

fn families(cluster: &Cluster) {
    let [a, b] = make(cluster, "families").map(|path| open(&path));
    // flock and fcntl do not see each other, on one node or two.
    assert_eq!(flock(&a, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    assert_eq!(ofd(&a, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Err(Errno::EAGAIN));
    assert_eq!(flock(&a, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(ofd(&b, F_RDLCK, 0, 0), Err(Errno::EAGAIN));
    assert_eq!(ofd(&a, F_UNLCK, 0, 0), Ok(()));
    // OFD and POSIX locks do, though they are of one process.
    assert_eq!(ofd(&b, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(fcntl(&b, F_SETLK, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    assert_eq!(ofd(&b, F_UNLCK, 0, 0), Ok(()));
    assert_eq!(fcntl(&b, F_SETLK, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(ofd(&a, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    assert_eq!(fcntl(&b, F_SETLK, F_UNLCK, 0, 0), Ok(()));
}

fn close(cluster: &Cluster) {
    let paths = make(cluster, "close");
    let other = open(&paths[1]);
    let until_free = |what: &str| {
        tests::wait_until(what, DEADLINE, || ofd(&other, F_WRLCK, 0, 0) == Ok(()));
        ofd(&other, F_UNLCK, 0, 0).expect("unlock");
    };
    // A process's locks go with any descriptor of the file, at once.
    let (file, second) = (open(&paths[0]), open(&paths[0]));
    assert_eq!(fcntl(&file, F_SETLK, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(ofd(&other, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    drop(second);
    assert_eq!(ofd(&other, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(ofd(&other, F_UNLCK, 0, 0), Ok(()));
    // Those of an open file go with its last descriptor.
    let twin = file.try_clone().expect("dup");
    assert_eq!(ofd(&file, F_WRLCK, 0, 0), Ok(()));
    assert_eq!(flock(&file, libc::LOCK_EX), Ok(()));
    drop(file);
    assert_eq!(ofd(&other, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    drop(twin);
    until_free("the OFD lock to go with its open file");
    tests::wait_until("the flock to go with its open file", DEADLINE, || {
        flock(&other, libc::LOCK_EX | libc::LOCK_NB) == Ok(())
    });
}

fn counter_fcntl(cluster: &Cluster) {
    const ROUNDS: u32 = 100;
    let paths = make(cluster, "counter-fcntl");
    let rounds = ROUNDS.to_string();
    let words = ["python3", "-c", COUNT, "/cluster/counter-fcntl", &rounds];
    let workers = [1, 1, 2, 2].map(|node| cluster.node(node).spawn_command(&words));
    for worker in workers {
        worker.wait(DEADLINE).ok();
    }
    let sum = fs::read_to_string(&paths[0]).expect("read");
    assert_eq!(sum, (4 * ROUNDS).to_string());
}

fn counter_flock(cluster: &Cluster) {
    counter(cluster, "counter-flock", |file, lock| {
        flock(file, if lock { libc::LOCK_EX } else { libc::LOCK_UN }).expect("lock");
    });
}

/// Increments a number in a file under a lock on two nodes at a time.
fn counter(cluster: &Cluster, name: &str, lock: fn(&File, bool)) {
    const ROUNDS: u32 = 200;
    let workers = make(cluster, name).map(|path| {
        thread::spawn(move || {
            let file = open(&path);
            for _ in 0..ROUNDS {
                lock(&file, true);
                let mut text = [0; 16];
                let len = file.read_at(&mut text, 0).expect("read");
                let text = std::str::from_utf8(&text[..len]).expect("a number");
                let next = text.parse::<u32>().expect("a number") + 1;
                file.write_all_at(next.to_string().as_bytes(), 0)
                    .expect("write");
                lock(&file, false);
            }
        })
    });
    with_deadline("two nodes counting", DEADLINE, move || {
        workers.map(|worker| worker.join().expect("it counts"))
    });
    let sum = fs::read_to_string(cluster.path(1).join(name)).expect("read");
    assert_eq!(sum, (2 * ROUNDS).to_string());
}

/// Starts a wait for an OFD lock on a thread, and returns when the thread is in it.
fn start_wait(path: &Path) -> thread::JoinHandle<Instant> {
    let path = path.to_owned();
    let (sender, receiver) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || {
        let file = open(&path);
        sender.send(sys::thread_id()).expect("somebody listens");
        fcntl(&file, libc::F_OFD_SETLKW, F_WRLCK, 0, 0).expect("lock");
        Instant::now()
    });
    let tid = receiver.recv().expect("the thread runs");
    let own = format!("/proc/self/task/{tid}/syscall");
    let number = libc::SYS_fcntl.to_string();
    tests::wait_until("the thread to wait in fcntl", DEADLINE, || {
        fs::read_to_string(&own).is_ok_and(|call| call.split(' ').next() == Some(&number))
    });
    waiter
}

/// Returns the number of the request of node 2 that waits for a lock.
fn wait_of(cluster: &Cluster) -> Option<u64> {
    let glu = tests::binary("glu").display().to_string();
    let waits = cluster.sh(2, &format!("{glu} debug waits --json")).ok();
    let waits: Vec<serde_json::Value> = serde_json::from_str(&waits).expect("a list");
    let lock = waits.iter().find(|wait| wait["request"] == "SETLKW");
    lock.and_then(|wait| wait["number"].as_u64())
}

/// What waits and should not is let go by hand.
fn aborted(cluster: &Cluster) {
    let paths = make(cluster, "aborted");
    let file = open(&paths[0]);
    ofd(&file, F_WRLCK, 0, 0).expect("lock");
    let path = paths[1].clone();
    let waiter = thread::spawn(move || fcntl(&open(&path), F_SETLKW, F_WRLCK, 0, 0));
    let mut number = None;
    tests::wait_until("the wait to be shown", DEADLINE, || {
        number = wait_of(cluster);
        number.is_some()
    });
    let number = number.expect("just seen");
    let glu = tests::binary("glu").display().to_string();
    let abort = format!("{glu} debug abort {number}");
    cluster.sh(2, &abort).ok();
    let ended = with_deadline("the waiter", DEADLINE, || waiter.join().expect("no panic"));
    assert_eq!(ended, Err(Errno::EIO));
    let again = cluster.sh(2, &abort);
    assert_eq!(again.code(), Some(1));
    assert!(again.stderr.contains("does not wait"), "{}", again.stderr);
}

fn wakes(cluster: &Cluster) {
    let paths = make(cluster, "wakes");
    let file = open(&paths[0]);
    for _ in 0..5 {
        ofd(&file, F_WRLCK, 0, 0).expect("lock");
        let waiter = start_wait(&paths[1]);
        tests::wait_until("the wait to be shown", DEADLINE, || {
            wait_of(cluster).is_some()
        });
        let released = Instant::now();
        ofd(&file, F_UNLCK, 0, 0).expect("unlock");
        let woken = with_deadline("the waiter", DEADLINE, || waiter.join().expect("it locks"));
        let took = woken.duration_since(released);
        assert!(
            took < Duration::from_secs(1),
            "the waiter woke after {took:?}"
        );
        tests::wait_until("the waiter's lock to go", DEADLINE, || {
            ofd(&file, F_WRLCK, 0, 0) == Ok(())
        });
        ofd(&file, F_UNLCK, 0, 0).expect("unlock");
    }
}

fn alarm(cluster: &Cluster) {
    let paths = make(cluster, "alarm");
    let file = open(&paths[0]);
    ofd(&file, F_WRLCK, 0, 0).expect("lock");
    let script = "import fcntl,signal
class Alarm(Exception): pass
def ring(*_): raise Alarm
signal.signal(signal.SIGALRM,ring)
f=open('/cluster/alarm','r+')
signal.setitimer(signal.ITIMER_REAL,0.3)
try:
    fcntl.lockf(f,fcntl.LOCK_EX)
    print('locked')
except Alarm:
    print('interrupted')
";
    let said = cluster.sh(2, &format!("python3 -c \"{script}\"")).ok();
    assert_eq!(said, "interrupted");
    // The wait that was given up is not granted later.
    ofd(&file, F_UNLCK, 0, 0).expect("unlock");
    assert_eq!(ofd(&file, F_WRLCK, 0, 0), Ok(()));
}

/// Starts a process in `node` that locks `name` and keeps it; returns its pid there.
fn ask(cluster: &Cluster, node: u32, name: &str) -> (tests::Running, String) {
    let [path, told] = ["", ".told"].map(|end| format!("/cluster/{name}{end}"));
    let holder = cluster
        .node(node)
        .spawn_command(&["python3", "-c", HOLD, &path, &told]);
    tests::wait_until("the process to tell its pid", DEADLINE, || {
        !holder.stdout().is_empty()
    });
    let pid = holder.stdout().trim().to_owned();
    (holder, pid)
}

/// The same, when it has the lock.
fn hold(cluster: &Cluster, node: u32, name: &str) -> (tests::Running, String) {
    let (holder, pid) = ask(cluster, node, name);
    let told = cluster.path(node).join(format!("{name}.told"));
    tests::wait_until("the holder to have its lock", DEADLINE, || told.exists());
    (holder, pid)
}

fn killed_waiter(cluster: &Cluster) {
    let paths = make(cluster, "waiter");
    let file = open(&paths[0]);
    ofd(&file, F_WRLCK, 0, 0).expect("lock");
    let (waiter, pid) = ask(cluster, 2, "waiter");
    let waits = format!(
        "for i in $(seq 500); do grep -q '^{} ' /proc/{pid}/syscall && exit 0; sleep 0.02; done; exit 1",
        libc::SYS_fcntl
    );
    cluster.sh(2, &waits).ok();
    cluster.sh(2, &format!("kill -9 {pid}")).ok();
    assert_eq!(waiter.wait(Duration::from_secs(10)).signal(), Some(9));
    ofd(&file, F_UNLCK, 0, 0).expect("unlock");
    tests::wait_until("the lock to be free of the dead waiter", DEADLINE, || {
        ofd(&file, F_WRLCK, 0, 0) == Ok(())
    });
}

fn killed_holder(cluster: &Cluster) {
    let paths = make(cluster, "holder");
    let (holder, pid) = hold(cluster, 2, "holder");
    let file = open(&paths[0]);
    assert_eq!(ofd(&file, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    cluster.sh(2, &format!("kill -9 {pid}")).ok();
    holder.wait(DEADLINE);
    tests::wait_until(
        "the dead holder's lock to go",
        Duration::from_secs(5),
        || ofd(&file, F_WRLCK, 0, 0) == Ok(()),
    );
}

fn deadlock(cluster: &Cluster) {
    let first = make(cluster, "first");
    make(cluster, "second");
    // This process holds `first` and waits for `second`, which a process of node 2 holds that then asks for `first`.
    let file = open(&first[0]);
    fcntl(&file, F_SETLK, F_WRLCK, 0, 0).expect("lock");
    let script = "import fcntl,sys,time,os
s=open('/cluster/second','r+')
fcntl.lockf(s,fcntl.LOCK_EX)
open('/cluster/deadlock.told','w').close()
f=open('/cluster/first','r+')
end=time.time()+30
while time.time()<end:
    try:
        fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    if os.path.exists('/cluster/deadlock.go'): break
    time.sleep(0.02)
try:
    fcntl.lockf(f,fcntl.LOCK_EX)
    print('locked')
except OSError as e:
    print(e.errno)
";
    let other = cluster.spawn(2, &format!("python3 -c \"{script}\""));
    let dir = cluster.path(1);
    tests::wait_until("the other to hold the second file", DEADLINE, || {
        dir.join("deadlock.told").exists()
    });
    let second = open(&dir.join("second"));
    let (sender, receiver) = std::sync::mpsc::channel();
    // A thread of the same process is the same owner.
    let waiter = thread::spawn(move || {
        sender.send(sys::thread_id()).expect("somebody listens");
        let locked = fcntl(&second, F_SETLKW, F_WRLCK, 0, 0);
        fcntl(&second, F_SETLK, F_UNLCK, 0, 0).expect("unlock");
        locked
    });
    let tid = receiver.recv().expect("the thread runs");
    tests::wait_until("the thread to wait", DEADLINE, || {
        let call = fs::read_to_string(format!("/proc/self/task/{tid}/syscall"));
        call.is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_fcntl)))
    });
    fs::write(dir.join("deadlock.go"), "").expect("say go");
    let said = other.wait(DEADLINE).ok();
    assert_eq!(said.trim(), libc::EDEADLK.to_string());
    let locked = with_deadline("the waiter", DEADLINE, || waiter.join().expect("no panic"));
    assert_eq!(locked, Ok(()));
    drop(file);
}

fn getlk(cluster: &Cluster) {
    let paths = make(cluster, "getlk");
    let (holder, pid) = hold(cluster, 2, "getlk");
    let test = "import fcntl,struct
f=open('/cluster/getlk','r+')
a=struct.pack('hhqqi4x',fcntl.F_WRLCK,0,5,5,0)
t,w,s,l,p=struct.unpack('hhqqi4x',fcntl.fcntl(f,fcntl.F_GETLK,a))
print(t,s,l,p)
";
    let test = format!("python3 -c \"{test}\"");
    // Its own node tells the process, others the range: their kernels show no pid that is not theirs.
    assert_eq!(cluster.sh(2, &test).ok(), format!("1 0 0 {pid}"));
    assert_eq!(cluster.sh(1, &test).ok(), "1 0 0 0");
    cluster.sh(2, &format!("kill -9 {pid}")).ok();
    holder.wait(DEADLINE);
    let file = open(&paths[0]);
    let mut lock = flock_of(F_WRLCK, 0, 0);
    tests::wait_until("nothing to be in the way", DEADLINE, || {
        lock = flock_of(F_WRLCK, 0, 0);
        sys::fcntl_lock(file.as_raw_fd(), libc::F_GETLK, &mut lock).expect("F_GETLK");
        i32::from(lock.l_type) == F_UNLCK
    });
}

/// LK8: a node that is cut off for longer than its session lives.
fn lost(cluster: &Cluster) {
    let paths = make(cluster, "lost");
    let (holder, pid) = hold(cluster, 2, "lost");
    let file = open(&paths[0]);
    cluster.cut(2);
    let began = Instant::now();
    let file = with_deadline(
        "the lock of the node that is cut off",
        DEADLINE,
        move || {
            fcntl(&file, libc::F_OFD_SETLKW, F_WRLCK, 0, 0).expect("lock");
            file
        },
    );
    let took = began.elapsed();
    assert!(took < LOST_WITHIN, "the lock was free after {took:?}");
    file.write_all_at(b"mine", 0).expect("write");
    cluster.heal(2);
    tests::wait_until("node 2 to see what was written", DEADLINE, || {
        fs::read(&paths[1]).is_ok_and(|text| text == b"mine")
    });
    cluster.sh(2, &format!("kill -USR1 {pid}")).ok();
    let said = holder.wait(DEADLINE).ok();
    assert_eq!(said.lines().last(), Some(&*libc::EIO.to_string()));
    assert_eq!(fs::read(&paths[0]).expect("read"), b"mine");
    // Closed and opened again all is well.
    drop(file);
    let (holder, pid) = hold_again(cluster, "lost");
    cluster.sh(2, &format!("kill -USR1 {pid}")).ok();
    assert_eq!(holder.wait(DEADLINE).ok().lines().last(), Some("written"));
}

fn hold_again(cluster: &Cluster, name: &str) -> (tests::Running, String) {
    fs::remove_file(cluster.path(2).join(format!("{name}.told"))).expect("remove");
    hold(cluster, 2, name)
}

/// LK6, LK8: the leader loses its power and boots again. Whether a session outlives that is a question of time; who lost a lock is told in any case,
/// and two never believe to hold it.
fn leader_change(cluster: &Cluster) {
    make(cluster, "leader");
    let leader = cluster.status().leader.expect("a leader");
    let others: Vec<u32> = (1..=3).filter(|node| *node != leader).collect();
    let (holder, pid) = hold(cluster, others[0], "leader");
    let path = cluster.path(others[1]).join("leader");
    let locked = Err(Errno::EAGAIN);
    assert_eq!(ofd(&open(&path), F_WRLCK, 0, 0), locked);
    cluster.kill(leader);
    cluster.start(leader);
    let mut outcome = Err(Errno::EIO);
    let mut file = None;
    tests::wait_until("the leader to answer", DEADLINE, || {
        if let Ok(opened) = File::options().read(true).write(true).open(&path) {
            outcome = ofd(&opened, F_WRLCK, 0, 0);
            file = Some(opened);
        }
        outcome != Err(Errno::EIO)
    });
    cluster.sh(others[0], &format!("kill -USR1 {pid}")).ok();
    let said = holder.wait(DEADLINE).ok();
    let said = said.lines().last().expect("it says something");
    println!("after the leader's death: {outcome:?}, the holder: {said}");
    let lost = libc::EIO.to_string();
    match outcome {
        Ok(()) => assert_eq!(said, lost, "two hold the lock"),
        // Its session may have ended between the two.
        refused => assert!(refused == locked && (said == "written" || said == lost)),
    }
    tests::wait_until("the lock to be free", DEADLINE, || {
        let file = file.as_ref().expect("opened");
        ofd(file, F_WRLCK, 0, 0) == Ok(())
    });
}

/// The last case: node 2 does not come back.
fn node_death(cluster: &Cluster) {
    let paths = make(cluster, "death");
    let (_holder, _) = hold(cluster, 2, "death");
    let file = open(&paths[0]);
    assert_eq!(ofd(&file, F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    let killed = Instant::now();
    cluster.kill(2);
    let waited = with_deadline("the dead node's lock", DEADLINE, move || {
        fcntl(&file, libc::F_OFD_SETLKW, F_WRLCK, 0, 0).map(|()| Instant::now())
    });
    let took = waited.expect("lock").duration_since(killed);
    // A leader that died with it has to be replaced first.
    assert!(took < 2 * LOST_WITHIN, "the lock was free after {took:?}");
    println!("the lock of a dead node was free after {took:?}");
}

mod sys {
    #![allow(unsafe_code)]
    use nix::errno::Errno;

    /// fcntl(2) with a lock, as nix does not have it for every command.
    pub(super) fn fcntl_lock(fd: i32, command: i32, lock: &mut libc::flock) -> Result<(), Errno> {
        // SAFETY: the command takes a pointer to a lock, which lives until the call returns.
        Errno::result(unsafe { libc::fcntl(fd, command, std::ptr::from_mut(lock)) }).map(drop)
    }

    pub(super) fn flock(fd: i32, how: i32) -> Result<(), Errno> {
        // SAFETY: takes two numbers.
        Errno::result(unsafe { libc::flock(fd, how) }).map(drop)
    }

    pub(super) fn thread_id() -> i32 {
        nix::unistd::gettid().as_raw()
    }
}
