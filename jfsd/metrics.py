"""What a server counts about itself, and how that is written down for Prometheus.

Plain numbers: whoever does the work adds to them, and they are read when somebody asks.
There is one mount in a process, so there is one of each, at the end of this module. They
begin at zero with each process; what is counted over restarts is in the parked state.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeAlias, TypeVar

from jfsd.record import Record, field

Key = TypeVar("Key")

DURATION_BOUNDS_S = tuple(0.0001 * 1.5**i for i in range(30))
"""0.1 ms to 13 s; those of the reference, so that histograms of both can be added up."""

SIZE_BOUNDS_BYTES = tuple(float(4096 * (i + 1)) for i in range(32))


class Histogram:
    """Counts of values by size, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = DURATION_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """How many were at most the bound of the same index and above the one before."""
        self.sum = 0.0

    def __repr__(self) -> str:
        return f"<Histogram {self.count} values, sum {self.sum:g}>"

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Histograms(dict[Key, Histogram], Generic[Key]):
    """A histogram of durations for each key, made when it is first asked for."""

    def __missing__(self, key: Key) -> Histogram:
        made = self[key] = Histogram()
        return made

    def total(self) -> Histogram:
        """Return all of them added up."""
        total = Histogram()
        for each in self.values():
            total.counts = [a + b for a, b in zip(total.counts, each.counts, strict=True)]
            total.sum += each.sum
        return total


class CacheCounts:
    """What became of looking for blocks in the cache."""

    __slots__ = ("hit_bytes", "hits", "miss_bytes", "misses", "write_bytes", "writes")

    def __init__(self) -> None:
        self.hits = self.hit_bytes = self.misses = self.miss_bytes = 0
        self.writes = self.write_bytes = 0

    def hit(self, length: int) -> None:
        """Count bytes that were there."""
        self.hits += 1
        self.hit_bytes += length

    def miss(self, length: int) -> None:
        """Count bytes that had to be fetched."""
        self.misses += 1
        self.miss_bytes += length

    def write(self, length: int) -> None:
        """Count a block that was put there."""
        self.writes += 1
        self.write_bytes += length


REQUESTS: Histograms[int] = Histograms()
"""The kernel's requests by opcode, from the call of their handler to its answer."""

REQUEST_ERRORS: defaultdict[int, int] = defaultdict(int)
"""Requests that were answered with an error, by errno."""

READ_SIZES = Histogram(SIZE_BOUNDS_BYTES)
WRITE_SIZES = Histogram(SIZE_BOUNDS_BYTES)
"""Bytes of answered reads, and of accepted writes."""

META: Histograms[str | bytes | int] = Histograms()
"""Round trips to the metadata server, by command or digest of the script."""

OBJECTS: Histograms[str] = Histograms()
"""Requests to the object store by method, each attempt for itself."""

OBJECT_BYTES: defaultdict[str, int] = defaultdict(int)
OBJECT_ERRORS: defaultdict[str, int] = defaultdict(int)
"""Bytes of objects, and attempts that failed, by method."""

CACHE = CacheCounts()


Value: TypeAlias = int | float | Histogram


class Family(Record):
    """Numbers of one name; `samples` has them by the value of the label, or one under ""."""

    name: str
    kind: str
    """As Prometheus knows it: counter, gauge, histogram."""
    help: str
    samples: Mapping[str, Value] = field(default_factory=dict)
    label: str = ""


def one(name: str, kind: str, help_text: str, value: Value) -> Family:
    """Return a family of one number without a label."""
    return Family(name, kind, help_text, {"": value})


def counts(
    name: str, help_text: str, label: str, by: Mapping[Key, Value], shown: Callable[[Key], str]
) -> Family:
    """Return counters by what `shown` calls their keys."""
    named = {shown(key): by[key] for key in sorted(by, key=str)}
    return Family(name, "counter", help_text, named, label)


def prometheus_text(families: Iterable[Family], common: Mapping[str, str]) -> str:
    """Return the numbers in Prometheus' text format 0.0.4, each with the `common` labels."""
    shared = ",".join(f'{name}="{_escaped(value)}"' for name, value in common.items())
    lines: list[str] = []
    for family in families:
        lines += (f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}")
        for key, value in family.samples.items():
            labels = shared
            if family.label:
                own = f'{family.label}="{_escaped(key)}"'
                labels = f"{own},{shared}" if shared else own
            if isinstance(value, Histogram):
                lines += _histogram_lines(family.name, labels, value)
            else:
                lines.append(f"{family.name}{{{labels}}} {value!r}")
    return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    separator = "," if labels else ""
    seen = 0
    for bound, count in zip((*histogram.bounds, None), histogram.counts, strict=True):
        seen += count
        limit = "+Inf" if bound is None else f"{bound:.12g}"
        yield f'{name}_bucket{{{labels}{separator}le="{limit}"}} {seen}'
    yield f"{name}_sum{{{labels}}} {histogram.sum!r}"
    yield f"{name}_count{{{labels}}} {seen}"


def flat(families: Iterable[Family]) -> dict[str, int | float]:
    """Return the numbers by names as in the reference's `.stats`.

    The label's value is a part of the name; a histogram is its `_total` and its `_sum`.
    """
    numbers: dict[str, int | float] = {}
    for family in families:
        for key, value in family.samples.items():
            name = f"{family.name}_{key}" if family.label else family.name
            if isinstance(value, Histogram):
                numbers[f"{name}_total"], numbers[f"{name}_sum"] = value.count, value.sum
            else:
                numbers[name] = value
    return numbers


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
