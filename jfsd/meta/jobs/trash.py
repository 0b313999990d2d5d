"""Emptying the trash (format.md §10.2): hourly directories older than the volume keeps them.

Crash story: a SIGKILL leaves an hourly directory with fewer entries, which the next run finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from jfsd import clock
from jfsd.meta import codec
from jfsd.meta.scan import scan_hash
from jfsd.types import TRASH_INO

if TYPE_CHECKING:
    from jfsd.meta.engine import Engine
    from jfsd.meta.jobs.trees import TreeReaper
    from jfsd.types import Ino

HOUR_FORMAT: Final = "%Y-%m-%d-%H"
GRACE_HOURS: Final = 2


class TrashReaper:
    """Deletes what has been in the trash for longer than the volume keeps it."""

    def __init__(self, engine: Engine, trees: TreeReaper) -> None:
        self._engine = engine
        self._trees = trees

    async def sweep(self, keep_days: int) -> int:
        """Remove hourly directories of more than `keep_days` ago; return how many are gone."""
        edge_s = clock.now_ns() // 10**9 - (24 * keep_days + GRACE_HOURS) * 3600
        hours: dict[Ino, bytes] = {}
        async for page in scan_hash(self._engine, self._engine.keys.directory(TRASH_INO)):
            hours.update((codec.decode_entry(value)[1], name) for name, value in page)
        gone = 0
        for ino, name in sorted(hours.items()):
            hour_s = parse_hour(name)
            if hour_s is None:
                continue
            if hour_s >= edge_s:
                break
            gone += await self._trees.remove(TRASH_INO, name, ino)
        return gone


def parse_hour(name: bytes) -> int | None:
    """Return the second at which an hourly directory's hour began; None if it is none."""
    from datetime import UTC, datetime  # noqa: PLC0415 - a start has no use for it

    try:
        return int(datetime.strptime(name.decode(), HOUR_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None
