"""Random operations against a shadow: one file in depth, and a tree in breadth."""

from __future__ import annotations

import mmap
import os
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from support.model import TreeMachine
from support.posix import (
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    fallocate,
    isolated,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.volume import Volume

pytestmark = pytest.mark.promise(13)
PAGE = 4096


class Shadowed:
    """A file on the mount, two descriptors of it, and what it must contain."""

    def __init__(self, path: Path, seed: int, limit: int) -> None:
        self.path = path
        self.rng = random.Random(seed)
        self.limit = limit
        self.shadow = bytearray()
        self.other = bytearray()
        flags = os.O_CREAT | os.O_RDWR
        self.fds = [os.open(path, flags), os.open(path, flags)]
        self.second = os.open(path.with_name("second"), flags)
        self.log: list[str] = []

    def close(self) -> None:
        for fd in (*self.fds, self.second):
            os.close(fd)

    def span(self) -> tuple[int, int]:
        """A range that likes page, block and chunk edges."""
        rng = self.rng
        offset = rng.randrange(self.limit)
        if rng.random() < 0.3:
            edge = rng.choice([PAGE, 1 << 17, 4 << 20, 64 << 20])
            offset = max(0, offset // edge * edge + rng.choice([-1, 0, 0, 1]))
        length = rng.choice([1, 100, PAGE, 30_000, 200_000])
        length = rng.randrange(1, length + 1)
        return offset, min(length, self.limit - offset) or 1

    def put(self, offset: int, data: bytes, shadow: bytearray | None = None) -> None:
        shadow = self.shadow if shadow is None else shadow
        if offset > len(shadow):
            shadow.extend(bytes(offset - len(shadow)))
        shadow[offset : offset + len(data)] = data

    def write(self) -> None:
        offset, length = self.span()
        data = self.rng.randbytes(length)
        self.log.append(f"write {offset} {length}")
        assert os.pwrite(self.rng.choice(self.fds), data, offset) == length
        self.put(offset, data)

    def append(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(1, 9000))
        if len(self.shadow) + len(data) > self.limit:
            return
        self.log.append(f"append {len(data)}")
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.shadow += data

    def read(self) -> None:
        offset, length = self.span()
        self.log.append(f"read {offset} {length}")
        got = os.pread(self.rng.choice(self.fds), length, offset)
        assert got == self.shadow[offset : offset + length]

    def truncate(self) -> None:
        length = self.span()[0]
        self.log.append(f"truncate {length}")
        if self.rng.random() < 0.5:
            os.truncate(self.path, length)
        else:
            os.ftruncate(self.rng.choice(self.fds), length)
        if length < len(self.shadow):
            del self.shadow[length:]
        else:
            self.put(length, b"")

    def allocate(self) -> None:
        offset, length = self.span()
        mode = self.rng.choice([0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE])
        self.log.append(f"fallocate {mode} {offset} {length}")
        fallocate(self.rng.choice(self.fds), mode, offset, length)
        if not mode & KEEP_SIZE:
            self.put(max(len(self.shadow), offset + length), b"")
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(offset + length, len(self.shadow))
            if offset < end:
                self.shadow[offset:end] = bytes(end - offset)

    def map_read(self) -> None:
        self.log.append("mmap read")
        if self.shadow:
            with mmap.mmap(self.fds[0], len(self.shadow), prot=mmap.PROT_READ) as view:
                offset, length = self.span()
                assert view[offset : offset + length] == self.shadow[offset : offset + length]

    def map_write(self) -> None:
        offset, length = self.span()
        end = min(offset + length, len(self.shadow))
        self.log.append(f"mmap write {offset} {length}")
        if offset >= end:
            return
        data = self.rng.randbytes(end - offset)
        with mmap.mmap(self.fds[1], len(self.shadow)) as view:
            view[offset:end] = data
            if self.rng.random() < 0.5:
                view.flush()
        self.put(offset, data)

    def copy_range(self) -> None:
        source, length = self.span()
        target = self.span()[0]
        into_second = self.rng.random() < 0.5
        self.log.append(f"copy {source} {target} {length} {into_second}")
        if not into_second and abs(source - target) < length:
            return
        fd = self.second if into_second else self.fds[1]
        data = bytes(self.shadow[source : source + length])
        if target + len(data) > self.limit:
            return
        copied = os.copy_file_range(self.fds[0], fd, length, source, target)
        assert copied <= len(data)
        assert copied or not data
        if copied:
            self.put(target, data[:copied], self.other if into_second else self.shadow)

    def copy_back(self) -> None:
        self.log.append("copy back")
        offset = self.rng.randrange(len(self.other) + 1)
        data = bytes(self.other[offset : offset + 50_000])
        if offset + len(data) > self.limit or not data:
            return
        copied = os.copy_file_range(self.second, self.fds[0], len(data), offset, offset)
        self.put(offset, data[:copied])

    def sync(self) -> None:
        self.log.append("fsync")
        os.fsync(self.rng.choice(self.fds))

    def reopen(self) -> None:
        self.log.append("reopen")
        index = self.rng.randrange(2)
        os.close(self.fds[index])
        self.fds[index] = os.open(self.path, os.O_RDWR)

    def forget_pages(self) -> None:
        self.log.append("fadvise")
        os.fsync(self.fds[0])
        os.posix_fadvise(self.fds[0], 0, 0, os.POSIX_FADV_DONTNEED)

    def verify(self) -> None:
        assert os.stat(self.path).st_size == len(self.shadow)
        _same(self.path.read_bytes(), self.shadow)
        _same(self.path.with_name("second").read_bytes(), self.other)

    def step(self) -> None:
        operations = {
            self.write: 8, self.append: 2, self.read: 6, self.truncate: 2, self.allocate: 3,
            self.map_read: 2, self.map_write: 3, self.copy_range: 2, self.copy_back: 1,
            self.sync: 1, self.reopen: 1, self.forget_pages: 1,
        }  # fmt: skip
        [operation] = self.rng.choices(list(operations), operations.values())
        operation()


def _same(got: bytes, expected: bytearray) -> None:
    if got != expected:
        first = next(
            (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None
        )
        raise AssertionError(f"lengths {len(got)} {len(expected)}, first difference at {first}")


def torture(path: Path, seed: int, limit: int, steps: int) -> tuple[bytearray, bytearray]:
    """Do random steps in a process of its own; return what both files must contain."""
    return isolated(lambda: _torture(path, seed, limit, steps))


def _torture(path: Path, seed: int, limit: int, steps: int) -> tuple[bytearray, bytearray]:
    file = Shadowed(path, seed, limit)
    try:
        for index in range(steps):
            file.step()
            if index % 200 == 199:
                file.verify()
        file.verify()
    except (AssertionError, OSError) as error:
        tail = "\n".join(file.log[-30:])
        raise AssertionError(f"seed {seed}, step {len(file.log)}: {error}\n{tail}") from error
    finally:
        file.close()
    return file.shadow, file.other


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [300_000, 9 << 20])
def test_one_file_like_its_shadow(limit: int, seed: int, work: Path) -> None:
    torture(work / "file", seed * 1000 + limit, limit, 500)


def test_across_chunks(work: Path) -> None:
    torture(work / "file", 5, (64 << 20) + (1 << 20), 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 110))
def test_one_file_for_long(seed: int, work: Path) -> None:
    torture(work / "file", seed, 20 << 20, 4000)


FORMATS = [
    ("file", "--compress", "lz4"),
    ("file", "--compress", "zstd", "--hash-prefix"),
    ("file", "--block-size", "64K"),
    ("s3",),
]


@pytest.mark.parametrize("flags", FORMATS, ids="-".join)
def test_the_shadow_survives_a_remount(
    flags: tuple[str, ...], new_volume: Callable[..., Volume]
) -> None:
    """Every way of storing blocks: random operations, a cold mount, the same bytes."""
    volume = new_volume(*flags)
    mounted = volume.mount()
    shadow, other = torture(mounted.path / "file", 77, 6 << 20, 250)
    mounted = volume.remount(mounted)
    _same((mounted.path / "file").read_bytes(), shadow)
    _same((mounted.path / "second").read_bytes(), other)
    mounted.unmount()
    volume.check()


def test_a_tree_like_its_reference(work: Path, ref: Path) -> None:
    machine = type("Machine", (TreeMachine,), {"work": work, "ref": ref})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
