# Says for each size and kind of memory, and each sample, in microseconds: pause and whole time of a move, of one by post-copy,
# and of CRIU's dump, copy and restore.
import shutil, tempfile

CRIU = os.environ['BENCH_CRIU']
SAMPLES = 5

class Plain:
    """The same program without Glu; what it has is moved from one directory of memory to another."""
    def __init__(self, *command):
        self.dir = tempfile.mkdtemp(dir='/dev/shm')
        self.keys = f'{self.dir}/keys'
        os.mkfifo(self.keys)
        self.out = f'{self.dir}/out'
        into = os.open(self.out, os.O_WRONLY | os.O_CREAT)
        # The reading end is opened for both, so that it is there while the program is not.
        self.hold = os.open(self.keys, os.O_RDWR)
        process = subprocess.Popen(command, stdin=open(self.keys), stdout=into, stderr=subprocess.DEVNULL, cwd='/', start_new_session=True)
        self.pid, self.process, self.read = process.pid, process, 0
        os.close(into)

    def ask(self, line):
        os.write(self.hold, b'\n')
        while True:
            with open(self.out) as out:
                out.seek(self.read)
                said = out.readline()
            if said.endswith('\n'):
                self.read += len(said)
                return said.split()
            time.sleep(.001)

    def criu(self, *words):
        done = subprocess.run([CRIU, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert done.returncode == 0, (words, done.stderr)

    def go(self, *_):
        here, there = f'{self.dir}/here', f'{self.dir}/there'
        os.mkdir(here)
        self.criu('dump', '-t', str(self.pid), '-D', here, '-o', 'log')
        if self.process:
            self.process.wait()
            self.process = None
        shutil.copytree(here, there)
        self.criu('restore', '-D', there, '-o', 'log', '-d')
        shutil.rmtree(here)
        shutil.rmtree(there)

    def end(self):
        os.kill(self.pid, 9)
        if self.process:
            self.process.wait()
        os.close(self.hold)
        shutil.rmtree(self.dir)

def measure(job, node, how=''):
    job.ask('begin')
    begun = time.monotonic()
    job.go(node, how)
    whole = time.monotonic() - begun
    return int(job.ask('end')[0]), int(whole * 1e6)

for mib in (10, 256):
    for kind in ('idle', 'busy'):
        command = ('/cluster/mover', str(mib), kind)
        ours, plain = Job(1, *command), Plain(*command)
        ours.ask('begin')
        plain.ask('begin')
        [ours.pid] = [pid for pid in subprocess.check_output(['pgrep', '-x', 'mover'], text=True).split() if pid != str(plain.pid)]
        for sample in range(SAMPLES):
            # Each of the two goes by turns there and back.
            ways = [('', 2), (' post-copy', 1)] if sample % 2 == 0 else [(' post-copy', 2), ('', 1)]
            moved = {how: measure(ours, node, how) for how, node in ways}
            print(mib, kind, *moved[''], *moved[' post-copy'], *measure(plain, None), flush=True)
        ours.end()
        plain.end()
