"""Metrics over HTTP, for Prometheus: on a port of the loopback or on a unix socket.

One request per connection, GET only, small and short; too many at once are turned away.
Nothing that happens here is an error of the mount.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from jfsd.clock import monotonic_s
from jfsd.config.address import DEFAULT, Address, parse_address
from jfsd.record import Record

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
MAX_HEAD_BYTES = 8192
PATIENCE_S = 5.0
"""How long a client may take to ask, and to take the answer."""

RETRY_S, LATER_S = 0.1, 1.0
FALLBACK_AFTER_S = 2.0
"""How long a former server of the mount may still have the address."""

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


class _Listener(Record):
    """A server that listens, and what is left of it when it does not any more."""

    server: asyncio.Server
    address: str
    path: Path | None = None
    inode: int = 0

    def close(self) -> None:
        """Listen no more; a socket of this path that is another's stays."""
        self.server.close()
        if self.path is not None:
            with suppress(OSError):
                if self.path.lstat().st_ino == self.inode:
                    self.path.unlink()


class Exporter:
    """Serves a text; takes the address as soon as it can be had."""

    def __init__(
        self,
        text: Callable[[], str],
        *,
        inherits: bool = False,
        former: str = "",
        on_found: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare to serve what `text` returns.

        Args:
            text: Called for each request; must not wait.
            inherits: A former server of the mount may have the address for a moment.
            former: The address that it found, if it was to look for one itself.
            on_found: Told the address that was found in this way; "" if one was asked for.
        """
        self._text = text
        self._inherits = inherits
        self._former = former
        self._on_found = on_found
        self._listener: _Listener | None = None
        self._taking: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Exporter {self.address or 'nowhere'}, {len(self._calls)} calls>"

    @property
    def address(self) -> str:
        """Where it listens; "" as long as it does not."""
        return "" if self._listener is None else self._listener.address

    def start(self, wanted: str) -> None:
        """Begin to listen at an address as in `--metrics`, in the background."""
        address = parse_address(wanted)
        if address is None:
            self._found("")
            return
        patience_s = FALLBACK_AFTER_S if self._inherits else 0.0
        choices = [(address, math.inf)]
        if wanted == DEFAULT:
            former = parse_address(self._former) if self._former else None
            any_port = address._replace(port=0)
            choices = [(former or address, patience_s), (address, 0.0), (any_port, math.inf)]
        self._taking = asyncio.get_running_loop().create_task(
            self._take(choices, patience_s), name="metrics"
        )

    async def move(self, wanted: str) -> None:
        """Listen elsewhere from now on.

        Raises:
            OSError: The address cannot be had; it stays where it is.
        """
        address = parse_address(wanted)
        if address is None or wanted == DEFAULT:
            await self.close()
            self.start(wanted)
            return
        listener = await self._listen(address)
        await self.close()
        self._listener = listener
        self._found("")

    async def close(self) -> None:
        """Listen no more, and hang up on everybody."""
        for task in (self._taking, *self._calls):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._taking = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _take(self, choices: Sequence[tuple[Address, float]], patience_s: float) -> None:
        """Try the addresses in turn, each for so many seconds, until one is ours.

        Nothing is said of the time `patience_s`, in which a former server may have it.
        """
        for address, seconds in choices:
            listener = await self._take_one(address, seconds, patience_s)
            if listener is not None:
                self._listener = listener
                log.info("metrics can be read at %s", self.address)
                self._found(self.address if len(choices) > 1 else "")
                return

    async def _take_one(
        self, address: Address, seconds: float, patience_s: float
    ) -> _Listener | None:
        began_s, told = monotonic_s(), False
        while True:
            try:
                return await self._listen(address)
            except OSError as error:
                waited_s = monotonic_s() - began_s
                if waited_s >= seconds:
                    return None
                if waited_s >= patience_s and not told:
                    log.warning("metrics: %s cannot be used: %s", address, error.strerror or error)
                    told = True
            await asyncio.sleep(LATER_S if told else RETRY_S)

    def _found(self, address: str) -> None:
        self._former = address
        if self._on_found is not None:
            self._on_found(address)

    async def _listen(self, address: Address) -> _Listener:
        if not address.path:
            server = await asyncio.start_server(
                self._connected, address.host, address.port, limit=MAX_HEAD_BYTES
            )
            port = server.sockets[0].getsockname()[1]
            return _Listener(server, str(address._replace(port=port)))
        path = Path(address.path)
        listener = _bind(path)
        server = await asyncio.start_unix_server(
            self._connected, sock=listener, limit=MAX_HEAD_BYTES
        )
        return _Listener(server, str(address), path, os.lstat(path).st_ino)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._calls) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(
            self._serve(reader, writer), name="metrics-call"
        )
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
            log.debug("metrics: %r", error)
        finally:
            writer.transport.abort()

    def _answer(self, head: bytes) -> bytes:
        """Return the answer to a request."""
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target = rest.partition(b" ")[0].partition(b"?")[0]
        if not rest.endswith((b"HTTP/1.1", b"HTTP/1.0")):
            return _response(400, "no HTTP request\n")
        if method not in (b"GET", b"HEAD"):
            return _response(405, "only GET\n")
        if target != b"/metrics":
            return _response(404, "metrics are at /metrics\n")
        return _response(200, self._text(), with_body=method == b"GET")


def _bind(path: Path) -> socket.socket:
    """Return a socket of this path, in the place of one that a former server left.

    Raises:
        OSError: Something else is there, or somebody listens.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "something that is no socket is there")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(os.fspath(path)) == 0:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o666)  # as open as a port: its directory says who may
    except OSError:
        listener.close()
        raise
    return listener


def _response(status: int, text: str, *, with_body: bool = True) -> bytes:
    body = text.encode()
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {_CONTENT_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
