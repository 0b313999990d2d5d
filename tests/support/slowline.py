"""A line between a client and a server that adds delay to each round trip and counts them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 18


class SlowLine:
    """Listens on a port of the loopback and passes everything on, to the server `delay_s` later.

    `turns` counts round trips: how often the client spoke after the server had. `requests`
    counts what begins like a line of HTTP, or like a command of Redis.
    """

    def __init__(self, target: Path | tuple[str, int], delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.turns = 0
        self.requests = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-line")
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut all connections and stop listening."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def counts(self) -> tuple[int, int]:
        """Return (turns, requests) so far."""
        return self.turns, self.requests

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        if isinstance(self._target, tuple):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        else:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        turn = {"client": True}

        def asked(data: bytes) -> None:
            if turn["client"]:
                self.turns += 1
                turn["client"] = False
            self.requests += _requests(data)

        def answered(_data: bytes) -> None:
            turn["client"] = True

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer, asked, self.delay_s))
                group.create_task(self._pass(far_reader, writer, answered, 0.0))
        except* (ConnectionError, EOFError):
            pass
        finally:
            writer.close()
            far_writer.close()

    async def _pass(self, source, target, note, delay_s) -> None:
        """Pass chunks on, each `delay_s` after it came, however many are on their way."""
        line: deque[tuple[float, bytes]] = deque()
        more = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not line:
                    more.clear()
                    await more.wait()
                due_s, data = line.popleft()
                wait_s = due_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                if not data:
                    raise EOFError
                target.write(data)
                await target.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            while True:
                data = await source.read(_CHUNK)
                note(data)
                if not data or delay_s:
                    line.append((time.monotonic() + delay_s, data))
                    more.set()
                else:
                    target.write(data)
                    await target.drain()
                if not data:
                    return


def _requests(data: bytes) -> int:
    if data[:4] in (b"GET ", b"PUT ", b"HEAD", b"DELE", b"POST"):
        return 1
    return data.count(b"\r\n$7\r\nEVALSHA\r\n") + sum(
        data.count(b"\r\n$%d\r\n%s\r\n" % (len(word), word)) for word in _COMMANDS
    )


_COMMANDS = (
    b"GET", b"MGET", b"HGET", b"HSCAN", b"HGETALL", b"LRANGE", b"INCRBY", b"HDEL", b"ZREM",
    b"EVAL", b"HKEYS", b"SCRIPT",
)  # fmt: skip
"""Of a mount; a name of a file in tests is none of them."""
