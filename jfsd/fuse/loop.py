"""The part of trio that pyfuse3's main loop uses, on asyncio, with little to do per request.

When the descriptor is readable, requests are taken from it natively (`_dispatch.c`), and
most are carried out there, without any task. What is left is pyfuse3's, which runs worker
tasks: each waits for the descriptor, reads one request, and carries it to its answer; a new
worker is started when none is left waiting. Its own asyncio layer registers and removes the
descriptor for every request. Here it stays registered, and a request that is left wakes the
worker that waited last (its memory is the warmest).

The loop can be parked: no request is read any more, those that were read go on to
their answers. That, and never libfuse's exit flag, is how serving stops: with the
flag set libfuse throws away a request that it has just read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, Self

from jfsd.fuse import native

_AT_ONCE = 16
"""Requests taken in one turn of the event loop; replies of Redis are due in between."""


class Kernel(Protocol):
    """Where requests come from (`jfsd.fuse.native`)."""

    def take(self) -> bool | None:
        """Read a request; return True if a worker is to go on, None if there is none."""

    def waiting(self) -> int:
        """Return how many requests are carried out without a worker, and wait."""

    def cancel_waiting(self) -> None:
        """Give those up without an answer."""

    def ended(self) -> bool:
        """Return whether the connection has ended."""


class ClosedResourceError(Exception):
    """The worker that waits for a request shall end."""


class _Everyone:
    """Stands in for a lock that would keep all workers but one from waiting."""

    async def __aenter__(self) -> None:
        """Return at once."""

    async def __aexit__(self, *args: object) -> None:
        """Return at once."""


class Workers:
    """pyfuse3's `trio`, and its `trio.lowlevel`, for one mount.

    Invariants: a worker is idle (waiting for a request), granted (about to get one) or
    busy; at most one is granted; the descriptor is watched only while a worker is idle,
    the loop is neither parked nor held, and there is room for one more request.
    """

    ClosedResourceError = ClosedResourceError
    Lock = _Everyone
    name = "fuse"

    def __init__(
        self,
        fd: int,
        on_ready: Callable[[], None],
        *,
        replays: int = 0,
        most: int = 1 << 16,
        kernel: Kernel = native,
    ) -> None:
        """Serve `fd`.

        Args:
            fd: What requests are read from.
            on_ready: Called once, when INIT has been answered.
            replays: So many requests are read from elsewhere before.
            most: So many requests are in work at once; more wait in the kernel.
            kernel: Reads them.
        """
        self._kernel = kernel
        self._most = most
        self._replays = replays
        self.lowlevel = self
        self._fd = fd
        self._on_ready: Callable[[], None] | None = on_ready
        self._init_due = True
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._granted = False
        self._watching = False
        self._parked = False
        self._full = False
        self._closed = False
        self._error: BaseException | None = None
        self._progress = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "parked" if self._parked else "serving"
        return f"<Workers {state} busy={self.busy} idle={len(self._idle)}>"

    @property
    def busy(self) -> int:
        """Requests that were read and are not answered."""
        return len(self._tasks) - len(self._idle) - self._granted + self._kernel.waiting()

    def park(self) -> None:
        """Read no more requests; those that were read go on."""
        self._parked = True
        self._unwatch()

    def resume(self) -> None:
        """Read requests again after `park`."""
        self._parked = False
        self._look()

    def hold(self, full: bool) -> None:
        """Read no more requests while those that wait hold as much memory as they may."""
        self._full = full
        if full:
            self._unwatch()
        else:
            self._look()

    async def answered(self) -> None:
        """Return once a parked loop has answered everything that it had read."""
        while self.busy or self._granted:
            await self._change()

    def close(self) -> None:
        """Let every worker end once it is idle; `pyfuse3.main()` returns after the last answer."""
        self._closed = True
        self._unwatch()
        for waiting in self._idle:
            if not waiting.done():
                waiting.set_exception(ClosedResourceError())
        self._idle.clear()

    # -- what the native dispatcher calls ------------------------------------------------------

    def relieved(self) -> None:
        """Note that a request that waited without a worker is answered."""
        if not self._watching:
            self._progress.set()
            self._look()

    # -- what pyfuse3 calls -----------------------------------------------------------------

    def current_task(self) -> Self:
        """Return something with a name for pyfuse3's log."""
        return self

    def current_trio_token(self) -> str:
        """Return something to identify the event loop."""
        return "asyncio"

    def notify_closing(self, fd: int) -> None:
        """Close; called by `pyfuse3.terminate()`."""
        if fd == self._fd:
            self.close()

    async def wait_readable(self, fd: int) -> None:  # noqa: ARG002
        """Return when this worker shall read one request.

        Raises:
            ClosedResourceError: It shall end instead.
        """
        if self._closed:
            raise ClosedResourceError
        if self._init_due:
            self._init_due = False
            return
        if self._on_ready is not None:
            on_ready, self._on_ready = self._on_ready, None
            on_ready()
        waiting = self._loop.create_future()
        self._idle.append(waiting)
        if self._parked:
            self._progress.set()
        self._look()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting in self._idle:
                self._idle.remove(waiting)
            else:
                self._granted = False
            raise
        self._granted = False

    def open_nursery(self) -> Self:
        """Return a context that lasts as long as there are workers or requests."""
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Return after the last worker and request; raise what ended one of them."""
        try:
            while self._tasks or self._kernel.waiting():
                await self._change()
        finally:
            self.close()
            self._kernel.cancel_waiting()
        if self._error is not None and error is None:
            raise self._error

    def start_soon(
        self, worker: Callable[..., Awaitable[None]], *args: object, name: str | None = None
    ) -> None:
        """Start another worker."""
        task: asyncio.Task[None] = self._loop.create_task(worker(*args), name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    # -- readiness ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Watch the descriptor if a request of it would be read."""
        if not self._idle or self._parked or self._full or self._closed:
            return
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._fd, self._drain)
        if self._replays:
            self._loop.call_soon(self._drain)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._fd)

    def _drain(self) -> None:
        """Begin what has come, until a request is left for a worker.

        A single program asks one thing at a time: looking for more, while nothing else is
        in work, would be in vain.
        """
        if self._granted or not self._watching:
            return
        busy = self.busy
        if not self._idle or busy >= self._most:
            self._unwatch()
            return
        for _ in range(min(self._most - busy, _AT_ONCE) if busy or self._replays else 1):
            self._replays -= self._replays > 0
            left = self._kernel.take()
            if left:
                self._granted = True
                self._idle.pop().set_result(None)
                return
            if left is None or not self._watching:  # parked or held by what was begun
                break
        if self._replays:
            self._look()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._error = self._error or error
        if error is not None or self._kernel.ended():
            self.close()
        self._progress.set()

    async def _change(self) -> None:
        """Return when a worker became idle or ended."""
        self._progress.clear()
        await self._progress.wait()
