"""How cost grows: with entries, with bytes, with programs, with clients, with the way to Redis."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from typing import TYPE_CHECKING

from bench.workloads import CACHES_EXPIRE_S, MIB, Rates, at_once, forget, timed

from jfsd.meta.codec import encode_attr, encode_entry
from jfsd.types import Attr, NodeType

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

_BATCH = 10_000


def populate(client: Redis, parent: int, count: int, first_ino: int) -> None:
    """Put `count` empty files into a directory, straight into the metadata."""
    now_ns = time.time_ns()
    attr = Attr(
        NodeType.FILE, 0o644, atime_ns=now_ns, mtime_ns=now_ns, ctime_ns=now_ns, parent=parent
    )
    record = encode_attr(attr)
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        client.mset({f"i{first_ino + n}": record for n in numbers})
        names = {f"entry-{n:07}": encode_entry(NodeType.FILE, first_ino + n) for n in numbers}
        client.hset(f"d{parent}", mapping=names)


def in_directory(top: Path, entries: int, times: int) -> Rates:
    """Look up, create and list in a directory of so many entries."""
    rng = random.Random(1)
    some = [f"{top}/entry-{rng.randrange(entries):07}" for _ in range(times)]
    rates: Rates = {}

    def create() -> None:
        for index in range(times):
            os.close(os.open(f"{top}/new{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    time.sleep(CACHES_EXPIRE_S)
    timed(rates, f"stat among {entries} /s", lambda: [os.stat(path) for path in some], times)
    timed(rates, f"create among {entries} /s", create, times)
    timed(rates, f"readdir of {entries} entries/s", lambda: os.listdir(top), entries)
    return rates


def in_file(top: Path, mib: int, times: int) -> Rates:
    """Write a file of so many MiB, then read, change and extend it here and there."""
    path, block, page = top / "large", os.urandom(MIB), os.urandom(4096)
    rng = random.Random(1)
    places = [rng.randrange(mib * MIB // 4096) * 4096 for _ in range(times)]
    rates: Rates = {}

    def write() -> None:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        for _ in range(mib):
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        for place in places:
            os.pread(fd, 4096, place)
        os.close(fd)

    def change(flags: int) -> None:
        for place in places[::10]:
            fd = os.open(path, os.O_WRONLY | flags)
            os.pwrite(fd, page, place) if not flags else os.write(fd, page)
            os.close(fd)

    timed(rates, f"write of a file of {mib} MiB, MiB/s", write, mib)
    forget(path)
    timed(rates, f"random read in {mib} MiB /s", read, times)
    timed(rates, f"open, write 4 KiB, close in {mib} MiB /s", partial(change, 0), times // 10)
    timed(rates, f"append 4 KiB to {mib} MiB /s", partial(change, os.O_APPEND), times // 10)
    path.unlink()
    return rates


def clients(tops: list[Path], files: int) -> Rates:
    """Let a program on each mount of one volume create and remove files in one directory."""
    each = files // len(tops)
    rates: Rates = {}

    def path(who: int, index: int) -> str:
        return f"{tops[who]}/c{who}-{index}"

    def create(who: int) -> None:
        for index in range(each):
            os.close(os.open(path(who, index), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def unlink(who: int) -> None:
        for index in range(each):
            os.unlink(path(who, index))

    for job in (create, unlink):
        name = f"{job.__name__}, {len(tops)} clients in one directory /s"
        timed(rates, name, partial(at_once, len(tops), job), each * len(tops))
    return rates


def programs(top: Path, count: int, files: int) -> Rates:
    """Let `count` programs create `files` files in all, each in a directory of its own."""
    each = max(files // count, 1)
    for who in range(count):
        (top / f"p{who}").mkdir()

    def create(who: int) -> None:
        for index in range(each):
            path = f"{top}/p{who}/{index}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    rates: Rates = {}
    timed(rates, f"create, {count} programs /s", lambda: at_once(count, create), each * count)
    return rates


def delayed(top: Path, delay_ms: int, times: int) -> Rates:
    """Create, stat, rename and unlink while each round trip to Redis takes so much longer."""

    def path(kind: str, index: int) -> str:
        return f"{top}/{kind}{index}"

    def create(index: int) -> None:
        os.close(os.open(path("a", index), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    jobs = {
        "create": create,
        "stat": lambda index: os.stat(path("a", index)),
        "rename": lambda index: os.rename(path("a", index), path("b", index)),
        "unlink": lambda index: os.unlink(path("b", index)),
    }
    rates: Rates = {}
    for name, job in jobs.items():
        if name == "stat":
            time.sleep(CACHES_EXPIRE_S)

        def work(job: object = job) -> None:
            for index in range(times):
                job(index)

        timed(rates, f"{name}, {delay_ms} ms to Redis /s", work, times)
    return rates
