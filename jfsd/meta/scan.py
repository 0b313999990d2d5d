"""Walking through large keys in pages, and doing many things at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable

    from jfsd.meta.engine import Engine
    from jfsd.meta.wire import Reply

SCAN_COUNT: Final = 1000

T = TypeVar("T")


async def scan_hash(engine: Engine, key: bytes) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """Yield the (field, value) pairs of a hash in pages; a field may come twice."""
    async for page in _scan(engine, "HSCAN", key):
        yield list(zip(page[::2], page[1::2], strict=True))


async def scan_keys(engine: Engine, pattern: bytes) -> AsyncIterator[list[bytes]]:
    """Yield the keys that match a glob, in pages; a key may come twice."""
    cursor: bytes | int = 0
    while True:
        cursor, page = await engine.connection.call(
            "SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
        )
        yield page
        if int(cursor) == 0:
            return


async def _scan(engine: Engine, command: str, key: bytes) -> AsyncIterator[list[Reply]]:
    cursor: bytes | int = 0
    while True:
        cursor, page = await engine.connection.call(command, key, cursor, "COUNT", SCAN_COUNT)
        yield page
        if int(cursor) == 0:
            return


async def gather_all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results; the first error, when all work has ended."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("list[T]", results)
