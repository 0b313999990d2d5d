"""The C heap of a serving process is shared by its threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, threading
from jfsd.daemon.memory import use_one_heap
if sys.argv[1] == "one":
    assert use_one_heap()
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


def heaps(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.count("<heap nr=")


@pytest.mark.promise(19)
def test_threads_share_one_heap() -> None:
    assert heaps("one") == 1
    assert heaps("default") > 1
