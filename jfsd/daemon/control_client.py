"""The other end of a server's control socket, for commands.

A server may be replaced at any moment. Commands do not see that: who finds no server, or
loses it in the middle, asks again until there is one; every verb can be asked twice.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jfsd.config.runtime import CONTROL, found_at
from jfsd.errors import ExitCode, JfsdError, RefusedError

Json: TypeAlias = dict[str, Any]

PATIENCE_S = 10.0
"""How long a command looks for a server: a start after a kill takes less."""

SILENCE_S = 60.0
"""How long a server may say nothing; one that works tells its progress."""

_PAUSE_S = 0.05
_MAX_LOSSES = 50
_PART_BYTES = 1 << 16
_MAX_FDS = 8


class NoServerError(RefusedError):
    """Nobody answers for the mount; it may be served again in a moment."""

    def __init__(self, mountpoint: str, reason: str) -> None:
        super().__init__(
            ExitCode.NO_SERVER,
            mountpoint,
            f"no server of it answers ({reason})",
            "see the log of its service; programs on the mount wait for the next server",
        )


class Answer(NamedTuple):
    """The result of a request, and descriptors that came with it; the caller closes them."""

    result: Json
    fds: tuple[int, ...] = ()


def ask(
    mountpoint: str,
    request: Json,
    *,
    on_progress: Callable[[Json], None] | None = None,
    patience_s: float = PATIENCE_S,
    silence_s: float = SILENCE_S,
) -> Answer:
    """Ask the server of a mount; return its answer, however long it takes.

    Args:
        mountpoint: Absolute, resolved.
        request: `{"do": VERB, …}`.
        on_progress: Told what the server tells meanwhile.
        patience_s: How long to look for a server, at first and whenever it is lost.
        silence_s: How long the server may say nothing.

    Raises:
        NoServerError: There was none in this time.
        JfsdError: The server refuses; with its exit code.
    """
    path = found_at(mountpoint, CONTROL)
    deadline_s = time.monotonic() + patience_s
    losses = 0
    while True:
        try:
            with _connect(path) as connection:
                connection.settimeout(silence_s)
                return _ask(connection, request, on_progress)
        except PermissionError as error:
            raise RefusedError(
                ExitCode.NO_PRIVILEGE,
                str(path),
                "may not be used by this user",
                "ask as root, or as the user of the mount's server",
            ) from error
        except TimeoutError as error:
            raise NoServerError(mountpoint, f"silent for {silence_s:g} s") from error
        except _LostError as error:
            losses += 1
            deadline_s = time.monotonic() + patience_s
            if losses >= _MAX_LOSSES:
                raise NoServerError(mountpoint, "hangs up") from error
        except OSError as error:
            if time.monotonic() >= deadline_s:
                raise NoServerError(mountpoint, str(error.strerror)) from error
        time.sleep(_PAUSE_S)


class _LostError(Exception):
    """The server was there, and is gone."""


def _connect(path: Path) -> socket.socket:
    """Return a connection to the socket; through its descriptor, since a path may be too long."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"/proc/self/fd/{place}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(place)
    return connection


def _ask(
    connection: socket.socket, request: Json, on_progress: Callable[[Json], None] | None
) -> Answer:
    held: list[int] = []
    try:
        with suppress(ConnectionError):  # who is turned away at once is told why
            connection.sendall(json.dumps(request).encode() + b"\n")
        for line in _lines(connection, held):
            answer = json.loads(line)
            if "progress" in answer:
                if on_progress is not None:
                    on_progress(answer["progress"])
                continue
            if not answer.pop("ok"):
                raise _refusal(answer)
            fds, held = tuple(held), []
            return Answer(answer, fds)
    except (ConnectionError, ValueError, KeyError) as error:
        raise _LostError from error
    finally:
        for fd in held:
            os.close(fd)
    raise _LostError


def _lines(connection: socket.socket, held: list[int]) -> Iterator[bytes]:
    """Yield lines until the other end hangs up; what descriptors come are put into `held`."""
    rest = b""
    while True:
        part, ancillary, _, _ = connection.recvmsg(
            _PART_BYTES, socket.CMSG_SPACE(4 * _MAX_FDS), socket.MSG_CMSG_CLOEXEC
        )
        for _, _, raw in ancillary:
            held += array.array("i", raw[: len(raw) - len(raw) % 4])
        if not part:
            return
        *whole, rest = (rest + part).split(b"\n")
        yield from whole


def _refusal(answer: Json) -> JfsdError:
    """Return the error that the server's handler raised."""
    code = answer.get("code", ExitCode.FAILURE)
    code = ExitCode(code) if code in set(ExitCode) else ExitCode.FAILURE
    if "mend" in answer:
        return RefusedError(code, answer["value"], answer["rule"], answer["mend"])
    error = JfsdError(answer.get("error", "refused"))
    error.exit_code = code
    return error
