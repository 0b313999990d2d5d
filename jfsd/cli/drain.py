"""`jfsd drain`: have everything stored that was written, while the mount is served."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from jfsd.cli.served import served_place
from jfsd.config.units import parse_seconds
from jfsd.errors import ExitCode, RefusedError

EPILOG = """\b
Examples:
  jfsd drain /mnt/jfs
  jfsd drain /mnt/jfs --timeout 30s || echo "not all stored yet"
"""
_LINE_EVERY_S = 2.0


@click.command("drain", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
@click.option("--timeout", metavar="TIME", help="How long to wait; as long as it takes if absent.")
def command(mountpoint: str, timeout: str | None) -> None:
    """Store what programs have written to MOUNTPOINT so far, and wait for it.

    Programs go on meanwhile. Exit code 14 says that time was up: nothing is lost then,
    what is not stored stays in the write buffer and goes on to be stored.
    """
    from jfsd.daemon.control_client import ask  # noqa: PLC0415

    timeout_s = None if timeout is None else _seconds(timeout)
    place = served_place(mountpoint)
    with _shown() as show:
        ask(place, {"do": "drain", "timeout_s": timeout_s}, on_progress=show)


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise RefusedError(
            ExitCode.USAGE, f"--timeout {text!r}", str(error), "give a time such as 30s"
        ) from None


@contextmanager
def _shown() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield what shows progress: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console  # noqa: PLC0415 (a tenth of a second, for people only)
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("storing"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("drain", total=None, left="")
        most = 0

        def show(told: dict[str, Any]) -> None:
            nonlocal most
            most = max(most, told["bytes"])
            progress.update(bar, total=most, completed=most - told["bytes"], left=_left(told))

        yield show


class _Lines:
    """Says what is left every few seconds, and at the end how much was stored."""

    def __init__(self) -> None:
        self._said_s = self._began_s = time.monotonic()
        self._most = 0

    def __call__(self, told: dict[str, Any]) -> None:
        now_s = time.monotonic()
        self._most = max(self._most, told["bytes"])
        if not told["slices"]:
            self._say(f"stored {self._most} bytes in {now_s - self._began_s:.1f} s")
        elif now_s - self._said_s >= _LINE_EVERY_S:
            self._said_s = now_s
            self._say(_left(told))

    def _say(self, text: str) -> None:
        click.echo(f"jfsd: {text}", err=True)


def _left(told: dict[str, Any]) -> str:
    failing = f", {told['failing_files']} failing" if told["failing_files"] else ""
    return f"{told['bytes']} bytes of {told['files']} files left{failing}"
