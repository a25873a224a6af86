//! Jobs that run on another node before their memory is there.

use std::fs;
use std::time::Duration;
use tests::{DEADLINE, moves, wait_until};

/// What a script may take.
const LONG: Duration = Duration::from_secs(240);

/// A program whose memory is checked whole after each line, by itself and by a child that it has made since.
const MEMORY: &str = r#"
import hashlib, os, sys, threading
pages = {n: hashlib.sha256(b'%d' % n).digest() * 128 for n in range(int(sys.argv[1]) * 256)}
def is_right(page):
    return pages[page] == hashlib.sha256(b'%d' % page).digest() * 128
def all_are():
    return all(map(is_right, reversed(range(len(pages)))))
print(os.getpid(), flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(0 if all_are() else 1)
    found = []
    thread = threading.Thread(target=lambda: found.append(all_are()))
    thread.start()
    pages[7] = hashlib.sha256(b'7').digest() * 128
    here = all_are()
    thread.join()
    print(os.getpid(), here, found[0], os.waitpid(child, 0)[1], flush=True)
"#;

#[test]
fn memory_follows() {
    let cluster = moves::cluster_that_moves(3);
    fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    let said = moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, 'python3', '/cluster/memory.py', '48')
job.pid = job.owner.stdout.readline().strip()
for node in (2, 3, 1, 2):
    job.go(node, ' post-copy')
    assert job.file('where') == [str(node)], job.file('where')
    said = job.ask('check')
    assert said == [job.pid, 'True', 'True', '0'], said
    moved = job.file('moved')
    print(moved)
    assert moved[1] == str(node) and moved[5] == 'post-copy' and int(moved[4]) > 48 << 20, moved
# And by the other way, with what came in parts.
job.go(3)
assert job.file('moved')[5] == 'pre-copy', job.file('moved')
assert job.ask('check') == [job.pid, 'True', 'True', '0']
assert job.end() == 0

job = Job(1, 'sh', '-c', 'n=0; while read x; do n=$((n+1)); echo $$ $n $x; done; exit 3')
job.pid, *_ = job.ask('first')
for n, node in enumerate((2, 3, 1)):
    job.go(node, ' post-copy')
    assert job.ask('a') == [job.pid, str(n + 2), 'a']
assert job.end() == 3
"#,
    );
    println!("{said}");
}

/// A process has all of its pages before another, and goes on to fork while those come.
#[test]
fn who_has_all_pages_forks() {
    let cluster = moves::cluster_that_moves(2);
    fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    moves::drive(
        &cluster,
        LONG,
        r#"
import threading
job = Job(1, 'python3', '/cluster/memory.py', '32')
job.pid = job.owner.stdout.readline().strip()
for node in (2, 1, 2, 1, 2, 1):
    told = []
    going = threading.Thread(target=lambda: told.append(job.refuses(node, ' post-copy')))
    going.start()
    while going.is_alive():
        assert job.ask('check') == [job.pid, 'True', 'True', '0']
    assert told == [None], told
    assert job.file('moved')[5] == 'post-copy', job.file('moved')
assert job.end() == 0
"#,
    );
}

/// Connections that are in use all the time, and System V IPC.
#[test]
fn what_a_job_has_to_itself_is_there_before_its_memory() {
    let cluster = moves::cluster_that_moves(3);
    fs::write(cluster.path(1).join("to_itself.py"), moves::TO_ITSELF).expect("written");
    let said = moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, '--private', 'net,ipc', 'python3', '/cluster/to_itself.py', '32')
job.pid = job.owner.stdout.readline().strip()
for node in (2, 3, 1, 3, 1, 2):
    job.go(node, ' post-copy')
    assert job.file('where') == [str(node)], job.file('where')
    moved = job.file('moved')
    print(moved)
    assert moved[1] == str(node) and moved[5] == 'post-copy' and int(moved[4]) > 32 << 20, moved
    said = job.ask('check')
    assert said == [job.pid, 'True', 'True', 'True', 'True'], said
assert job.end() == 0
"#,
    );
    println!("{said}");
}

/// Has a job on node 2 move back to node 1, and stops there what gets its pages while some are missing.
const HALF_WAY: &str = r#"
import signal, threading
def pids_of(what):
    return subprocess.run(['pgrep', '-f', what], text=True, stdout=subprocess.PIPE).stdout.split()
def is_here(job):
    try:
        return job.file('where') == ['1']
    except (ProcessLookupError, FileNotFoundError):
        # On its way home it has no place there.
        return False
def half_way(job):
    # What is missed is tried again.
    for _ in range(20):
        job.go(2)
        told = []
        def go():
            told.append(job.refuses(1, ' post-copy'))
        going = threading.Thread(target=go)
        going.start()
        while not told:
            # While the copy is made pages are needed, and CRIU does not take it well to be stopped.
            if is_here(job) and not pids_of('criu restore') and (found := pids_of('criu lazy-pages')):
                for pid in found:
                    try:
                        os.kill(int(pid), signal.SIGSTOP)
                    except ProcessLookupError:
                        pass
                time.sleep(.05)
                if not told and is_here(job):
                    return [int(pid) for pid in found], going, told
            time.sleep(.002)
        assert told == [None], told
        going.join()
    assert False, 'its pages were always there'
job = Job(1, 'python3', '/cluster/memory.py', '160')
job.pid = job.owner.stdout.readline().strip()
fetching, going, told = half_way(job)
"#;

#[test]
fn nothing_else_is_done_before_all_pages_are_there() {
    let cluster = moves::cluster_that_moves(3);
    fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    let script = r#"
assert job.refuses(3) == 'EBUSY'
assert job.refuses(3, ' post-copy') == 'EBUSY'
try:
    os.write(os.open(f'/cluster/proc/{job.pid}/checkpoint', os.O_WRONLY), b'1')
    assert False, 'there is a checkpoint'
except OSError as error:
    assert error.errno == errno.EBUSY, error
assert not told
for pid in fetching:
    os.kill(pid, signal.SIGCONT)
going.join()
assert told == [None], (told, job.owner.stdout.read())
assert job.ask('check') == [job.pid, 'True', 'True', '0']
job.go(3)
assert job.ask('check') == [job.pid, 'True', 'True', '0']
assert job.end() == 0
"#;
    moves::drive(&cluster, LONG, &format!("{HALF_WAY}{script}"));
}

#[test]
fn a_copy_ends_with_who_gets_its_pages() {
    let cluster = moves::cluster_that_moves(2);
    fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    let script = r#"
job.owner.stdin.write('check\n')
job.owner.stdin.flush()
for pid in fetching:
    os.kill(pid, signal.SIGKILL)
said = job.owner.stdout.read()
assert job.owner.wait() == 125, said
going.join()
assert told == ['ESRCH'], told
assert 'False' not in said and 'pages of its memory were lost' in said, said
assert not pids_of('^python3 /cluster/memory.py')
"#;
    moves::drive(&cluster, LONG, &format!("{HALF_WAY}{script}"));
    let left = "cd /; pgrep -f '^python3 /cluster/memory.py'; true";
    wait_until("the end of the old copy", DEADLINE, || {
        cluster.node(2).sh(left).ok().is_empty()
    });
}
