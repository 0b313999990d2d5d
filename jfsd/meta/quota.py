"""Quotas as they are stored: limits and usage of directories, users and groups (format.md §16.3).

Usage is kept inside every mutating script, and limits are checked there; this module only reads.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from jfsd.meta import codec
from jfsd.meta.scan import scan_hash

if TYPE_CHECKING:
    from jfsd.meta.engine import Engine


class QuotaKind(Enum):
    """What a quota limits; the value is the beginning of its keys' names."""

    DIRECTORY = "dirQuota"
    USER = "userQuota"
    GROUP = "groupQuota"


class Quota(NamedTuple):
    """A quota on a directory's tree (`id` is its inode), a uid or a gid; limit 0 is none."""

    kind: QuotaKind
    id: int
    max_bytes: int
    max_inodes: int
    used_bytes: int
    used_inodes: int


async def read_quotas(engine: Engine, kind: QuotaKind) -> list[Quota]:
    """Return all quotas of a kind by id; usage that is recorded without limits is one without."""
    prefix = engine.keys.prefix + kind.value.encode()
    limits, used_bytes, used_inodes = await asyncio.gather(
        _read(engine, prefix),
        _read(engine, prefix + b"UsedSpace"),
        _read(engine, prefix + b"UsedInodes"),
    )
    quotas = []
    for number in sorted({*limits, *used_bytes, *used_inodes}):
        max_bytes, max_inodes = codec.decode_quota(limits[number]) if number in limits else (0, 0)
        quotas.append(
            Quota(
                kind,
                number,
                max(max_bytes, 0),
                max(max_inodes, 0),
                int(used_bytes.get(number, 0)),
                int(used_inodes.get(number, 0)),
            )
        )
    return quotas


async def _read(engine: Engine, key: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    async for page in scan_hash(engine, key):
        found.update((int(field), value) for field, value in page)
    return found
