"""A store that can be exchanged for another one while it is used."""

from __future__ import annotations

from collections.abc import AsyncIterator

from jfsd.object.base import ObjectInfo, ObjectStore
from jfsd.types import ReadableBuffer


class SwitchedStore:
    """Passes every call to the store of the moment.

    Calls under way end where they began, so former stores stay open until the end.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner
        self._former: list[ObjectStore] = []

    def __repr__(self) -> str:
        return f"<SwitchedStore {self.inner!r}>"

    def __str__(self) -> str:
        return str(self.inner)

    def switch(self, store: ObjectStore) -> None:
        """Use `store` from now on; it is closed together with this one."""
        self._former.append(self.inner)
        self.inner = store

    async def check(self) -> None:
        """Return if the bucket exists and may be read."""
        await self.inner.check()

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object."""
        return await self.inner.get(key, offset, length)

    async def put(self, key: str, body: ReadableBuffer) -> None:
        """Store the object."""
        await self.inner.put(key, body)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self.inner.delete(key)

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self.inner.head(key)

    def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in key order."""
        return self.inner.list(prefix, start_after)

    async def close(self) -> None:
        """Close this store and all former ones."""
        for store in (self.inner, *self._former):
            await store.close()
