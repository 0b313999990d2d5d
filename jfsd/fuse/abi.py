"""Numbers and records of the kernel's FUSE protocol that libfuse does not show (linux/fuse.h)."""

from __future__ import annotations

import os
import struct
import sys
from typing import NamedTuple

LOOKUP, GETATTR, MKDIR, UNLINK, RMDIR, RENAME, RENAME2 = 1, 3, 9, 10, 11, 12, 45
OPEN, READ, WRITE, RELEASE = 14, 15, 16, 18
FORGET, FSYNC, SETXATTR, GETXATTR, FLUSH, INIT = 2, 20, 21, 22, 25, 26
INTERRUPT, BATCH_FORGET = 36, 42
READDIR, READDIRPLUS = 28, 44
GETLK, SETLK, SETLKW = 31, 32, 33
CREATE, FALLOCATE, LSEEK, COPY_FILE_RANGE, TMPFILE = 35, 43, 46, 47, 51

LK_FLOCK = 1
NOTIFY_RESEND = 7
INT64_MAX = (1 << 63) - 1

INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_DONT_MASK = 1 << 6
INIT_READDIRPLUS_AUTO = 1 << 14
INIT_ASYNC_DIO = 1 << 15
INIT_PARALLEL_DIROPS = 1 << 18
INIT_HANDLE_KILLPRIV = 1 << 19
INIT_CACHE_SYMLINKS = 1 << 23
INIT_HANDLE_KILLPRIV_V2 = 1 << 28
INIT_DIRECT_IO_ALLOW_MMAP = 1 << 36
INIT_HAS_RESEND = 1 << 39

_OUT_HEADER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=40xIIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI")
_LK_IN = struct.Struct("=QQQQIIII")
_LK_OUT = struct.Struct("=QQII")
_FALLOCATE_IN = struct.Struct("=QQQII")
_LSEEK_IN = struct.Struct("=QQII")
_LSEEK_OUT = struct.Struct("=Q")
_READ_IN = struct.Struct("=QQII")
_COPY_IN = struct.Struct("=QQQQQQQ")
_GETXATTR_OUT = struct.Struct("=II")
_SETXATTR_IN = struct.Struct("=II")


class LockRequest(NamedTuple):
    """A lock of either family; `end` is inclusive, `owner` the kernel's opaque number."""

    fh: int
    owner: int
    start: int
    end: int
    type: int
    pid: int
    is_flock: bool


class CopyRequest(NamedTuple):
    """A range of one handle to be copied to another."""

    fh_in: int
    off_in: int
    fh_out: int
    off_out: int
    length: int
    flags: int


class InitReply(NamedTuple):
    """What was agreed with the kernel for the life of the mount."""

    error: int
    minor: int
    max_readahead: int
    flags: int
    max_background: int
    max_write: int
    max_pages: int


_FATTR_ATIME_NOW, _FATTR_MTIME_NOW, _FATTR_KILL_SUIDGID = 1 << 7, 1 << 8, 1 << 11


def lock_request(body: bytes) -> LockRequest:
    """Decode GETLK, SETLK and SETLKW."""
    fh, owner, start, end, type_, pid, flags, _ = _LK_IN.unpack_from(body)
    return LockRequest(fh, owner, start, min(end, INT64_MAX), type_, pid, bool(flags & LK_FLOCK))


def lock_reply(type_: int, start: int, end: int, pid: int) -> bytes:
    """Encode the answer to GETLK."""
    return _LK_OUT.pack(start, end, type_, pid)


def fallocate_request(body: bytes) -> tuple[int, int, int, int]:
    """Return (fh, mode, offset, length)."""
    fh, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(body)
    return fh, mode, offset, length


def lseek_request(body: bytes) -> tuple[int, int, int]:
    """Return (fh, offset, whence)."""
    fh, offset, whence, _ = _LSEEK_IN.unpack_from(body)
    return fh, offset, whence


def lseek_reply(offset: int) -> bytes:
    """Encode the answer to LSEEK."""
    return _LSEEK_OUT.pack(offset)


def read_request(body: bytes) -> tuple[int, int, int]:
    """Return (fh, offset, size) of READ, READDIR and READDIRPLUS."""
    fh, offset, size, _ = _READ_IN.unpack_from(body)
    return fh, offset, size


def copy_request(body: bytes) -> CopyRequest:
    """Decode COPY_FILE_RANGE."""
    fh_in, off_in, _, fh_out, off_out, length, flags = _COPY_IN.unpack_from(body)
    return CopyRequest(fh_in, off_in, fh_out, off_out, length, flags)


def setattr_drops_privileges(body: bytes) -> bool:
    """Return whether a SETATTR is to clear setuid and setgid bits."""
    return bool(int.from_bytes(body[:4], sys.byteorder) & _FATTR_KILL_SUIDGID)


def setattr_now(body: bytes) -> tuple[bool, bool]:
    """Return whether atime and mtime are to be set to the moment of the change."""
    valid = int.from_bytes(body[:4], sys.byteorder)
    return bool(valid & _FATTR_ATIME_NOW), bool(valid & _FATTR_MTIME_NOW)


def xattr_length(length: int) -> bytes:
    """Encode the answer to a GETXATTR that asks how long the value is."""
    return _GETXATTR_OUT.pack(length, 0)


def setxattr_flags(body: bytes) -> int:
    """Return XATTR_CREATE (1), XATTR_REPLACE (2) or 0."""
    return int(_SETXATTR_IN.unpack_from(body)[1])


def init_offer(init_in: bytes) -> int:
    """Return the flags that the kernel offers in its INIT request."""
    _, _, _, flags, flags2 = _INIT_IN.unpack_from(init_in)
    return int(flags | flags2 << 32)


def init_reply(init_out: bytes) -> InitReply:
    """Decode our answer to INIT."""
    _, error, _ = _OUT_HEADER.unpack_from(init_out)
    if error:
        return InitReply(error, 0, 0, 0, 0, 0, 0)
    _, minor, readahead, flags, background, _, max_write, _, pages, _, flags2 = (
        _INIT_OUT.unpack_from(init_out, _OUT_HEADER.size)
    )
    return InitReply(0, minor, readahead, flags | flags2 << 32, background, max_write, pages)


def error_reply(unique: int, error: int) -> bytes:
    """Return the answer that lets a request fail."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -error, unique)


def resend(fd: int) -> bool:
    """Ask the kernel for every request that was read and not answered; they come next.

    Returns:
        False if the kernel is older than 6.9 and cannot.
    """
    message = _OUT_HEADER.pack(_OUT_HEADER.size, NOTIFY_RESEND, 0)
    try:
        os.write(fd, message)
    except OSError:
        return False
    return True
