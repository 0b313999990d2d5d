"""The planned end of a server whose mount goes on: read no more, finish, seal, leave.

Nothing has to be flushed: accepted bytes are in the arena and the records of them in
the state, both of which the keeper holds. What a handler has not answered comes again to
the next server, and finds in Redis what was done of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from jfsd.clock import monotonic_s
from jfsd.daemon.holder_link import HOLDER_VARIABLE, is_kept
from jfsd.daemon.takeover import NAMES
from jfsd.daemon.timing import RESTART
from jfsd.failpoint import reach

if TYPE_CHECKING:
    from jfsd.daemon.state import State
    from jfsd.fuse.session import Session
    from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)

HANDOVER_SIGNAL = signal.SIGUSR2
"""What the keeper sends for a restart; SIGTERM means that the mount shall go, too."""

PATIENCE_S = 0.1
"""How long requests that were read may take to be answered by this server."""

LAST_PATIENCE_S = 60.0
"""The same for those that no other server could answer (kernels before 6.9)."""


class Handover:
    """Ends the process for the next one; requested by a signal, done once."""

    def __init__(
        self, kernel: Session, vfs: Vfs, state: State, on_leave: Callable[[], None]
    ) -> None:
        """Prepare; `on_leave` is called when the process is about to end."""
        self._on_leave = on_leave
        self._kernel = kernel
        self._vfs = vfs
        self._state = state
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Begin, unless it has begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="handover")

    async def _run(self) -> None:
        try:
            await self.leave(RESTART)
        finally:
            self._task = None

    async def leave(self, kind: str, promote: Callable[[], None] | None = None) -> None:
        """End this process; return only if the mount would not survive that.

        Args:
            kind: What the next server shall call the event.
            promote: Lets the next server serve; None if the keeper starts it.
        """
        began_s = monotonic_s()
        self._kernel.park()
        reach("handover.parked")
        if promote is None and HOLDER_VARIABLE in os.environ:
            kept = asyncio.create_task(asyncio.to_thread(is_kept, NAMES), name="is_kept")
        else:
            kept = None
        await self._finish(began_s)
        if kept is not None and not await kept:
            log.warning("the holder does not keep this mount (any more): it is not handed over")
            self._kernel.resume()
            return
        left = self._kernel.in_flight
        now_s = monotonic_s()
        drain_ms = round((now_s - began_s) * 1000, 1)
        self._on_leave()
        reach("handover.finished")
        self._state.running(0)
        self._state.change(
            sealed=True,
            leaving={"kind": kind, "at_s": began_s, "drain_ms": drain_ms, "left": left},
        )
        reach("handover.sealed")
        if promote is not None:
            promote()
        log.info("hands over after %.0f ms, %d requests come again", drain_ms, left)
        logging.shutdown()
        os._exit(0)  # no teardown: whatever it would end goes on in the next process

    async def _finish(self, began_s: float) -> None:
        """Return when all is answered that will be soon; waiting locks will not."""
        while self._kernel.in_flight > self._vfs.waiting_locks:
            patience_s = LAST_PATIENCE_S if self._kernel.unrepeatable else PATIENCE_S
            if monotonic_s() - began_s > patience_s:
                return
            await asyncio.sleep(0.001)
