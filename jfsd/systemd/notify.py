"""Tell the service manager how this process is, and give it descriptors to keep.

The protocol is sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names. Whoever
listens there (systemd, or jfsd's own holder) makes no difference to the sender.

systemd-python's `notify` speaks the same words and the tests hold both against each
other, but it waits without limit for a listener that does not read (ten messages fill
a socket) and has no barrier. A server must not hang because its keeper does.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

MAX_FDS_PER_MESSAGE = 253
"""SCM_MAX_FD of the kernel."""

_PATIENCE_S = 2.0
"""How long a message that must arrive waits for a listener whose queue is full."""

_MAX_PATH_BYTES = 107
_ABSENT = (FileNotFoundError, ConnectionRefusedError, ConnectionResetError)
_TIMEVAL = struct.Struct("@ll")


class Notifier:
    """Messages to whoever supervises this process; each does nothing if nobody does.

    Every method returns whether the message was taken. False is no reason to stop: the
    listener is away or does not read, and what was said can be said again.
    """

    def __init__(self, address: str = "", *, watchdog_interval_s: float | None = None) -> None:
        """Prepare to speak.

        Args:
            address: Path of a socket, or "@name" of an abstract one; "" for nobody.
            watchdog_interval_s: What `watchdog_interval_s` shall say.
        """
        self._address = address
        self._socket: socket.socket | None = None
        self.watchdog_interval_s = watchdog_interval_s
        """At least this often `watchdog` must be called, or we are killed; None: never."""

    def __repr__(self) -> str:
        return f"<Notifier {self._address or 'to nobody'}>"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Notifier:
        """Return the notifier that NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID describe."""
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@"):
            address = ""
        return cls(address, watchdog_interval_s=_watchdog_interval_s(environ))

    @property
    def enabled(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    def close(self) -> None:
        """Give the socket back; the next message opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- how we are ---------------------------------------------------------------------------

    def ready(self, status: str = "") -> bool:
        """Say that start, or reload, is complete."""
        return self.send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> bool:
        """Show one line in the status of the service; dropped if the listener is slow."""
        return self.send(_status(text), wait_s=0)

    def stopping(self) -> bool:
        """Say that the service comes to its end."""
        return self.send("STOPPING=1")

    def reloading(self) -> bool:
        """Say that a reload has begun; `ready` ends it."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        return self.send("RELOADING=1", f"MONOTONIC_USEC={now_usec}")

    def watchdog(self) -> bool:
        """Say that we are alive; dropped if the listener is slow."""
        return self.send("WATCHDOG=1", wait_s=0)

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more, from now, for the start or stop under way."""
        return self.send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def main_pid(self, pid: int) -> bool:
        """Say that from now on `pid` is the service's main process."""
        return self.send(f"MAINPID={pid}")

    # -- what shall be kept -------------------------------------------------------------------

    def store(self, name: str, *fds: int) -> bool:
        """Give duplicates of descriptors to be kept under `name` for our next process.

        One that is kept already (the same open file) is not kept twice. Names are not
        unique. The manager says nothing about a store that is full: follow with
        `barrier`, then ask it what it has.
        """
        _check_name(name)
        return self.send("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=fds)

    def remove(self, name: str) -> bool:
        """Have all descriptors of this name closed by the manager."""
        _check_name(name)
        return self.send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def barrier(self, timeout_s: float) -> bool:
        """Return True once everything that was sent before has been dealt with.

        Returns:
            False if that did not happen in time, or nobody listens.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                sent = self.send("BARRIER=1", fds=[writer])
            finally:
                os.close(writer)
            poll = select.poll()
            poll.register(reader, 0)  # a hang-up is reported unasked
            return sent and bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(reader)

    # -- the wire -----------------------------------------------------------------------------

    def send(self, *lines: str, fds: Sequence[int] = (), wait_s: float = _PATIENCE_S) -> bool:
        """Send one message of `NAME=value` lines.

        Args:
            lines: The assignments; a value has no line feed.
            fds: Descriptors that travel with it.
            wait_s: How long to wait for room in the listener's queue.

        Raises:
            OSError: The message cannot be sent at all (permission, too many descriptors).
        """
        if not self._address:
            return False
        message = "\n".join(lines).encode(errors="surrogateescape")
        ancillary = []
        if fds:
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)))
        sender = self._open()
        # Not a timeout of Python's: it polls, and poll says nothing about the peer's queue.
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(wait_s))
        flags = 0 if wait_s else socket.MSG_DONTWAIT
        try:
            with closing(_Address(self._address)) as address:
                sender.sendmsg([message], ancillary, flags, address.value)
        except (*_ABSENT, BlockingIOError):
            return False
        return True

    def _open(self) -> socket.socket:
        if self._socket is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_UNIX, kind)
        return self._socket


class _Address:
    """The address of a socket as the kernel takes it, however long its path is."""

    def __init__(self, text: str) -> None:
        self._directory = -1
        if text.startswith("@"):
            self.value: bytes = b"\0" + os.fsencode(text[1:])
            return
        self.value = os.fsencode(text)
        if len(self.value) > _MAX_PATH_BYTES:
            path = Path(text)
            self._directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.value = os.fsencode(f"/proc/self/fd/{self._directory}/{path.name}")

    def close(self) -> None:
        """Close the directory that the address goes through."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """Return half of what the manager waits, or None if it does not watch this process."""
    with suppress(KeyError, ValueError):
        interval_usec = int(environ["WATCHDOG_USEC"])
        if interval_usec > 0 and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            return interval_usec / 2e6
    return None


def _timeval(seconds: float) -> bytes:
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 255 or not name.isascii() or not name.isprintable() or ":" in name:
        raise ValueError(f"{name!r} cannot be the name of a kept descriptor")
