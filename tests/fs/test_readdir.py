"""Listings: whole, while they change, and from any position."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from support.compare import Lab, compare
from support.posix import attempt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.volume import Volume

pytestmark = pytest.mark.promise(6)
MANY = 20_000
_libc = ctypes.CDLL(None, use_errno=True)
SYS_GETDENTS64 = 217


def entries(fd: int, size: int = 32768, limit: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Yield (name, position behind it) through getdents64, without `.` and `..`."""
    buffer = ctypes.create_string_buffer(size)
    count = 0
    while True:
        got = _libc.syscall(SYS_GETDENTS64, fd, buffer, size)
        assert got >= 0, os.strerror(ctypes.get_errno())
        if got == 0:
            return
        at = 0
        while at < got:
            _, position, length, _ = struct.unpack_from("QqHB", buffer, at)
            name = buffer.raw[at + 19 : at + length].split(b"\0", 1)[0]
            at += length
            if name not in (b".", b".."):
                yield name, position
                count += 1
                if count == limit:
                    return


def names(path: Path, size: int = 32768) -> list[bytes]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return [name for name, _ in entries(fd, size)]
    finally:
        os.close(fd)


@pytest.fixture
def many(work: Path) -> Path:
    for index in range(2000):
        os.symlink("x", work / f"stays{index}")
    return work


@pytest.mark.parametrize("size", [512, 4096, 1 << 20])
def test_every_entry_once_whatever_the_buffer(size: int, many: Path) -> None:
    found = names(many, size)
    assert len(found) == 2000
    assert set(found) == {b"stays%d" % i for i in range(2000)}


def test_positions_can_be_gone_back_to(many: Path) -> None:
    fd = os.open(many, os.O_RDONLY)
    whole = list(entries(fd))
    for start in (0, 1, 777, 1500, 1998, 1999):
        os.lseek(fd, whole[start][1], os.SEEK_SET)
        assert [n for n, _ in entries(fd)] == [n for n, _ in whole[start + 1 :]]
    os.lseek(fd, 0, os.SEEK_SET)
    assert list(entries(fd)) == whole
    os.close(fd)


@pytest.mark.jfsd_only
def test_positions_depend_only_on_the_name(many: Path) -> None:
    """A position taken on one descriptor is good on another, opened after changes."""
    fd = os.open(many, os.O_RDONLY)
    whole = list(entries(fd))
    os.close(fd)
    for index in range(500):
        os.symlink("x", many / f"new{index}")
    for name, _ in whole[:100:3]:
        os.unlink(os.path.join(os.fsencode(many), name))
    for start in (150, 999, 1700):
        fd = os.open(many, os.O_RDONLY)
        os.lseek(fd, whole[start][1], os.SEEK_SET)
        rest = [n for n, _ in entries(fd) if n.startswith(b"stays")]
        os.close(fd)
        assert rest == [n for n, _ in whole[start + 1 :]]


def test_a_rewound_listing_sees_changes(work: Path) -> None:
    (work / "a").touch()
    fd = os.open(work, os.O_RDONLY)
    assert [n for n, _ in entries(fd)] == [b"a"]
    (work / "b").touch()
    os.unlink(work / "a")
    os.lseek(fd, 0, os.SEEK_SET)
    assert [n for n, _ in entries(fd)] == [b"b"]
    os.close(fd)


def test_unchanging_entries_once_while_others_come_and_go(many: Path) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        index = 0
        try:
            while not stop.is_set():
                path = many / f"comes{index % 300}"
                if index // 300 % 2:
                    path.unlink(missing_ok=True)
                else:
                    os.symlink("x", path)
                index += 1
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=churn, name="churn")
    thread.start()
    try:
        for size in (1024, 4096, 32768) * 4:
            found = [n for n in names(many, size) if n.startswith(b"stays")]
            assert len(found) == 2000, "an entry was missed or doubled"
            assert len(set(found)) == 2000
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_removing_while_listing_removes_all(many: Path) -> None:
    """What `rm -r` does: list a part, remove it, go on."""
    fd = os.open(many, os.O_RDONLY)
    while batch := [n for n, _ in entries(fd, 2048, limit=50)]:
        for name in batch:
            os.unlink(name, dir_fd=fd)
        os.lseek(fd, 0, os.SEEK_SET)
    os.close(fd)
    assert os.listdir(many) == []


def test_types_and_inodes_are_those_of_stat(work: Path) -> None:
    (work / "f").touch()
    (work / "d").mkdir()
    os.symlink("f", work / "l")
    os.mkfifo(work / "p")
    os.mknod(work / "s", 0o140644)
    for entry in os.scandir(work):
        status = os.lstat(entry.path)
        assert entry.inode() == status.st_ino
        assert entry.stat(follow_symlinks=False).st_mode == status.st_mode
        assert entry.is_dir(follow_symlinks=False) == (entry.name == "d")
        assert entry.is_symlink() == (entry.name == "l")


@pytest.mark.jfsd_only
def test_a_removed_directory_that_is_open_is_empty_for_good(work: Path, ref: Path) -> None:
    """The reference knows nothing of it any more: even fstat is ENOENT."""

    def case(lab: Lab) -> None:
        os.mkdir(lab.path("d"))
        fd = lab.open("d", os.O_RDONLY)
        os.rmdir(lab.path("d"))
        lab.note("nlink", attempt(lambda: os.fstat(fd).st_nlink))
        lab.do(os.listdir, fd, note="listdir")
        lab.do(os.open, b"new", os.O_CREAT | os.O_WRONLY, dir_fd=fd, note="create")
        lab.do(os.mkdir, b"new", dir_fd=fd, note="mkdir")
        os.close(fd)

    compare(case, work, ref)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("volume", ["file"], indirect=True)
def test_many_entries(volume: Volume) -> None:
    """Twenty thousand entries: listed whole, with attributes, and removed."""
    mounted = volume.mount()
    top = mounted.path / "many"
    top.mkdir()
    for index in range(MANY):
        os.symlink("x", top / f"{index}")
    assert set(names(top)) == {b"%d" % i for i in range(MANY)}
    mounted = volume.remount(mounted)
    assert len({e.stat(follow_symlinks=False).st_ino for e in os.scandir(top)}) == MANY
    mounted.unmount()


def test_a_listing_under_way_takes_back_no_change(work: Path) -> None:
    """What is changed here meanwhile is not undone by attributes that were read before."""
    for index in range(1500):
        (work / f"f{index}").touch()
    time.sleep(1.2)  # the attributes of creation expire
    listing = os.scandir(work)
    for entry in islice(listing, 700):  # all with attributes, and more of these are on their way
        entry.stat()
    appended = [
        os.open(work / f"f{index}", os.O_WRONLY | os.O_APPEND) for index in range(0, 1500, 50)
    ]
    for fd in appended:
        os.write(fd, b"one ")
    for index in range(1, 1500, 50):
        os.chmod(work / f"f{index}", 0o751)
        os.link(work / f"f{index + 1}", work / f"link{index + 1}")
    for _ in listing:
        pass
    for fd in appended:
        os.write(fd, b"two")
        os.close(fd)
    for index in range(0, 1500, 50):
        assert (work / f"f{index}").read_bytes() == b"one two"
        assert stat.S_IMODE(os.stat(work / f"f{index + 1}").st_mode) == 0o751
        assert os.stat(work / f"f{index + 2}").st_nlink == 2
    listing.close()
