"""The next version, started beside the server that runs: warm before it takes over.

A holder does that by itself (jfsd.daemon.holder_keeper); a service manager knows only one
main process at a time. There the server starts its successor, leaves the mount to it and
tells the manager which process is the main one now. The pause is that of sealing and
adopting alone: no program is loaded in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jfsd.daemon.holder_child import Command
from jfsd.daemon.holder_link import HOLDER_VARIABLE, HolderClient
from jfsd.daemon.holder_place import HolderError
from jfsd.daemon.holder_successor import Successor
from jfsd.daemon.program import module_command

if TYPE_CHECKING:
    from jfsd.daemon.handover import Handover
    from jfsd.daemon.holder_store import Kept
    from jfsd.systemd.notify import Notifier

log = logging.getLogger(__name__)

UPGRADE_SIGNAL = signal.SIGUSR1
UPGRADE = "upgrade"

WARM_PATIENCE_S = 60.0
"""How long a successor may take until it is ready to take over."""


def own_command() -> Command:
    """Return what starts this program again, in the version that is installed by then."""
    return Command((*module_command("jfsd"), *sys.argv[1:]), dict(os.environ))


class Succession:
    """Replaces this process by a new one of the installed version; requested by a signal."""

    def __init__(
        self, handover: Handover, notifier: Notifier, kept: Callable[[], Sequence[Kept]]
    ) -> None:
        """Prepare; `kept` returns the descriptors that a successor needs."""
        self._handover = handover
        self._notifier = notifier
        self._kept = kept
        self._task: asyncio.Task[str] | None = None

    def request(self) -> asyncio.Task[str]:
        """Begin, unless it has begun; the task's result says why it did not work."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="succession")
        return self._task

    async def _run(self) -> str:
        failure = await (
            asyncio.to_thread(_ask_holder, os.environ[HOLDER_VARIABLE])
            if HOLDER_VARIABLE in os.environ
            else self._replace()
        )
        if failure:
            log.error("the next version cannot take over: %s; this one goes on", failure)
        return failure

    async def _replace(self) -> str:
        variables = {
            name: os.environ[name]
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC")
            if name in os.environ
        }
        kept = self._kept()
        try:
            successor = await asyncio.to_thread(
                Successor, own_command(), kept, variables, orphan=True
            )
        except OSError as error:
            return f"{error.filename or 'it'} cannot be run ({error.strerror})"
        if not await _warmed_up(successor):
            successor.dismiss()
            return "it ended, or was not ready in time; its reason is in the log above"

        def promote() -> None:
            successor.promote(kept)
            self._notifier.main_pid(successor.process.pid)

        await self._handover.leave(UPGRADE, promote)
        successor.dismiss()
        return "this server may not leave"


async def _warmed_up(successor: Successor) -> bool:
    """Return whether the successor says that it is ready to take over."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(successor.fileno(), heard.set)
    try:
        async with asyncio.timeout(WARM_PATIENCE_S):
            await heard.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(successor.fileno())
    return successor.hear()


def _ask_holder(path: str) -> str:
    """Have the holder do it; return why it did not work. Usually nobody is left to return to."""
    try:
        with HolderClient(path) as holder:
            holder.restart(warm=True)
    except HolderError as error:
        return str(error)
    return ""
