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

# Ends of connections by both protocols that have sent all that fits both ways, and a program that says whether it has come.
CONNECTIONS = """
import os, socket, sys
def pair(family, address):
    listener = socket.create_server((address, 0), family=family)
    return listener, connect(listener)
def connect(listener):
    one = socket.create_connection(listener.getsockname()[:2])
    return one, listener.accept()[0]
def fill(end, byte):
    end.setblocking(False)
    sent = 0
    try:
        while True:
            sent += end.send(byte * 65536)
    except BlockingIOError:
        return sent
def drain(end, byte, sent):
    end.setblocking(True)
    while sent:
        piece = end.recv(min(sent, 1 << 20))
        assert piece and not piece.strip(byte), 'other bytes have come'
        sent -= len(piece)
pairs = [pair(socket.AF_INET, '127.0.0.1'), pair(socket.AF_INET6, '::1')]
def full():
    return [[fill(end, byte) for end, byte in zip(ends, (b'a', b'b'))] for _, ends in pairs]
def empty(sent):
    for (_, (one, other)), (to_other, to_one) in zip(pairs, sent):
        drain(other, b'a', to_other); drain(one, b'b', to_one)
"""

def private_connections():
    job = Job(1, '--private', 'net', 'python3', '-u', '-c', CONNECTIONS + """
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); datagrams.bind(('127.0.0.1', 0))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sender.connect(datagrams.getsockname())
# One half is closed, and what has come has not been read.
_, (closed, half) = pair(socket.AF_INET, '127.0.0.1')
closed.sendall(b'last words'); closed.shutdown(socket.SHUT_WR)
sent = full()
for line in sys.stdin:
    empty(sent)
    for listener, _ in pairs:
        one, other = connect(listener); one.sendall(b'new'); assert other.recv(10) == b'new'
    sender.send(b'datagram'); assert datagrams.recv(10) == b'datagram'
    assert half.recv(20, socket.MSG_PEEK) == b'last words'
    half.sendall(b'x'); assert closed.recv(1) == b'x'
    sent = full()
    print(os.getpid(), 'well', sum(map(sum, sent)) > 1 << 20)
assert half.recv(20) == b'last words' and half.recv(20) == b''
""")
    assert list(answers_all_the_way(job)) == [['well', 'True']] * 3

def private_server():
    # Two programs of a job, one of which waits in the kernel while it moves, and a name that only their network has.
    job = Job(1, '--private', 'net,ipc', 'python3', '-u', '-c', """
import os, socket, sys
listener = socket.create_server(('127.0.0.1', 80))
named = socket.socket(socket.AF_UNIX); named.bind('\\0glu'); named.listen()
if os.fork() == 0:
    one, other = socket.create_connection(('127.0.0.1', 80)), socket.socket(socket.AF_UNIX)
    other.connect('\\0glu')
    listener.close(); named.close()
    while line := one.recv(100):
        other.sendall(line.upper())
    os._exit(0)
(client, _), (upper, _) = listener.accept(), named.accept()
for line in sys.stdin:
    client.sendall(line.encode())
    print(os.getpid(), upper.recv(100).decode().strip())
client.close()
os.wait()
""")
    said = list(answers_all_the_way(job))
    assert said == [['ON', 'NODE', str(node)] for node in (2, 3, 1)], said

IPC = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
class Message(ctypes.Structure):
    _fields_ = [('kind', ctypes.c_long), ('text', ctypes.c_char * 8)]
def put(queue, text):
    assert libc.msgsnd(queue, ctypes.byref(Message(1, text)), 8, 0o4000) == 0, ctypes.get_errno()
def take(queue):
    got = Message()
    assert libc.msgrcv(queue, ctypes.byref(got), 8, 0, 0o4000) == 8, ctypes.get_errno()
    return got.text
def memory(key, gone):
    number = libc.shmget(key, 8192, 0o1600)
    at = libc.shmat(number, None, 0)
    if gone:
        libc.shmctl(number, 0, None)
    return number, at
"""

def private_ipc():
    job = Job(1, '--private', 'ipc', 'python3', '-u', '-c', IPC + """
# One that others find, one that has no name any more, and one that nobody has mapped.
named, gone, unmapped = memory(0x676c75, False), memory(0, True), memory(0x676c76, False)
ctypes.memset(unmapped[1], 9, 8192); libc.shmdt(ctypes.c_void_p(unmapped[1]))
sems, queue = libc.semget(0x676c75, 2, 0o1600), libc.msgget(0x676c75, 0o1600)
libc.semctl(sems, 1, 16, 5)
for n, line in enumerate(sys.stdin):
    if n:
        for _, at in (named, gone):
            assert ctypes.string_at(at, 8192) == bytes([n]) * 8192
        assert libc.shmget(0x676c75, 8192, 0) == named[0]
        again = libc.shmat(libc.shmget(0x676c76, 8192, 0), None, 0)
        assert ctypes.string_at(again, 8192) == bytes([9]) * 8192
        libc.shmdt(ctypes.c_void_p(again))
        assert libc.semget(0x676c75, 2, 0) == sems and libc.semctl(sems, 1, 12) == 4 + n
        assert libc.msgget(0x676c75, 0) == queue
        assert [take(queue), take(queue)] == [b'first', b'second']
    for _, at in (named, gone):
        ctypes.memset(at, n + 1, 8192)
    libc.semctl(sems, 1, 16, 5 + n)
    put(queue, b'first'); put(queue, b'second')
    print(os.getpid(), 'well')
""")
    assert list(answers_all_the_way(job)) == [['well']] * 3

def private_of_a_user():
    # Each has its own, whoever it is, and nobody sees the node's.
    program = """
import os, socket
print(os.getpid(), os.getuid(), *(name for _, name in socket.if_nameindex()), len(open('/proc/sysvipc/shm').readlines()),
      socket.create_server(('127.0.0.1', 4444)) is not None)
input()
"""
    stranger = ('setpriv', '--reuid', '4321', '--regid', '4321', '--clear-groups')
    here = subprocess.Popen(['ipcmk', '-M', '4096'], stdout=subprocess.PIPE, text=True)
    memory = here.communicate()[0].split()[-1]
    jobs = [Job(1, '--private', 'net,ipc', 'python3', '-u', '-c', program, user=stranger) for _ in range(2)]
    for job in jobs:
        _, *said = job.owner.stdout.readline().split()
        assert said[0] == '4321' and 'lo' in said and said[-2:] == ['1', 'True'], said
        print(file=job.owner.stdin, flush=True)
        assert job.end() == 0
    subprocess.run(['ipcrm', '-m', memory], check=True)

def private_busy():
    # A connection that nobody has accepted yet, and one that has been closed with something to deliver: it stays just then, and
    # its connections go on.
    job = Job(1, '--private', 'net', 'python3', '-u', '-c', CONNECTIONS + """
listener, (one, other) = pair(socket.AF_INET, '127.0.0.1')
waiting = socket.create_connection(listener.getsockname())
def check():
    one.sendall(b'x')
    print(os.getpid(), other.recv(10).decode())
sys.stdin.readline(); check()
sys.stdin.readline(); accepted = listener.accept()[0]
sent = fill(waiting, b'c'); waiting.close(); check()
sys.stdin.readline(); drain(accepted, b'c', sent); assert accepted.recv(1) == b''; check()
sys.stdin.readline(); check()
""")
    job.pid, _ = job.ask('first')
    for text in ('accept', 'drain'):
        assert job.file('cantmove') == [] and job.refuses(2) == 'EAGAIN', job.file('cantmove')
        assert job.file('where') == ['1']
        assert job.ask(text) == [job.pid, 'x']
    # Its end is acknowledged a moment after it has come.
    deadline = time.monotonic() + 60
    while job.refuses(2) == 'EAGAIN':
        assert time.monotonic() < deadline
    assert job.file('where') == ['2']
    assert job.ask('away') == [job.pid, 'x']
    assert job.end() == 0

def twice_in_vain():
    # A file is on node 1 only. What is left of copies that could not be made does not keep it away.
    subprocess.run('mount -t tmpfs none /mnt && touch /mnt/here', shell=True, check=True)
    job = Job(1, 'python3', '-u', '-c', """
import os, sys
here = open('/mnt/here')
for line in sys.stdin:
    print(os.getpid())
    if line == 'close\\n': here.close()
""")
    job.pid, = job.ask('first')
    for _ in range(3):
        assert job.refuses(2) == 'EAGAIN'
        assert job.ask('again') == [job.pid]
    assert job.ask('close') == [job.pid]
    job.ask('closed')
    job.go(2)
    assert job.ask('away') == [job.pid] and job.file('where') == ['2']
    assert job.end() == 0

def limited():
    # Who wants more is ended, wherever that is.
    job = Job(1, '--mem', '64', '--cpus', '1', 'python3', '-u', '-c', """
import os, sys
own = bytearray(48 << 20)
own[::4096] = b'o' * (48 << 8)
def kept():
    found = set()
    for line in open('/proc/self/cgroup'):
        _, names, path = line.strip().split(':', 2)
        for place in (names + path, path, 'unified' + path):
            for name in ('memory.max', 'memory.limit_in_bytes', 'cpu.max', 'cpu.cfs_quota_us'):
                try:
                    found.add(open(f'/sys/fs/cgroup/{place}/{name}').read().split()[0])
                except OSError:
                    pass
    return {str(64 << 20), '100000'} <= found
def too_much():
    child = os.fork()
    if child == 0:
        open('/proc/self/oom_score_adj', 'w').write('1000')
        bytearray(b'x' * (100 << 20))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
for line in sys.stdin:
    print(os.getpid(), kept(), too_much(), own[::4096] == b'o' * (48 << 8))
""")
    job.pid, *said = job.ask('first')
    assert said == ['True', '-9', 'True'], said
    assert job.file('cantmove') == [], job.file('cantmove')
    for node in tour(job):
        said = job.ask(f'on {node}')
        assert said == [job.pid, 'True', '-9', 'True'], (node, said)
    assert job.end() == 0
    told = job.owner.stdout.read()
    assert '4 processes of the job ended, which used more than 64 MiB (--mem)' in told, told

def limited_and_full():
    # It has almost all that it may have, so it moves only with what it is lent for that.
    job = Job(1, '--mem', '64', 'python3', '-u', '-c', """
import os, sys
def own():
    line, = [line for line in open('/proc/self/status') if line.startswith('RssAnon')]
    return int(line.split()[1]) >> 10
pieces = []
while own() < FULL:
    pieces.append(bytearray(b'o' * (1 << 18)))
whole = b'o' * (1 << 18)
for line in sys.stdin:
    print(os.getpid(), own() >= FULL, all(piece == whole for piece in pieces))
""".replace('FULL', '62'))
    for said in answers_all_the_way(job):
        assert said == ['True', 'True'], said

def forgotten_names():
    # Others change a directory so much that the kernels forget its names, also those of what is open and runs.
    os.mkdir('/cluster/busy')
    open('/cluster/busy/lines', 'w').write(''.join(f'{n}\n' for n in range(9)))
    subprocess.run(['cp', '/bin/sh', '/cluster/busy/sh'], check=True)
    job = Job(1, '/cluster/busy/sh', '-c', """
        exec 7</cluster/busy/lines 8>>/cluster/busy/log
        while read -r line; do read -r number <&7; echo $line >&8; echo $$ $number; done
    """)
    def on(node, script):
        words = ['glurun', '-w', str(node), 'sh', '-c', script]
        return subprocess.run(words, cwd='/', check=True, text=True, stdout=subprocess.PIPE).stdout.split('\n')
    job.pid, *said = job.ask('0')
    assert said == ['0']
    here, forgotten = 1, 0
    for number, node in enumerate((2, 3, 1, 2, 1), 1):
        on(here % 3 + 1, 'cd /cluster/busy && for n in $(seq 300); do : >$n; done; rm [1-9]*')
        exe, *_ = on(here, f'ls -l /cluster/busy >/dev/null; readlink /proc/{job.pid}/exe')
        forgotten += exe == '/cluster/busy/sh (deleted)'
        job.go(node)
        here = node
        exe, *_ = on(here, f'readlink /proc/{job.pid}/exe')
        assert exe == '/cluster/busy/sh', exe
        assert job.ask(str(number)) == [job.pid, str(number)]
    # Older kernels are given none to keep.
    major, minor, *_ = os.uname().release.split('.')
    assert forgotten or (int(major), int(minor)) < (6, 16), 'the kernels have forgotten no name'
    assert job.end() == 0
    assert open('/cluster/busy/log').read() == '0\n1\n2\n3\n4\n5\n'

def input_file():
    # It is opened where the job is, or is its owner's own.
    for home, other in ((2, 1), (1, 2)):
        input_file_of(home, other)

def input_file_of(home, other):
    # How far the job has read in a file is its owner's to know in the end, also what a child reads, and by another number.
    open('/cluster/input', 'wb').write(bytes(range(100)))
    own = os.open('/cluster/input', os.O_RDONLY)
    assert os.read(own, 1) == b'\0'
    words = ['glurun', '-w', str(home), 'python3', '-u', '-c', """
import os, signal, subprocess
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def step(*read):
    print(os.getpid(), *read)
    signal.sigwait([signal.SIGUSR1])
step(*os.read(0, 2))
step(*subprocess.run(['head', '-c', '3'], stdout=subprocess.PIPE).stdout)
os.dup2(0, 7); os.close(0)
step(*os.read(7, 4))
step(*os.read(7, 1))
os.read(7, 5)
"""]
    job = Job.__new__(Job)
    job.owner = subprocess.Popen(words, stdin=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd='/', text=True)
    said = job.owner.stdout.readline().split()
    job.pid = said.pop(0)
    assert said == ['1', '2'], said
    assert job.file('cantmove') == [], job.file('cantmove')
    for node, read in ((3, '3 4 5'), (other, '6 7 8 9'), (home, '10')):
        job.go(node)
        assert job.file('where') == [str(node)]
        open(f'/cluster/proc/{job.pid}/note', 'w').write('USR1')
        assert job.owner.stdout.readline().split() == [job.pid, *read.split()], node
    job.go(other)
    open(f'/cluster/proc/{job.pid}/note', 'w').write('USR1')
    assert job.owner.wait() == 0
    assert os.lseek(own, 0, os.SEEK_CUR) == 16
    # The same of one of which nobody had it open any more.
    words[-1] = words[-1].replace('os.read(7, 5)', '').replace('step(*os.read(7, 1))', 'os.close(7); step()')
    job.owner = subprocess.Popen(words, stdin=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd='/', text=True)
    job.pid = job.owner.stdout.readline().split()[0]
    for node in (None, None, 3, other):
        if node:
            job.go(node)
        open(f'/cluster/proc/{job.pid}/note', 'w').write('USR1')
        job.owner.stdout.readline()
    assert job.owner.wait() == 0
    assert os.lseek(own, 0, os.SEEK_CUR) == 25

rows = (shell_script, files_and_threads, memory, pipeline, make, sqlite, descriptors, pending_signals, unix_sockets,
        private_connections, private_server, private_ipc, private_of_a_user, private_busy,
        twice_in_vain, limited, limited_and_full, input_file, forgotten_names)
