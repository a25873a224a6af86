//! Scripts that start jobs and move them between the nodes of a cluster.

use crate::{Cluster, Options, criu};
use std::fs;
use std::time::Duration;

/// Starts jobs and moves them; scripts of tests go below it.
const DRIVER: &str = r#"
import errno, os, subprocess, sys, time

class Job:
    def __init__(self, node, *command, user=()):
        words = [*user, 'glurun', '-w', str(node), *command]
        pipe = subprocess.PIPE
        self.owner = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, cwd='/', text=True)

    def ask(self, text):
        self.owner.stdin.write(text + '\n')
        self.owner.stdin.flush()
        return self.owner.stdout.readline().split()

    def file(self, name):
        return open(f'/cluster/proc/{self.pid}/{name}').read().split()

    def go(self, node, how=''):
        goto = os.open(f'/cluster/proc/{self.pid}/goto', os.O_WRONLY)
        try:
            # A file object would write what was refused once more when it is closed.
            os.write(goto, f'{node}{how}\n'.encode())
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                error.strerror += f' (cantmove: {self.file("cantmove")})'
            raise
        finally:
            os.close(goto)

    def refuses(self, node, how=''):
        try:
            self.go(node, how)
        except OSError as error:
            return errno.errorcode[error.errno]

    def end(self):
        self.owner.stdin.close()
        return self.owner.wait()
"#;

/// Counts lines into a file of the cluster and answers each, with so many MiB of memory that must stay as they are.
const COUNTER: &str = r#"
import os, sys
mib = int(sys.argv[2]) if len(sys.argv) > 2 else 0
ballast = [os.urandom(1 << 20) for _ in range(mib)]
sums = [hash(mib) for mib in ballast]
out = open(sys.argv[1], 'a')
count = 0
for line in sys.stdin:
    count += 1
    print(count, file=out, flush=True)
    # Not by what was remembered of the hash.
    assert [hash(bytes(bytearray(mib))) for mib in ballast] == sums
    print(os.getpid(), count, line.strip(), flush=True)
sys.exit(42)
"#;

/// A program with so many MiB of memory, and with connections and System V IPC to itself (`--private net,ipc`). After each line that it
/// reads it says its pid, and whether all of this is as it must be.
///
/// A child sends numbers all the time, so something is always on its way. Two ends of another connection have sent each other all that
/// they may, which nobody reads before the next line. It has a file open if it is told one.
pub const TO_ITSELF: &str = r#"
import ctypes, hashlib, os, socket, sys, threading, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
opened = [open(name) for name in sys.argv[2:]]
pages = {n: hashlib.sha256(b'%d' % n).digest() * 128 for n in range(int(sys.argv[1]) * 256)}
def is_right(page):
    return pages[page] == hashlib.sha256(b'%d' % page).digest() * 128
def all_are():
    return all(map(is_right, reversed(range(len(pages)))))

def pair(family, address):
    listener = socket.create_server((address, 0), family=family)
    one = socket.create_connection(listener.getsockname()[:2])
    return one, listener.accept()[0]
def fill(end, byte):
    end.setblocking(False)
    sent = 0
    try:
        while True:
            sent += end.send(byte * 65536)
    except BlockingIOError:
        end.setblocking(True)
        return sent
def drain(end, byte, sent):
    while sent:
        piece = end.recv(min(sent, 1 << 20))
        if not piece or piece.strip(byte):
            return False
        sent -= len(piece)
    return True

BLOCK = 512
def block(number):
    return b''.join((number + n).to_bytes(8, 'little') for n in range(BLOCK))
one, other = pair(socket.AF_INET, '127.0.0.1')
if os.fork() == 0:
    other.close()
    number = 0
    try:
        while True:
            one.sendall(block(number))
            number += BLOCK
            time.sleep(.001)
    except OSError:
        os._exit(0)
one.close()
received, is_broken, more = 0, False, threading.Condition()
def receive():
    global received, is_broken
    while (read := other.recv(BLOCK * 8, socket.MSG_WAITALL)):
        with more:
            is_broken |= read != block(received)
            received += BLOCK
            more.notify()
threading.Thread(target=receive, daemon=True).start()
def goes_on():
    with more:
        until = received + 20 * BLOCK
        more.wait_for(lambda: is_broken or received > until)
        return not is_broken

left, right = pair(socket.AF_INET6, '::1')
sent = fill(left, b'l'), fill(right, b'r')
segment = libc.shmget(0x676c75, 8192, 0o1600)
at = libc.shmat(segment, None, 0)
sems = libc.semget(0x676c75, 1, 0o1600)
print(os.getpid(), flush=True)
for count, line in enumerate(sys.stdin):
    child = os.fork()
    if child == 0:
        os._exit(0 if all_are() else 1)
    memory = all_are() and os.waitpid(child, 0)[1] == 0
    full = drain(right, b'l', sent[0]) and drain(left, b'r', sent[1]) and sum(sent) > 1 << 20
    sent = fill(left, b'l'), fill(right, b'r')
    shared = ctypes.string_at(at, 8192) == bytes([count]) * 8192 and libc.shmget(0x676c75, 8192, 0) == segment
    ctypes.memset(at, count + 1, 8192)
    shared = shared and libc.semctl(libc.semget(0x676c75, 1, 0), 0, 12) == count
    libc.semctl(sems, 0, 16, count + 1)
    print(os.getpid(), memory, goes_on(), full, shared, flush=True)
other.shutdown(socket.SHUT_RDWR)
os.wait()
"#;

/// Makes a cluster whose jobs can move, with a program `/cluster/counter.py`: it counts the lines that it reads, into the file
/// that it is told, answers each with its pid, the count and the line, and ends with status 42. It has so many MiB of memory as it
/// is told after the file.
///
/// # Panics
/// It does not come up.
#[must_use]
#[track_caller]
pub fn cluster_that_moves(nodes: u32) -> Cluster {
    let cluster = Cluster::with(&Options {
        nodes: Some(nodes),
        criu: Some(criu()),
        ..Options::default()
    });
    fs::write(cluster.path(1).join("counter.py"), COUNTER).expect("written");
    cluster
}

/// Returns the command that runs a Python script, which has a class `Job`.
///
/// # Panics
/// It cannot be written.
#[must_use]
#[track_caller]
pub fn driver(cluster: &Cluster, script: &str) -> String {
    let path = cluster.state().join("driver.py");
    fs::write(&path, format!("{DRIVER}\n{script}")).expect("written");
    format!("python3 {}", path.display())
}

/// Runs such a script on node 1; returns what it says.
///
/// # Panics
/// It fails, or takes longer than it may.
#[track_caller]
pub fn drive(cluster: &Cluster, within: Duration, script: &str) -> String {
    let run = driver(cluster, script);
    cluster.node(1).sh_within(within, &run).ok()
}
