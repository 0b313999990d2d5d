"""Data of files that are gone: their slice lists, then the note that there was data (§10.3).

Crash story: the script that drops a file's last link notes it in `delfiles`. Its lists are then
deleted in steps, each of which takes the references of the records that it deletes away; the note
goes last. A SIGKILL leaves the note, and an hour later any client goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from jfsd import clock
from jfsd.meta import codec
from jfsd.meta.scan import scan_keys
from jfsd.types import CHUNK_SIZE

if TYPE_CHECKING:
    from jfsd.meta.engine import Engine
    from jfsd.meta.jobs.slices import SliceReaper
    from jfsd.types import Ino

log = logging.getLogger(__name__)

FILES_AT_ONCE: Final = 100
"""Files that are deleted right after their unlink; further ones are left to the job."""
NOTES_PER_RUN: Final = 600_000
PATIENCE_S: Final = 3600
"""Age of a note after which others than its author take care of it."""
INDEXES_PER_SCRIPT: Final = 1000
RECORDS_PER_SCRIPT: Final = 2000
MAX_INDEXES: Final = 1_000_000
"""Chunks up to which their lists are probed one by one; above, the keys are scanned."""
LEGACY_LENGTH: Final = 1 << 30


class FileReaper:
    """Deletes the data of files; at once for our own, hourly for those that others left."""

    def __init__(self, engine: Engine, slices: SliceReaper) -> None:
        self._engine = engine
        self._slices = slices
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def freed(self, ino: Ino, length: int) -> None:
        """Delete the data of a file in the background, unless too much is going on already.

        Then, and after `close`, its note waits for the job. This is what `engine.freed` calls.
        """
        if self._closed or len(self._tasks) >= FILES_AT_ONCE:
            return
        task = asyncio.get_running_loop().create_task(
            self._delete_quietly(ino, length), name=f"delete-file-{ino}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, patience_s: float) -> None:
        """Wait for what `freed` began, no longer than `patience_s`; then end it for good."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience_s)
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def delete(self, ino: Ino, length: int, note: bytes | None = None) -> None:
        """Delete all data of a file that has no node any more, then its note."""
        chunks = (length + CHUNK_SIZE - 1) // CHUNK_SIZE
        if chunks > MAX_INDEXES:
            await self._delete_scanned(ino)
        else:
            await self._delete_lists(ino, 0, chunks)
        await self._engine.connection.call(
            "ZREM", self._engine.keys.delfiles, note or b"%d:%d" % (ino, length)
        )

    async def sweep(self, patience_s: int = PATIENCE_S) -> int:
        """Delete the data of files that nobody deleted for so long; return their number."""
        keys, count = self._engine.keys, 0
        notes: list[bytes] = await self._engine.connection.call(
            "ZRANGEBYSCORE",
            keys.delfiles,
            "-inf",
            clock.now_ns() // 10**9 - patience_s,
            "LIMIT",
            0,
            NOTES_PER_RUN,
        )
        for note in notes:
            with contextlib.suppress(OSError):
                ino, length = codec.decode_delfile(note)
                await self.delete(ino, length, note)
                count += 1
        return count

    async def sweep_legacy(self) -> int:
        """The same for notes of ancient clients: `inode` or `inode:…:length`; 0 is the end."""
        count = 0
        for note in await self._engine.connection.call(
            "ZRANGEBYSCORE",
            self._engine.keys.delfiles,
            "-inf",
            clock.now_ns() // 10**9 - PATIENCE_S,
            "LIMIT",
            0,
            1000,
        ):
            parts = note.split(b":")
            if len(parts) != 2 and parts[0].isdigit():
                known = len(parts) > 2 and parts[2].isdigit()
                await self.delete(int(parts[0]), int(parts[2]) if known else LEGACY_LENGTH, note)
                count += 1
        return count

    async def _delete_quietly(self, ino: Ino, length: int) -> None:
        try:
            await self.delete(ino, length)
        except OSError as error:
            log.warning("data of inode %d is left for later: %s", ino, error)

    async def _delete_lists(self, ino: Ino, first: int, last: int) -> None:
        """Delete the lists from `first` up to `last`, and on as long as there are any."""
        more = 1
        while first < last or more:
            first, more, *freed = await self._step(ino, first, max(last, first + 1))
            await self._slices.delete_all((int(id_), size) for id_, size in freed)

    async def _delete_scanned(self, ino: Ino) -> None:
        async for page in scan_keys(self._engine, b"%sc%d_*" % (self._engine.keys.prefix, ino)):
            for key in page:
                index = int(key.rpartition(b"_")[2])
                await self._delete_lists(ino, index, index + 1)

    async def _step(self, ino: Ino, first: int, last: int) -> list[Any]:
        return await self._engine.run(
            "delete_chunks",
            "0",
            ino,
            first,
            min(last, first + INDEXES_PER_SCRIPT),
            RECORDS_PER_SCRIPT,
        )
