"""The holder's control socket: who may ask, what can be asked, and how it is answered.

One JSON object a message, `{"do": …}` each way on a sequenced-packet socket; root and
the holder's own user are heard, nobody else. Requests:

    status                                   how things are
    descriptors                              duplicates of what is kept, with their names
    hold      name, and descriptors          keep these, too
    guard                                    stays open: its end tells the server that we are gone
    restart   warm, drain_s, ready_s         hand over to a new process of the same command
    upgrade   argv, env, and as restart      … of another command
    stop                                     unmount; answered when the mount is gone

An answer has `"ok": true`, or `"ok": false` and `"error"`. Whoever hangs up before the
answer has asked all the same.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from jfsd.daemon.holder_child import Command
from jfsd.daemon.holder_log import OWN_LOGGER
from jfsd.daemon.holder_loop import Loop
from jfsd.daemon.holder_place import HolderError
from jfsd.daemon.holder_store import Store
from jfsd.daemon.holder_wire import Json, close_all, peer_of, receive_json, send_json

log = logging.getLogger(OWN_LOGGER)

MAX_CONNECTIONS = 64


class Order:
    """Something asked of the holder that takes its time, and its answer."""

    def __init__(
        self,
        kind: str,
        answer: Callable[[Json], None] = lambda _: None,
        *,
        command: Command | None = None,
        warm: bool = False,
        drain_s: float = 0.0,
        ready_s: float = 0.0,
    ) -> None:
        """Make an order; times of 0 are the holder's own."""
        self.kind = kind
        self.answer = answer
        self.command = command
        self.warm = warm
        self.drain_s = drain_s
        self.ready_s = ready_s
        self.begun = False
        self.began_s = 0.0
        self.failure = ""

    def begin(self) -> None:
        """It is being carried out from now on."""
        self.begun = True
        self.began_s = time.monotonic()


class Subject(Protocol):
    """What can be asked of the keeper."""

    store: Store

    def status(self) -> Json:
        """Return how things are."""

    def hold(self, name: str, fds: Sequence[int]) -> None:
        """Keep the descriptors."""

    def guard(self, pid: int) -> None:
        """Accept a server's standing connection."""

    def replace(self, order: Order) -> None:
        """Have the next server take over."""

    def stop(self, order: Order) -> None:
        """Have the mount taken away."""


class Control:
    """Listens; every connection is a client with any number of requests."""

    def __init__(self, subject: Subject, listener: socket.socket, loop: Loop) -> None:
        """Begin to listen; owns the listener."""
        self.subject = subject
        self.loop = loop
        self.clients: set[Client] = set()
        self._listener = listener
        loop.watch(listener, self._accept)

    def close(self) -> None:
        """Hang up on everybody."""
        if self._listener.fileno() < 0:
            return
        for client in list(self.clients):
            client.close()
        self.loop.forget(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client went away, or we are out of descriptors
            return
        peer = peer_of(connection)
        if peer.is_trusted and len(self.clients) < MAX_CONNECTIONS:
            connection.setblocking(False)
            self.clients.add(Client(self, connection, peer.pid))
            return
        log.warning("process %d of user %d is turned away", peer.pid, peer.uid)
        connection.close()


class Client:
    """One connection."""

    def __init__(self, control: Control, connection: socket.socket, pid: int) -> None:
        self._control = control
        self._connection = connection
        self._pid = pid
        control.loop.watch(connection, self._on_request)

    def close(self) -> None:
        """Hang up."""
        if self._connection.fileno() >= 0:
            self._control.loop.forget(self._connection)
            self._connection.close()
        self._control.clients.discard(self)

    def answer(self, value: Json, fds: Sequence[int] = ()) -> None:
        """Send an answer; a client that is gone or does not read is hung up on."""
        if self._connection.fileno() < 0:
            return
        try:
            send_json(self._connection, value, fds)
        except OSError:
            self.close()

    def _on_request(self) -> None:
        if self._connection.fileno() < 0:  # hung up on in this very turn
            return
        try:
            received = receive_json(self._connection)
        except BlockingIOError:
            return
        except OSError:
            received = None
        except ValueError as error:
            self.answer({"ok": False, "error": str(error)})
            return
        if received is None:
            self.close()
            return
        request, fds = received
        try:
            self._do(request, fds)
        except (HolderError, ValueError, TypeError, ProcessLookupError) as error:
            self.answer({"ok": False, "error": str(error)})
        finally:
            close_all(fds)

    def _do(self, request: Json, fds: list[int]) -> None:
        """Carry the request out; what it does not take of `fds` is left there."""
        subject = self._control.subject
        match request.get("do"):
            case "status":
                self.answer({"ok": True, **subject.status()})
            case "descriptors":
                kept = subject.store.all()
                names = [item.name for item in kept]
                self.answer({"ok": True, "names": names}, [item.fd for item in kept])
            case "hold":
                subject.hold(_text(request, "name"), fds)
                fds.clear()
                self.answer({"ok": True, "descriptors": subject.store.counts()})
            case "guard":
                subject.guard(self._pid)
                self.answer({"ok": True, "descriptors": subject.store.counts()})
            case "restart" | "upgrade":
                subject.replace(self._order(request))
            case "stop":
                subject.stop(Order("stop", self.answer))
            case other:
                raise ValueError(f"{other!r} is no request")

    def _order(self, request: Json) -> Order:
        kind = _text(request, "do")
        return Order(
            kind,
            self.answer,
            command=_command(request) if kind == "upgrade" else None,
            warm=bool(request.get("warm")),
            drain_s=_seconds(request, "drain_s"),
            ready_s=_seconds(request, "ready_s"),
        )


def _command(request: Json) -> Command:
    argv, env = request.get("argv"), request.get("env")
    if not isinstance(argv, list) or not argv or not all(isinstance(a, str) for a in argv):
        raise ValueError("argv must be a list of words")
    if not isinstance(env, dict) or not all(isinstance(v, str) for v in env.values()):
        raise ValueError("env must be an object of words")
    if any("\0" in word for word in [*argv, *env, *env.values()]):
        raise ValueError("argv and env cannot hold a NUL")
    return Command(tuple(argv), env)


def _text(request: Json, name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value or ":" in value:
        raise ValueError(f"{name} must be a word")
    return value


def _seconds(request: Json, name: str) -> float:
    value = request.get(name) or 0
    if not isinstance(value, int | float) or not 0 <= value < 1e9 or math.isnan(value):
        raise ValueError(f"{name} must be seconds")
    return float(value)
