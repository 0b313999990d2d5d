"""Compare jfsd with the reference: same machine, same Redis, same store, in turn.

    make bench
    make bench ARGS='--store file --rounds 5 --only metadata --json /tmp/bench.json'

Both volumes are mounted for the whole run with each program's defaults; a workload
runs on one, then on the other, the order changing every round. Figures are rates
(more is better) and medians over the rounds; a ratio above 1 means jfsd is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.clients import Jfsd, JuiceFS, Storage
from support.redis import RedisServer
from support.session import Session
from support.weed import WeedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.clients import Client, Mounted

MIB = 1 << 20
CACHES_EXPIRE_S = 1.3
Rates = dict[str, float]
"""Name of a figure to operations, or MiB, per second."""


class Size:
    """How much each workload does."""

    def __init__(self, *, quick: bool) -> None:
        self.stream_mib = 64 if quick else 512
        self.random = 300 if quick else 2000
        self.small = 100 if quick else 500
        self.names = 200 if quick else 1000
        self.listed = 1000 if quick else 5000


def timed(work: Callable[[], object], count: float) -> float:
    """Return the rate at which `work` does its `count` things."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def forget(path: Path) -> None:
    """Drop the kernel's pages of a file, so that reads reach the server."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def streams(top: Path, size: Size) -> Rates:
    """One large file: written and synced, read cold, read again from the local cache."""
    block = os.urandom(MIB)
    path = top / "stream"

    def write() -> None:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        for _ in range(size.stream_mib):
            os.write(fd, block)
        os.fsync(fd)
        os.close(fd)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        while os.read(fd, MIB):
            pass
        os.close(fd)

    rates = {"sequential write MiB/s": timed(write, size.stream_mib)}
    forget(path)
    rates["sequential read, cold MiB/s"] = timed(read, size.stream_mib)
    forget(path)
    rates["sequential read, again MiB/s"] = timed(read, size.stream_mib)
    path.unlink()
    return rates


def randoms(top: Path, size: Size) -> Rates:
    """Four KiB at random places of a file of a quarter of the stream's size."""
    rng = random.Random(1)
    path = top / "random"
    pages = size.stream_mib * MIB // 4 // 4096
    path.write_bytes(os.urandom(pages * 4096))
    places = [rng.randrange(pages) * 4096 for _ in range(size.random)]
    page = os.urandom(4096)

    def read() -> None:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for place in places:
            os.pread(fd, 4096, place)
        os.close(fd)

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        for place in places:
            os.pwrite(fd, page, place)
        os.fsync(fd)
        os.close(fd)

    def synced() -> None:
        fd = os.open(path, os.O_WRONLY)
        for place in places[::10]:
            os.pwrite(fd, page, place)
            os.fsync(fd)
        os.close(fd)

    forget(path)
    rates = {"random read 4 KiB /s": timed(read, len(places))}
    rates["random write 4 KiB /s"] = timed(write, len(places))
    rates["write 4 KiB + fsync /s"] = timed(synced, len(places[::10]))
    path.unlink()
    return rates


def small_files(top: Path, size: Size) -> Rates:
    """Files of 16 KiB: written, and read after the kernel forgot them."""
    data = os.urandom(16384)
    paths = [top / f"small{index}" for index in range(size.small)]

    def write() -> None:
        for path in paths:
            path.write_bytes(data)

    def read() -> None:
        for path in paths:
            path.read_bytes()

    rates = {"small files written /s": timed(write, len(paths))}
    for path in paths:
        forget(path)
    time.sleep(CACHES_EXPIRE_S)
    rates["small files read /s"] = timed(read, len(paths))
    for path in paths:
        path.unlink()
    return rates


def at_once(processes: int, job: Callable[[int], None]) -> None:
    """Run a job in some processes; return when all have ended well."""
    children = []
    for who in range(processes):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                job(who)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"a worker of the benchmark ended with {status}")


def metadata(top: Path, size: Size) -> Rates:
    """Create, stat, rename and unlink, by one and by four processes, each in its directory."""
    return {**_metadata(top, 1, size.names), **_metadata(top, 4, size.names // 4)}


def _metadata(top: Path, processes: int, each: int) -> Rates:
    for who in range(processes):
        (top / f"p{who}").mkdir()

    def path(who: int, index: int, kind: str = "n") -> str:
        return f"{top}/p{who}/{kind}{index}"

    def create(who: int) -> None:
        for index in range(each):
            os.close(os.open(path(who, index), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def stat(who: int) -> None:
        for index in range(each):
            os.stat(path(who, index))

    def rename(who: int) -> None:
        for index in range(each):
            os.rename(path(who, index), path(who, index, "r"))

    def unlink(who: int) -> None:
        for index in range(each):
            os.unlink(path(who, index, "r"))

    rates = {}
    for job in (create, stat, rename, unlink):
        if job is stat:
            time.sleep(CACHES_EXPIRE_S)
        work = partial(at_once, processes, job)
        rates[f"{job.__name__}, {processes} at once /s"] = timed(work, each * processes)
    for who in range(processes):
        (top / f"p{who}").rmdir()
    return rates


def listings(top: Path, size: Size) -> Rates:
    """One directory: names only, and names with attributes, after the caches expired."""
    where = top / "listed"
    where.mkdir()
    for index in range(size.listed):
        os.mknod(where / f"entry-{index:06}")

    def names() -> None:
        os.listdir(where)

    def attributes() -> None:
        for entry in os.scandir(where):
            entry.stat(follow_symlinks=False)

    time.sleep(CACHES_EXPIRE_S)
    rates = {"readdir entries/s": timed(names, size.listed)}
    time.sleep(CACHES_EXPIRE_S)
    rates["readdir + stat entries/s"] = timed(attributes, size.listed)
    for entry in list(os.scandir(where)):
        os.unlink(entry.path)
    where.rmdir()
    return rates


WORKLOADS = {
    "streams": streams,
    "random": randoms,
    "small": small_files,
    "metadata": metadata,
    "listings": listings,
}


def isolated(workload: Callable[[Path, Size], Rates], top: Path, size: Size) -> Rates:
    """Run a workload in a process of its own and return its rates."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writer, json.dumps(workload(top, size)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as source:
        answer = source.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{workload.__name__} on {top} ended with {status}")
    return json.loads(answer)


def compare(
    mounted: dict[str, Mounted], only: list[str], rounds: int, size: Size
) -> dict[str, dict[str, list[float]]]:
    """Return figure to program to its rates, one for each round."""
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        order = list(mounted) if number % 2 == 0 else list(reversed(mounted))
        for name in only:
            for who in order:
                top = mounted[who].path / f"{name}{number}"
                top.mkdir()
                for figure, rate in isolated(WORKLOADS[name], top, size).items():
                    found.setdefault(figure, {}).setdefault(who, []).append(rate)
                top.rmdir()
                if sys.stderr.isatty():
                    print(f"  round {number + 1} of {rounds}: {name} {who}", file=sys.stderr)
                time.sleep(0.3)
    return found


def bench_store(
    session: Session, clients: list[Client], kind: str, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Run all on one kind of store; print and return the table."""
    redis = RedisServer(session)
    weed = WeedServer(session) if kind == "s3" else None
    mounted = {}
    for db, client in enumerate(clients):
        storage = (
            Storage(bucket=weed.bucket()) if weed else Storage(directory=session.directory("o"))
        )
        client.format(redis.url(db), f"bench-{client.name}", storage, "--trash-days", "0")
        flags = ["--no-usage-report"] if client.name == "juicefs" else []
        mounted[client.name] = client.mount(redis.url(db), session.directory("m"), *flags)
    figures = compare(mounted, arguments.only, arguments.rounds, Size(quick=arguments.quick))
    for one in mounted.values():
        one.unmount()
    redis.service.end()
    if weed:
        weed.service.kill()
    return table(kind, figures)


def table(kind: str, figures: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Print medians and ratios; return them."""
    print(f"\nRedis + {kind}".ljust(34) + f"{'jfsd':>12}{'juicefs':>12}{'ratio':>9}")
    result = {}
    for figure, rates in figures.items():
        ours, theirs = (statistics.median(rates[who]) for who in ("jfsd", "juicefs"))
        result[figure] = {"jfsd": ours, "juicefs": theirs, "ratio": ours / theirs}
        print(f"{figure:<33}{ours:>12.1f}{theirs:>12.1f}{ours / theirs:>9.2f}")
    return result


def main() -> None:
    """Parse the command line, run, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=["file", "s3", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    session = Session()
    results = {}
    try:
        clients = [Jfsd(session), JuiceFS(session)]
        kinds = ["file", "s3"] if arguments.store == "both" else [arguments.store]
        for kind in kinds:
            results[kind] = bench_store(session, clients, kind, arguments)
    finally:
        session.close()
    text = json.dumps(results, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    else:
        print("\n" + text)


if __name__ == "__main__":
    main()
