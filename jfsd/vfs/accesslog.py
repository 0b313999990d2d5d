"""Who asked for what and when: told to whoever listens, at no cost while nobody does."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

QUEUE_REQUESTS = 10_240
"""Requests kept for a reader that is slow; what comes after is dropped, and that is said."""

IDLE_S = 1.0
"""How long a read waits for a request; then it gets a line without one."""

IDLE_LINE = b"#\n"


class Answered(NamedTuple):
    """A request of the kernel and what became of it."""

    at_ns: int
    """When it was answered, on the wall clock."""
    uid: int
    gid: int
    pid: int
    method: str
    arguments: str
    errno: int
    took_s: float

    def line(self) -> bytes:
        """Return it as a line of the reference's access log."""
        seconds, ns = divmod(self.at_ns, 1_000_000_000)
        when = time.strftime("%Y.%m.%d %H:%M:%S", time.localtime(seconds))
        result = "OK" if not self.errno else os.strerror(self.errno)
        return (
            f"{when}.{ns // 1000:06d} [uid:{self.uid},gid:{self.gid},pid:{self.pid}]"
            f" {self.method} ({self.arguments}) - {result} <{self.took_s:.6f}>\n"
        ).encode()


Listener: TypeAlias = Callable[[Answered], None]
"""Takes a request; it is called in the middle of the work and must not wait."""


class AccessLog:
    """Tells every request to the listeners there are."""

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] = ()
        self.waiting = 0
        """Reads that wait for a request to be told."""

    def __repr__(self) -> str:
        return f"<AccessLog {len(self.listeners)} listeners, {self.waiting} waiting>"

    def listen(self, listener: Listener) -> None:
        """Tell requests to a listener from now on."""
        self.listeners = (*self.listeners, listener)

    def leave(self, listener: Listener) -> None:
        """Tell it no more; one that is not there is no error."""
        self.listeners = tuple(each for each in self.listeners if each != listener)

    def tell(self, answered: Answered) -> None:
        """Tell a request to all listeners."""
        for listener in self.listeners:
            listener(answered)


class AccessLogReader:
    """The lines of an access log since it was opened, for one open handle."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log
        self._queue: deque[Answered] = deque()
        self._rest = b""
        self._dropped = 0
        self._came: asyncio.Future[None] | None = None
        log.listen(self.take)

    def close(self) -> None:
        """Listen no more."""
        self._log.leave(self.take)

    def take(self, answered: Answered) -> None:
        """Keep a request for the next read, if there is room."""
        if len(self._queue) >= QUEUE_REQUESTS:
            self._dropped += 1
            return
        self._queue.append(answered)
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    async def read(self, off: int, size: int) -> bytes:
        """Return what is there, whole lines as far as they fit; wait a while for the first.

        Where it is read at does not matter: the log has no beginning.
        """
        del off
        if not self._rest and not self._queue:
            await self._wait()
        if not self._rest and not self._queue:
            self._rest = IDLE_LINE
        while len(self._rest) < size and self._queue:
            self._rest += self._queue.popleft().line()
            if self._dropped and not self._queue:
                self._rest += f"# {self._dropped} requests are missing here\n".encode()
                self._dropped = 0
        end = self._rest.rfind(b"\n", 0, size) + 1 or size
        data, self._rest = self._rest[:end], self._rest[end:]
        return data

    async def _wait(self) -> None:
        """Return when a request has come or none has for a while."""
        if self._came is None or self._came.done():
            self._came = asyncio.get_running_loop().create_future()
        self._log.waiting += 1
        try:
            await asyncio.wait((self._came,), timeout=IDLE_S)
        finally:
            self._log.waiting -= 1


def argument_text(value: bytes) -> str:
    """Return a name as one word or more on one line."""
    text = value.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
