"""Slices without references: their objects are deleted, then their last trace (format.md §11.5).

Crash story: the script that takes the last reference away leaves `sliceRef` negative. From then
on anyone may delete the objects, again and again; the field goes last. A SIGKILL in between
leaves a negative field, which the hourly job of some client finds.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from jfsd import clock
from jfsd.errors import JfsdError
from jfsd.meta.scan import gather_all, scan_hash

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from jfsd.meta.engine import Engine

    DeleteSlice = Callable[[int, int], Awaitable[object]]

log = logging.getLogger(__name__)

SLICES_AT_ONCE: Final = 10
MAX_ZEROES: Final = 1_000_000


class SliceReaper:
    """Deletes slices. `delete_slice(id, size)` removes the objects, missing ones included."""

    def __init__(self, engine: Engine, delete_slice: DeleteSlice) -> None:
        self._engine = engine
        self._delete_slice = delete_slice
        self._room = asyncio.Semaphore(SLICES_AT_ONCE)
        self._zeroes: set[bytes] = set()

    async def delete(self, slice_id: int, size: int) -> bool:
        """Delete a slice whose references are gone; False if its objects could not be deleted.

        Then its field stays negative, and a job tries again.
        """
        async with self._room:
            try:
                await self._delete_slice(slice_id, size)
                await self._engine.run("drop_refs", "0", "negative", field_of(slice_id, size))
            except (JfsdError, OSError) as error:
                log.warning("slice %d is left for later: %s", slice_id, error)
                return False
        return True

    async def delete_all(self, slices: Iterable[tuple[int, int]]) -> int:
        """Delete slices a few at a time; return how many are gone."""
        return sum(await gather_all(self.delete(*one) for one in slices))

    async def sweep(self) -> int:
        """Delete every slice whose field is negative; drop fields that say nothing.

        A field of 0 may be the mark of a compaction whose outcome its client has yet to learn
        (format.md §11.4, step 6), so it goes only if it was 0 at the run before, too.

        Returns:
            The number of slices deleted.
        """
        deleted, zeroes = 0, set[bytes]()
        async for page in scan_hash(self._engine, self._engine.keys.slice_ref):
            gone = [field for field, count in page if int(count) < 0]
            deleted += await self.delete_all(filter(None, map(slice_of, gone)))
            page_zeroes = {field for field, count in page if int(count) == 0}
            if stale := page_zeroes & self._zeroes:
                await self._engine.run("drop_refs", "0", "zero", *stale)
            if len(zeroes) < MAX_ZEROES:
                zeroes |= page_zeroes - self._zeroes
        self._zeroes = zeroes
        return deleted

    async def expire_delayed(self, keep_days: int) -> int:
        """Release what compactions replaced more than `keep_days` ago (format.md §11.6).

        Returns:
            The number of slices deleted.
        """
        edge_s, deleted = clock.now_ns() // 10**9 - keep_days * 86400, 0
        async for page in scan_hash(self._engine, self._engine.keys.del_slices):
            for field, _ in page:
                replaced_s = field.rpartition(b"_")[2]
                if replaced_s.isdigit() and int(replaced_s) < edge_s:
                    freed = await self._engine.run("expire_delayed", "0", field)
                    deleted += await self.delete_all((int(id_), size) for id_, size in freed)
        return deleted


def field_of(slice_id: int, size: int) -> bytes:
    """Return the field of `sliceRef` that counts the references of a slice."""
    return b"k%d_%d" % (slice_id, size)


def slice_of(field: bytes) -> tuple[int, int] | None:
    """Return (id, size) of a field of `sliceRef`; None if it is none."""
    id_, _, size = field[1:].partition(b"_")
    if field[:1] != b"k" or not id_.isdigit() or not size.isdigit():
        return None
    return int(id_), int(size)
