"""Events of a live mount, one after the other under a checked load, and what programs felt."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from support.load import Load, Report, longest_between

from jfsd.daemon.holder_link import HolderClient
from jfsd.daemon.holder_place import HolderError, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SETTLE_S = 0.7
WAIT_S = 60
KINDS = ("names", "appender", "reader", "locker", "unlinked", "mapper", "direct", "probe", "writer")


@dataclass
class Outcome:
    """What a load felt of a series of events."""

    errors: list[str]
    wrong: list[str]
    doubled: int
    operations: int
    stalls: dict[str, list[float]] = field(default_factory=dict)
    """By kind of event, the longest step of any worker at each of them, in seconds."""

    @property
    def fine(self) -> bool:
        """Whether nothing was noticed, lost or done twice."""
        return not (self.errors or self.wrong or self.doubled)


class Background:
    """A mount in the background (`jfsd mount -d`), and what can happen to it."""

    def __init__(self, again: Sequence[str], mountpoint: Path, env: dict[str, str]) -> None:
        """Know the mount; `again` is the command that made it, and hands over if run again."""
        self._again = list(again)
        self._path = mountpoint
        self._env = env
        os.environ["JFSD_RUNTIME_DIR"] = env["JFSD_RUNTIME_DIR"]
        self._place = Place.of(str(mountpoint))

    def pid(self) -> int:
        """Return the server that serves; 0 while nobody does."""
        with suppress(HolderError, OSError), HolderClient(self._place.control) as holder:
            status = holder.status()
            if status["stage"] == "serving":
                return int(status["server"]["pid"])
        return 0

    def upgrade(self) -> None:
        """Hand over to a new server that is warm."""
        former = self.pid()
        subprocess.run(self._again, env=self._env, check=True, timeout=WAIT_S, capture_output=True)
        self._await(lambda: self.pid() not in (0, former))

    def restart(self) -> None:
        """Let the server leave, and the holder start the next."""
        self._end(signal.SIGUSR2)

    def kill(self) -> None:
        """SIGKILL the server."""
        self._end(signal.SIGKILL)

    def reload(self) -> None:
        """Read the configuration again."""
        os.kill(self._serving(), signal.SIGHUP)

    def shoot(self) -> None:
        """SIGKILL whatever serves or is about to; do not wait for the next."""
        with suppress(HolderError, OSError), HolderClient(self._place.control) as holder:
            server = holder.status().get("server") or {}
            if server.get("pid"):
                os.kill(int(server["pid"]), signal.SIGKILL)

    def _end(self, number: int) -> None:
        former = self._serving()
        os.kill(former, number)
        self._await(lambda: self.pid() not in (0, former))

    def _serving(self) -> int:
        self._await(lambda: self.pid() != 0)
        return self.pid()

    def _await(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_S
        while not what():
            if time.monotonic() > end:
                raise TimeoutError(f"nobody serves {self._path}")
            time.sleep(0.005)


def under_load(
    top: Path,
    events: Sequence[tuple[str, Callable[[], None]]],
    *,
    kinds: Sequence[str] = KINDS,
    settle_s: float = SETTLE_S,
) -> Outcome:
    """Return what a load on `top` felt while the events happened, and what it left there."""
    load = Load(top, kinds)
    windows: list[tuple[str, float, float]] = []
    try:
        for name, happen in [("none", lambda: time.sleep(1)), *events]:
            began = time.monotonic()
            happen()
            time.sleep(settle_s)
            windows.append((name, began, time.monotonic()))
            load.compare()
            time.sleep(settle_s / 2)
        reports = load.end()
    finally:
        load.kill()
    outcome = Outcome(
        [f"{kind}: {error}" for kind, errors in load.errors.items() for error in errors],
        load.wrong(top),
        sum(_doubled(top)),
        sum(report.operations for report in reports.values()),
    )
    for name, began, ended in windows:
        longest = longest_between(_small(reports), began, ended)
        outcome.stalls.setdefault(name, []).append(longest)
    return outcome


def _small(reports: dict[str, Report]) -> dict[str, Report]:
    """Leave out the worker whose steps move megabytes, and are long without any event."""
    return {name: report for name, report in reports.items() if not name.startswith("writer")}


def _doubled(top: Path) -> Iterator[int]:
    """Yield how many lines of each log are there twice."""
    for log in top.glob("appender*/log"):
        lines = log.read_bytes().splitlines()
        yield len(lines) - len(set(lines))


def table(rows: dict[str, Outcome]) -> list[str]:
    """Return the outcomes as lines for people: one program after the other."""
    lines = [f"  {'':28} {'times':>5} {'longest':>9} {'median':>9}"]
    for program, outcome in rows.items():
        for event, stalls in outcome.stalls.items():
            middle = sorted(stalls)[len(stalls) // 2]
            name = f"{program}, {event}"
            lines.append(
                f"  {name:28} {len(stalls):5} {max(stalls) * 1000:6.0f} ms {middle * 1000:6.0f} ms"
            )
    for program, outcome in rows.items():
        lines.append(
            f"  {program}: {outcome.operations} steps, {len(outcome.errors)} errors,"
            f" {len(outcome.wrong)} files lost or changed, {outcome.doubled} operations done twice"
        )
    return lines
