"""The write-back buffer of the mount: what programs wrote and the store does not have yet."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, KeysView, Mapping, Sequence
from types import MappingProxyType

from jfsd import clock
from jfsd.chunk.arena import PAGE_BYTES, SLOT_COST_BYTES, Arena
from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.committer import Committer
from jfsd.chunk.lists import SliceLists
from jfsd.chunk.pending import (
    UPLOADED,
    DirtyFile,
    Draft,
    Journal,
    NoJournal,
    Part,
    PendingSlice,
    SliceRecord,
    part_cost,
)
from jfsd.chunk.ports import ChunkMeta, PackCommit
from jfsd.chunk.settler import Settler
from jfsd.chunk.slicing import Slicer
from jfsd.chunk.tasks import TaskSet
from jfsd.chunk.uploader import Uploader
from jfsd.failpoint import reach
from jfsd.object.base import StoreFullError
from jfsd.types import CHUNK_SIZE, MAX_FILE_BYTES, Attr, Ino, ReadableBuffer, Slice

log = logging.getLogger(__name__)

_TICK_S = 0.25
_LAST_RETRY_S = 30.0
_WARM_IDLE_BYTES = 16 << 20


def _os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Writer:
    """Accepts writes into the arena, uploads them as slices, commits these in order.

    An accepted write is seen by every later read through this mount (`pending`), and by
    others after `flush`. What happens to data that cannot be brought home:

    * The store or the metadata fails for now (deadline of its own retries passed): the
      data stays in the arena. The next write, fsync or close of the file gets EIO, once
      (ENOSPC if the store is full); the upload or commit is repeated by the next flush and
      in the background, for ever.
    * The metadata refuses the slice for good (ENOSPC, EDQUOT, EPERM, EFBIG): the slice
      and all later ones that grow the file as far are dropped, their objects deleted, the
      next write, fsync or close gets the errno, once. The file keeps its committed length.
      Of a pack the same is done with its parts; those that are left are committed.
    * The file is gone (ENOENT): everything of it is dropped, and whoever still holds it
      open gets ENOENT in the same way.
    """

    def __init__(
        self,
        meta: ChunkMeta,
        blocks: BlockStore,
        arena: Arena,
        lists: SliceLists,
        *,
        max_uploads: int = 20,
        stall_timeout_s: float = 300.0,
        retry_s: float = 1.0,
        on_commit: Callable[[Ino, Attr], None] | None = None,
        compact: Callable[[Ino, int, int, int], asyncio.Future[bool] | None] | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Make a writer that owns nothing but its tasks.

        Args:
            meta: Where slices are committed.
            blocks: Where blocks are stored.
            arena: Where they are kept until then.
            lists: The slice lists that readers of this mount use.
            max_uploads: Blocks uploaded at once.
            stall_timeout_s: How long a write waits for room before it fails with EIO.
            retry_s: Pause before failed uploads and commits are repeated in the background;
                it doubles up to 30 s until a commit succeeds.
            on_commit: Told the attributes of a file after each commit.
            compact: Told (ino, index, records, how many of them are new) after each commit;
                returns a future that ends when the chunk is short enough for more commits,
                or None.
            journal: Told every step of a slice.
        """
        self._meta = meta
        self._blocks = blocks
        self._arena = arena
        self._budget = arena.budget
        self._lists = lists
        self._stall_timeout_s = stall_timeout_s
        self._on_commit = on_commit
        self._compact = compact
        self._journal: Journal = journal or NoJournal()
        self._block_size = arena.slot_bytes
        self._files: dict[Ino, DirtyFile] = {}
        self._failing: dict[Ino, DirtyFile] = {}
        self._first_retry_s = self._retry_s = retry_s
        self._retry_at_s = 0.0
        self._uploader = Uploader(
            meta,
            blocks,
            arena,
            self._journal,
            max_uploads=max_uploads,
            on_stored=self._stored,
            on_failed=self._upload_failed,
        )
        self._slicer = Slicer(arena, self._journal, self._uploader.send, self._frozen)
        self._committer = Committer(
            meta,
            on_done=self._committed,
            on_refused=self._refused,
            on_failed=self._commit_failed,
        )
        self._settler = Settler(blocks.settle)
        self._tasks = TaskSet("writer")
        self._budget.on_pressure = self._relieve

    def start(self) -> None:
        """Begin to flush slices by age."""
        self._tasks.start(self._tick())
        self._settler.start()

    async def close(self) -> None:
        """End all work; nothing is flushed: what is pending stays in the arena."""
        await self._tasks.close()
        await self._settler.close()
        await self._committer.close()
        await self._uploader.close()

    def set_max_uploads(self, count: int) -> None:
        """Change how many blocks are uploaded at once."""
        self._uploader.set_max_uploads(count)

    # -- what programs ask for

    async def write(self, ino: Ino, off: int, data: ReadableBuffer) -> None:
        """Accept `data`; returns without waiting unless the buffer is full.

        A cancelled or failed write may have accepted a first part of a buffer that is
        larger than a quarter of the limit; of any other, all or nothing.

        Raises:
            OSError: An earlier write-back of the file failed (see the class), or EIO when
                no room came free in time.
        """
        if not data:
            return
        self._raise_error(ino)
        piece = max(self._budget.limit // 4, PAGE_BYTES)
        if len(data) <= piece:
            await self._write(ino, off, data)
            return
        view = memoryview(data)
        for start in range(0, len(data), piece):
            await self._write(ino, off + start, view[start : start + piece])

    async def flush(self, ino: Ino) -> None:
        """Return when all that was accepted for `ino` before this call is committed.

        Raises:
            OSError: It is not; see the class for what became of the data.
        """
        file = self._files.get(ino)
        if file is None:
            return
        if file.pending:
            self.push(ino)
            if file.pending:
                await self._wait(file)
        self._raise_refusal(ino)

    async def sync(self, ino: Ino) -> None:
        """Return when all that was accepted for `ino` is committed and outlives a power cut.

        Raises:
            OSError: It does not; see the class for what became of the data.
        """
        await self.flush(ino)
        await self._settler.sync(ino)

    def push(self, ino: Ino) -> None:
        """Send all that was accepted for `ino` on its way, without waiting for it.

        An error stays for the program that has the file open.
        """
        file = self._files.get(ino)
        if file is not None:
            for pending in file.each():
                if not pending.frozen:
                    self._slicer.freeze(pending)
            self._retry(file)

    async def flush_all(self) -> None:
        """Flush every file and make it durable; returns when each was tried.

        Raises:
            ExceptionGroup: Of the OSErrors of files that could not be flushed; one that is
                gone is none of them.
        """
        inos = list(self._files)
        results = await asyncio.gather(*(self.flush(ino) for ino in inos), return_exceptions=True)
        await self._settler.sync_all()
        failed = [
            result
            for result in results
            if isinstance(result, Exception) and not isinstance(result, FileNotFoundError)
        ]
        if failed:
            raise ExceptionGroup("some files could not be flushed", failed)

    def dirty_length(self, ino: Ino) -> int:
        """Return the highest end of the writes not yet committed, 0 if there are none."""
        file = self._files.get(ino)
        return file.end if file is not None and file.pending else 0

    def dirty(self, ino: Ino) -> tuple[int, int] | None:
        """Return (end, mtime in ns) of the writes not yet committed, None if there are none."""
        file = self._files.get(ino)
        if file is None or not file.pending:
            return None
        return file.end, file.touched_ns

    @property
    def dirty_inos(self) -> KeysView[Ino]:
        """All files of which `dirty` may return something, as a view that follows."""
        return self._files.keys()

    @property
    def dirty_files(self) -> list[Ino]:
        """Files with something not committed."""
        return [ino for ino, file in self._files.items() if file.pending]

    @property
    def dirty_bytes(self) -> int:
        """Bytes of the buffer that are charged."""
        return self._budget.charged

    @property
    def block_bytes(self) -> int:
        """Bytes of a full block."""
        return self._block_size

    @property
    def newest(self) -> int:
        """Number of the slice that was begun last."""
        return self._slicer.seq

    @property
    def failing_files(self) -> int:
        """How many files could not be stored at the last attempt; it will be repeated."""
        return len(self._failing)

    def unstored(self, until: int) -> Iterator[PendingSlice]:
        """Yield the pending slices that were begun before or as `until`."""
        for file in self._files.values():
            for pending in (*file.committing, *file.queue):
                if pending.seq <= until:
                    yield pending

    def pending(self, ino: Ino, index: int) -> Sequence[Part]:
        """Return the pending parts of a chunk in write order; they override its list."""
        file = self._files.get(ino)
        chunk = file.chunks.get(index) if file is not None else None
        return chunk.parts if chunk is not None else ()

    def overlapping(self, ino: Ino, index: int, start: int, stop: int) -> Sequence[Part]:
        """Return those of the `pending` parts that cover a byte of [start, stop)."""
        file = self._files.get(ino)
        chunk = file.chunks.get(index) if file is not None else None
        return chunk.overlapping(start, stop) if chunk is not None else ()

    def peek(self, part: Part, block: int, start: int, stop: int) -> memoryview | None:
        """Return bytes of a block of the part's slice that is still in the arena, else None.

        The view must be copied before anything else runs.
        """
        slot = part.slice.slots[block]
        return None if slot == UPLOADED else self._arena.view(slot, start, stop)

    def discard(self, ino: Ino) -> None:
        """Drop everything of a file that does not exist any more, error included."""
        file = self._files.get(ino)
        if file is not None:
            self._drop_queued(file, 0)
            self._owe(file, 0)
            file.closed = True
            self._settle(file)

    def release(self, ino: Ino) -> None:
        """Forget an error that nobody can ask for any more (the last handle is closed)."""
        file = self._files.get(ino)
        if file is not None:
            self._owe(file, 0)
            file.closed = True
            self._settle(file)

    # -- what a next process asks for

    def records(self) -> list[SliceRecord]:
        """Return the parts of all pending slices, in the order of `seq`."""
        found = [
            part.as_record()
            for file in self._files.values()
            for pending in file.each()
            for part in pending.parts
        ]
        return sorted(found)

    def adopt(
        self,
        records: Iterable[SliceRecord],
        opened: Container[Ino] = (),
        owed: Mapping[Ino, int] = MappingProxyType({}),
    ) -> None:
        """Take over the slices of an earlier process, whose arena this is, and go on with them.

        Call once, before any write; sweeps the arena. They are frozen, and named as they
        were, so that objects and commits made before are repeated, not doubled. `opened`
        are the files that somebody has open, `owed` the errnos that it is still to be told.
        """
        slices: dict[int, PendingSlice] = {}
        for record in sorted(records):
            pending = slices.get(record.pack) if record.pack else None
            if pending is None:
                pending = PendingSlice(record.pack or record.seq, record.ino, 0.0)
                slices[pending.seq] = pending
                pending.id = record.id
                pending.slots = list(record.slots)
                self._file(record.ino).queue.append(pending)
            self._adopt_part(pending, record)
        for pending in slices.values():
            for block, slot in enumerate(pending.slots):
                if slot != UPLOADED:
                    rest = pending.length - block * self._block_size
                    self._arena.claim(slot, min(rest, self._block_size))
            file = self._files[pending.ino]
            file.closed = pending.ino not in opened
            file.end = max(file.end, pending.end)
            file.touched_ns = max(file.touched_ns, pending.mtime_ns)
        self._arena.sweep()
        for file in list(self._files.values()):
            for pending in list(file.queue):
                pending.frozen = True
                pending.sent = len(pending.slots)
                for block, slot in enumerate(pending.slots):
                    if slot != UPLOADED:
                        self._uploader.send(pending, block)
                self._journal.on_freeze(pending)
            self._committer.advance(file)
        for ino, number in owed.items():
            if ino in opened:
                self._owe(self._file(ino), number)
            else:
                self._journal.on_owed(ino, 0)

    def _adopt_part(self, pending: PendingSlice, record: SliceRecord) -> None:
        part = pending.add(record.seq, record.chunk, record.pos, part_cost(self._budget.limit))
        part.base = record.base
        pending.extend(part, record.base + record.length)
        pending.packed = bool(record.pack)
        pending.length = max(pending.length, record.size)
        pending.mtime_ns = max(pending.mtime_ns, record.mtime_ns)
        self._files[record.ino].show(part).cover(part, part.pos, part.stop)
        self._budget.charge(part.cost)
        self._slicer.seq = max(self._slicer.seq, record.seq)

    # -- into slices

    async def _write(self, ino: Ino, off: int, data: ReadableBuffer) -> None:
        size = len(data)
        cost = (
            size
            + (size // self._block_size + 2) * (SLOT_COST_BYTES + 2 * PAGE_BYTES)
            + (size // CHUNK_SIZE + 2) * part_cost(self._budget.limit)
        )
        if not self._budget.try_take(cost):
            await self._wait_for_room(ino, cost)
        spent = 0
        try:
            file = self._file(ino)
            file.closed = False
            spent = self._slicer.place(file, off, data)
        finally:
            self._budget.give(cost - spent)
        if self._budget.charged > self._budget.limit * 3 // 4:
            self._relieve()

    async def _wait_for_room(self, ino: Ino, cost: int) -> None:
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                await self._budget.take(cost)
        except TimeoutError as error:
            self._raise_refusal(ino)
            raise _os_error(errno.EIO) from error

    def _file(self, ino: Ino) -> DirtyFile:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = DirtyFile(ino)
        return file

    # -- on the way home

    def _frozen(self, pending: PendingSlice) -> None:
        if pending.left == 0:
            self._committer.advance(self._files[pending.ino])

    def _relieve(self) -> None:
        """Freeze slices, those idle longest first, until enough memory will come free."""
        high = self._budget.limit * 3 // 4
        wanted = max(self._budget.wanted, self._budget.charged - high)
        while self._uploader.bytes < wanted and (idlest := self._slicer.idlest) is not None:
            self._slicer.freeze(idlest)

    def _stored(self, pending: PendingSlice) -> None:
        """Go on with a slice of which one more block is stored, or freed if it was dropped."""
        if pending.dropped:
            self._bury(pending)
        elif pending.stored:
            self._committer.advance(self._files[pending.ino])
        if self._budget.wanted:
            self._relieve()

    def _committed(self, file: DirtyFile, pending: PendingSlice, result: PackCommit) -> None:
        """Move a slice from the pending ones to the list, in one step for any reader."""
        if result.refused:
            self._owe_unless_awaited(file, result.error)
        least = self._drop_refused(file, pending, result) if result.refused else 0
        added: dict[int, list[Slice]] = {index: [] for index in result.records}
        for part in pending.parts:
            added.setdefault(part.index, []).append(part.as_slice())
        for index, records in result.records.items():
            self._lists.committed(file.ino, index, added[index], records)
        self._settler.add(file.ino, pending.id, pending.length)
        self._forget(file, pending)
        self._retry_s = self._first_retry_s
        if self._on_commit is not None:
            self._on_commit(file.ino, result.attr)
        if self._compact is not None:
            for index, records in result.records.items():
                self._shorten(file, index, records, len(added[index]))
        if result.refused:
            self._give_up(file, least, result.error)
        self._settle(file)

    def _shorten(self, file: DirtyFile, index: int, records: int, added: int) -> None:
        """Have a list compacted that is too long; no more is committed if it is far too long."""
        assert self._compact is not None  # noqa: S101 - for the type checker
        shortening = self._compact(file.ino, index, records, added)
        if shortening is not None:
            file.paused += 1
            shortening.add_done_callback(lambda _: self._resume(file))

    def _drop_refused(self, file: DirtyFile, pending: PendingSlice, result: PackCommit) -> int:
        """Give up the parts that the metadata has not taken; return the least of their ends."""
        refused = [part for part in pending.parts if part.base in result.refused]
        self._strip(file, pending, refused)
        return min((part.end for part in refused), default=MAX_FILE_BYTES + 1)

    def _strip(self, file: DirtyFile, pending: PendingSlice, parts: list[Part]) -> None:
        """Give up some parts of a pack, not all."""
        gone = set(parts)
        pending.keep([part for part in pending.parts if part not in gone])
        file.hide(parts)
        for part in parts:
            self._budget.give(part.cost)
            self._journal.on_part_dropped(part)

    def _resume(self, file: DirtyFile) -> None:
        file.paused -= 1
        self._committer.advance(file)
        self._settle(file)

    def _refused(self, file: DirtyFile, pending: PendingSlice, error: OSError) -> None:
        """Give up a slice that the metadata has not taken, and what depends on it."""
        number = error.errno or errno.EIO
        self._owe_unless_awaited(file, number)
        file.hide(pending.parts)
        least = min(part.end for part in pending.parts)
        reach("refused.owed")
        self._bury(pending)
        reach("refused.buried")
        self._give_up(file, 0 if number == errno.ENOENT else least, number)
        self._settle(file)

    def _give_up(self, file: DirtyFile, end: int, number: int) -> None:
        """Drop what waits and reaches as far as `end`, and tell a program why."""
        self._drop_queued(file, end)
        file.end = max((left.end for left in file.each()), default=0)
        if not self._fail_waiters(file, number) and not file.closed:
            self._owe(file, number)

    def _owe_unless_awaited(self, file: DirtyFile, number: int) -> None:
        """Note what nobody will be told at once, before the data is forgotten."""
        if not file.waiters and not file.closed:
            self._owe(file, number)

    def _owe(self, file: DirtyFile, number: int) -> None:
        """Let the next who asks be told that data of the file was dropped; 0 lets nobody."""
        if number or file.refusal is not None:
            self._journal.on_owed(file.ino, number)
        file.refusal = _os_error(number) if number else None

    def _upload_failed(self, pending: PendingSlice, error: Exception) -> None:
        self._failed(self._files[pending.ino], "upload", error)

    def _commit_failed(self, file: DirtyFile, _: PendingSlice, error: Exception) -> None:
        self._failed(file, "commit", error)

    def _failed(self, file: DirtyFile, what: str, error: Exception) -> None:
        """Keep the data, tell the program once, try again later."""
        now_s = clock.monotonic_s()
        if now_s >= self._retry_at_s:
            log.warning("%s of file %d failed, its data is kept: %r", what, file.ino, error)
            self._retry_at_s = now_s + self._retry_s
            self._retry_s = min(self._retry_s * 2, _LAST_RETRY_S)
        self._failing[file.ino] = file
        number = error.errno if isinstance(error, StoreFullError) else errno.EIO
        file.outage = 0 if self._fail_waiters(file, number) else number

    def _fail_waiters(self, file: DirtyFile, number: int) -> bool:
        """Tell the error to all who wait for the file; return False if nobody does."""
        waiters, file.waiters = file.waiters, []
        for _, future in waiters:
            if not future.done():
                future.set_exception(_os_error(number))
        return bool(waiters)

    def _retry(self, file: DirtyFile) -> None:
        if self._failing.pop(file.ino, None) is None:
            return
        file.outage = 0
        for pending in file.each():
            if pending.stalled:
                self._uploader.resend(pending)
        self._committer.retry(file)
        self._committer.advance(file)

    def _drop_queued(self, file: DirtyFile, end: int) -> None:
        """Give up the slices not on their way to the metadata that reach as far as `end`."""
        queue, file.queue = file.queue, deque()
        for pending in queue:
            far = [part for part in pending.parts if part.end >= end]
            if len(far) == len(pending.parts):
                self._drop(file, pending)
                continue
            if far:
                self._strip(file, pending, far)
            file.queue.append(pending)

    def _drop(self, file: DirtyFile, pending: PendingSlice) -> None:
        self._slicer.give_up(pending)
        file.hide(pending.parts)
        for block in range(len(pending.slots)):
            if block >= pending.sent or block in pending.stalled:
                self._arena.free(pending.slots[block])
                pending.slots[block] = UPLOADED
        pending.left -= len(pending.stalled)
        pending.stalled.clear()
        self._bury(pending)

    def _bury(self, pending: PendingSlice) -> None:
        """Delete the objects of a slice that nobody will refer to, once none is under way."""
        if pending.left:
            return
        self._budget.give(pending.cost)
        if pending.id:
            draft = Draft(pending.id, pending.length, pending.ino, pending.index)
            self._journal.on_draft(draft)
            self._tasks.start(self._delete(pending))
        self._journal.on_committed(pending)

    async def _delete(self, pending: PendingSlice) -> None:
        try:
            await self._blocks.delete_slice(pending.id, pending.length)
        except Exception as error:  # noqa: BLE001 - left-over objects are found by gc
            log.warning("objects of slice %d are left behind: %s", pending.id, error)
        else:
            self._journal.on_settled(pending.id)

    def _forget(self, file: DirtyFile, pending: PendingSlice) -> None:
        file.hide(pending.parts)
        self._budget.give(pending.cost)
        self._journal.on_committed(pending)

    def _settle(self, file: DirtyFile) -> None:
        """Wake those whose slices are home; forget a file of which nothing is left."""
        if file.waiters:
            oldest = file.oldest if file.pending else self._slicer.seq + 1
            still = []
            for target, future in file.waiters:
                if target >= oldest:
                    still.append((target, future))
                elif not future.done():
                    future.set_result(None)
            file.waiters = still
        if not file.pending:
            file.outage = 0
            self._failing.pop(file.ino, None)
            if file.refusal is None and not file.paused:
                self._files.pop(file.ino, None)

    async def _wait(self, file: DirtyFile) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (file.newest, future)
        file.waiters.append(entry)
        try:
            await future
        finally:
            if entry in file.waiters:
                file.waiters.remove(entry)

    def _raise_error(self, ino: Ino) -> None:
        """Tell, once, that write-back of the file has failed."""
        self._raise_refusal(ino)
        file = self._files.get(ino)
        if file is not None and file.outage:
            number, file.outage = file.outage, 0
            raise _os_error(number)

    def _raise_refusal(self, ino: Ino) -> None:
        """Tell, once, that data of the file was dropped."""
        file = self._files.get(ino)
        if file is not None and file.refusal is not None:
            refusal = file.refusal
            self._owe(file, 0)
            self._settle(file)
            raise refusal

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = clock.monotonic_s()
            self._slicer.freeze_idle()
            self._settler.tick()
            if self._failing and now_s >= self._retry_at_s:
                self._retry_at_s = now_s + self._retry_s
                for file in list(self._failing.values()):
                    self._retry(file)
            if not self._files:
                self._arena.trim(_WARM_IDLE_BYTES)
