"""Slices that are accepted and not yet committed, and the files that have some."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jfsd.types import CHUNK_SIZE, MAX_FILE_BYTES, Ino, Slice

UPLOADED = -1
"""Stands in a slice's list of slots for a block whose object is stored."""

_PART_COST_BYTES = 4096
_MOST_PARTS = 40_000
_BUCKET_BITS = 16


def part_cost(limit_bytes: int) -> int:
    """Return what is charged for a part of a pending slice, whose bookkeeping it pays for.

    It also keeps the number of parts below what the state of the mount has room for.
    """
    return max(_PART_COST_BYTES, limit_bytes // _MOST_PARTS)


class SliceRecord(NamedTuple):
    """All that must survive of a part of a pending slice, apart from its bytes in the arena.

    `slots[j]` is the arena slot of block j, or UPLOADED. `seq` orders the parts of a
    file as they were written. Parts of one pack have the same `pack`, `id` and `slots`.
    """

    seq: int
    ino: Ino
    chunk: int
    pos: int
    length: int
    id: int
    mtime_ns: int
    slots: tuple[int, ...]
    pack: int = 0
    """Number of the pack that it is a part of; 0 for a slice of its own."""
    base: int = 0
    """Where in the slice the part begins."""
    size: int = 0
    """Bytes of the whole pack once that is named, 0 before."""


class PackRecord(NamedTuple):
    """What the parts of a pack have in common."""

    seq: int
    ino: Ino
    size: int
    id: int
    slot: int


class Draft(NamedTuple):
    """Objects that are being written or deleted while no slice list names them."""

    id: int
    size: int
    ino: Ino
    chunk: int


class Part:
    """A run of bytes of one chunk in a pending slice, as one or more writes made it."""

    __slots__ = ("base", "cost", "index", "length", "pos", "seq", "slice")

    def __init__(self, whole: PendingSlice, seq: int, index: int, pos: int, cost: int) -> None:
        self.slice = whole
        self.seq = seq
        self.index = index
        self.pos = pos
        self.base = whole.length
        """Where in the slice it begins."""
        self.cost = cost
        """What the budget is charged for it, beside its bytes."""
        self.length = 0

    def __repr__(self) -> str:
        return f"<Part {self.seq} pos={self.pos} len={self.length} at {self.base} of {self.slice}>"

    @property
    def frozen(self) -> bool:
        """No write will change it any more."""
        return self.slice.frozen

    @property
    def stop(self) -> int:
        """First position in the chunk behind the part."""
        return self.pos + self.length

    @property
    def end(self) -> int:
        """First position in the file behind the part."""
        return self.index * CHUNK_SIZE + self.pos + self.length

    def overlaps(self, start: int, stop: int) -> bool:
        """Tell whether the part covers a byte of [start, stop) of its chunk."""
        return start < self.pos + self.length and self.pos < stop

    def as_slice(self) -> Slice:
        """Return the record that commits it."""
        return Slice(self.pos, self.slice.id, self.slice.length, self.base, self.length)

    def as_record(self) -> SliceRecord:
        """Return what must survive of it."""
        whole = self.slice
        return SliceRecord(
            self.seq,
            whole.ino,
            self.index,
            self.pos,
            self.length,
            whole.id,
            whole.mtime_ns,
            tuple(whole.slots),
            whole.seq if whole.packed else 0,
            self.base,
            whole.length if whole.packed and whole.id else 0,
        )


class PendingSlice:
    """Written bytes of one file on their way to the store as one slice.

    Most are one run of bytes of one chunk. A *pack* holds many small writes, in the order in
    which they came, and is no longer than a block: one object, and one commit with a record
    for each part.

    Life: open (writes may extend it; full blocks are sent) → frozen (all blocks sent) →
    stored (no block left to upload) → committed, or dropped. Invariants: blocks below
    `sent` are never written again; `left` counts blocks sent and not yet stored; parts are
    added while it is open, is the newest of its file, and has no block sent; from its naming
    on, `length` stays.
    """

    __slots__ = (
        "alone",
        "dropped",
        "end",
        "frozen",
        "id",
        "ino",
        "left",
        "length",
        "mtime_ns",
        "packed",
        "parts",
        "sent",
        "seq",
        "slots",
        "stalled",
        "start",
        "started_s",
        "touched_s",
    )

    def __init__(self, seq: int, ino: Ino, now_s: float) -> None:
        self.seq = seq
        self.ino = ino
        self.parts: list[Part] = []
        self.packed = False
        """It has, or had, more than one part."""
        self.alone = False
        """It continues an earlier write, so it is to be one run of bytes."""
        self.length = 0
        self.start = MAX_FILE_BYTES
        """First position in the file of any part."""
        self.end = 0
        """First position in the file behind all parts."""
        self.id = 0
        self.mtime_ns = 0
        self.slots: list[int] = []
        self.sent = 0
        self.left = 0
        self.stalled: set[int] = set()
        """Blocks whose upload failed; they wait for a retry."""
        self.frozen = False
        self.dropped = False
        self.started_s = now_s
        self.touched_s = now_s

    def __repr__(self) -> str:
        state = "dropped" if self.dropped else "frozen" if self.frozen else "open"
        return (
            f"<PendingSlice {self.seq} ino={self.ino} parts={len(self.parts)} start={self.start}"
            f" len={self.length} id={self.id} {state} left={self.left}>"
        )

    @property
    def cost(self) -> int:
        """What the budget is charged for the parts, beside their bytes."""
        return sum(part.cost for part in self.parts)

    @property
    def index(self) -> int:
        """Chunk of the first part."""
        return self.parts[0].index

    @property
    def stored(self) -> bool:
        """Nothing is left to upload and nothing can be added."""
        return self.frozen and self.left == 0

    def add(self, seq: int, index: int, pos: int, cost: int) -> Part:
        """Return a new part, without bytes, behind the others."""
        part = Part(self, seq, index, pos, cost)
        self.parts.append(part)
        self.packed = len(self.parts) > 1
        return part

    def extend(self, part: Part, stop: int) -> None:
        """Let the part reach to `stop` in the slice, at least."""
        self.length = max(self.length, stop)
        part.length = max(part.length, stop - part.base)
        self.start = min(self.start, part.index * CHUNK_SIZE + part.pos)
        self.end = max(self.end, part.end)

    def keep(self, parts: list[Part]) -> None:
        """Have these parts and no others; the bytes of the others stay in the object, unused."""
        self.parts = parts
        self.start = min(part.index * CHUNK_SIZE + part.pos for part in parts)
        self.end = max(part.end for part in parts)

    def overlaps(self, other: PendingSlice) -> bool:
        """Tell whether both may cover a byte; for packs, whether their extents meet."""
        return self.start < other.end and other.start < self.end

    def as_pack(self) -> PackRecord:
        """Return what must survive of a pack beside its parts."""
        size = self.length if self.id else 0
        return PackRecord(self.seq, self.ino, size, self.id, self.slots[0])


class Journal(Protocol):
    """Is told of every step of a slice, right after it, so that a next process can go on.

    Called in the event loop; must not block or raise.
    """

    def on_slice_open(self, pending: PendingSlice) -> None:
        """A slice without bytes has come to be."""

    def on_write(self, part: Part) -> None:
        """Bytes are in the arena; `length`, `mtime_ns` or `slots` changed. Not answered yet."""

    def on_named(self, pending: PendingSlice) -> None:
        """Its id is fixed, before the first upload: a repeat writes the same objects."""

    def on_freeze(self, pending: PendingSlice) -> None:
        """No write will extend it any more."""

    def on_uploaded(self, pending: PendingSlice, block: int) -> None:
        """The object of a block is durable; its slot will be given to others."""

    def on_part_dropped(self, part: Part) -> None:
        """A part will not be committed with the others; nothing of it is needed any more."""

    def on_committed(self, pending: PendingSlice) -> None:
        """The slice is in the metadata, or was dropped; nothing of it is needed any more."""

    def on_owed(self, ino: Ino, number: int) -> None:
        """A program is to be told, with this errno, that data of the file was dropped; 0: none is.

        Called before the data is forgotten.
        """

    def on_draft(self, draft: Draft) -> None:
        """Objects come to be, or were left, that are to be deleted unless they are committed."""

    def on_settled(self, slice_id: int) -> None:
        """The objects of a draft are committed, or gone."""


class NoJournal:
    """Remembers nothing."""

    def on_slice_open(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_write(self, part: Part) -> None:
        """Do nothing."""

    def on_named(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_freeze(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_uploaded(self, pending: PendingSlice, block: int) -> None:
        """Do nothing."""

    def on_part_dropped(self, part: Part) -> None:
        """Do nothing."""

    def on_committed(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_owed(self, ino: Ino, number: int) -> None:
        """Do nothing."""

    def on_draft(self, draft: Draft) -> None:
        """Do nothing."""

    def on_settled(self, slice_id: int) -> None:
        """Do nothing."""


class PendingChunk:
    """The parts of pending slices that lie in one chunk, and which of them are where."""

    __slots__ = ("_buckets", "parts")

    def __init__(self) -> None:
        self.parts: list[Part] = []
        """In write order."""
        self._buckets: dict[int, dict[int, Part]] = {}

    def cover(self, part: Part, start: int, stop: int) -> None:
        """Note that the part holds [start, stop) of the chunk, perhaps among more."""
        buckets = self._buckets
        for number in range(start >> _BUCKET_BITS, ((stop - 1) >> _BUCKET_BITS) + 1):
            bucket = buckets.get(number)
            if bucket is None:
                bucket = buckets[number] = {}
            bucket[part.seq] = part

    def overlapping(self, start: int, stop: int) -> Sequence[Part]:
        """Return the parts that cover a byte of [start, stop), in write order."""
        first, last = start >> _BUCKET_BITS, (stop - 1) >> _BUCKET_BITS
        found: dict[int, Part] = {}
        for number in range(first, last + 1):
            bucket = self._buckets.get(number)
            if bucket is not None:
                found.update(bucket)
        return [found[seq] for seq in sorted(found) if found[seq].overlaps(start, stop)]

    def hide(self, parts: Sequence[Part]) -> None:
        """Forget parts."""
        for part in parts:
            for number in range(part.pos >> _BUCKET_BITS, ((part.stop - 1) >> _BUCKET_BITS) + 1):
                bucket = self._buckets.get(number)
                if bucket is not None:
                    bucket.pop(part.seq, None)
                    if not bucket:
                        del self._buckets[number]
        if len(parts) == 1:
            self.parts.remove(parts[0])
        else:
            gone = set(parts)
            self.parts = [part for part in self.parts if part not in gone]


class DirtyFile:
    """The pending slices of one file and what became of earlier ones.

    `queue` holds those not yet on their way to the metadata, in write order; `committing`
    those that are. `chunks[index]` holds the parts of both, in write order, for readers.
    """

    __slots__ = (
        "chunks",
        "closed",
        "committing",
        "end",
        "ino",
        "length",
        "mtime_ns",
        "outage",
        "paused",
        "queue",
        "refusal",
        "retry",
        "streak",
        "touched_ns",
        "waiters",
    )

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.queue: deque[PendingSlice] = deque()
        self.committing: list[PendingSlice] = []
        self.retry: list[PendingSlice] = []
        """The part of `committing` whose commit failed for now."""
        self.chunks: dict[int, PendingChunk] = {}
        self.streak = 0
        """How many more of the last writes were those of streams than of packs."""
        self.end = 0
        """Highest end of a slice since the file became dirty."""
        self.touched_ns = 0
        """Time of the last write."""
        self.length = 0
        """Length of the file as the last commit told; 0 before the first."""
        self.mtime_ns = 0
        """Latest mtime sent with a commit; later commits never go below it."""
        self.refusal: OSError | None = None
        """Why data was dropped; not told to any program yet."""
        self.outage = 0
        """Errno with which write-back has failed for now, 0 if programs were told of it."""
        self.closed = False
        """Nobody has it open, so that nobody can be told of a refusal."""
        self.paused = 0
        """How many chunks are being compacted before more may be committed."""
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        """Who waits until no slice up to this seq is pending."""

    def __repr__(self) -> str:
        return (
            f"<DirtyFile {self.ino} queue={len(self.queue)} committing={len(self.committing)}"
            f" refusal={self.refusal!r}>"
        )

    @property
    def pending(self) -> bool:
        """Tell whether anything is not committed."""
        return bool(self.queue or self.committing)

    @property
    def oldest(self) -> int:
        """Seq of the oldest pending slice; only while something is pending."""
        if self.committing:
            return min(pending.seq for pending in self.committing)
        return self.queue[0].seq

    @property
    def newest(self) -> int:
        """Seq of the newest pending slice; only while something is pending."""
        if self.queue:
            return self.queue[-1].seq
        return max(pending.seq for pending in self.committing)

    def show(self, part: Part) -> PendingChunk:
        """Let readers see what there will be of a part, the newest one; return its chunk."""
        chunk = self.chunks.get(part.index)
        if chunk is None:
            chunk = self.chunks[part.index] = PendingChunk()
        chunk.parts.append(part)
        return chunk

    def hide(self, parts: Sequence[Part]) -> None:
        """Let no reader see these parts any more."""
        for index in {part.index for part in parts}:
            chunk = self.chunks[index]
            chunk.hide([part for part in parts if part.index == index])
            if not chunk.parts:
                del self.chunks[index]

    def each(self) -> list[PendingSlice]:
        """Return all pending slices."""
        return [*self.committing, *self.queue]
