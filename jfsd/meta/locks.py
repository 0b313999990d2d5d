"""Locks among all clients of a volume: BSD locks, and POSIX locks on ranges (format.md §14).

Nothing here waits: a lock that is not free is EAGAIN, and who wants to wait asks again. Locks
are held by (session, owner); the owner is the kernel's number. A lock whose session is no longer
registered stands against nobody and is removed by who meets it (format.md, Appendix D).

Crash story: a lock is taken or not taken, and noted in `locked<sid>`, in one script. A SIGKILL
leaves the locks to the process that takes the session over, or, when nobody does, to the client
that cleans the session after its expiry (`session.py`).
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from jfsd.meta.engine import Engine, fail

if TYPE_CHECKING:
    from jfsd.types import Caller, Ino

END_OF_FILE: Final = (1 << 63) - 1
"""Last byte of a range that reaches to the end of the file, however long it gets."""


class LockType(IntEnum):
    """Type of a lock, as in fcntl(2) on Linux."""

    READ = 0
    WRITE = 1
    UNLOCK = 2


class HeldLock(NamedTuple):
    """A POSIX lock that stands in the way; `pid` is 0 if another session holds it."""

    type: LockType
    start: int
    end: int
    pid: int


class Locks(Engine):
    """Locks of one mount. Owners and offsets are unsigned 64-bit numbers; ends are inclusive."""

    async def flock(self, caller: Caller, ino: Ino, owner: int, kind: LockType) -> None:
        """The owner has the BSD lock of the node, converted if it had another, or has none.

        Raises:
            OSError: EAGAIN, another owner holds it; EROFS, we have no session.
        """
        await self.mutate("flock", caller, ino, self._owner(owner), "RWU"[kind])

    async def setlk(
        self, caller: Caller, ino: Ino, owner: int, kind: LockType, start: int, end: int, pid: int
    ) -> None:
        """The owner's lock on bytes `start` to `end` is of this type, whatever it was before.

        Raises:
            OSError: EAGAIN, another owner holds a part; EINVAL, an empty range; EROFS, we have
                no session.
        """
        first, last = _range(start, end)
        await self.mutate("setlk", caller, ino, self._owner(owner), int(kind), first, last, pid)

    async def getlk(
        self, ino: Ino, owner: int, kind: LockType, start: int, end: int
    ) -> HeldLock | None:
        """Return a lock of another owner that would refuse this one, or None.

        Raises:
            OSError: EINVAL, an empty range; EROFS, we have no session.
        """
        first, last = _range(start, end)
        if kind is LockType.UNLOCK:
            return None
        found = await self.run("getlk", "0", ino, self._owner(owner), int(kind), first, last)
        if not found:
            return None
        held, first, last, pid = found
        return HeldLock(LockType(held), int(first, 16), int(last, 16), pid)

    def _owner(self, owner: int) -> str:
        if not self.sid:
            fail(errno.EROFS)
        return f"{self.sid}_{owner:016X}"


def _range(start: int, end: int) -> tuple[str, str]:
    if not 0 <= start <= end <= END_OF_FILE:
        fail(errno.EINVAL)
    return f"{start:016x}", f"{end:016x}"
