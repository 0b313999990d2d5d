"""What one node is made of, read as it is stored: for commands that show it, changes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from jfsd.meta import codec
from jfsd.meta.keyspace import Keys
from jfsd.types import CHUNK_SIZE, Attr, NodeType, Slice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from jfsd.meta.connection import Connection
    from jfsd.types import Ino

BATCH = 1000
SCAN_ABOVE_CHUNKS = 100_000
"""A file with more chunks than this is likely sparse: its lists are found by a scan of all keys."""


class Chunk(NamedTuple):
    """One chunk of a file that has any data, with its records in commit order."""

    number: int
    records: list[Slice]


async def read_attr(connection: Connection, ino: Ino) -> Attr | None:
    """Return the attributes of a node, or None if there is no such node."""
    record = await connection.call("GET", Keys(connection.prefix).attr(ino))
    return None if record is None else codec.decode_attr(record)


async def find_ino(connection: Connection, start: Ino, names: Iterable[bytes]) -> Ino | None:
    """Return the inode that `names` lead to from directory `start`, or None."""
    keys, ino = Keys(connection.prefix), start
    for name in names:
        entry = await connection.call("HGET", keys.directory(ino), name)
        if entry is None:
            return None
        ino = codec.decode_entry(entry)[1]
    return ino


async def read_chunks(connection: Connection, ino: Ino, attr: Attr) -> AsyncIterator[Chunk]:
    """Yield the chunks of a regular file in order, without those that are all holes."""
    if attr.type is not NodeType.FILE:
        return
    count = -(-attr.length // CHUNK_SIZE)
    indexes: Sequence[int] = range(count)
    if count > SCAN_ABOVE_CHUNKS:
        indexes = [index for index in await _scan_indexes(connection, ino) if index < count]
    keys = Keys(connection.prefix)
    for start in range(0, len(indexes), BATCH):
        batch = indexes[start : start + BATCH]
        calls = [connection.call("LRANGE", keys.chunk(ino, index), "0", "-1") for index in batch]
        for index, records in zip(batch, await asyncio.gather(*calls), strict=True):
            if records:
                yield Chunk(index, codec.decode_slices(records))


async def _scan_indexes(connection: Connection, ino: Ino) -> list[int]:
    head = Keys(connection.prefix).chunk(ino, 0)[:-1]
    pattern = head.replace(b"{", b"\\{") + b"*"
    cursor, found = b"0", set[int]()
    while True:
        cursor, names = await connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", "10000")
        found.update(int(name[len(head) :]) for name in names)
        if cursor == b"0":
            return sorted(found)
