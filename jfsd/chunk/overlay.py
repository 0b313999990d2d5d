"""What a reader sees of a chunk: its records painted one over another (format.md §11.2, §11.4).

Pure functions on numbers. A `Piece` is a `Slice` that overlaps no other piece; id 0
stands for zeros.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from jfsd.types import Slice

Piece: TypeAlias = Slice

_POS = attrgetter("pos")
_SKIP_MIN_BYTES = 1 << 20
_SKIP_RATIO = 5


def clip(piece: Piece, start: int, stop: int) -> Piece:
    """Return the part of `piece` inside [start, stop), which it must touch."""
    left = max(start, piece.pos)
    right = min(stop, piece.pos + piece.len)
    off = piece.off + left - piece.pos if piece.id else 0
    return Piece(left, piece.id, piece.size, off, right - left)


class View:
    """The pieces of one chunk, in order, without gaps from 0 to the end of the last one.

    `records` counts the records painted so far, which is the length of the list in the
    metadata as long as nobody else appended to it.
    """

    __slots__ = ("pieces", "records")

    def __init__(self, records: Iterable[Slice] = ()) -> None:
        self.pieces: list[Piece] = []
        self.records = 0
        for record in records:
            self.paint(record)

    @property
    def end(self) -> int:
        """First position that no record covers; zeros follow."""
        return self.pieces[-1].pos + self.pieces[-1].len if self.pieces else 0

    def paint(self, record: Slice) -> None:
        """Let `record` override everything on [pos, pos + len)."""
        self.records += 1
        if record.len == 0:
            return
        start, stop = record.pos, record.pos + record.len
        pieces, end = self.pieces, self.end
        if start >= end:
            if start > end:
                pieces.append(Piece(end, 0, 0, 0, start - end))
            pieces.append(record)
            return
        first = bisect_right(pieces, start, key=_POS) - 1
        last = bisect_right(pieces, stop - 1, key=_POS) - 1
        fresh = [record]
        if pieces[first].pos < start:
            fresh.insert(0, clip(pieces[first], 0, start))
        if pieces[last].pos + pieces[last].len > stop:
            fresh.append(clip(pieces[last], stop, end))
        pieces[first : last + 1] = fresh

    def find(self, pos: int) -> Piece | None:
        """Return the piece that holds `pos`, None beyond the end."""
        at = bisect_right(self.pieces, pos, key=_POS) - 1
        if at < 0:
            return None
        piece = self.pieces[at]
        return piece if pos < piece.pos + piece.len else None

    def cut(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield pieces that cover [start, stop) exactly, zeros beyond the end included."""
        at = max(0, bisect_right(self.pieces, start, key=_POS) - 1)
        while start < stop and at < len(self.pieces):
            piece = self.pieces[at]
            at += 1
            if piece.pos + piece.len > start:
                part = clip(piece, start, stop)
                yield part
                start += part.len
        if start < stop:
            yield Piece(start, 0, 0, 0, stop - start)


def build_view(records: Iterable[Slice]) -> list[Piece]:
    """Return the ordered, gapless pieces of a chunk whose list is `records`."""
    return View(records).pieces


class Plan(NamedTuple):
    """What a compaction writes: `pieces` as one slice of `size` bytes at `pos`.

    The first `skipped` records of the list stay as they are, in front of it.
    """

    skipped: int
    pos: int
    size: int
    pieces: list[Piece]


def _trim(records: Sequence[Slice]) -> tuple[int, int, list[Piece]]:
    """Return position, size and pieces of the view without zeros at its two ends."""
    pieces = build_view(records)
    first, stop = 0, len(pieces)
    while stop - first > 1 and pieces[first].id == 0:
        first += 1
    while stop - first > 1 and pieces[stop - 1].id == 0:
        stop -= 1
    kept = pieces[first:stop]
    if not kept:
        return 0, 0, []
    if len(kept) == 1 and kept[0].id == 0:
        kept = [kept[0]._replace(len=1)]
    return kept[0].pos, sum(piece.len for piece in kept), kept


def _may_skip(records: Sequence[Slice]) -> bool:
    """Tell whether the first record is big, not overwritten and told apart from the others."""
    first = records[0]
    _, size, pieces = _trim(records)
    if first.len < _SKIP_MIN_BYTES or first.len * _SKIP_RATIO < size or size == 0:
        return False
    return pieces[0] == first and first not in records[1:]


def plan_compaction(records: Sequence[Slice]) -> Plan | None:
    """Return how to compact a chunk, or None when it is not worth it (§11.4, steps 2 and 3)."""
    skipped = 0
    while skipped < len(records) and _may_skip(records[skipped:]):
        skipped += 1
    rest = records[skipped:]
    if len(rest) < 2:
        return None
    pos, size, pieces = _trim(rest)
    if size == 0 or any(
        kept.pos < pos + size and pos < kept.pos + kept.len for kept in records[:skipped]
    ):
        return None
    return Plan(skipped, pos, size, pieces)
