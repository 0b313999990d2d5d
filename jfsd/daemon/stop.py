"""How a served mount comes to its end when somebody asks the process to stop.

A server that may unmount does it; one that may not is asked only after somebody else has.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from jfsd.clock import monotonic_s
from jfsd.errors import ExitCode, RefusedError
from jfsd.fuse import native
from jfsd.fuse.mount import Mounted, find, umount

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jfsd.fuse.session import Session
    from jfsd.systemd.notify import Notifier

log = logging.getLogger(__name__)


FLUSH_PATIENCE_S = 20.0
"""How long a server that leaves a mount behind stores what was written before it goes."""

_BEAT_S = 1.0
_RETRY_S = 0.25
_LETS_GO_S = 2.0
"""How long an unmounted mount may stay in the table after its connection has ended."""


async def cut_off(mounted: Mounted) -> RefusedError | None:
    """Return why serving ended although nobody unmounted: the connection was aborted.

    Whoever unmounts takes the mount out of the table, at the latest right after the
    connection has ended (umount2(2) with MNT_FORCE).
    """
    if not native.ended():
        return None
    end_s = monotonic_s() + _LETS_GO_S
    while (entry := find(mounted.path)) is not None and entry.device == mounted.device:
        if monotonic_s() > end_s:
            return RefusedError(
                ExitCode.FAILURE,
                mounted.path,
                "the kernel's connection to it was aborted (/sys/fs/fuse/connections)",
                "what was written is stored; mount it again",
            )
        await asyncio.sleep(0.05)
    return None


class Stopper:
    """Ends a mount: unmounts it; detaches it if files stay open; asked again, gives up.

    A detached mount is out of sight and its open files go on to work until they are
    closed; the process ends with the last of them.
    """

    def __init__(self, mountpoint: str, session: Session, patience_s: float = 0.0) -> None:
        """Prepare; open files are waited for `patience_s`."""
        self._mountpoint = mountpoint
        self._session = session
        self._patience_s = patience_s
        self._requests = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def request(self) -> None:
        """Begin to stop; asked again, wait for nobody any more."""
        self._requests += 1
        if self._requests > 1:
            log.warning("asked to stop again: open files of %s are cut off", self._mountpoint)
            self._session.stop()
            return
        task = asyncio.get_running_loop().create_task(self._unmount(), name="unmount")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unmount(self) -> None:
        """Unmount in a thread: the kernel may have requests for us before it lets go."""
        end_s = monotonic_s() + self._patience_s
        while True:
            try:
                await asyncio.to_thread(umount, self._mountpoint)
            except RefusedError as error:
                if error.exit_code != ExitCode.BUSY:
                    log.warning("%s", error)
                    self._session.stop()
                    return
            else:
                return
            if monotonic_s() >= end_s:
                break
            await asyncio.sleep(_RETRY_S)
        log.warning("%s has open files: detached, waiting for them", self._mountpoint)
        await asyncio.to_thread(umount, self._mountpoint, lazy=True)


class Leaver:
    """Ends a server that has not made its mount: whoever made it unmounts it.

    Asked to stop when that has happened, it serves those who have files open, for a while.
    Asked while the mount is in its place, it stores what was written and leaves the mount to
    the next server: nobody meant it to go.
    """

    def __init__(
        self,
        mounted: Mounted,
        session: Session,
        patience_s: float,
        *,
        flush: Callable[[], Awaitable[None]],
        leave: Callable[[], None],
        notifier: Notifier,
    ) -> None:
        """Prepare.

        Args:
            mounted: What is served.
            session: Serves it.
            patience_s: How long files may stay open after the mount is gone.
            flush: Stores what was written.
            leave: Ends this process for the next one.
            notifier: Asked for more time meanwhile.
        """
        self._mounted = mounted
        self._session = session
        self._patience_s = patience_s
        self._flush = flush
        self._leave = leave
        self._notifier = notifier
        self._task: asyncio.Task[None] | None = None
        self.cut_off = False
        """Files were open when the server ended."""

    def request(self) -> None:
        """Begin to stop; asked again, wait for nobody any more."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="stop")
        elif self._is_mounted():
            self._leave()
        else:
            self._end()

    async def _run(self) -> None:
        if self._is_mounted():
            log.warning("asked to stop, but %s is mounted: left to be served", self._mounted.path)
            self._notifier.extend_timeout(FLUSH_PATIENCE_S + _BEAT_S)
            try:
                async with asyncio.timeout(FLUSH_PATIENCE_S):
                    await self._flush()
            except (ExceptionGroup, TimeoutError) as error:
                log.warning("not everything is stored yet: %s", error)
            self._leave()
            return
        end_s = monotonic_s() + self._patience_s
        while (left_s := end_s - monotonic_s()) > 0:
            self._notifier.status(f"stopping: files are open, cut off in {left_s:.0f} s")
            self._notifier.extend_timeout(10 * _BEAT_S)
            await asyncio.sleep(min(_BEAT_S, left_s))
        self._end()

    def _is_mounted(self) -> bool:
        entry = find(self._mounted.path)
        return entry is not None and entry.device == self._mounted.device

    def _end(self) -> None:
        log.warning("%s: open files are cut off", self._mounted.path)
        self.cut_off = True
        self._session.stop()
