"""Puts written bytes into slices (format.md §11.3); nothing here waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from jfsd import clock
from jfsd.chunk.arena import Arena
from jfsd.chunk.pending import SLICE_COST_BYTES, DirtyFile, Journal, PendingSlice
from jfsd.failpoint import reach
from jfsd.types import CHUNK_SIZE, ReadableBuffer

MAX_AGE_S = 5.0
"""An open slice is frozen this long after its first write …"""
MAX_IDLE_S = 1.0
"""… or this long after its last one (format.md §9.13)."""

_NEWER = 3
"""A slice that so many newer ones of its chunk follow is still written to, no older one."""


class Slicer:
    """The open slices of all files.

    A write goes to the newest open slice of its chunk that it continues, or whose last
    block it overlaps, if no newer slice covers what it writes; else to a slice of its own.
    A full block is sent as soon as it is full, the last one when the slice is frozen: at
    the end of the chunk, by age, when told to.
    """

    def __init__(
        self,
        arena: Arena,
        journal: Journal,
        send: Callable[[PendingSlice, int], None],
        on_frozen: Callable[[PendingSlice], None],
    ) -> None:
        self.seq = 0
        """Number of the newest slice."""
        self._arena = arena
        self._journal = journal
        self._send = send
        self._on_frozen = on_frozen
        self._block_size = arena.slot_bytes
        self._open: OrderedDict[int, PendingSlice] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def idlest(self) -> PendingSlice | None:
        """The open slice written to longest ago."""
        return next(iter(self._open.values()), None)

    def place(self, file: DirtyFile, off: int, data: ReadableBuffer) -> int:
        """Copy `data` into slices; return what of the caller's charge was spent."""
        spent = done = 0
        while done < len(data):
            index, pos = divmod(off + done, CHUNK_SIZE)
            part = min(len(data) - done, CHUNK_SIZE - pos)
            pending = self._writable(file, index, pos, part)
            if pending is None:
                pending = self._begin(file, index, pos)
                spent += SLICE_COST_BYTES
            spent += self._copy(pending, pos - pending.pos, data, done, part)
            self._written(file, pending)
            done += part
        return spent

    def freeze(self, pending: PendingSlice) -> None:
        """Let no write extend the slice any more, and send what is left of it."""
        pending.frozen = True
        del self._open[pending.seq]
        while pending.sent < len(pending.slots):
            pending.sent += 1
            self._send(pending, pending.sent - 1)
        self._journal.on_freeze(pending)
        self._on_frozen(pending)

    def freeze_idle(self) -> None:
        """Freeze the slices that have not been written to for MAX_IDLE_S."""
        limit = clock.monotonic_s() - MAX_IDLE_S
        while (pending := self.idlest) is not None and pending.touched_s <= limit:
            self.freeze(pending)

    def give_up(self, pending: PendingSlice) -> None:
        """Let no write extend a slice that is dropped."""
        pending.dropped = True
        if not pending.frozen:
            pending.frozen = True
            del self._open[pending.seq]

    def _writable(self, file: DirtyFile, index: int, pos: int, size: int) -> PendingSlice | None:
        for newer, pending in enumerate(reversed(file.chunks.get(index, ()))):
            if newer > _NEWER:
                if not pending.frozen:
                    self.freeze(pending)
                return None
            if not pending.frozen and (
                pending.pos + pending.sent * self._block_size <= pos <= pending.stop
            ):
                return pending
            if pending.overlaps(pos, pos + size):
                return None
        return None

    def _begin(self, file: DirtyFile, index: int, pos: int) -> PendingSlice:
        self.seq += 1
        pending = PendingSlice(self.seq, file.ino, index, pos, clock.monotonic_s())
        file.add(pending)
        self._open[pending.seq] = pending
        self._journal.on_slice_open(pending)
        return pending

    def _copy(
        self, pending: PendingSlice, at: int, data: ReadableBuffer, start: int, size: int
    ) -> int:
        """Copy data[start : start + size] to `at` in the slice; return the bytes charged."""
        spent = 0
        arena, block_size, slots = self._arena, self._block_size, pending.slots
        stop = start + size
        if size != len(data) or at % block_size + size > block_size:
            data = memoryview(data)
        while start < stop:
            block, begin = divmod(at, block_size)
            part = min(stop - start, block_size - begin)
            if block == len(slots):
                slots.append(arena.alloc(filled=block > 0 or part * 4 >= block_size))
            slot = slots[block]
            spent += arena.grow(slot, begin + part)
            base = slot * block_size + begin
            whole = part == len(data)
            arena.memory[base : base + part] = data if whole else data[start : start + part]
            start += part
            at += part
        pending.length = max(pending.length, at)
        return spent

    def _written(self, file: DirtyFile, pending: PendingSlice) -> None:
        now_s = clock.monotonic_s()
        pending.touched_s = now_s
        pending.mtime_ns = file.touched_ns = clock.now_ns()
        file.end = max(file.end, pending.end)
        self._open.move_to_end(pending.seq)
        reach("write.copied")
        self._journal.on_write(pending)
        reach("write.recorded")
        while (pending.sent + 1) * self._block_size <= pending.length:
            pending.sent += 1
            self._send(pending, pending.sent - 1)
        if pending.stop == CHUNK_SIZE or now_s - pending.started_s > MAX_AGE_S:
            self.freeze(pending)
