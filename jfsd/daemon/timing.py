"""How long each phase of a start took, and the record of the event that the start belongs to."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from jfsd.clock import monotonic_s, now_ns

log = logging.getLogger(__name__)

Event = dict[str, Any]

MAX_EVENTS = 16
"""Events that the state keeps."""

START, RESTART, CRASH = "start", "restart", "crash"

_STAT = Path("/proc/self/stat")
_STARTED = 19  # starttime, counted from the field behind the program's name


class Timing:
    """Milliseconds from the start of this process to now, cut into phases."""

    def __init__(self) -> None:
        """Begin; what has passed since the process was started is the phase `load`."""
        self.started_s = started_s()
        self.phases_ms: dict[str, float] = {}
        self._last_s = self.started_s
        self.mark("load")

    def mark(self, phase: str) -> None:
        """End a phase here; the next one begins."""
        now_s = monotonic_s()
        self.phases_ms[phase] = _ms(now_s - self._last_s)
        self._last_s = now_s

    def event(self, leaving: dict[str, Any], *, taken_over: bool, sealed: bool) -> Event:
        """Return the record of this start, which is complete now.

        Args:
            leaving: What the server before us said of its end.
            taken_over: There was one, or at least its mount.
            sealed: It ended as it wanted to.
        """
        kind = (leaving.get("kind", RESTART) if sealed else CRASH) if taken_over else START
        event: Event = {
            "kind": kind,
            "at": now_ns() // 1_000_000 / 1000,
            "pid": os.getpid(),
            **self.phases_ms,
        }
        if sealed:
            event.update((name, leaving[name]) for name in ("drain_ms", "left") if name in leaving)
            if "at_s" in leaving:
                event["gap_ms"] = _ms(monotonic_s() - leaving["at_s"])
        return event


def started_s() -> float:
    """Return when this process was started, on the monotonic clock; good to 10 ms."""
    try:
        fields = _STAT.read_text("ascii", "replace").rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED]) / os.sysconf(
            "SC_CLK_TCK"
        )
    except (OSError, ValueError, IndexError):
        return monotonic_s()
    return monotonic_s() - max(0.0, age_s)


def line(event: Event) -> str:
    """Return an event as `name=value` words for the log."""
    return " ".join(f"{name}={value}" for name, value in event.items() if name != "at")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
