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
from typing import TYPE_CHECKING

from jfsd.clock import monotonic_s

if TYPE_CHECKING:
    from jfsd.daemon.state import State
    from jfsd.fuse.session import Session
    from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)

HANDOVER_SIGNAL = signal.SIGUSR2
"""What the keeper sends for a restart; SIGTERM means that the mount shall go, too."""

PATIENCE_S = 0.1
"""How long requests that were read may take to be answered by this server."""


class Handover:
    """Ends the process for the next one; requested by a signal, done once."""

    def __init__(self, kernel: Session, vfs: Vfs, state: State) -> None:
        self._kernel = kernel
        self._vfs = vfs
        self._state = state
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Begin, unless it has begun."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="handover")

    async def _run(self) -> None:
        began_s = monotonic_s()
        self._kernel.park()
        while self._kernel.in_flight > self._vfs.waiting_locks:
            if monotonic_s() - began_s > PATIENCE_S:
                break
            await asyncio.sleep(0.001)
        left = self._kernel.in_flight
        self._state.running(0)
        self._state.change(sealed=True)
        log.info(
            "hands over after %.0f ms, %d requests come again",
            (monotonic_s() - began_s) * 1000,
            left,
        )
        logging.shutdown()
        os._exit(0)  # no teardown: whatever it would end goes on in the next process
