"""Committed but not answered: the server dies between script and answer (handover.md §4).

Before the next server comes, another client changes the same names. The program must get
the first result, and what the other client did must stand.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support.jobs import F_OFD_SETLK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.kept import Kept

pytestmark = [pytest.mark.promise(2), pytest.mark.timeout(180)]

libc = ctypes.CDLL(None, use_errno=True)
PUNCH, KEEP, EXCHANGE = 2, 1, 2
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
WAIT_S = 60


@dataclass
class Stage:
    """One directory as the program sees it, and as another client does."""

    ours: Path
    theirs: Path

    def file(self, name: str, content: bytes = b"") -> int:
        """Make a file; return a descriptor of ours."""
        (self.ours / name).write_bytes(content)
        return os.open(self.ours / name, os.O_RDWR)


Act = "Callable[[], object]"
Case = "tuple[str, Act, Act, Act]"
"""Script, what the program does, what the other client does then, what must be true at last."""


def check(result: int) -> None:
    """Raise what a function of libc has left in errno."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def create(at: Stage) -> Case:
    def act() -> int:
        return os.open(at.ours / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR)

    def other() -> None:
        os.unlink(at.theirs / "new")
        (at.theirs / "new").write_bytes(b"other")

    return "mknod", act, other, lambda: (at.theirs / "new").read_bytes() == b"other"


def mknod(at: Stage) -> Case:
    def other() -> None:
        os.unlink(at.theirs / "fifo")
        os.mkdir(at.theirs / "fifo")

    def act() -> None:
        os.mknod(at.ours / "fifo", stat.S_IFIFO | 0o600)

    return "mknod", act, other, (at.theirs / "fifo").is_dir


def mkdir(at: Stage) -> Case:
    def other() -> None:
        os.rmdir(at.theirs / "dir")

    return "mknod", lambda: os.mkdir(at.ours / "dir"), other, lambda: not os.listdir(at.theirs)


def symlink(at: Stage) -> Case:
    def other() -> None:
        os.unlink(at.theirs / "sym")
        os.symlink("theirs", at.theirs / "sym")

    def act() -> None:
        os.symlink("ours", at.ours / "sym")

    return "mknod", act, other, lambda: os.readlink(at.theirs / "sym") == "theirs"


def link(at: Stage) -> Case:
    os.close(at.file("a"))

    def other() -> None:
        os.unlink(at.theirs / "b")

    def act() -> None:
        os.link(at.ours / "a", at.ours / "b")

    return "link", act, other, lambda: os.listdir(at.theirs) == ["a"]


def unlink(at: Stage) -> Case:
    os.close(at.file("a"))

    def other() -> None:
        (at.theirs / "a").write_bytes(b"again")

    def right() -> bool:
        return (at.theirs / "a").read_bytes() == b"again"

    return "unlink", lambda: os.unlink(at.ours / "a"), other, right


def unlink_open(at: Stage) -> Case:
    fd = at.file("a", b"bytes")

    def other() -> None:
        (at.theirs / "a").write_bytes(b"again")

    def right() -> bool:
        try:
            return os.pread(fd, 9, 0) == b"bytes" and os.fstat(fd).st_nlink == 0
        finally:
            os.close(fd)

    return "unlink", lambda: os.unlink(at.ours / "a"), other, right


def rmdir(at: Stage) -> Case:
    os.mkdir(at.ours / "d")

    def other() -> None:
        os.mkdir(at.theirs / "d")

    return "rmdir", lambda: os.rmdir(at.ours / "d"), other, (at.theirs / "d").is_dir


def rename(at: Stage) -> Case:
    os.close(at.file("a", b"first"))

    def other() -> None:
        (at.theirs / "a").write_bytes(b"second")

    def right() -> bool:
        return [(at.theirs / name).read_bytes() for name in "ab"] == [b"second", b"first"]

    return "rename", lambda: os.rename(at.ours / "a", at.ours / "b"), other, right


def exchange(at: Stage) -> Case:
    os.close(at.file("a", b"A"))
    os.close(at.file("b", b"B"))

    def act() -> None:
        names = os.fsencode(at.ours / "a"), os.fsencode(at.ours / "b")
        check(libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], EXCHANGE))

    def other() -> None:
        os.rename(at.theirs / "a", at.theirs / "c")

    def right() -> bool:
        return [(at.theirs / name).read_bytes() for name in "cb"] == [b"B", b"A"]

    return "rename", act, other, right


def truncate(at: Stage) -> Case:
    os.close(at.file("a", b"0123456789"))

    def other() -> None:
        (at.theirs / "a").write_bytes(b"longer than before")

    def right() -> bool:
        return (at.theirs / "a").read_bytes() == b"longer than before"

    return "truncate", lambda: os.truncate(at.ours / "a", 3), other, right


def open_truncating(at: Stage) -> Case:
    os.close(at.file("a", b"0123456789"))

    def other() -> None:
        (at.theirs / "a").write_bytes(b"other")

    def act() -> int:
        return os.open(at.ours / "a", os.O_TRUNC | os.O_RDWR)

    return "truncate", act, other, lambda: (at.theirs / "a").read_bytes() == b"other"


def chmod(at: Stage) -> Case:
    os.close(at.file("a"))

    def other() -> None:
        os.chmod(at.theirs / "a", 0o640)

    def right() -> bool:
        return stat.S_IMODE(os.stat(at.theirs / "a").st_mode) == 0o640

    return "setattr", lambda: os.chmod(at.ours / "a", 0o604), other, right


def setxattr(at: Stage) -> Case:
    os.close(at.file("a"))

    def act() -> None:
        os.setxattr(at.ours / "a", "user.x", b"ours", os.XATTR_CREATE)

    def other() -> None:
        os.setxattr(at.theirs / "a", "user.x", b"theirs")

    return "setxattr", act, other, lambda: os.getxattr(at.theirs / "a", "user.x") == b"theirs"


def removexattr(at: Stage) -> Case:
    os.close(at.file("a"))
    os.setxattr(at.ours / "a", "user.x", b"1")

    def act() -> None:
        os.removexattr(at.ours / "a", "user.x")

    def other() -> None:
        os.setxattr(at.theirs / "a", "user.x", b"2")

    return "removexattr", act, other, lambda: os.getxattr(at.theirs / "a", "user.x") == b"2"


def fallocate(at: Stage) -> Case:
    fd = at.file("a", b"0123456789")
    length = ctypes.c_long(4)

    def act() -> None:
        check(libc.fallocate(fd, PUNCH | KEEP, ctypes.c_long(2), length))
        os.close(fd)

    def other() -> None:
        with (at.theirs / "a").open("r+b") as file:
            file.seek(2)
            file.write(b"abcd")

    return "fallocate", act, other, lambda: (at.theirs / "a").read_bytes() == b"01abcd6789"


def copy_range(at: Stage) -> Case:
    source, target = at.file("a", b"source"), at.file("b", b"target")

    def act() -> None:
        assert os.copy_file_range(source, target, 6, 0, 0) == 6
        os.close(source)
        os.close(target)

    def other() -> None:
        (at.theirs / "b").write_bytes(b"other!")

    return "copy", act, other, lambda: (at.theirs / "b").read_bytes() == b"other!"


def nameless(at: Stage) -> Case:
    def act() -> None:
        fd = os.open(at.ours, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"nameless")
        source, target = f"/proc/self/fd/{fd}".encode(), os.fsencode(at.ours / "named")
        check(libc.linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW))
        os.close(fd)

    def other() -> None:
        os.close(os.open(at.theirs / "other", os.O_CREAT))

    return "mknod", act, other, lambda: (at.theirs / "named").read_bytes() == b"nameless"


def flock(at: Stage) -> Case:
    return "flock", *_locking(at, lambda fd, kind: fcntl.flock(fd, _at_once(kind)))


def posix_lock(at: Stage) -> Case:
    return "setlk", *_locking(at, lambda fd, kind: fcntl.lockf(fd, _at_once(kind)))


def ofd_lock(at: Stage) -> Case:
    def take(fd: int, kind: int) -> None:
        what = fcntl.F_UNLCK if kind == fcntl.LOCK_UN else fcntl.F_WRLCK
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", what, os.SEEK_SET, 0, 0, 0))

    return "setlk", *_locking(at, take)


def _at_once(kind: int) -> int:
    return kind if kind == fcntl.LOCK_UN else kind | fcntl.LOCK_NB


def _locking(at: Stage, take: Callable[[int, int], None]) -> tuple[Act, Act, Act]:
    fd = at.file("a")
    others = os.open(at.theirs / "a", os.O_RDWR)

    def other() -> None:
        with pytest.raises(BlockingIOError):
            take(others, fcntl.LOCK_EX)

    def right() -> bool:
        other()
        take(fd, fcntl.LOCK_UN)
        take(others, fcntl.LOCK_EX)
        os.close(fd)
        os.close(others)
        return True

    return (lambda: take(fd, fcntl.LOCK_EX)), other, right


def unlock(at: Stage) -> Case:
    fd = at.file("a")
    others = os.open(at.theirs / "a", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)

    def other() -> None:
        fcntl.lockf(others, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def right() -> bool:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
        os.close(others)
        return True

    return "setlk", lambda: fcntl.lockf(fd, fcntl.LOCK_UN), other, right


MAKING = (create, mknod, mkdir, symlink, link, nameless)
REMOVING = (unlink, unlink_open, rmdir, rename, exchange)
CONTENTS = (truncate, open_truncating, chmod, setxattr, removexattr, fallocate, copy_range)
LOCKS = (flock, posix_lock, ofd_lock, unlock)


@pytest.fixture
def program() -> Iterator[ThreadPoolExecutor]:
    """Runs the call that is not answered."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.mark.parametrize(
    "cases",
    [MAKING, REMOVING, CONTENTS, LOCKS],
    ids=["making", "removing", "contents", "locks"],
)
def test_the_first_result_is_told(
    kept: Kept, program: ThreadPoolExecutor, cases: tuple[Callable[[Stage], Case], ...]
) -> None:
    others = kept.volume.mount()
    for case in cases:
        name = case.__name__
        os.mkdir(kept.path / name)
        script, act, other, right = case(Stage(kept.path / name, others.path / name))
        kept.arm(f"script.after.{script}", "hold")
        kept.replace(signal.SIGKILL)
        ended = len(kept.ended())
        call = program.submit(act)
        kept.await_death(f"script.after.{script}", ended)
        other()
        assert not call.done(), name
        kept.let_go()
        result = call.result(WAIT_S)  # raises what the program would have seen
        if isinstance(result, int):
            os.close(result)
        kept.await_served()
        assert right(), name
    others.unmount()
    kept.check()
