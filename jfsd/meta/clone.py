"""Copies of files and trees that share their data with the original (format.md §9.17).

Crash story: a file's clone is there wholly or not at all. A directory's clone is built without an
entry, noted in `detachedNodes`, and gets its entry in the last step. A SIGKILL before that leaves
a tree that nobody can see; it counts as usage until the job of some client deletes it, a day later.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Final

from jfsd.meta import codec
from jfsd.meta.engine import fail
from jfsd.meta.names import TRASH_NAME, check_name
from jfsd.meta.scan import gather_all, scan_hash, scan_keys
from jfsd.types import ROOT_INO, TRASH_INO, Caller, NodeType

if TYPE_CHECKING:
    from jfsd.meta.client import Meta
    from jfsd.meta.jobs.trees import TreeReaper
    from jfsd.types import Ino

NODES_AT_ONCE: Final = 20
CHANGED: Final = -2


class Cloner:
    """Clones nodes. Whether the caller may read the source and write the target is not asked."""

    def __init__(self, meta: Meta, trees: TreeReaper) -> None:
        self._meta = meta
        self._trees = trees
        self._room = asyncio.Semaphore(NODES_AT_ONCE)

    async def clone(
        self, caller: Caller, source: Ino, parent: Ino, name: bytes, *, preserve: bool = False
    ) -> Ino:
        """Make `name` in `parent` a copy of a node and all below it; return its inode.

        With `preserve` owners, modes and times are the original's; else the caller's, those the
        umask leaves, and now. Entries that are added or removed in the source meanwhile may or may
        not be in the copy. Written data that is not committed is not.

        Raises:
            OSError: ENOENT, ENOTDIR, EEXIST, EPERM (trash, immutable), ENOSPC, EDQUOT, EROFS,
                ENAMETOOLONG, EINVAL. Nothing is left of an incomplete copy.
        """
        if max(source, parent) >= TRASH_INO or (parent == ROOT_INO and name == TRASH_NAME):
            fail(errno.EPERM)
        check_name(name)
        attr = await self._meta.getattr(source)
        umask = None if preserve else caller.umask
        ino = await self._meta.inodes.next()
        if attr.type is not NodeType.DIRECTORY:
            await self._clone_node(caller, source, ino, parent, name, umask, top=True)
            return ino
        if await self._is_below(parent, source):
            fail(errno.EINVAL)
        if await self._meta.connection.call("HEXISTS", self._meta.keys.directory(parent), name):
            fail(errno.EEXIST)
        await self._clone_node(caller, source, ino, parent, b"", umask, top=True)
        try:
            await self._clone_entries(caller._replace(op=0), source, ino, umask)
            await self._meta.mutate("clone_attach", caller, ino, parent, name)
        except BaseException:
            await asyncio.shield(self._trees.remove_detached(ino))
            raise
        return ino

    async def _clone_entries(
        self, caller: Caller, source: Ino, copy: Ino, umask: int | None
    ) -> None:
        directories = [(source, copy)]
        for below, new in directories:  # grows meanwhile
            async for page in scan_hash(self._meta, self._meta.keys.directory(below)):
                done = await gather_all(
                    self._clone_entry(caller, new, name, value, umask) for name, value in page
                )
                directories.extend(filter(None, done))

    async def _clone_entry(
        self, caller: Caller, parent: Ino, name: bytes, value: bytes, umask: int | None
    ) -> tuple[Ino, Ino] | None:
        """Clone one node of a tree; return (original, copy) of a directory."""
        kind, source = codec.decode_entry(value)
        async with self._room:
            new = await self._meta.inodes.next()
            try:
                await self._clone_node(caller, source, new, parent, name, umask, top=False)
            except (FileNotFoundError, FileExistsError):
                return None  # removed meanwhile, or listed twice
        return (source, new) if kind is NodeType.DIRECTORY else None

    async def _clone_node(
        self,
        caller: Caller,
        source: Ino,
        new: Ino,
        parent: Ino,
        name: bytes,
        umask: int | None,
        *,
        top: bool,
    ) -> None:
        seen: list[bytes] = [b""]
        while True:
            result = await self._meta.mutate(
                "clone_node",
                caller,
                source,
                new,
                parent,
                name,
                caller.uid,
                caller.gid,
                "" if umask is None else umask,
                int(top),
                *seen,
            )
            if result[0] != CHANGED:
                return
            record = await self._meta.connection.call("GET", self._meta.keys.attr(source))
            if record is None:
                fail(errno.ENOENT)
            seen = [record[23:35] + record[51:59], *await self._chunks(source)]

    async def _chunks(self, ino: Ino) -> list[bytes]:
        """Return the indexes of a file's chunk lists."""
        found: set[bytes] = set()
        async for page in scan_keys(self._meta, b"%sc%d_*" % (self._meta.keys.prefix, ino)):
            found.update(key.rpartition(b"_")[2] for key in page)
        return sorted(found)

    async def _is_below(self, ino: Ino, ancestor: Ino) -> bool:
        """Return True if a directory is another one or lies below it."""
        while ino != ancestor:
            if ino == ROOT_INO:
                return False
            attr = await self._meta.getattr(ino)
            if attr.parent in (0, ino):
                return False
            ino = attr.parent
        return True
