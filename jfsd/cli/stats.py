"""`jfsd stats`: how busy a mount is, line by line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import click

from jfsd.cli.served import served_place
from jfsd.config.units import parse_seconds
from jfsd.errors import ExitCode, RefusedError

EPILOG = """\b
Examples:
  jfsd stats /mnt/jfs
  jfsd stats /mnt/jfs --interval 5s --count 12 >> jfs.log
"""
_HEAD_EVERY = 20
_WIDTH = 6

Numbers = Mapping[str, float]


class Change(NamedTuple):
    """What two looks at a mount's numbers tell: the newer ones, and rates between them."""

    before: Numbers
    after: Numbers
    seconds: float

    def now(self, name: str) -> float:
        """Return a number as it is."""
        return self.after.get(name, 0)

    def grown(self, name: str) -> float:
        """Return by how much a number grew; another server began at zero."""
        same = self.before.get("jfsd_generation") == self.after.get("jfsd_generation")
        return self.now(name) - (self.before.get(name, 0) if same else 0)

    def rate(self, name: str) -> float:
        """Return by how much a number grew in a second."""
        return self.grown(name) / self.seconds

    def mean_ms(self, histogram: str) -> float:
        """Return the mean duration of what a histogram has counted since."""
        count = self.grown(f"{histogram}_total")
        return 1000 * self.grown(f"{histogram}_sum") / count if count else 0.0


class Column(NamedTuple):
    """A column of the table."""

    title: str
    text: Callable[[Change], str]


FUSE = "juicefs_fuse_ops_durations_histogram_seconds"
META = "juicefs_meta_ops_durations_histogram_seconds"
OBJECT = "juicefs_object_request_durations_histogram_seconds"
_BYTES = "juicefs_object_request_data_bytes"


def size(number: float) -> str:
    """Return a number in at most five characters, with its unit of 1024."""
    for unit in ("", "K", "M", "G", "T"):
        if number < 9999.5 or unit == "T":
            return f"{number:.0f}{unit}"
        number /= 1024
    raise AssertionError


def _rate(name: str) -> Callable[[Change], str]:
    return lambda change: size(change.rate(name))


def _now(name: str) -> Callable[[Change], str]:
    return lambda change: size(change.now(name))


def _mean(histogram: str) -> Callable[[Change], str]:
    return lambda change: f"{change.mean_ms(histogram):.2f}"


def _cpu(change: Change) -> str:
    return f"{100 * change.rate('juicefs_cpu_usage'):.0f}%"


GROUPS: dict[str, tuple[Column, ...]] = {
    "usage": (
        Column("cpu", _cpu),
        Column("mem", _now("juicefs_memory")),
        Column("buf", _now("juicefs_used_buffer_size_bytes")),
    ),
    "fuse": (
        Column("ops", _rate(f"{FUSE}_total")),
        Column("lat", _mean(FUSE)),
        Column("read", _rate("juicefs_fuse_read_size_bytes_sum")),
        Column("write", _rate("juicefs_fuse_written_size_bytes_sum")),
    ),
    "meta": (
        Column("ops", _rate(f"{META}_total")),
        Column("lat", _mean(META)),
    ),
    "blockcache": (
        Column("read", _rate("juicefs_blockcache_hit_bytes")),
        Column("miss", _rate("juicefs_blockcache_miss_bytes")),
        Column("write", _rate("juicefs_blockcache_write_bytes")),
    ),
    "object": (
        Column("get", _rate(f"{_BYTES}_GET")),
        Column("get_c", _rate(f"{OBJECT}_GET_total")),
        Column("lat", _mean(f"{OBJECT}_GET")),
        Column("put", _rate(f"{_BYTES}_PUT")),
        Column("put_c", _rate(f"{OBJECT}_PUT_total")),
        Column("lat", _mean(f"{OBJECT}_PUT")),
        Column("del_c", _rate(f"{OBJECT}_DELETE_total")),
        Column("lat", _mean(f"{OBJECT}_DELETE")),
    ),
}
"""Rates are for a second, sizes in bytes with units of 1024, `lat` in milliseconds."""


def head() -> list[str]:
    """Return the two lines above the numbers."""
    groups, titles = [], []
    for name, columns in GROUPS.items():
        width = len(columns) * (_WIDTH + 1) - 1
        groups.append(name.center(width, "-"))
        titles.append(" ".join(column.title.rjust(_WIDTH) for column in columns))
    return [" ".join(groups), "|".join(titles)]


def row(change: Change) -> str:
    """Return the line of an interval."""
    return "|".join(
        " ".join(column.text(change).rjust(_WIDTH) for column in columns)
        for columns in GROUPS.values()
    )


def seconds_of(option: str, text: str) -> float:
    """Return an interval.

    Raises:
        RefusedError: It is none.
    """
    try:
        seconds = parse_seconds(text)
        if not 0.1 <= seconds <= 20:
            raise ValueError("is out of range 0.1s to 20s")  # noqa: TRY301
    except ValueError as error:
        raise RefusedError(
            ExitCode.USAGE, f"{option} {text!r}", str(error), "give a time such as 2s"
        ) from None
    return seconds


@click.command("stats", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
@click.option("--interval", metavar="TIME", default="1s", show_default=True)
@click.option(
    "--count", metavar="N", type=click.IntRange(1), help="Lines to print; without end if absent."
)
def command(mountpoint: str, interval: str, count: int | None) -> None:
    """Show how busy MOUNTPOINT is: a line for each interval, until Ctrl-C.

    \b
    usage       CPU of one core, memory, write buffer with what is read ahead
    fuse        requests of the kernel a second, their mean time in ms, bytes
    meta        round trips to Redis a second, their mean time in ms
    blockcache  bytes a second that it gave, that it did not have, that it took
    object      bytes and requests a second to the store, their mean time in ms
    """  # noqa: D301 - \b keeps click from filling the lines
    from jfsd.daemon.control_client import ask  # noqa: PLC0415

    interval_s = seconds_of("--interval", interval)
    place = served_place(mountpoint)

    def look() -> tuple[float, Numbers]:
        numbers: Numbers = ask(place, {"do": "stats"}).result["numbers"]
        return time.monotonic(), numbers

    then_s, before = look()
    shown = 0
    while count is None or shown < count:
        if shown == 0 or (sys.stdout.isatty() and shown % _HEAD_EVERY == 0):
            for line in head():
                click.secho(line, bold=True)
        time.sleep(max(0.0, then_s + interval_s - time.monotonic()))
        now_s, after = look()
        click.echo(row(Change(before, after, now_s - then_s)))
        then_s, before = now_s, after
        shown += 1
