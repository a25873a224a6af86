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
