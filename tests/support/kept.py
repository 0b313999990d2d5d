"""A mount whose descriptors are kept, and servers of it that die where a test wants them to."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from support import mounts
from support.clients import Jfsd, Mounted
from support.session import Service, wait_until

if TYPE_CHECKING:
    from support.session import Session
    from support.volume import Volume

KEEPER = Path(__file__).with_name("keeper.py")
SERVED_S = 60
_ENDED = re.compile(r"^keeper: server (\d+) ended (-?\d+) \[(.*)\]$", re.MULTILINE)


class KeptJfsd(Jfsd):
    """jfsd under a keeper of descriptors; only `mount` goes through it."""

    def __init__(self, session: Session, **env: str) -> None:
        super().__init__(session)
        self.plan = session.directory("k") / "plan"
        self.extra_env |= {"JFSD_KEPT": self.binary, "JFSD_KEPT_PLAN": str(self.plan), **env}

    def mount_kept(
        self,
        volume: Volume,
        *flags: str,
        failpoints: tuple[str, ...] = (),
        path: Path | None = None,
    ) -> Kept:
        """Mount under the keeper; the first servers die at `failpoints`."""
        self.plan.write_text("\n".join(failpoints))
        path, cache = path or self.session.directory("m"), self.session.directory("c")
        argv = [str(KEEPER), "mount", *self.mount_flags(), "--cache-dir", cache, *flags]
        log = self.session.root / f"{path.name}.{self.name}.log"
        service = Service(self.session, [*argv, volume.meta_url, path], log, env=self.env())
        mounted = Mounted(self, path, service)
        volume.mounted.append(mounted)
        kept = Kept(mounted, volume, self.plan)
        kept.await_served(len(failpoints))
        return kept


class Kept:
    """A mount that outlives its servers."""

    def __init__(self, mounted: Mounted, volume: Volume, plan: Path) -> None:
        self.mounted = mounted
        self.volume = volume
        self.path = mounted.path
        self._plan = plan

    def log(self) -> str:
        """Return what keeper and servers have written."""
        return self.mounted.service.log.read_text(errors="replace")

    def arm(self, *failpoints: str) -> None:
        """Let the next servers die there, one after the other."""
        self._plan.write_text("\n".join(failpoints))

    def let_go(self) -> None:
        """Let a start that is on hold go on."""
        self.arm()

    def ended(self) -> list[tuple[int, str]]:
        """Return (exit code, failpoint) of every server that has ended."""
        return [(int(code), failpoint) for _, code, failpoint in _ENDED.findall(self.log())]

    def serves(self) -> bool:
        """Tell whether the present server has said that it is ready."""
        return "is ready at" in self.log().rpartition("keeper: server")[2]

    def await_death(self, failpoint: str, after: int = 0, limit_s: float = SERVED_S) -> None:
        """Return when a server, not one of the first `after`, has died at a failpoint."""
        wait_until(
            lambda: (-signal.SIGKILL, failpoint) in self.ended()[after:],
            limit_s,
            f"death at {failpoint}",
        )

    def await_served(self, ended: int = 0, limit_s: float = SERVED_S) -> None:
        """Return when at least `ended` servers have ended and the one after them serves."""
        wait_until(
            lambda: len(self.ended()) >= ended and self.serves(), limit_s, "the next server serves"
        )

    def server(self) -> int:
        """Return the pid of the server that serves."""
        self.await_served()
        found: list[int] = wait_until(
            lambda: self.mounted.service.session.request(
                "descendants", pid=self.mounted.service.pid
            ),
            SERVED_S,
            "a server lives",
        )
        return found[-1]

    def send(self, number: int) -> int:
        """Signal the server; return how many servers have ended when it is through."""
        ended = len(self.ended())
        with suppress(ProcessLookupError):
            os.kill(self.server(), number)
        return ended + 1

    def replace(self, by: int) -> None:
        """End the server by a signal, and return when the next one serves."""
        self.await_served(self.send(by))

    def die_at(self, failpoint: str, *, by: int = signal.SIGUSR2) -> None:
        """Start a server that dies at a failpoint, and return when the one after it serves.

        What makes it come there is up to the load.
        """
        ended = len(self.ended())
        self.arm(failpoint)
        self.send(by)
        self.await_death(failpoint, ended)
        self.await_served(ended + 2)

    def check(self, *, dead_starts: int = 0) -> None:
        """Unmount: there is one mount and one server, clean books, and nothing is left.

        A first start that was killed leaves a session and an empty hash until they expire.
        """
        assert len(mounts.at(self.path)) == 1
        below = self.mounted.service.session.request("descendants", pid=self.mounted.service.pid)
        assert len(below) == 1, f"servers: {below}"
        assert_nothing_leaks(below[0])
        self.mounted.unmount()
        self.volume.check()
        with redis.Redis.from_url(self.volume.meta_url) as database:
            assert len(left := database.keys("jfsd*")) <= dead_starts, left
            assert all(database.ttl(key) > 0 for key in left), "kept for ever"
            assert database.hlen("sessionInfos") <= dead_starts
            assert database.keys("session[0-9]*") == []
            assert database.keys("lock*") == []


def assert_nothing_leaks(pid: int) -> None:
    """Fail if the server holds a descriptor more than once, or more memory files than two."""
    held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    memory = [name for name in held if name.startswith("/memfd:")]
    assert len(memory) <= 2 + 2, memory
    assert len(held) < 100, held
