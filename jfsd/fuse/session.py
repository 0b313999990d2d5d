"""Serve a mount from descriptors: fresh or adopted is the same code.

The mount itself is made elsewhere (jfsd.fuse.mount). What it needs to be served is its
descriptor of /dev/fuse and the INIT request that the kernel sent once. As long as
somebody keeps a duplicate of the descriptor, a process that serves may go at any
moment; programs wait until the next one answers.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING

from jfsd.fuse import abi, inflight, native
from jfsd.fuse.direct import Direct
from jfsd.fuse.inflight import Leftovers, RequestJournal
from jfsd.fuse.loop import Workers
from jfsd.fuse.native import pyfuse3
from jfsd.fuse.operations import Operations
from jfsd.fuse.payloads import Payloads
from jfsd.record import Record

if TYPE_CHECKING:
    from jfsd.vfs.vfs import Vfs

MAX_REQUESTS = 65536
"""Requests in work at once, waiting locks among them; more wait in the kernel."""

IDLE_WORKERS = 32
MAX_BACKGROUND = 128
"""Read-ahead and asynchronous direct I/O that the kernel has under way at once."""

_ADD = (
    abi.INIT_PARALLEL_DIROPS
    | abi.INIT_READDIRPLUS_AUTO
    | abi.INIT_ASYNC_DIO
    | abi.INIT_CACHE_SYMLINKS
    | abi.INIT_DIRECT_IO_ALLOW_MMAP
    | abi.INIT_HANDLE_KILLPRIV_V2
)
_ALL_FLAGS = (1 << 64) - 1
_DROP = abi.INIT_ATOMIC_O_TRUNC | abi.INIT_HANDLE_KILLPRIV
"""Truncation at open comes as a request of its own (it can then be repeated). Setuid and
setgid bits are removed by us where a request says so: a kernel that does it itself asks for
an extended attribute before every write (before Linux 5.12 it does)."""


class Terms(Record):
    """What is agreed with the kernel at INIT, for the life of the mount."""

    acls: bool = False
    max_readahead_bytes: int = 0
    """0: as the kernel proposes."""

    @classmethod
    def agreed(cls, init_out: bytes) -> Terms:
        """Return the terms of a mount whose kernel has had this answer to INIT."""
        reply = abi.init_reply(init_out)
        return cls(bool(reply.flags & abi.INIT_DONT_MASK), reply.max_readahead)


class Suspicion(Record):
    """How requests that kill their servers are found out, and which have been."""

    memory: mmap.mmap
    """Outlives the process."""
    at: int
    """Where in it the request whose handler runs is noted, and since when: two words."""
    poisoned: frozenset[int] = frozenset()


class Session:
    """One mount being served. There can be one in a process.

    The descriptor is duplicated; the caller's stays open and keeps the mount alive.
    It is made non-blocking, together with all its duplicates.
    """

    def __init__(
        self,
        vfs: Vfs,
        fd: int,
        init_in: bytes,
        *,
        adopted: bool = False,
        init_out: bytes = b"",
        terms: Terms | None = None,
        suspicion: Suspicion | None = None,
        journal: RequestJournal | None = None,
    ) -> None:
        """Prepare to serve.

        Args:
            vfs: The file system.
            fd: Descriptor of /dev/fuse.
            init_in: The kernel's INIT request, as it was read.
            adopted: The kernel has had its answer from an earlier process.
            init_out: That answer; a different one now is refused. b"" skips the check.
            terms: What to agree upon; for an adopted mount as it was agreed.
            suspicion: Told which request is being worked on.
            journal: Keeps the requests in flight where the kernel does not
                (`jfsd.fuse.inflight.repeats`).
        """
        self._fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        os.set_blocking(self._fd, False)
        self._vfs = vfs
        self._init_in = init_in
        self._adopted = adopted
        self._kept_init_out = init_out
        self._terms = terms or Terms()
        self._suspicion = suspicion
        self._journal = journal
        self._workers: Workers | None = None
        self._operations: Operations | None = None

    def __repr__(self) -> str:
        how = "adopted" if self._adopted else "fresh"
        return f"<Session {how} fd={self._fd} {self._workers}>"

    @property
    def init_out(self) -> bytes:
        """Our answer to INIT, to be kept for the next process; b"" before it."""
        return native.init_out()

    @property
    def in_flight(self) -> int:
        """Requests that were read and are not answered."""
        return self._workers.busy if self._workers is not None else 0

    @property
    def resent(self) -> int:
        """Requests that an earlier process had read, and that came again to this one."""
        return native.resent()

    @property
    def first_answer_s(self) -> float:
        """When the first request was answered, on the monotonic clock; 0.0 before it."""
        return native.first_answer_s()

    @property
    def caught_up(self) -> bool:
        """Whether all that an earlier process had read and not answered has come again."""
        return native.caught_up()

    @property
    def unanswered(self) -> set[int]:
        """Requests that change something and are not answered; waiting locks are among them."""
        return native.unanswered()

    @property
    def waiting(self) -> set[int]:
        """Requests that wait for a lock, for as long as it takes."""
        return self._operations.waiting if self._operations is not None else set()

    async def serve(self, on_ready: Callable[[bool], None] | None = None) -> None:
        """Answer requests until the mount is gone or `stop` is called.

        Args:
            on_ready: Called once the mount is being served; its argument tells whether
                requests in flight of an earlier process are coming again.

        Raises:
            InitDriftError: The earlier process had agreed otherwise with the kernel.
        """

        def ready() -> None:
            self._check_init()
            if self._journal is None:
                resent = self._adopted and abi.resend(self._fd)
            else:
                resent = bool(leftovers.whole)
            if on_ready is not None:
                on_ready(resent)

        leftovers = self._journal.leftovers() if self._journal is not None else Leftovers([], [])
        self._workers = Workers(
            self._fd, ready, replays=len(leftovers.whole), most=self._max_requests
        )
        pyfuse3.trio = self._workers  # type: ignore[attr-defined]
        try:
            self._attach(self._workers, leftovers.whole)
            self._fail(leftovers.lost)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            await pyfuse3.main(min_tasks=IDLE_WORKERS, max_tasks=self._max_requests)
        finally:
            native.on_interrupt(None)
            pyfuse3.close(unmount=False)  # closes the duplicate

    @property
    def _max_requests(self) -> int:
        return MAX_REQUESTS if self._journal is None else inflight.MAX_REQUESTS

    @property
    def unrepeatable(self) -> int:
        """Requests in flight that would fail if this process ended now."""
        return native.lost()

    def park(self) -> None:
        """Read no more requests; those that were read go on to their answers."""
        if self._workers is not None:
            self._workers.park()

    def resume(self) -> None:
        """Read requests again after `park`."""
        if self._workers is not None:
            self._workers.resume()

    async def answered(self) -> None:
        """Return once everything that was read before `park` is answered."""
        if self._workers is not None:
            await self._workers.answered()

    def stop(self) -> None:
        """Let `serve` return when what was read is answered; the mount stays."""
        if self._workers is not None:
            self._workers.close()

    def _fail(self, lost: list[int]) -> None:
        """Answer requests of a former process that nobody can repeat with EIO."""
        for unique in lost:
            assert self._journal is not None  # noqa: S101 - it has named them
            with suppress(FileNotFoundError):  # nobody waits for it any more
                os.write(self._fd, self._journal.give_up(unique))

    def _flags(self) -> tuple[int, int]:
        """Return the flags to add to libfuse's answer to INIT, and those to take from it.

        What was agreed holds for the life of the mount, whatever this version would agree
        upon; only a flag that it cannot serve is left to be found by `_check_init`.
        """
        added = _ADD | (abi.INIT_DONT_MASK if self._terms.acls else 0)
        if not self._kept_init_out:
            return added, _DROP
        agreed = abi.init_reply(self._kept_init_out).flags
        return (added | abi.INIT_DONT_MASK) & agreed, ~agreed & _ALL_FLAGS

    def _attach(self, workers: Workers, replay: list[bytes]) -> None:
        terms = self._terms
        added, dropped = self._flags()
        kept = abi.init_reply(self._kept_init_out) if self._kept_init_out else None
        native.prepare(
            fd=self._fd,
            init_in=self._init_in,
            adopted=self._adopted,
            set_flags=added,
            clear_flags=dropped,
            max_readahead=kept.max_readahead if kept else terms.max_readahead_bytes,
            max_background=kept.max_background if kept else MAX_BACKGROUND,
            journal=self._journal.memory if self._journal is not None else None,
            replay=replay,
        )
        poisoned: Collection[int] = ()
        if self._suspicion is not None:
            native.note_running(self._suspicion.memory, self._suspicion.at)
            poisoned = self._suspicion.poisoned
        access = getattr(self._vfs, "access", None)
        operations = self._operations = Operations(
            self._vfs, acls=terms.acls, poisoned=poisoned, access=access
        )
        direct = Direct(
            self._vfs, payloads=Payloads(workers.hold), access=access, poisoned=poisoned
        )
        direct.begin(workers.relieved)
        pyfuse3.init(operations, f"/dev/fd/{self._fd}", set())
        if not native.attached():
            raise RuntimeError("pyfuse3 does not go through jfsd.fuse._native")

    def _check_init(self) -> None:
        now = abi.init_reply(self.init_out)
        if now.error:
            raise InitDriftError(f"libfuse refuses the kernel's INIT: {os.strerror(-now.error)}")
        if self._kept_init_out:
            before = abi.init_reply(self._kept_init_out)
            if now != before:
                raise InitDriftError(f"agreed with the kernel: {before}; now: {now}")


class InitDriftError(Exception):
    """This process cannot serve the mount on the terms that it was made with."""
