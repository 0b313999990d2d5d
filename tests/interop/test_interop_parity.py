"""The same calls by the reference and by us, each on a database of its own: no difference."""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
import time
from typing import Any

import pytest
from support.audit import problems, reading
from support.engines import open_meta
from support.nodes import ROOT

from jfsd.meta import codec
from jfsd.types import CHUNK_SIZE, TRASH_INO, Caller, NodeType, Slice

LIBC = ctypes.CDLL(None, use_errno=True)
STATISTICS = (b"dirUsedSpace", b"dirUsedInodes", b"dirDataLength")


class Reference:
    """Does calls as root on a mount."""

    def __init__(self, root: str) -> None:
        self.root = root

    def _(self, path: str) -> str:
        return f"{self.root}/{path}"

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self._(path))
        os.chmod(self._(path), mode)

    async def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        os.mknod(self._(path), mode, rdev)

    async def symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._(path))

    async def unlink(self, path: str) -> None:
        os.unlink(self._(path))

    async def rmdir(self, path: str) -> None:
        os.rmdir(self._(path))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        result = LIBC.renameat2(-100, self._(old).encode(), -100, self._(new).encode(), flags)
        if result:
            raise OSError(ctypes.get_errno(), old)

    async def link(self, old: str, new: str) -> None:
        os.link(self._(old), self._(new))

    async def truncate(self, path: str, length: int) -> None:
        os.truncate(self._(path), length)

    async def fallocate(self, path: str, mode: int, off: int, size: int) -> None:
        fd = os.open(self._(path), os.O_WRONLY)
        try:
            call = LIBC.fallocate
            call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
            assert call(fd, mode, off, size) == 0
        finally:
            os.close(fd)

    async def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._(path), uid, gid, follow_symlinks=False)

    async def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._(path), mode)

    async def write(self, path: str, off: int, size: int) -> None:
        fd = os.open(self._(path), os.O_WRONLY)
        try:
            assert os.pwrite(fd, b"x" * size, off) == size
        finally:
            os.close(fd)

    async def copy(self, src: str, off: int, dst: str, to: int, size: int) -> None:
        one, two = os.open(self._(src), os.O_RDONLY), os.open(self._(dst), os.O_WRONLY)
        try:
            assert os.copy_file_range(one, two, size, off, to) == size
        finally:
            os.close(one)
            os.close(two)


class Ours:
    """Does the same calls on a `Meta`."""

    def __init__(self, meta) -> None:
        self.meta = meta

    async def at(self, path: str) -> tuple[int, bytes]:
        *folders, name = path.split("/")
        parent = 1
        for folder in folders:
            parent, _ = await self.meta.lookup(parent, folder.encode())
        return parent, name.encode()

    async def ino(self, path: str) -> int:
        return (await self.meta.lookup(*await self.at(path)))[0]

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        await self.meta.mknod(ROOT, *await self.at(path), NodeType.DIRECTORY, 0o755)
        await self.chmod(path, mode)

    async def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        kinds = {stat.S_IFREG: 1, stat.S_IFIFO: 4, stat.S_IFBLK: 5, stat.S_IFCHR: 6}
        kind = NodeType(kinds[stat.S_IFMT(mode)])
        await self.meta.mknod(
            Caller(0, 0, umask=0o22), *await self.at(path), kind, mode & 0o7777, rdev
        )

    async def symlink(self, path: str, target: str) -> None:
        await self.meta.mknod(
            ROOT, *await self.at(path), NodeType.SYMLINK, 0o777, 0, target.encode()
        )

    async def unlink(self, path: str) -> None:
        await self.meta.unlink(ROOT, *await self.at(path))

    async def rmdir(self, path: str) -> None:
        await self.meta.rmdir(ROOT, *await self.at(path))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        await self.meta.rename(ROOT, *await self.at(old), *await self.at(new), flags)

    async def link(self, old: str, new: str) -> None:
        await self.meta.link(ROOT, await self.ino(old), *await self.at(new))

    async def truncate(self, path: str, length: int) -> None:
        await self.meta.truncate(ROOT, await self.ino(path), length, through_handle=False)

    async def fallocate(self, path: str, mode: int, off: int, size: int) -> None:
        await self.meta.fallocate(ROOT, await self.ino(path), mode, off, size)

    async def chown(self, path: str, uid: int, gid: int) -> None:
        await self.meta.setattr(ROOT, await self.ino(path), uid=uid, gid=gid)

    async def chmod(self, path: str, mode: int) -> None:
        await self.meta.setattr(ROOT, await self.ino(path), mode=mode)

    async def write(self, path: str, off: int, size: int) -> None:
        index, pos = divmod(off, CHUNK_SIZE)
        record = Slice(pos, await self.meta.new_slice_id(), size, 0, size)
        await self.meta.commit_slice(await self.ino(path), index, record, time.time_ns())

    async def copy(self, src: str, off: int, dst: str, to: int, size: int) -> None:
        done = await self.meta.copy_file_range(
            ROOT, await self.ino(src), off, await self.ino(dst), to, size
        )
        assert done[0] == size


async def work(on: Reference | Ours) -> None:
    """Every kind of change, in an order that both sides number alike."""
    for name in ("a", "b", "c", "q"):
        await on.mkdir(name)
    await on.mkdir("a/s", 0o2775)
    await on.chown("a/s", 5, 6)
    await on.chmod("a/s", 0o2775)
    await on.mkdir("a/s/below")
    await on.mknod("a/f", stat.S_IFREG | 0o666)
    await on.mknod("a/fifo", stat.S_IFIFO | 0o600)
    await on.mknod("a/dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    await on.symlink("a/l", "somewhere/else")
    await on.write("a/f", 0, 150000)
    await on.truncate("a/f", 100000)
    await on.truncate("a/f", 200000000)
    await on.mknod("a/g", stat.S_IFREG | 0o640)
    await on.write("a/g", 5, 10)
    await on.fallocate("a/g", 0, 0, 300000)
    await on.fallocate("a/g", 3, CHUNK_SIZE - 5, CHUNK_SIZE)
    await on.fallocate("a/g", 16, 4096, 8192)
    await on.write("a/g", CHUNK_SIZE - 4096, 4096)
    await on.copy("a/f", 0, "a/g", 1 << 20, 120000)
    await on.chown("a/g", 1000, 1000)
    await on.chmod("a/g", 0o6711)
    await on.chown("a/g", 1001, 1000)
    await on.mknod("b/h1", stat.S_IFREG | 0o644)
    await on.write("b/h1", 0, 5000)
    await on.link("b/h1", "c/h2")
    await on.link("b/h1", "c/h4")
    await on.rename("c/h2", "h3")
    await on.write("h3", 5000, 5000)
    await on.unlink("b/h1")
    await on.mkdir("b/sub")
    await on.mknod("b/sub/x", stat.S_IFREG | 0o600)
    await on.write("b/sub/x", 0, 70000)
    await on.rename("b/sub", "q/moved")
    await on.mknod("b/y", stat.S_IFREG | 0o600)
    await on.rename("b/y", "q/moved/x")
    await on.write("q/moved/x", 0, 4097)
    await on.mkdir("b/empty")
    await on.mkdir("b/full")
    await on.rename("b/full", "b/empty")
    await on.mknod("b/z", stat.S_IFREG | 0o600)
    await on.rename("b/z", "q/moved", 2)
    await on.rename("a/l", "a/fifo", 2)
    await on.rename("a/dev", "c/dev", 1)
    await on.unlink("a/l")
    await on.unlink("c/dev")
    await on.rmdir("b/empty")
    await on.unlink("h3")
    await on.unlink("c/h4")
    await on.unlink("a/g")
    await on.rmdir("a/s/below")


SKIPPED = (b"delfiles", b"sliceRef", b"allSessions", b"session", b"last", b"acl", b"locked")


class Plain:
    """A database without times, sessions and what background jobs take away.

    Slices are renumbered, as the reference skips ids. It leaves statistics of a directory that
    a rename replaced (format.md, Appendix E 3); we do not.
    """

    def __init__(self, client) -> None:
        self.found = reading(client)
        self.attrs = {
            key[1:]: codec.decode_attr(value)
            for key, value in self.found.items()
            if key[:1] == b"i"
        }
        self.numbers = {0: 0}
        assert len(self.found.get(b"d%d" % TRASH_INO, {})) <= 1, "the hour has changed"

    def keys(self) -> dict[bytes, object]:
        """Every key with a value that can be compared."""
        values = {
            key: self.value(key, value)
            for key, value in sorted(self.found.items())
            if not key.startswith(SKIPPED)
        }
        return {key: value for key, value in values.items() if value is not None}

    def value(self, key: bytes, value: Any) -> object:
        if key in STATISTICS:
            return {ino: number for ino, number in value.items() if self.counts(ino)}
        if key == b"d%d" % TRASH_INO:
            return set(value.values())
        if key[:1] == b"i":
            return value[:11] + bytes(36) + value[47:]
        if key[:1] == b"p":
            return {parent: links for parent, links in value.items() if int(links)}
        if key[:1] == b"c":
            return self.slices(value) if key[1:].partition(b"_")[0] in self.attrs else None
        return value

    def counts(self, ino: bytes) -> bool:
        attr = self.attrs.get(ino)
        return attr is not None and attr.parent <= TRASH_INO

    def slices(self, records: list[bytes]) -> list[Slice]:
        return [
            record._replace(id=self.numbers.setdefault(record.id, len(self.numbers)))
            for record in codec.decode_slices(records)
        ]


@pytest.mark.promise(14)
@pytest.mark.parametrize("trash", ["0", "1"])
async def test_databases_are_equal(new_volume, redis_server, juicefs, trash) -> None:
    if time.gmtime().tm_min == 59 and time.gmtime().tm_sec > 30:
        await asyncio.sleep(31)  # the trash of one hour

    def volume() -> tuple[Any, int]:
        made = new_volume("file", "--trash-days", trash, by=juicefs)
        juicefs.quota("set", made.meta_url, "--path", "/", "--inodes", "1000000")
        return made, int(made.meta_url.rpartition("=")[2])

    for _ in range(5):
        first, db = volume()
        mounted = first.mount(client=juicefs)
        await work(Reference(str(mounted.path)))
        mounted.unmount()
        with redis_server.client(db) as client:
            theirs = Plain(client).keys()
        if not drifted(theirs):
            break
    second, db = volume()
    with redis_server.client(db) as client:
        async with open_meta(second.meta_url) as meta:
            for name in STATISTICS:
                client.hset(name, "1", 0)
            meta.sid = 99
            await work(Ours(meta))
        assert problems(client) == []
        ours = Plain(client).keys()
    different = [
        f"{key.decode()}\n  theirs {theirs.get(key)}\n  ours   {ours.get(key)}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    ]
    assert not different, "\n".join(different)
    for each in (first, second):
        juicefs.quota("check", each.meta_url, "--path", "/")
    juicefs.dump(second.meta_url)


def drifted(found: dict[bytes, object]) -> bool:
    """Tell whether the reference has lost count.

    It adds up its statistics in the background, and now and then takes a removed file off
    a directory that it has never added it to.
    """
    counts = [found.get(name, {}) for name in STATISTICS]
    return any(int(number) < 0 for count in counts for number in count.values())
