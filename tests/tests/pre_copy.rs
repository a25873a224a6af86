//! Jobs whose memory goes ahead of them, while they run and write it (MV11).

use std::fs;
use std::time::Duration;
use tests::moves;

/// What a script may take.
const LONG: Duration = Duration::from_secs(240);

/// Threads that write pages all the time, each with what only the newest of its writes leaves behind; a child, its memory shared
/// with its parent until one of them writes; mappings that come and go.
const WRITER: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, PAGE = 4096, WORDS = PAGE / 8 };
static uint64_t *memory, *newest[THREADS];
static size_t pages;
static pthread_mutex_t locks[THREADS];

static uint64_t mixed(uint64_t seed) {
    seed += 0x9e3779b97f4a7c15;
    seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9;
    return (seed ^ (seed >> 27)) * 0x94d049bb133111eb;
}

static void fill(size_t page, uint64_t count) {
    for (size_t word = 0; word < WORDS; word++)
        memory[page * WORDS + word] = count ? mixed(count * 1000003 + page) + word : 0;
}

static int is_right(size_t page, uint64_t count) {
    for (size_t word = 0; word < WORDS; word++)
        if (memory[page * WORDS + word] != (count ? mixed(count * 1000003 + page) + word : 0))
            return 0;
    return 1;
}

static void *writes(void *number) {
    size_t own = (size_t)number;
    for (uint64_t n = 1;; n++) {
        size_t page = mixed(n * THREADS + own) % (pages / THREADS) * THREADS + own;
        pthread_mutex_lock(&locks[own]);
        uint64_t count = mixed(n) % 5 ? n : 0;
        fill(page, count);
        newest[own][page / THREADS] = count;
        pthread_mutex_unlock(&locks[own]);
        void *passing = mmap(0, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (passing != MAP_FAILED) {
            memset(passing, (int)n, 64 * PAGE);
            munmap(passing, 64 * PAGE);
        }
        usleep(200);
    }
}

/* Returns how many pages are not what was written last. */
static size_t wrong(void) {
    size_t found = 0;
    for (size_t own = 0; own < THREADS; own++) {
        pthread_mutex_lock(&locks[own]);
        for (size_t page = own; page < pages; page += THREADS)
            found += !is_right(page, newest[own][page / THREADS]);
        pthread_mutex_unlock(&locks[own]);
    }
    return found;
}

int main(int argc, char **argv) {
    pages = (size_t)atol(argv[1]) * 256 / THREADS * THREADS;
    memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    for (size_t own = 0; own < THREADS; own++) {
        pthread_t thread;
        newest[own] = calloc(pages / THREADS, sizeof(uint64_t));
        pthread_mutex_init(&locks[own], 0);
        for (size_t page = own; page < pages; page += THREADS)
            fill(page, newest[own][page / THREADS] = page + 1);
        if (own > 0)
            pthread_create(&thread, 0, writes, (void *)own);
    }
    printf("%d\n", getpid());
    fflush(stdout);
    /* A child that has what its parent had, for as long as the parent lives. */
    int ask[2], answer[2];
    if (pipe(ask) || pipe(answer))
        return 1;
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ask[1]);
        while (read(ask[0], &byte, 1) == 1) {
            size_t found = 0;
            for (size_t page = 0; page < pages; page += THREADS)
                found += !is_right(page, newest[0][page / THREADS]);
            write(answer[1], &found, sizeof(found));
        }
        _exit(0);
    }
    char line[256];
    while (fgets(line, sizeof(line), stdin)) {
        size_t of_child = 1;
        write(ask[1], line, 1);
        read(answer[0], &of_child, sizeof(of_child));
        printf("%d %zu %zu\n", getpid(), wrong(), of_child);
        fflush(stdout);
    }
    close(ask[1]);
    waitpid(child, 0, 0);
    return 7;
}
"#;

#[test]
fn memory_goes_ahead_while_it_is_written() {
    let cluster = moves::cluster_that_moves(3);
    fs::write(cluster.path(1).join("writer.c"), WRITER).expect("written");
    let compile = "cc -O1 -o /cluster/writer /cluster/writer.c -lpthread";
    cluster.sh(1, compile).ok();
    let said = moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, '/cluster/writer', '48')
job.pid = job.owner.stdout.readline().strip()
for node in (2, 3, 1, 3, 2, 1, 2):
    job.go(node)
    assert job.file('where') == [str(node)], job.file('where')
    said = job.ask('check')
    assert said == [job.pid, '0', '0'], said
    moved = job.file('moved')
    print(moved)
    assert moved[1] == str(node) and moved[5] == 'pre-copy' and int(moved[4]) > 48 << 20, moved
# One after the other.
for node in (3, 1, 2):
    job.go(node)
assert job.ask('check') == [job.pid, '0', '0']
# By the other way, and back to this one.
job.go(3, ' post-copy')
assert job.file('moved')[5] == 'post-copy', job.file('moved')
job.go(1)
assert job.ask('check') == [job.pid, '0', '0']
assert job.end() == 7
"#,
    );
    println!("{said}");
}

/// Connections that are in use all the time, and System V IPC.
#[test]
fn what_a_job_has_to_itself_goes_with_what_went_ahead() {
    let cluster = moves::cluster_that_moves(3);
    fs::write(cluster.path(1).join("to_itself.py"), moves::TO_ITSELF).expect("written");
    let said = moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, '--private', 'net,ipc', 'python3', '/cluster/to_itself.py', '32')
job.pid = job.owner.stdout.readline().strip()
for node in (2, 3, 1, 3, 1):
    job.go(node)
    assert job.file('where') == [str(node)], job.file('where')
    moved = job.file('moved')
    print(moved)
    assert moved[1] == str(node) and moved[5] == 'pre-copy', moved
    said = job.ask('check')
    assert said == [job.pid, 'True', 'True', 'True', 'True'], said
# By the other way, and back to this one.
for node, how, went in ((2, ' post-copy', 'post-copy'), (3, '', 'pre-copy')):
    job.go(node, how)
    assert job.file('moved')[5] == went, job.file('moved')
    assert job.ask('check') == [job.pid, 'True', 'True', 'True', 'True']
assert job.end() == 0
"#,
    );
    println!("{said}");
}

/// Its host cannot make the copy, of which it has some already: a file is on the first node only.
#[test]
fn a_move_that_fails_leaves_a_job_what_it_has_to_itself() {
    let cluster = moves::cluster_that_moves(2);
    fs::write(cluster.path(1).join("to_itself.py"), moves::TO_ITSELF).expect("written");
    moves::drive(
        &cluster,
        LONG,
        r#"
subprocess.run('mount -t tmpfs none /mnt && touch /mnt/here', shell=True, check=True)
job = Job(1, '--private', 'net,ipc', 'python3', '/cluster/to_itself.py', '32', '/mnt/here')
job.pid = job.owner.stdout.readline().strip()
for how in ('', ' post-copy', '', ' post-copy'):
    assert job.refuses(2, how) == 'EAGAIN'
    assert job.file('where') == ['1']
    said = job.ask('check')
    assert said == [job.pid, 'True', 'True', 'True', 'True'], said
assert job.end() == 0
"#,
    );
}

#[test]
fn checkpoints_of_what_moves_so() {
    let cluster = moves::cluster_that_moves(2);
    moves::drive(
        &cluster,
        LONG,
        r#"
import threading
job = Job(1, 'python3', '/cluster/counter.py', '/cluster/counted', '96')
job.pid, *_ = job.ask('1')
def keep():
    try:
        # Unbuffered: a file object would write what was refused once more when it is closed.
        with open(f'/cluster/proc/{job.pid}/checkpoint', 'wb', buffering=0) as checkpoint:
            checkpoint.write(b'1')
    except OSError as error:
        return errno.errorcode[error.errno]
for count, node in enumerate((2, 1, 2)):
    job.go(node)
    assert job.file('moved')[5] == 'pre-copy', job.file('moved')
    assert keep() is None
    assert job.ask('x') == [job.pid, str(count + 2), 'x']
# One thing at a time: whatever comes first is done, and the other one refused.
told, kept = [], []
while told[-1:] != [None] or 'EBUSY' not in kept:
    kept = []
    node = 1 if job.file('where') == ['2'] else 2
    going = threading.Thread(target=lambda: told.append(job.refuses(node)))
    going.start()
    while going.is_alive():
        kept.append(keep())
    going.join()
    # On its way home it has no place there.
    kept = set(kept)
    assert told[-1] in (None, 'EBUSY') and kept <= {None, 'EBUSY', 'ENOENT', 'ESRCH'}, (told, kept)
assert job.ask('y') == [job.pid, '5', 'y']
assert job.end() == 42
"#,
    );
}

#[test]
fn a_small_job_goes_whole() {
    let cluster = moves::cluster_that_moves(2);
    moves::drive(
        &cluster,
        LONG,
        r#"
job = Job(1, 'sh', '-c', 'while read x; do echo $$ $x; done; exit 3')
job.pid, *_ = job.ask('first')
for node in (2, 1):
    job.go(node)
    assert job.file('moved')[5] == 'whole', job.file('moved')
    assert job.ask('x') == [job.pid, 'x']
assert job.end() == 3
"#,
    );
}
