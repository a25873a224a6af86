"""Uses a terminal as terminal programs do, and logs in at what is behind it: user.py TERMINAL READY."""
import fcntl
import os
import select
import struct
import subprocess
import sys
import termios

line = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
assert os.isatty(line)
assert not termios.tcgetattr(line)[3] & termios.ICANON, "raw, as it was set"


def number(request):
    return struct.unpack("I", fcntl.ioctl(line, request, bytes(4)))[0]


def modem(request, lines):
    fcntl.ioctl(line, request, struct.pack("I", lines))


def on(node, *command):
    return subprocess.run(["glurun", "-w", str(node), *command], stdout=subprocess.PIPE, text=True, check=True).stdout


def its_node_has(word):
    ports = on(3, "cat", "/proc/tty/driver/serial").splitlines()
    port = [row for row in ports if row.startswith("1:")][0]
    return word in port.split()[-1].split("|")


ready = termios.TIOCM_DTR | termios.TIOCM_RTS
modem(termios.TIOCMBIC, ready)
assert not number(termios.TIOCMGET) & ready
assert not its_node_has("DTR")
modem(termios.TIOCMBIS, ready)
assert number(termios.TIOCMGET) & ready == ready
assert its_node_has("DTR") and its_node_has("RTS")
try:
    fcntl.ioctl(line, termios.TIOCSTI, b"x")
    raise AssertionError("what is not carried is refused")
except OSError as error:
    assert error.errno == 25, error
termios.tcflush(line, termios.TCIOFLUSH)
termios.tcsendbreak(line, 0)
termios.tcdrain(line)
assert number(termios.FIONREAD) == 0
os.set_blocking(line, False)
try:
    os.read(line, 1)
    raise AssertionError("there is nothing to read")
except BlockingIOError:
    pass
assert select.select([line], [line], [], 0) == ([], [line], [])
os.set_blocking(line, True)
open(sys.argv[2], "w").close()

heard = ""


def expect(text):
    """Every other piece is waited for by select, and by the read itself."""
    global heard
    while text not in heard:
        if len(heard) % 2:
            assert select.select([line], [], [], 100)[0], f"nothing more after {heard!r}"
        heard += os.read(line, 100).decode()
    heard = heard.split(text, 1)[1]


expect("login: ")
os.write(line, b"guest\r")
expect("Password: ")
os.write(line, b"secret\r")
expect("welcome guest")
expect("$ ")
os.write(line, b"cat /proc/sys/kernel/random/boot_id; seq 1 500 | tr '\\n' ' '\r")
expect(on(2, "cat", "/proc/sys/kernel/random/boot_id"))
expect(" 499 500 $ ")
os.write(line, b"exit\r")
termios.tcdrain(line)
