"""System calls that Python does not wrap, and calls made as another user."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import fcntl
import os
import pickle
import signal
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
_libc = ctypes.CDLL(None, use_errno=True)
_FLOCK = "hhqqi4x"


def _checked(result: int, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def renameat2(old: str | bytes, new: str | bytes, flags: int) -> None:
    """rename(2) with flags."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))


class Lock(NamedTuple):
    """A record lock as F_GETLK answers it."""

    type: int
    start: int
    length: int
    pid: int


def record_lock(
    fd: int, kind: int, start: int = 0, length: int = 0, *, ofd: bool = False, wait: bool = False
) -> None:
    """Set or release a POSIX or open-file-description lock; `kind` is F_RDLCK and so on."""
    if ofd:
        command = F_OFD_SETLKW if wait else F_OFD_SETLK
    else:
        command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(fd, command, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))


def conflicting_lock(
    fd: int, kind: int, start: int = 0, length: int = 0, *, ofd: bool = False
) -> Lock | None:
    """Return the lock that would refuse one of `kind`, None if there is none."""
    asked = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
    told = fcntl.fcntl(fd, F_OFD_GETLK if ofd else fcntl.F_GETLK, asked)
    type_, _, start, length, pid = struct.unpack(_FLOCK, told)
    return None if type_ == fcntl.F_UNLCK else Lock(type_, start, length, pid)


class Outcome(NamedTuple):
    """What a call did: its result, or the name of its errno."""

    error: str | None
    result: object = None


def attempt(call: Callable[..., object], *arguments: object, **named: object) -> Outcome:
    """Make a call and return how it ended."""
    try:
        return Outcome(None, call(*arguments, **named))
    except OSError as error:
        return Outcome(errno.errorcode.get(error.errno, str(error.errno)))


def isolated(call: Callable[[], object]) -> object:
    """Make a call in a child process, which may die of a signal; return its result.

    Raises:
        AssertionError: the call raised, or the child was killed (a bus error, say).
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            faulthandler.disable()
            with os.fdopen(writer, "wb") as sink:
                try:
                    answer = (True, call())
                except (AssertionError, OSError, ValueError) as error:
                    answer = (False, f"{type(error).__name__}: {error}")
                pickle.dump(answer, sink)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as source:
        answer = source.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise AssertionError(f"killed by {signal.Signals(os.WTERMSIG(status)).name}")
    assert answer, "the child said nothing"
    good, result = pickle.loads(answer)
    assert good, result
    return result


def as_user(uid: int, gid: int, call: Callable[[], object], groups: Sequence[int] = ()) -> Outcome:
    """Make a call in a child process that runs as another user; return how it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with os.fdopen(writer, "wb") as sink:
                pickle.dump(attempt(call), sink)
            status = 0
        except BaseException as error:  # noqa: BLE001 - the child must never return into pytest
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as source:
        answer = source.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the call of uid {uid} ended with {status}"
    return pickle.loads(answer)
