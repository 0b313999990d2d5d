"""Whoever watches a mount: Prometheus, `jfsd stats`, `jfsd profile`, readers of virtual files."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jfsd.daemon.exporter import Exporter
from jfsd.vfs.virtual import CONFIG_INO, STATS_INO

if TYPE_CHECKING:
    from jfsd.daemon.control import Call, Control, Json
    from jfsd.daemon.report import Report
    from jfsd.fuse.session import Session
    from jfsd.vfs.accesslog import AccessLog, Answered

MIN_INTERVAL_S = 0.1
MAX_INTERVAL_S = 20.0


class Watching:
    """Gives a report to all who ask for it."""

    def __init__(self, report: Report, *, inherits: bool) -> None:
        """Prepare; `inherits`: a former server of the mount may have the address yet."""
        self.report = report
        self.exporter = Exporter(
            report.prometheus,
            inherits=inherits,
            former=report.state.header.metrics,
            on_found=self._found,
        )
        report.address = lambda: self.exporter.address
        report.vfs.texts = {STATS_INO: report.stats, CONFIG_INO: report.config}

    def listen(self, control: Control) -> None:
        """Let the control socket answer `stats` and `profile`."""
        control.on("stats", self.stats)
        control.on("profile", self.profile)

    def start(self, kernel: Session) -> None:
        """Begin to serve metrics, those of the served mount among them."""
        self.report.in_flight = lambda: kernel.in_flight
        self.report.resent = lambda: kernel.resent
        self.exporter.start(self.report.settings().metrics)

    def _found(self, address: str) -> None:
        """Have the next server of the mount look there first."""
        if self.report.state.header.metrics != address:
            self.report.state.change(metrics=address)

    async def close(self) -> None:
        """Serve no more metrics."""
        await self.exporter.close()

    async def stats(self, call: Call) -> Json:
        """Return all numbers by name."""
        del call
        return {"numbers": self.report.numbers()}

    async def profile(self, call: Call) -> Json:
        """Tell what the kernel's requests took, once in an interval, until the client leaves.

        `uid`, `gid` and `pid` of the request choose whose.
        """
        wanted = {name: call.number(name) for name in ("uid", "gid", "pid")}
        interval_s = call.number("interval_s") or 1.0
        interval_s = min(max(interval_s, MIN_INTERVAL_S), MAX_INTERVAL_S)
        sums = _Sums({name: value for name, value in wanted.items() if value is not None})
        access: AccessLog = self.report.vfs.access
        access.listen(sums.take)
        try:
            while True:
                await asyncio.sleep(interval_s)
                await call.tell({"methods": sums.collect()})
        finally:
            access.leave(sums.take)


class _Sums:
    """Requests by method: how many, and how long they took together."""

    def __init__(self, wanted: dict[str, float]) -> None:
        self._wanted = wanted
        self._by_method: dict[str, list[float]] = {}

    def take(self, answered: Answered) -> None:
        """Add a request, if it is wanted."""
        for name, value in self._wanted.items():
            if getattr(answered, name) != value:
                return
        sums = self._by_method.setdefault(answered.method, [0, 0.0])
        sums[0] += 1
        sums[1] += answered.took_s

    def collect(self) -> dict[str, list[float]]:
        """Return the sums, and begin anew."""
        collected, self._by_method = self._by_method, {}
        return collected
