"""What an operation of a program costs, in numbers that no machine changes.

For each: requests of the kernel, round trips to Redis, commands to Redis, requests to S3.
A change that makes one of them larger is a regression; one that makes it smaller belongs
into the table.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.clients import Jfsd, Storage
from support.slowline import SlowLine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis
    from support.clients import Mounted
    from support.redis import RedisServer
    from support.session import Session
    from support.weed import WeedServer

TIMES = 40
SLACK = 0.3
"""What a heartbeat, or an answered identity that found no script to ride on, may add."""
EXPIRED_S = 1.2


class Cost(NamedTuple):
    """For one operation, on average; FORGET and what the daemon does later included."""

    fuse: float
    turns: float
    commands: float
    objects: float


EXPECTED = {
    "create": Cost(fuse=5, turns=2, commands=2, objects=0),
    "stat, expired": Cost(fuse=1, turns=1, commands=1, objects=0),
    "stat, known": Cost(fuse=0, turns=0, commands=0, objects=0),
    "chmod": Cost(fuse=1, turns=1, commands=1, objects=0),
    "rename": Cost(fuse=3, turns=2, commands=2, objects=0),
    "mkdir": Cost(fuse=3, turns=2, commands=2, objects=0),
    "rmdir": Cost(fuse=3, turns=1, commands=1, objects=0),
    "write 16 KiB": Cost(fuse=7, turns=3, commands=3, objects=1),
    "read 16 KiB": Cost(fuse=5, turns=2, commands=2, objects=0),
    "open, close": Cost(fuse=3, turns=1, commands=1, objects=0),
    "write 1 MiB more": Cost(fuse=1, turns=0, commands=0, objects=0.25),
    "write 100 pages anywhere, fsync": Cost(fuse=101, turns=1, commands=1, objects=1),
    "list 80": Cost(fuse=5, turns=4, commands=4, objects=0),
    "unlink": Cost(fuse=3, turns=2, commands=3, objects=0),
}
"""Create is a lookup, the script, and no answer of Redis about the parent, whose attributes
the last script told. A listing asks for the directory itself when its attributes have just
expired. Unlink counts the deletion of the data in the background."""


class Bench:
    """A mount whose ways out are counted."""

    def __init__(self, mounted: Mounted, redis: SlowLine, client: Redis, objects: SlowLine) -> None:
        self.top = mounted.path
        self._redis = redis
        self._client = client
        self._objects = objects
        self._marks = 0
        self._empty: int | None = None

    def uniques(self) -> int:
        """Make a mark and return the number that the kernel gave the request."""
        self._marks += 1
        (self.top / f"mark{self._marks}").mkdir()
        [operations] = [key for key in self._client.keys("jfsd*") if len(key) > 8]
        return max(
            int(field.partition(b".")[0])
            for field in self._client.hkeys(operations)
            if field.endswith(b".mknod")
        )

    def cost(self, work: Callable[[int], object], times: int = TIMES) -> Cost:
        """Return what `work` costs, without the marks."""
        first, turns, commands = self.uniques(), *self._redis.counts()
        objects = self._objects.requests
        for index in range(times):
            work(index)
        now = self._redis.counts()
        turns, commands = now[0] - turns, now[1] - commands
        objects = self._objects.requests - objects
        last = self.uniques()
        if self._empty is None:
            self._empty = 0
            self._empty = (self.uniques() - last) // 2
        fuse = (last - first) // 2 - self._empty
        return Cost(*(round(each / times, 2) for each in (fuse, turns, commands, objects)))


@pytest.fixture
def bench(
    bed: Session, redis_server: RedisServer, meta_db: int, weed: WeedServer
) -> Iterator[Bench]:
    """A volume on S3, mounted over lines that count."""
    jfsd = Jfsd(bed)
    bucket = weed.bucket()
    with (
        SlowLine(redis_server.socket) as line,
        SlowLine(("127.0.0.1", weed.ports[0])) as objects,
        redis_server.client(meta_db) as client,
    ):
        bucket = bucket._replace(endpoint=f"http://127.0.0.1:{objects.port}")
        url = f"redis://127.0.0.1:{line.port}/{meta_db}"
        jfsd.format(url, "counted", Storage(bucket=bucket), "--trash-days", "0")
        mounted = jfsd.mount(url, bed.directory("m"), "--heartbeat", "60")
        try:
            yield Bench(mounted, line, client, objects)
            mounted.unmount()
        finally:
            mounted.discard()


@pytest.mark.jfsd_only
@pytest.mark.timeout(240)
def test_what_operations_cost(bench: Bench) -> None:
    """The least of some turns: on a slow machine what is known expires in the middle of one."""
    least: dict[str, Cost] = {}
    for turn in range(3):
        for name, cost in measured(bench, bench.top / f"work{turn}").items():
            least[name] = Cost(*map(min, cost, least.get(name, cost)))
        assert list(least) == list(EXPECTED)
        costly = {
            name: (cost, EXPECTED[name])
            for name, cost in least.items()
            if any(is_ > most + SLACK for is_, most in zip(cost, EXPECTED[name], strict=True))
        }
        if not costly:
            return
    pytest.fail(f"more than it was: (measured, expected) {costly}")


def measured(bench: Bench, work: Path) -> dict[str, Cost]:
    """Return what each operation costs in an empty directory."""
    work.mkdir()
    page = os.urandom(16384)
    block = os.urandom(1 << 20)
    sink = os.open(work / "sink", os.O_CREAT | os.O_WRONLY)

    def path(name: str, index: int) -> str:
        return f"{work}/{name}{index}"

    def create(index: int) -> None:
        os.close(os.open(path("a", index), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def write_small(index: int) -> None:
        fd = os.open(path("s", index), os.O_CREAT | os.O_WRONLY)
        os.write(fd, page)
        os.close(fd)

    def read(index: int) -> None:
        fd = os.open(path("s", index), os.O_RDONLY)
        os.read(fd, 16384)
        os.close(fd)

    def write_pieces(index: int) -> None:
        for piece in range(100):
            os.pwrite(sink, page[:4096], (index * 100 + piece) * 7919 % 10_000 * 4096)
        os.fsync(sink)

    found: dict[str, Cost] = {}

    def measure(name: str, job: Callable[[int], object], times: int = TIMES) -> None:
        found[name] = bench.cost(job, times)

    bench.cost(lambda _: None)  # what marks cost by themselves
    measure("create", create)
    time.sleep(EXPIRED_S)
    measure("stat, expired", lambda index: os.stat(path("a", index)))
    measure("stat, known", lambda index: os.stat(path("a", index)))
    measure("chmod", lambda index: os.chmod(path("a", index), 0o600))
    measure("rename", lambda index: os.rename(path("a", index), path("b", index)))
    measure("mkdir", lambda index: os.mkdir(path("d", index)))
    measure("rmdir", lambda index: os.rmdir(path("d", index)))
    measure("write 16 KiB", write_small)
    time.sleep(EXPIRED_S)
    for index in range(TIMES):
        _forget(path("s", index))
    time.sleep(EXPIRED_S)
    measure("read 16 KiB", read)
    measure("open, close", lambda index: os.close(os.open(path("s", index), os.O_RDONLY)))
    measure("write 1 MiB more", lambda _: os.write(sink, block))
    os.fsync(sink)  # what is still on its way is not the listing's
    measure("write 100 pages anywhere, fsync", write_pieces, 4)
    measure("list 80", lambda _: os.listdir(work), 1)
    measure("unlink", lambda index: os.unlink(path("b", index)))
    os.close(sink)
    return found


def _forget(path: str) -> None:
    """Drop the pages of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
