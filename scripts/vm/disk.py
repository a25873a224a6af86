"""Measures a disk in milliseconds, past the page cache of this machine: disk.py NAME PATH. Prints medians."""
import mmap
import os
import random
import statistics
import sys
import time

BLOCK, PIECE, BYTES, ROUNDS = 4096, 1 << 20, 64 << 20, 3
name, path = sys.argv[1:]
disk = os.open(path, os.O_RDWR | os.O_DIRECT)
small, large = mmap.mmap(-1, BLOCK), mmap.mmap(-1, PIECE)
dice = random.Random(7)


def each(count, work):
    begin = time.monotonic()
    for number in range(count):
        work(number)
    return (time.monotonic() - begin) / count * 1000


def at():
    return dice.randrange(BYTES // BLOCK) * BLOCK


def flushed(count, write):
    def all_of_them(_):
        for number in range(count):
            write(number)
        os.fsync(disk)

    return each(1, all_of_them) / count


rows = {
    "4 KiB random read": lambda: each(30, lambda _: os.preadv(disk, [small], at())),
    "4 KiB random write, fsync of 30": lambda: flushed(30, lambda _: os.pwritev(disk, [small], at())),
    "1 MiB sequential read": lambda: each(4, lambda number: os.preadv(disk, [large], number * PIECE)),
    "1 MiB sequential write, fsync of 4": lambda: flushed(4, lambda number: os.pwritev(disk, [large], number * PIECE)),
}
for what, work in rows.items():
    print(f"VM row {name}: {what}: {statistics.median(work() for _ in range(ROUNDS)):.2f} ms", flush=True)
