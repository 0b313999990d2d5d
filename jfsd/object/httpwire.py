"""HTTP/1.1 on one connection: one request at a time, its answer's body where it belongs at once.

The socket is used directly. A transport keeps what it was given until it is sent, also when
the call was cancelled and the caller's buffer holds something else by then; and it hands
bodies over in pieces that are joined later. Here only the kernel (with TLS, the record that
it has encrypted) holds a copy of a request, and a body is received in the bytes that the
caller gets.
"""

from __future__ import annotations

import asyncio
import ctypes
import io
import socket
import ssl
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from jfsd.types import ReadableBuffer

SCRATCH_BYTES = 1 << 16
"""Room for what arrives before its place is known; one for all connections of a loop."""
LARGEST_BODY_BYTES = 1 << 30

_MOST_HEAD_BYTES = 1 << 16
_JOINED_BYTES = 1 << 15
_NO_BODY = (204, 304)
_HEAD_END = b"\r\n\r\n"
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_unfilled_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


class HttpError(OSError):
    """The other end does not speak HTTP, closed the connection, or is silent."""


class StaleError(HttpError):
    """The connection was closed before this request, and nobody knew yet."""


@dataclass(slots=True)
class Answer:
    """What came back; the names of `headers` are in small letters."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""

    def text(self, name: bytes) -> str:
        """Return a header's value, "" if there is none."""
        return self.headers.get(name, b"").decode("latin-1")


class _State(Enum):
    IDLE = auto()
    HEAD = auto()  # a request was begun, its answer's head is not complete
    BODY = auto()  # of known length, received in place
    STREAM = auto()  # chunked, or up to the connection's end
    CLOSED = auto()


class _Parser:
    """Reads heads and streamed bodies; a new one for each answer."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.pieces: list[bytes] = []
        self.received = 0
        self.complete = False
        self._heads = 0
        self._http = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Go on with `data`.

        Raises:
            HttpError: It is no HTTP, or too much.
        """
        try:
            self._http.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            raise HttpError(f"the answer is no HTTP ({error})") from error
        if self.received > LARGEST_BODY_BYTES:
            raise HttpError("the answer is too long")

    def take(self, body: bytes) -> Answer:
        """Return the answer with its body, and keep nothing of it.

        The library's parser and this one refer to each other, so that both live on until
        the next collection of garbage: megabytes must not live with them.
        """
        answer, self.answer, self.pieces = self.answer, Answer(), []
        answer.body = body
        return answer

    def keeps_alive(self) -> bool:
        """Say whether the server will take another request."""
        said = self.answer.headers.get(b"connection", b"").lower()
        if self._http.get_http_version() == "1.1":
            return b"close" not in said
        return b"keep-alive" in said

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; those behind a body are not looked at."""
        if not self._heads:
            self.answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._heads += 1
        self.answer.status = self._http.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self.received += len(data)
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        """Note that the body is complete."""
        self.complete = True


class _Room:
    """Where a body of known length is received; becomes bytes without a copy.

    BytesIO hands its contents out as they are when nobody else refers to them.
    """

    def __init__(self, length: int) -> None:
        self._file = io.BytesIO(cast("bytes", _unfilled_bytes(None, length)))
        self.view = self._file.getbuffer()
        self.filled = 0

    def add(self, data: memoryview) -> None:
        """Put `data` behind what is there."""
        self.view[self.filled : self.filled + len(data)] = data
        self.filled += len(data)

    def drop(self) -> None:
        """Let go of contents that nobody will take; a BytesIO must not end with a view on it."""
        self.view.release()

    def take(self) -> bytes:
        """Return the contents; call once and when it is full."""
        self.view.release()
        return self._file.getvalue()


class Connection:
    """A connected socket, with or without TLS, and the exchange that is under way on it.

    It is closed by whatever goes wrong in an exchange, a cancellation too. While idle it
    closes as soon as the other end does.
    """

    def __init__(self, sock: socket.socket, scratch: bytearray) -> None:
        """Take over `sock`, which does not block; `scratch` has SCRATCH_BYTES."""
        self.idle_since_s = 0.0
        self._sock = sock
        self._fd = sock.fileno()
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._scratch = scratch
        self._scratch_view = memoryview(scratch)
        self._loop = asyncio.get_running_loop()
        self._state = _State.IDLE
        self._waiter: asyncio.Future[Answer] | None = None
        self._bodiless = False
        self._keeps_alive = False
        self._broken = False
        self._served = 0
        self._moved_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._out: list[memoryview] = []
        self._writing = False
        self._head = bytearray()
        self._parser = _Parser()
        self._room: _Room | None = None
        self._loop.add_reader(self._fd, self._on_readable)

    def __repr__(self) -> str:
        return f"<Connection {self._state.name} fd={self._fd} served={self._served}>"

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._state is _State.IDLE

    async def exchange(
        self, head: bytes, body: ReadableBuffer = b"", *, bodiless: bool, timeout_s: float
    ) -> Answer:
        """Return the answer to a request; `bodiless` is one to HEAD.

        `body` is not referred to any more when this returns, raises or is cancelled.

        Raises:
            StaleError: The server had closed this connection when it was idle.
            TimeoutError: Nothing moved for `timeout_s`.
            OSError: The connection failed, or the answer is no HTTP.
        """
        if not self.reusable or (self._served and not self._is_quiet()):
            self.close()
            raise StaleError("the server had closed the connection")
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._state = _State.HEAD
        self._bodiless = bodiless
        self._head = bytearray()
        self._moved_s = self._loop.time()
        self._timer = self._loop.call_later(timeout_s, self._look, timeout_s)
        try:
            self._enqueue(head, body)
            self._send()
            return await waiter
        except BaseException:
            self.close()
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # came too late to be heard
            raise
        finally:
            self._timer.cancel()

    def close(self) -> None:
        """Close at once; nothing of a request that is not in the kernel yet will be sent."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.CLOSED
        self._drop_output()
        self._loop.remove_reader(self._fd)
        if self._room is not None:
            self._room.drop()
            self._room = None
        self._sock.close()

    def _is_quiet(self) -> bool:
        """Say whether nothing has come since the last answer: no end, no more than was asked."""
        try:
            self._sock.recv_into(self._scratch)
        except _NOT_NOW:
            return True
        except OSError:
            pass
        return False

    # -- out

    def _enqueue(self, head: bytes, body: ReadableBuffer) -> None:
        """The head goes with the beginning of the body; a small one is copied as a whole."""
        with memoryview(body) as view:
            self._out.append(memoryview(b"".join((head, view[:_JOINED_BYTES]))))
            if len(view) > _JOINED_BYTES:
                self._out.append(view[_JOINED_BYTES:])

    def _send(self) -> None:
        """Hand the kernel as much as it takes now."""
        try:
            while self._out:
                piece = self._out[0]
                sent = self._sock.send(piece)
                self._moved_s = self._loop.time()
                if sent == len(piece):
                    del self._out[0]
                else:
                    self._out[0] = piece[sent:]
                piece.release()
        except ssl.SSLWantReadError:
            self._stop_writing()  # what arrives next makes it go on
            return
        except _NOT_NOW:
            self._start_writing()
            return
        except OSError:
            # The server may have answered without waiting for all of the body: what is
            # there to be read says so, or that the connection is broken.
            self._broken = True
            self._drop_output()
            return
        self._stop_writing()

    def _on_writable(self) -> None:
        if self._out:
            self._send()
        else:
            self._stop_writing()
        if self._tls:
            self._receive()

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _drop_output(self) -> None:
        for piece in self._out:
            piece.release()
        self._out.clear()
        self._stop_writing()

    # -- in

    def _on_readable(self) -> None:
        self._receive()
        if self._tls and self._out:
            self._send()

    def _receive(self) -> None:
        """Take in what is there; up to the last byte, since a broken socket tells only once."""
        try:
            while self._state is not _State.CLOSED and self._receive_once():
                pass
        except ssl.SSLWantWriteError:
            self._start_writing()
        except _NOT_NOW:
            return
        except (OSError, MemoryError) as error:
            self._fail(error)

    def _receive_once(self) -> bool:
        """Take in one piece; False if no more is to be expected now."""
        if self._state is _State.BODY:
            return self._receive_body()
        count = self._sock.recv_into(self._scratch)
        if self._state is _State.IDLE:
            self.close()  # its end, or something that nobody has asked for
            return False
        if not count:
            self._ended()
            return False
        self._moved_s = self._loop.time()
        if self._state is _State.HEAD:
            self._take_head(count)
        else:
            self._take_stream(bytes(self._scratch_view[:count]))
        return not self.reusable

    def _receive_body(self) -> bool:
        room = self._room
        assert room is not None  # noqa: S101 - what BODY means
        count = self._sock.recv_into(room.view[room.filled :])
        if not count:
            raise HttpError(f"the connection was closed {room.filled} bytes into the answer")
        self._moved_s = self._loop.time()
        room.filled += count
        if room.filled < len(room.view):
            return True
        self._done(room.take())
        return False

    def _take_head(self, count: int) -> None:
        """Look for the end of the head in what has arrived."""
        data, view = self._scratch, self._scratch_view
        if self._head:
            self._head += view[:count]
            data, count = self._head, len(self._head)
            view = memoryview(data)
        start = 0
        while (end := data.find(_HEAD_END, start, count)) >= 0:
            end += len(_HEAD_END)
            self._parser = _Parser()
            self._parser.feed(bytes(view[start:end]))
            if not 100 <= self._parser.answer.status < 200:
                self._begin_body(view[end:count])
                return
            start = end
        if count - start > _MOST_HEAD_BYTES:
            raise HttpError("the head of the answer is too long")
        self._head = bytearray(view[start:count])

    def _begin_body(self, data: memoryview) -> None:
        """The head is complete and `data` came with it: decide how the body is received."""
        parser = self._parser
        answer = parser.answer
        self._keeps_alive = parser.keeps_alive()
        stated = answer.headers.get(b"content-length")
        if self._bodiless or answer.status in _NO_BODY:
            self._done(b"", surplus=len(data))
        elif stated is None or b"transfer-encoding" in answer.headers:
            self._state = _State.STREAM
            self._take_stream(bytes(data))
        else:
            self._begin_known(_length(stated), data)

    def _begin_known(self, length: int, data: memoryview) -> None:
        if len(data) >= length:
            self._done(bytes(data[:length]), surplus=len(data) - length)
            return
        self._room = _Room(length)
        self._room.add(data)
        self._state = _State.BODY

    def _take_stream(self, data: bytes) -> None:
        parser = self._parser
        if data:
            parser.feed(data)
        if parser.complete:
            self._done(b"".join(parser.pieces))

    def _ended(self) -> None:
        """The server has sent all it will."""
        if self._state is _State.HEAD:
            raise _cut() if self._head else ConnectionResetError("closed before an answer")
        if b"transfer-encoding" in self._parser.answer.headers:
            raise _cut()
        self._keeps_alive = False
        self._done(b"".join(self._parser.pieces))

    # -- ends

    def _done(self, body: bytes, surplus: int = 0) -> None:
        """Hand the answer over; go on living if both sides are through with it."""
        answer, waiter = self._parser.take(body), self._waiter
        self._room = self._waiter = None
        self._served += 1
        if self._out or self._broken or surplus or not self._keeps_alive:
            self.close()
        else:
            self._state = _State.IDLE
        if waiter is not None and not waiter.done():
            waiter.set_result(answer)

    def _fail(self, error: Exception) -> None:
        """Close, and tell who waits."""
        silent = self._state is _State.HEAD and not self._head
        waiter, self._waiter = self._waiter, None
        self.close()
        if waiter is None or waiter.done():
            return
        if silent and self._served and isinstance(error, ConnectionError):
            stale = StaleError("the server had closed the connection")
            stale.__cause__ = error
            error = stale
        waiter.set_exception(error)

    def _look(self, timeout_s: float) -> None:
        """Give up if nothing has moved, else look again when that could be so."""
        left_s = self._moved_s + timeout_s - self._loop.time()
        if left_s <= 0:
            self._fail(TimeoutError(f"nothing came or went for {timeout_s:g} s"))
        else:
            self._timer = self._loop.call_later(left_s, self._look, timeout_s)


def _length(stated: bytes) -> int:
    stated = stated.strip()
    length = int(stated) if stated.isdigit() else LARGEST_BODY_BYTES + 1
    if length > LARGEST_BODY_BYTES:
        raise HttpError(f"an answer of {stated[:40].decode('latin-1')} bytes is too long")
    return length


def _cut() -> HttpError:
    return HttpError("the connection was closed within an answer")
