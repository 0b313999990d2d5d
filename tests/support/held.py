"""jfsd in the background: `jfsd mount -d`, its holder, and what becomes of both."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from support import mounts
from support.clients import UNMOUNT_S, Jfsd, Mounted
from support.session import Service, wait_until

from jfsd.config.runtime import escape
from jfsd.daemon.holder_link import HolderClient
from jfsd.daemon.holder_place import HolderError

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from support.session import Session
    from support.volume import Volume


class HeldJfsd(Jfsd):
    """jfsd, mounting in the background, with a runtime directory of its own."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.runtime = session.directory("r")
        self.runtime.chmod(0o700)
        self.extra_env["JFSD_RUNTIME_DIR"] = str(self.runtime)

    def mount(
        self, meta_url: str, path: Path, *flags: str, limit_s: float = 60, cache: Path | None = None
    ) -> Held:
        """Mount a volume and return when the command has."""
        path.mkdir(exist_ok=True)
        cache = cache or self.session.directory("c")
        argv = ["mount", "-d", *self.mount_flags(), "--cache-dir", str(cache), *flags]
        log = self.session.root / f"{path.name}.command.log"
        command = Service(self.session, [self.binary, *argv, meta_url, path], log, env=self.env())
        status = command.wait(limit_s)
        assert status == 0, f"exit {status}\n{command.tail()}"
        return Held(self, path, command, [*argv, meta_url, str(path)])


class Held(Mounted):
    """A mount in the background; `service` is the command that made it, which has ended."""

    client: HeldJfsd

    def __init__(self, client: HeldJfsd, path: Path, service: Service, again: list[str]) -> None:
        super().__init__(client, path, service)
        self.again = again
        self.place = client.runtime / f"{escape(str(path))}.d"
        self.log = self.place.with_suffix(".log")

    def __repr__(self) -> str:
        return f"<held jfsd on {self.path}>"

    def holder(self) -> HolderClient:
        """Return a connection to the holder."""
        return HolderClient(self.place / "control")

    def holder_pid(self) -> int:
        """Return the process of the holder."""
        with self.holder() as holder:
            return holder.pid

    def serving_pid(self) -> int:
        """Return the server, once one serves."""

        def serving() -> int:
            try:
                with self.holder() as holder:
                    status = holder.status()
            except HolderError:
                return 0
            return status["server"]["pid"] if status["stage"] == "serving" else 0

        return wait_until(serving, 30, f"a server of {self.path}")

    def pids(self) -> list[int]:
        """Return all processes of the mount."""
        return [self.holder_pid(), self.serving_pid()]

    def mount_again(
        self, *flags: str, check: bool = True, limit_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the very same command again, with more flags: that is the upgrade."""
        words = [*self.again[:2], *flags, *self.again[2:]]
        return self.client.run(*words, check=check, limit_s=limit_s)

    def replaced(self, former: int) -> int:
        """Return the next server, once it serves."""
        return wait_until(
            lambda: (pid := self.serving_pid()) != former and pid, 30, "the next server"
        )

    def log_text(self) -> str:
        """Return what holder and servers wrote."""
        return self.log.read_text() if self.log.exists() else ""

    def unmount(self) -> None:
        """Unmount; nothing is left but the log."""
        pids = self.pids()
        self.client.unmount(self.path)
        wait_until(lambda: self._gone(pids), UNMOUNT_S, "the holder's end")
        assert not mounts.at(self.path), f"{self.path} is still mounted"

    def _gone(self, pids: list[int]) -> bool:
        ended = all(mounts.state(pid) in (None, "Z") for pid in pids)
        return ended and not self.place.exists()

    def kill(self) -> None:
        """SIGKILL all of it and take the dead mount away."""
        if self.place.exists():
            for find in (self.holder_pid, self.serving_pid):
                try:
                    os.kill(find(), signal.SIGKILL)
                except (HolderError, TimeoutError, ProcessLookupError):
                    continue
        self.service.session.request("abort", path=str(self.path))
        self.service.session.request("detach", path=str(self.path))

    def discard(self) -> None:
        """End it however it takes; for teardown."""
        if mounts.at(self.path):
            try:
                self.unmount()
            except (AssertionError, TimeoutError):
                self.kill()
                raise AssertionError(
                    f"{self!r} could not be unmounted\n{self.log_text()}"
                ) from None


def mount_held(volume: Volume, *flags: str) -> Held:
    """Mount a volume in the background; it is unmounted with the volume."""
    held = volume.mount(*flags, client=HeldJfsd(volume.session))
    assert isinstance(held, Held)
    return held
