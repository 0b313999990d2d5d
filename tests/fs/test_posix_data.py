"""Contents: reading, writing, cutting, mapping, compared with the machine's own file system."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
from typing import TYPE_CHECKING

import pytest
from support.compare import Lab, compare
from support.posix import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    attempt,
    fallocate,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.clients import Mounted
    from support.volume import Volume

pytestmark = pytest.mark.promise(13)
BLOCK, CHUNK = 4 << 20, 64 << 20
RNG = random.Random(7)
NOISE = RNG.randbytes(1 << 20)


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that differ for each seed and position."""
    start = seed * 7919 % 65536
    return (NOISE[start:] + NOISE * (length // len(NOISE) + 1))[:length]


def written(lab: Lab, name: str, *pieces: tuple[int, int]) -> None:
    fd = lab.open(name, os.O_CREAT | os.O_RDWR)
    for index, (offset, length) in enumerate(pieces):
        view = memoryview(noise(length, index))
        done = 0
        while done < length:
            done += os.pwrite(fd, view[done:], offset + done)
    os.close(fd)


EDGES = [
    [(0, 1)],
    [(0, 4096), (4096, 4096)],
    [(1, 5000), (0, 2), (4999, 100)],
    [(BLOCK - 1, 2)],
    [(BLOCK - 10, 20), (0, 5), (2 * BLOCK, 1)],
    [(CHUNK - 3, 6)],
    [(CHUNK - BLOCK - 1, BLOCK + 2), (CHUNK + 5, 1)],
    [(i * 1000, 1500) for i in range(50)],
    [((49 - i) * 1000, 1500) for i in range(50)],
    [(0, 3 * BLOCK + 17), (BLOCK + 1, BLOCK), (5, 100)],
]


@pytest.mark.parametrize("pieces", EDGES, ids=lambda p: f"{len(p)}at{p[0][0]}")
def test_writes_read_back(pieces: list[tuple[int, int]], work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "f", *pieces)
        lab.do(os.stat, "f")
        with open(lab.path("f"), "rb") as file:
            for offset, length in pieces:
                lab.note("pread", os.pread(file.fileno(), length + 9, max(0, offset - 5)))

    compare(case, work, ref)


@pytest.mark.parametrize("first", [0, 1, 4096, 100_000, BLOCK, BLOCK + 1])
def test_truncate_both_ways(first: int, work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "f", (0, first))
        for length in (10, 5000, 3, BLOCK + 100, BLOCK - 1, CHUNK + 1, CHUNK, 4096, 0, 77):
            lab.do(os.truncate, "f", length)
            lab.do(os.stat, "f")
            with open(lab.path("f"), "rb") as file:
                lab.note(f"after {length}", file.read(200))

    compare(case, work, ref)


def test_what_was_cut_off_reads_zero_when_the_file_grows(work: Path) -> None:
    path = work / "f"
    path.write_bytes(noise(3 * BLOCK))
    os.truncate(path, BLOCK + 5)
    os.truncate(path, 3 * BLOCK)
    content = path.read_bytes()
    assert content[: BLOCK + 5] == noise(3 * BLOCK)[: BLOCK + 5]
    assert not any(content[BLOCK + 5 :])


def test_truncate_through_an_open_file_with_unflushed_writes(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        fd = lab.open("f", os.O_CREAT | os.O_RDWR)
        for length in (100, 5, 6000, 0, 8192):
            os.pwrite(fd, noise(3000, length), length // 2)
            os.ftruncate(fd, length)
            lab.note(f"{length}", (os.fstat(fd).st_size, os.pread(fd, 10000, 0)))
            os.pwrite(fd, b"tail", length + 10)
        os.close(fd)
        lab.note("end", os.stat(lab.path("f")).st_size)

    compare(case, work, ref)


def test_append_from_two_descriptors(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        one = lab.open("f", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        two = lab.open("f", os.O_WRONLY | os.O_APPEND)
        three = lab.open("f", os.O_RDWR)
        for index in range(40):
            os.write((one, two)[index % 2], b"%d," % index)
            if index % 10 == 5:
                os.pwrite(three, b"X", index)
            if index == 20:
                os.ftruncate(three, 7)
        for fd in (one, two, three):
            os.close(fd)
        with open(lab.path("f"), "rb") as file:
            lab.note("content", file.read())

    compare(case, work, ref)


def test_appends_of_processes_never_overwrite_each_other(work: Path) -> None:
    path = work / "log"
    path.touch()
    children = []
    for who in range(4):
        child = os.fork()
        if child == 0:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            for index in range(200):
                os.write(fd, b"%d %03d\n" % (who, index))
            os.close(fd)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(c, 0)[1] for c in children] == [0] * 4
    lines = path.read_bytes().splitlines()
    for who in range(4):
        assert [x for x in lines if x.startswith(b"%d " % who)] == [
            b"%d %03d" % (who, i) for i in range(200)
        ]
    assert len(lines) == 800


FALLOCATE = [
    (0, 0, 1), (0, 5000, 5000), (KEEP_SIZE, 100, 9000), (PUNCH_HOLE | KEEP_SIZE, 1000, 2000),
    (PUNCH_HOLE | KEEP_SIZE, 9000, 99999), (ZERO_RANGE, 9990, 100), (ZERO_RANGE | KEEP_SIZE, 0, 10),
    (ZERO_RANGE | KEEP_SIZE, 20000, 10), (PUNCH_HOLE, 0, 10), (0, 0, 0), (0, -1, 5), (0, 5, -1),
    (PUNCH_HOLE | KEEP_SIZE, 0, 0), (0, BLOCK, BLOCK), (PUNCH_HOLE | KEEP_SIZE, 3, BLOCK * 2),
    (PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE, 0, 5), (COLLAPSE_RANGE | KEEP_SIZE, 0, 4096),
]  # fmt: skip


@pytest.mark.parametrize("step", FALLOCATE, ids=str)
def test_fallocate(step: tuple[int, int, int], work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "f", (0, 10000))
        os.mkfifo(lab.path("fifo"))
        for name, flags in (("f", os.O_RDWR), ("f", os.O_RDONLY), ("fifo", os.O_RDWR), (".", 0)):
            fd = lab.open(name, flags)
            lab.do(fallocate, fd, *step, note=f"{name} {flags}")
            lab.note("size", 0 if name == "." else os.fstat(fd).st_size)
            os.close(fd)
        written(lab, "g", (0, 100))
        fd = lab.open("g", os.O_RDWR)
        os.pwrite(fd, b"unflushed" * 1000, 50)
        lab.do(fallocate, fd, *step, note="unflushed")
        lab.note("content", os.pread(fd, 30000, 0))
        os.close(fd)

    compare(case, work, ref)


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE])
def test_fallocate_refuses_what_the_format_cannot_say(mode: int, work: Path) -> None:
    (work / "f").write_bytes(noise(1 << 16))
    with open(work / "f", "r+b") as file, pytest.raises(OSError, match="support") as caught:
        fallocate(file.fileno(), mode, 0, 4096)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert (work / "f").read_bytes() == noise(1 << 16)


def test_punched_holes_across_chunks(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "f", (CHUNK - 100_000, 200_000))
        fd = lab.open("f", os.O_RDWR)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, CHUNK - 5000, 9000)
        fallocate(fd, ZERO_RANGE, CHUNK + 50_000, 100_000)
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, CHUNK - 90_000)
        lab.note("content", os.pread(fd, 300_000, CHUNK - 110_000))
        os.close(fd)
        lab.do(os.stat, "f")

    compare(case, work, ref)


def test_seek_hole_and_data(work: Path) -> None:
    with open(work / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, noise(8192), 1 << 20)
        os.ftruncate(fd, 4 << 20)
        os.fsync(fd)
        assert os.lseek(fd, (1 << 20) + 5, os.SEEK_DATA) == (1 << 20) + 5
        hole = os.lseek(fd, 1 << 20, os.SEEK_HOLE)
        assert (1 << 20) + 8192 <= hole <= 4 << 20
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert attempt(os.lseek, fd, 4 << 20, whence).error == "ENXIO"
            assert attempt(os.lseek, fd, 1 << 40, whence).error == "ENXIO"


@pytest.mark.jfsd_only
def test_seek_data_skips_holes(work: Path) -> None:
    """The reference reports no holes at all."""
    with open(work / "f", "w+b", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, noise(8192), 1 << 20)
        os.pwrite(fd, noise(100), CHUNK + 4096)
        os.ftruncate(fd, 2 * CHUNK)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
        assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 8192
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, (1 << 20) + 8192, os.SEEK_DATA) == CHUNK + 4096
        assert os.lseek(fd, CHUNK + 4096, os.SEEK_HOLE) == CHUNK + 4196
        assert attempt(os.lseek, fd, CHUNK + 4196, os.SEEK_DATA).error == "ENXIO"


COPIES = [
    (0, 0, 1000), (0, 5000, 10_000), (100, 20_000, 500), (0, BLOCK - 5, 10), (3, CHUNK - 7, 5000),
    (9999, 0, 10), (10_000, 0, 10), (20_000, 0, 10), (0, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("step", COPIES, ids=str)
def test_copy_file_range(step: tuple[int, int, int], work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "a", (0, 10_000))
        written(lab, "b", (0, 300))
        one, two = lab.open("a", os.O_RDWR), lab.open("b", os.O_RDWR)
        os.pwrite(one, b"unflushed", 50)
        source, target, length = step
        lab.do(os.copy_file_range, one, two, length, source, target, note="copy")
        lab.note("sizes", (os.fstat(one).st_size, os.fstat(two).st_size))
        lab.note("content", os.pread(two, 20_000, max(0, target - 100)))
        os.pwrite(one, b"later", 0)
        os.pwrite(two, b"LATER", target)
        os.close(one)
        os.close(two)

    compare(case, work, ref)


def test_copy_file_range_within_a_file_and_wrong_files(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "a", (0, 10_000))
        fd = lab.open("a", os.O_RDWR)
        lab.do(os.copy_file_range, fd, fd, 1000, 0, 5000, note="apart")
        lab.do(os.copy_file_range, fd, fd, 1000, 0, 500, note="overlap")
        lab.do(os.copy_file_range, fd, fd, 1000, 0, 999, note="touch")
        lab.do(os.copy_file_range, fd, fd, 5000, 9000, 20_000, note="beyond")
        read_only, append = lab.open("a", os.O_RDONLY), lab.open("a", os.O_WRONLY | os.O_APPEND)
        directory = lab.open(".", os.O_RDONLY)
        lab.do(os.copy_file_range, fd, read_only, 10, 0, 0, note="read-only target")
        lab.do(os.copy_file_range, append, fd, 10, 0, 0, note="write-only source")
        lab.do(os.copy_file_range, fd, append, 10, 0, 0, note="append target")
        lab.do(os.copy_file_range, directory, fd, 10, 0, 0, note="directory")
        for one in (fd, read_only, append, directory):
            os.close(one)

    compare(case, work, ref)


def test_open_unlinked_files_live_on(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("a", b"first")
        lab.make("b", b"other")
        fd = lab.open("a", os.O_RDWR)
        os.unlink(lab.path("a"))
        over = lab.open("b", os.O_RDWR)
        lab.make("c", b"new")
        os.rename(lab.path("c"), lab.path("b"))
        for one in (fd, over):
            lab.note("nlink", os.fstat(one).st_nlink)
            os.pwrite(one, noise(10_000), 3)
            os.ftruncate(one, 5000)
            os.fsync(one)
            os.fchmod(one, 0o600)
            lab.note("content", os.pread(one, 10_000, 0))
            lab.note("mode", oct(os.fstat(one).st_mode))
            again = attempt(os.open, b"/proc/self/fd/%d" % one, os.O_RDONLY)
            lab.note("reopen", again.error)
            if again.error is None:
                os.close(again.result)
        os.close(fd)
        os.close(over)

    compare(case, work, ref)


def test_wrong_descriptors(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("f", b"x" * 100)
        read, write = lab.open("f", os.O_RDONLY), lab.open("f", os.O_WRONLY)
        top = lab.open(".", os.O_RDONLY)
        for fd, who in ((read, "read"), (write, "write"), (top, "directory")):
            lab.do(os.pread, fd, 5, 0, note=f"{who} pread")
            lab.do(os.pwrite, fd, b"y", 0, note=f"{who} pwrite")
            lab.do(os.ftruncate, fd, 5, note=f"{who} ftruncate")
            lab.do(os.fsync, fd, note=f"{who} fsync")
            lab.do(os.pread, fd, 5, -1, note=f"{who} negative")
            os.close(fd)

    compare(case, work, ref)


def test_utimes(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("f")
        os.mkdir(lab.path("d"))
        os.symlink(b"f", lab.path("l"))
        for name in ("f", "d", "l"):
            for ns in ((0, 0), (1, 999_999_999), (1 << 60, 3 << 58)):
                os.utime(lab.path(name), ns=ns, follow_symlinks=False)
                status = os.lstat(lab.path(name))
                lab.note(f"{name} {ns}", (status.st_atime_ns, status.st_mtime_ns))
        lab.do_as(999, lambda p: os.utime(p, (1, 1)), "f")
        lab.do_as(999, os.utime, "f")
        os.chmod(lab.path("f"), 0o666)
        lab.do_as(999, lambda p: os.utime(p, (1, 1)), "f")
        lab.do_as(999, os.utime, "f")

    compare(case, work, ref)


@pytest.mark.jfsd_only
def test_times_before_1970(work: Path) -> None:
    """The record's seconds are signed; the reference takes negative ones for "now"."""
    (work / "f").touch()
    os.utime(work / "f", ns=(-1, -2_000_000_001))
    status = os.stat(work / "f")
    assert (status.st_atime_ns, status.st_mtime_ns) == (-1, -2_000_000_001)


def test_when_mtime_and_ctime_change(work: Path, ref: Path) -> None:
    import time

    def case(lab: Lab) -> None:
        lab.make("f", b"content")
        fd = lab.open("f", os.O_RDWR)
        steps: list[tuple[str, Callable[[], object]]] = [
            ("write", lambda: (os.pwrite(fd, b"x", 0), os.fsync(fd))),
            ("ftruncate", lambda: os.ftruncate(fd, 3)),
            ("read", lambda: os.pread(fd, 3, 0)),
            ("chmod", lambda: os.fchmod(fd, 0o600)),
            ("chown", lambda: os.fchown(fd, 5, 5)),
            ("link", lambda: os.link(lab.path("f"), lab.path("g"))),
            ("rename", lambda: os.rename(lab.path("g"), lab.path("h"))),
            ("unlink", lambda: os.unlink(lab.path("h"))),
            ("fallocate", lambda: fallocate(fd, 0, 0, 100)),
            ("punch", lambda: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 10)),
            ("open", lambda: lab.try_open("f", os.O_RDONLY)),
            ("trunc", lambda: lab.try_open("f", os.O_WRONLY | os.O_TRUNC)),
        ]
        for what, step in steps:
            os.utime(fd, ns=(5, 5))
            old = os.fstat(fd)
            time.sleep(0.015)
            step()
            new = os.fstat(fd)
            changed = (new.st_mtime_ns != old.st_mtime_ns, new.st_ctime_ns != old.st_ctime_ns)
            lab.note(what, changed)
        os.close(fd)

    compare(case, work, ref)


def test_setuid_bits_fall_when_others_write_or_own(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        def write(path: bytes) -> None:
            with open(path, "r+b", buffering=0) as file:
                file.write(b"x")

        def allocate(path: bytes) -> None:
            with open(path, "r+b", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, 10_000)

        def copy(path: bytes) -> None:
            with open(path, "r+b", buffering=0) as file:
                os.copy_file_range(file.fileno(), file.fileno(), 3, 0, 4)

        for mode in (0o6777, 0o2775, 0o4711, 0o4766):
            for name in (f"{kind}{mode}" for kind in "wtcrfx"):
                lab.make(name, b"content", mode)
                os.chmod(lab.path(name), mode)
            lab.do_as(999, write, f"w{mode}")
            lab.do_as(999, lambda p: os.truncate(p, 2), f"t{mode}")
            lab.do_as(999, allocate, f"f{mode}")
            lab.do_as(999, copy, f"x{mode}")
            lab.do(os.chown, f"c{mode}", 7, 7)
            write(lab.path(f"r{mode}"))
            for kind in "wtcrfx":
                lab.do(os.stat, f"{kind}{mode}")

    compare(case, work, ref)


def test_shared_mappings_are_the_file(work: Path) -> None:
    path = work / "f"
    path.write_bytes(noise(3 * 4096 + 100))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as one:
        one[4090:4100] = b"0123456789"
        assert os.pread(file.fileno(), 10, 4090) == b"0123456789"
        os.pwrite(file.fileno(), b"WRITTEN", 8190)
        assert one[8190:8197] == b"WRITTEN"
        one.flush()
        os.truncate(path, 4 * 4096)
    expected = bytearray(noise(3 * 4096 + 100))
    expected[4090:4100], expected[8190:8197] = b"0123456789", b"WRITTEN"
    assert path.read_bytes() == bytes(expected) + bytes(4 * 4096 - len(expected))


def test_private_mappings_stay_private(work: Path) -> None:
    path = work / "f"
    path.write_bytes(bytes(8192))
    with open(path, "r+b") as file:
        flags = mmap.MAP_PRIVATE
        with mmap.mmap(file.fileno(), 8192, flags, mmap.PROT_READ | mmap.PROT_WRITE) as one:
            one[:5] = b"mine!"
    assert path.read_bytes() == bytes(8192)


def test_direct_io_and_buffered_io_agree(work: Path) -> None:
    path = work / "f"
    size = 3 * BLOCK
    with mmap.mmap(-1, size) as aligned:
        aligned[:] = noise(size)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        view = memoryview(aligned)
        offset = 0
        while offset < size:
            offset += os.pwrite(fd, view[offset : offset + (1 << 20)], offset)
        assert path.read_bytes() == noise(size)
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"buffered", BLOCK + 4096)
            got = os.preadv(fd, [view[:8192]], BLOCK + 4096)
        assert got == 8192
        assert view[:8] == b"buffered"
        view.release()
        os.close(fd)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_synchronous_writes_are_there_for_another_mount(
    flag: int, shared_volume: Volume, shared_mount: Mounted, work: Path
) -> None:
    other = shared_volume.mount()
    fd = os.open(work / "f", os.O_CREAT | os.O_WRONLY | flag)
    os.write(fd, noise(100_000))
    seen = other.path / work.relative_to(shared_mount.path) / "f"
    assert seen.read_bytes() == noise(100_000)
    os.close(fd)
    other.unmount()
    shared_volume.mounted.remove(other)


def test_close_to_open(shared_volume: Volume, shared_mount: Mounted, work: Path) -> None:
    """What was closed on one mount is what another mount opens (promise 14)."""
    other = shared_volume.mount()
    there = other.path / work.relative_to(shared_mount.path)
    for index in range(20):
        content = noise(5000 + index * 997, index)
        (work / "f").write_bytes(content)
        assert (there / "f").read_bytes() == content
        (there / "f").write_bytes(content[::-1])
        assert (work / "f").read_bytes() == content[::-1]
    other.unmount()
    shared_volume.mounted.remove(other)


def test_reads_beyond_the_end(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        written(lab, "f", (0, 5000))
        fd = lab.open("f", os.O_RDONLY)
        for offset in (4990, 5000, 5001, 1 << 30, (1 << 57) - 1):
            lab.do(os.pread, fd, 100, offset, note=str(offset))
        os.close(fd)

    compare(case, work, ref)


def test_vectors_and_whole_file_copies(work: Path) -> None:
    fd = os.open(work / "f", os.O_CREAT | os.O_RDWR)
    parts = [noise(n, n) for n in (1, 5000, 70_000, 0, 333)]
    assert os.pwritev(fd, parts, 11) == sum(map(len, parts))
    buffers = [bytearray(n) for n in (11, 5001, 70_333)]
    assert os.preadv(fd, buffers, 0) == 11 + 5001 + 70_333
    assert b"".join(buffers) == bytes(11) + b"".join(parts)
    out = os.open(work / "g", os.O_CREAT | os.O_RDWR)
    sent = 0
    while sent < 75_345:
        sent += os.sendfile(out, fd, sent, 75_345 - sent)
    assert os.pread(out, 80_000, 0) == os.pread(fd, 80_000, 0)
    os.close(fd)
    os.close(out)


def test_descriptor_flags(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        fd = lab.open("f", os.O_CREAT | os.O_RDWR | os.O_APPEND)
        os.write(fd, b"abc")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"X", 0)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"end")
        lab.note("offset", os.lseek(fd, 0, os.SEEK_CUR))
        os.close(fd)
        lab.do(os.stat, "f")

    compare(case, work, ref)
