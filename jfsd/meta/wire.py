"""One socket to a Redis server: commands go out joined, replies come back in order.

One pipeline shared by all coroutines needs neither the streams nor the pool of a client library;
hiredis packs and parses. `dial.py` makes the connection, and nothing here repeats anything:
`connection.py` does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable

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


class Wire(asyncio.Protocol):
    """A pipelined connection. Requests are answered in the order in which they were sent.

    Invariant: `unanswered` holds exactly the requests that are in the socket or in `_outbox`.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self.unanswered: deque[Request] = deque()
        self.closed = False
        self.garbled = False
        """What came is not Redis's protocol."""
        self.received_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._reader = hiredis.Reader(replyError=ReplyError)
        self._outbox: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._fd = -1

    def attach(self, transport: asyncio.WriteTransport) -> None:
        """Send through `transport` from now on."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        plain = sock is not None and transport.get_extra_info("sslcontext") is None
        self._fd = sock.fileno() if plain else -1

    def send(self, request: Request) -> None:
        """Send a request: at once if none is under way, else with all others of this turn."""
        outbox = self._outbox
        if not self.unanswered:
            self.received_s = self._loop.time()
            self.unanswered.append(request)
            self._write(request.data)
            return
        if not outbox:
            self._loop.call_soon(self._flush)
        outbox.append(request.data)
        self.unanswered.append(request)

    def _flush(self) -> None:
        data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
        self._outbox.clear()
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Hand bytes to the kernel at once; a transport of uvloop does it a turn later.

        The transport keeps what does not fit, and tells us of its end before it closes the
        descriptor.
        """
        transport = self._transport
        if transport is None or self.closed:
            return
        if self._fd >= 0 and not transport.get_write_buffer_size():
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._loop.call_soon(self.abort)
                return
            if sent == len(data):
                return
            data = data[sent:]
        transport.write(data)

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
            self.garbled = True
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
