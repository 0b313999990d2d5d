"""Kinds of work for a load that checks itself; each is one process in a directory of its own."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import signal
import struct
import time
from typing import TYPE_CHECKING

from support.tree import digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Job:
    """A kind of work in a directory of its own."""

    def __init__(self, top: Path, rng: random.Random) -> None:
        self.top = top
        self.rng = rng
        self.expected: dict[str, object] = {}
        self.tally: dict[str, int] = {}
        """What this worker added to counters that several share, by file name beside `top`."""
        self.count = 0
        self.prepare()

    def prepare(self) -> None:
        """Open what the work needs."""

    def step(self) -> None:
        """Do one operation and check it."""
        raise NotImplementedError

    def compare(self) -> None:
        """Compare everything that was acknowledged so far with what is there."""
        for name, content in self.expected.items():
            path = self.top / name
            found = digest(path) if path.is_file() else ("exists" if path.exists() else None)
            assert found == content, f"{path}: {found}, expected {content}"

    def finish(self) -> None:
        """Close what was opened."""


class Names(Job):
    """Creates, renames, links and removes; any unexpected errno fails."""

    def step(self) -> None:
        self.count += 1
        name = f"n{self.count}"
        path = self.top / name
        path.write_bytes(name.encode() * 20)
        os.rename(path, self.top / f"r{self.count}")
        os.link(self.top / f"r{self.count}", self.top / f"l{self.count}")
        (self.top / f"d{self.count}").mkdir()
        os.rename(self.top / f"l{self.count}", self.top / f"d{self.count}/l")
        assert os.stat(self.top / f"r{self.count}").st_nlink == 2
        self.expected[f"r{self.count}"] = digest(self.top / f"r{self.count}")
        self.expected[name] = self.expected[f"l{self.count}"] = None
        if self.count > 30:
            old = self.count - 30
            os.unlink(self.top / f"d{old}/l")
            os.rmdir(self.top / f"d{old}")
            os.unlink(self.top / f"r{old}")
            self.expected[f"r{old}"] = self.expected[f"d{old}"] = None
        time.sleep(0.002)


class Writer(Job):
    """Writes files of random sizes, fsyncs some, compares what it reads back."""

    def step(self) -> None:
        self.count += 1
        name = f"f{self.count % 15}"
        data = self.rng.randbytes(self.rng.choice([10, 5000, 100_000, 5 << 20]))
        fd = os.open(self.top / name, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        try:
            done = 0
            while done < len(data):
                done += os.write(fd, data[done : done + 131072])
            if self.count % 3 == 0:
                os.fsync(fd)
            assert os.pread(fd, len(data) + 1, 0) == data
        finally:
            os.close(fd)
        self.expected[name] = digest(self.top / name)
        time.sleep(0.01)


class Appender(Job):
    """Appends numbered lines to a file that it keeps open; none may be lost or doubled."""

    def prepare(self) -> None:
        self.fd = os.open(self.top / "log", os.O_CREAT | os.O_APPEND | os.O_RDWR)
        self.size = 0

    def step(self) -> None:
        self.count += 1
        line = f"line {self.count}\n".encode()
        assert os.write(self.fd, line) == len(line)
        self.size += len(line)
        if self.count % 50 == 0:
            os.fsync(self.fd)
            assert os.fstat(self.fd).st_size == self.size
            assert os.pread(self.fd, len(line), self.size - len(line)) == line
        time.sleep(0.001)

    def finish(self) -> None:
        os.close(self.fd)
        lines = (self.top / "log").read_bytes().splitlines()
        assert lines == [b"line %d" % (i + 1) for i in range(self.count)]
        self.expected["log"] = digest(self.top / "log")


class Scatter(Job):
    """Writes small pieces all over a file that it keeps open; each is seen at once and stays."""

    def prepare(self) -> None:
        self.data = bytearray(300_000)
        self.fd = os.open(self.top / "pieces", os.O_CREAT | os.O_RDWR)
        os.write(self.fd, self.data)

    def step(self) -> None:
        self.count += 1
        piece = self.rng.randbytes(self.rng.choice([1, 100, 4096]))
        at = self.rng.randrange(len(self.data) - len(piece))
        assert os.pwrite(self.fd, piece, at) == len(piece)
        self.data[at : at + len(piece)] = piece
        near = max(at - 3000, 0)
        assert os.pread(self.fd, 10_000, near) == self.data[near : near + 10_000]
        if self.count % 40 == 0:
            os.fsync(self.fd)
            if self.count % 80 == 0:
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        time.sleep(0.001)

    def compare(self) -> None:
        assert (self.top / "pieces").read_bytes() == self.data

    def finish(self) -> None:
        os.close(self.fd)
        self.expected["pieces"] = digest(self.top / "pieces")


class Reader(Job):
    """Reads a file at random places, some through new descriptors, and compares."""

    def prepare(self) -> None:
        self.data = self.rng.randbytes(12 << 20)
        (self.top / "data").write_bytes(self.data)
        self.expected["data"] = digest(self.top / "data")

    def step(self) -> None:
        offset = self.rng.randrange(len(self.data))
        fd = os.open(self.top / "data", os.O_RDONLY)
        try:
            got = os.pread(fd, 70_000, offset)
            if self.rng.random() < 0.2:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        assert got == self.data[offset : offset + 70_000]
        time.sleep(0.002)


class Locker(Job):
    """Takes and releases each kind of lock; finding one it holds not held fails."""

    def prepare(self) -> None:
        (self.top / "lock").write_bytes(b"0")
        self.fd = os.open(self.top / "lock", os.O_RDWR)

    def step(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        self.count += 1
        os.pwrite(self.fd, b"%d" % self.count, 0)
        fcntl.lockf(self.fd, fcntl.LOCK_UN)
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        time.sleep(0.002)

    def finish(self) -> None:
        assert os.pread(self.fd, 20, 0) == b"%d" % self.count
        os.close(self.fd)
        self.expected["lock"] = digest(self.top / "lock")


class Lister(Job):
    """Lists a directory in which only its own entries change."""

    def prepare(self) -> None:
        for index in range(300):
            os.symlink("x", self.top / f"stays{index}")

    def step(self) -> None:
        self.count += 1
        os.symlink("x", self.top / f"comes{self.count}")
        if self.count > 5:
            os.unlink(self.top / f"comes{self.count - 5}")
        names = os.listdir(self.top)
        assert len(names) == 300 + min(self.count, 5)
        assert len(set(names)) == len(names)
        time.sleep(0.01)


class Contender(Job):
    """Competes for one lock of each kind with its like; each guards a counter, none may lose one.

    An increment is read, pause, write: two holders at once would lose one of theirs.
    """

    def prepare(self) -> None:
        self.fds = {}
        for kind in LOCKS:
            self.fds[kind] = os.open(self.top.parent / f"shared-{kind}", os.O_CREAT | os.O_RDWR)
            self.tally[f"shared-{kind}"] = 0

    def step(self) -> None:
        kind = self.rng.choice(list(LOCKS))
        fd = self.fds[kind]
        LOCKS[kind](fd, fcntl.F_WRLCK)
        try:
            value = int(os.pread(fd, 20, 0) or b"0")
            time.sleep(0.002)
            os.pwrite(fd, b"%d" % (value + 1), 0)
        finally:
            LOCKS[kind](fd, fcntl.F_UNLCK)
        self.tally[f"shared-{kind}"] += 1
        time.sleep(0.002)

    def finish(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


def _flock(fd: int, kind: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX)


def _posix(fd: int, kind: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX)


def _ofd(fd: int, kind: int) -> None:
    fcntl.fcntl(fd, F_OFD_SETLKW, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


F_OFD_SETLK, F_OFD_SETLKW = 37, 38
PR_SET_PDEATHSIG = 1
LOCKS: dict[str, Callable[[int, int], None]] = {"flock": _flock, "posix": _posix, "ofd": _ofd}


class Waiter(Job):
    """Holds a lock of each kind for which a child waits all the time, and in vain until the end."""

    def prepare(self) -> None:
        self.children: dict[str, tuple[int, int, int]] = {}
        for kind, lock in LOCKS.items():
            held = os.open(self.top / kind, os.O_CREAT | os.O_RDWR)
            lock(held, fcntl.F_WRLCK)
            got, tell = os.pipe()
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                    os.close(held)
                    fd = os.open(self.top / kind, os.O_RDWR)
                    lock(fd, fcntl.F_WRLCK)
                    os.write(tell, b"g")
                    status = 0
                finally:
                    os._exit(status)
            os.close(tell)
            os.set_blocking(got, False)
            self.children[kind] = held, got, pid

    def step(self) -> None:
        time.sleep(0.02)
        for kind, (_, got, _) in self.children.items():
            try:
                raise AssertionError(f"{kind}: the waiter got {os.read(got, 1)!r}")
            except BlockingIOError:
                continue

    def finish(self) -> None:
        for kind, (held, got, pid) in self.children.items():
            LOCKS[kind](held, fcntl.F_UNLCK)
            _, status = os.waitpid(pid, 0)
            assert status == 0, f"{kind}: the waiter ended with {status}"
            assert os.read(got, 1) == b"g"
            os.close(held)


class Unlinked(Job):
    """Keeps files open that have no name any more, and finds their bytes as they were."""

    KEPT = 5

    def prepare(self) -> None:
        self.open: list[tuple[int, bytearray]] = []

    def step(self) -> None:
        self.count += 1
        if len(self.open) == self.KEPT:
            fd, _ = self.open.pop(0)
            os.close(fd)
        path = self.top / f"u{self.count}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        content = bytearray(self.rng.randbytes(self.rng.choice([100, 50_000])))
        os.write(fd, content)
        os.unlink(path)
        self.expected[path.name] = None
        self.open.append((fd, content))
        for fd, content in self.open:
            at = self.rng.randrange(len(content))
            os.pwrite(fd, b"changed", at)
            content[at : at + 7] = b"changed"
            assert os.fstat(fd).st_nlink == 0
            assert os.pread(fd, len(content) + 1, 0) == content
        time.sleep(0.01)

    def finish(self) -> None:
        for fd, _ in self.open:
            os.close(fd)


class Mapper(Job):
    """Writes through a shared mapping and reads through a descriptor, and the other way round."""

    PAGES = 64

    def prepare(self) -> None:
        self.fd = os.open(self.top / "mapped", os.O_CREAT | os.O_RDWR)
        os.ftruncate(self.fd, self.PAGES * mmap.PAGESIZE)
        self.map = mmap.mmap(self.fd, self.PAGES * mmap.PAGESIZE)
        self.shadow = bytearray(self.PAGES * mmap.PAGESIZE)

    def step(self) -> None:
        self.count += 1
        data = self.rng.randbytes(300)
        at = self.rng.randrange(len(self.shadow) - len(data))
        self.shadow[at : at + len(data)] = data
        if self.count % 3:
            self.map[at : at + len(data)] = data
        else:
            os.pwrite(self.fd, data, at)
        if self.count % 10 == 0:
            self.map.flush()
        assert self.map[at : at + len(data)] == data
        assert os.pread(self.fd, len(data), at) == data
        time.sleep(0.003)

    def finish(self) -> None:
        self.map.flush()
        assert self.map[:] == bytes(self.shadow)
        self.map.close()
        os.close(self.fd)
        assert (self.top / "mapped").read_bytes() == bytes(self.shadow)
        self.expected["mapped"] = digest(self.top / "mapped")


class Direct(Job):
    """Writes and reads past the page cache."""

    BLOCK = 4096
    BLOCKS = 256

    def prepare(self) -> None:
        self.fd = os.open(self.top / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        self.shadow = bytearray(self.BLOCK * self.BLOCKS)
        self.buffer = mmap.mmap(-1, 8 * self.BLOCK)
        self.buffer[:] = bytes(8 * self.BLOCK)
        for first in range(0, self.BLOCKS, 8):
            assert os.pwrite(self.fd, self.buffer, first * self.BLOCK) == len(self.buffer)

    def step(self) -> None:
        self.count += 1
        size = self.rng.randint(1, 8) * self.BLOCK
        at = self.rng.randrange(0, len(self.shadow) - size + 1, self.BLOCK)
        if self.count % 2:
            self.buffer[:size] = self.shadow[at : at + size] = self.rng.randbytes(size)
            assert os.pwrite(self.fd, memoryview(self.buffer)[:size], at) == size
        else:
            assert os.preadv(self.fd, [memoryview(self.buffer)[:size]], at) == size
            assert self.buffer[:size] == self.shadow[at : at + size]
        time.sleep(0.003)

    def finish(self) -> None:
        os.close(self.fd)
        assert (self.top / "direct").read_bytes() == bytes(self.shadow)
        self.expected["direct"] = digest(self.top / "direct")


class BigLister(Job):
    """Reads a big directory in which names come and go: those that stay are shown once each."""

    STEADY = 100_000 if os.environ.get("JFSD_SLOW") == "1" else 1500

    def prepare(self) -> None:
        self.steady = {f"steady{index:06}" for index in range(self.STEADY)}
        for name in self.steady:
            os.symlink("x", self.top / name)

    def step(self) -> None:
        shown: list[str] = []
        with os.scandir(self.top) as listing:
            for number, entry in enumerate(listing):
                shown.append(entry.name)
                if number % 100 == 0:
                    self.count += 1
                    os.symlink("x", self.top / f"comes{self.count}")
                    if self.count > 20:
                        os.unlink(self.top / f"comes{self.count - 20}")
        assert len(set(shown)) == len(shown), "a name is shown twice"
        missing = self.steady.difference(shown)
        assert not missing, f"{len(missing)} names are not shown: {sorted(missing)[:5]}"


class Probe(Job):
    """Makes one small durable change after the other; its longest step is the pause one feels."""

    def prepare(self) -> None:
        self.fd = os.open(self.top / "probe", os.O_CREAT | os.O_RDWR)

    def step(self) -> None:
        self.count += 1
        os.pwrite(self.fd, b"%020d" % self.count, 0)
        os.utime(self.top / "probe", ns=(self.count, self.count))
        assert os.pread(self.fd, 20, 0) == b"%020d" % self.count
        time.sleep(0.001)

    def finish(self) -> None:
        os.close(self.fd)
        self.expected["probe"] = digest(self.top / "probe")


KINDS: dict[str, Callable[[Path, random.Random], Job]] = {
    "names": Names,
    "writer": Writer,
    "appender": Appender,
    "reader": Reader,
    "scatter": Scatter,
    "locker": Locker,
    "lister": Lister,
    "contender": Contender,
    "waiter": Waiter,
    "unlinked": Unlinked,
    "mapper": Mapper,
    "direct": Direct,
    "biglister": BigLister,
    "probe": Probe,
}
