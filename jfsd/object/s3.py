"""Objects in an S3 bucket (format.md §13.2).

Light to import: what speaks to the network is loaded in a thread by the first call.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import crc32c

from jfsd.object.base import ObjectInfo, ObjectMissingError, StoreError
from jfsd.object.s3url import S3Location
from jfsd.types import ReadableBuffer

if TYPE_CHECKING:
    from jfsd.object.s3wire import Wire

T = TypeVar("T")

ANONYMOUS = "anonymous"
_CRC = "crc32c"
_OCTETS = "application/octet-stream"
_PARTIAL = 206


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys of an account; never shown. An empty access key asks the environment for all."""

    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)

    @property
    def anonymous(self) -> bool:
        """Whether requests are sent unsigned."""
        return self.access_key == ANONYMOUS


class S3Store:
    """A bucket of an S3 service: one client with one pool of `connections`.

    A call is one attempt. PUT carries the CRC-32C of the body, a whole GET checks it; the
    body is hashed no second time and never copied as a whole.
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
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<S3Store {self.location}>"

    def __str__(self) -> str:
        return str(self.location)

    async def check(self) -> None:
        """Return if the bucket is there and its objects may be listed."""
        await self._call("check", lambda wire: wire.client.list_objects_v2(**self._at(), MaxKeys=1))

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object; a whole one is checked against its checksum."""
        if length == 0:
            return b""
        if offset == 0 and length is None:
            return await self._call(f"GET {key}", lambda wire: self._get_whole(wire, key))
        end = None if length is None else offset + length
        return await self._call(f"GET {key}", lambda wire: self._get_part(wire, key, offset, end))

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:  # noqa: ARG002
        """Store the object."""
        extra: dict[str, Any] = {"ContentType": content_type(key)}
        if self.location.checksum:
            extra["Metadata"] = {_CRC: str(crc32c.crc32c(body))}
        await self._call(
            f"PUT {key}",
            lambda wire: wire.client.put_object(**self._at(key), Body=wire.upload(body), **extra),
        )

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return; what the service has acknowledged is durable."""

    async def delete(self, key: str) -> None:
        """Remove the object."""
        try:
            await self._call(
                f"DELETE {key}", lambda wire: wire.client.delete_object(**self._at(key))
            )
        except ObjectMissingError:
            return

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        found = await self._call(
            f"HEAD {key}", lambda wire: wire.client.head_object(**self._at(key))
        )
        return ObjectInfo(key, found["ContentLength"], _ns(found["LastModified"]))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects page by page."""
        page: dict[str, Any] = {"Prefix": prefix}
        if start_after:
            page["StartAfter"] = start_after
        while True:
            reply = await self._call(f"LIST {prefix}", self._lister(page))
            for found in reply.get("Contents", ()):
                if found["Key"] > start_after:
                    yield ObjectInfo(found["Key"], found["Size"], _ns(found["LastModified"]))
            if not reply.get("IsTruncated"):
                return
            page["ContinuationToken"] = reply["NextContinuationToken"]

    async def close(self) -> None:
        """Close all connections."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    def _at(self, key: str | None = None) -> dict[str, str]:
        place = {"Bucket": self.location.bucket}
        return place if key is None else {**place, "Key": key}

    def _lister(self, page: dict[str, Any]) -> Callable[[Wire], Awaitable[Any]]:
        return lambda wire: wire.client.list_objects_v2(**self._at(), **page)

    async def _get_whole(self, wire: Wire, key: str) -> bytes:
        reply = await wire.client.get_object(**self._at(key))
        data = await _body(reply)
        if self.location.checksum:
            _verify(key, data, reply.get("Metadata", {}).get(_CRC))
        return data

    async def _get_part(self, wire: Wire, key: str, offset: int, end: int | None) -> bytes:
        last = "" if end is None else end - 1
        try:
            reply = await wire.client.get_object(**self._at(key), Range=f"bytes={offset}-{last}")
        except wire.failures as error:
            if wire.is_beyond_end(error):
                return b""
            raise
        data = await _body(reply)
        if reply["ResponseMetadata"]["HTTPStatusCode"] == _PARTIAL:
            return data
        return data[offset:end]

    async def _call(self, what: str, request: Callable[[Wire], Awaitable[T]]) -> T:
        """Await one request; errors of the libraries leave it as ours."""
        wire = self._wire or await self._connect()
        try:
            return await request(wire)
        except wire.failures as error:
            raise wire.translate(error, what) from error

    async def _connect(self) -> Wire:
        async with self._connecting:
            if self._wire is None:
                module = await asyncio.to_thread(importlib.import_module, "jfsd.object.s3wire")
                self._wire = await module.connect(
                    self.location,
                    self._credentials,
                    connections=self._connections,
                    timeout_s=self._timeout_s,
                )
            return self._wire


def content_type(key: str) -> str:
    """Return the media type for the ending of `key`."""
    _, dot, ending = key.rpartition("/")[2].rpartition(".")
    if not dot:
        return _OCTETS
    encoded = {"gz": "application/gzip"}.get(ending)
    return encoded or mimetypes.types_map.get(f".{ending}", _OCTETS)


async def _body(reply: Any) -> bytes:  # noqa: ANN401 - the library has no types
    async with reply["Body"] as stream:
        data: bytes = await stream.read()
        return data


def _verify(key: str, data: bytes, stated: str | None) -> None:
    """Compare with the checksum in the object's metadata, if one is there (format.md §13.2)."""
    if stated and stated.isdecimal() and int(stated) != crc32c.crc32c(data):
        raise StoreError(f"object {key}: its bytes do not match their checksum {stated}")


def _ns(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
