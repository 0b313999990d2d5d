"""Reads of files: committed slices, with what is still in the write buffer on top."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.lists import SliceLists
from jfsd.chunk.overlay import Piece, View
from jfsd.chunk.pending import Part
from jfsd.chunk.readahead import Streams
from jfsd.chunk.tasks import TaskSet
from jfsd.object.base import ObjectDamagedError, ObjectMissingError, StoreError
from jfsd.types import CHUNK_SIZE, Ino, ReadableBuffer

log = logging.getLogger(__name__)

_MANY_PIECES = 5
_RETRY_STEP_S = 0.3
_LAST_RETRY_S = 10.0
_QUICK_RETRIES = 30


class PendingSlices(Protocol):
    """What the reader asks the writer."""

    def overlapping(self, ino: Ino, index: int, start: int, stop: int) -> Sequence[Part]:
        """Return the parts of pending slices in a range of a chunk, in write order."""

    def peek(self, part: Part, block: int, start: int, stop: int) -> memoryview | None:
        """Return bytes of a block that is still in the arena."""


class _Want(NamedTuple):
    """Bytes of one block and where in the answer they belong."""

    at: int
    slice_id: int
    size: int
    block: int
    off: int
    length: int


class Reader:
    """Answers reads, and fetches ahead of streams.

    A read sees every write that was accepted before it began: the pending slices of a
    chunk are looked at in the same step as its list, and their bytes are copied in that
    step. A block that is missing or damaged has its list read again and is tried again,
    up to `io_retries` times (format.md §12.6), then the read fails with EIO.
    """

    def __init__(
        self,
        blocks: BlockStore,
        lists: SliceLists,
        writer: PendingSlices,
        *,
        max_readahead: int = 32 << 20,
        io_retries: int = 10,
        compact: Callable[[Ino, int], None] | None = None,
    ) -> None:
        """Make a reader that owns nothing but its tasks.

        Args:
            blocks: Where blocks come from.
            lists: Slice lists, shared with the writer.
            writer: Who knows the pending slices.
            max_readahead: Largest window of one stream in bytes; 0 for no readahead.
            io_retries: Tries of a block that is missing or damaged.
            compact: Told (ino, index) of chunks that have many pieces.
        """
        self.max_readahead = max_readahead
        self.io_retries = io_retries
        self._blocks = blocks
        self._lists = lists
        self._writer = writer
        self._compact = compact
        self._streams: dict[int, Streams] = {}
        self._windows = 0
        self._tasks = TaskSet("readahead")

    def set_max_readahead(self, length: int) -> None:
        """Change the largest window, that of streams under way included; 0 ends reading ahead."""
        self.max_readahead = length
        for streams in self._streams.values():
            before = streams.window
            streams.limit(length)
            self._windows += streams.window - before

    async def close(self) -> None:
        """End the tasks that read ahead."""
        await self._tasks.close()

    async def read(self, ino: Ino, fh: int, off: int, size: int, length: int) -> ReadableBuffer:
        """Return the bytes of [off, off + size) that lie before `length`, the file's end.

        Raises:
            OSError: EIO when data cannot be had; those of `ChunkMeta.read_slices`.
        """
        size = min(size, length - off)
        if size <= 0:
            return b""
        whole = self._observe(ino, fh, off, size, length)
        index, pos = divmod(off, CHUNK_SIZE)
        if pos + size <= CHUNK_SIZE:
            view = self._lists.peek(ino, index)
            if view is not None and not self._writer.overlapping(ino, index, pos, pos + size):
                data = self._read_now(view, pos, size)
                if data is not None:
                    return data
        if pos + size <= CHUNK_SIZE:
            return await self._read_chunk(ino, index, pos, size, whole)
        out = bytearray(size)
        at = 0
        while at < size:
            index, pos = divmod(off + at, CHUNK_SIZE)
            part = min(size - at, CHUNK_SIZE - pos)
            out[at : at + part] = await self._read_chunk(ino, index, pos, part, whole)
            at += part
        return out

    def knows(self, ino: Ino) -> bool:
        """Return whether anything of a file's slice lists is known."""
        return self._lists.knows(ino)

    async def look_ahead(self, ino: Ino) -> None:
        """Read the slice list of a file that is being opened, for the read that will follow."""
        with suppress(OSError):  # that read will tell
            self._check_pieces(ino, 0, await self._lists.get(ino, 0, known=True))

    def invalidate(self, ino: Ino) -> None:
        """Forget the slice lists of a file that another client, or a truncate, has changed."""
        self._lists.invalidate(ino)

    def release(self, fh: int) -> None:
        """Forget the streams of a handle that is closed."""
        streams = self._streams.pop(fh, None)
        if streams is not None:
            self._windows -= streams.window

    # -- one chunk

    def _read_now(self, view: View, pos: int, size: int) -> ReadableBuffer | None:
        """Return bytes that lie in one block which is at hand, or in one hole."""
        piece = view.find(pos)
        if piece is None:
            return bytes(size)
        start = piece.off + pos - piece.pos
        if pos + size > piece.pos + piece.len:
            return None
        if piece.id == 0:
            return bytes(size)
        block, begin = divmod(start, self._blocks.block_size)
        if begin + size > self._blocks.block_size:
            return None
        return self._blocks.peek(piece.id, piece.size, block, begin, size)

    async def _read_chunk(
        self, ino: Ino, index: int, pos: int, size: int, whole: bool
    ) -> ReadableBuffer:
        """Return `size` bytes of a chunk from `pos`."""
        attempt = 0
        while True:
            attempt += 1
            view = self._lists.peek(ino, index)
            if view is None:
                view = await self._lists.get(ino, index)
                self._check_pieces(ino, index, view)
            try:
                pending = self._writer.overlapping(ino, index, pos, pos + size)
                return await self._read_view(view, pending, pos, size, whole)
            except (ObjectMissingError, ObjectDamagedError) as error:
                if attempt > self.io_retries:
                    raise _unreadable(ino, error) from error
                self._lists.invalidate(ino, index)
                quick = attempt < _QUICK_RETRIES
                await asyncio.sleep((attempt - 1) * _RETRY_STEP_S if quick else _LAST_RETRY_S)
            except StoreError as error:
                raise _unreadable(ino, error) from error

    async def _read_view(
        self, view: View, pending: Sequence[Part], pos: int, size: int, whole: bool
    ) -> ReadableBuffer:
        """Return bytes of a chunk; those that wait for one block hold no memory meanwhile."""
        if not pending:
            wants: list[_Want] = []
            self._want_all(view, pos, pos, pos + size, wants)
            if len(wants) == 1 and wants[0].length == size:
                return await self._read_block(wants[0], whole)
        out = bytearray(size)
        if pending:
            wants = self._plan(view, pending, pos, memoryview(out))
        await self._fill(wants, memoryview(out), whole)
        return out

    async def _read_block(self, want: _Want, whole: bool) -> ReadableBuffer:
        _, slice_id, size, block, off, length = want
        data = self._blocks.peek(slice_id, size, block, off, length)
        if data is not None:
            return data
        return await self._blocks.read(slice_id, size, block, off, length, whole=whole)

    def _check_pieces(self, ino: Ino, index: int, view: View) -> None:
        if self._compact is not None and (
            view.records >= _MANY_PIECES or len(view.pieces) >= _MANY_PIECES
        ):
            self._compact(ino, index)

    def _plan(self, view: View, pending: Sequence[Part], pos: int, out: memoryview) -> list[_Want]:
        """Copy what is in the arena to `out` and return what must be fetched.

        Runs in one step: no slice is committed or freed meanwhile.
        """
        wants: list[_Want] = []
        gaps = [(pos, pos + len(out))]
        for each in reversed(pending):
            if not gaps:
                break
            left: list[tuple[int, int]] = []
            for start, stop in gaps:
                if not each.overlaps(start, stop):
                    left.append((start, stop))
                    continue
                begin, end = max(start, each.pos), min(stop, each.stop)
                self._take(each, begin, end, begin - pos, out, wants)
                if start < begin:
                    left.append((start, begin))
                if end < stop:
                    left.append((end, stop))
            gaps = left
        for start, stop in gaps:
            self._want_all(view, pos, start, stop, wants)
        return wants

    def _take(
        self,
        pending: Part,
        start: int,
        stop: int,
        at: int,
        out: memoryview,
        wants: list[_Want],
    ) -> None:
        """Take [start, stop) of the chunk from a pending slice."""
        block_size, shift = self._blocks.block_size, pending.base - pending.pos
        while start < stop:
            block, begin = divmod(start + shift, block_size)
            part = min(stop - start, block_size - begin)
            data = self._writer.peek(pending, block, begin, begin + part)
            if data is None:
                whole = pending.slice
                wants.append(_Want(at, whole.id, whole.length, block, begin, part))
            else:
                out[at : at + part] = data
            start += part
            at += part

    def _want_all(self, view: View, pos: int, start: int, stop: int, wants: list[_Want]) -> None:
        """Add what is needed for [start, stop) of the chunk to an answer that begins at `pos`."""
        for piece in view.cut(start, stop):
            if piece.id:
                self._want(piece, piece.pos - pos, wants)

    def _want(self, piece: Piece, at: int, wants: list[_Want]) -> None:
        block_size = self._blocks.block_size
        off, stop = piece.off, piece.off + piece.len
        while off < stop:
            block, begin = divmod(off, block_size)
            part = min(stop - off, block_size - begin)
            wants.append(_Want(at, piece.id, piece.size, block, begin, part))
            off += part
            at += part

    async def _fill(self, wants: list[_Want], out: memoryview, whole: bool) -> None:
        """Fetch all at once what is not at hand."""
        missing = [want for want in wants if not self._copy(want, out)]
        if len(missing) == 1:
            await self._fetch(missing[0], out, whole)
        elif missing:
            results = await asyncio.gather(
                *(self._fetch(want, out, whole) for want in missing), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    def _copy(self, want: _Want, out: memoryview) -> bool:
        data = self._blocks.peek(want.slice_id, want.size, want.block, want.off, want.length)
        if data is None:
            return False
        out[want.at : want.at + want.length] = data
        return True

    async def _fetch(self, want: _Want, out: memoryview, whole: bool) -> None:
        out[want.at : want.at + want.length] = await self._blocks.read(
            want.slice_id, want.size, want.block, want.off, want.length, whole=whole
        )

    # -- ahead

    def _observe(self, ino: Ino, fh: int, off: int, size: int, length: int) -> bool:
        """Note a read and fetch ahead of it; tell whether it belongs to a stream."""
        if not self.max_readahead:
            return False
        streams = self._streams.get(fh)
        if streams is None:
            streams = self._streams[fh] = Streams(self._blocks.block_size // 4, self.max_readahead)
        before = streams.window
        advice = streams.observe(off, size, self._blocks.pool.capacity // 2 - self._windows)
        self._windows += streams.window - before
        stop = min(advice.stop, length)
        if advice.start < stop:
            self._ahead(ino, advice.start, stop)
        return advice.sequential

    def _ahead(self, ino: Ino, start: int, stop: int) -> None:
        """Begin to fetch [start, stop) of a file."""
        while start < stop:
            index, pos = divmod(start, CHUNK_SIZE)
            part = min(stop - start, CHUNK_SIZE - pos)
            view = self._lists.peek(ino, index)
            if view is None:
                self._tasks.start(self._ahead_unknown(ino, index, pos, part))
            elif not self._prefetch(view, pos, part):
                return
            start += part

    async def _ahead_unknown(self, ino: Ino, index: int, pos: int, size: int) -> None:
        try:
            view = await self._lists.get(ino, index)
        except OSError:
            return  # the read itself will tell
        self._check_pieces(ino, index, view)
        self._prefetch(view, pos, size)

    def _prefetch(self, view: View, pos: int, size: int) -> bool:
        """Fetch the blocks of a part of a chunk; False if there is no room for more."""
        block_size = self._blocks.block_size
        for piece in view.cut(pos, pos + size):
            if not piece.id:
                continue
            last = (piece.off + piece.len - 1) // block_size
            for block in range(piece.off // block_size, last + 1):
                if not self._blocks.prefetch(piece.id, piece.size, block):
                    return False
        return True


def _unreadable(ino: Ino, error: Exception) -> OSError:
    """Return EIO, whose cause only the log can tell."""
    log.warning("file %d cannot be read: %s", ino, error)
    return OSError(errno.EIO, os.strerror(errno.EIO))
