"""How cost grows: with entries of a directory, with programs at once, with the way to Redis."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

from bench.workloads import CACHES_EXPIRE_S, Rates, at_once, timed

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
