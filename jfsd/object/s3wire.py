"""The client library, set up for us. Imported late and in a thread: it is half a second's work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from botocore import UNSIGNED
from botocore.exceptions import ClientError

from jfsd.object.base import StoreError, StoreRefusedError
from jfsd.object.s3 import Credentials
from jfsd.object.s3errors import FAILURES, code_of, translate
from jfsd.object.s3url import DEFAULT_REGION, S3Location
from jfsd.types import ReadableBuffer

_CONNECT_TIMEOUT_S = 10
_SPARE_CONNECTIONS = 4
_PIECE_BYTES = 1 << 18
_REGION_HEADER = "x-amz-bucket-region"
_ASKED_REGIONS = (DEFAULT_REGION, "cn-north-1")


class UploadBody(Payload):
    """A body that is sent piece by piece, each a copy.

    So no transport holds on to the caller's buffer, which may hold something else as soon
    as the call was cancelled, and no second copy of a whole block is made.
    """

    def __init__(self, body: ReadableBuffer) -> None:
        super().__init__(body, content_type="application/octet-stream")
        self._size = len(body)

    def __len__(self) -> int:
        return self._size or 0

    def seek(self, position: int) -> None:
        """Do nothing: the body is sent from its start each time."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body."""
        with memoryview(self._value) as view:
            for start in range(0, len(view), _PIECE_BYTES):
                await writer.write(bytes(view[start : start + _PIECE_BYTES]))


class Wire:
    """An open client for one bucket, and what its errors mean."""

    failures = FAILURES

    def __init__(self, client: Any, stack: AsyncExitStack, location: S3Location) -> None:  # noqa: ANN401
        self.client = client
        self._stack = stack
        self._location = location

    def upload(self, body: ReadableBuffer) -> UploadBody:
        """Return `body` as the client takes it."""
        return UploadBody(body)

    def translate(self, error: BaseException, what: str) -> StoreError:
        """Return our error for one of the library's."""
        return translate(error, what, self._location)

    def is_beyond_end(self, error: BaseException) -> bool:
        """Say whether a range was asked for that begins behind the object's end."""
        return code_of(error) in ("InvalidRange", "416")

    async def close(self) -> None:
        """Close all connections."""
        await self._stack.aclose()


async def connect(
    location: S3Location, credentials: Credentials, *, connections: int, timeout_s: float
) -> Wire:
    """Return an open client. Only a bucket without a region causes a request.

    Raises:
        StoreRefusedError: No credentials, no such bucket, or unusable TLS files.
    """
    _check_files(location)
    async with AsyncExitStack() as stack:
        try:
            config = _config(location, credentials, connections, timeout_s)
            region = location.region or await _find_region(location, credentials, config)
            client = await stack.enter_async_context(_client(location, credentials, config, region))
        except (*FAILURES, ValueError) as error:
            raise translate(error, "connect", location) from error
        return Wire(client, stack.pop_all(), location)


def _check_files(location: S3Location) -> None:
    for path in (location.ca_certs, location.client_cert, location.client_key):
        if path and not os.access(path, os.R_OK):
            raise StoreRefusedError(
                f"{location}: {path} cannot be read; correct ca-certs, ssl-cert and ssl-key"
            )


def _config(
    location: S3Location, credentials: Credentials, connections: int, timeout_s: float
) -> AioConfig:
    style = "auto" if not location.endpoint else "virtual" if location.virtual_host else "path"
    options: dict[str, Any] = {}
    if credentials.anonymous:
        options["signature_version"] = UNSIGNED
    if location.client_cert:
        options["client_cert"] = (location.client_cert, location.client_key or None)
    return AioConfig(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=timeout_s,
        max_pool_connections=connections + _SPARE_CONNECTIONS,
        parameter_validation=False,  # we know what we send; bodies are of our own type
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": style, "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent="jfsd",
        **options,
    )


@asynccontextmanager
async def _client(
    location: S3Location, credentials: Credentials, config: AioConfig, region: str
) -> AsyncIterator[Any]:
    keys: dict[str, Any] = {}
    if credentials.access_key and not credentials.anonymous:
        keys = {
            "aws_access_key_id": credentials.access_key,
            "aws_secret_access_key": credentials.secret_key,
            "aws_session_token": credentials.session_token or None,
        }
    session = await asyncio.to_thread(aioboto3.Session)
    async with session.client(
        "s3",
        region_name=region,
        endpoint_url=location.endpoint,
        use_ssl=location.secure,
        verify=(location.ca_certs or None) if location.verify_tls else False,
        config=config,
        **keys,
    ) as client:
        yield client


async def _find_region(location: S3Location, credentials: Credentials, config: AioConfig) -> str:
    """Ask AWS where the bucket is: at home first, then in China."""
    home = os.environ.get("AWS_DEFAULT_REGION")
    refusal: ClientError | None = None
    for asked in (home,) if home else _ASKED_REGIONS:
        async with _client(location, credentials, config, asked) as client:
            try:
                reply = await client.get_bucket_location(Bucket=location.bucket)
            except ClientError as error:
                region = _headers(error.response).get(_REGION_HEADER)
                if region:
                    return region
                refusal = refusal or error
            else:
                place = reply.get("LocationConstraint") or DEFAULT_REGION
                return "eu-west-1" if place == "EU" else str(place)
    assert refusal is not None  # noqa: S101 - each round returned or set it
    raise refusal


def _headers(response: Mapping[str, Any]) -> Mapping[str, str]:
    headers: Mapping[str, str] = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers
