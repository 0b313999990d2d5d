"""Puts written bytes into slices (format.md §11.3); nothing here waits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from jfsd import clock
from jfsd.chunk.arena import Arena
from jfsd.chunk.pending import DirtyFile, Journal, Part, PendingSlice, part_cost
from jfsd.failpoint import reach
from jfsd.types import CHUNK_SIZE, Ino, ReadableBuffer

MAX_AGE_S = 5.0
"""An open slice is frozen this long after its first write …"""
MAX_IDLE_S = 1.0
"""… or this long after its last one (format.md §9.13)."""

PACK_PARTS = 1024
"""A pack has so many parts at most."""

_NEWER = 3
"""A part that so many newer ones of its chunk follow is still written to, no older one."""
_STREAM = 3
"""So many writes more that continue an earlier one than such that do not make a stream."""
_SMALL_BYTES = 64 << 10
_SMALL_SHARE = 4
"""Writes go into a pack that are no longer than this and than such a part of a block; and what
is begun as a slice may become a pack until it is as many times as long."""


class Slicer:
    """The open slices of all files.

    A write goes to the newest part of an open slice that it continues, or whose last
    block it overlaps, if no newer part covers what it writes; else to a part of its own.
    That part is the beginning of a new slice; or, if the write is small and belongs to no
    stream, it is put behind the other parts of the newest slice of the file: a pack. So two
    packs, or a pack and a slice, never hold each newer parts than the other.
    A full block is sent as soon as it is full, the last one when the slice is frozen: at
    the end of the chunk, by age, when told to; a pack when nothing more fits in.
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
        self._small = min(_SMALL_BYTES, arena.slot_bytes // _SMALL_SHARE)
        self._packing: Ino = 0
        """File of the last pack that became full; its next one will, too."""
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
            size = min(len(data) - done, CHUNK_SIZE - pos)
            part, follows = self._writable(file, index, pos, size)
            if part is None:
                part = self._begin(file, index, pos, 0 if self._streams(file, follows) else size)
                spent += part.cost
            spent += self._copy(part, pos - part.pos, data, done, size)
            file.chunks[index].cover(part, pos, pos + size)
            self._written(file, part)
            done += size
        return spent

    def freeze(self, pending: PendingSlice) -> None:
        """Let no write extend the slice any more, and send what is left of it."""
        pending.frozen = True
        del self._open[pending.seq]
        if self._packing == pending.ino and pending.length < self._block_size // 2:
            self._packing = 0
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

    def _writable(
        self, file: DirtyFile, index: int, pos: int, size: int
    ) -> tuple[Part | None, bool]:
        """Return the part that a write may go to, and whether it continues an earlier one."""
        follows = False
        chunk = file.chunks.get(index)
        if chunk is None:
            return None, False
        for newer, part in enumerate(reversed(chunk.parts)):
            whole = part.slice
            if newer > _NEWER:
                if not whole.frozen and whole is not file.queue[-1]:
                    self.freeze(whole)
                break
            at, stop = pos - part.pos, part.pos + part.length
            if not whole.frozen and whole.sent * self._block_size <= at and pos <= stop:
                if not whole.packed or pos + size <= stop:
                    return part, True
                if (
                    part.base + part.length == whole.length
                    and part.base + at + size <= self._block_size
                ):
                    return part, True
            follows = follows or pos == stop
            if pos < stop and part.pos < pos + size:
                break
        return None, follows

    def _streams(self, file: DirtyFile, follows: bool) -> bool:
        """Tell whether a write that cannot be put where it continues goes on with a stream.

        So it does if most of the last ones have done that, too.
        """
        file.streak = min(file.streak + 1, 2 * _STREAM) if follows else max(file.streak - 1, 0)
        return follows and file.streak >= _STREAM

    def _begin(self, file: DirtyFile, index: int, pos: int, size: int) -> Part:
        """Return a part for a write of `size` bytes, or 0 if it belongs to a stream."""
        self.seq += 1
        whole = file.queue[-1] if file.queue else None
        if whole is None or not self._fits(whole, size):
            if whole is not None and whole.packed and not whole.frozen:
                if 0 < size <= self._small:
                    self._packing = file.ino
                self.freeze(whole)
            whole = PendingSlice(self.seq, file.ino, clock.monotonic_s())
            whole.alone = not size
            file.queue.append(whole)
            self._open[whole.seq] = whole
            self._journal.on_slice_open(whole)
        part = whole.add(self.seq, index, pos, part_cost(self._arena.budget.limit))
        file.show(part)
        return part

    def _fits(self, whole: PendingSlice, size: int) -> bool:
        """Tell whether a write may become a part of the newest slice of its file."""
        return (
            0 < size <= self._small
            and not whole.frozen
            and not whole.alone
            and not whole.sent
            and whole.length + size <= self._block_size
            and (whole.packed or whole.length <= self._small * _SMALL_SHARE)
        )

    def _copy(self, part: Part, at: int, data: ReadableBuffer, start: int, size: int) -> int:
        """Copy data[start : start + size] to `at` in the part; return the bytes charged."""
        spent = 0
        whole = part.slice
        arena, block_size, slots = self._arena, self._block_size, whole.slots
        at += part.base
        stop = start + size
        if size != len(data) or at % block_size + size > block_size:
            data = memoryview(data)
        while start < stop:
            block, begin = divmod(at, block_size)
            count = min(stop - start, block_size - begin)
            if block == len(slots):
                full = block > 0 or count * 4 >= block_size or self._packing == whole.ino
                slots.append(arena.alloc(filled=full))
            slot = slots[block]
            spent += arena.grow(slot, begin + count)
            base = slot * block_size + begin
            entire = count == len(data)
            arena.memory[base : base + count] = data if entire else data[start : start + count]
            start += count
            at += count
        whole.extend(part, at)
        return spent

    def _written(self, file: DirtyFile, part: Part) -> None:
        whole = part.slice
        now_s = clock.monotonic_s()
        whole.touched_s = now_s
        whole.mtime_ns = file.touched_ns = clock.now_ns()
        file.end = max(file.end, whole.end)
        self._open.move_to_end(whole.seq)
        reach("write.copied")
        self._journal.on_write(part)
        reach("write.recorded")
        if whole.packed:
            full = whole.length == self._block_size or len(whole.parts) >= PACK_PARTS
            if full:
                self._packing = file.ino
        else:
            while (whole.sent + 1) * self._block_size <= whole.length:
                whole.sent += 1
                self._send(whole, whole.sent - 1)
            full = part.stop == CHUNK_SIZE
        if full or now_s - whole.started_s > MAX_AGE_S:
            self.freeze(whole)
