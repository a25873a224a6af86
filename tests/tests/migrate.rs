//! Processes that move between real nodes while they run.

use std::fs;
use std::time::Duration;
use tests::{Cluster, Options, criu};

/// What one script may take.
const LONG: Duration = Duration::from_secs(240);

fn cluster(nodes: u32) -> Cluster {
    Cluster::with(&Options {
        nodes: Some(nodes),
        criu: Some(criu()),
        ..Options::default()
    })
}

/// Starts jobs and moves them; scripts of tests go below it.
const DRIVER: &str = r#"
import errno, os, subprocess, sys, time

class Job:
    def __init__(self, node, *command):
        words = ['glurun', '-w', str(node), *command]
        pipe = subprocess.PIPE
        self.owner = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, cwd='/', text=True)

    def ask(self, text):
        self.owner.stdin.write(text + '\n')
        self.owner.stdin.flush()
        return self.owner.stdout.readline().split()

    def file(self, name):
        return open(f'/cluster/proc/{self.pid}/{name}').read().split()

    def go(self, node):
        with open(f'/cluster/proc/{self.pid}/goto', 'w') as goto:
            goto.write(f'{node}\n')

    def refuses(self, node):
        try:
            self.go(node)
        except OSError as error:
            return errno.errorcode[error.errno]

    def end(self):
        self.owner.stdin.close()
        return self.owner.wait()
"#;

/// Runs a script on node 1 with all that [`DRIVER`] has.
#[track_caller]
fn drive(cluster: &Cluster, script: &str) {
    let path = cluster.state().join("driver.py");
    fs::write(&path, format!("{DRIVER}\n{script}")).expect("written");
    let run = format!("python3 {}", path.display());
    cluster.node(1).sh_within(LONG, &run).ok();
}

/// Counts lines into a file of the cluster and answers each.
const COUNTER: &str = r#"
import os, sys
out = open(sys.argv[1], 'a')
count = 0
for line in sys.stdin:
    count += 1
    print(count, file=out, flush=True)
    print(os.getpid(), count, line.strip(), flush=True)
sys.exit(42)
"#;

#[test]
fn a_process_moves_while_it_counts() {
    let cluster = cluster(3);
    fs::write(cluster.path(1).join("counter.py"), COUNTER).expect("written");
    // At home on the owner's node, where it has the owner's own pipes, and on another.
    for home in [1, 2] {
        let script = r#"
job = Job(HOME, 'python3', '/cluster/counter.py', '/cluster/counted-HOME')
job.pid, count, _ = job.ask('first')
count = int(count)
assert job.file('cantmove') == [], job.file('cantmove')
assert (job.file('where'), job.file('nmigs')) == (['HOME'], ['0'])
at, moves = HOME, 0
for round in range(MOVES):
    at = at % 3 + 1
    job.go(at)
    moves += 1
    assert job.file('where') == [str(at)], job.file('where')
    assert job.file('nmigs') == [str(moves)]
    count += 1
    answer = job.ask(f'round {round}')
    assert answer == [job.pid, str(count), 'round', str(round)], answer
job.go(0)
assert job.file('where') == job.file('from') == ['HOME']
assert job.end() == 42
counted = open('/cluster/counted-HOME').read().split()
assert counted == [str(n + 1) for n in range(count)], counted
assert not os.path.exists(f'/cluster/proc/{job.pid}')
"#;
        let script = script.replace("HOME", &home.to_string());
        drive(&cluster, &script.replace("MOVES", "25"));
    }
}

#[test]
fn what_moves_and_what_does_not() {
    let cluster = cluster(3);
    drive(
        &cluster,
        r#"
def tour(job):
    for node in (2, 3, 1):
        job.go(node)
        yield node

def script():
    job = Job(1, 'sh', '-c', 'n=0; while read x; do n=$((n+1)); echo $$ $n $x; done; exit 3')
    job.pid, *_ = job.ask('first')
    for n, _ in enumerate(tour(job)):
        assert job.ask('a') == [job.pid, str(n + 2), 'a']
    assert job.end() == 3

def pipeline():
    job = Job(1, 'sh', '-c', 'echo $$; cat | sed -u s/a/b/ | cat')
    job.pid, = job.owner.stdout.readline().split()
    for _ in tour(job):
        assert job.ask('aaa') == ['baa']
    assert job.end() == 0

def threads():
    job = Job(1, 'python3', '-u', '-c', """
import threading, os, sys, queue
asked, said = [queue.Queue() for _ in range(4)], queue.Queue()
def work(n):
    while True:
        said.put((n, asked[n].get()))
for n in range(4):
    threading.Thread(target=work, args=(n,), daemon=True).start()
for line in sys.stdin:
    for queue in asked:
        queue.put(line)
    print(os.getpid(), *sorted(said.get()[0] for _ in asked))
""")
    job.pid, *_ = job.ask('first')
    for _ in tour(job):
        assert job.ask('again') == [job.pid, '0', '1', '2', '3']
    assert job.end() == 0

for row in (script, pipeline, threads):
    try:
        row()
    except Exception:
        print(row.__name__, file=sys.stderr)
        raise
"#,
    );
}
