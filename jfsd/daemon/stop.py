"""How a served mount comes to its end when somebody asks the process to stop."""

from __future__ import annotations

import asyncio
import logging

from jfsd.clock import monotonic_s
from jfsd.errors import ExitCode, RefusedError
from jfsd.fuse import native
from jfsd.fuse.mount import Mounted, find, umount
from jfsd.fuse.session import Session

log = logging.getLogger(__name__)


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
    """Ends a mount: unmounts it; detaches it if files are open; at the third request gives up.

    A detached mount is out of sight and its open files go on to work until they are
    closed; the process ends with the last of them.
    """

    def __init__(self, mountpoint: str, session: Session) -> None:
        self._mountpoint = mountpoint
        self._session = session
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
        try:
            await asyncio.to_thread(umount, self._mountpoint)
        except RefusedError as error:
            if error.exit_code != ExitCode.BUSY:
                log.warning("%s", error)
                self._session.stop()
                return
            log.warning("%s has open files: detached, waiting for them", self._mountpoint)
            await asyncio.to_thread(umount, self._mountpoint, lazy=True)
