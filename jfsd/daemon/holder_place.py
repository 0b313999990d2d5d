"""The private directory of a mount's holder: its lock, its two sockets, its log.

    <runtime directory>/<escaped mount point>.d/     0700
        lock      flock(2) of the holder; the kernel releases it however the holder ends
        notify    NOTIFY_SOCKET of the server (datagrams)
        control   requests to the holder (sequenced packets)
    <runtime directory>/<escaped mount point>.log    what server and holder write

A SIGKILL of the holder leaves the directory; the next holder takes the lock and binds
the sockets anew, at the same paths.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from jfsd.config.runtime import DIRECTORY_VARIABLE, escape, runtime_directory
from jfsd.errors import ExitCode, JfsdError, RefusedError
from jfsd.record import Record

MAX_SOCKET_PATH_BYTES = 107
_BACKLOG = 16


class HolderError(JfsdError):
    """A holder, or the server that it was to start, could not do what it was asked."""

    def __init__(self, message: str, exit_code: int = ExitCode.FAILURE) -> None:
        super().__init__(message)
        if exit_code in set(ExitCode):
            self.exit_code = ExitCode(exit_code)


class HeldError(HolderError):
    """Another holder has this mount."""


class Place(Record):
    """The paths of the holder of one mount point; nothing of it need exist."""

    directory: Path
    log: Path

    @classmethod
    def of(cls, mountpoint: str) -> Place:
        """Return the place of the holder of `mountpoint` (absolute, resolved).

        Raises:
            RefusedError: The runtime directory's path leaves no room for a socket's.
        """
        runtime = runtime_directory()
        name = escape(mountpoint)
        room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(runtime / "x.d" / "control")) + 1
        if len(name) > room:
            import hashlib  # noqa: PLC0415 - rare

            digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
            if room < len(digest):
                raise RefusedError(
                    ExitCode.USAGE,
                    str(runtime),
                    "is too long a path for a directory of sockets",
                    f"name a shorter one in {DIRECTORY_VARIABLE}",
                )
            name = name[: room - len(digest)] + digest
        return cls(runtime / f"{name}.d", runtime / f"{name}.log")

    @property
    def notify(self) -> Path:
        """The socket that the server tells its state to."""
        return self.directory / "notify"

    @property
    def control(self) -> Path:
        """The socket that takes requests."""
        return self.directory / "control"

    @property
    def lock(self) -> Path:
        """The file that the holder has locked."""
        return self.directory / "lock"

    def claim(self) -> int:
        """Make the directory ours alone; return the descriptor of the lock.

        Raises:
            HeldError: A holder is there.
            RefusedError: The directory is somebody else's.
        """
        while True:
            _make_private(self.directory.parent)
            _make_private(self.directory)
            try:
                fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # the former holder removed the directory just now
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise HeldError(f"{self.directory}: a holder is there already") from None
            if self._is_current(fd):
                return fd
            os.close(fd)

    def listen_notify(self) -> socket.socket:
        """Return the bound socket for notifications; every message names its sender."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        _bind(listener, self.notify)
        return listener

    def listen_control(self) -> socket.socket:
        """Return the listening socket for requests."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        _bind(listener, self.control)
        listener.listen(_BACKLOG)
        return listener

    def remove(self) -> None:
        """Remove the directory with all that is in it; the log stays. Needs the lock."""
        for path in (self.control, self.notify, self.lock):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()

    def open_log(self) -> int:
        """Return a descriptor that appends to the log."""
        _make_private(self.log.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.log, flags, 0o600)

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self.lock.stat())
        except FileNotFoundError:
            return False


def _bind(listener: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(mask)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            str(directory),
            "must belong to the user of the mount, with mode 0700",
            f"correct or remove it, or name another in {DIRECTORY_VARIABLE}",
        )
