"""A private Redis on a unix socket."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import redis as redis_py
from support.session import Service, Session, program, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASES = 512


class RedisServer:
    """A redis-server that only this session reaches.

    `durable` keeps every acknowledged write over a kill and `start`. `cluster` makes
    a cluster of one node, listening on `port` of the loopback.
    """

    def __init__(
        self, session: Session, *, durable: bool = False, port: int = 0, shared: bool = False
    ) -> None:
        self.session = session
        self.directory = session.directory("r")
        self.socket = self.directory / "s"
        self.port = port
        self.durable = durable
        self.shared = shared
        self._next_db = 0
        self._free: list[int] = []
        self.service: Service
        self.start()

    def start(self) -> None:
        """Start the server; what a durable one had acknowledged is there again."""
        argv = [program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        argv += ["--unixsocket", str(self.socket), "--dir", str(self.directory), "--save", ""]
        argv += ["--maxmemory-policy", "noeviction", "--loglevel", "warning"]
        if self.durable:
            argv += ["--appendonly", "yes", "--appendfsync", "always"]
        else:
            argv += ["--appendonly", "no"]
        if self.port:
            argv += ["--cluster-enabled", "yes"]
        else:
            argv += ["--databases", str(DATABASES)]
        self.service = Service(self.session, argv, self.directory / "log")
        if self.shared:
            self.session.shared.add(self.service.pid)
        wait_until(self._answers, 20, "redis-server")
        if self.port and b"cluster_slots_assigned:16384" not in self._cluster():
            self.client().execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        if self.port:
            wait_until(lambda: b"cluster_state:ok" in self._cluster(), 20, "one-node cluster")

    def _cluster(self) -> bytes:
        with self.client() as client:
            client.set_response_callback("CLUSTER INFO", bytes)
            return client.execute_command("CLUSTER", "INFO")

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return client.ping()
        except redis_py.ConnectionError:
            assert self.service.returncode() is None, self.service.tail()
            return False

    def url(self, db: int = 0) -> str:
        """Return the metadata URL of a database."""
        if self.port:
            return f"redis://127.0.0.1:{self.port}/{db}"
        return f"unix://{self.socket}?db={db}"

    def client(self, db: int = 0) -> redis_py.Redis:
        """Return a blocking client of a database; replies are bytes."""
        return redis_py.Redis(unix_socket_path=str(self.socket), db=db)

    def lease(self) -> Iterator[int]:
        """Yield the number of an empty database; flush it afterwards."""
        if self._free:
            db = self._free.pop()
        else:
            db, self._next_db = self._next_db, self._next_db + 1
        with self.client(db) as client:
            client.flushdb()
            yield db
            client.flushdb()
        self._free.insert(0, db)

    def pause(self) -> None:
        """Make the server hang."""
        self.service.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a hung server go on."""
        self.service.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the server; clients get their connections refused until `start`."""
        self.service.kill()
        self.socket.unlink(missing_ok=True)
