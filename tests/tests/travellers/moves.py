# What moves: a function for each row of the table in docs/processes.md.
import select, sqlite3

def tour(job, nodes=(2, 3, 1)):
    for number, node in enumerate(nodes, 1):
        job.go(node)
        assert job.file('where') == [str(node)]
        assert job.file('nmigs') == [str(number)]
        yield node

def python(program):
    return Job(1, 'python3', '-u', '-c', program)

def compiled(*words):
    return Job(1, '/cluster/traveller', *words)

def answers_all_the_way(job, stay=False):
    job.pid, *first = job.ask('first')
    for node in tour(job):
        pid, *said = job.ask(f'on node {node}')
        assert pid == job.pid
        yield said
    if not stay:
        assert job.end() == 0

def shell_script():
    job = Job(1, 'sh', '-c', """
        count=0
        trap 'echo $$ bye $count' EXIT
        sleep 1000 & sleeper=$!
        while read -r line; do
            (exit 7) & wait $!
            status=$?
            count=$((count + 1))
            echo $$ $count $status $(cat <<END
$line
END
            )
        done
        kill $sleeper; wait $sleeper 2> /dev/null; test $? = 143
    """)
    said = list(answers_all_the_way(job))
    assert said == [[str(n), '7', 'on', 'node', str(node)] for n, node in ((2, 2), (3, 3), (4, 1))], said
    rest = job.owner.stdout.read()
    assert rest == f'{job.pid} bye 4\n', rest

def files_and_threads():
    job = python("""
import os, queue, sys, threading
for name in 'abcd':
    open(f'/cluster/{name}', 'w').write(name * 1000)
os.mkdir('/cluster/dir'); os.chdir('/cluster/dir')
asked, said = [queue.Queue() for _ in 'abcd'], queue.Queue()
def work(name, asked):
    here = threading.local(); here.name = name
    with open(f'/cluster/{name}') as read, open(f'/cluster/{name}-log', 'a', buffering=1) as log:
        while line := asked.get():
            log.write(line)
            said.put(here.name + str(len(read.read(100))))
for name, queue in zip('abcd', asked):
    threading.Thread(target=work, args=(name, queue)).start()
for line in sys.stdin:
    for queue in asked:
        queue.put(line)
    print(os.getpid(), os.getcwd(), *sorted(said.get() for _ in asked))
for queue in asked:
    queue.put(None)
""")
    for said in answers_all_the_way(job):
        assert said == ['/cluster/dir', 'a100', 'b100', 'c100', 'd100'], said
    lines = 'first\n' + ''.join(f'on node {node}\n' for node in (2, 3, 1))
    assert [open(f'/cluster/{name}-log').read() for name in 'abcd'] == [lines] * 4

def memory():
    said = list(answers_all_the_way(compiled('memory', os.environ['TRAVELLER_MIB'])))
    assert said == [[str(n), '0'] for n in (2, 3, 4)], said

def pipeline():
    lines = 300000
    job = Job(1, 'sh', '-c', f'echo $$; seq {lines} | tee /cluster/seen | sed "s/^/line /" | cat')
    job.pid = job.owner.stdout.readline().strip()
    for _ in tour(job):
        # More than the pipes on the way hold is still to come.
        pass
    assert job.owner.stdout.read() == ''.join(f'line {n + 1}\n' for n in range(lines))
    assert job.end() == 0
    assert open('/cluster/seen').read() == ''.join(f'{n + 1}\n' for n in range(lines))

def make():
    os.makedirs('/cluster/build/tmp')
    names = [f'part{n}' for n in range(24)]
    for name in names:
        open(f'/cluster/build/{name}.c', 'w').write(f'#include <stdio.h>\nint {name}(void) {{ return printf("{name} "); }}\n')
    declared = ' '.join(f'int {name}(void);' for name in names)
    called = ' '.join(f'{name}();' for name in names)
    open('/cluster/build/all.c', 'w').write(f'{declared}\nint main(void) {{ {called} return 0; }}\n')
    steps = [f'step{n}' for n in range(6)]
    parts = ['all.o', *(f'{name}.o' for name in names)]
    for n, step in enumerate(steps):
        parts.insert(4 * n + 2, step)
    objects = ' '.join(part for part in parts if part not in steps)
    # Steps let the other of the two go on until it has moved.
    rule = '%:\n\t@echo at $@; until test -e $@.done; do sleep .01; done'
    rules = '\n'.join(rule.replace('%', step) for step in steps)
    link = f'all: {" ".join(parts)}\n\t$(CC) -o $@ {objects}'
    open('/cluster/build/Makefile', 'w').write(f'{link}\n{rules}\n.PHONY: {" ".join(steps)}\n')
    command = 'echo $$; export TMPDIR=/cluster/build/tmp; exec make -j2 -C /cluster/build'
    job = Job(1, 'sh', '-c', command)
    job.pid = job.owner.stdout.readline().strip()
    moves = 0
    for line in job.owner.stdout:
        if line.startswith('at '):
            moves += 1
            job.go((1, 2, 3)[moves % 3])
            open(f'/cluster/build/{line.split()[1]}.done', 'w').close()
    assert moves == len(steps) and job.end() == 0
    assert subprocess.check_output('/cluster/build/all', text=True).split() == names
    assert os.listdir('/cluster/build/tmp') == []

def sqlite():
    job = python("""
import os, sqlite3, sys
base = sqlite3.connect('/cluster/lines.db', isolation_level=None)
base.execute('create table lines(number integer primary key, line text)')
for line in sys.stdin:
    base.execute('begin immediate')
    for n in range(100):
        base.execute('insert into lines(line) values(?)', (line,))
    if line.startswith('lock'):
        print(os.getpid(), 'locked')
        line = sys.stdin.readline()
    base.execute('commit')
    print(os.getpid(), *base.execute('select count(*) from lines').fetchone())
""")
    for number, said in enumerate(answers_all_the_way(job, stay=True), 2):
        assert said == [str(100 * number)], said
    # In the middle of a transaction it has locks, which do not move.
    assert job.ask('lock') == [job.pid, 'locked']
    assert job.file('cantmove') == ['file_lock'] and job.refuses(2) == 'ENOTSUP'
    assert job.ask('commit') == [job.pid, '500']
    job.go(2)
    assert job.ask('again') == [job.pid, '600'] and job.ask('lock') == [job.pid, 'locked']
    # Nor where it is away.
    assert job.file('cantmove') == ['file_lock'] and job.refuses(3) == 'ENOTSUP'
    assert job.ask('commit') == [job.pid, '700']
    job.go(3)
    assert job.end() == 0
    base = sqlite3.connect('/cluster/lines.db')
    assert base.execute('pragma integrity_check').fetchone() == ('ok',)
    assert base.execute('select count(distinct number), count(*) from lines').fetchone() == (700, 700)

def descriptors():
    os.mkdir('/cluster/watched')
    job = python("""
import ctypes, mmap, os, select, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, b'/cluster/watched', 0x100) == 1
event = libc.eventfd(3, os.O_NONBLOCK)
memory = os.memfd_create('memory'); os.write(memory, b'memory')
mapped = mmap.mmap(memory, 6)
ends = os.pipe(); os.write(ends[1], b'in the pipe')
poll = select.epoll(); poll.register(watch, select.EPOLLIN)
counted = select.epoll(); counted.register(event, select.EPOLLIN)
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick); signal.setitimer(signal.ITIMER_REAL, .01, .01)
for line in sys.stdin:
    name = ''
    while line.startswith('on') and not name.startswith(line.split()[-1]):
        # A watch is known to other nodes some time after it has been made.
        assert dict(poll.poll(20)) == {watch: select.EPOLLIN}, 'no event'
        events = os.read(watch, 4096)
        while events:
            length = struct.unpack_from('iIII', events)[3]
            name = events[16:16 + length].rstrip(b'\\0').decode()
            events = events[16 + length:]
    before = ticks
    while ticks == before:
        signal.pause()
    assert dict(counted.poll(0)) == {event: select.EPOLLIN}
    os.lseek(memory, 0, 0)
    read = os.read(ends[0], 100); os.write(ends[1], read)
    print(os.getpid(), name[:1], os.read(memory, 6).decode(), mapped[:].decode(), read.decode())
# It is not to come when nobody handles it any more.
signal.setitimer(signal.ITIMER_REAL, 0)
""")
    job.pid, *_ = job.ask('first')
    for node in tour(job):
        print(f'on {node}', file=job.owner.stdin, flush=True)
        for file in range(100):
            # Made on node 1, wherever the watcher is.
            open(f'/cluster/watched/{node}-{file}', 'w').close()
            if select.select([job.owner.stdout], [], [], .1)[0]:
                break
        said = job.owner.stdout.readline().split()
        assert said == [job.pid, str(node), 'memory', 'memory', 'in', 'the', 'pipe'], said
    assert job.end() == 0

def pending_signals():
    assert list(answers_all_the_way(compiled('signals'))) == [['well']] * 3

def unix_sockets():
    job = python("""
import os, socket, sys
here, there = socket.socketpair()
listener = socket.socket(socket.AF_UNIX); listener.bind('/cluster/socket'); listener.listen()
if os.fork() == 0:
    here.close()
    mine = socket.socket(socket.AF_UNIX)
    mine.connect('/cluster/socket')
    while line := there.recv(100):
        mine.sendall(line.upper())
    os._exit(0)
there.close()
theirs, _ = listener.accept()
for line in sys.stdin:
    here.sendall(line.encode())
    print(os.getpid(), theirs.recv(100).decode().strip())
here.close()
os.wait()
""")
    said = list(answers_all_the_way(job))
    assert said == [['ON', 'NODE', str(node)] for node in (2, 3, 1)], said

rows = (shell_script, files_and_threads, memory, pipeline, make, sqlite, descriptors, pending_signals, unix_sockets)
