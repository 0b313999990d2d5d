"""The control socket of a server: what commands ask of it while it serves.

    <runtime directory>/<escaped mount point>.sock     mode 0600

Root and the server's own user are heard, nobody else. A connection carries one request, a
line of JSON `{"do": VERB, …}`, and its answers: any number of lines `{"progress": …}`,
then a last one with `"ok"`: true and the result, or false and `error` (with `code`,
`value`, `rule`, `mend` as far as there are any). The last line may bring descriptors.

Whoever hangs up ends what it asked for. The next server of the mount puts its socket in
the place of this one; a client that finds nobody, or loses its server, asks again.
"""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from jfsd.config.runtime import CONTROL, make_directory, place_of
from jfsd.daemon.holder_wire import Peer, peer_of
from jfsd.errors import ExitCode, JfsdError, RefusedError

log = logging.getLogger(__name__)

Json: TypeAlias = dict[str, Any]

MAX_LINE_BYTES = 1 << 16
MAX_CALLS = 64
_BACKLOG = 64
_PATIENCE_S = 10.0
"""How long a client may take to say what it wants, and to take an answer."""


class Call:
    """One request that is being answered."""

    def __init__(self, connection: socket.socket, request: Json) -> None:
        self.request = request
        self.fds: Sequence[int] = ()
        """Sent along with the last line; they stay open here."""
        self._connection = connection

    def number(self, name: str) -> float | None:
        """Return a number of the request, None if it has none of this name.

        Raises:
            RefusedError: It is something else.
        """
        value = self.request.get(name)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise RefusedError(ExitCode.USAGE, f"{name} {value!r}", "is not a number", "give one")

    async def tell(self, progress: Json) -> None:
        """Let the client know how far it is."""
        await _send(self._connection, {"progress": progress})


Handler: TypeAlias = Callable[[Call], Awaitable[Json]]
"""Does what is asked and returns the result. A JfsdError reaches the client as it is."""


class Control:
    """Listens for commands; each verb has one handler.

    A handler runs in the event loop beside the requests of the kernel: it must not hold it.
    """

    def __init__(self, mountpoint: str) -> None:
        self.path = place_of(mountpoint, CONTROL)
        self._handlers: dict[str, Handler] = {}
        self._listener: socket.socket | None = None
        self._identity = (0, 0)
        self._accepting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        state = "closed" if self._listener is None else f"{len(self._calls)} calls"
        return f"<Control {self.path} {state}>"

    def on(self, verb: str, handler: Handler) -> None:
        """Let `handler` answer a verb."""
        self._handlers[verb] = handler

    def start(self) -> None:
        """Listen; a socket that a former server left is replaced in one step.

        The mount is served without commands if that is not possible.
        """
        try:
            make_directory()
            self._listener = self._listen()
        except (OSError, RefusedError) as error:
            log.warning("commands cannot reach this server: %s", error)
            return
        self._accepting = asyncio.get_running_loop().create_task(
            self._accept(self._listener), name="control"
        )

    async def close(self) -> None:
        """Hang up on everybody and remove the socket, unless a newer server's is there."""
        for task in (self._accepting, *self._calls):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if self._listener is None:
            return
        with suppress(OSError):
            if _identity(os.lstat(self.path)) == self._identity:
                self.path.unlink()
        self._listener.close()
        self._listener = None

    def _listen(self) -> socket.socket:
        """Bind under a short name, then rename: paths of sockets have 107 bytes, names 255."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        directory = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        draft = f".{os.getpid()}"
        try:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
            os.fchmod(listener.fileno(), 0o600)  # bind(2) gives the file this mode
            listener.bind(f"/proc/self/fd/{directory}/{draft}")
            listener.listen(_BACKLOG)
            self._identity = _identity(os.stat(draft, dir_fd=directory, follow_symlinks=False))
            os.replace(draft, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            listener.close()
            raise
        finally:
            os.close(directory)
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors, or the client went away
                log.debug("control: %s", error)
                await asyncio.sleep(0.1)
                continue
            peer = peer_of(connection)
            if not peer.is_trusted or len(self._calls) >= MAX_CALLS:
                _turn_away(connection, peer)
                continue
            task = loop.create_task(self._answer(connection), name="control-call")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _answer(self, connection: socket.socket) -> None:
        """Serve one connection to its end; what goes wrong is the client's to know."""
        connection.setblocking(False)
        with connection, suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                line = await _read_line(connection)
            call = Call(connection, _parse(line))
            work = asyncio.ensure_future(self._carry_out(call))
            gone = asyncio.ensure_future(_hung_up(connection))
            try:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    await _send(connection, work.result(), call.fds)
            finally:
                for task in (work, gone):
                    task.cancel()
                    with suppress(asyncio.CancelledError, OSError):
                        await task

    async def _carry_out(self, call: Call) -> Json:
        verb = call.request.get("do")
        handler = self._handlers.get(str(verb), _unknown)
        try:
            return {"ok": True, **await handler(call)}
        except RefusedError as error:
            told = {"value": error.value, "rule": error.rule, "mend": error.mend}
            return {"ok": False, "code": int(error.exit_code), "error": str(error), **told}
        except JfsdError as error:
            return {"ok": False, "code": int(error.exit_code), "error": str(error)}
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("Bug in the answer to %r", verb)
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


async def _unknown(call: Call) -> Json:
    raise RefusedError(
        ExitCode.USAGE,
        repr(call.request.get("do")),
        "is nothing that this server can be asked for",
        "use the jfsd of the server's version",
    )


def _turn_away(connection: socket.socket, peer: Peer) -> None:
    """Tell a client that it is not listened to, if it can be told at once."""
    log.warning("process %d of user %d is turned away", peer.pid, peer.uid)
    rule = "too many commands at once" if peer.is_trusted else "not root, nor the server's user"
    code = ExitCode.FAILURE if peer.is_trusted else ExitCode.NO_PRIVILEGE
    answer = {"ok": False, "code": int(code), "error": rule}
    with connection, suppress(OSError):
        connection.send(json.dumps(answer).encode() + b"\n", socket.MSG_DONTWAIT)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _parse(line: bytes) -> Json:
    try:
        request = json.loads(line)
    except ValueError:
        request = None
    return request if isinstance(request, dict) else {}


async def _read_line(connection: socket.socket) -> bytes:
    """Return what comes before the first line feed, or before the end of it."""
    loop = asyncio.get_running_loop()
    line = b""
    while len(line) < MAX_LINE_BYTES and b"\n" not in line:
        part = await loop.sock_recv(connection, MAX_LINE_BYTES)
        if not part:
            break
        line += part
    return line.partition(b"\n")[0]


async def _hung_up(connection: socket.socket) -> None:
    """Return when the other end is gone; what it says meanwhile is not listened to."""
    loop = asyncio.get_running_loop()
    while await loop.sock_recv(connection, MAX_LINE_BYTES):
        pass


async def _send(connection: socket.socket, answer: Json, fds: Sequence[int] = ()) -> None:
    """Send a line; a client that does not read it in time is given up."""
    loop = asyncio.get_running_loop()
    line = json.dumps(answer).encode() + b"\n"
    async with asyncio.timeout(_PATIENCE_S):
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            sent = 0
            while not sent:  # descriptors travel with the first byte
                try:
                    sent = connection.sendmsg([line], [rights], socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
            line = line[sent:]
        await loop.sock_sendall(connection, line)
