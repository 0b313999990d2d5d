"""flock, POSIX and OFD locks through the kernel: contention, waiting, interruption, release."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
from support.fuse_served import Served

PROGRAM = """if 1:
    import errno, fcntl, os, signal, struct, sys
    kind, path = sys.argv[1:]
    fd = os.open(path, os.O_RDWR)
    class Interrupted(Exception): pass
    def stop(*_): raise Interrupted
    signal.signal(signal.SIGUSR1, stop)
    def lock(how):
        if kind == "flock":
            fcntl.flock(fd, how)
        elif kind == "posix":
            fcntl.lockf(fd, how, 10, 5)
        else:
            types = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK,
                     fcntl.LOCK_UN: fcntl.F_UNLCK}
            what = struct.pack("hhqqi4x", types[how & ~fcntl.LOCK_NB], 0, 5, 10, 0)
            wait = fcntl.F_OFD_SETLK if how & fcntl.LOCK_NB else fcntl.F_OFD_SETLKW
            fcntl.fcntl(fd, wait, what)
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            if line.strip() == "close":
                os.close(fd)
            else:
                lock(int(line))
            print(0, flush=True)
        except OSError as error:
            print(error.errno, flush=True)
        except Interrupted:
            print("interrupted", flush=True)
"""
KINDS = ["flock", "posix", "ofd"]
EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


class Locker:
    """Another process, with the file open."""

    def __init__(self, kind, path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.answer() == b"ready"

    def ask(self, what):
        self.process.stdin.write(f"{what}\n".encode())
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().strip()

    def do(self, what):
        self.ask(what)
        return int(self.answer())

    def end(self):
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def served(bed, request):
    with Served(bed, uvloop=request.param) as served:
        (served.path / "f").write_bytes(b"x" * 100)
        yield served


@pytest.fixture
def locker(served):
    started = []

    def start(kind):
        started.append(Locker(kind, served.path / "f"))
        return started[-1]

    yield start
    for each in started:
        each.process.kill() if each.process.poll() is None else None
        each.end()


@pytest.mark.parametrize("kind", KINDS)
def test_conflict_and_release(locker, kind):
    one, two, three = (locker(kind) for _ in range(3))
    assert one.do(EX) == 0
    assert two.do(EX | NB) == errno.EAGAIN
    assert two.do(SH | NB) == errno.EAGAIN
    assert one.do(SH) == 0  # converted
    assert two.do(SH | NB) == 0
    assert three.do(EX | NB) == errno.EAGAIN
    assert one.do(UN) == 0
    assert two.do(UN) == 0
    assert three.do(EX | NB) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_gets_the_lock_when_it_is_released(locker, kind):
    one, two = locker(kind), locker(kind)
    assert one.do(EX) == 0
    two.ask(EX)
    time.sleep(0.1)
    assert two.process.poll() is None
    assert one.do(UN) == 0
    assert two.answer() == b"0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["close", "kill"])
def test_closing_and_dying_release(locker, kind, how):
    one, two = locker(kind), locker(kind)
    assert one.do(EX) == 0
    two.ask(EX)
    time.sleep(0.05)
    if how == "close":
        assert one.do("close") == 0
    else:
        one.process.kill()
    assert two.answer() == b"0"


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_interrupts_a_waiter(locker, served, kind):
    one, two, three = (locker(kind) for _ in range(3))
    assert one.do(EX) == 0
    two.ask(EX)
    time.sleep(0.1)
    two.process.send_signal(signal.SIGUSR1)
    assert two.answer() == b"interrupted"
    assert one.do(UN) == 0
    assert three.do(EX | NB) == 0  # the interrupted waiter holds nothing
    assert served.process.poll() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_waiter_is_gone(locker, kind):
    one, two = locker(kind), locker(kind)
    assert one.do(EX) == 0
    two.ask(EX)
    time.sleep(0.1)
    began = time.monotonic()
    two.process.kill()
    two.end()
    assert time.monotonic() - began < 1
    assert one.do(UN) == 0
    assert one.do(EX | NB) == 0


def test_who_is_in_the_way(locker, served):
    one = locker("posix")
    assert one.do(EX) == 0
    with (served.path / "f").open("r+b") as file:
        ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
        found = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, ask))
        assert found == (fcntl.F_WRLCK, 0, 5, 10, one.process.pid)
        ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 15, 0, 0)
        found = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, ask))
        assert found[0] == fcntl.F_UNLCK


def test_ranges_to_the_end_of_the_file_system(served):
    with (served.path / "f").open("r+b") as file:
        fcntl.lockf(file, EX, 0, 50)
        fcntl.lockf(file, SH, 1, (1 << 63) - 2)
    ranges = [(c["start"], c["end"]) for c in served.calls("setlk")]
    last = (1 << 63) - 1
    assert ranges == [(50, last), (last - 1, last - 1)]


def test_flock_and_posix_locks_do_not_meet(locker):
    one, two = locker("flock"), locker("posix")
    assert one.do(EX) == 0
    assert two.do(EX | NB) == 0


def test_release_names_the_owner_of_a_flock_only(served):
    with (served.path / "f").open("r+b") as file:
        fcntl.flock(file, EX)
    os.close(os.open(served.path / "f", os.O_RDONLY))
    os.stat(served.path)
    owners = [c["owner"] for c in served.calls("release")]
    assert [owner is not None for owner in owners] == [False, True, False]
    assert all(c["pid"] for c in served.calls("flush"))


def test_hundreds_of_waiters_do_not_hold_up_others(locker, served):
    holder = locker("flock")
    assert holder.do(EX) == 0
    program = """if 1:
        import fcntl, sys, threading
        def wait():
            with open(sys.argv[1]) as f: fcntl.flock(f, fcntl.LOCK_SH)
        threads = [threading.Thread(target=wait) for _ in range(300)]
        for t in threads: t.start()
        print("started", flush=True)
        for t in threads: t.join()
    """
    argv = [sys.executable, "-c", program, served.path / "f"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as waiters:
        waiters.stdout.readline()
        time.sleep(0.3)
        began = time.monotonic()
        for _ in range(20):
            os.stat(served.path)
        took = time.monotonic() - began
        assert holder.do(UN) == 0
        assert waiters.wait(10) == 0
    assert took < 0.5
