"""When the jobs of a mount run: each on its own timer, in turn with all clients (format.md §17).

The turns are counters in the database, so of a thousand clients one does the work each hour. A
client that is killed in its turn leaves the rest to the next turn of any client.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from jfsd import clock
from jfsd.errors import JfsdError
from jfsd.meta.engine import FencedError
from jfsd.meta.jobs.dirstats import ensure_dir_stats
from jfsd.meta.jobs.files import FileReaper
from jfsd.meta.jobs.slices import SliceReaper
from jfsd.meta.jobs.trash import TrashReaper
from jfsd.meta.jobs.trees import TreeReaper
from jfsd.meta.session import take_turn
from jfsd.types import ROOT_INO, TRASH_INO

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from jfsd.meta.client import Meta
    from jfsd.meta.jobs.slices import DeleteSlice
    from jfsd.types import Ino

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600
TURN_S: Final = 3240
LIMIT_S: Final = 50 * 60
LEGACY_INTERVAL_S: Final = 60
DETACHED_S: Final = 86400


class Housekeeping:
    """All jobs of one writable mount, and the immediate deletion of what it frees itself.

    Attributes:
        slices, files, trees, trash: The reapers, for whoever wants one to run now.
    """

    def __init__(
        self,
        meta: Meta,
        delete_slice: DeleteSlice,
        open_inos: Callable[[], Container[Ino]] = tuple,
    ) -> None:
        self._meta = meta
        self.slices = SliceReaper(meta, delete_slice)
        self.files = FileReaper(meta, self.slices)
        self.trees = TreeReaper(meta, open_inos)
        self.trash = TrashReaper(meta, self.trees)
        meta.freed = self.files.freed

    async def run(self) -> None:
        """Do the jobs when they are due, until cancelled.

        Raises:
            FencedError: (in a group) A newer server owns the mount.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._complete_root(), name="job-root-stats")
            for name, counter, work in (
                ("files", "lastCleanupFiles", self.files.sweep),
                ("slices", "nextCleanupSlices", self.slices.sweep),
                ("trash", "lastCleanupTrash", self.empty_trash),
            ):
                group.create_task(self._hourly(name, counter, work), name=f"job-{name}")
            group.create_task(self._legacy(), name="job-legacy-files")

    async def catch_up(self) -> None:
        """Do now what a former server of this mount had begun: its deletions of freed data."""
        try:
            files = await self.files.sweep(patience_s=0)
            slices = await self.slices.sweep()
        except (JfsdError, OSError) as error:
            log.warning("what the former server freed is left for the hourly jobs: %s", error)
        else:
            log.debug("caught up with %d files and %d slices", files, slices)

    async def empty_trash(self) -> int:
        """Delete what has been kept for long enough: trash, replaced slices, half-made clones."""
        await self._remove_detached()
        if not await self._meta.connection.call("EXISTS", self._meta.keys.attr(TRASH_INO)):
            return 0
        days = self._meta.trash_days
        emptied, _ = await asyncio.gather(self.trash.sweep(days), self.slices.expire_delayed(days))
        return emptied

    async def _remove_detached(self) -> None:
        """Delete clones that were begun a day ago and have no entry yet (format.md §9.17)."""
        edge_s = clock.now_ns() // 10**9 - DETACHED_S
        for member in await self._meta.connection.call(
            "ZRANGEBYSCORE", self._meta.keys.detached_nodes, "-inf", edge_s
        ):
            await self.trees.remove_detached(int(member))

    async def close(self, patience_s: float = 10) -> None:
        """End the deletions of what was freed lately; what is left is done by some client's job."""
        await self.files.close(patience_s)

    async def _complete_root(self) -> None:
        """Compute the root's statistics, which nobody made when the volume was (§16.1)."""
        try:
            await ensure_dir_stats(self._meta, ROOT_INO)
        except OSError as error:
            log.warning("the root's statistics stay unknown: %s", error)

    async def _hourly(self, name: str, counter: str, work: Callable[[], Awaitable[int]]) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S * random.uniform(0.95, 1.05))  # noqa: S311
            try:
                if await take_turn(self._meta, counter, TURN_S):
                    async with asyncio.timeout(LIMIT_S):
                        log.info("job %s: %d done", name, await work())
            except FencedError:
                raise
            except (JfsdError, OSError) as error:
                log.warning("job %s failed, and will run again: %s", name, error)

    async def _legacy(self) -> None:
        count = 1
        while count:
            await asyncio.sleep(LEGACY_INTERVAL_S * random.uniform(0.95, 1.05))  # noqa: S311
            try:
                count = await self.files.sweep_legacy()
            except FencedError:
                raise
            except (JfsdError, OSError) as error:
                log.warning("job legacy-files failed, and will run again: %s", error)
