"""Objects in an S3 bucket (format.md §13.2).

Requests for objects take the short way (`s3lean`), everything else that through the client
library (`s3wire`), which is loaded in a thread when it is needed first.
"""

from __future__ import annotations

import asyncio
import importlib
import mimetypes
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING, TypeVar

from jfsd.object.base import ObjectInfo, ObjectMissingError, StoreError
from jfsd.object.crc import crc32c
from jfsd.object.s3base import ANONYMOUS, Credentials, Fetched, HandOverError, Way
from jfsd.object.s3target import CA_BUNDLE, Target, plain_target
from jfsd.object.s3url import S3Location
from jfsd.types import ReadableBuffer

if TYPE_CHECKING:
    from jfsd.object.s3wire import LibraryWay

__all__ = ["ANONYMOUS", "Credentials", "S3Store", "content_type"]

T = TypeVar("T")

_OCTETS = "application/octet-stream"


class S3Store:
    """A bucket of an S3 service: one pool of `connections`, and one more for the library.

    A call is one attempt. PUT carries the CRC-32C of the body, a whole GET checks it; the
    body is hashed no second time and never copied as a whole.

    Where keys and place are known beforehand the short way is open from the first request
    on, otherwise as soon as the library has told them. A redirect closes it for good.
    """

    def __init__(
        self,
        location: S3Location,
        credentials: Credentials,
        *,
        connections: int = 64,
        timeout_s: float = 60.0,
    ) -> None:
        self.location = location
        self._credentials = credentials
        self._connections = connections
        self._timeout_s = timeout_s
        self._way: Way | None = None
        self._lean: Way | None = None
        self._library: LibraryWay | None = None
        self._opening = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<S3Store {self.location}>"

    def __str__(self) -> str:
        return str(self.location)

    async def check(self) -> None:
        """Return if the bucket is there and its objects may be listed."""
        await self._call(lambda way: way.check())

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object; a whole one is checked against its checksum."""
        if length == 0:
            return b""
        if offset == 0 and length is None:
            fetched = await self._call(lambda way: way.get(key))
            if self.location.checksum:
                _verify(key, fetched)
            return fetched.data
        end = None if length is None else offset + length
        span = f"bytes={offset}-{'' if end is None else end - 1}"
        data, partial, _ = await self._call(lambda way: way.get(key, span))
        return data if partial else data[offset:end]

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:  # noqa: ARG002
        """Store the object."""
        crc = str(crc32c(body)) if self.location.checksum else ""
        await self._call(lambda way: way.put(key, body, content_type(key), crc))

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return; what the service has acknowledged is durable."""

    async def delete(self, key: str) -> None:
        """Remove the object."""
        try:
            await self._call(lambda way: way.delete(key))
        except ObjectMissingError:
            return

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self._call(lambda way: way.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects page by page."""
        token = ""
        while True:
            library = await self._open_library()
            found, token = await library.page(prefix, start_after, token)
            for each in found:
                if each.key > start_after:
                    yield each
            if not token:
                return

    async def close(self) -> None:
        """Close all connections."""
        ways = (self._lean, self._library)
        self._way = self._lean = self._library = None
        for way in ways:
            if way is not None:
                await way.close()

    async def _call(self, request: Callable[[Way], Awaitable[T]]) -> T:
        """Await one request, on the way that is open for it."""
        way = self._way or await self._open()
        try:
            return await request(way)
        except HandOverError:
            self._way = library = await self._open_library()
            return await request(library)

    # -- ways

    async def _open(self) -> Way:
        """Return the way that requests take from now on."""
        target = plain_target(self.location, os.environ) if self._credentials.access_key else None
        if target is None:
            await self._open_library()
            assert self._way is not None  # noqa: S101 - see there
            return self._way
        async with self._opening:
            if self._way is None:
                bundle = os.environ.get(CA_BUNDLE, "")
                self._way = await self._open_lean(target, self._credentials, bundle)
            return self._way

    async def _open_library(self) -> LibraryWay:
        """Return the way through the library; where no way is open yet, open the best one."""
        async with self._opening:
            if self._library is None:
                module = await asyncio.to_thread(importlib.import_module, "jfsd.object.s3wire")
                self._library = await module.connect(
                    self.location,
                    self._credentials,
                    connections=self._connections,
                    timeout_s=self._timeout_s,
                )
            if self._way is None:
                self._way = await self._best(self._library)
            return self._library

    async def _best(self, library: LibraryWay) -> Way:
        """Return the short way if the library knows where it goes, else the library's."""
        target = await library.target()
        if target is None:
            return library
        keys = self._credentials if self._credentials.access_key else library.keys
        return await self._open_lean(target, keys, library.ca_bundle())

    async def _open_lean(
        self,
        target: Target,
        keys: Credentials | Callable[[], Awaitable[Credentials]],
        ca_bundle: str,
    ) -> Way:
        from jfsd.object.s3lean import open_lean  # noqa: PLC0415 - not every volume

        self._lean = await open_lean(
            self.location,
            target,
            keys,
            connections=self._connections,
            timeout_s=self._timeout_s,
            ca_bundle=ca_bundle,
        )
        return self._lean


def content_type(key: str) -> str:
    """Return the media type for the ending of `key`."""
    _, dot, ending = key.rpartition("/")[2].rpartition(".")
    if not dot:
        return _OCTETS
    encoded = {"gz": "application/gzip"}.get(ending)
    return encoded or mimetypes.types_map.get(f".{ending}", _OCTETS)


def _verify(key: str, fetched: Fetched) -> None:
    """Compare with the checksum in the object's metadata, if one is there (format.md §13.2)."""
    stated = fetched.stated
    if stated and stated.isdecimal() and int(stated) != crc32c(fetched.data):
        raise StoreError(f"object {key}: its bytes do not match their checksum {stated}")
