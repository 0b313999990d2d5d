"""Slices that are accepted and not yet committed, and the files that have some."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple, Protocol

from jfsd.types import CHUNK_SIZE, Ino, Slice

UPLOADED = -1
"""Stands in a slice's list of slots for a block whose object is stored."""

SLICE_COST_BYTES = 4096
"""Charged for every pending slice until it is committed, for its bookkeeping."""


class SliceRecord(NamedTuple):
    """All that must survive of a pending slice, apart from its bytes in the arena.

    `slots[j]` is the arena slot of block j, or UPLOADED. `seq` orders the slices of a
    file as they were written.
    """

    seq: int
    ino: Ino
    chunk: int
    pos: int
    length: int
    id: int
    mtime_ns: int
    slots: tuple[int, ...]


class Draft(NamedTuple):
    """Objects that are being written or deleted while no slice list names them."""

    id: int
    size: int
    ino: Ino
    chunk: int


class PendingSlice:
    """A run of bytes of one chunk on its way to the store.

    Life: open (writes may extend it; full blocks are sent) → frozen (all blocks sent) →
    stored (no block left to upload) → committed, or dropped. Invariants: blocks below
    `sent` are never written again; `left` counts blocks sent and not yet stored.
    """

    __slots__ = (
        "dropped",
        "frozen",
        "id",
        "index",
        "ino",
        "left",
        "length",
        "mtime_ns",
        "pos",
        "sent",
        "seq",
        "slots",
        "stalled",
        "started_s",
        "touched_s",
    )

    def __init__(self, seq: int, ino: Ino, index: int, pos: int, now_s: float) -> None:
        self.seq = seq
        self.ino = ino
        self.index = index
        self.pos = pos
        self.length = 0
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
            f"<PendingSlice {self.seq} ino={self.ino} chunk={self.index} pos={self.pos}"
            f" len={self.length} id={self.id} {state} left={self.left}>"
        )

    @property
    def stop(self) -> int:
        """First position in the chunk behind the slice."""
        return self.pos + self.length

    @property
    def end(self) -> int:
        """First position in the file behind the slice."""
        return self.index * CHUNK_SIZE + self.pos + self.length

    @property
    def stored(self) -> bool:
        """Nothing is left to upload and nothing can be added."""
        return self.frozen and self.left == 0

    def overlaps(self, start: int, stop: int) -> bool:
        """Tell whether the slice covers a byte of [start, stop) of its chunk."""
        return start < self.pos + self.length and self.pos < stop

    def as_slice(self) -> Slice:
        """Return the record that commits it; fresh slices are used from their first byte."""
        return Slice(self.pos, self.id, self.length, 0, self.length)

    def as_record(self) -> SliceRecord:
        """Return what must survive of it."""
        return SliceRecord(
            self.seq,
            self.ino,
            self.index,
            self.pos,
            self.length,
            self.id,
            self.mtime_ns,
            tuple(self.slots),
        )


class Journal(Protocol):
    """Is told of every step of a slice, right after it, so that a next process can go on.

    Called in the event loop; must not block or raise.
    """

    def on_slice_open(self, pending: PendingSlice) -> None:
        """A slice without bytes has come to be."""

    def on_write(self, pending: PendingSlice) -> None:
        """Bytes are in the arena; `length`, `mtime_ns` or `slots` changed. Not answered yet."""

    def on_named(self, pending: PendingSlice) -> None:
        """Its id is fixed, before the first upload: a repeat writes the same objects."""

    def on_freeze(self, pending: PendingSlice) -> None:
        """No write will extend it any more."""

    def on_uploaded(self, pending: PendingSlice, block: int) -> None:
        """The object of a block is durable; its slot will be given to others."""

    def on_committed(self, pending: PendingSlice) -> None:
        """The slice is in the metadata, or was dropped; nothing of it is needed any more."""

    def on_draft(self, draft: Draft) -> None:
        """Objects come to be, or were left, that are to be deleted unless they are committed."""

    def on_settled(self, slice_id: int) -> None:
        """The objects of a draft are committed, or gone."""


class NoJournal:
    """Remembers nothing."""

    def on_slice_open(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_write(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_named(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_freeze(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_uploaded(self, pending: PendingSlice, block: int) -> None:
        """Do nothing."""

    def on_committed(self, pending: PendingSlice) -> None:
        """Do nothing."""

    def on_draft(self, draft: Draft) -> None:
        """Do nothing."""

    def on_settled(self, slice_id: int) -> None:
        """Do nothing."""


class DirtyFile:
    """The pending slices of one file and what became of earlier ones.

    `queue` holds those not yet on their way to the metadata, in write order; `committing`
    those that are. `chunks[index]` holds both, in write order, for readers.
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
        "touched_ns",
        "waiters",
    )

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.queue: deque[PendingSlice] = deque()
        self.committing: list[PendingSlice] = []
        self.retry: list[PendingSlice] = []
        """The part of `committing` whose commit failed for now."""
        self.chunks: dict[int, list[PendingSlice]] = {}
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
        self.paused = False
        """True while a chunk is compacted before more may be committed."""
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

    def add(self, pending: PendingSlice) -> None:
        """Append a slice, the newest one."""
        self.queue.append(pending)
        self.chunks.setdefault(pending.index, []).append(pending)

    def each(self) -> list[PendingSlice]:
        """Return all pending slices."""
        return [*self.committing, *self.queue]
