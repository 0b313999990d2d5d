"""Requests in flight, for kernels that do not send them again (before 6.9).

What was read of /dev/fuse and not answered keeps its program waiting for ever, whoever serves
the mount. Newer kernels hand it out again on demand; for older ones it is noted in a memory
file that outlives the process, like the state. The next process repeats what was noted as a
whole. What was too long for that (data, names of hundreds of bytes) fails with EIO; a planned
end waits until there is none of it.

The native module writes, right behind read(2); its comments have the layout. A kill between
read(2) and the note leaves the request in the buffer that it was read into.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import NamedTuple

from jfsd.fuse import abi, native

MAX_REQUESTS = 8192
"""Requests that can be noted at once; more must not be read."""

_HEADER = struct.Struct("=IIQ")
_NOTE = struct.Struct("=QII")
_NOTE_BYTES = 256
_UNANSWERED = frozenset((abi.FORGET, abi.BATCH_FORGET, abi.INTERRUPT, abi.INIT))


class Leftovers(NamedTuple):
    """What a former process had read and not answered."""

    whole: list[bytes]
    """Requests that can be repeated."""
    lost: list[int]
    """Numbers of those that cannot."""


class RequestJournal:
    """Notes of the requests that are read and not answered."""

    def __init__(self, fd: int | None = None) -> None:
        """Use the memory file of a former process, or make one; its descriptor is ours."""
        if fd is None:
            fd = os.memfd_create("jfsd-requests", os.MFD_CLOEXEC)
            os.ftruncate(fd, native.JOURNAL_BYTES)
        self.fd = fd
        self.memory = mmap.mmap(fd, native.JOURNAL_BYTES)
        self.memory.madvise(mmap.MADV_DONTDUMP)

    def leftovers(self) -> Leftovers:
        """Return what a former process left; call before the session begins."""
        found = Leftovers([], [])
        known = set()
        for number in range(MAX_REQUESTS):
            at = native.JOURNAL_NOTES_AT + number * _NOTE_BYTES
            unique, length, _ = _NOTE.unpack_from(self.memory, at)
            if not unique:
                continue
            known.add(unique)
            start = at + _NOTE.size
            if length <= _NOTE_BYTES - _NOTE.size:
                found.whole.append(self.memory[start : start + length])
            else:
                found.lost.append(unique)
        staged = self._staged()
        if staged and _HEADER.unpack_from(staged)[2] not in known:
            found.whole.append(staged)
        return found

    def give_up(self, unique: int) -> bytes:
        """Forget a request that cannot be repeated; return the answer that it gets."""
        for number in range(MAX_REQUESTS):
            at = native.JOURNAL_NOTES_AT + number * _NOTE_BYTES
            if _NOTE.unpack_from(self.memory, at)[0] == unique:
                _NOTE.pack_into(self.memory, at, 0, 0, 0)
        return abi.error_reply(unique, errno.EIO)

    def _staged(self) -> bytes:
        """Return the request that was read and not noted any more, b"" if there is none."""
        (noted,) = struct.unpack_from("=Q", self.memory)
        at = native.JOURNAL_STAGED_AT
        length, opcode, unique = _HEADER.unpack_from(self.memory, at)
        if unique in (0, noted) or opcode in _UNANSWERED:
            return b""
        return self.memory[at : at + length]


def repeats(init_in: bytes) -> bool:
    """Return whether this kernel sends requests again that a process had read."""
    if os.environ.get("JFSD_PRETEND_OLD_KERNEL"):
        return False
    return bool(abi.init_offer(init_in) & abi.INIT_HAS_RESEND)
