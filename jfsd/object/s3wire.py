"""The way to objects through the client library, for all that `s3lean` leaves to it.

Imported late and in a thread: it is half a second's work.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import get_session
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.utils import get_environ_proxies

from jfsd.object.base import ObjectInfo, StoreError, StoreRefusedError
from jfsd.object.s3base import CRC_HEADER, Credentials, Fetched
from jfsd.object.s3errors import BEYOND_END, of_connection, of_service
from jfsd.object.s3lean import CONNECT_TIMEOUT_S, SPARE_CONNECTIONS, check_files
from jfsd.object.s3target import Target, is_ordinary, target_of
from jfsd.object.s3url import DEFAULT_REGION, S3Location
from jfsd.types import ReadableBuffer

T = TypeVar("T")

FAILURES = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, OSError)
"""Everything that a call of the library may raise, besides defects."""

_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
_UNUSABLE = (boto.InvalidRegionError, boto.ParamValidationError, ValueError)
_NO_KEYS = "give --access-key and --secret-key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_METADATA = CRC_HEADER.removeprefix("x-amz-meta-")
_PIECE_BYTES = 1 << 18
_PARTIAL = 206
_REGION_HEADER = "x-amz-bucket-region"
_ASKED_REGIONS = (DEFAULT_REGION, "cn-north-1")
_PROBE = "a key/~"


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


class _Session(AIOHTTPSession):  # type: ignore[misc]
    """The library's connections, with the name in the server's certificate looked at."""

    def _get_ssl_context(self) -> Any:  # noqa: ANN401 - the library has no types
        context = super()._get_ssl_context()
        context.check_hostname = True
        return context


class LibraryWay:
    """An open client for one bucket."""

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - the library has no types
        session: Any,  # noqa: ANN401
        stack: AsyncExitStack,
        location: S3Location,
    ) -> None:
        self._client = client
        self._session = session
        self._stack = stack
        self._location = location
        self._last_keys = Credentials()

    async def check(self) -> None:
        """Return if the bucket is there and may be listed."""
        await self._call("check", self._client.list_objects_v2(**self._at(), MaxKeys=1))

    async def get(self, key: str, span: str = "") -> Fetched:
        """Return the object, or the bytes of `span`, a value of the header Range."""
        return await self._call(f"GET {key}", self._get(key, {"Range": span} if span else {}))

    async def put(self, key: str, body: ReadableBuffer, content_type: str, crc: str) -> None:
        """Store the object."""
        extra = {"Metadata": {_METADATA: crc}} if crc else {}
        put = self._client.put_object(
            **self._at(key), Body=UploadBody(body), ContentType=content_type, **extra
        )
        await self._call(f"PUT {key}", put)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self._call(f"DELETE {key}", self._client.delete_object(**self._at(key)))

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        found = await self._call(f"HEAD {key}", self._client.head_object(**self._at(key)))
        return ObjectInfo(key, found["ContentLength"], _ns(found["LastModified"]))

    async def page(self, prefix: str, start_after: str, token: str) -> tuple[list[ObjectInfo], str]:
        """Return a page of a listing, and the token of the next one, "" at the end."""
        where = {"Prefix": prefix}
        if start_after:
            where["StartAfter"] = start_after
        if token:
            where["ContinuationToken"] = token
        listing = self._client.list_objects_v2(**self._at(), **where)
        reply = await self._call(f"LIST {prefix}", listing)
        found = [
            ObjectInfo(each["Key"], each["Size"], _ns(each["LastModified"]))
            for each in reply.get("Contents", ())
        ]
        return found, str(reply["NextContinuationToken"]) if reply.get("IsTruncated") else ""

    async def target(self) -> Target | None:
        """Return where this client sends requests for objects; None if only it can send them.

        The client makes a request, and gives it up before anything is sent.
        """
        if not is_ordinary(self._location):
            return None
        made: list[Any] = []

        def stop(request: Any, **_: object) -> None:  # noqa: ANN401
            made.append(request)
            raise _GivenUpError

        events = self._client.meta.events
        events.register("before-send.s3.HeadObject", stop)
        try:
            await self._client.head_object(**self._at(_PROBE))
        except (_GivenUpError, ValueError, *FAILURES):
            pass
        finally:
            events.unregister("before-send.s3.HeadObject", stop)
        return _target(made[0]) if made else None

    async def keys(self) -> Credentials:
        """Return the keys of the moment; they are fetched anew before they expire."""
        found = await self._session.get_credentials()
        if found is None:
            raise StoreRefusedError(f"{self._location}: there are no credentials; {_NO_KEYS}")
        frozen = await self._call("credentials", found.get_frozen_credentials())
        keys = Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")
        if keys != self._last_keys:
            self._last_keys = keys
        return self._last_keys

    def ca_bundle(self) -> str:
        """Return the file of authorities that the environment names, or ""."""
        return str(self._session.get_config_variable("ca_bundle") or "")

    async def close(self) -> None:
        """Close all connections."""
        await self._stack.aclose()

    def _at(self, key: str | None = None) -> dict[str, str]:
        place = {"Bucket": self._location.bucket}
        return place if key is None else {**place, "Key": key}

    async def _call(self, what: str, request: Awaitable[T]) -> T:
        """Await one request; errors of the libraries leave it as ours."""
        try:
            return await request
        except FAILURES as error:
            raise translate(error, what, self._location) from error

    async def _get(self, key: str, span: dict[str, str]) -> Fetched:
        try:
            reply = await self._client.get_object(**self._at(key), **span)
        except boto.ClientError as error:
            if span and _code_of(error) in BEYOND_END:
                return Fetched(b"", True)
            raise
        async with reply["Body"] as stream:
            data: bytes = await stream.read()
        partial = reply["ResponseMetadata"]["HTTPStatusCode"] == _PARTIAL
        return Fetched(data, partial, reply.get("Metadata", {}).get(_METADATA, ""))


class _GivenUpError(Exception):
    """The library has made a request, and it is not to be sent."""


def _target(request: Any) -> Target | None:  # noqa: ANN401
    """Return the target of a request for the probe, unless it needs what we do not have."""
    signature = request.headers.get("Authorization", b"")
    text = signature.decode() if isinstance(signature, bytes) else str(signature)
    region = DEFAULT_REGION
    if text:
        if not text.startswith("AWS4-HMAC-SHA256 "):
            return None
        region = text.partition("Credential=")[2].partition(",")[0].split("/")[-3]
    if get_environ_proxies(request.url).get(urlsplit(request.url).scheme):
        return None
    return target_of(request.url, "/" + quote(_PROBE, safe="/~"), region)


def translate(error: BaseException, what: str, location: S3Location) -> StoreError:
    """Return our error for `error`; its text names the place and holds no secret."""
    if isinstance(error, boto.ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(error.response.get("Error", {}).get("Message", ""))
        return of_service(status, _code_of(error), text, what, location)
    if isinstance(error, _CREDENTIALS):
        return StoreRefusedError(f"{location}: there are no credentials ({error}); {_NO_KEYS}")
    if isinstance(error, _UNUSABLE):
        return StoreRefusedError(f"{location}: {error}; correct the bucket's URL")
    return of_connection(error, what, location)


def _code_of(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _ns(moment: dt.datetime) -> int:
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


async def connect(
    location: S3Location, credentials: Credentials, *, connections: int, timeout_s: float
) -> LibraryWay:
    """Return an open client. Only a bucket without a region causes a request.

    Raises:
        StoreRefusedError: No credentials, no such bucket, or unusable TLS files.
    """
    check_files(location)
    async with AsyncExitStack() as stack:
        try:
            config = _config(location, credentials, connections, timeout_s)
            region = location.region or await _find_region(location, credentials, config)
            client, session = await stack.enter_async_context(
                _client(location, credentials, config, region)
            )
        except (*FAILURES, ValueError) as error:
            raise translate(error, "connect", location) from error
        return LibraryWay(client, session, stack.pop_all(), location)


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
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=timeout_s,
        max_pool_connections=connections + SPARE_CONNECTIONS,
        parameter_validation=False,  # we know what we send; bodies are of our own type
        retries={"total_max_attempts": 1, "mode": "standard"},
        s3={"addressing_style": style, "payload_signing_enabled": False},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent="jfsd",
        http_session_cls=_Session,
        **options,
    )


@asynccontextmanager
async def _client(
    location: S3Location, credentials: Credentials, config: AioConfig, region: str
) -> AsyncIterator[tuple[Any, Any]]:
    """Open a client; the other one is its session, which knows credentials and files."""
    keys: dict[str, Any] = {}
    if credentials.access_key and not credentials.anonymous:
        keys = {
            "aws_access_key_id": credentials.access_key,
            "aws_secret_access_key": credentials.secret_key,
            "aws_session_token": credentials.session_token or None,
        }
    session = get_session()
    opener = await asyncio.to_thread(aioboto3.Session, botocore_session=session)
    async with opener.client(
        "s3",
        region_name=region,
        endpoint_url=location.endpoint,
        use_ssl=location.secure,
        verify=(location.ca_certs or None) if location.verify_tls else False,
        config=config,
        **keys,
    ) as client:
        yield client, session


async def _find_region(location: S3Location, credentials: Credentials, config: AioConfig) -> str:
    """Ask AWS where the bucket is: at home first, then in China."""
    home = os.environ.get("AWS_DEFAULT_REGION")
    refusal: boto.ClientError | None = None
    for asked in (home,) if home else _ASKED_REGIONS:
        async with _client(location, credentials, config, asked) as (client, _):
            try:
                reply = await client.get_bucket_location(Bucket=location.bucket)
            except boto.ClientError as error:
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
