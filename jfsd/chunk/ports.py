"""What the data path needs from the metadata: implemented by `jfsd.meta.client`.

Siblings do not import each other; this is the seam between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jfsd.types import Ino, PackCommit, Slice, SliceCommit

__all__ = ["ChunkMeta", "PackCommit", "SliceCommit"]


class ChunkMeta(Protocol):
    """Slice lists and their changes, each one atomic."""

    async def new_slice_id(self) -> int:
        """Return an id that no client has used (from a batch; usually no round trip)."""

    async def read_slices(self, ino: Ino, index: int, *, known: bool = False) -> list[Slice]:
        """Return the records of a chunk in commit order; empty means zeros.

        Of a file that is `known` to be there, an empty list is taken as it is.

        Raises:
            OSError: ENOENT (no such file), EPERM (not a file), EIO (damaged list).
        """

    async def commit_slice(self, ino: Ino, index: int, record: Slice, mtime_ns: int) -> SliceCommit:
        """Append `record` and grow the file, exactly once per slice id (format.md §9.11).

        A repeat with the same slice id returns the first result.

        Raises:
            OSError: ENOENT (file gone), EPERM, ENOSPC, EDQUOT. The caller deletes its objects.
        """

    async def commit_pack(
        self, ino: Ino, records: Sequence[tuple[int, Slice]], mtime_ns: int
    ) -> PackCommit:
        """Append records (chunk index, record) that share one slice, in order and at once.

        The file grows as by one commit for each: those that it may not grow by are left out,
        and all later ones that reach as far. A repeat with the same slice id returns the
        first result.

        Raises:
            OSError: ENOENT (file gone), EPERM; ENOSPC, EDQUOT: all were refused.
        """

    async def begin_compaction(self, ino: Ino, index: int) -> list[bytes]:
        """Return the raw records of the chunk, at most 1000, as the origin of a compaction."""

    async def commit_compaction(
        self,
        ino: Ino,
        index: int,
        origin: list[bytes],
        skipped: int,
        record: Slice,
    ) -> list[tuple[int, int]] | None:
        """Replace `origin[skipped:]` by `record` (format.md §11.4, step 5).

        Returns:
            (slice id, size) of every old slice that lost its last reference, or None when
            the list has changed meanwhile and nothing was done.
        """
