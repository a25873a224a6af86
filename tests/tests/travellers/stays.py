# What does not move: each is told by its word before anything is done to the process, which goes on unharmed.
import socket, threading

def refused(word, program, *options, told='it cannot move: it '):
    job = Job(1, *options, 'python3', '-u', '-c', f"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
{program}
for line in sys.stdin:
    print(os.getpid(), check())
""")
    job.pid, said = job.ask('first')
    assert said == 'well', said
    assert job.file('cantmove') == [word], (word, job.file('cantmove'))
    assert job.refuses(2) == 'ENOTSUP', word
    assert job.file('where') == ['1'] and job.file('nmigs') == ['0']
    said = subprocess.run(['migrate', job.pid, '2'], stderr=subprocess.PIPE, text=True)
    assert said.returncode == 1 and told in said.stderr, said
    assert job.ask('again') == [job.pid, 'well'], word
    assert job.end() == 0, word

def connection():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        served = threading.Thread(target=lambda: echo(listener.accept()[0]))
        served.start()
        refused('tcp', f"""
other = socket.create_connection(('127.0.0.1', {listener.getsockname()[1]}))
def check():
    other.sendall(b'x')
    return 'well' if other.recv(1) == b'x' else 'broken'
""")
        served.join()

def connection_of_another_job():
    # What is said tells what to do.
    server = Job(1, 'python3', '-u', '-c', """
import os, socket
listener = socket.create_server(('127.0.0.1', 0)); print(os.getpid(), listener.getsockname()[1])
other, _ = listener.accept()
while piece := other.recv(100):
    other.sendall(piece)
""")
    server.pid, port = server.owner.stdout.readline().split()
    refused('tcp', f"""
other = socket.create_connection(('127.0.0.1', {port}))
def check():
    other.sendall(b'x')
    return 'well' if other.recv(1) == b'x' else 'broken'
""", told='glurun --private net')
    assert server.end() == 0

def private_apart():
    # What one of them has is not the other's.
    refused('tcp', """
listener = socket.create_server(('127.0.0.1', 0))
one = socket.create_connection(listener.getsockname()); other, _ = listener.accept()
def check():
    one.sendall(b'x')
    return 'well' if other.recv(1) == b'x' else 'broken'
""", '--private', 'ipc')
    shared_memory('--private', 'net')

def private_ways_out():
    # A network of its own has a way out by names of files, and an IPC of its own has what CRIU does not carry.
    unix_socket('--private', 'net,ipc')
    refused('ipc', """
queue = libc.mq_open(b'/left', os.O_CREAT | os.O_RDWR, 0o600, None)
assert queue >= 0, ctypes.get_errno()
os.close(queue)
def check():
    again = libc.mq_open(b'/left', os.O_RDWR)
    return 'well' if again >= 0 and os.close(again) is None else 'broken'
""", '--private', 'ipc')

def unix_socket(*options):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind('/tmp/glu-stays')
        listener.listen()
        served = threading.Thread(target=lambda: echo(listener.accept()[0]))
        served.start()
        refused('unix', """
other = socket.socket(socket.AF_UNIX); other.connect('/tmp/glu-stays')
def check():
    other.sendall(b'x')
    return 'well' if other.recv(1) == b'x' else 'broken'
""", *options)
        served.join()
    os.unlink('/tmp/glu-stays')

def echo(connection):
    with connection:
        while piece := connection.recv(100):
            connection.sendall(piece)

def shared_memory(*options):
    refused('ipc', """
memory = libc.shmget(0, 4096, 0o1600)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(memory, None, 0)
libc.shmctl(memory, 0, None)
def check():
    ctypes.memset(at, 7, 4096)
    return 'well' if ctypes.string_at(at, 4096) == bytes([7]) * 4096 else 'broken'
""", *options, told='glurun --private ipc')

def message_queue():
    refused('ipc', """
import atexit
queue = libc.msgget(0, 0o1600)
atexit.register(libc.msgctl, queue, 0, None)
class Message(ctypes.Structure):
    _fields_ = [('kind', ctypes.c_long), ('text', ctypes.c_char * 8)]
def check():
    libc.msgsnd(queue, ctypes.byref(Message(1, b'message')), 8, 0)
    got = Message()
    libc.msgrcv(queue, ctypes.byref(got), 8, 0, 0)
    return 'well' if got.text == b'message' else 'broken'
""")

def file_lock():
    # By flock(1), which has ended since.
    refused('file_lock', """
import subprocess
file = open('/cluster/locked', 'w'); os.set_inheritable(file.fileno(), True)
subprocess.run(['flock', str(file.fileno())], close_fds=False, check=True)
def check():
    return 'well' if subprocess.run(['flock', '-n', '/cluster/locked', 'true']).returncode == 1 else 'broken'
""")
    refused('file_lock', """
import fcntl
file = open('/cluster/locked', 'w'); fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
def check():
    return 'well'
""")

def local_file():
    refused('local_file', """
file = open('/tmp/glu-stays-file', 'w')
def check():
    return 'well' if file.write('x') else 'broken'
""")
    os.unlink('/tmp/glu-stays-file')

def device():
    refused('device', """
file = os.open('/dev/fuse', os.O_RDWR)
def check():
    return 'well' if os.fstat(file).st_rdev else 'broken'
""")

def kernel_object():
    refused('kernel_object', """
fd = libc.syscall(323, os.O_CLOEXEC | os.O_NONBLOCK | 1) if os.uname().machine == 'x86_64' else libc.syscall(282, 0o2004001)
assert fd >= 0, ctypes.get_errno()
def check():
    return 'well' if os.readlink(f'/proc/self/fd/{fd}') == 'anon_inode:[userfaultfd]' else 'broken'
""")

def traced():
    # It has a child that it traces itself; one of another's debugger is traced the same.
    refused('traced', """
child = os.fork()
if child == 0:
    libc.ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), 19)
    os._exit(0)
os.waitpid(child, 0)
def check():
    return 'well' if 'TracerPid:\\t0' not in open(f'/proc/{child}/status').read() else 'broken'
""")

rows = (connection, connection_of_another_job, private_apart, private_ways_out, unix_socket, shared_memory, message_queue,
        file_lock, local_file, device, kernel_object, traced)
