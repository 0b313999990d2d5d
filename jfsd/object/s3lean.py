"""The short way to objects: GET, PUT, DELETE and HEAD, without the client library.

It does what the library does for these requests and nothing else. Listings, the search for a
bucket's region, proxies and redirects are the library's (`s3wire`), as is everything that
profiles, files and the environment say; see `s3target`.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from jfsd.object.base import ObjectInfo, StoreError, StoreRefusedError
from jfsd.object.httppool import Pool
from jfsd.object.httpwire import Answer
from jfsd.object.s3base import CRC_HEADER, Credentials, Fetched, HandOverError
from jfsd.object.s3errors import BEYOND_END, of_connection, of_service, read_error
from jfsd.object.s3sign import Signer
from jfsd.object.s3target import Target
from jfsd.object.s3url import S3Location
from jfsd.types import ReadableBuffer

CONNECT_TIMEOUT_S = 10.0
SPARE_CONNECTIONS = 4

_REDIRECTS = (301, 302, 307, 308)
_ELSEWHERE = frozenset(
    ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException")
)
_PARTIAL = 206
_BEYOND_END = 416
_LISTING = "encoding-type=url&list-type=2&max-keys=1"

Keys = Callable[[], Awaitable[Credentials]]


class LeanWay:
    """Requests to one bucket over a pool of connections of its own.

    A call is one attempt. HandOverError says that the library must do it.
    """

    def __init__(
        self, location: S3Location, target: Target, keys: Credentials | Keys, pool: Pool
    ) -> None:
        """Make a way to `target`; `keys` may be a function that tells those of the moment."""
        self._location = location
        self._target = target
        self._keys = keys
        self._pool = pool
        self._signed_with: Credentials | None = None
        self._signer: Signer | None = None

    def __repr__(self) -> str:
        return f"<LeanWay {self._target.host}{self._target.prefix} {self._pool!r}>"

    async def check(self) -> None:
        """Return if the bucket is there and may be listed."""
        await self._ask("check", "GET", self._target.prefix or "/", query=_LISTING)

    async def get(self, key: str, span: str = "") -> Fetched:
        """Return the object, or the bytes of `span`, a value of the header Range."""
        headers = {"range": span} if span else {}
        answer = await self._ask(f"GET {key}", "GET", self._path(key), headers)
        if answer.status == _BEYOND_END:
            return Fetched(b"", True)
        return Fetched(answer.body, answer.status == _PARTIAL, answer.text(CRC_HEADER.encode()))

    async def put(self, key: str, body: ReadableBuffer, content_type: str, crc: str) -> None:
        """Store the object."""
        headers = {"content-type": content_type}
        if crc:
            headers[CRC_HEADER] = crc
        await self._ask(f"PUT {key}", "PUT", self._path(key), headers, body=body)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self._ask(f"DELETE {key}", "DELETE", self._path(key))

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        what = f"HEAD {key}"
        answer = await self._ask(what, "HEAD", self._path(key))
        try:
            size = int(answer.text(b"content-length"))
            return ObjectInfo(key, size, _ns(answer.text(b"last-modified")))
        except ValueError as error:
            raise StoreError(f"{self._location}: {what}: no size or no time") from error

    async def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _path(self, key: str) -> str:
        return f"{self._target.prefix}/{quote(key, safe='/~')}"

    async def _ask(
        self,
        what: str,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        query: str = "",
        body: ReadableBuffer = b"",
    ) -> Answer:
        """Return the answer if it is a success, or says that the range is beyond the end."""
        headers = headers or {}
        head = await self._head(method, path, query, headers, len(body))
        try:
            answer = await self._pool.request(head, body, bodiless=method == "HEAD")
        except OSError as error:
            raise of_connection(error, what, self._location) from error
        if 200 <= answer.status < 300:
            return answer
        code, text = read_error(answer.status, answer.body)
        if code in BEYOND_END and "range" in headers:
            return Answer(_BEYOND_END)
        if answer.status in _REDIRECTS or code in _ELSEWHERE:
            raise HandOverError(f"{answer.status} {code}")
        raise of_service(answer.status, code, text, what, self._location)

    async def _head(
        self, method: str, path: str, query: str, headers: dict[str, str], length: int
    ) -> bytes:
        """Return the request up to its body."""
        headers = {"host": self._target.named_host, **headers}
        signer = await self._current_signer()
        if signer is not None:
            headers = signer.sign(method, path, query, headers)
        lines = [f"{method} {path}{query and '?' + query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["accept-encoding: identity", "user-agent: jfsd"]
        if method == "PUT":
            lines.append(f"content-length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def _current_signer(self) -> Signer | None:
        keys = self._keys if isinstance(self._keys, Credentials) else await self._keys()
        if keys is not self._signed_with and keys != self._signed_with:
            self._signed_with = keys
            self._signer = None
            if not keys.anonymous:
                self._signer = Signer(
                    self._target.region, keys.access_key, keys.secret_key, keys.session_token
                )
        return self._signer


async def open_lean(
    location: S3Location,
    target: Target,
    keys: Credentials | Keys,
    *,
    connections: int,
    timeout_s: float,
    ca_bundle: str = "",
) -> LeanWay:
    """Return the way to `target`; nothing is connected yet.

    Raises:
        StoreRefusedError: Unusable TLS files.
    """
    tls = None
    if target.secure:
        check_files(location)
        try:
            tls = await asyncio.to_thread(tls_context, location, ca_bundle)
        except OSError as error:
            raise of_connection(error, "connect", location) from error
    host, port = target.address
    pool = Pool(
        host,
        port,
        tls,
        limit=connections + SPARE_CONNECTIONS,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        read_timeout_s=timeout_s,
    )
    return LeanWay(location, target, keys, pool)


def check_files(location: S3Location) -> None:
    """Return if the files for TLS can be read.

    Raises:
        StoreRefusedError: One cannot.
    """
    for path in (location.ca_certs, location.client_cert, location.client_key):
        if path and not os.access(path, os.R_OK):
            raise StoreRefusedError(
                f"{location}: {path} cannot be read; correct ca-certs, ssl-cert and ssl-key"
            )


def tls_context(location: S3Location, ca_bundle: str = "") -> ssl.SSLContext:
    """Return the rules for TLS that the bucket's URL asks for.

    Raises:
        OSError: A file does not hold what it should.
    """
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.options |= ssl.OP_NO_COMPRESSION
    tls.post_handshake_auth = True
    if location.client_cert:
        tls.load_cert_chain(location.client_cert, location.client_key or None)
    if not location.verify_tls:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
        return tls
    authorities = location.ca_certs or ca_bundle or _usual_authorities()
    if authorities:
        tls.load_verify_locations(authorities)
    else:
        tls.load_default_certs()
    return tls


def _usual_authorities() -> str:
    """Return the file of authorities that the client library uses, without loading it."""
    for package in ("certifi", "botocore"):
        spec = find_spec(package)
        if spec is not None and spec.origin:
            path = Path(spec.origin).with_name("cacert.pem")
            if path.exists():
                return str(path)
    return ""


def _ns(moment: str) -> int:
    """Return the time of an HTTP date in nanoseconds since the epoch."""
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rarely needed

    return int(parsedate_to_datetime(moment).timestamp()) * 1_000_000_000
