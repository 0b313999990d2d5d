"""A store that can be exchanged for another one while it is used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from types import TracebackType

from jfsd.object.base import ObjectInfo, ObjectStore
from jfsd.types import ReadableBuffer

log = logging.getLogger(__name__)


class _Lease:
    """A store and the number of calls that are under way in it."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def __enter__(self) -> ObjectStore:
        self.calls += 1
        self.idle.clear()
        return self.store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.calls -= 1
        if not self.calls:
            self.idle.set()


class SwitchedStore:
    """Passes every call to the store of the moment.

    Calls under way end where they began: a former store is closed after the last of its calls.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self._lease = _Lease(inner)
        self._former: dict[asyncio.Task[None], ObjectStore] = {}

    def __repr__(self) -> str:
        return f"<SwitchedStore {self.inner!r}>"

    def __str__(self) -> str:
        return str(self.inner)

    @property
    def inner(self) -> ObjectStore:
        """The store of the moment."""
        return self._lease.store

    @property
    def former(self) -> list[ObjectStore]:
        """Stores that still have calls under way."""
        return list(self._former.values())

    def switch(self, store: ObjectStore) -> None:
        """Use `store` from now on; the one of now is closed when its calls have ended."""
        lease, self._lease = self._lease, _Lease(store)
        task = asyncio.get_running_loop().create_task(_retire(lease), name="store-retire")
        self._former[task] = lease.store
        task.add_done_callback(self._former.pop)

    async def check(self) -> None:
        """Return if the bucket exists and may be read."""
        with self._lease as store:
            await store.check()

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object."""
        with self._lease as store:
            return await store.get(key, offset, length)

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object."""
        with self._lease as store:
            await store.put(key, body, durable=durable)

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable; a former store settles all its own at its end."""
        if self._former:
            await asyncio.wait(list(self._former))
        with self._lease as store:
            await store.settle(keys)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        with self._lease as store:
            await store.delete(key)

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        with self._lease as store:
            return await store.head(key)

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in key order."""
        with self._lease as store:
            async for found in store.list(prefix, start_after):
                yield found

    async def close(self) -> None:
        """Close this store and all former ones, whose calls are over or wait in vain."""
        former = dict(self._former)
        for task in former:
            task.cancel()
        if former:
            await asyncio.wait(former)
        for store in (self.inner, *former.values()):
            await store.close()


async def _retire(lease: _Lease) -> None:
    await lease.idle.wait()
    try:
        await lease.store.settle(None)
        await lease.store.close()
    except Exception:
        log.exception("%s was not closed", lease.store)
