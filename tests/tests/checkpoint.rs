//! Checkpoints of jobs, and jobs that go on from them when the node that runs them is lost.
//!
//! Needs root, /dev/fuse and CRIU.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tests::{Cluster, Running, moves, wait_until};

/// A lost node is waited for before its job is started again.
const LONG: Duration = Duration::from_secs(120);

/// Jobs that are kept safe, and marks by which a script and its test wait for each other.
const DRIVER: &str = r#"
class Kept(Job):
    def __init__(self, *words, user=()):
        self.notes = open(f'DIR/notes-{len(os.listdir("DIR"))}', 'w+')
        self.owner = subprocess.Popen([*user, 'glurun', *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=self.notes, cwd='/', text=True)

    def note(self):
        self.notes.seek(0)
        return self.notes.read()

    def wait_for(self, name, condition):
        deadline = time.monotonic() + 60
        while not condition(self.file(name)):
            assert time.monotonic() < deadline, (name, self.file(name), self.note())
            time.sleep(.05)

    def checkpoint(self, user=()):
        ran = subprocess.run([*user, 'glu', 'checkpoint', self.pid], capture_output=True, text=True)
        return ran.stderr.strip() if ran.returncode else ''

def images(node):
    try:
        return sorted(os.listdir(f'/cluster/.glu/checkpoints/node{node}'))
    except FileNotFoundError:
        return []

def until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(.05)

def mark(name, text=''):
    with open(f'DIR/{name}.new', 'w') as file:
        file.write(text)
    os.rename(file.name, f'DIR/{name}')

def marked(name):
    until(lambda: os.path.exists(f'DIR/{name}'), name)

def failed(*of):
    sys.__excepthook__(*of)
    mark('failed')
sys.excepthook = failed

counter = ('python3', '/cluster/counter.py')
"#;

struct Script {
    dir: PathBuf,
    running: Running,
}

impl Script {
    fn start(cluster: &Cluster, name: &str, script: &str) -> Self {
        let dir = cluster.state().join(name);
        fs::create_dir(&dir).expect("made");
        let text = format!("{DRIVER}\n{script}").replace("DIR", &dir.display().to_string());
        let run = moves::driver(cluster, &text);
        let running = cluster.spawn(1, &run);
        Self { dir, running }
    }

    /// Waits for a word of the script.
    #[track_caller]
    fn said(&self, name: &str) -> String {
        let (path, failed) = (self.dir.join(name), self.dir.join("failed"));
        wait_until(name, LONG, || path.exists() || failed.exists());
        // What has failed shows at its end.
        fs::read_to_string(path).unwrap_or_default()
    }

    fn say(&self, name: &str) {
        fs::write(self.dir.join(name), "").expect("written");
    }

    #[track_caller]
    fn end(self) {
        self.running.wait(LONG).ok();
    }
}

/// Returns on how many nodes that are up a program runs.
fn copies(cluster: &Cluster, program: &str) -> usize {
    let nodes = cluster.status().nodes.into_iter();
    let up = nodes.filter_map(|node| node.pid.map(|_| node.number));
    let count = format!("cd /; pgrep -fc '^python3 {program}'; true");
    let found = up.map(|node| cluster.sh(node, &count).ok());
    found.map(|count| count.trim().parse().unwrap_or(0)).sum()
}

#[test]
fn a_job_goes_on_from_its_checkpoint_when_its_node_is_lost() {
    let cluster = moves::cluster_that_moves(3);
    let script = Script::start(
        &cluster,
        "lost",
        r#"
job = Kept('-w', '2,3', '--restart', *counter, '/cluster/counted')
job.pid, *_ = job.ask('1')
# It begins on the node of its owner, which is its home.
job.wait_for('where', lambda where: where != ['1'])
assert job.ask('2') == [job.pid, '2', '2']
assert (why := job.checkpoint()) == '', why
assert job.file('checkpoints')[0::3] == ['1', '0'], job.file('checkpoints')
assert images(1) == [f'{job.pid}.1'], images(1)
for n in '34':
    assert job.ask(n) == [job.pid, n, n]
before, = job.file('where')
mark('ready', before)
marked('dead')
# What has been told since is told again: what it read since it reads again.
for n in '34':
    assert job.owner.stdout.readline().split() == [job.pid, n, n], (n, job.note())
assert job.ask('5') == [job.pid, '5', '5']
after, = job.file('where')
assert after not in ('1', before), (before, after)
assert job.file('checkpoints')[0::3] == ['1', '1']
assert f'the job goes on on node {after}' in job.note(), job.note()
mark('again')
marked('checked')
# The same once more, from a checkpoint of the new copy.
assert job.checkpoint() == '' and images(1) == [f'{job.pid}.2']
assert job.ask('6') == [job.pid, '6', '6']
os.kill(job.owner.pid, 0)
assert job.end() == 42
until(lambda: images(1) == [], 'images that go')
counted = open('/cluster/counted').read().split()
# What was not durable went with the node.
assert counted in [list('1234')[:n] + list('3456') for n in (2, 3, 4)], counted
"#,
    );
    let node = script.said("ready");
    let Ok(number) = node.parse() else {
        return script.end();
    };
    cluster.kill(number);
    script.say("dead");
    script.said("again");
    assert_eq!(copies(&cluster, "/cluster/counter.py"), 1);
    cluster.start(number);
    assert_eq!(copies(&cluster, "/cluster/counter.py"), 1, "CK1");
    script.say("checked");
    script.end();
}

#[test]
fn checkpoints_harm_no_job_and_are_nobody_elses() {
    let cluster = moves::cluster_that_moves(2);
    let script = Script::start(
        &cluster,
        "harmless",
        r#"
def strangers():
    def user(number):
        return ('setpriv', '--reuid', str(number), '--regid', str(number), '--clear-groups')
    # In a container root may lack the right to make images of others' jobs; their owner has the right to ask for them.
    theirs = Kept('-w', '2', *counter, '/dev/null', user=user(4321))
    theirs.pid, *_ = theirs.ask('1')
    assert (why := theirs.checkpoint(user(4321))) == '' or 'could be made now' in why, why
    assert 'ermitted' in (why := theirs.checkpoint(user(1234))), why
    assert theirs.ask('2') == [theirs.pid, '2', '2']
    assert theirs.end() == 42
    job = Kept('-w', '2', *counter, '/dev/null')
    job.pid, *_ = job.ask('1')
    assert 'ermitted' in (why := job.checkpoint(user(1234))), why
    assert (why := job.checkpoint()) == '', why
    for number in (4321, 1234):
        for command in (['ls', '/cluster/.glu/checkpoints'],
                        ['cat', f'/cluster/.glu/checkpoints/node2/{job.pid}.1']):
            ran = subprocess.run([*user(number), *command], capture_output=True, text=True)
            assert ran.returncode and 'Permission denied' in ran.stderr, ran
    assert (why := job.checkpoint()) == '', why
    assert images(2) == [f'{job.pid}.2'], images(2)
    assert job.ask('2') == [job.pid, '2', '2']
    assert job.end() == 42
    until(lambda: images(2) == [], 'images that go')

def full():
    job = Kept('-w', '2', *counter, '/cluster/full')
    job.pid, *_ = job.ask('1')
    assert (why := job.checkpoint()) == '', why
    kept = job.file('checkpoints')
    os.setxattr('/cluster/.glu/checkpoints', 'user.glu.quota.bytes', b'100000')
    assert 'quota' in job.checkpoint().lower(), job.checkpoint()
    assert job.ask('2') == [job.pid, '2', '2']
    assert images(2) == [f'{job.pid}.1'] and job.file('checkpoints') == kept
    os.removexattr('/cluster/.glu/checkpoints', 'user.glu.quota.bytes')
    assert job.checkpoint() == '' and job.ask('3') == [job.pid, '3', '3']
    assert len(images(2)) == 1 and images(2) != [f'{job.pid}.1']
    job.owner.send_signal(9)
    until(lambda: images(2) == [], 'images that go with a job that is killed')

def tied():
    job = Kept('-w', '2', 'python3', '-u', '-c', """
import os, socket, sys
listener = socket.create_server(('127.0.0.1', 0))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
for _ in sys.stdin:
    print(os.getpid())
""")
    job.pid, = job.ask('first')
    assert 'it has a connection' in job.checkpoint(), job.checkpoint()
    assert job.ask('again') == [job.pid]
    assert images(2) == []
    job.end()
    shell = Kept.__new__(Kept)
    shell.pid = str(os.getpid())
    assert 'not the program of a glurun job' in shell.checkpoint()

def periodic():
    job = Kept('-w', '2', '--checkpoint', '10s', *counter, '/cluster/periodic')
    job.pid, *_ = job.ask('1')
    job.wait_for('checkpoints', lambda of: of[0] >= '2')
    assert len(images(2)) == 1, images(2)
    assert job.ask('2') == [job.pid, '2', '2']
    os.setxattr('/cluster/.glu/checkpoints', 'user.glu.quota.bytes', b'1')
    until(lambda: 'quota' in job.note().lower(), 'a note')
    time.sleep(11)
    assert job.note().count('\n') == 1, job.note()
    os.removexattr('/cluster/.glu/checkpoints', 'user.glu.quota.bytes')
    assert job.ask('3') == [job.pid, '3', '3']
    assert job.end() == 42
    until(lambda: images(2) == [], 'images that go')

def by_hand():
    def restart(*words):
        ran = subprocess.run(['glu', 'restart', *words], capture_output=True, text=True)
        return ran.stderr.strip() if ran.returncode else ''
    job = Kept('-w', '2', *counter, '/cluster/by-hand')
    job.pid, *_ = job.ask('1')
    assert 'no checkpoint' in (why := restart(job.pid, '1')), why
    assert (why := job.checkpoint()) == '', why
    # What it has read since at its home went by nobody.
    assert 'goes on as it was' in (why := restart(job.pid, '1')), why
    assert job.ask('2') == [job.pid, '2', '2'] and job.file('checkpoints')[0] == '1'
    job.go(1)
    assert job.file('checkpoints')[0] == '0'
    assert (why := job.checkpoint()) == '', why
    for n in '34':
        assert job.ask(n) == [job.pid, n, n]
    assert 'it runs there' in (why := restart(job.pid, '1')), why
    ran = subprocess.run(['setpriv', '--reuid', '1234', 'glu', 'restart', job.pid], capture_output=True, text=True)
    assert ran.returncode == 1 and 'ermitted' in ran.stderr, ran
    # Home takes it, whose process holds its pid till then.
    for node in '21':
        assert (why := restart(job.pid)) == '', why
        assert job.file('where') == [node]
        for n in '34':
            assert job.owner.stdout.readline().split() == [job.pid, n, n]
    assert job.ask('5') == [job.pid, '5', '5']
    job.go(2)
    assert job.ask('6') == [job.pid, '6', '6']
    assert job.end() == 42
    counted = open('/cluster/by-hand').read().split()
    assert counted == list('1234343456'), counted
    until(lambda: images(2) == [], 'images that go')

def private():
    job = Kept('-w', '2', '--private', 'net,ipc', 'python3', '-u', '-c', """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
sems = libc.semget(0x676c75, 1, 0o1600)
listener = socket.create_server(('127.0.0.1', 80))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
for line in sys.stdin:
    # What is sent by one line is received by the next.
    one.sendall(line.encode()); libc.semctl(sems, 0, 16, libc.semctl(sems, 0, 12) + 1)
    print(os.getpid(), libc.semctl(libc.semget(0x676c75, 1, 0), 0, 12), other.recv(2).decode().strip() if line[0] > '1' else '-')
""")
    job.pid, *_ = job.ask('1')
    job.go(1)
    assert job.ask('2') == [job.pid, '2', '1']
    assert (why := job.checkpoint()) == '', why
    # Its connection goes on, also where it was taken back from.
    for n in '34':
        assert job.ask(n) == [job.pid, n, str(int(n) - 1)]
    for node in '21':
        ran = subprocess.run(['glu', 'restart', job.pid], capture_output=True, text=True)
        assert ran.returncode == 0 and job.file('where') == [node], ran
        for n in '34':
            assert job.owner.stdout.readline().split() == [job.pid, n, str(int(n) - 1)]
    assert job.end() == 0
    until(lambda: images(2) == [], 'images that go')

def limited():
    job = Kept('-w', '2', '--mem', '64', '--checkpoint', '1h', 'python3', '-u', '-c', """
import os, sys
count = 0
def too_much():
    child = os.fork()
    if child == 0:
        open('/proc/self/oom_score_adj', 'w').write('1000')
        bytearray(b'x' * (100 << 20))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for line in sys.stdin:
    count += 1
    print(os.getpid(), count, too_much())
""")
    job.pid, *_ = job.ask('1')
    job.go(1)
    assert (why := job.checkpoint()) == '', why
    ran = subprocess.run(['glu', 'restart', job.pid], capture_output=True, text=True)
    assert ran.returncode == 0 and job.file('where') != ['1'], ran
    assert job.ask('2') == [job.pid, '2', '-9']
    assert job.end() == 0
    assert '2 processes of the job ended' in job.note(), job.note()

def input_file():
    # It reads again from where the checkpoint was, and its owner's file is read as far as it has read in the end.
    open('/cluster/input', 'wb').write(bytes(range(100)))
    own = os.open('/cluster/input', os.O_RDONLY)
    job = Kept.__new__(Kept)
    words = ['glurun', '-w', '2', 'python3', '-u', '-c', """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    print(os.getpid(), *(read := os.read(0, 2)))
    if read[0] == 6: break
    signal.sigwait([signal.SIGUSR1])
"""]
    job.owner = subprocess.Popen(words, stdin=own, stdout=subprocess.PIPE, cwd='/', text=True)
    def said():
        return job.owner.stdout.readline().split()
    def go_on():
        open(f'/cluster/proc/{job.pid}/note', 'w').write('USR1')
    job.pid, *read = said()
    assert read == ['0', '1']
    assert (why := job.checkpoint()) == '', why
    go_on()
    assert said() == [job.pid, '2', '3']
    for node in '12':
        ran = subprocess.run(['glu', 'restart', job.pid, node], capture_output=True, text=True)
        assert ran.returncode == 0 and job.file('where') == [node], ran
        go_on()
        assert said() == [job.pid, '2', '3'], node
    for read in (['4', '5'], ['6', '7']):
        go_on()
        assert said() == [job.pid, *read]
    assert job.owner.wait() == 0
    assert os.lseek(own, 0, os.SEEK_CUR) == 8

def usage():
    for words in (['--checkpoint', '9s'], ['--checkpoint', 'x'], ['--restart', '--gang'],
                  ['--restart', '-n', '2'], ['--checkpoint', '1m', '--gang'],
                  ['--private', 'pid'], ['--private', '']):
        ran = subprocess.run(['glurun', *words, 'true'], capture_output=True, text=True)
        assert ran.returncode == 2, (words, ran)

for row in (strangers, full, tied, private, limited, input_file, by_hand, periodic, usage):
    try:
        row()
    except Exception:
        print(row.__name__, file=sys.stderr)
        raise
"#,
    );
    script.end();
}

/// The daemon of the node that runs a job dies while that is frozen for a checkpoint: the one before counts.
#[test]
fn a_checkpoint_that_does_not_come_to_its_end_is_none() {
    let cluster = moves::cluster_that_moves(3);
    let script = Script::start(
        &cluster,
        "half",
        r#"
job = Kept('-w', '2,3', '--restart', *counter, '/cluster/half')
job.pid, *_ = job.ask('1')
job.wait_for('where', lambda where: where != ['1'])
assert (why := job.checkpoint()) == '', why
assert job.ask('2') == [job.pid, '2', '2']
mark('ready', *job.file('where'))
marked('armed')
assert 'No such process' in (why := job.checkpoint()), why
assert job.owner.stdout.readline().split() == [job.pid, '2', '2'], job.note()
assert job.ask('3') == [job.pid, '3', '3']
assert job.file('checkpoints')[0::3] == ['1', '1'] and images(1) == [f'{job.pid}.1']
assert (why := job.checkpoint()) == '', why
assert job.file('checkpoints')[0::3] == ['2', '1'] and images(1) == [f'{job.pid}.2']
assert job.end() == 42
"#,
    );
    let node = script.said("ready");
    let Ok(number) = node.parse::<u32>() else {
        return script.end();
    };
    let nodes = cluster.status().nodes.into_iter();
    let mut pids = nodes.filter_map(|node| (node.number == number).then_some(node.pid?));
    let pid = pids.next().expect("it runs");
    let word = format!("/proc/{pid}/root/dev/shm/glu-fail-at");
    fs::write(word, "source: in the checkpoint").expect("written");
    script.say("armed");
    script.end();
}

/// A node that is only cut off ends its copy by itself, before another one is started.
#[test]
fn one_copy_runs_when_a_node_is_cut_off() {
    let cluster = moves::cluster_that_moves(3);
    let script = Script::start(
        &cluster,
        "cut",
        r#"
job = Kept('-w', '2,3', '--restart', *counter, '/cluster/cut')
job.pid, *_ = job.ask('1')
job.wait_for('where', lambda where: where != ['1'])
assert (why := job.checkpoint()) == '', why
before, = job.file('where')
mark('ready', before)
marked('cut')
# A signal waits for it, as does what it is asked.
job.owner.send_signal(18)
assert job.ask('2') == [job.pid, '2', '2'], job.note()
assert job.file('where') not in (['1'], [before])
mark('again')
marked('healed')
assert job.ask('3') == [job.pid, '3', '3']
assert job.end() == 42
"#,
    );
    let node = script.said("ready");
    let Ok(number) = node.parse() else {
        return script.end();
    };
    cluster.cut(number);
    script.say("cut");
    let again = script.dir.join("again");
    let mut most = 0;
    wait_until("the job", LONG, || {
        most = most.max(copies(&cluster, "/cluster/counter.py"));
        again.exists() || script.dir.join("failed").exists()
    });
    assert_eq!(most, 1, "CK1");
    cluster.heal(number);
    assert_eq!(copies(&cluster, "/cluster/counter.py"), 1, "CK1");
    script.say("healed");
    script.end();
}

#[test]
fn a_job_ends_with_its_home_and_its_images_go() {
    let cluster = moves::cluster_that_moves(3);
    let script = Script::start(
        &cluster,
        "home",
        r#"
job = Kept('-w', '2', '--checkpoint', '1h', *counter, '/dev/null')
job.pid, *_ = job.ask('1')
job.go(3)
assert (why := job.checkpoint()) == '', why
assert images(2) == [f'{job.pid}.1']
mark('ready')
marked('dead')
assert job.owner.wait() == 125, job.note()
mark('ended')
until(lambda: images(2) == [], 'images that go')
"#,
    );
    script.said("ready");
    cluster.kill(2);
    script.say("dead");
    script.said("ended");
    // A daemon that starts has no jobs.
    cluster.start(2);
    script.end();
}

/// Input without end, of which a job that is started again is to read each line in its order, and after its checkpoint again.
#[test]
fn input_is_read_again_from_where_the_checkpoint_was() {
    let cluster = moves::cluster_that_moves(3);
    let script = Script::start(
        &cluster,
        "input",
        r#"
job = Kept('--restart', '-w', '2,3', 'python3', '-u', '-c', """
import os, sys, time
print(os.getpid())
last = 0
for line in sys.stdin:
    assert int(line) == last + 1, (line, last)
    last += 1
    if last % 1000 == 0:
        print(last)
    # What comes meanwhile fills all there is on the way.
    while last == 100000 and not os.path.exists('/cluster/go-on'):
        time.sleep(.05)
""")
job.pid = job.owner.stdout.readline().strip()
job.wait_for('where', lambda where: where != ['1'])
import threading
def feed():
    for n in range(1, 400001):
        job.owner.stdin.write(f'{n}\n')
        if n == 200000:
            job.owner.stdin.flush()
            paused.set()
            resumed.wait()
    job.owner.stdin.close()
paused, resumed = threading.Event(), threading.Event()
threading.Thread(target=feed, daemon=True).start()
while int(job.owner.stdout.readline()) < 100000:
    pass
assert (why := job.checkpoint()) == '', why
open('/cluster/go-on', 'w').close()
last = 0
while last < 200000:
    last = int(job.owner.stdout.readline())
mark('ready', *job.file('where'))
marked('dead')
resumed.set()
again = [int(line) for line in job.owner.stdout]
assert job.owner.wait() == 0, job.note()
assert again == list(range(101000, 400001, 1000)), again
"#,
    );
    let node = script.said("ready");
    let Ok(number) = node.parse() else {
        return script.end();
    };
    cluster.kill(number);
    script.say("dead");
    script.end();
}
