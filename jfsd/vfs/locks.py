"""Locks: shared with every client of the volume, waited for by polling (format.md §14)."""

from __future__ import annotations

import asyncio
import fcntl
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from jfsd.meta.locks import END_OF_FILE, LockType
from jfsd.types import Caller, Ino
from jfsd.vfs.core import Core
from jfsd.vfs.handles import FileHandle
from jfsd.vfs.ports import PosixLock

_FIRST_POLL_S = 0.001
_LONGEST_POLL_S = 0.05


class LockOps(Core):
    """flock(2) and fcntl(2) locks. Owners are the kernel's numbers, kept as they are.

    A waiter polls, because the format has no notification; an unlock in this mount
    wakes the waiters of this mount at once.
    """

    _waiters: defaultdict[Ino, set[asyncio.Event]]

    @property
    def waiting_locks(self) -> int:
        """Requests that wait for a lock, and will for as long as it takes."""
        return sum(map(len, self._waiters.values()))

    async def flock(
        self, caller: Caller, fh: int, owner: int, lock_type: int, blocking: bool
    ) -> None:
        """Take, convert or drop a whole-file lock.

        Raises:
            OSError: EAGAIN if it is held and `blocking` is false.
        """
        handle = self.handles.get(fh)

        async def attempt() -> None:
            await self.meta.flock(caller, handle.ino, owner, LockType(lock_type))

        await self._acquire(handle.ino, attempt, blocking and lock_type != fcntl.F_UNLCK)
        if lock_type != fcntl.F_WRLCK:
            self._wake(handle.ino)  # dropped, or made shared

    async def getlk(
        self, caller: Caller, fh: int, owner: int, lock_type: int, start: int, end: int, pid: int
    ) -> PosixLock:
        """Return the first lock that is in the way, or one of type F_UNLCK."""
        del caller, pid
        ino = self.handles.get(fh).ino
        held = await self.meta.getlk(ino, owner, LockType(lock_type), start, end)
        return PosixLock(fcntl.F_UNLCK, 0, 0, 0) if held is None else PosixLock(*held)

    async def setlk(
        self,
        caller: Caller,
        fh: int,
        owner: int,
        lock_type: int,
        start: int,
        end: int,
        pid: int,
        blocking: bool,
    ) -> None:
        """Take, convert or drop a lock on bytes `start` … `end` (inclusive).

        Raises:
            OSError: EAGAIN if a conflicting lock is held and `blocking` is false; EROFS, there
                is no session that could hold one.
        """
        handle = self.handles.get(fh)

        async def attempt() -> None:
            await self.meta.setlk(caller, handle.ino, owner, LockType(lock_type), start, end, pid)

        if lock_type != fcntl.F_UNLCK:
            self.check_writable()  # before the owner counts as one: its close must not fail
            self.handles.journal.locking(fh, owner)
            handle.own(owner)
        await self._acquire(handle.ino, attempt, blocking and lock_type != fcntl.F_UNLCK)
        if lock_type != fcntl.F_WRLCK:
            self._wake(handle.ino)

    async def _acquire(
        self, ino: Ino, attempt: Callable[[], Coroutine[Any, Any, None]], blocking: bool
    ) -> None:
        delay_s = _FIRST_POLL_S
        while not await _to_its_end(attempt(), may_fail=blocking):
            await self._wait(ino, delay_s)
            delay_s = min(delay_s * 2, _LONGEST_POLL_S)

    async def _wait(self, ino: Ino, delay_s: float) -> None:
        released = asyncio.Event()
        self._waiters[ino].add(released)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await released.wait()
        finally:
            self._waiters[ino].discard(released)
            if not self._waiters[ino]:
                del self._waiters[ino]

    def _wake(self, ino: Ino) -> None:
        for released in self._waiters.get(ino, ()):
            released.set()

    async def _drop_posix(self, handle: FileHandle, owner: int) -> None:
        """Drop all byte-range locks of a closing owner, without asking if it had none."""
        if not handle.inode.disown(owner):
            return
        try:
            await self.meta.setlk(
                Caller(0, 0), handle.ino, owner, LockType.UNLOCK, 0, END_OF_FILE, 0
            )
        except OSError:
            handle.own(owner)  # the next close tries again
            raise
        if owner not in handle.inode.posix_owners:  # else it has come back meanwhile
            self.handles.journal.unlocked(handle.fh, owner)
        self._wake(handle.ino)

    async def _drop_ofd(self, handle: FileHandle) -> None:
        """Drop the byte-range locks that belong to a closed file description (OFD locks).

        The kernel sends no unlock for them, and those of processes are gone by now: each
        closing process flushes.
        """
        for owner in list(handle.posix_owners):
            await self._drop_posix(handle, owner)
            self.handles.journal.unlocked(handle.fh, owner)  # it may be gone by another handle

    async def _drop_flock(self, caller: Caller, handle: FileHandle, owner: int) -> None:
        """Drop the whole-file lock of a closed file description, if it had one."""
        await self.meta.flock(caller, handle.ino, owner, LockType.UNLOCK)
        self._wake(handle.ino)


async def _to_its_end(attempt: Coroutine[Any, Any, None], *, may_fail: bool) -> bool:
    """Return whether the lock was had; carry the attempt through when interrupted meanwhile.

    The script may have run already: then the lock is held, and the interrupted call must
    succeed rather than leave a lock behind that nobody knows of.

    Raises:
        OSError: EAGAIN if it is held and `may_fail` is false.
    """
    task = asyncio.ensure_future(_granted(attempt, may_fail=may_fail))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if not await task or current is None:
            raise
        current.uncancel()
        return True


async def _granted(attempt: Coroutine[Any, Any, None], *, may_fail: bool) -> bool:
    try:
        await attempt
    except BlockingIOError:
        if not may_fail:
            raise
        return False
    return True
