"""Where data begins and ends in a sparse file (lseek(2), SEEK_DATA and SEEK_HOLE)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from jfsd.chunk.overlay import build_view
from jfsd.types import CHUNK_SIZE, Ino

if TYPE_CHECKING:
    from jfsd.chunk.ports import ChunkMeta

_MAX_CHUNKS = 4096
"""Chunks looked at (256 GiB); what lies beyond is called data, which is always allowed."""


async def _extents(meta: ChunkMeta, ino: Ino, index: int) -> list[tuple[int, int]]:
    """Return the data of a chunk as ordered (start, end) file offsets, neighbours joined."""
    base = index * CHUNK_SIZE
    joined: list[tuple[int, int]] = []
    position = base
    for piece in build_view(await meta.read_slices(ino, index)):
        end = position + piece.len
        if piece.id:
            if joined and joined[-1][1] == position:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((position, end))
        position = end
    return joined


async def next_data(meta: ChunkMeta, ino: Ino, off: int, length: int) -> int:
    """Return the first offset >= `off` that lies in data.

    Raises:
        OSError: ENXIO if there is only a hole up to the end.
    """
    first = off // CHUNK_SIZE
    last = (length - 1) // CHUNK_SIZE
    for index in range(first, min(last, first + _MAX_CHUNKS) + 1):
        for start, end in await _extents(meta, ino, index):
            if end > off and start < length:
                return max(start, off)
    if last > first + _MAX_CHUNKS:
        return (first + _MAX_CHUNKS + 1) * CHUNK_SIZE
    raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


async def next_hole(meta: ChunkMeta, ino: Ino, off: int, length: int) -> int:
    """Return the first offset >= `off` that lies in a hole; the end of the file is one."""
    position = off
    while position < length:
        index = position // CHUNK_SIZE
        covering = [e for e in await _extents(meta, ino, index) if e[0] <= position < e[1]]
        if not covering:
            return position
        position = covering[0][1]
        if position < (index + 1) * CHUNK_SIZE:
            break
    return min(position, length)
