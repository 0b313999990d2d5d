"""What goes over a holder's two sockets, and who it came from.

Both sides of both sockets are other processes: what comes in is taken apart here, into
typed values, and descriptors that came with something unreadable are closed here.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jfsd.record import Record, field

MAX_BYTES = 1 << 18
"""A command line and its environment fit; more is refused by the kernel."""

MAX_FDS = 253
_CREDENTIALS = struct.Struct("3i")
_MAX_ANCESTORS = 32

Json = dict[str, Any]


class Peer(NamedTuple):
    """The process at the other end, as the kernel saw it."""

    pid: int
    uid: int

    @property
    def is_trusted(self) -> bool:
        """Whether it runs as root or as our own user."""
        return self.uid in {0, os.geteuid()}


class Notice(Record):
    """One message of sd_notify: who sent it, its assignments, and descriptors to own."""

    sender: Peer
    fields: dict[str, str]
    fds: list[int] = field(default_factory=list)


def receive_notice(listener: socket.socket) -> Notice | None:
    """Return the next message of a datagram socket with SO_PASSCRED; None if there is none."""
    try:
        message, ancillary, flags, _ = listener.recvmsg(
            MAX_BYTES,
            socket.CMSG_SPACE(4 * MAX_FDS) + socket.CMSG_SPACE(_CREDENTIALS.size),
            socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
        )
    except BlockingIOError:
        return None
    sender, fds = _unpack(ancillary)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        fds = []
    text = message.decode(errors="surrogateescape")
    fields = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    return Notice(sender, fields, fds)


def send_json(
    connection: socket.socket, value: Json, fds: Sequence[int] = (), *, wait: bool = False
) -> None:
    """Send one object as one message, with duplicates of `fds`.

    Raises:
        OSError: The peer is gone; or, unless told to `wait`, does not read (EAGAIN).
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    connection.sendmsg([json.dumps(value).encode()], [rights] if fds else [], flags)


def receive_json(connection: socket.socket) -> tuple[Json, list[int]] | None:
    """Return the next object and the descriptors that came with it; None at the end.

    Raises:
        ValueError: It is no JSON object.
        OSError: Nothing came in time, or the connection broke.
    """
    message, ancillary, flags, _ = connection.recvmsg(
        MAX_BYTES, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
    )
    _, fds = _unpack(ancillary)
    if not message and not fds:
        return None
    try:
        return _parse(message, flags), fds
    except ValueError:
        close_all(fds)
        raise


def peer_of(connection: socket.socket) -> Peer:
    """Return who connected (or who listened, on the connecting side)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid)


def descends(pid: int, ancestors: set[int]) -> bool:
    """Return whether `pid` is one of `ancestors` or comes from one, as far as /proc says."""
    for _ in range(_MAX_ANCESTORS):
        if pid in ancestors:
            return True
        pid = parent_of(pid)
        if pid <= 0:
            return False
    return False


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 if it has none, or is gone."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(line.rpartition(b")")[2].split()[1])


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody asked for."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _parse(message: bytes, flags: int) -> Json:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise ValueError("the message is too long")
    value = json.loads(message)
    if not isinstance(value, dict):
        raise ValueError("the message is not a JSON object")  # noqa: TRY004
    return value


def _unpack(ancillary: list[tuple[int, int, bytes]]) -> tuple[Peer, list[int]]:
    sender, fds = Peer(0, -1), array.array("i")
    for level, kind, raw in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        elif kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack(raw[: _CREDENTIALS.size])
            sender = Peer(pid, uid)
    return sender, list(fds)
