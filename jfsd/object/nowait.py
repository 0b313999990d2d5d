"""Files that can be had without waiting for a disk."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_OPENAT2 = 437
"""On every architecture (syscalls(2)); so are the flag and the record below (openat2(2))."""
_HOW = struct.pack("=QQQ", os.O_RDONLY | os.O_CLOEXEC, 0, 0x20)
_AT_FDCWD = -100


def open_cached(path: str) -> int:
    """Return a descriptor of a file whose path the kernel has in memory.

    Raises:
        BlockingIOError: It has not, or cannot tell (Linux before 5.12).
        OSError: Others of open(2).
    """
    fd: int = _LIBC.syscall(_SYS_OPENAT2, _AT_FDCWD, path.encode(), _HOW, len(_HOW))
    if fd >= 0:
        return fd
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
        number = errno.EAGAIN
    raise OSError(number, os.strerror(number))
