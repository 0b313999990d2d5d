"""The C heap of a serving process is shared by its threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jfsd.daemon.memory import HeapGuard

MIB = 1 << 20

SCRIPT = """
import sys, threading
from jfsd.daemon.memory import bound_heap
if sys.argv[1] == "one":
    assert bound_heap()
turn = threading.Barrier(8)
def use():
    turn.wait()
    blocks = [bytes(64 << 10) for _ in range(16)]  # below the limit of mmap, above pymalloc's
    turn.wait()
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import ctypes
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(out))
libc.fflush(ctypes.c_void_p(out))
"""


KEPT = """
import os, random, sys
from jfsd.daemon.memory import HeapGuard, bound_heap, private_bytes
if sys.argv[1] != "default":
    assert bound_heap()
live = 0
guard = HeapGuard(lambda: live)
rng, blocks, pins, before, worst = random.Random(1), [], [], private_bytes(), 0
for turn in range(300):
    blocks.append(bytearray((4 << 20) + turn % 2 * 284 - turn % 7 * 4096))
    pins.append(bytearray(20_000))
    if len(blocks) > 15:
        blocks.pop(rng.randrange(len(blocks)))
    live = sum(map(len, blocks))
    if sys.argv[1] == "guarded" and turn % 4 == 0:
        guard.check()
        worst = max(worst, private_bytes() - live - before)
    elif turn % 4 == 0:
        worst = max(worst, private_bytes() - live - before)
print(worst >> 20)
"""


def heaps(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.promise(19)
def test_threads_share_one_heap() -> None:
    assert heaps("one") == 1
    assert heaps("default") > 1


def wasted_mib(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", KEPT, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.promise(19)
def test_what_blocks_of_changing_sizes_leave_behind_goes_back() -> None:
    assert wasted_mib("guarded") <= 28  # 6 MiB of it are the pins, 16 may wait
    assert wasted_mib("bound") > 28


class Bench:
    """A process with `private` bytes, of which `live` are blocks and `kept` cannot go back."""

    def __init__(self) -> None:
        self.private = self.live = self.kept = 0
        self.trims = 0
        self.guard = HeapGuard(lambda: self.live, measure=lambda: self.private, trim=self.trim)

    def trim(self) -> None:
        self.trims += 1
        self.private = self.live + self.kept


def test_it_trims_only_what_is_too_much() -> None:
    bench = Bench()
    bench.private = bench.live = 100 * MIB
    bench.guard.check()
    bench.private += 16 * MIB
    bench.guard.check()
    assert bench.trims == 0
    bench.private += 1
    bench.guard.check()
    assert (bench.trims, bench.private) == (1, 100 * MIB)


def test_it_does_not_trim_again_and_again_what_will_not_go() -> None:
    bench = Bench()
    bench.private = bench.kept = 50 * MIB
    for _ in range(5):
        bench.guard.check()
    assert bench.trims == 1
    bench.private = bench.kept = 10 * MIB
    bench.guard.check()
    bench.private = 30 * MIB
    bench.guard.check()
    assert bench.trims == 2
