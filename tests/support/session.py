"""The test session's side of the steward, and waiting with a limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

VENV_BIN = Path(sys.executable).parent
TESTS = Path(__file__).resolve().parent.parent


class MissingPartError(AssertionError):
    """A part of the test bed is not installed; tests fail rather than skip."""


def program(name: str) -> str:
    """Return the path of a program of the virtual environment or of the system."""
    own = VENV_BIN / name
    found = str(own) if own.exists() else shutil.which(name)
    if not found:
        raise MissingPartError(f"{name}: not installed; run `make test`, which installs it")
    return found


def clean_env(**extra: str) -> dict[str, str]:
    """Return an environment without credentials and Python settings of the surroundings.

    Where PYTHONDONTWRITEBYTECODE is set, every start would compile the program anew.
    """
    foreign = ("AWS_", "JFS_", "META_", "REDIS_", "ACCESS_", "SECRET_", "PYTEST_", "PYTHON")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    return {**keep, "AWS_EC2_METADATA_DISABLED": "true", **extra}


def wait_until(what: Callable[[], object], limit_s: float, subject: str) -> object:
    """Return the first true result of `what`.

    Raises:
        TimeoutError: `what` stayed false for `limit_s`.
    """
    end = time.monotonic() + limit_s
    pause = 0.005
    while True:
        result = what()
        if result:
            return result
        if time.monotonic() > end:
            raise TimeoutError(f"{subject}: not within {limit_s} s")
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)


def free_ports(count: int, *, also_plus: int = 0) -> list[int]:
    """Return TCP ports of the loopback that are free now, with port + `also_plus` free too."""
    taken: list[socket.socket] = []
    ports: list[int] = []
    candidate = 20000 + os.getpid() % 9000
    while len(ports) < count:
        candidate += 7
        pair = [candidate] + ([candidate + also_plus] if also_plus else [])
        try:
            for port in pair:
                sock = socket.socket()
                taken.append(sock)
                sock.bind(("127.0.0.1", port))
        except OSError:
            continue
        ports.append(candidate)
    for sock in taken:
        sock.close()
    return ports


class Session:
    """One directory, one steward: what a test session may leave nothing of."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="jfsd-t-", dir="/tmp"))
        self.root.chmod(0o755)  # other users' calls must reach the mounts
        self._lock = threading.Lock()
        self._counter = 0
        self.shared: set[int] = set()
        """Servers that outlive a test on purpose."""
        self.shared_mounts: set[str] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.steward", str(self.root)],
            cwd="/",
            env=clean_env(PYTHONPATH=str(TESTS)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def request(self, op: str, **arguments: object) -> object:
        """Ask the steward."""
        with self._lock:
            self._process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise RuntimeError(f"steward: {op}: {reply['error']}")
        return reply["ok"]

    def directory(self, kind: str) -> Path:
        """Return a new empty directory with a short path."""
        self._counter += 1
        path = self.root / f"{kind}{self._counter}"
        path.mkdir()
        return path

    def deadline(self, seconds: float | None) -> list[str]:
        """Abort hung mounts after `seconds`; return those that were since the last call."""
        return self.request("deadline", seconds=seconds)

    def processes(self) -> set[int]:
        """Return all living processes that the steward started or adopted, without shared ones."""
        found = set(self.request("descendants"))
        for pid in self.shared & found:
            found -= {pid, *self.request("descendants", pid=pid)}
        return found

    def close(self) -> None:
        """End every process and mount of the session; the steward removes its directory."""
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Service:
    """A server process under the steward, with its log."""

    def __init__(
        self,
        session: Session,
        argv: Sequence[str | Path],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.session = session
        self.log = log
        self.argv = [str(a) for a in argv]
        self.pid: int = session.request(
            "start",
            argv=self.argv,
            env=dict(env if env is not None else clean_env()),
            log=str(log),
            cwd=str(cwd or "/"),
        )

    def __repr__(self) -> str:
        return f"<{Path(self.argv[0]).name} pid={self.pid} exit={self.returncode()}>"

    def returncode(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self.session.request("poll", pid=self.pid)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the process, or to the whole group that it leads."""
        self.session.request("kill", pid=self.pid, sig=int(number), group=group)

    def wait(self, limit_s: float = 30) -> int:
        """Wait for the end; return the exit status."""
        wait_until(lambda: self.returncode() is not None, limit_s, repr(self))
        return self.returncode()

    def end(self, limit_s: float = 10) -> int:
        """SIGTERM, and SIGKILL if that takes too long; return the exit status."""
        if self.returncode() is None:
            self.signal(signal.SIGTERM)
            try:
                return self.wait(limit_s)
            except TimeoutError:
                self.kill()
        return self.wait()

    def kill(self, *, group: bool = True) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.returncode() is None:
            self.signal(signal.SIGKILL, group=group)
        self.wait()

    def tail(self, lines: int = 60) -> str:
        """Return the end of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    limit_s: float = 60,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; its output is part of the failure.

    Raises:
        AssertionError: it failed (with `check`), or ran longer than `limit_s`.
    """
    command = [str(a) for a in argv]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=limit_s,
            env=env,
            cwd=cwd,
            input=stdin,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"") + (expired.stderr or b"")
        raise AssertionError(
            f"{command} ran longer than {limit_s} s:\n{output.decode(errors='replace')[-4000:]}"
        ) from None
    result = subprocess.CompletedProcess(
        command,
        done.returncode,
        done.stdout.decode(errors="surrogateescape"),
        done.stderr.decode(errors="surrogateescape"),
    )
    if check and result.returncode != 0:
        raise AssertionError(
            f"{command} exit {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
        )
    return result
