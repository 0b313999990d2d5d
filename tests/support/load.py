"""A load that checks itself: every acknowledged change is remembered, and found again later.

Each worker is a process of its own (started before the event that the test makes), so
a worker that hangs or dies does not take the tests with it.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from support.tree import digest

if TYPE_CHECKING:
    from collections.abc import Callable


class Report(NamedTuple):
    """What one worker did."""

    operations: int
    longest_s: float
    errors: list[str]
    expected: dict[str, object]
    """Relative name to content digest, or to None for a name that must not exist."""


class Worker:
    """One process that runs `step(state)` again and again until it is told to stop."""

    def __init__(self, kind: str, top: Path, seed: int) -> None:
        self.kind = kind
        self.top = top / f"{kind}{seed}"
        self.top.mkdir()
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            status = 1
            try:
                stopped: list[int] = []
                signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
                job = KINDS[kind](self.top, random.Random(seed))
                os.write(writer, b"r")
                report = _work(job, stopped)
                with os.fdopen(writer, "wb") as sink:
                    pickle.dump(report, sink)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)

    def wait_ready(self) -> None:
        """Return when it has prepared its directory and works."""
        assert os.read(self._reader, 1) == b"r", f"{self.kind} could not prepare"

    def stop(self) -> Report:
        """Tell it to end after its present step; return what it did."""
        os.kill(self.pid, signal.SIGUSR1)
        with os.fdopen(self._reader, "rb") as source:
            answer = source.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"{self.kind}: exit {status}"
        return pickle.loads(answer)

    def kill(self) -> None:
        """End it now; for teardown."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def _work(job: Job, stopped: list[int]) -> Report:
    operations, longest, errors = 0, 0.0, []
    while not stopped and len(errors) < 5:
        began = time.monotonic()
        try:
            job.step()
        except (OSError, AssertionError) as error:
            errors.append(f"after {operations}: {type(error).__name__}: {error}")
        longest = max(longest, time.monotonic() - began)
        operations += 1
    try:
        job.finish()
    except (OSError, AssertionError) as error:
        errors.append(f"at the end: {error}")
    return Report(operations, longest, errors, job.expected)


class Job:
    """A kind of work in a directory of its own."""

    def __init__(self, top: Path, rng: random.Random) -> None:
        self.top = top
        self.rng = rng
        self.expected: dict[str, object] = {}
        self.count = 0
        self.prepare()

    def prepare(self) -> None:
        """Open what the work needs."""

    def step(self) -> None:
        """Do one operation and check it."""
        raise NotImplementedError

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
        import fcntl

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


KINDS: dict[str, Callable[[Path, random.Random], Job]] = {
    "names": Names,
    "writer": Writer,
    "appender": Appender,
    "reader": Reader,
    "locker": Locker,
    "lister": Lister,
}


class Load:
    """Some workers at once."""

    def __init__(self, top: Path, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
        self.top = top
        self.workers = [Worker(kind, top, seed) for seed, kind in enumerate(kinds)]
        self.expected: dict[str, object] = {}
        for worker in self.workers:
            worker.wait_ready()

    def stop(self) -> dict[str, Report]:
        """End all workers; any error that one of them saw fails."""
        reports = {}
        while self.workers:
            worker = self.workers.pop(0)
            reports[worker.kind] = worker.stop()
            for name, content in reports[worker.kind].expected.items():
                self.expected[f"{worker.top.name}/{name}"] = content
        errors = {kind: r.errors for kind, r in reports.items() if r.errors}
        assert not errors, f"the load saw errors: {errors}"
        return reports

    def kill(self) -> None:
        """End what still runs; for teardown."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def verify(self, top: Path) -> None:
        """Compare all that was acknowledged with what `top` shows now."""
        wrong = []
        for name, content in self.expected.items():
            path = top / name
            found = digest(path) if path.is_file() else ("exists" if path.exists() else None)
            if found != content:
                wrong.append((name, content, found))
        assert not wrong, f"{len(wrong)} of {len(self.expected)} differ: {wrong[:5]}"
