"""The format's limits, and one beyond."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.posix import KEEP_SIZE, PUNCH_HOLE, attempt, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.volume import Volume

pytestmark = pytest.mark.promise(16)
LARGEST = (1 << 57) - 1


def test_the_longest_file(work: Path) -> None:
    path = work / "f"
    path.write_bytes(b"begin")
    os.truncate(path, LARGEST)
    assert os.stat(path).st_size == LARGEST
    assert attempt(os.truncate, path, LARGEST + 1).error == "EFBIG"
    with open(path, "r+b", buffering=0) as file:
        fd = file.fileno()
        assert os.pread(fd, 10, 0) == b"begin" + bytes(5)
        assert os.pread(fd, 100, 1 << 56) == bytes(100)
        assert os.pwrite(fd, b"end", LARGEST - 3) == 3
        os.fsync(fd)
        assert attempt(os.pwrite, fd, b"xx", LARGEST).error == "EFBIG"
        assert attempt(os.ftruncate, fd, 1 << 60).error == "EFBIG"
        assert attempt(fallocate, fd, 0, LARGEST, 1).error == "EFBIG"
        assert attempt(fallocate, fd, KEEP_SIZE, 1 << 60, 1).error == "EFBIG"
        os.fsync(fd)
        assert os.fstat(fd).st_size == LARGEST
    os.truncate(path, 5)
    assert path.read_bytes() == b"begin"


@pytest.mark.jfsd_only
def test_the_last_byte_is_read(work: Path) -> None:
    """The reference answers EFBIG to a read whose request, rounded up, passes the limit."""
    with open(work / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        os.ftruncate(fd, LARGEST)
        assert os.pread(fd, 100, LARGEST - 7) == bytes(7)
        os.pwrite(fd, b"end", LARGEST - 3)
        assert os.pread(fd, 100, LARGEST - 7) == bytes(4) + b"end"


def test_sparse_to_the_last_chunk(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        offsets = [0, (1 << 26) - 2, (1 << 32) - 2, (1 << 40) - 2, (1 << 53) - 2, (1 << 56) - 2]
        for offset in offsets:
            os.pwrite(fd, b"abcd", offset)
        os.fsync(fd)
        for offset in offsets:
            assert os.pread(fd, 5, offset) == b"abcd\0"[: (1 << 56) + 2 - offset]
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, (1 << 40) - 1, 2)
        assert os.pread(fd, 4, (1 << 40) - 2) == b"a\0\0d"
        assert os.fstat(fd).st_size == (1 << 56) + 2


@pytest.mark.jfsd_only
def test_inode_quota_of_the_volume(new_volume: Callable[..., Volume]) -> None:
    """Exact here; the reference checks a counter that lags."""
    volume = new_volume("file", "--inodes", "20")
    top = volume.mount().path
    outcomes = [attempt(os.mkdir, top / str(i)).error for i in range(30)]
    assert outcomes[:20] == [None] * 20
    assert outcomes[20:] == ["ENOSPC"] * 10
    os.rmdir(top / "3")
    assert attempt(os.symlink, "x", top / "l").error is None
    assert attempt(os.mkfifo, top / "p").error == "ENOSPC"
    assert os.statvfs(top).f_ffree == 0


def test_capacity_of_the_volume(new_volume: Callable[..., Volume]) -> None:
    """Promise 15: what does not fit is an error at write, fsync or close."""
    volume = new_volume("file", "--capacity", "1")
    top = volume.mount().path
    (top / "small").write_bytes(b"x" * 100)
    assert attempt(os.truncate, top / "small", (1 << 30) + 4096).error == "ENOSPC"
    os.truncate(top / "small", (1 << 30) - (1 << 20))

    def fill() -> None:
        fd = os.open(top / "big", os.O_CREAT | os.O_WRONLY)
        try:
            for index in range(20):
                os.pwrite(fd, os.urandom(1 << 20), index << 20)
            os.fsync(fd)
        finally:
            os.close(fd)

    assert attempt(fill).error == "ENOSPC"
    os.unlink(top / "big")
    os.truncate(top / "small", 100)
    assert attempt(fill).error is None
    assert os.stat(top / "big").st_size == 20 << 20
