"""The other side of a holder: for commands that ask it, and for the server that it keeps.

A command finds the holder of a mount point with `HolderClient.find`.

A server runs `keep_holder` as a task: it keeps a connection to the holder, so that it
learns at once when the holder is gone; then it starts a new one, or meets the one that
somebody else has started, and pushes its descriptors again. Before it hands over it asks
`is_kept`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from jfsd.daemon.holder_place import HolderError, Place
from jfsd.daemon.holder_wire import Json, close_all, peer_of, receive_json, send_json
from jfsd.errors import JfsdError

if TYPE_CHECKING:
    import asyncio

HOLDER_VARIABLE = "JFSD_HOLDER"
"""In a server's environment: the path of its holder's control socket."""

_PATIENCE_S = 10.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0


class HolderClient:
    """A connection to a holder. Answers with `"ok": false` are raised.

    Every method raises HolderError if the holder refuses, dies or does not answer.
    """

    def __init__(self, path: Path | str) -> None:
        """Connect.

        Raises:
            HolderError: Nobody listens there, or it is not ours to ask.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(_PATIENCE_S)
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise HolderError(f"{path}: no holder answers ({error.strerror})") from error

    def __enter__(self) -> HolderClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def find(cls, mountpoint: str) -> HolderClient | None:
        """Return a connection to the holder of the mount point, or None if it has none."""
        try:
            return cls(Place.of(mountpoint).control)
        except HolderError:
            return None

    @property
    def pid(self) -> int:
        """The holder's process."""
        return peer_of(self._socket).pid

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def status(self) -> Json:
        """Return how things are: holder, stage, server, descriptors, restarts, events."""
        return self.ask({"do": "status"})

    def descriptors(self) -> list[tuple[str, int]]:
        """Return duplicates of what is kept, with their names; the caller closes them."""
        answer, fds = self._exchange({"do": "descriptors"}, (), _PATIENCE_S)
        return list(zip(answer["names"], fds, strict=True))

    def hold(self, name: str, fds: Sequence[int]) -> None:
        """Have duplicates of `fds` kept."""
        self.ask({"do": "hold", "name": name}, fds)

    def restart(self, *, warm: bool = False, limit_s: float | None = None) -> Json:
        """Have a new process of the same command take over; return its pid and the phases."""
        return self.ask({"do": "restart", "warm": warm}, limit_s=limit_s)

    def upgrade(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        warm: bool = False,
        drain_s: float = 0.0,
        ready_s: float = 0.0,
        limit_s: float | None = None,
    ) -> Json:
        """Have another command take over; return its pid and the phases.

        A new server that refuses is replaced by the former, and the refusal raised.

        Args:
            argv: The new command line; no relative paths.
            env: Its environment.
            warm: Start it beside the running one, and hand over when it says that it is warm.
                It must know of jfsd.daemon.holder_successor.Standby.
            drain_s: How long the old one may take; then it is killed.
            ready_s: How long the new one may take to be warm.
            limit_s: How long to wait for the answer; None: as long as it takes.
        """
        request = {
            "do": "upgrade",
            "argv": list(argv),
            "env": dict(env),
            "warm": warm,
            "drain_s": drain_s,
            "ready_s": ready_s,
        }
        return self.ask(request, limit_s=limit_s)

    def stop(self, *, limit_s: float | None = None) -> Json:
        """Have the mount taken away; return, when it is gone, the server's exit code."""
        return self.ask({"do": "stop"}, limit_s=limit_s)

    def ask(
        self, request: Json, fds: Sequence[int] = (), *, limit_s: float | None = _PATIENCE_S
    ) -> Json:
        """Send a request and return its answer."""
        answer, received = self._exchange(request, fds, limit_s)
        close_all(received)
        return answer

    def _exchange(
        self, request: Json, fds: Sequence[int], limit_s: float | None
    ) -> tuple[Json, list[int]]:
        self._socket.settimeout(limit_s)
        try:
            send_json(self._socket, request, fds, wait=True)
            received = receive_json(self._socket)
        except (OSError, ValueError) as error:
            raise HolderError(f"the holder does not answer: {error}") from error
        if received is None:
            raise HolderError("the holder has died, or hung up")
        answer, answered_fds = received
        if not answer.get("ok"):
            close_all(answered_fds)
            raise HolderError(str(answer.get("error", "the holder refuses")))
        return answer, answered_fds


def is_kept(names: Sequence[str], environ: Mapping[str, str] | None = None) -> bool:
    """Return whether the holder has all of these, so that this server may leave.

    To be asked at the end of a handover: if the holder was killed meanwhile, a server
    that leaves takes the mount with it. True if there is no holder to ask.
    """
    path = (os.environ if environ is None else environ).get(HOLDER_VARIABLE)
    if not path:
        return True
    try:
        with HolderClient(path) as holder:
            status = holder.status()
    except HolderError:
        return False
    server = status.get("server", {}).get("pid")
    return server == os.getpid() and set(names) <= set(status["descriptors"])


async def keep_holder(
    push: Callable[[], None],
    revive: Callable[[], None] | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Stay connected to the holder for ever; returns only if there never was one.

    Args:
        push: Gives all descriptors to the keeper (Notifier.store), again; called whenever
            a holder has been met, the first included. What is kept already is not kept twice.
        revive: Starts a new holder that adopts this process, in a thread:
            `start_holder(mountpoint, argv, env, adopt=True, listening=True)`. None: wait for
            one that somebody else starts.
        environ: Where JFSD_HOLDER says where it is.
    """
    import asyncio  # noqa: PLC0415 - commands that only ask do not need it

    path = (os.environ if environ is None else environ).get(HOLDER_VARIABLE)
    pause_s = 0.0
    while path:
        connection = await asyncio.to_thread(_guard, path)
        if connection is not None:
            pause_s = 0.0
            with connection:
                push()
                await _hang_up(connection, asyncio.get_running_loop())
        await asyncio.sleep(pause_s)
        pause_s = min(_LAST_PAUSE_S, max(_FIRST_PAUSE_S, pause_s * 2))
        if connection is None and revive is not None:
            with suppress(JfsdError, OSError):
                await asyncio.to_thread(revive)


def _guard(path: str) -> socket.socket | None:
    """Return a standing connection to the holder, accepted by it; None if there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(_PATIENCE_S)
    try:
        connection.connect(path)
        send_json(connection, {"do": "guard"}, wait=True)
        answer = receive_json(connection)
    except (OSError, ValueError):
        answer = None
    if answer is None or not answer[0].get("ok"):
        connection.close()
        return None
    connection.setblocking(False)
    return connection


async def _hang_up(connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
    """Return when the other end is gone; it never says anything else."""
    while True:
        try:
            if not await loop.sock_recv(connection, 1):
                return
        except OSError:
            return
