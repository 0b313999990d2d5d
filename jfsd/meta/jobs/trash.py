"""Emptying the trash (format.md §10.2): hourly directories older than the volume keeps them.

Crash story: entries go one by one, each in one script, the hourly directory last. A SIGKILL leaves
a directory with fewer entries, which the next run finds.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from jfsd import clock
from jfsd.meta import codec
from jfsd.meta.jobs.slices import scan_hash
from jfsd.types import TRASH_INO, NodeType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jfsd.meta.engine import Engine
    from jfsd.types import Ino

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE: Final = 50
HOUR_FORMAT: Final = "%Y-%m-%d-%H"
GRACE_HOURS: Final = 2
MAX_DEPTH: Final = 1000


class TrashReaper:
    """Deletes what the trash holds. Files that `open_inos` names live on until their last close."""

    def __init__(self, engine: Engine, open_inos: Callable[[], Iterable[Ino]] = tuple) -> None:
        self._engine = engine
        self._open_inos = open_inos
        self._room = asyncio.Semaphore(ENTRIES_AT_ONCE)

    async def sweep(self, keep_days: int) -> int:
        """Empty hourly directories of more than `keep_days` ago; return their number."""
        edge_s = clock.now_ns() // 10**9 - (24 * keep_days + GRACE_HOURS) * 3600
        hours = await self._entries(TRASH_INO)
        emptied = 0
        for name, _, ino in sorted(hours, key=lambda hour: hour[2]):
            hour_s = parse_hour(name)
            if hour_s is None:
                continue
            if hour_s >= edge_s:
                break
            emptied += await self.remove_tree(TRASH_INO, name, ino)
        return emptied

    async def remove_tree(self, parent: Ino, name: bytes, ino: Ino, depth: int = 0) -> bool:
        """Delete a directory with all that is in it, for good; False if something resists."""
        if depth > MAX_DEPTH:
            return False
        try:
            async for page in scan_hash(self._engine, self._engine.keys.directory(ino)):
                async with asyncio.TaskGroup() as group:
                    for entry_name, value in page:
                        group.create_task(self._remove(ino, entry_name, value, depth))
            await self._engine.run("rmdir", "0", parent, name, 0, "")
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("directory %d stays in the trash: %s", ino, error)
            return False
        return True

    async def _remove(self, parent: Ino, name: bytes, value: bytes, depth: int) -> None:
        try:
            kind, ino = codec.decode_entry(value)
            if kind is NodeType.DIRECTORY:
                await self.remove_tree(parent, name, ino, depth + 1)
            else:
                async with self._room:
                    await self._unlink(parent, name)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("entry %r of directory %d stays: %s", name, parent, error)

    async def _unlink(self, parent: Ino, name: bytes) -> None:
        sid = self._engine.sid or ""
        is_open = "".join(f" {ino}" for ino in self._open_inos()) + " "
        ino, _, freed, _ = await self._engine.run(
            "unlink", "0", parent, name, 0, sid, "", is_open, ""
        )
        if freed and self._engine.freed is not None:
            self._engine.freed(int(ino), int(freed))

    async def _entries(self, ino: Ino) -> list[tuple[bytes, NodeType, Ino]]:
        entries = {}
        async for page in scan_hash(self._engine, self._engine.keys.directory(ino)):
            for name, value in page:
                entries[name] = codec.decode_entry(value)
        return [(name, kind, number) for name, (kind, number) in entries.items()]


def parse_hour(name: bytes) -> int | None:
    """Return the second at which an hourly directory's hour began; None if it is none."""
    try:
        return int(datetime.strptime(name.decode(), HOUR_FORMAT).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None
