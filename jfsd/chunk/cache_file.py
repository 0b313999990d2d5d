"""One cached block in a file: its bytes, then a CRC-32C for each 32 KiB (format.md Appendix B)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import struct
from pathlib import Path

from jfsd.object.crc import crc32c
from jfsd.object.nowait import open_cached
from jfsd.types import ReadableBuffer

UNIT_BYTES = 32768
_CRC = struct.Struct(">I")
_serial = itertools.count()


class DamagedFileError(Exception):
    """The file does not hold the block that its name promises."""


def trailer(block: ReadableBuffer) -> bytes:
    """Return the checksums of a block as they follow it in the file."""
    view = memoryview(block)
    return b"".join(
        _CRC.pack(crc32c(view[at : at + UNIT_BYTES])) for at in range(0, len(view), UNIT_BYTES)
    )


def write_block(path: str, block: ReadableBuffer, *, checksum: bool, mode: int = 0o600) -> int:
    """Create or replace the file of a block; readers see all of it or nothing.

    Returns:
        The size of the file.

    Raises:
        OSError: It could not be written; nothing is left behind.
    """
    temporary = f"{path}.{os.getpid()}-{next(_serial)}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, mode)
    except FileNotFoundError:
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(temporary, flags, mode)
    try:
        parts = [memoryview(block), memoryview(trailer(block) if checksum else b"")]
        size = sum(map(len, parts))
        _check_written(os.writev(fd, parts), size)
        os.close(fd)
        fd = -1
        os.rename(temporary, path)  # noqa: PTH104 - paths are plain strings here
    except BaseException:
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    return size


def _check_written(written: int, size: int) -> None:
    if written != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class CachedBlock:
    """An open cache file; it is closed when the last user lets go of it."""

    __slots__ = ("_crcs", "_fd", "length")

    def __init__(self, path: str, length: int, *, checksum: bool, wait: bool = True) -> None:
        """Open the file of a block of `length` bytes.

        A file without checksums is accepted; one whose size fits neither form is not.

        Raises:
            FileNotFoundError: There is none.
            BlockingIOError: `wait` is False, and the disk would be needed.
            DamagedFileError: Its size is wrong.
        """
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if wait else open_cached(path)
        self.length = length
        extra = os.fstat(self._fd).st_size - length
        units = (length + UNIT_BYTES - 1) // UNIT_BYTES
        if extra not in {0, units * _CRC.size}:
            raise DamagedFileError(f"{path}: {extra} bytes more than the block")
        raw = bytearray(extra if checksum else 0)
        if raw and os.preadv(self._fd, [raw], length, 0 if wait else os.RWF_NOWAIT) != extra:
            raise DamagedFileError(f"{path}: its end cannot be read")
        self._crcs = [crc for (crc,) in _CRC.iter_unpack(raw)] if len(raw) == extra else []

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, off: int, length: int, *, wait: bool = True) -> memoryview:
        """Return `length` bytes from `off`; whole units are read and checked.

        Raises:
            BlockingIOError: `wait` is False and the bytes are not in memory.
            DamagedFileError: The file is shorter than it was, or a checksum is wrong.
        """
        begin, end = off, off + length
        if self._crcs:
            begin = off // UNIT_BYTES * UNIT_BYTES
            end = min(self.length, (end + UNIT_BYTES - 1) // UNIT_BYTES * UNIT_BYTES)
        data = memoryview(bytearray(end - begin))
        count = os.preadv(self._fd, [data], begin, 0 if wait else os.RWF_NOWAIT)
        if count != end - begin:
            if not wait:
                raise BlockingIOError
            raise DamagedFileError("a cache file has lost its end")
        if self._crcs:
            self._check(data, begin // UNIT_BYTES)
        return data[off - begin : off - begin + length]

    def _check(self, data: memoryview, unit: int) -> None:
        for at in range(0, len(data), UNIT_BYTES):
            if crc32c(data[at : at + UNIT_BYTES]) != self._crcs[unit]:
                raise DamagedFileError(f"checksum of unit {unit} is wrong")
            unit += 1
