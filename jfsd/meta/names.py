"""Names: what is in a directory, and every operation that adds, removes or moves an entry."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from jfsd.meta import codec
from jfsd.meta.engine import Engine, fail
from jfsd.types import (
    MAX_NAME_BYTES,
    MAX_SYMLINK_BYTES,
    ROOT_INO,
    TRASH_INO,
    Attr,
    NodeType,
)

if TYPE_CHECKING:
    from jfsd.types import Caller, Ino

TRASH_NAME = b".trash"

READDIR_COUNT = 10000
ATTR_BATCH = 4096


def default_attr(ino: Ino) -> Attr | None:
    """Return what the root and the trash root look like when their record is missing (§9.1)."""
    if ino == ROOT_INO:
        return Attr(NodeType.DIRECTORY, 0o777, nlink=2, length=4096, parent=ROOT_INO)
    if ino == TRASH_INO:
        return Attr(NodeType.DIRECTORY, 0o555, nlink=2, length=4096, parent=ROOT_INO)
    return None


def check_name(name: bytes) -> None:
    """Raise unless `name` can be that of an entry (format.md §8.2).

    Raises:
        OSError: ENAMETOOLONG, EINVAL.
    """
    if len(name) > MAX_NAME_BYTES:
        fail(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        fail(errno.EINVAL)


class Names(Engine):
    """Operations on entries of directories."""

    async def lookup(self, parent: Ino, name: bytes) -> tuple[Ino, Attr]:
        """Return (inode, attributes) of a name; a missing record leaves its type and zeros.

        Raises:
            OSError: ENOENT, ENAMETOOLONG.
        """
        if len(name) > MAX_NAME_BYTES:
            fail(errno.ENAMETOOLONG)
        if parent == ROOT_INO and name == TRASH_NAME:
            return TRASH_INO, await self.getattr(TRASH_INO)
        result = await self.read("lookup", self.keys.directory(parent), self.keys.prefix, name)
        if not result:
            fail(errno.ENOENT)
        kind, ino = codec.decode_entry(result[0])
        if result[1]:
            return ino, codec.decode_attr(result[1])
        return ino, Attr(kind, 0, nlink=0)

    async def getattr(self, ino: Ino) -> Attr:
        """Return the attributes of a node.

        Raises:
            OSError: ENOENT, EIO.
        """
        record = await self.connection.call("GET", self.keys.attr(ino))
        if record is not None:
            return codec.decode_attr(record)
        attr = default_attr(ino)
        if attr is None:
            fail(errno.ENOENT)
        return attr

    async def mknod(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        kind: NodeType,
        mode: int,
        rdev: int = 0,
        target: bytes = b"",
    ) -> tuple[Ino, Attr]:
        """Create a file, directory, symlink or special file; exactly once per `caller.op`.

        Raises:
            NodeExistsError: EEXIST, with the node of that name.
            OSError: ENOENT, ENOTDIR, EPERM, EINVAL, ENAMETOOLONG, EDQUOT, ENOSPC, EROFS.
        """
        ino, attr, _ = await self._mknod(caller, parent, name, kind, mode, rdev, target)
        return ino, attr

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, *, excl: bool
    ) -> tuple[Ino, Attr, bool]:
        """Create a regular file, or, unless `excl`, find the one there is.

        Returns:
            (inode, attributes, whether it was created)

        Raises:
            NodeExistsError: EEXIST; the name is taken, by another type of node or with `excl`.
            OSError: As for `mknod`.
        """
        reuse = "" if excl else "reuse"
        return await self._mknod(caller, parent, name, NodeType.FILE, mode, reuse=reuse)

    async def tmpfile(self, caller: Caller, parent: Ino, mode: int) -> tuple[Ino, Attr]:
        """Create a regular file without a name, sustained by this session (O_TMPFILE).

        Raises:
            OSError: As for `mknod`; ENOTSUP without a session.
        """
        if not self.sid:
            fail(errno.ENOTSUP)
        ino, attr, _ = await self._mknod(
            caller, parent, b"tmpfile", NodeType.FILE, mode, sid=str(self.sid)
        )
        return ino, attr

    async def _mknod(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        kind: NodeType,
        mode: int,
        rdev: int = 0,
        target: bytes = b"",
        *,
        reuse: str = "",
        sid: str = "",
    ) -> tuple[Ino, Attr, bool]:
        self._refuse_trash(parent, name)
        self._check_new_name(name)
        if kind is NodeType.SYMLINK:
            _check_target(target)
        ino = await self.inodes.next()
        result = await self.mutate(
            "mknod",
            caller,
            str(parent),
            name,
            str(ino),
            str(int(kind)),
            str(mode & 0o7777),
            str(caller.umask & 0o777),
            str(caller.uid),
            str(caller.gid),
            str(rdev & 0xFFFFFFFF),
            target,
            reuse,
            sid,
        )
        return int(result[0]), codec.decode_attr(result[1]), bool(result[2])

    def _refuse_trash(self, parent: Ino, name: bytes) -> None:
        """Raise EPERM for a change in the trash, or of the trash itself."""
        if parent >= TRASH_INO or (parent == ROOT_INO and name == TRASH_NAME):
            fail(errno.EPERM)

    def _check_new_name(self, name: bytes) -> None:
        if self.read_only:
            fail(errno.EROFS)
        check_name(name)
        if name in (b".", b".."):
            fail(errno.EEXIST)


def _check_target(target: bytes) -> None:
    if not target or b"\0" in target:
        fail(errno.EINVAL)
    if len(target) > MAX_SYMLINK_BYTES:
        fail(errno.ENAMETOOLONG)
