"""Names: what is in a directory, and every operation that adds, removes or moves an entry."""

from __future__ import annotations

import asyncio
import errno
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

from jfsd import clock
from jfsd.meta import codec
from jfsd.meta.engine import ASK_OPEN, ASK_TREES, Engine, fail
from jfsd.types import (
    MAX_NAME_BYTES,
    MAX_SYMLINK_BYTES,
    ROOT_INO,
    TRASH_INO,
    Attr,
    Entry,
    NodeType,
    a4k,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

    from jfsd.meta.wire import Argument, Reply
    from jfsd.types import Caller, Ino

TRASH_NAME = b".trash"

READDIR_COUNT = 10000
ATTR_BATCH = 4096
OPEN_LISTED = 64
"""So many open inodes travel with an unlink; of more the script asks if it needs to know."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
RENAME_RESTORE = 32
"""Internal flag, with NOREPLACE: the target may lie in the trash's parents (format.md §1)."""


class UnlinkResult(NamedTuple):
    """What became of an unlinked node.

    `attr` is its record afterwards, or the last one before it was deleted. `freed` is (inode,
    length) if its data may go; `sustained` says that it stays until `release_sustained`.
    """

    ino: Ino
    attr: Attr | None
    freed: tuple[Ino, int] | None
    sustained: bool


class RenameResult(NamedTuple):
    """What moved, and what became of the node that was in its place."""

    ino: Ino
    replaced: Ino | None
    freed: tuple[Ino, int] | None
    sustained: bool


if TYPE_CHECKING:
    _Ask = Callable[[str, str], Awaitable[list[Reply]]]


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
        self, caller: Caller, parent: Ino, name: bytes, mode: int, excl: bool
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
        ino = self.inodes.take() or await self.inodes.next()
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
        self._tell_touched(result[3:], parent)
        return int(result[0]), codec.decode_attr(result[1]), bool(result[2])

    async def unlink(
        self, caller: Caller, parent: Ino, name: bytes, opened: Collection[Ino] = ()
    ) -> UnlinkResult:
        """Remove a name of anything but a directory; files in `opened` outlive their last one.

        Raises:
            OSError: ENOENT, ENOTDIR, EPERM (directory, flags, trash), EACCES (sticky), EROFS.
        """
        self._check_removal(caller, parent, name)

        async def ask(listed: str, ino: str) -> list[Reply]:
            return await self.mutate(
                "unlink",
                caller,
                str(parent),
                name,
                str(caller.uid),
                str(self.sid or ""),
                self._trash_hour(parent),
                listed,
                ino,
            )

        result = await self._until_told(ask, opened)
        self._tell_touched(result[4:], parent)
        ino, record = int(result[0]), result[1]
        attr = codec.decode_attr(record) if record else None
        return UnlinkResult(ino, attr, self._freed(ino, result[2]), bool(result[3]))

    async def rmdir(
        self, caller: Caller, parent: Ino, name: bytes, *, emptying_trash: bool = False
    ) -> tuple[Ino, Attr | None]:
        """Remove an empty directory; with `emptying_trash` also an hourly one.

        Returns:
            (inode, attributes that it had; None if its record was missing)

        Raises:
            OSError: ENOENT, ENOTDIR, EPERM (flags, trash), ENOTEMPTY, EACCES (sticky), EINVAL.
        """
        if name == b".":
            fail(errno.EINVAL)
        if name == b"..":
            fail(errno.ENOTEMPTY)
        if parent == TRASH_INO and not emptying_trash:
            fail(errno.EPERM)
        self._check_removal(caller, parent, name)
        ino, *record = await self.mutate(
            "rmdir", caller, str(parent), name, str(caller.uid), self._trash_hour(parent)
        )
        self._tell_touched(record[1:], parent)
        return int(ino), codec.decode_attr(record[0]) if record and record[0] else None

    async def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int = 0,
        opened: Collection[Ino] = (),
    ) -> RenameResult:
        """Move or exchange entries; exactly once per `caller.op`, also an exchange.

        Raises:
            OSError: ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EPERM, EACCES, EINVAL (flags,
                or a directory into itself), ENOTSUP (WHITEOUT), EDQUOT, ENAMETOOLONG, EROFS.
        """
        for side, text in ((parent, name), (new_parent, new_name)):
            if side == ROOT_INO and text == TRASH_NAME:
                fail(errno.EPERM)
        if new_parent >= TRASH_INO or (parent >= TRASH_INO and caller.uid):
            fail(errno.EPERM)
        self._check_new_name(new_name)
        if flags & ~RENAME_NOREPLACE == RENAME_WHITEOUT:
            fail(errno.ENOTSUP)
        restore = RENAME_NOREPLACE | RENAME_RESTORE
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE, restore):
            fail(errno.EINVAL)
        sizes: list[Argument] = [b""] * 6

        async def ask(listed: str, ino: str) -> list[Reply]:
            return await self.mutate(
                "rename",
                caller,
                str(parent),
                name,
                str(new_parent),
                new_name,
                str(flags),
                str(caller.uid),
                str(self.sid or ""),
                self._trash_hour(new_parent),
                listed,
                ino,
                *sizes,
            )

        while (result := await self._until_told(ask, opened))[0] == ASK_TREES:
            sizes = [*await self._tree_size(result[1]), *await self._tree_size(result[2])]
        self._tell_touched(
            result[4:], *((new_parent,) if parent == new_parent else (new_parent, parent))
        )
        replaced = int(result[1]) if result[1] else None
        freed = self._freed(replaced, result[2]) if replaced is not None else None
        return RenameResult(int(result[0]), replaced, freed, bool(result[3]))

    async def link(self, caller: Caller, ino: Ino, parent: Ino, name: bytes) -> Attr:
        """Add a name to a file, or give one to a file of `tmpfile`.

        Raises:
            OSError: ENOENT, ENOTDIR, EEXIST, EPERM (directory, flags, trash), EDQUOT, EROFS.
        """
        self._refuse_trash(parent, name)
        self._check_new_name(name)
        result = await self.mutate("link", caller, str(ino), str(parent), name, str(self.sid or ""))
        self._tell_touched(result[1:], parent)
        return codec.decode_attr(result[0])

    async def release_sustained(self, ino: Ino) -> None:
        """Delete a file that was unlinked while open; its last handle is closed."""
        result = await self.mutate("release", None, str(ino), str(self.sid))
        self._freed(ino, result[0])

    async def sustained_inos(self) -> set[Ino]:
        """Return the files that live on without a name because our session has them open."""
        members = await self.connection.call("SMEMBERS", self.keys.sustained(self.sid))
        return {int(member) for member in members}

    async def trash_links(self, ino: Ino) -> int:
        """Return how many of a file's links lie in the trash."""
        links = await self.connection.call("HGETALL", self.keys.parents(ino))
        pairs = zip(links[::2], links[1::2], strict=True)
        return sum(max(int(n), 0) for parent, n in pairs if int(parent) >= TRASH_INO)

    async def _until_told(self, ask: _Ask, opened: Collection[Ino]) -> list[Reply]:
        """Run a removal, which may need to know whether a certain inode is open here."""
        if len(opened) <= OPEN_LISTED:
            return await ask(_listed(opened), "")
        result = await ask("?", "")
        while result[0] == ASK_OPEN:
            ino = int(result[1])
            result = await ask(_listed([ino] if ino in opened else []), str(ino))
        return result

    def _tell_touched(self, records: list[Reply], *directories: Ino) -> None:
        """Pass on what directories look like now; a repeated script does not tell it."""
        if self.touched is not None:
            for directory, record in itertools.zip_longest(directories, records):
                self.touched(directory, record)

    def _freed(self, ino: Ino, length: bytes) -> tuple[Ino, int] | None:
        """Pass on that a file's data may be deleted."""
        if not length:
            return None
        if self.freed is not None:
            self.freed(ino, int(length))
        return ino, int(length)

    async def _tree_size(self, ino: bytes) -> list[Argument]:
        """Return a directory's inode, and bytes and inodes of its tree, itself included."""
        if not ino:
            return [b"", b"", b""]
        used = await self._quota_usage(int(ino)) or await self._walk(int(ino))
        return [ino, str(used[0] + 4096), str(used[1] + 1)]

    async def _quota_usage(self, ino: Ino) -> tuple[int, int] | None:
        """Return what a directory's own quota says of its tree; None if it has none."""
        space, inodes = await asyncio.gather(
            self.connection.call("HGET", self.keys.dir_quota_used_space, str(ino)),
            self.connection.call("HGET", self.keys.dir_quota_used_inodes, str(ino)),
        )
        return None if inodes is None else (int(space or 0), int(inodes))

    async def _walk(self, top: Ino) -> tuple[int, int]:
        """Return bytes and inodes of everything below a directory."""
        space, inodes, ahead = 0, 0, [top]
        while ahead:
            async for batch in self.readdir(ahead.pop(), plus=True):
                for entry in batch:
                    is_file = entry.type is NodeType.FILE and entry.attr is not None
                    space += a4k(entry.attr.length) if is_file and entry.attr else 4096
                    inodes += 1
                    if entry.type is NodeType.DIRECTORY:
                        ahead.append(entry.ino)
        return space, inodes

    # ---- listings

    async def readdir(self, ino: Ino, plus: bool = False) -> AsyncIterator[list[Entry]]:
        """Yield the entries of a directory in batches, each name once, in no order.

        With `plus` they have attributes; a record that is missing leaves None. Names that are
        added or removed meanwhile may or may not be there; all others are.
        """
        key, cursor, seen = self.keys.directory(ino), b"0", set[bytes]()
        while True:
            cursor, pairs = await self.connection.call("HSCAN", key, cursor, "COUNT", READDIR_COUNT)
            batch = []
            for name, value in zip(pairs[::2], pairs[1::2], strict=True):
                if name and name not in seen:
                    kind, child = codec.decode_entry(value)
                    batch.append(Entry(name, child, kind, None))
            if cursor != b"0" or seen:
                seen.update(entry.name for entry in batch)
            if plus:
                attrs = await self.getattrs([entry.ino for entry in batch])
                batch = [e._replace(attr=a) for e, a in zip(batch, attrs, strict=True)]
            if batch:
                yield batch
            if cursor == b"0":
                return

    async def scan(self, ino: Ino) -> AsyncIterator[list[bytes]]:
        """Yield names and raw entries of a directory in turn; a name may come twice.

        What is added or removed meanwhile may or may not be there; all else is.
        """
        key, cursor = self.keys.directory(ino), b"0"
        while True:
            cursor, pairs = await self.connection.call("HSCAN", key, cursor, "COUNT", READDIR_COUNT)
            yield pairs
            if cursor == b"0":
                return

    async def records(self, inos: Sequence[Ino]) -> list[bytes | None]:
        """Return the raw attribute records of many nodes; None where one is missing."""
        result: list[bytes | None] = []
        for start in range(0, len(inos), ATTR_BATCH):
            keys = self.keys.attrs(inos[start : start + ATTR_BATCH])
            result += await self.connection.call("MGET", *keys)
        return result

    async def getattrs(self, inos: Sequence[Ino]) -> list[Attr | None]:
        """Return attributes of many nodes; None where the record is missing."""
        records = await self.records(inos)
        return [codec.decode_attr(r) if r is not None else None for r in records]

    async def readlink(self, ino: Ino) -> bytes:
        """Return the target of a symlink; it never changes.

        Raises:
            OSError: ENOENT, EINVAL (no symlink), EIO.
        """
        target: bytes | None = await self.connection.call("GET", self.keys.symlink(ino))
        if target is None:
            attr = await self.getattr(ino)
            fail(errno.EIO if attr.type is NodeType.SYMLINK else errno.EINVAL)
        return target

    # ---- preconditions

    def _trash_hour(self, parent: Ino) -> str:
        """Return the name of the trash directory for what is removed now; '' for none."""
        if self.trash_days <= 0 or parent >= TRASH_INO:
            return ""
        return time.strftime("%Y-%m-%d-%H", time.gmtime(clock.now_ns() // 1_000_000_000))

    def _check_removal(self, caller: Caller, parent: Ino, name: bytes) -> None:
        if parent == ROOT_INO and name == TRASH_NAME:
            fail(errno.EPERM)
        if parent >= TRASH_INO and caller.uid:
            fail(errno.EPERM)
        if self.read_only:
            fail(errno.EROFS)
        check_name(name)

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


def _listed(inos: Collection[Ino]) -> str:
    return f" {' '.join(map(str, inos))} " if inos else ""
