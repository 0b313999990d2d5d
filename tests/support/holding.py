"""A bench for holders: a directory, a fake server, and proof that nothing is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.session import wait_until

from jfsd.daemon.holder import Started, start_holder
from jfsd.daemon.holder_link import HolderClient
from jfsd.daemon.holder_place import HolderError, Place

SERVER = Path(__file__).with_name("fake_server.py")
MOUNTPOINT = "/mnt/nowhere at-all"


class Bench:
    """Holders and fake servers of one mount point that does not exist."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="jfsd-h-", dir="/tmp"))
        self.runtime = self.root / "run"
        self.journal_path = self.root / "journal"
        self.holders: set[int] = set()

    @property
    def place(self) -> Place:
        return Place.of(MOUNTPOINT)

    @property
    def argv(self) -> list[str]:
        return [sys.executable, str(SERVER)]

    def env(self, **extra: object) -> dict[str, str]:
        own = {"FAKE_JOURNAL": str(self.journal_path), "FAKE_MOUNTPOINT": MOUNTPOINT}
        return {**os.environ, **own, **{k: str(v) for k, v in extra.items()}}

    def start(self, deadline_s: float = 10, *, server=None, argv=None, **how) -> Started:
        """Start a holder; `server` says how the fake one shall behave."""
        env = self.env(**(server or {}))
        started = start_holder(MOUNTPOINT, argv or self.argv, env, deadline_s, **how)
        self.holders.add(started.holder)
        return started

    def ask(self) -> HolderClient:
        client = HolderClient(self.place.control)
        self.holders.add(client.pid)
        return client

    def status(self) -> dict:
        with self.ask() as client:
            return client.status()

    def server(self) -> int:
        """Return the pid of the server that serves now."""

        def serving() -> int:
            with contextlib.suppress(Exception):
                found = self.status()
                if found["stage"] == "serving":
                    return found["server"]["pid"]
            return 0

        return wait_until(serving, 10, "a server serves")

    def next_server(self, former: int) -> int:
        return wait_until(lambda: (pid := self.server()) != former and pid, 10, "the next server")

    def journal(self) -> list[list[str]]:
        if not self.journal_path.exists():
            return []
        return [line.split() for line in self.journal_path.read_text().splitlines()]

    def happened(self, event: str, pid: int | None = None) -> bool:
        return any(e[0] == event and pid in (None, int(e[-1])) for e in self.journal())

    def pids(self) -> set[int]:
        """Return our processes that live: the holders met, and servers by their journal."""
        return {pid for pid in self.holders | {int(e[-1]) for e in self.journal()} if alive(pid)}

    def stop(self) -> None:
        """Stop the mount, and wait until nothing is left."""
        with contextlib.suppress(HolderError), self.ask() as holder:
            holder.stop(limit_s=10)
        wait_until(self.gone, 5, "nothing is left of the holder")

    def gone(self) -> bool:
        return not self.pids() and not self.place.directory.exists()

    def close(self) -> set[int]:
        """End what is left; return what that was."""
        left = self.pids()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.pids(), 5, "everything is killed")
        shutil.rmtree(self.root)
        return left


def alive(pid: int) -> bool:
    """Return whether the process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kill(pid: int, number: int = signal.SIGKILL) -> float:
    """Signal the process; return when."""
    os.kill(pid, number)
    return time.monotonic()


def held(monkeypatch) -> Iterator[Bench]:
    """Yield a bench; fail if a test leaves processes that the bench has to kill unasked."""
    bench = Bench()
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(bench.runtime))
    try:
        yield bench
        if bench.pids():
            bench.stop()
        assert bench.gone(), bench.pids()
    finally:
        log = bench.place.log
        print(log.read_text() if log.exists() else "no log")
        bench.close()
