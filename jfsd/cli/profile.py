"""`jfsd profile`: what programs ask of a mount, and how long it takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from jfsd.cli.served import served_place
from jfsd.cli.stats import seconds_of

EPILOG = """\b
Examples:
  jfsd profile /mnt/jfs
  jfsd profile /mnt/jfs --uid 33 --interval 10s
  jfsd profile /mnt/jfs --pid "$(pidof -s mysqld)" --count 1
"""
_COLUMNS = ("Operation", "Count", "Average(us)", "Total(us)", "Percent(%)")
_WIDTHS = (16, 10, 12, 12, 11)
_CLEAR = "\x1b[H\x1b[2J"


class _EnoughError(Exception):
    """As many intervals were shown as were asked for."""


def table(methods: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the lines for an interval, what took longest first."""
    whole_s = sum(took_s for _, took_s in methods.values())
    lines = [_line(_COLUMNS)]
    for name, (count, took_s) in sorted(methods.items(), key=lambda item: -item[1][1]):
        percent = 100 * took_s / whole_s if whole_s else 0.0
        mean_us = 1e6 * took_s / count
        lines.append(
            _line((name, f"{count:.0f}", f"{mean_us:.0f}", f"{1e6 * took_s:.0f}", f"{percent:.1f}"))
        )
    return lines


def _line(words: Sequence[str]) -> str:
    first, *rest = zip(words, _WIDTHS, strict=True)
    return first[0].ljust(first[1]) + "".join(word.rjust(width) for word, width in rest)


@click.command("profile", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
@click.option("--interval", metavar="TIME", default="2s", show_default=True)
@click.option(
    "--count", metavar="N", type=click.IntRange(1), help="Tables to print; without end if absent."
)
@click.option("--uid", type=click.IntRange(0), help="Only requests of this user.")
@click.option("--gid", type=click.IntRange(0), help="Only requests of this group.")
@click.option("--pid", type=click.IntRange(0), help="Only requests of this process (or thread).")
def command(
    mountpoint: str,
    interval: str,
    count: int | None,
    uid: int | None,
    gid: int | None,
    pid: int | None,
) -> None:
    """Show what programs ask of MOUNTPOINT: a table for each interval, until Ctrl-C.

    Requests of the kernel by operation, with how often they came and how long they took,
    those first that took longest in sum. It costs the server nothing once it ends.
    """
    from jfsd.daemon.control_client import ask  # noqa: PLC0415

    interval_s = seconds_of("--interval", interval)
    place = served_place(mountpoint)
    left = count

    def show(told: dict[str, Any]) -> None:
        nonlocal left
        when = time.strftime("%H:%M:%S")
        click.echo(_CLEAR if sys.stdout.isatty() else "", nl=False)
        click.secho(f"{mountpoint}  {when}  {interval_s:g} s", bold=True)
        for line in table(told["methods"]):
            click.echo(line)
        click.echo()
        if left is not None:
            left -= 1
            if not left:
                raise _EnoughError

    request = {"do": "profile", "interval_s": interval_s, "uid": uid, "gid": gid, "pid": pid}
    try:
        ask(place, request, on_progress=show)
    except _EnoughError:
        return
