"""What a server says of itself: its metrics under their names, and its configuration.

The names are those of the reference (prefix `juicefs_`) where they mean the same, and our
own (`jfsd_`) for the rest. Read by Prometheus, `jfsd stats`, and in `.stats`.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jfsd import __version__
from jfsd.clock import monotonic_s
from jfsd.config.volume import shown_bucket
from jfsd.fuse import methods
from jfsd.meta.scripts import SCRIPTS
from jfsd.metrics import (
    CACHE,
    META,
    OBJECT_BYTES,
    OBJECT_ERRORS,
    OBJECTS,
    READ_SIZES,
    REQUEST_ERRORS,
    REQUESTS,
    WRITE_SIZES,
    Family,
    Histogram,
    Histograms,
    counts,
    flat,
    one,
    prometheus_text,
)

if TYPE_CHECKING:
    from jfsd.config.settings import MountSettings
    from jfsd.config.volume import Volume
    from jfsd.daemon.datapath import DataPath
    from jfsd.daemon.state import State
    from jfsd.vfs.vfs import Vfs

_COUNTER, _GAUGE, _HISTOGRAM = "counter", "gauge", "histogram"
_STATM = Path("/proc/self/statm")
_NS = 1_000_000_000

RESENT = "resent"
"""Under which the requests that came again to former servers are in the state's totals."""


class Report:
    """The numbers of one served mount."""

    def __init__(
        self,
        volume: Volume,
        settings: Callable[[], MountSettings],
        state: State,
        vfs: Vfs,
        path: DataPath,
    ) -> None:
        """Begin to count; `settings` returns what the mount goes by at the moment."""
        self.volume = volume
        self.settings = settings
        self.state = state
        self.vfs = vfs
        self.path = path
        self.in_flight: Callable[[], int] = int
        """Requests that were read and are not answered."""
        self.resent: Callable[[], int] = int
        """Requests of an earlier process that came again to this one."""
        self.address: Callable[[], str] = str
        """Where the metrics are served; "" if nowhere."""
        self._started_s = monotonic_s()
        self._resent_before = state.header.totals.get(RESENT, 0)

    def prometheus(self) -> str:
        """Return all metrics in Prometheus' text format."""
        common = {"mp": self.state.header.mountpoint, "vol_name": self.volume.name}
        return prometheus_text(self.families(), common)

    def numbers(self) -> dict[str, int | float]:
        """Return all metrics by name."""
        return flat(self.families())

    def stats(self) -> str:
        """Return what `.stats` says: one `name value` a line."""
        return "".join(f"{name} {value}\n" for name, value in self.numbers().items())

    def families(self) -> Iterator[Family]:
        """Yield all metrics."""
        yield from self._process()
        yield from _requests()
        yield one("juicefs_fuse_open_handlers", _GAUGE, "Open files.", len(self.vfs.handles))
        yield one(
            "jfsd_fuse_in_flight", _GAUGE, "Requests read and not answered.", self.in_flight()
        )
        yield from self._meta()
        yield from _objects()
        yield from self._memory()
        yield from self._events()

    def config(self) -> str:
        """Return what `.config` says: JSON, without secrets."""
        settings, volume = self.settings(), self.volume
        shown: dict[str, Any] = {
            "Meta": {"Retries": settings.io_retries, "ReadOnly": settings.read_only},
            "Format": {**volume.public(), "Bucket": shown_bucket(volume.bucket)},
            "Chunk": {
                "CacheDir": ":".join(settings.cache_dirs),
                "CacheSize": settings.cache_size_bytes,
                "FreeSpace": settings.free_space_ratio,
                "BlockSize": volume.block_size_bytes,
                "Compress": volume.compression,
                "MaxUpload": settings.max_uploads,
                "MaxDownload": settings.max_downloads,
                "GetTimeout": int(settings.get_timeout_s * _NS),
                "PutTimeout": int(settings.put_timeout_s * _NS),
                "BufferSize": settings.buffer_size_bytes,
                "Readahead": settings.max_readahead_bytes,
                "Prefetch": settings.prefetch,
            },
            "Port": {"PrometheusAgent": self.address()},
            "Version": f"jfsd {__version__}",
            "AttrTimeout": int(settings.attr_cache_s * _NS),
            "EntryTimeout": int(settings.entry_cache_s * _NS),
            "DirEntryTimeout": int(settings.dir_entry_cache_s * _NS),
            "Mountpoint": self.state.header.mountpoint,
            "Subdir": settings.subdir,
            "Pid": os.getpid(),
            "Options": {**settings.as_texts(), "bucket": shown_bucket(settings.bucket)},
        }
        return json.dumps(shown, indent=2, ensure_ascii=False) + "\n"

    def _process(self) -> Iterator[Family]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = usage.ru_utime + usage.ru_stime
        yield one("juicefs_uptime", _GAUGE, "Seconds since start.", monotonic_s() - self._started_s)
        yield one("juicefs_cpu_usage", _COUNTER, "Seconds of CPU used.", cpu_s)
        yield one("juicefs_memory", _GAUGE, "Resident bytes.", resident_bytes())

    def _meta(self) -> Iterator[Family]:
        yield one(
            "juicefs_meta_ops_durations_histogram_seconds",
            _HISTOGRAM,
            "Round trips to the metadata server.",
            META.total(),
        )
        yield from _by_method(
            ("juicefs_meta_ops_total", "Round trips by command or script."),
            ("juicefs_meta_ops_duration_seconds", "Seconds of round trips."),
            META,
            self._meta_name,
        )
        yield one(
            "jfsd_meta_reconnects_total",
            _COUNTER,
            "Connections to the metadata server that replaced a broken one.",
            self.vfs.meta.connection.reconnects,
        )

    @staticmethod
    def _meta_name(key: str | bytes | int) -> str:
        if isinstance(key, bytes):
            return _script_names().get(key) or key.decode("ascii", "replace")
        return str(key)

    def _memory(self) -> Iterator[Family]:
        yield one(
            "juicefs_blockcache_bytes", _GAUGE, "Bytes cached.", self.path.blocks.cached_bytes
        )
        for name, text, value in (
            ("hits", "Reads of blocks that the cache answered.", CACHE.hits),
            ("hit_bytes", "Bytes that the cache gave.", CACHE.hit_bytes),
            ("miss", "Reads of blocks that the store answered.", CACHE.misses),
            ("miss_bytes", "Bytes asked of the store.", CACHE.miss_bytes),
            ("writes", "Blocks given to the cache.", CACHE.writes),
            ("write_bytes", "Bytes given to the cache.", CACHE.write_bytes),
        ):
            yield one(f"juicefs_blockcache_{name}", _COUNTER, text, value)
        budget = self.path.arena.budget
        for name, text, value in (
            (
                "juicefs_used_buffer_size_bytes",
                "Bytes in the write buffer and read ahead.",
                budget.charged + budget.lent,
            ),
            (
                "juicefs_used_read_buffer_size_bytes",
                "Of these, clean ones that can be dropped.",
                budget.lent,
            ),
            ("jfsd_buffer_size_bytes", "Limit of the buffer.", budget.limit),
            ("jfsd_dirty_bytes", "Memory of what is written and not yet stored.", budget.charged),
        ):
            yield one(name, _GAUGE, text, value)

    def _events(self) -> Iterator[Family]:
        header = self.state.header
        totals = header.totals
        kinds = {kind: n for kind, n in sorted(totals.items()) if kind != RESENT}
        resent = self._resent_before + self.resent()
        yield Family(
            "jfsd_starts_total",
            _COUNTER,
            "Servers of the mount by how they came to be, since it was made.",
            kinds,
            "kind",
        )
        yield one(
            "jfsd_resent_requests_total",
            _COUNTER,
            "Requests that came again after a server had left or died, since the mount was made.",
            resent,
        )
        yield one("jfsd_generation", _GAUGE, "Number of this server.", header.generation)
        event = header.events[-1] if header.events else {}
        phases = {k: v / 1000 for k, v in event.items() if isinstance(v, float) and k != "at"}
        yield Family(
            "jfsd_last_start_seconds", _GAUGE, "Phases of the last start.", phases, "phase"
        )


def resident_bytes() -> int:
    """Return the memory of this process; 0 if nobody says."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def _requests() -> Iterator[Family]:
    yield one(
        "juicefs_fuse_ops_durations_histogram_seconds",
        _HISTOGRAM,
        "Requests of the kernel.",
        REQUESTS.total(),
    )
    yield from _by_method(
        ("juicefs_fuse_ops_total", "Requests by method."),
        ("juicefs_fuse_ops_durations_seconds", "Seconds of requests by method."),
        REQUESTS,
        methods.name_of,
    )
    yield Family(
        "jfsd_fuse_request_seconds",
        _HISTOGRAM,
        "Requests by method.",
        _named(REQUESTS, methods.name_of),
        "method",
    )
    yield counts(
        "jfsd_fuse_errors_total",
        "Requests answered with an error.",
        "errno",
        REQUEST_ERRORS,
        methods.error_name,
    )
    for name, sizes in (("read", READ_SIZES), ("written", WRITE_SIZES)):
        yield one(f"juicefs_fuse_{name}_size_bytes", _HISTOGRAM, f"Bytes {name}.", sizes)


def _objects() -> Iterator[Family]:
    yield Family(
        "juicefs_object_request_durations_histogram_seconds",
        _HISTOGRAM,
        "Requests to the object store.",
        _named(OBJECTS, str),
        "method",
    )
    yield one(
        "juicefs_object_request_errors",
        _COUNTER,
        "Requests that failed.",
        sum(OBJECT_ERRORS.values()),
    )
    yield counts("jfsd_object_errors_total", "Requests that failed.", "method", OBJECT_ERRORS, str)
    yield counts(
        "juicefs_object_request_data_bytes", "Bytes of objects.", "method", OBJECT_BYTES, str
    )


@cache
def _script_names() -> dict[bytes, str]:
    """Return the names of scripts by their digests."""
    return {script.digest: name for name, script in SCRIPTS.items()}


def _named(by: Histograms[Any], shown: Callable[[Any], str]) -> dict[str, Histogram]:
    """Return histograms by the name of their key; two keys of one name are added up."""
    named: dict[str, Histogram] = {}
    for key in sorted(by, key=str):
        found = named.get(shown(key))
        named[shown(key)] = by[key] if found is None else _sum(found, by[key])
    return named


def _sum(one_of: Histogram, other: Histogram) -> Histogram:
    both = Histograms[int]({0: one_of, 1: other})
    return both.total()


def _by_method(
    total: tuple[str, str],
    seconds: tuple[str, str],
    by: Histograms[Any],
    shown: Callable[[Any], str],
) -> Iterator[Family]:
    """Yield how often and how long, by method."""
    named = _named(by, shown)
    for (name, text), values in (
        (total, {key: each.count for key, each in named.items()}),
        (seconds, {key: each.sum for key, each in named.items()}),
    ):
        yield Family(name, _COUNTER, text, values, "method")
