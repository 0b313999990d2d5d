"""What the benchmark lets programs do; each function returns its figures."""

from __future__ import annotations

import mmap
import os
import random
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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


CPU = "CPU us: "
"""Before the name of a figure: microseconds of the server's processors for one thing done."""
SERVERS: list[int] = []
"""Processes that serve the mount which is being measured."""


def cpu_ns() -> int:
    """Return the processor time that the servers have used."""
    total = 0
    for pid in SERVERS:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue  # the thread has ended
    return total


def timed(rates: Rates, name: str, work: Callable[[], object], count: float) -> None:
    """Note the rate at which `work` does its `count` things, and what it costs the server."""
    used, began = cpu_ns(), time.perf_counter()
    work()
    took = time.perf_counter() - began
    rates[name] = count / took
    rates[CPU + name] = (cpu_ns() - used) / 1000 / count


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

    rates: Rates = {}
    timed(rates, "sequential write MiB/s", write, size.stream_mib)
    forget(path)
    timed(rates, "sequential read, cold MiB/s", read, size.stream_mib)
    forget(path)
    timed(rates, "sequential read, again MiB/s", read, size.stream_mib)
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

    def direct() -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        for place in places:
            os.preadv(fd, [buffer], place)
        os.close(fd)

    def synced() -> None:
        fd = os.open(path, os.O_WRONLY)
        for place in places[::10]:
            os.pwrite(fd, page, place)
            os.fsync(fd)
        os.close(fd)

    forget(path)
    rates: Rates = {}
    timed(rates, "random read 4 KiB /s", read, len(places))
    timed(rates, "random read 4 KiB O_DIRECT /s", direct, len(places))
    timed(rates, "random write 4 KiB, fsync at the end /s", write, len(places))
    timed(rates, "write 4 KiB + fsync /s", synced, len(places[::10]))
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

    rates: Rates = {}
    timed(rates, "small files written /s", write, len(paths))
    for path in paths:
        forget(path)
    time.sleep(CACHES_EXPIRE_S)
    timed(rates, "small files read /s", read, len(paths))
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

    rates: Rates = {}
    for job in (create, stat, rename, unlink):
        if job is stat:
            time.sleep(CACHES_EXPIRE_S)
        work = partial(at_once, processes, job)
        timed(rates, f"{job.__name__}, {processes} at once /s", work, each * processes)
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
    rates: Rates = {}
    timed(rates, "readdir entries/s", names, size.listed)
    time.sleep(CACHES_EXPIRE_S)
    timed(rates, "readdir + stat entries/s", attributes, size.listed)
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
