"""The end of one server: what it takes away, what it leaves to the next, and what it says.

Whatever is started pushes its part of the end on the exit stack of `jfsd.daemon.app`; the
parts are here. A mount that goes on under another server is left as it is, all of it.

What a SIGKILL leaves at each step is in docs/LIFECYCLE.md.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from jfsd.config.runtime import find, register, unregister
from jfsd.daemon.aftermath import settle
from jfsd.daemon.drain import flush_all
from jfsd.daemon.phase import Phase
from jfsd.daemon.stop import Leaver, Stopper
from jfsd.daemon.takeover import unpark
from jfsd.errors import ExitCode, JfsdError, RefusedError
from jfsd.failpoint import reach
from jfsd.fuse import mount as mounting
from jfsd.record import replace

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from jfsd.chunk.blocks import BlockStore
    from jfsd.chunk.writer import Writer
    from jfsd.config.runtime import MountRecord
    from jfsd.daemon.handover import Handover
    from jfsd.daemon.phase import Life
    from jfsd.daemon.state import State
    from jfsd.fuse.mount import Mounted
    from jfsd.fuse.session import Session
    from jfsd.meta.client import Meta
    from jfsd.meta.session import Session as MetaSession
    from jfsd.systemd.notify import Notifier

log = logging.getLogger(__name__)

FLUSH_PATIENCE_S = 300.0
"""How long a stop waits while nothing more is stored; then it says what is lost, and fails."""


class Ending:
    """How a server of one mount ends.

    Attributes:
        record: What lets commands find the mount, once it is there.
        failure: Why serving ended, if not as somebody asked for.
        cut_off: Why serving ended although nobody unmounted.
        fenced: A newer server has the mount.
    """

    def __init__(
        self, mountpoint: str, life: Life, notifier: Notifier, *, adopted: bool, fresh: bool
    ) -> None:
        """Prepare.

        Args:
            mountpoint: Where the mount is, or shall be.
            life: The phase that the server is in.
            notifier: The keeper, and whoever waits for the end.
            adopted: The mount was there before this server.
            fresh: It was, and nobody has served it yet.
        """
        self.record: MountRecord | None = None
        self.failure: JfsdError | None = None
        self.cut_off: JfsdError | None = None
        self.fenced = False
        self._mountpoint = mountpoint
        self._life = life
        self._notifier = notifier
        self._adopted = adopted
        self._fresh = fresh
        self._may_mount = mounting.may_mount()
        self._leaver: Leaver | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the mount outlives this process: a newer server has it, or shall have."""
        return self.fenced or (self._adopted and self._life.phase is Phase.STARTING)

    def stopper(
        self, mounted: Mounted, kernel: Session, handover: Handover, writer: Writer, wait_s: float
    ) -> Stopper | Leaver:
        """Return what ends the mount, or only this server, when somebody asks for it."""
        if self._may_mount:
            return Stopper(self._mountpoint, kernel, wait_s)
        self._leaver = Leaver(
            mounted,
            kernel,
            wait_s,
            flush=writer.flush_all,
            leave=handover.request,
            notifier=self._notifier,
        )
        return self._leaver

    def push_first(self, stack: AsyncExitStack) -> None:
        """Push what comes last: until all is stored a keeper can go on, and commands find us."""
        stack.callback(self._unregister)
        stack.callback(self._unpark)

    def verdict(self) -> int:
        """Return what a service manager should know: see docs/SERVICE.md.

        Raises:
            JfsdError: Why serving ended, if not as somebody asked for.
        """
        failure = self.failure or self.cut_off
        if failure is not None:
            raise failure
        if self._may_mount or self.goes_on:
            return ExitCode.OK
        if self._leaver is not None and self._leaver.cut_off:
            return ExitCode.BUSY
        return ExitCode.NOT_MOUNTED

    # -- the parts, in the order in which they come ------------------------------------------

    def detach(self, mounted: Mounted) -> None:
        """Leave no dead mount behind when serving failed; one that is handed on stays."""
        entry = mounting.find(self._mountpoint)
        if not self._may_mount or self.goes_on:
            return
        if entry is not None and entry.device == mounted.device:
            with suppress(RefusedError):
                mounting.umount(self._mountpoint, lazy=True)

    async def flush(self, writer: Writer) -> None:
        """Store what was written; what cannot be stored in time is named, and lost."""
        if self.goes_on:
            return
        reach("stop.unmounted")
        try:
            await flush_all(writer, self._notifier, FLUSH_PATIENCE_S)
            reach("stop.flushed")
        except (ExceptionGroup, TimeoutError) as error:
            files = ", ".join(str(ino) for ino in writer.dirty_files[:20])
            log.error("not stored: inodes %s (%s)", files, error)  # noqa: TRY400
            self.failure = RefusedError(
                ExitCode.STORE_UNREACHABLE,
                f"inodes {files}",
                "what was written to them could not be stored and is lost",
                "see the log for the store's error, and write them again",
            )

    async def settle(self, meta: Meta, state: State, blocks: BlockStore) -> None:
        """Leave no objects that were being written or deleted for nobody."""
        if not self.goes_on and not meta.read_only:
            try:
                await settle(state.drafts(), state, meta, blocks.delete_slice)
            except OSError as error:
                log.warning("objects without a slice may be left behind: %s", error)

    async def close_session(self, meta: Meta, session: MetaSession) -> None:
        """Leave nothing of the mount in Redis, unless another server goes on with it."""
        if not self.goes_on:
            await session.close()
            reach("stop.closed")
            await meta.forget_mount()

    def _unpark(self) -> None:
        """Take the descriptors back from the keeper: the mount is gone."""
        if not self.goes_on and not (self._fresh and self._life.phase is Phase.STARTING):
            unpark(self._notifier)

    def _unregister(self) -> None:
        """Remove our record, or leave in it why this server ended."""
        if self.record is None:
            return
        if self.failure is not None and find(self._mountpoint) == self.record:
            register(replace(self.record, failure=str(self.failure)))
        else:
            unregister(self._mountpoint, self.record.pid)
