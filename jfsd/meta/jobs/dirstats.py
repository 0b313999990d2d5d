"""Statistics of directories that lack them (format.md §16.1).

Scripts keep the statistics of a directory as long as it has the fields; where a field is missing
or negative the three are computed from the entries. Nothing is lost by a kill: they stay missing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from jfsd.types import NodeType, a4k

if TYPE_CHECKING:
    from jfsd.meta.client import Meta
    from jfsd.types import Entry, Ino

ATTEMPTS: Final = 5


async def ensure_dir_stats(meta: Meta, ino: Ino) -> bool:
    """Make a directory have its statistics; False if it changed all the time, or is gone.

    A file that grows while the entries are read may be counted with its old length.
    """
    keys = (meta.keys.dir_data_length, meta.keys.dir_used_space, meta.keys.dir_used_inodes)
    values = await asyncio.gather(*(meta.connection.call("HGET", key, ino) for key in keys))
    if all(value is not None and int(value) >= 0 for value in values):
        return True
    for _ in range(ATTEMPTS):
        record = await meta.connection.call("GET", meta.keys.attr(ino))
        if record is None:
            return False
        length = space = inodes = 0
        async for batch in meta.readdir(ino, plus=True):
            inodes += len(batch)
            length += sum(map(_length, batch))
            space += sum(a4k(_length(entry)) for entry in batch)
        (stored,) = await meta.run("set_dir_stats", "0", ino, record, length, space, inodes)
        if stored:
            return True
    return False


def _length(entry: Entry) -> int:
    """Return the length of a file's data; other nodes have none."""
    return entry.attr.length if entry.type is NodeType.FILE and entry.attr else 0
