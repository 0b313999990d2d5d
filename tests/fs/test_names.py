"""Names of every byte and length."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.posix import attempt

if TYPE_CHECKING:
    from pathlib import Path

    from support.volume import Volume

pytestmark = pytest.mark.promise(16)


def test_every_byte_may_be_in_a_name(work: Path) -> None:
    top = os.fsencode(work)
    names = {bytes([b]) for b in range(1, 256)} - {b"/", b"."}
    names |= {
        b"\xff\xfe",
        b"a\xc3",
        "ü".encode(),
        b"u\xcc\x88",
        b"...",
        b"..x",
        b" ",
        b"\n",
        b"*?[",
    }
    for name in names:
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
    assert set(os.listdir(top)) == names
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name
        os.rename(top + b"/" + name, top + b"/new" + name)
        os.unlink(top + b"/new" + name)
    assert os.listdir(top) == []


def test_names_are_bytes_not_text(work: Path) -> None:
    """No folding of case and no normal form of Unicode."""
    for name in (b"A", b"a", "ü".encode(), "u\u0308".encode(), b"\xfc"):
        os.mkdir(os.fsencode(work) + b"/" + name)
    assert len(os.listdir(work)) == 5


@pytest.mark.parametrize("unit", [b"n", "ü".encode(), b"\xff"])
def test_255_bytes_work_and_256_do_not(unit: bytes, work: Path) -> None:
    top = os.fsencode(work) + b"/"
    longest = (unit * 255)[:255]
    over = longest + b"x"
    os.mkdir(top + longest)
    assert os.listdir(top) == [longest]
    for call in (
        os.mkdir,
        lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY)),
        lambda p: os.symlink(b"x", p),
        os.mkfifo,
        lambda p: os.rename(top + longest, p),
        lambda p: os.link(top + b"file", p),
        os.stat,
        os.unlink,
        os.rmdir,
    ):
        (work / "file").touch()
        assert attempt(call, top + over).error == "ENAMETOOLONG"
    os.rename(top + longest, top + b"x" + longest[1:])
    os.rmdir(top + b"x" + longest[1:])


def test_symlink_targets(work: Path) -> None:
    top = os.fsencode(work) + b"/"
    for index, target in enumerate((b"x", b"\xff\xfe", b"t" * 4095, b"/" * 4095)):
        os.symlink(target, top + b"%d" % index)
        assert os.readlink(top + b"%d" % index) == target
        assert os.lstat(top + b"%d" % index).st_size == len(target)
    assert attempt(os.symlink, b"t" * 4096, top + b"long").error == "ENAMETOOLONG"
    assert attempt(os.symlink, b"", top + b"empty").error == "ENOENT"


def test_deep_paths(work: Path) -> None:
    """Deeper than one path can say: 100 levels of 200 bytes."""
    fds = [os.open(work, os.O_RDONLY)]
    for level in range(100):
        name = b"%03d" % level + b"d" * 197
        os.mkdir(name, dir_fd=fds[-1])
        fds.append(os.open(name, os.O_RDONLY, dir_fd=fds[-1]))
    fd = os.open(b"bottom", os.O_CREAT | os.O_RDWR, dir_fd=fds[-1])
    os.write(fd, b"deep")
    assert os.pread(fd, 9, 0) == b"deep"
    os.close(fd)
    os.unlink(b"bottom", dir_fd=fds[-1])
    for level in reversed(range(100)):
        os.close(fds.pop())
        os.rmdir(b"%03d" % level + b"d" * 197, dir_fd=fds[-1])
    os.close(fds.pop())


def test_dot_dot_is_the_parent(work: Path) -> None:
    os.makedirs(work / "a/b")
    os.makedirs(work / "c")
    fd = os.open(work / "a/b", os.O_RDONLY)
    assert os.stat("..", dir_fd=fd).st_ino == os.stat(work / "a").st_ino
    os.rename(work / "a/b", work / "c/b")
    assert os.stat("..", dir_fd=fd).st_ino == os.stat(work / "c").st_ino
    os.close(fd)
    entries = {e.name: e.inode() for e in os.scandir(work / "c")}
    assert entries["b"] == os.stat(work / "c/b").st_ino


def test_names_survive_a_remount(volume: Volume) -> None:
    mounted = volume.mount()
    names = [b"\xff", "ü".encode(), b"n" * 255, b" lead", b"a\nb"]
    for name in names:
        os.symlink(name, os.fsencode(mounted.path) + b"/" + name)
    mounted = volume.remount(mounted)
    top = os.fsencode(mounted.path) + b"/"
    found = set(os.listdir(top)) - {b".accesslog", b".config", b".stats", b".trash", b".control"}
    assert found == set(names)
    assert [os.readlink(top + n) for n in names] == names
    mounted.unmount()
