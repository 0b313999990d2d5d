"""Connections to one server, kept while they are used and a little longer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque

from aiohappyeyeballs import AddrInfoType, start_connection

from jfsd.object.httpwire import SCRATCH_BYTES, Answer, Connection, HttpError, StaleError
from jfsd.types import ReadableBuffer

_NEXT_ADDRESS_S = 0.25
"""How long one address has the field to itself (RFC 8305)."""
_ADDRESSES_S = 10.0
_KEPT_S = 12.0
_SWEEP_S = 4.0
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class Pool:
    """At most `limit` connections to one server; who comes later waits for his turn.

    A connection that the server has closed while nobody used it is replaced by a new one
    within the same call, so requests must be ones that may be sent twice.
    """

    def __init__(
        self,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        limit: int,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._turns = asyncio.Semaphore(limit)
        self._idle: deque[Connection] = deque()
        self._scratch = bytearray(SCRATCH_BYTES)
        self._sweeper: asyncio.TimerHandle | None = None
        self._made = 0
        self._closed = False
        self._addresses: list[AddrInfoType] = []
        self._asked_s = 0.0
        self._asking = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Pool {self._host}:{self._port} idle={len(self._idle)} made={self._made}>"

    async def request(
        self, head: bytes, body: ReadableBuffer = b"", *, bodiless: bool = False
    ) -> Answer:
        """Return the answer to a request (`Connection.exchange`).

        Raises:
            OSError: There is no connection, it broke, or nothing came in time.
        """
        async with self._turns:
            connection = self._take_idle()
            if connection is not None:
                try:
                    return await self._exchange(connection, head, body, bodiless=bodiless)
                except StaleError:
                    pass
            connection = await self._connect()
            return await self._exchange(connection, head, body, bodiless=bodiless)

    def close(self) -> None:
        """Close all connections that are idle; the others close with their exchange."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    async def _exchange(
        self, connection: Connection, head: bytes, body: ReadableBuffer, *, bodiless: bool
    ) -> Answer:
        answer = await connection.exchange(
            head, body, bodiless=bodiless, timeout_s=self._read_timeout_s
        )
        if connection.reusable:
            self._keep(connection)
        return answer

    # -- idle ones

    def _take_idle(self) -> Connection | None:
        """Return the connection that was used last, if one is there."""
        oldest_s = asyncio.get_running_loop().time() - _KEPT_S
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since_s >= oldest_s:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for long; servers and routers forget it silently."""
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - _KEPT_S
        while self._idle and (not self._idle[0].reusable or self._idle[0].idle_since_s < oldest_s):
            self._idle.popleft().close()
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._idle else None

    # -- new ones

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                sock = await start_connection(
                    await self._resolve(),
                    happy_eyeballs_delay=_NEXT_ADDRESS_S,
                    interleave=1,
                )
                sock = await self._prepare(sock)
        except TimeoutError:
            raise HttpError(f"no connection within {self._connect_timeout_s:g} s") from None
        return Connection(sock, self._scratch)

    async def _prepare(self, sock: socket.socket) -> socket.socket:
        """Return `sock` ready for requests; it is closed when that fails."""
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is None:
                return sock
            return await _handshake(self._tls, sock, self._host)
        except BaseException:
            sock.close()
            raise

    async def _resolve(self) -> list[AddrInfoType]:
        """Return the server's addresses, another one first each time."""
        loop = asyncio.get_running_loop()
        async with self._asking:  # one question for all who connect at the same time
            if not self._addresses or loop.time() - self._asked_s > _ADDRESSES_S:
                self._addresses = await self._look_up()
                self._asked_s = loop.time()
        self._made += 1
        first = self._made % len(self._addresses)
        return self._addresses[first:] + self._addresses[:first]

    async def _look_up(self) -> list[AddrInfoType]:
        kind = socket.SOCK_STREAM
        try:
            found = socket.getaddrinfo(self._host, self._port, type=kind, flags=_NUMERIC)
        except socket.gaierror:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(self._host, self._port, type=kind)
        return list(found)


async def _handshake(tls: ssl.SSLContext, sock: socket.socket, host: str) -> ssl.SSLSocket:
    """Return `sock` with TLS on it; closed when that fails, if it was given TLS at all."""
    wrapped = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(wrapped.fileno(), reading=True)
            except ssl.SSLWantWriteError:
                await _ready(wrapped.fileno(), reading=False)
            else:
                return wrapped
    except BaseException:
        wrapped.close()
        raise


async def _ready(fd: int, *, reading: bool) -> None:
    """Return when the socket can be read, or written."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add, remove = (
        (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
    )
    add(fd, wake)
    try:
        await ready
    finally:
        remove(fd)
