"""Joins the slices of a chunk into one (format.md §11.4)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import Counter

from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.layout import decode_record
from jfsd.chunk.lists import SliceLists
from jfsd.chunk.overlay import Piece, Plan, plan_compaction
from jfsd.chunk.pending import Draft, Journal, NoJournal
from jfsd.chunk.ports import ChunkMeta
from jfsd.chunk.tasks import TaskSet
from jfsd.failpoint import reach
from jfsd.object.base import StoreError
from jfsd.types import Ino, Slice

log = logging.getLogger(__name__)

QUIET_S = 3.0
"""A chunk to be compacted is left alone until nothing was committed to it for so long."""
_SOFT_RECORDS = 350
_MANY_RECORDS = 1500
_HARD_RECORDS = 2500
_MOST_RECORDS = 1000
_MAX_BUFFERS = 4
_WHOLE_FROM = 8
"""A block is fetched whole if so many pieces of it go into one block of the new slice."""
_MAX_WAITING = 10_000


def _eio() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


class Compactor:
    """Compacts chunks in the background, at most `max_running` at once and each by one task.

    A compaction changes no byte of any file. Killed before its commit it leaves objects
    that nobody refers to, which the journal names for the next process; killed after it,
    old objects that `sliceRef` still counts.
    """

    def __init__(
        self,
        meta: ChunkMeta,
        blocks: BlockStore,
        lists: SliceLists,
        *,
        max_running: int = 10,
        journal: Journal | None = None,
    ) -> None:
        self._journal: Journal = journal or NoJournal()
        self._meta = meta
        self._blocks = blocks
        self._lists = lists
        self._running: dict[tuple[Ino, int], asyncio.Future[bool]] = {}
        self._planned: dict[tuple[Ino, int], asyncio.TimerHandle] = {}
        self._tasks = TaskSet("compact")
        self._slots = asyncio.Semaphore(max_running)
        self._buffers = asyncio.Semaphore(_MAX_BUFFERS)

    async def close(self) -> None:
        """End all compactions; chunks stay as they are, and half-written slices go."""
        for timer in self._planned.values():
            timer.cancel()
        self._planned.clear()
        await self._tasks.close()

    def schedule(self, ino: Ino, index: int) -> None:
        """Compact a chunk in the background, unless that is under way."""
        if (ino, index) not in self._running and len(self._running) < _MAX_WAITING:
            self._start(ino, index)

    def after_commit(
        self, ino: Ino, index: int, records: int, added: int = 1
    ) -> asyncio.Future[bool] | None:
        """See to a list that has become too long; it now has `records` records.

        Copying a chunk takes as long as thousands of small writes, so it is done at once only
        if the list is very long; else when no more is committed for a while, or somebody
        reads.

        Returns:
            What must end before more slices of the file are committed, None if nothing.
        """
        if records > _MANY_RECORDS:
            self.schedule(ino, index)
            return self._running.get((ino, index)) if records >= _HARD_RECORDS else None
        many = records > _SOFT_RECORDS or (records + 1) // 100 > (records - added + 1) // 100
        if many or (ino, index) in self._planned:
            self._plan(ino, index)
        return None

    def _plan(self, ino: Ino, index: int) -> None:
        """Compact the chunk when it has been left alone for QUIET_S."""
        timer = self._planned.pop((ino, index), None)
        if timer is not None:
            timer.cancel()
        if len(self._planned) < _MAX_WAITING:
            loop = asyncio.get_running_loop()
            self._planned[ino, index] = loop.call_later(QUIET_S, self._quiet, ino, index)

    def _quiet(self, ino: Ino, index: int) -> None:
        del self._planned[ino, index]
        self.schedule(ino, index)

    async def compact(self, ino: Ino, index: int) -> bool:
        """Compact a chunk now; return whether its list has become shorter.

        Raises:
            OSError: A block cannot be read or written (EIO), or the metadata failed.
        """
        return await asyncio.shield(self._running.get((ino, index)) or self._start(ino, index))

    def _start(self, ino: Ino, index: int) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._running[ino, index] = future
        self._tasks.start(self._run(ino, index, future))
        return future

    async def _run(self, ino: Ino, index: int, future: asyncio.Future[bool]) -> None:
        again = False
        try:
            async with self._slots:
                origin = await self._meta.begin_compaction(ino, index)
                shorter = await self._compact(ino, index, origin)
            again = shorter and len(origin) >= _MOST_RECORDS
            future.set_result(shorter)
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            log.info("chunk %d of file %d is not compacted: %r", index, ino, error)
            failure = error if isinstance(error, OSError) else _eio()
            if failure is not error:
                failure.__cause__ = error
            future.set_exception(failure)
            future.exception()
        finally:
            future.cancel()
            del self._running[ino, index]
        if again:
            self.schedule(ino, index)

    async def _compact(self, ino: Ino, index: int, origin: list[bytes]) -> bool:
        try:
            plan = plan_compaction([decode_record(raw) for raw in origin])
        except ValueError as error:
            raise _eio() from error
        if plan is None:
            return False
        slice_id = await self._meta.new_slice_id()
        record = Slice(plan.pos, slice_id, plan.size, 0, plan.size)
        self._journal.on_draft(Draft(slice_id, plan.size, ino, index))
        try:
            await self._write(slice_id, plan)
        except (StoreError, asyncio.CancelledError):  # nobody refers to what is written so far
            await self._delete_draft(slice_id, plan.size)
            raise
        reach("compact.before")
        unused = await self._meta.commit_compaction(ino, index, origin, plan.skipped, record)
        reach("compact.after")
        if unused is None:
            await self._delete_draft(slice_id, plan.size)
            return False
        self._journal.on_settled(slice_id)
        self._lists.invalidate(ino, index)
        for old, size in unused:
            await self._blocks.delete_slice(old, size)
        return True

    async def _delete_draft(self, slice_id: int, size: int) -> None:
        await self._blocks.delete_slice(slice_id, size)
        self._journal.on_settled(slice_id)

    async def _write(self, slice_id: int, plan: Plan) -> None:
        """Make the pieces the durable blocks of a new slice, one block in memory at a time."""
        block_size = self._blocks.block_size
        for block, start in enumerate(range(0, plan.size, block_size)):
            stop = min(start + block_size, plan.size)
            pieces = [
                piece
                for piece in plan.pieces
                if piece.id
                and start < piece.pos + piece.len - plan.pos
                and piece.pos - plan.pos < stop
            ]
            async with self._buffers:
                body = bytearray(stop - start)
                self._prefetch(pieces)
                for piece in pieces:
                    await self._copy(piece, piece.pos - plan.pos, start, memoryview(body))
                await self._blocks.write(slice_id, block, body, durable=False)
        await self._blocks.settle([(slice_id, plan.size)])  # before what they replace is deleted

    def _prefetch(self, pieces: list[Piece]) -> None:
        """Begin to fetch the blocks of which many pieces are wanted, if there is room for them."""
        block_size = self._blocks.block_size
        wanted = Counter((piece.id, piece.size, piece.off // block_size) for piece in pieces)
        for (slice_id, size, block), count in wanted.items():
            if count >= _WHOLE_FROM and not self._blocks.prefetch(slice_id, size, block):
                return

    async def _copy(self, piece: Piece, at: int, start: int, body: memoryview) -> None:
        """Copy the part of a piece that falls into `body`, which begins at `start`."""
        block_size = self._blocks.block_size
        begin, end = max(at, start), min(at + piece.len, start + len(body))
        while begin < end:
            block, off = divmod(piece.off + begin - at, block_size)
            part = min(end - begin, block_size - off)
            data = self._blocks.peek(piece.id, piece.size, block, off, part)
            if data is None:
                data = await self._blocks.read(piece.id, piece.size, block, off, part, once=True)
            body[begin - start : begin - start + part] = data
            begin += part
