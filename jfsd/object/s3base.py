"""What both ways to an S3 service share: whose keys, and what a GET brings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jfsd.object.base import ObjectInfo
from jfsd.types import ReadableBuffer

ANONYMOUS = "anonymous"
CRC_HEADER = "x-amz-meta-crc32c"


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


class Fetched(NamedTuple):
    """Bytes of an object: a part if `partial`, else all; `stated` is their CRC-32C if known."""

    data: bytes
    partial: bool
    stated: str = ""


class HandOverError(Exception):
    """The lean way cannot do this request; the library can."""


class Way(Protocol):
    """How requests get to a bucket. A call is one attempt and fails with a StoreError."""

    async def check(self) -> None:
        """Return if the bucket is there and may be listed."""

    async def get(self, key: str, span: str = "") -> Fetched:
        """Return the object, or the bytes of `span`; none if it lies beyond the end."""

    async def put(self, key: str, body: ReadableBuffer, content_type: str, crc: str) -> None:
        """Store the object; `crc`, if not "", becomes its metadata."""

    async def delete(self, key: str) -> None:
        """Remove the object."""

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""

    async def close(self) -> None:
        """Close all connections."""
