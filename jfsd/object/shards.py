"""Objects spread over several buckets by a hash of their key (format.md §13.3)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import cast

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectInfo, ObjectStore
from jfsd.types import ReadableBuffer

MAX_SHARDS = 256
_VERB = re.compile(r"%(0\d+)?d")


def fnv1a_32(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash of `data`."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def shard_of(key: str, shards: int) -> int:
    """Return the number of the bucket, 0 … shards-1, that holds `key`."""
    return fnv1a_32(key.encode()) % shards


def shard_buckets(bucket: str, shards: int) -> list[str]:
    """Return the buckets of a volume: one, or the template `bucket` filled in `shards` times.

    Raises:
        RefusedError: More shards than 256, or a template without exactly one `%d`.
    """
    if shards <= 1:
        return [bucket]
    if shards > MAX_SHARDS:
        raise RefusedError(
            ExitCode.USAGE,
            f"{shards} shards",
            f"a volume has at most {MAX_SHARDS}",
            "use fewer buckets",
        )
    verb = _VERB.search(bucket)
    if verb is None or _VERB.search(bucket, verb.end()):
        raise RefusedError(
            ExitCode.USAGE,
            f"bucket {bucket!r}",
            f"with {shards} shards it must contain %d once",
            "put %d where the number of the shard belongs",
        )
    head, tail = bucket[: verb.start()], bucket[verb.end() :]
    return [f"{head}{verb.group() % number}{tail}" for number in range(shards)]


class ShardedStore:
    """Several stores that look like one. Each key has exactly one home, for ever."""

    def __init__(self, shards: Sequence[ObjectStore]) -> None:
        self.shards = tuple(shards)

    def __repr__(self) -> str:
        return f"<ShardedStore of {len(self.shards)}: {self.shards[0]!r} …>"

    def __str__(self) -> str:
        return f"{self.shards[0]} and {len(self.shards) - 1} more"

    def home(self, key: str) -> ObjectStore:
        """Return the store that holds `key`."""
        return self.shards[shard_of(key, len(self.shards))]

    async def check(self) -> None:
        """Return if every bucket exists and may be read."""
        outcomes = await asyncio.gather(
            *(shard.check() for shard in self.shards), return_exceptions=True
        )
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object from its home."""
        return await self.home(key).get(key, offset, length)

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object in its home."""
        await self.home(key).put(key, body, durable=durable)

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable."""
        if keys is None:
            await asyncio.gather(*(shard.settle(None) for shard in self.shards))
            return
        homes: dict[int, list[str]] = {}
        for key in keys:
            homes.setdefault(shard_of(key, len(self.shards)), []).append(key)
        await asyncio.gather(*(self.shards[n].settle(part) for n, part in homes.items()))

    async def delete(self, key: str) -> None:
        """Remove the object from its home."""
        await self.home(key).delete(key)

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self.home(key).head(key)

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield the objects of all shards, merged in key order."""
        async with AsyncExitStack() as stack:
            heads: list[tuple[ObjectInfo, int]] = []
            sources = []
            for number, shard in enumerate(self.shards):
                source = cast("AsyncGenerator[ObjectInfo]", shard.list(prefix, start_after))
                sources.append(await stack.enter_async_context(aclosing(source)))
                first = await anext(source, None)
                if first is not None:
                    heads.append((first, number))
            while heads:
                lowest = min(heads)
                heads.remove(lowest)
                yield lowest[0]
                following = await anext(sources[lowest[1]], None)
                if following is not None:
                    heads.append((following, lowest[1]))

    async def close(self) -> None:
        """Close every shard, also when one of them fails to."""
        async with AsyncExitStack() as stack:
            for shard in self.shards:
                stack.push_async_callback(shard.close)
