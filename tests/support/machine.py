"""A machine of the tests' own: a container with systemd, seen from outside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support import cgroups, mounts
from support.session import TESTS, MissingPartError, Service, clean_env, run, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = "/opt/jfsd-tests"
BOOT_S = 120


class Machine:
    """One container; `run` runs in it, `path` is a file of it."""

    def __init__(self, bed: object, name: str, lower: str = "") -> None:
        if not shutil.which("systemd-nspawn"):
            raise MissingPartError("systemd-nspawn: not installed; run `make test-system`")
        self.bed = bed
        self.name = cgroups.own(f"{bed.root.name}-{name}")
        self.log = bed.root / f"{name}.machine.log"
        self.service = Service(
            bed,
            [
                *(sys.executable, "-m", "support.nspawn", bed.directory("n"), self.name),
                *([lower] if lower else []),
                *("--", f"--bind-ro={TESTS}:{INSIDE}"),
            ],
            self.log,
            env=clean_env(PYTHONPATH=str(TESTS)),
        )
        bed.shared.add(self.service.pid)
        self.await_boot()

    # -- life -----------------------------------------------------------------------------------

    def init(self) -> int:
        """Return the container's first process, as it is numbered outside; 0 if it has none."""
        for nspawn in mounts.children(self.service.pid):
            for child in mounts.children(nspawn):
                if _comm(child) == "systemd":
                    return child
        return 0

    def await_boot(self, *, after: int = 0) -> None:
        """Return when it has booted, with another first process than `after`."""

        def booted() -> bool:
            assert self.service.returncode() is None, self.service.tail()
            if self.init() in (0, after):
                return False
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            return state in ("running", "degraded")

        wait_until(booted, BOOT_S, f"boot of {self.name}")

    def reboot(self) -> None:
        """Shut down and boot again; the file system stays."""
        before = self.init()
        self.run("systemctl", "reboot", check=False)
        self.await_boot(after=before)

    def close(self) -> None:
        """End it at once."""
        init = self.init()
        if init:
            os.kill(init, signal.SIGKILL)
        self.service.kill()
        wait_until(lambda: not _runs(init), 30, f"end of {self.name}")

    # -- programs -------------------------------------------------------------------------------

    def enter(self, *argv: object) -> list[str]:
        """Return the command that runs `argv` inside."""
        return [
            *(
                "nsenter",
                "-t",
                str(self.init()),
                "-m",
                "-u",
                "-i",
                "-n",
                "-p",
                "-C",
                "-r",
                "-w",
                "--",
            ),
            *(str(word) for word in argv),
        ]

    def run(
        self, *argv: object, limit_s: float = 60, check: bool = True, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end."""
        inside = ("timeout", "--kill-after=5", f"{limit_s:.0f}", *argv)
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
        return run(self.enter(*inside), limit_s=limit_s + 20, check=check, env=env, stdin=stdin)

    def shell(self, script: str, *, limit_s: float = 60, check: bool = True) -> str:
        """Run a shell script inside; return what it prints."""
        return self.run("sh", "-euc", script, limit_s=limit_s, check=check).stdout

    def path(self, inside: str) -> Path:
        """Return where a file of the container is for us; not for paths on a mount of jfsd."""
        return Path(f"/proc/{self.init()}/root{inside}")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    # -- units ----------------------------------------------------------------------------------

    def systemctl(
        self, *words: str, check: bool = True, limit_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run systemctl."""
        return self.run("systemctl", "--no-pager", *words, check=check, limit_s=limit_s)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit."""
        text = self.systemctl("show", *(f"-p{name}" for name in names), "--", unit).stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def journal(self, unit: str, *words: str) -> list[dict[str, str]]:
        """Return the unit's records of the journal, as the journal has them."""
        text = self.run("journalctl", "--sync", check=False).stdout
        text = self.run("journalctl", "-o", "json", "--no-pager", "-u", unit, *words).stdout
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def messages(self, unit: str, *words: str) -> str:
        """Return the unit's lines of the journal."""
        return "\n".join(str(record.get("MESSAGE")) for record in self.journal(unit, *words))


class Loading:
    """The checked load of support.load, run inside a machine."""

    def __init__(self, machine: Machine, top: str, kinds: tuple[str, ...] = ()) -> None:
        self._process = subprocess.Popen(
            machine.enter(
                *("env", f"PYTHONPATH={INSIDE}", "PYTHONDONTWRITEBYTECODE=1"),
                *("/usr/bin/python3", "-m", "support.loading", top, *kinds),
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline().strip() == "ready"

    def stop(self) -> dict[str, dict[str, float]]:
        """End the load; any error that it saw, or anything that is lost, fails."""
        self._process.stdin.write("\n")
        self._process.stdin.close()
        answer = json.loads(self._process.stdout.readline())
        self._process.stdout.close()
        self._process.wait(30)
        assert "error" not in answer, answer["error"]
        assert all(report["operations"] > 0 for report in answer.values()), answer
        return answer

    def kill(self) -> None:
        """End it now; for teardown."""
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.kill(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process.stdout.close()


def every(seconds: float, times: int) -> Iterator[int]:
    """Count, with a pause after each."""
    for number in range(times):
        yield number
        time.sleep(seconds)


def _runs(pid: int) -> bool:
    """Return whether the process is more than a number that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
