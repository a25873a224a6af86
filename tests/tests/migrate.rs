//! What moves between real nodes while it runs, and what does not.

use std::time::Duration;
use tests::{DEADLINE, moves, wait_until};

/// What the script may take.
const LONG: Duration = Duration::from_secs(240);

#[test]
fn what_moves_and_what_does_not() {
    let cluster = moves::cluster_that_moves(3);
    moves::drive(
        &cluster,
        LONG,
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

def things():
    job = Job(1, 'python3', '-u', '-c', """
import mmap, os, select, signal, socket, sys, time
deleted = open('/cluster/deleted', 'w+')
deleted.write('gone'); deleted.flush(); os.unlink('/cluster/deleted')
memory = os.memfd_create('memory'); os.write(memory, b'memory')
poll = select.epoll(); here, there = socket.socketpair(); poll.register(here, select.EPOLLIN)
file = open('/cluster/mapped', 'w+'); file.truncate(8192)
mapped = mmap.mmap(file.fileno(), 8192)
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, .05, .05)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); os.kill(os.getpid(), signal.SIGUSR1)
for n, _ in enumerate(sys.stdin):
    deleted.seek(0); mapped[n] = n; there.send(b'x'); ready = poll.poll(1); here.recv(1)
    before = ticks
    while ticks == before:
        signal.pause()
    print(os.getpid(), deleted.read(), os.pread(memory, 6, 0).decode(), len(ready),
          mapped[:n + 1].hex(), signal.SIGUSR1 in signal.sigpending())
signal.setitimer(signal.ITIMER_REAL, 0)
""")
    job.pid, *_ = job.ask('first')
    for n, _ in enumerate(tour(job)):
        said = job.ask('again')
        assert said == [job.pid, 'gone', 'memory', '1', bytes(range(n + 2)).hex(), 'True'], said
    assert job.end() == 0

def signals():
    job = Job(1, 'python3', '-u', '-c', """
import os, signal
# A signal between a look for it and pause(2) would be slept through.
woken, wake = os.pipe(); os.set_blocking(wake, False); signal.set_wakeup_fd(wake)
signal.signal(signal.SIGUSR1, lambda *_: print('usr1'))
print(os.getpid())
while True:
    os.read(woken, 1)
""")
    job.pid, = job.owner.stdout.readline().split()
    for _ in tour(job):
        open(f'/cluster/proc/{job.pid}/note', 'w').write('USR1')
        said = job.owner.stdout.readline()
        assert said == 'usr1\n', (said, job.owner.poll(), job.file('where'))
    job.go(2)
    job.owner.send_signal(15)
    status = job.owner.wait()
    assert status == -15 or status == 143, status

def output():
    # More than all pipes on the way hold is written and waits.
    job = Job(1, 'sh', '-c', 'echo $$; seq 200000; read x; echo $x; exec seq 10')
    job.pid = job.owner.stdout.readline().strip()
    for _ in tour(job):
        pass
    lines = iter(job.owner.stdout.readline, '')
    assert all(int(next(lines)) == n + 1 for n in range(200000))
    job.owner.stdin.write('end\n'); job.owner.stdin.flush()
    assert next(lines) == 'end\n'
    assert [int(line) for line in lines] == list(range(1, 11))
    assert job.end() == 0

def connection():
    job = Job(1, 'python3', '-u', '-c', """
import os, socket, sys
listener = socket.create_server(('127.0.0.1', 0))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
for _ in sys.stdin:
    print(os.getpid())
""")
    job.pid, = job.ask('first')
    assert job.file('cantmove') == ['tcp'], job.file('cantmove')
    assert job.refuses(2) == 'ENOTSUP', job.refuses(2)
    assert job.ask('again') == [job.pid]
    assert job.end() == 0

def woken():
    # A thread that waits for a move is woken by signals that another thread takes.
    import signal, threading
    job = Job(1, 'python3', '/cluster/counter.py', '/cluster/woken', '32')
    job.pid, *_ = job.ask('first')
    signal.signal(signal.SIGUSR1, lambda *_: None)
    told = []
    def go():
        job.go(2)
        told.extend(job.file('where'))
    going = threading.Thread(target=go)
    going.start()
    while not told:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    going.join()
    assert told == ['2'], told
    assert job.end() == 42

def nonsense():
    job = Job(1, 'sh', '-c', 'echo $$; read x')
    job.pid, = job.owner.stdout.readline().split()
    assert job.refuses(9) == 'ENXIO'
    assert job.refuses('x') == 'EINVAL'
    job.go(1)
    open(f'/cluster/proc/{job.pid}/lock', 'w').write('1')
    assert job.file('cantmove') == ['user_lock']
    assert job.refuses(2) == 'EBUSY'
    assert job.file('nmigs') == ['0']
    job.end()
    shell = Job.__new__(Job)
    for shell.pid in (os.getpid(), subprocess.check_output(['pgrep', '-o', 'glud'], text=True).strip()):
        assert shell.file('cantmove') == ['no_job']
        assert shell.refuses(2) == 'ENOTSUP'

def closed():
    stranger = ('setpriv', '--reuid', '4321', '--regid', '4321', '--clear-groups')
    job = Job(1, 'sh', '-c', 'echo $$; read x', user=stranger)
    job.pid, = job.owner.stdout.readline().split()
    os.chmod('/cluster/node2', 0o550)
    assert job.refuses(2) == 'ECONNREFUSED'
    assert job.file('where') == ['1']
    os.chmod('/cluster/node2', 0o555)
    job.end()

def switches():
    job = Job(1, 'sh', '-c', 'echo $$; while read x; do echo $x; done')
    job.pid, = job.owner.stdout.readline().split()
    path = lambda node, name: f'/cluster/proc/cluster/node{node}/{name}'
    def switch(node, name, on):
        with open(path(node, name), 'w') as file:
            file.write(str(on))
    switch(2, 'block', 1)
    assert open(path(2, 'block')).read() == '1\n'
    assert job.refuses(2) == 'ECONNREFUSED'
    ran = subprocess.run(['glurun', '-w', '2', 'true'], stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 125 and 'takes no processes of other nodes' in ran.stderr, ran
    where = ['glurun', '-n', '6', 'cat', '/cluster/proc/self/where']
    assert '2' not in subprocess.check_output(where, text=True).split()
    switch(2, 'block', 0)
    for away, node, name in ((2, 2, 'expel'), (3, 1, 'bring')):
        job.go(away)
        assert job.file('where') == [str(away)]
        # Of these it is none.
        switch(5 - away, 'expel', 1)
        switch(away, 'bring', 1)
        assert job.file('where') == [str(away)]
        switch(node, name, 1)
        assert job.file('where') == ['1'], name
    job.go(3)
    switch(1, 'stay', 1)
    assert job.file('cantmove') == ['stay'] and job.refuses(2) == 'ENOTSUP'
    job.go(0)
    assert job.refuses(2) == 'ENOTSUP'
    switch(1, 'stay', 0)
    job.go(2)
    assert job.ask('still there') == ['still', 'there']
    job.end()

def commands():
    job = Job(1, 'sh', '-c', 'echo $$; read x')
    job.pid, = job.owner.stdout.readline().split()
    def run(*words):
        ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return ran.returncode, ran.stdout.strip(), ran.stderr.strip()
    assert run('migrate', job.pid, '2') == (0, '', '')
    assert job.file('where') == ['2']
    assert run('migrate', job.pid, 'home') == (0, '', '')
    assert job.file('where') == ['1']
    assert run('loadlevel', '-p', job.pid) == (0, 'on', '')
    assert run('loadlevel', '-p', job.pid, 'off') == (0, '', '')
    assert run('loadlevel', '-p', job.pid) == (0, 'off', '')
    for to, why in (('2', 'locked'), ('9', 'no such node')):
        code, _, said = run('migrate', job.pid, to)
        assert code == 1 and why in said, said
    assert run('loadlevel', '-p', job.pid, 'on') == (0, '', '')
    assert run('migrate', job.pid, 'balance') == (0, '', '')
    # A lock is kept while a process is away, and when it is back.
    job.go(3)
    assert run('loadlevel', '-p', job.pid, 'off') == (0, '', '')
    assert job.refuses(2) == 'EBUSY'
    job.go(0)
    assert job.file('where') == job.file('lock') == ['1'] and job.refuses(2) == 'EBUSY'
    assert run('loadlevel', '-p', job.pid, 'on') == (0, '', '')
    job.go(2)
    code, _, said = run('migrate', str(os.getpid()), '2')
    assert code == 1 and 'not the program of a glurun job' in said, said
    job.end()
    assert run('migrate', job.pid, '2')[0] == 1

for row in (script, pipeline, threads, things, signals, output, connection, woken, nonsense, closed, switches, commands):
    try:
        row()
    except Exception:
        print(row.__name__, file=sys.stderr)
        raise
"#,
    );
}

#[test]
fn a_node_that_lacks_instructions_gets_nothing_that_may_use_them() {
    let cluster = moves::cluster_that_moves(3);
    let cpuinfo = cluster.state().join("cpuinfo");
    let cpuinfo = cpuinfo.display();
    let lacks = format!(
        "sed -E '/^(flags|Features)/s/ (sse4_2|aes)\\b//g' /proc/cpuinfo >{cpuinfo} && mount --bind {cpuinfo} /proc/cpuinfo"
    );
    cluster.sh(3, &lacks).ok();
    moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, 'sh', '-c', 'echo $$; read x')
job.pid, = job.owner.stdout.readline().split()
assert job.refuses(3) == 'ENOEXEC'
ran = subprocess.run(['migrate', job.pid, '3'], stderr=subprocess.PIPE, text=True)
assert ran.returncode == 1 and 'processors lack instructions' in ran.stderr, ran
assert job.file('nmigs') == ['0'] and job.file('moved') == []
job.go(2)
assert job.refuses(3) == 'ENOEXEC' and job.file('where') == ['2']
job.end()
# What has begun there can go back, but not what has begun where there is more.
there = Job(3, 'sh', '-c', 'echo $$; read x; echo $x; read x; exec sh -c "echo again; read x; exit 4"')
there.pid, = there.owner.stdout.readline().split()
there.go(1)
there.go(0)
assert there.ask('back') == ['back']
there.go(2)
assert there.ask('more') == ['again']
assert there.refuses(0) == 'ENOEXEC' and there.file('where') == ['2']
there.go(1)
assert there.refuses(3) == 'ENOEXEC'
assert there.end() == 4
"#,
    );
}

#[test]
fn every_node_hears_of_moves() {
    let cluster = moves::cluster_that_moves(3);
    let readers = [1, 2, 3].map(|node| {
        cluster.spawn(
            node,
            "exec 3</cluster/proc/cluster/events && echo ready && exec cat <&3",
        )
    });
    for reader in &readers {
        wait_until("a reader of events", DEADLINE, || {
            reader.stdout().contains("ready")
        });
    }
    let pid = moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, 'python3', '/cluster/counter.py', '/cluster/counted')
job.pid = job.ask('first')[0]
glups = ['glups', '-p', job.pid, '-o', 'nmigs,took,pause,sent']
shown = lambda: subprocess.run(glups, stdout=subprocess.PIPE, text=True).stdout.split()[4:]
assert shown() == ['0', '-', '-', '-'], shown()
for node in (2, 3, 1):
    job.go(node)
moves, took, pause, sent = map(int, shown())
assert moves == 3 and took >= pause > 0 and sent > 0
assert job.refuses(9) == 'ENXIO'
assert job.end() == 42
print(job.pid)
"#,
    );
    let pid = pid.trim();
    for reader in &readers {
        let moved = || {
            let said = reader.stdout();
            let lines = said
                .lines()
                .filter_map(|line| Some(line.split_once(' ')?.1.to_owned()));
            lines
                .filter(|line| line.contains(" moved "))
                .collect::<Vec<_>>()
        };
        wait_until("three moves to be told", DEADLINE, || moved().len() >= 3);
        let mut expected = ["1 2", "2 3", "3 1"]
            .map(|way| format!("process {pid} moved {way} asked "))
            .into_iter();
        for line in moved() {
            let begin = expected.next().expect("three moves");
            let cost: Vec<_> = line
                .strip_prefix(&begin)
                .unwrap_or_default()
                .split(' ')
                .collect();
            let [took, "ms", "pause", pause, "ms", bytes, "bytes", "whole"] = cost[..] else {
                unreachable!("{line} is not {begin}... ms pause ... ms ... bytes whole");
            };
            let number = |text: &str| text.parse::<u64>().expect("a number");
            assert!(
                number(pause) <= number(took) && number(bytes) > 4096,
                "{line}"
            );
        }
    }
}
