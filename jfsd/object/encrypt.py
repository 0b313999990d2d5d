"""Storage encryption: a store in which nothing can be read without the volume's key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

from jfsd.object.base import ObjectInfo, ObjectStore
from jfsd.object.envelope import Envelope
from jfsd.types import ReadableBuffer


class EncryptedStore:
    """A store of plaintext over one that sees ciphertext only (format.md §12.4).

    Ranges are cut from whole objects, because an object can only be opened whole.
    """

    def __init__(self, inner: ObjectStore, envelope: Envelope) -> None:
        self.inner = inner
        self.envelope = envelope

    def __repr__(self) -> str:
        return f"<EncryptedStore {self.envelope}: {self.inner!r}>"

    async def check(self) -> None:
        """Return if the bucket exists and may be read."""
        await self.inner.check()

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return decrypted bytes.

        Raises:
            ObjectDamagedError: The object was altered, or sealed with another key.
        """
        sealed = await self.inner.get(key)
        content = await asyncio.to_thread(self.envelope.open, sealed, key)
        if offset == 0 and (length is None or length >= len(content)):
            return content
        return content[offset : None if length is None else offset + length]

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object, sealed."""
        sealed = await asyncio.to_thread(self.envelope.seal, body)
        await self.inner.put(key, sealed, durable=durable)

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable."""
        await self.inner.settle(keys)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self.inner.delete(key)

    async def head(self, key: str) -> ObjectInfo:
        """Return the size of the content, not of what is stored, and the time."""
        return self._shown(await self.inner.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects with the sizes of their contents."""
        async for found in self.inner.list(prefix, start_after):
            yield self._shown(found)

    async def close(self) -> None:
        """Close the store."""
        await self.inner.close()

    def _shown(self, found: ObjectInfo) -> ObjectInfo:
        return found._replace(size=max(0, found.size - self.envelope.overhead))
