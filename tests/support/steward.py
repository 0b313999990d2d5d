"""A small process that owns every server and every mount of a test session.

It is started before anything is mounted, so the servers never inherit (and, by
closing them, never flush) files that the tests have open on a mount. It adopts
what daemons fork off, aborts hung FUSE connections when a deadline passes, and
when the test session goes away, however it went, ends all that is left.

One JSON request per line on stdin, one JSON reply per line on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from support import cgroups, mounts

PR_SET_CHILD_SUBREAPER = 36


class Steward:
    """Everything below `root` belongs to this process."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.adopted: dict[int, int] = {}
        self.deadline: float | None = None
        self.aborted: list[str] = []

    def serve(self) -> None:
        """Answer requests until stdin ends, then end everything."""
        buffer = b""
        try:
            while True:
                wait = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
                ready, _, _ = select.select([0], [], [], wait)
                if not ready:
                    self.abort_all()
                    self.deadline = None
                    continue
                received = os.read(0, 65536)
                if not received:
                    return
                buffer += received
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    reply = self.answer(json.loads(line))
                    os.write(1, json.dumps(reply).encode() + b"\n")
        finally:
            self.end_everything()

    def answer(self, request: dict) -> dict:
        """Do one request; a failure is answered, not raised."""
        try:
            return {"ok": getattr(self, "do_" + request.pop("op"))(**request)}
        except (OSError, ValueError, KeyError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def do_start(self, argv: list[str], env: dict[str, str], log: str, cwd: str) -> int:
        with Path(log).open("ab") as output:
            child = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children[child.pid] = child
        return child.pid

    def do_poll(self, pid: int) -> int | None:
        self.reap()
        if pid in self.children:
            return self.children[pid].poll()
        return self.adopted.get(pid)

    def do_kill(self, pid: int, sig: int, group: bool) -> bool:
        """Signal a process that this session started or adopted; False if it is gone."""
        self.reap()
        mine = pid in mounts.descendants(os.getpid())
        if not mine:
            return False
        if group:
            os.killpg(pid, sig)
        else:
            os.kill(pid, sig)
        return True

    def do_descendants(self, pid: int | None = None) -> list[int]:
        self.reap()
        return mounts.descendants(os.getpid() if pid is None else pid)

    def do_deadline(self, seconds: float | None) -> list[str]:
        """Set or clear the time after which hung mounts are aborted; return those that were."""
        self.deadline = None if seconds is None else time.monotonic() + seconds
        aborted, self.aborted = self.aborted, []
        return aborted

    def do_abort(self, path: str) -> bool:
        return mounts.abort(path)

    def do_detach(self, path: str) -> bool:
        return mounts.detach(path)

    def abort_all(self) -> None:
        for mount in mounts.below(self.root):
            if mounts.abort(mount.path):
                self.aborted.append(mount.path)

    def reap(self) -> None:
        for child in self.children.values():
            child.poll()
        for pid in mounts.children(os.getpid()):
            if pid not in self.children:
                try:
                    done, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    continue
                if done:
                    self.adopted[pid] = os.waitstatus_to_exitcode(status)

    def end_everything(self) -> None:
        self.abort_all()
        for mount in reversed(mounts.below(self.root)):
            mounts.detach(mount.path)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            self.reap()
            left = mounts.descendants(os.getpid())
            if not left:
                break
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)
        cgroups.remove(Path(self.root).name)
        if not mounts.below(self.root):
            shutil.rmtree(self.root, ignore_errors=True)


def main() -> None:
    """Run until the session closes our stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    mounts.mount_fusectl()
    Steward(sys.argv[1]).serve()


if __name__ == "__main__":
    main()
