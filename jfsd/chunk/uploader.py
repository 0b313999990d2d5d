"""Moves blocks from the arena to the store, some at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from jfsd.chunk.arena import Arena
from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.pending import UPLOADED, Journal, PendingSlice
from jfsd.chunk.ports import ChunkMeta
from jfsd.chunk.tasks import TaskSet
from jfsd.failpoint import reach


class Uploader:
    """Two queues of blocks and up to `max_uploads` tasks that store them.

    A block's slot is freed when its object is stored; whether it outlives a power cut is the
    business of `chunk/settler.py`. A block whose upload failed keeps
    its slot and stands in its slice's `stalled` until it is sent again. Blocks of a dropped
    slice are freed instead of stored.
    """

    def __init__(
        self,
        meta: ChunkMeta,
        blocks: BlockStore,
        arena: Arena,
        journal: Journal,
        *,
        max_uploads: int,
        on_stored: Callable[[PendingSlice], None],
        on_failed: Callable[[PendingSlice, Exception], None],
    ) -> None:
        self.max_uploads = max_uploads
        self.bytes = 0
        """Bytes queued or being uploaded: memory that will become free without more ado."""
        self._meta = meta
        self._blocks = blocks
        self._arena = arena
        self._journal = journal
        self._on_stored = on_stored
        self._on_failed = on_failed
        self._full: deque[tuple[PendingSlice, int]] = deque()
        self._short: deque[tuple[PendingSlice, int]] = deque()
        self._short_next = False
        self._workers = TaskSet("upload")
        self._running = 0
        self._naming = asyncio.Lock()

    def set_max_uploads(self, count: int) -> None:
        """Change how many blocks are stored at once; what is queued is taken up by more tasks."""
        self.max_uploads = count
        for _ in range(min(len(self._full) + len(self._short), count - self._running)):
            self._running += 1
            self._workers.start(self._run())

    def send(self, pending: PendingSlice, block: int) -> None:
        """Queue a block; what it holds must not change from now on."""
        pending.left += 1
        self._enqueue(pending, block)

    def resend(self, pending: PendingSlice) -> None:
        """Queue the blocks again whose upload has failed."""
        for block in sorted(pending.stalled):
            self._enqueue(pending, block)
        pending.stalled.clear()

    async def close(self) -> None:
        """Stop; blocks not stored by now stay in the arena."""
        await self._workers.close()

    def _enqueue(self, pending: PendingSlice, block: int) -> None:
        length = self._length(pending, block)
        self.bytes += length
        queue = self._full if length == self._arena.slot_bytes else self._short
        queue.append((pending, block))
        if self._running < self.max_uploads:
            self._running += 1
            self._workers.start(self._run())

    def _length(self, pending: PendingSlice, block: int) -> int:
        return min(self._arena.slot_bytes, pending.length - block * self._arena.slot_bytes)

    async def _run(self) -> None:
        try:
            await self._work()
        finally:
            self._running -= 1  # in the step that saw the queue empty, so nothing is left there

    async def _work(self) -> None:
        while (self._full or self._short) and self._running <= self.max_uploads:
            pending, block = self._next()
            length = self._length(pending, block)
            try:
                if not pending.dropped:
                    await self._upload(pending, block, length)
            except Exception as error:  # noqa: BLE001 - accepted data outlives any failure
                self.bytes -= length
                if not pending.dropped:
                    pending.stalled.add(block)
                    self._on_failed(pending, error)
                    continue
            else:
                self.bytes -= length
            self._finish(pending, block)

    def _next(self) -> tuple[PendingSlice, int]:
        """Take full and short blocks in turn: a small file need not wait for a large one."""
        self._short_next = not self._short_next
        queue = self._short if self._short and (self._short_next or not self._full) else self._full
        return queue.popleft()

    async def _upload(self, pending: PendingSlice, block: int, length: int) -> None:
        if not pending.id:
            await self._name(pending)
        view = self._arena.view(pending.slots[block], 0, length)
        reach("upload.block")
        await self._blocks.write(pending.id, block, view, durable=False)

    async def _name(self, pending: PendingSlice) -> None:
        async with self._naming:
            if not pending.id:
                pending.id = await self._meta.new_slice_id()
                self._journal.on_named(pending)
                reach("upload.named")

    def _finish(self, pending: PendingSlice, block: int) -> None:
        reach("upload.stored")
        slot = pending.slots[block]
        pending.slots[block] = UPLOADED
        pending.left -= 1
        self._journal.on_uploaded(pending, block)
        reach("upload.recorded")
        self._arena.free(slot)
        self._on_stored(pending)
