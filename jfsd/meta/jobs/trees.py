"""Deleting directory trees for good, past the trash.

Crash story: entries go one by one, each in one script, the directory itself last. A SIGKILL leaves
a tree with fewer entries, still linked or noted where it was, so it is found again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from jfsd.meta import codec
from jfsd.meta.engine import FencedError
from jfsd.meta.scan import gather_all, scan_hash
from jfsd.types import NodeType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    from jfsd.meta.engine import Engine
    from jfsd.types import Ino

log = logging.getLogger(__name__)

ENTRIES_AT_ONCE: Final = 50
ASK_OPEN: Final = -2


class TreeReaper:
    """Deletes trees. Files in `open_inos()` live on, sustained, until their last close.

    `open_inos` may be replaced: it says what is open in this mount at that moment.
    """

    def __init__(self, engine: Engine, open_inos: Callable[[], Container[Ino]] = tuple) -> None:
        self._engine = engine
        self.open_inos = open_inos
        self._room = asyncio.Semaphore(ENTRIES_AT_ONCE)

    async def remove(self, parent: Ino, name: bytes, ino: Ino) -> bool:
        """Delete a directory with all that is in it; False if something resists."""
        await self.empty(ino)
        return await self._quietly(f"directory {ino}", self._rmdir(parent, name))

    async def remove_detached(self, ino: Ino) -> bool:
        """Delete a directory that has no entry, a clone half made; False if something resists."""
        await self.empty(ino)
        return await self._quietly(
            f"detached directory {ino}", self._engine.run("remove_detached", "0", ino)
        )

    async def empty(self, ino: Ino) -> None:
        """Delete all that is in a directory, but what resists; that is logged."""
        directories: list[tuple[Ino, bytes, Ino]] = []
        await self._empty_one(ino, directories)
        for _, _, below in directories:  # grows meanwhile
            await self._empty_one(below, directories)
        for parent, name, below in reversed(directories):
            await self._quietly(f"directory {below}", self._rmdir(parent, name))

    async def _empty_one(self, ino: Ino, directories: list[tuple[Ino, bytes, Ino]]) -> None:
        """Delete a directory's entries but directories, which are added to the list."""
        async for page in scan_hash(self._engine, self._engine.keys.directory(ino)):
            files = []
            for name, value in page:
                kind, child = codec.decode_entry(value)
                if kind is NodeType.DIRECTORY:
                    directories.append((ino, name, child))
                else:
                    files.append((name, child))
            await gather_all(self._remove_entry(ino, *file) for file in files)

    async def _remove_entry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        async with self._room:
            await self._quietly(f"inode {ino}", self._unlink(parent, name, ino))

    async def _quietly(self, what: str, work: Awaitable[object]) -> bool:
        """Return False, logged, if `work` fails; True also if it was done already."""
        try:
            await work
        except FileNotFoundError:
            return True
        except FencedError:
            raise
        except OSError as error:
            log.warning("%s stays: %s", what, error)
            return False
        return True

    async def _rmdir(self, parent: Ino, name: bytes) -> None:
        await self._engine.run("rmdir", "0", parent, name, 0, "")

    async def _unlink(self, parent: Ino, name: bytes, expected: Ino) -> None:
        """Delete one entry; the script asks if it finds another file than expected."""
        engine, inode = self._engine, expected
        while True:
            opened = f" {inode} " if inode in self.open_inos() else " "
            result = await engine.run(
                "unlink", "0", parent, name, 0, engine.sid or "", "", opened, inode
            )
            if result[0] != ASK_OPEN:
                break
            inode = int(result[1])
        ino, _, freed, *_ = result
        if freed and engine.freed is not None:
            engine.freed(int(ino), int(freed))
