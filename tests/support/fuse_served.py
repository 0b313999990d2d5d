"""A mount that is served by tests/support/fuse_memory.py in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jfsd.config.fuseopts import parse_fuse_options
from jfsd.fuse import mount as mounting

if TYPE_CHECKING:
    from support.session import Session

SERVER = Path(__file__).with_name("fuse_memory.py")


class Served:
    """Keeps the descriptor, so that servers may come and go."""

    def __init__(self, bed: Session, mount_words: tuple[str, ...] = (), **options: object) -> None:
        self.path = bed.directory("m")
        self.log = bed.root / f"{self.path.name}.jsonl"
        self.errors = bed.root / f"{self.path.name}.log"
        self.options = {"log": str(self.log), **options}
        words = parse_fuse_options(mount_words)
        self.mounted = mounting.mount(str(self.path), "test", words)
        self.process: subprocess.Popen[bytes] | None = None
        self.init_out = ""
        self.start("fresh")
        assert mounting.set_readahead(self.mounted.device, 1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, how: str = "adopted", **options: object) -> dict[str, object]:
        """Start a server and return what it says once it serves."""
        fd = self.mounted.fd
        argv = [sys.executable, SERVER, fd, self.mounted.init_in.hex(), how]
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [*map(str, argv), json.dumps({**self.options, **options})],
                pass_fds=[fd],
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        ready = self.said()
        if how == "fresh":
            self.init_out = ready["init_out"]
        return ready

    def said(self) -> dict[str, object]:
        """Return the server's next line."""
        line = self.process.stdout.readline()
        assert line, self.errors.read_text()[-4000:]
        return json.loads(line)

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        self.process.send_signal(number)

    def gone(self, limit_s: float = 10) -> int:
        """Wait for the server's end; return its exit status."""
        status = self.process.wait(limit_s)
        self.process.stdout.close()
        return status

    def kill(self) -> None:
        """SIGKILL the server; the mount stays."""
        self.signal(signal.SIGKILL)
        self.gone()

    def calls(self, name: str) -> list[dict[str, object]]:
        """Return what the server noted about calls of `name`."""
        if not self.log.exists():
            return []
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [row for row in rows if row["call"] == name]

    def close(self) -> None:
        """Unmount and wait for the server's end."""
        with contextlib.suppress(OSError):
            os.close(self.mounted.fd)
        if mounting.find(str(self.path)):
            mounting.umount(str(self.path), lazy=True)
        if self.process.poll() is None:
            try:
                self.gone()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.gone()
                raise
        if not self.process.stdout.closed:
            self.process.stdout.close()
