"""A server that is started beside the one that serves: both ends of their understanding.

The starter (a holder, or the serving server itself) makes a `Successor`. The started
process finds a `Standby` in its environment, prepares all it can, and says that it is
warm; then the former server is asked to hand over, and when it has ended, the standby is
promoted. It gets the descriptors twice: as LISTEN_FDS, to look at, and with its
promotion, to serve. A standby whose starter is gone, or has changed its mind, ends.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress

from jfsd.daemon.holder_child import STANDBY_VARIABLE, Command, ServerProcess, spawn
from jfsd.daemon.holder_store import Kept
from jfsd.daemon.holder_wire import MAX_FDS

_WARM = b"warm"


class Successor:
    """The starter's end."""

    def __init__(
        self,
        command: Command,
        kept: Sequence[Kept],
        variables: Mapping[str, str],
        *,
        orphan: bool = False,
    ) -> None:
        """Start the command as a standby; an `orphan` is the service manager's child, not ours.

        Raises:
            OSError: It cannot be executed.
        """
        self._link, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        try:
            self.process = ServerProcess(
                spawn(command, kept, variables, theirs.fileno(), orphan=orphan)
            )
        except OSError:
            self._link.close()
            raise
        finally:
            theirs.close()

    def fileno(self) -> int:
        """Readable when it is warm, or when it is gone."""
        return self._link.fileno()

    def hear(self) -> bool:
        """Take its message, which must be there; return whether it is warm.

        False: it has hung up, and will not be.
        """
        try:
            is_warm = self._link.recv(64) == _WARM
        except OSError:
            return False
        if is_warm:
            self.process.warm_ms = round((time.monotonic() - self.process.started_s) * 1000, 1)
        return is_warm

    def promote(self, kept: Sequence[Kept]) -> ServerProcess:
        """Let it serve: nobody else does any more. Return the process, for the caller to own."""
        names = ":".join(item.name for item in kept).encode()
        with suppress(OSError), self._link:
            socket.send_fds(self._link, [names], [item.fd for item in kept])
        return self.process

    def dismiss(self) -> None:
        """End it: it is not needed."""
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self._link.close()
        self.process.close()


class Standby:
    """The started process's end.

    Until `take` has returned, it must neither read `fuse` nor change `state`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] | None = None) -> Standby | None:
        """Return the standby that this process was started as, or None if it serves at once."""
        environ = os.environ if environ is None else environ
        number = environ.pop(STANDBY_VARIABLE, "")
        if not number:
            return None
        connection = socket.socket(fileno=int(number))
        connection.set_inheritable(False)
        return cls(connection)

    def fileno(self) -> int:
        """Readable when it is our turn, or when nobody needs us any more."""
        return self._socket.fileno()

    def warm(self) -> None:
        """Say that all is prepared; the running server is asked to hand over now."""
        with suppress(OSError):
            self._socket.send(_WARM, socket.MSG_NOSIGNAL)

    def take(self) -> dict[str, list[int]] | None:
        """Wait for our turn; return the descriptors to serve, or None if we are not needed."""
        with self._socket:
            try:
                names, fds, _, _ = socket.recv_fds(self._socket, 65536, MAX_FDS)
            except OSError:
                return None
        if not names:
            return None
        found: dict[str, list[int]] = {}
        for name, fd in zip(names.decode().split(":"), fds, strict=True):
            os.set_inheritable(fd, False)
            found.setdefault(name, []).append(fd)
        return found
