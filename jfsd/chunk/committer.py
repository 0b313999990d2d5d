"""Brings stored slices into the metadata, in write order (format.md §9.11)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable

from jfsd.chunk.pending import DirtyFile, PendingSlice
from jfsd.chunk.ports import ChunkMeta, PackCommit
from jfsd.chunk.tasks import TaskSet
from jfsd.failpoint import reach

REFUSALS = frozenset({errno.ENOENT, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Answers that a repeat would not change; everything else is tried again."""

_MAX_PER_FILE = 16
_MAX_AT_ONCE = 128


class Committer:
    """Commits the slices of each file in the order in which they were written.

    Several are under way at once, for one round trip each would be slow; but two that
    overlap never are, nor two that may both grow the file, so that neither a lost
    connection nor a repeat can swap them, and no length ever exposes a gap.
    """

    def __init__(
        self,
        meta: ChunkMeta,
        *,
        on_done: Callable[[DirtyFile, PendingSlice, PackCommit], None],
        on_refused: Callable[[DirtyFile, PendingSlice, OSError], None],
        on_failed: Callable[[DirtyFile, PendingSlice, Exception], None],
    ) -> None:
        self._meta = meta
        self._on_done = on_done
        self._on_refused = on_refused
        self._on_failed = on_failed
        self._tasks = TaskSet("commit")
        self._running = 0
        self._ready: deque[DirtyFile] = deque()

    def advance(self, file: DirtyFile) -> None:
        """Start the commits of `file` that may start now."""
        while self._may_start(file):
            if self._running >= _MAX_AT_ONCE:
                if file not in self._ready:
                    self._ready.append(file)
                return
            pending = file.queue.popleft()
            file.committing.append(pending)
            self._start(file, pending)

    def retry(self, file: DirtyFile) -> None:
        """Repeat the commits of `file` that have failed; they keep their slice ids."""
        again, file.retry = file.retry, []
        for pending in again:
            self._start(file, pending)

    async def close(self) -> None:
        """Stop; what is not committed by now stays pending."""
        await self._tasks.close()

    def _may_start(self, file: DirtyFile) -> bool:
        if not file.queue or file.paused or len(file.committing) >= _MAX_PER_FILE:
            return False
        head = file.queue[0]
        if not head.stored:
            return False
        grows = head.end > file.length
        return not any(
            (grows and before.end > file.length) or before.overlaps(head)
            for before in file.committing
        )

    def _start(self, file: DirtyFile, pending: PendingSlice) -> None:
        self._running += 1
        self._tasks.start(self._run(file, pending))

    async def _run(self, file: DirtyFile, pending: PendingSlice) -> None:
        try:
            await self._commit(file, pending)
        finally:
            self._running -= 1
        self.advance(file)
        while self._ready and self._running < _MAX_AT_ONCE:
            self.advance(self._ready.popleft())

    async def _commit(self, file: DirtyFile, pending: PendingSlice) -> None:
        file.mtime_ns = max(file.mtime_ns, pending.mtime_ns)
        reach("commit.before")
        try:
            result = await self._commit_records(file, pending)
        except Exception as error:  # noqa: BLE001 - accepted data outlives any failure
            if isinstance(error, OSError) and error.errno in REFUSALS:
                file.committing.remove(pending)
                self._on_refused(file, pending, error)
            else:
                file.retry.append(pending)
                self._on_failed(file, pending, error)
        else:
            reach("commit.after")
            file.committing.remove(pending)
            file.length = result.attr.length
            self._on_done(file, pending, result)
            reach("commit.forgotten")

    async def _commit_records(self, file: DirtyFile, pending: PendingSlice) -> PackCommit:
        if pending.packed:
            records = [(part.index, part.as_slice()) for part in pending.parts]
            return await self._meta.commit_pack(file.ino, records, file.mtime_ns)
        (part,) = pending.parts
        one = await self._meta.commit_slice(file.ino, part.index, part.as_slice(), file.mtime_ns)
        return PackCommit({part.index: one.records}, one.attr)
