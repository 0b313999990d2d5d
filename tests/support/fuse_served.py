"""A mount that is served by tests/support/fuse_memory.py in a process of its own."""

from __future__ import annotations

import ast
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


_PROGRAM = """if 1:
    import ctypes, errno, fcntl, json, mmap, os, signal, sys
    class Interrupted(Exception): pass
    def interrupted(*_): raise Interrupted
    signal.signal(signal.SIGUSR1, interrupted)
    names = globals()
    for line in sys.stdin:
        try:
            try:
                result = eval(json.loads(line), names)
            except SyntaxError:
                result = exec(json.loads(line), names)
            print(json.dumps(["ok", repr(result)]), flush=True)
        except OSError as error:
            print(json.dumps(["errno", errno.errorcode[error.errno]]), flush=True)
        except Interrupted:
            print(json.dumps(["interrupted", None]), flush=True)
"""


class Program:
    """A process that does with files what it is told, one line of Python at a time.

    Tests that stop the server use it instead of files of their own: a new server would
    inherit those for a moment, and wait for itself when it closes them.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self.process.stdout.close()

    def ask(self, code: str) -> None:
        """Start a line of Python."""
        self.process.stdin.write(json.dumps(code).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self) -> object:
        """Return its result, or the name of the errno with which it failed."""
        kind, value = json.loads(self.process.stdout.readline())
        return ast.literal_eval(value) if kind == "ok" else value or kind

    def do(self, code: str) -> object:
        """Carry out a line of Python."""
        self.ask(code)
        return self.answer()

    def signal(self) -> None:
        """Interrupt what it waits for."""
        self.process.send_signal(signal.SIGUSR1)
