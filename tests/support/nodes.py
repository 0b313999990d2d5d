"""A small volume in a database, its client, and what is in the database, for tests of metadata."""

from __future__ import annotations

import contextlib
import errno
import itertools
from typing import TYPE_CHECKING

from support.audit import Reading, changes, problems, reading
from support.engines import bare_volume, open_meta

from jfsd.meta import codec
from jfsd.meta.format import store_volume
from jfsd.types import ROOT_INO, Attr, Caller, NodeType, Slice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    import redis

    from jfsd.meta.client import Meta

ROOT = Caller(0, 0)
USER = Caller(1000, 1000)
OTHER = Caller(2000, 2000)


class Nodes:
    """A volume with one client. `meta` is what is tested, `client` sees what it did."""

    def __init__(self, meta: Meta, client: redis.Redis, url: str) -> None:
        self.meta = meta
        self.client = client
        self.url = url
        self._ops = itertools.count(2, 2)
        self._slices = itertools.count(1)
        self._before: Reading = {}

    def op(self, caller: Caller = ROOT) -> Caller:
        """The caller of a new request."""
        return caller._replace(op=next(self._ops))

    async def make(
        self,
        parent: int,
        name: bytes,
        kind: NodeType = NodeType.FILE,
        mode: int = 0o644,
        caller: Caller = ROOT,
        length: int = 0,
    ) -> int:
        """Create a node; return its inode."""
        target = b"target" if kind is NodeType.SYMLINK else b""
        ino, _ = await self.meta.mknod(self.op(caller), parent, name, kind, mode, 0, target)
        if length:
            await self.meta.truncate(ROOT, ino, length, through_handle=False)
        return ino

    async def mkdir(
        self, parent: int, name: bytes, mode: int = 0o755, caller: Caller = ROOT
    ) -> int:
        """Create a directory; return its inode."""
        return await self.make(parent, name, NodeType.DIRECTORY, mode, caller)

    def slice(self, pos: int, length: int) -> Slice:
        """A new slice that covers a range of a chunk."""
        return Slice(pos, next(self._slices), length, 0, length)

    def attr(self, ino: int) -> Attr:
        """The attributes in the database."""
        return codec.decode_attr(self.client.get(f"i{ino}"))

    def patch(self, ino: int, **fields: object) -> None:
        """Change a record behind the client's back."""
        attr = self.attr(ino)
        for name, value in fields.items():
            setattr(attr, name, value)
        self.client.set(f"i{ino}", codec.encode_attr(attr))

    def mark(self) -> None:
        """Remember the database for `changed`."""
        self._before = reading(self.client)

    def changed(self) -> dict[bytes, object]:
        """What differs from the `mark`."""
        return changes(self._before, reading(self.client))

    def check(self) -> None:
        """Fail if a count is wrong."""
        assert problems(self.client) == []


@contextlib.asynccontextmanager
async def open_nodes(
    url: str, client: redis.Redis, *, sid: int = 7, **volume: object
) -> AsyncIterator[Nodes]:
    """A fresh volume; `volume` are fields of its setting."""
    fields = {"trash_days": 0, "dir_stats": True, **volume}
    async with open_meta(url) as meta:
        await store_volume(meta.connection, bare_volume(**fields), b"")
        meta.apply(bare_volume(**fields))
        meta.sid = sid
        client.hset("dirUsedSpace", str(ROOT_INO), 0)
        client.hset("dirUsedInodes", str(ROOT_INO), 0)
        client.hset("dirDataLength", str(ROOT_INO), 0)
        yield Nodes(meta, client, url)


async def code(awaitable: Awaitable[object]) -> str:
    """Return the name of the errno with which a call fails, or 'OK'."""
    try:
        await awaitable
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "OK"
