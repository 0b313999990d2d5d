"""What the kernel's requests are called, in metrics and in the access log."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from jfsd.fuse import abi
from jfsd.vfs.accesslog import Answered, argument_text

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = {
    1: "lookup", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod",
    9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open",
    15: "read", 16: "write", 17: "statfs", 18: "release", abi.FSYNC: "fsync",
    abi.SETXATTR: "setxattr", abi.GETXATTR: "getxattr", 23: "listxattr", 24: "removexattr",
    abi.FLUSH: "flush", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir",
    abi.GETLK: "getlk", abi.SETLK: "setlk", abi.SETLKW: "setlkw", abi.CREATE: "create",
    abi.FALLOCATE: "fallocate", 44: "readdirplus", 45: "rename", abi.LSEEK: "lseek",
    abi.COPY_FILE_RANGE: "copy_file_range", abi.TMPFILE: "tmpfile",
}  # fmt: skip
"""By opcode (linux/fuse.h); those of the reference where it has the same."""

_BY_HANDLE = frozenset(
    (abi.READ, abi.WRITE, abi.RELEASE, 20, 25, 28, 29, 30, 31, 32, 33, abi.FALLOCATE, 44, 46, 47)
)
"""Their handlers are not told the inode; it is shown first."""

_CLOSING = frozenset((abi.FLUSH, abi.RELEASE))
"""Of these the owner of locks is not shown."""


def name_of(opcode: int) -> str:
    """Return what a request is called."""
    return NAMES.get(opcode, f"opcode{opcode}")


def answered(
    current: Sequence[int], arguments: Sequence[object], result: object, failure: int, took_s: float
) -> Answered:
    """Return a request as listeners of the access log are told of it.

    Args:
        current: Number, opcode, node, uid, gid and pid of the request.
        arguments: What its handler was given.
        result: What it returned.
        failure: Errno of the answer, 0 for success.
        took_s: How long the handler took.
    """
    _, opcode, ino, uid, gid, pid = current
    shown = _arguments(opcode, ino, arguments, result)
    return Answered(time.time_ns(), uid, gid, pid, name_of(opcode), shown, failure, took_s)


def error_name(number: int) -> str:
    """Return an errno's name."""
    return errno.errorcode.get(number, str(number))


def _arguments(opcode: int, ino: int, arguments: Sequence[object], result: object) -> str:
    if opcode == abi.READ:
        fh, off, size, *_ = arguments
        return f"{ino},{size},{off},{fh}"
    if opcode == abi.WRITE:
        fh, off, *_ = arguments
        return f"{ino},{result if isinstance(result, int) else '?'},{off},{fh}"
    if opcode in _CLOSING:
        arguments = arguments[:1]
    words = [str(ino)] if opcode in _BY_HANDLE else []
    for argument in arguments:
        if isinstance(argument, bytes):
            words.append(argument_text(argument))
        elif isinstance(argument, int):
            words.append(str(int(argument)))
    return ",".join(words)
