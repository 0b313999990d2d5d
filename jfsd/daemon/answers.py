"""What a server tells and does when commands ask it: the handlers of its control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from jfsd.clock import monotonic_s
from jfsd.daemon.drain import Left, count, drain
from jfsd.daemon.holder_link import HOLDER_VARIABLE
from jfsd.errors import ExitCode, JfsdError, RefusedError
from jfsd.record import Record, field

if TYPE_CHECKING:
    from jfsd.config.settings import MountSettings
    from jfsd.config.volume import Volume
    from jfsd.daemon.control import Call, Control, Handler, Json
    from jfsd.daemon.datapath import DataPath
    from jfsd.daemon.phase import Life
    from jfsd.daemon.state import State
    from jfsd.daemon.store import VolumeStore
    from jfsd.daemon.succession import Succession
    from jfsd.daemon.watching import Watching
    from jfsd.systemd.notify import Notifier
    from jfsd.vfs.vfs import Vfs

_SYSTEMD = ("/run/systemd/", "/run/user/")


class Answers(Record):
    """Answers for one served mount; `listen` makes them known to its control socket."""

    volume: Volume
    settings: Callable[[], MountSettings]
    """What the mount goes by at the moment."""
    life: Life
    state: State
    vfs: Vfs
    path: DataPath
    store: VolumeStore
    notifier: Notifier
    watching: Watching
    started_s: float = field(default_factory=monotonic_s)

    def listen(self, control: Control) -> None:
        """Let the control socket give these answers."""
        control.on("status", self.status)
        control.on("state", self.give_state)
        control.on("drain", self.drain)

    async def status(self, call: Call) -> Json:
        """Return how the mount is, in the style of `juicefs status`."""
        del call
        header, path = self.state.header, self.path
        settings = self.settings()
        budget, dirty = path.arena.budget, count(path.writer, path.writer.newest)
        mount = {
            "MountPoint": header.mountpoint,
            "Pid": os.getpid(),
            "Generation": header.generation,
            "Phase": self.life.phase.value,
            "UptimeSeconds": round(monotonic_s() - self.started_s, 3),
            "Keeper": keeper_of(self.notifier),
            "Volume": self.volume.name,
            "Meta": self.vfs.meta.connection.url.redacted(),
            "Store": self.store.shown,
            "ReadOnly": settings.read_only,
            "Sid": header.sid,
            "OpenFiles": len(self.vfs.handles),
            "DirtyFiles": dirty.files,
            "DirtyBytes": dirty.bytes,
            "FailingFiles": dirty.failing_files,
            "BufferUsedBytes": budget.charged + budget.lent,
            "BufferBytes": budget.limit,
            "CacheUsedBytes": path.blocks.cached_bytes,
            "CacheBytes": settings.cache_size_bytes,
            "Metrics": self.watching.exporter.address,
            "Events": header.events,
        }
        return {"mount": mount}

    async def give_state(self, call: Call) -> Json:
        """Send the parked memory: whoever asks reads it, at no cost for those who work."""
        call.fds = (self.state.fd, self.path.arena.fd)
        return {}

    async def drain(self, call: Call) -> Json:
        """Store what was written so far; return when that is done.

        Raises:
            RefusedError: NOT_STORED, it could not be done in time.
        """
        timeout_s = call.number("timeout_s")

        async def tell(left: Left) -> None:
            await call.tell(left._asdict())

        left = await drain(self.path.writer, tell=tell, timeout_s=timeout_s)
        if left.slices:
            kept = keeper_of(self.notifier)
            where = "and go over to the next server" if kept else "as long as this server runs"
            raise RefusedError(
                ExitCode.NOT_STORED,
                f"{left.bytes} bytes of {left.files} files",
                f"could not be stored within {timeout_s:g} s; nothing is lost, they stay in the"
                f" write buffer {where}",
                "see the server's log for what the store or Redis says, and drain again",
            )
        return {}


class Reported(Protocol):
    """What a reload did."""

    def as_dict(self) -> Json:
        """Return it as JSON: lists `applied`, `needs_restart`, `refused`, `failed`; `error`."""


def reloading(reload: Callable[[], Awaitable[Reported]]) -> Handler:
    """Return the answer to `reload`: what it did."""

    async def answer(call: Call) -> Json:
        del call
        return (await reload()).as_dict()

    return answer


def upgrading(succession: Succession, state: State) -> Handler:
    """Return the answer to `upgrade`; the server that has taken over gives it."""

    async def answer(call: Call) -> Json:
        """Hand over, if this is the server that shall be replaced.

        Raises:
            JfsdError: The next server cannot take over; this one goes on.
        """
        header = state.header
        if header.generation <= (call.number("generation") or 0):
            failure = await succession.request()
            raise JfsdError(f"the installed version cannot take over: {failure}")
        return {"pid": os.getpid(), "event": header.events[-1] if header.events else {}}

    return answer


def keeper_of(notifier: Notifier, environ: Mapping[str, str] = os.environ) -> str:
    """Return who keeps the mount's descriptors: systemd, holder, another; "" if nobody."""
    if HOLDER_VARIABLE in environ:
        return "holder"
    if not notifier.enabled:
        return ""
    return "systemd" if environ.get("NOTIFY_SOCKET", "").startswith(_SYSTEMD) else "another"
