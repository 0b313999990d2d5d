"""The slice lists of chunks that this mount has read, kept current by its own commits."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from jfsd.chunk.overlay import View
from jfsd.chunk.ports import ChunkMeta
from jfsd.types import Ino, Slice

_MAX_CHUNKS = 8192
_MAX_PIECES = 200_000


class _Fetch:
    """A list on its way from the metadata, and what was committed here meanwhile."""

    __slots__ = ("future", "missed", "stale")

    def __init__(self, future: asyncio.Future[View]) -> None:
        self.future = future
        self.missed: list[Slice] = []
        self.stale = False


class SliceLists:
    """Views of chunks by (ino, index), those used longest ago dropped first.

    Invariants: a view contains every slice that this mount has committed and that was not
    compacted away; a list that was invalidated while it was read is read again. What other
    clients commit is seen after `invalidate` (close-to-open), or when the length of the
    list told by a commit of ours shows that there is something new.
    """

    def __init__(self, meta: ChunkMeta) -> None:
        self._meta = meta
        self._views: OrderedDict[Ino, dict[int, View]] = OrderedDict()
        self._fetches: dict[tuple[Ino, int], _Fetch] = {}
        self._chunks = 0
        self._pieces = 0

    def __len__(self) -> int:
        return self._chunks

    def peek(self, ino: Ino, index: int) -> View | None:
        """Return the view of a chunk if it is known."""
        chunks = self._views.get(ino)
        return None if chunks is None else chunks.get(index)

    def knows(self, ino: Ino) -> bool:
        """Return whether the view of any chunk of a file is known or being read."""
        return ino in self._views or any(key[0] == ino for key in self._fetches)

    async def get(self, ino: Ino, index: int, *, known: bool = False) -> View:
        """Return the view of a chunk; readers that ask at the same time share one request.

        `known`: the file is known to be there.

        Raises:
            OSError: As `ChunkMeta.read_slices`.
        """
        while True:
            view = self.peek(ino, index)
            if view is not None:
                self._views.move_to_end(ino)
                return view
            fetch = self._fetches.get((ino, index))
            if fetch is None:
                fetched = await self._fetch(ino, index, known=known)
                if fetched is not None:
                    return fetched
            else:
                await asyncio.wait([fetch.future])

    async def _fetch(self, ino: Ino, index: int, *, known: bool) -> View | None:
        """Read the list; None if it must be read again."""
        fetch = _Fetch(asyncio.get_running_loop().create_future())
        self._fetches[ino, index] = fetch
        try:
            records = await self._meta.read_slices(ino, index, known=known)
        finally:
            if self._fetches.get((ino, index)) is fetch:
                del self._fetches[ino, index]
            fetch.future.cancel()
        if fetch.stale:
            return None
        read = {record.id for record in records}
        records.extend(record for record in fetch.missed if record.id not in read)
        view = View(records)
        self._keep(ino, index, view)
        return view

    def committed(self, ino: Ino, index: int, added: Sequence[Slice], records: int) -> None:
        """Add what one commit of this mount appended; the list then had `records` records."""
        fetch = self._fetches.get((ino, index))
        if fetch is not None:
            fetch.missed.extend(added)
        view = self.peek(ino, index)
        if view is None:
            return
        if records != view.records + len(added):
            self._drop(ino, index)
            return
        before = len(view.pieces)
        for record in added:
            view.paint(record)
        self._pieces += len(view.pieces) - before

    def invalidate(self, ino: Ino, index: int | None = None) -> None:
        """Forget one chunk, or all chunks of a file: their lists will be read again."""
        for key, fetch in list(self._fetches.items()):
            if key[0] == ino and index in {None, key[1]}:
                fetch.stale = True
                del self._fetches[key]
        known = list(self._views.get(ino, ()))
        for each in known if index is None else [index]:
            self._drop(ino, each)

    def _keep(self, ino: Ino, index: int, view: View) -> None:
        self._drop(ino, index)
        self._views.setdefault(ino, {})[index] = view
        self._views.move_to_end(ino)
        self._chunks += 1
        self._pieces += len(view.pieces)
        while self._chunks > _MAX_CHUNKS or (self._pieces > _MAX_PIECES and self._chunks > 1):
            oldest = next(iter(self._views))
            self._drop(oldest, next(iter(self._views[oldest])))

    def _drop(self, ino: Ino, index: int) -> None:
        chunks = self._views.get(ino)
        view = chunks.pop(index, None) if chunks is not None else None
        if view is None or chunks is None:
            return
        self._chunks -= 1
        self._pieces -= len(view.pieces)
        if not chunks:
            del self._views[ino]
