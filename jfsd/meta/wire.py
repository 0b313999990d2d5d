"""One socket to a Redis server: commands go out joined, replies come back in order.

`redis.asyncio` makes the connection (addresses, TLS, authentication, database); then `Wire` takes
over its transport, because one pipeline shared by all coroutines needs neither its streams nor
its pool. Nothing here repeats anything: `connection.py` does.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
import redis.asyncio.connection as redis_connection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jfsd.meta.url import MetaUrl

Argument: TypeAlias = bytes | str | int
"""A word of a command."""

Reply: TypeAlias = Any
"""What a server answers: bytes, int, None, or a list of replies; the caller knows which."""

_CODE = re.compile(r"(?:^|[ :]-)([A-Z]{2,})\b")


class ReplyError(OSError):
    """An error reply of the server: EIO, or ENOSPC when its memory is full.

    `code` is the reply's first word, such as NOSCRIPT; for an error inside a script it is that
    of the command that failed there.
    """

    def __init__(self, text: str) -> None:
        found = _CODE.findall(text)
        self.code: str = found[-1] if found else "ERR"
        super().__init__(errno.ENOSPC if self.code == "OOM" else errno.EIO, text)


def pack(args: tuple[Argument, ...]) -> bytes:
    """Return a command as it goes over the socket."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type] # stub: one word only
    return packed


class Request:
    """A packed command and the future of its reply; it may travel more than once."""

    __slots__ = ("data", "deadline_s", "future")

    def __init__(self, data: bytes, future: asyncio.Future[Any], deadline_s: float) -> None:
        self.data = data
        self.future = future
        self.deadline_s = deadline_s


class _Takeover:
    """Mixed into the three connection classes of redis-py: hands its transport over."""

    _writer: asyncio.StreamWriter | None
    _reader: asyncio.StreamReader | None

    def hand_over(self, protocol: asyncio.Protocol) -> asyncio.WriteTransport:
        """Return the transport, with `protocol` receiving from it; the streams are gone."""
        assert self._writer is not None  # noqa: S101 - connect() has set it
        transport = self._writer.transport
        transport.set_protocol(protocol)
        self._writer = self._reader = None
        return transport


class _Tcp(_Takeover, redis_connection.Connection):
    pass


class _Tls(_Takeover, redis_connection.SSLConnection):
    server_name = ""

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = dict(super()._connection_arguments())
        if self.server_name:
            arguments["server_hostname"] = self.server_name
        return arguments


class _Unix(_Takeover, redis_connection.UnixDomainSocketConnection):
    pass


async def open_wire(
    url: MetaUrl, host: tuple[str, int] | None, connect_timeout_s: float, lost: Callable[[], None]
) -> Wire:
    """Return a connected, authenticated wire on the URL's database.

    Raises:
        redis.RedisError: The server cannot be reached, or refuses user, password or database.
        OSError: A certificate file cannot be read, or the socket failed.
    """
    common: dict[str, Any] = {
        "db": 0 if url.prefix else url.db,
        "username": url.username or None,
        "password": url.password or None,
        "socket_timeout": url.read_timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "protocol": 2,
        "client_name": "jfsd",
        "driver_info": None,
    }
    connection: _Tcp | _Tls | _Unix
    if host is None:
        connection = _Unix(path=url.path, **common)
    elif url.tls is None:
        connection = _Tcp(host=host[0], port=host[1], socket_keepalive=True, **common)
    else:
        verify = not url.tls.insecure_skip_verify
        connection = _Tls(
            host=host[0],
            port=host[1],
            socket_keepalive=True,
            ssl_ca_certs=url.tls.ca_cert_file or None,
            ssl_certfile=url.tls.cert_file or None,
            ssl_keyfile=url.tls.key_file or None,
            ssl_cert_reqs="required" if verify else "none",
            ssl_check_hostname=verify,
            **common,
        )
        connection.server_name = url.tls.server_name
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    wire = Wire(lost)
    wire.attach(connection.hand_over(wire))
    return wire


class Wire(asyncio.Protocol):
    """A pipelined connection. Requests are answered in the order in which they were sent.

    Invariant: `unanswered` holds exactly the requests that are in the socket or in `_outbox`.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self.unanswered: deque[Request] = deque()
        self.closed = False
        self.received_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._outbox: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Send through `transport` from now on."""
        self._transport = transport

    def send(self, request: Request) -> None:
        """Queue a request; all of one turn of the event loop leave in one write."""
        outbox = self._outbox
        if not outbox:
            self._loop.call_soon(self._flush)
        if not self.unanswered:
            self.received_s = self._loop.time()
        outbox.append(request.data)
        self.unanswered.append(request)

    def _flush(self) -> None:
        data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
        self._outbox.clear()
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Resolve the futures of all replies that `data` completes."""
        reader = self._reader
        reader.feed(data)
        self.received_s = self._loop.time()
        unanswered = self.unanswered
        try:
            while (reply := reader.gets()) is not False:
                future = unanswered.popleft().future
                if not future.done():
                    if isinstance(reply, ReplyError):
                        future.set_exception(reply)
                    else:
                        future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - protocol
        """Tell the owner, who may take the unanswered requests; the others fail."""
        if self.closed:
            return
        self.closed = True
        self._lost()
        for request in self.unanswered:
            if not request.future.done():
                request.future.set_exception(ConnectionResetError(errno.ECONNRESET, "cut off"))

    def abort(self) -> None:
        """Drop the connection at once; the owner is told."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def close(self) -> None:
        """Drop the connection without telling anyone."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
