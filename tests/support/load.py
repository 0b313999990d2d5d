"""A load that checks itself: every acknowledged change is remembered, and found again later.

Each worker is a process of its own (started before the event that the test makes), so
a worker that hangs or dies does not take the tests with it. What they do is in `jobs`.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from support.jobs import KINDS
from support.tree import digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from support.jobs import Job

SLOW_S = 0.01
"""Steps that take longer are remembered with their times."""

SMALL = ("names", "appender", "reader", "locker", "unlinked", "mapper", "direct", "contender")
"""Kinds that work in small steps: all but those that move or list much."""


class Report(NamedTuple):
    """What one worker did."""

    operations: int
    longest_s: float
    errors: list[str]
    expected: dict[str, object]
    """Relative name to content digest, or to None for a name that must not exist."""
    tally: dict[str, int]
    """What it added to counters that several workers share."""
    slow: list[tuple[float, float]]
    """Begin and end of its slow steps, by the monotonic clock."""


class Worker:
    """One process that runs `step(state)` again and again until it is told to stop."""

    def __init__(self, kind: str, top: Path, seed: int) -> None:
        self.kind = kind
        self.top = top / f"{kind}{seed}"
        self.top.mkdir()
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            status = 1
            try:
                asked = Counter[int]()
                for number in (signal.SIGUSR1, signal.SIGUSR2):
                    signal.signal(number, lambda number, _: asked.update([number]))
                job = KINDS[kind](self.top, random.Random(seed))
                os.write(writer, b"r")
                report = _work(job, asked)
                with os.fdopen(writer, "wb") as sink:
                    pickle.dump(report, sink)
                status = 0
            finally:
                os._exit(status)
        os.close(writer)

    def wait_ready(self) -> None:
        """Return when it has prepared its directory and works."""
        assert os.read(self._reader, 1) == b"r", f"{self.kind} could not prepare"

    def compare(self) -> None:
        """Let it compare, after its present step, all that it has done so far."""
        os.kill(self.pid, signal.SIGUSR2)

    def stop(self) -> Report:
        """Tell it to end after its present step; return what it did."""
        os.kill(self.pid, signal.SIGUSR1)
        with os.fdopen(self._reader, "rb") as source:
            answer = source.read()
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"{self.kind}: exit {status}"
        return pickle.loads(answer)

    def kill(self) -> None:
        """End it now; for teardown."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._reader)


def _work(job: Job, asked: Counter[int]) -> Report:
    operations, longest, errors = 0, 0.0, []
    slow: list[tuple[float, float]] = []
    while not asked[signal.SIGUSR1] and len(errors) < 5:
        began = time.monotonic()
        try:
            job.step()
        except (OSError, AssertionError) as error:
            errors.append(f"after {operations}: {type(error).__name__}: {error}")
        ended = time.monotonic()
        longest = max(longest, ended - began)
        if ended - began > SLOW_S:
            slow.append((began, ended))
        operations += 1
        if asked[signal.SIGUSR2]:
            asked[signal.SIGUSR2] = 0
            _try(job.compare, errors)
    _try(job.compare, errors)
    _try(job.finish, errors)
    return Report(operations, longest, errors, job.expected, job.tally, slow)


def _try(check: object, errors: list[str]) -> None:
    try:
        check()
    except (OSError, AssertionError) as error:
        errors.append(f"{check.__name__}: {type(error).__name__}: {error}")


class Load:
    """Some workers at once."""

    def __init__(self, top: Path, kinds: Sequence[str] = tuple(KINDS)) -> None:
        self.top = top
        self.workers = [Worker(kind, top, seed) for seed, kind in enumerate(kinds)]
        self.expected: dict[str, object] = {}
        self.tally = Counter[str]()
        self.errors: dict[str, list[str]] = {}
        for worker in self.workers:
            worker.wait_ready()

    def compare(self) -> None:
        """Let every worker compare, between two steps, what it has done so far."""
        for worker in self.workers:
            worker.compare()

    def end(self) -> dict[str, Report]:
        """End all workers; return what each did, errors included, by kind and number."""
        reports = {}
        while self.workers:
            worker = self.workers.pop(0)
            report = reports[worker.top.name] = worker.stop()
            if report.errors:
                self.errors[worker.top.name] = report.errors
            self.tally.update(report.tally)
            for name, content in report.expected.items():
                self.expected[f"{worker.top.name}/{name}"] = content
        return reports

    def stop(self) -> dict[str, Report]:
        """End all workers; any error that one of them saw fails."""
        reports = self.end()
        assert not self.errors, f"the load saw errors: {self.errors}"
        return reports

    def kill(self) -> None:
        """End what still runs; for teardown."""
        for worker in self.workers:
            worker.kill()
        self.workers.clear()

    def wrong(self, top: Path) -> list[str]:
        """Return how what `top` shows now differs from all that was acknowledged."""
        wrong = []
        for name, content in self.expected.items():
            path = top / name
            found = digest(path) if path.is_file() else ("exists" if path.exists() else None)
            if found != content:
                wrong.append(f"{name}: {found}, expected {content}")
        for name, count in self.tally.items():
            text = (top / name).read_text() or "0"
            if text != str(count):
                wrong.append(f"{name}: counts {text} of {count}")
        return wrong

    def verify(self, top: Path) -> None:
        """Compare all that was acknowledged with what `top` shows now."""
        wrong = self.wrong(top)
        assert not wrong, f"{len(wrong)} of {len(self.expected)} differ: {wrong[:5]}"


def longest_between(reports: dict[str, Report], began: float, ended: float) -> float:
    """Return the longest step, in seconds, that was under way at some time in between."""
    steps = [step for report in reports.values() for step in report.slow]
    return max((b - a for a, b in steps if a <= ended and b >= began), default=0.0)
