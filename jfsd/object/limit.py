"""Bandwidth limits: bytes pass in the order in which they asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from jfsd.clock import monotonic_s
from jfsd.object.base import ObjectInfo, ObjectStore
from jfsd.types import ReadableBuffer

BURST_S = 0.25
"""How much unused time may be saved up."""
_LOOK_AGAIN_S = 0.5
"""How soon a waiting taker notices that the rate was changed."""


def mbps(limit_mbps: float) -> float:
    """Return bytes per second for a limit in megabits per second, as volumes state it."""
    return limit_mbps * 1_000_000 / 8


class RateLimit:
    """A budget of `rate` bytes per second; 0 is no limit. `rate` may change at any time.

    Takers pass in the order in which they came. One passes as soon as nothing is owed, and
    then owes its bytes: over any time t at most rate · (t + BURST_S) bytes and those of one
    taker are let through.
    """

    def __init__(self, rate: float = 0) -> None:
        self.rate = rate
        self._turn = asyncio.Lock()
        self._balance = 0.0
        self._counted_at_s = monotonic_s()

    def __repr__(self) -> str:
        return f"<RateLimit {self.rate:.0f} B/s>" if self.rate > 0 else "<RateLimit none>"

    async def take(self, count: int) -> None:
        """Return when `count` bytes may pass; cancelled, it has taken nothing."""
        if self.rate <= 0:
            return
        async with self._turn:
            while (wait_s := self._wait_s()) > 0:  # noqa: ASYNC110 - time is what it waits for
                await asyncio.sleep(min(wait_s, _LOOK_AGAIN_S))
            self._balance -= count

    def owe(self, count: int) -> None:
        """Charge for bytes that have passed already; later takers wait for them."""
        if self.rate > 0:
            self._wait_s()
            self._balance -= count

    def _wait_s(self) -> float:
        """Count what has come in since the last call; return when the debt is paid."""
        now_s = monotonic_s()
        earned = (now_s - self._counted_at_s) * self.rate
        self._counted_at_s = now_s
        if self.rate <= 0:
            self._balance = 0.0
            return 0.0
        self._balance = min(self._balance + earned, BURST_S * self.rate)
        return -self._balance / self.rate


class LimitedStore:
    """A store whose contents pass no faster than `upload` and `download` allow."""

    def __init__(self, inner: ObjectStore, upload: RateLimit, download: RateLimit) -> None:
        self.inner = inner
        self.upload = upload
        self.download = download

    def __repr__(self) -> str:
        return f"<LimitedStore up {self.upload} down {self.download}: {self.inner!r}>"

    async def check(self) -> None:
        """Return if the bucket exists and may be read."""
        await self.inner.check()

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object; when their number is not known before, others wait after."""
        if length is not None:
            await self.download.take(length)
            return await self.inner.get(key, offset, length)
        await self.download.take(0)
        data = await self.inner.get(key, offset, length)
        self.download.owe(len(data))
        return data

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object."""
        await self.upload.take(len(body))
        await self.inner.put(key, body, durable=durable)

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable."""
        await self.inner.settle(keys)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self.inner.delete(key)

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self.inner.head(key)

    def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`."""
        return self.inner.list(prefix, start_after)

    async def close(self) -> None:
        """Close the store."""
        await self.inner.close()
