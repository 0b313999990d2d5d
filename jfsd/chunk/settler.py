"""Makes durable what was stored without that: at fsync, and soon for everything else.

A block that was uploaded is whole and outlives this process; in a directory it may still be
in the page cache alone, and a power cut would take it, like what any program writes without
fsync. Objects of a store that knows no difference are settled at once.

Crash story: after a kill the next process does not know what was unsettled. It lets the store
settle everything once, and an fsync waits for the end of that.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable

from jfsd import clock
from jfsd.chunk.tasks import TaskSet
from jfsd.object.base import StoreError
from jfsd.types import Ino

log = logging.getLogger(__name__)

SETTLE_AFTER_S = 10.0
"""How long something may be stored and not durable, if the disk keeps up. A kernel leaves
data in memory for up to 30 s; less would sync files that are removed again at once."""
_MAX_SPOILT = 10_000

Slices = list[tuple[int, int]]
Settle = Callable[[Iterable[tuple[int, int]] | None], Awaitable[None]]


class Settler:
    """Knows the slices of each file that are committed and perhaps not durable.

    A file whose slices could not be made durable behind everybody's back is told so at its
    next fsync, once.
    """

    def __init__(self, settle: Settle) -> None:
        """Make a settler; `settle` takes slices as (id, size), None for all there are."""
        self._settle = settle
        self._loose: dict[Ino, Slices] = {}
        self._since_s = 0.0
        self._under_way: dict[Ino, Slices] = {}
        self._spoilt: dict[Ino, None] = {}
        self._tasks = TaskSet("settle")
        self._running: asyncio.Task[None] | None = None
        self._former: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to settle what earlier processes may have left; needed once, before any `sync`."""
        self._former = self._tasks.start(self._settle_former())

    async def close(self) -> None:
        """End all work; what is not settled by now is left to the next process."""
        await self._tasks.close()

    def add(self, ino: Ino, slice_id: int, size: int) -> None:
        """Note a slice of `ino` that was stored."""
        if not self._loose:
            self._since_s = clock.monotonic_s()
        self._loose.setdefault(ino, []).append((slice_id, size))

    def tick(self) -> None:
        """Begin to settle what has waited for long enough; to be called several times a second."""
        due = self._loose and clock.monotonic_s() - self._since_s >= SETTLE_AFTER_S
        if due and not self._under_way:
            self._under_way, self._loose = self._loose, {}
            self._running = self._tasks.start(self._settle_under_way())

    async def sync(self, ino: Ino) -> None:
        """Return when all slices noted for `ino`, also by earlier processes, are durable.

        Raises:
            OSError: EIO; some may not be.
        """
        if self._former is not None and not self._former.done():
            await asyncio.shield(self._former)
        loose = self._loose.pop(ino, [])
        try:
            slices = loose + self._under_way.get(ino, [])
            if slices:
                await self._settle(slices)
        except StoreError as error:
            log.error("file %d: what was written may not outlast a power cut: %s", ino, error)  # noqa: TRY400
            self._spoilt.pop(ino, None)
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        except BaseException:
            self._loose.setdefault(ino, []).extend(loose)
            raise
        if ino in self._spoilt:
            del self._spoilt[ino]
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def sync_all(self) -> None:
        """Return when everything noted is durable, or the log says what may not be."""
        if self._running is not None:
            await asyncio.wait([self._running])
        self._under_way, self._loose = self._loose, {}
        await self._settle_under_way()

    async def _settle_under_way(self) -> None:
        files = self._under_way
        try:
            if files:
                await self._settle(each for slices in files.values() for each in slices)
        except StoreError as error:
            log.error("%d files may not outlast a power cut: %s", len(files), error)  # noqa: TRY400
            self._spoilt.update(dict.fromkeys(files))
            while len(self._spoilt) > _MAX_SPOILT:
                del self._spoilt[next(iter(self._spoilt))]
        finally:
            self._under_way = {}

    async def _settle_former(self) -> None:
        try:
            await self._settle(None)
        except StoreError as error:
            log.warning("what was written before may not outlast a power cut: %s", error)
