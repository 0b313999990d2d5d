"""What every object store does, and how it fails.

Objects are immutable and written once under a key (format.md §12.1). A store maps
its library's exceptions to the ones below, so nothing foreign leaves this layer.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Collection
from typing import NamedTuple, Protocol

from jfsd.errors import ExitCode, JfsdError
from jfsd.types import ReadableBuffer


class StoreError(JfsdError):
    """An object store failed; `retryable` says whether the same call may succeed later.

    `errno` is what a file operation that needed the object fails with.
    """

    exit_code = ExitCode.STORE_UNREACHABLE
    retryable = True
    errno = errno.EIO

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class ObjectMissingError(StoreError):
    """No object has this key (errno ENOENT at the block layer)."""

    retryable = False
    errno = errno.ENOENT


class ObjectDamagedError(StoreError):
    """The object is there and is not what was once stored; reading again gives the same."""

    retryable = False


class StoreFullError(StoreError):
    """The store has no space left; waiting does not make any."""

    retryable = False
    errno = errno.ENOSPC


class StoreRefusedError(StoreError):
    """Forbidden, no such bucket, wrong credentials: only a person can mend it."""

    exit_code = ExitCode.STORE_REFUSED
    retryable = False


class ObjectInfo(NamedTuple):
    """An object as a listing shows it; `mtime_ns` in nanoseconds since the epoch."""

    key: str
    size: int
    mtime_ns: int


class ObjectStore(Protocol):
    """A flat space of objects. Every method may be called concurrently."""

    async def check(self) -> None:
        """Return if the bucket exists and may be read; changes nothing.

        Raises:
            StoreRefusedError: The bucket is missing or forbidden.
            StoreError: The store does not answer.
        """

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes of the object from `offset`, or all of it to its end.

        Fewer bytes are returned where the object ends sooner.

        Raises:
            ObjectMissingError: No such object.
        """

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object; when this returns it is whole and, if so wanted, durable.

        One that is not outlives this process all the same, and a power cut only if `settle`
        has returned before. A kill or a cancellation leaves either no object or all of it,
        never a part under `key`. `body` must not change before this returns; after a
        cancellation it may.
        """

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable; with None, all that were put before.

        By whichever process they were put. An object that is gone is no error.
        """

    async def delete(self, key: str) -> None:
        """Remove the object; it is no error if there is none."""

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object.

        Raises:
            ObjectMissingError: No such object.
        """

    def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects whose key begins with `prefix`, in key order."""

    async def close(self) -> None:
        """Release connections; no call may follow."""
