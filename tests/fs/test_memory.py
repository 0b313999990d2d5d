"""Memory is bounded by the configuration: buffer + cache + 100 MiB (promise 19)."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.clients import Mounted
    from support.volume import Volume

pytestmark = [pytest.mark.promise(19), pytest.mark.timeout(280), pytest.mark.jfsd_only]
MIB = 1 << 20
BUFFER_MIB = 60
LIMIT_MIB = BUFFER_MIB + 100


def peak_mib(mounted: Mounted) -> float:
    """The largest resident size that the serving process has had."""
    status = Path(f"/proc/{mounted.serving_pid()}/status").read_text()
    [line] = [x for x in status.splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def write(path: Path, size_mib: int) -> None:
    block = os.urandom(MIB)
    with open(path, "wb", buffering=0) as file:
        left = size_mib
        while left:
            assert file.write(block[left % 4096 :] + block[: left % 4096]) == MIB
            left -= 1


def stream(mounted: Mounted, size_mib: int) -> None:
    write(mounted.path / "big", size_mib)
    fd = os.open(mounted.path / "big", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    total = 0
    while got := os.read(fd, MIB):
        total += len(got)
    os.close(fd)
    assert total == size_mib * MIB
    assert peak_mib(mounted) < LIMIT_MIB


@pytest.mark.parametrize(("kind", "size_mib"), [("file", 500), ("s3", 250)])
def test_a_sequential_write_and_read(
    kind: str, size_mib: int, new_volume: Callable[..., Volume]
) -> None:
    mounted = new_volume(kind).mount("--buffer-size", f"{BUFFER_MIB}M")
    stream(mounted, size_mib)
    os.unlink(mounted.path / "big")
    mounted.unmount()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_gigabytes(new_volume: Callable[..., Volume]) -> None:
    mounted = new_volume("file").mount("--buffer-size", f"{BUFFER_MIB}M")
    stream(mounted, 10 * 1024)
    mounted.unmount()


EACH = 5000
"""Open files of one process; below any usual limit of descriptors."""


def hold_open(mounted: Mounted, count: int) -> None:
    """Keep `count` files open at once, in some processes, a tenth of them written to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, EACH + 500), hard))
    ready, tell = os.pipe()
    gate, hold = os.pipe()
    children = []
    for who in range(count // EACH):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(hold)
                fds = _open_all(mounted.path / f"d{who}")
                os.write(tell, b"x")
                os.read(gate, 1)
                assert all(os.pread(fds[i], 20, 0) == b"%d" % i for i in range(0, EACH, 10))
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    os.close(tell)
    told = sum(len(os.read(ready, 1)) for _ in children)
    peak = peak_mib(mounted)
    for fd in (gate, hold, ready):
        os.close(fd)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert told == len(children)
    assert statuses == [0] * len(children)
    assert peak < LIMIT_MIB


def _open_all(top: Path) -> list[int]:
    top.mkdir()
    fds = []
    for index in range(EACH):
        fds.append(os.open(top / str(index), os.O_CREAT | os.O_RDWR))
        if index % 10 == 0:
            os.pwrite(fds[-1], b"%d" % index, 0)
    return fds


def test_many_open_files(new_volume: Callable[..., Volume]) -> None:
    mounted = new_volume("file").mount("--buffer-size", f"{BUFFER_MIB}M")
    hold_open(mounted, 5000)
    mounted.unmount()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_open_files(new_volume: Callable[..., Volume]) -> None:
    mounted = new_volume("file").mount("--buffer-size", f"{BUFFER_MIB}M")
    hold_open(mounted, 100_000)
    mounted.unmount()


def test_writing_many_files_at_once_against_a_slow_store(
    new_volume: Callable[..., Volume],
) -> None:
    """Back-pressure: an upload limit, and 64 writers that want more than the buffer."""
    mounted = new_volume("file").mount("--buffer-size", f"{BUFFER_MIB}M", "--upload-limit", "400")
    block = os.urandom(256 << 10)
    fds = [os.open(mounted.path / f"f{i}", os.O_CREAT | os.O_WRONLY) for i in range(64)]
    for round_ in range(16):
        for fd in fds:
            os.pwrite(fd, block, round_ * len(block))
    for fd in fds:
        os.close(fd)
    assert peak_mib(mounted) < LIMIT_MIB
    assert (mounted.path / "f63").read_bytes() == block * 16
    mounted.unmount()
