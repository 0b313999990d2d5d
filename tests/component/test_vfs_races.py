"""An open and a removal at once: a handle that was given out always has a file behind it."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from support.filesystems import make_volume, open_vfs

from jfsd.types import TRASH_INO, Caller
from jfsd.vfs.ports import SetAttr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from jfsd.vfs.vfs import Vfs

pytestmark = pytest.mark.promise(4)
ROOT = Caller(0, 0)


@pytest.fixture
def op() -> Callable[[], Caller]:
    """A function that numbers requests as a kernel does."""
    numbers = iter(range(2, 10_000, 2))
    return lambda: Caller(0, 0, 1, 0o022, next(numbers))


@pytest.fixture
def mounted(meta_url: str, tmp_path: Path) -> Callable[[int], object]:
    """A function that opens a file system whose trash keeps so many days."""

    @asynccontextmanager
    async def opened(trash_days: int) -> AsyncIterator[Vfs]:
        volume = await make_volume(meta_url, tmp_path / "objects", trash_days=trash_days)
        async with open_vfs(meta_url, volume) as vfs:
            yield vfs

    return opened


async def make(vfs: Vfs, op: Callable[[], Caller], name: bytes) -> int:
    """Return the inode of a new file of three bytes that nobody has open."""
    opened, node = await vfs.create(op(), 1, name, 0o644, os.O_RDWR)
    await vfs.write(opened.fh, 0, b"old")
    await close(vfs, op, opened.fh)
    return node.ino


async def close(vfs: Vfs, op: Callable[[], Caller], fh: int) -> None:
    await vfs.flush(op(), fh, 1)
    await vfs.release(op(), fh, None)


async def sent() -> None:
    """Return when what was begun just now has sent its commands, and has no reply yet."""
    for _ in range(2):  # an open does two things at once, each in a task of its own
        await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["unlink", "rename"])
async def test_a_file_that_is_removed_while_it_is_being_opened_lives(
    mounted: Callable, op: Callable[[], Caller], how: str
) -> None:
    """Redis reads the record for the open, then removes the file, then both are answered."""
    async with mounted(0) as vfs:
        ino = await make(vfs, op, b"f")
        await make(vfs, op, b"other")
        opening = asyncio.ensure_future(vfs.open(op(), ino, os.O_RDWR))
        await sent()
        if how == "unlink":
            await vfs.unlink(op(), 1, b"f")
        else:
            await vfs.rename(op(), 1, b"other", 1, b"f", 0)
        opened = await opening
        await vfs.write(opened.fh, 3, b" and new")
        await vfs.fsync(opened.fh, False)
        assert bytes(await vfs.read(opened.fh, 0, 100)) == b"old and new"
        assert (await vfs.getattr(ROOT, ino)).nlink == 0
        await close(vfs, op, opened.fh)
        assert await vfs.meta.sustained_inos() == set()
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            await vfs.getattr(ROOT, ino)


async def test_an_open_that_is_refused_leaves_nothing_of_a_file_removed_meanwhile(
    mounted: Callable, op: Callable[[], Caller]
) -> None:
    async with mounted(0) as vfs:
        ino = await make(vfs, op, b"f")
        await vfs.meta.setattr(ROOT, ino, flags=1)  # immutable: not to be opened for writing
        opening = asyncio.ensure_future(vfs.open(op(), ino, os.O_RDWR))
        await sent()
        await vfs.meta.setattr(ROOT, ino, flags=0)
        await vfs.unlink(op(), 1, b"f")
        with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
            await opening
        assert await vfs.meta.sustained_inos() == set()
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            await vfs.getattr(ROOT, ino)


async def test_a_name_whose_file_has_just_gone_to_the_trash_is_looked_up_anew(
    mounted: Callable, op: Callable[[], Caller]
) -> None:
    """ESTALE, not EPERM: the kernel then asks whose the name is now."""
    async with mounted(1) as vfs:
        ino = await make(vfs, op, b"f")
        await vfs.unlink(op(), 1, b"f")
        for change in (
            lambda: vfs.open(op(), ino, os.O_RDWR),
            lambda: vfs.setattr(op(), ino, SetAttr(size=0), None),
            lambda: vfs.setattr(op(), ino, SetAttr(mode=0o600), None),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                await change()
        reader = await vfs.open(op(), ino, os.O_RDONLY)
        assert bytes(await vfs.read(reader.fh, 0, 9)) == b"old"
        await close(vfs, op, reader.fh)


async def test_who_means_a_file_in_the_trash_may_not_change_it(
    mounted: Callable, op: Callable[[], Caller]
) -> None:
    async with mounted(1) as vfs:
        ino = await make(vfs, op, b"f")
        await vfs.unlink(op(), 1, b"f")
        [hour] = [e async for batch in vfs.meta.readdir(TRASH_INO) for e in batch]
        await vfs.lookup(ROOT, hour.ino, b"1-%d-f" % ino)
        for change in (
            lambda: vfs.open(op(), ino, os.O_RDWR),
            lambda: vfs.setattr(op(), ino, SetAttr(size=0), None),
            lambda: vfs.setattr(op(), ino, SetAttr(mode=0o600), None),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
                await change()


async def test_a_file_that_is_open_is_opened_again_when_it_has_gone_to_the_trash(
    mounted: Callable, op: Callable[[], Caller]
) -> None:
    """As open(2) of /proc/self/fd/N does after an unlink."""
    async with mounted(1) as vfs:
        ino = await make(vfs, op, b"f")
        first = await vfs.open(op(), ino, os.O_RDONLY)
        await vfs.unlink(op(), 1, b"f")
        second = await vfs.open(op(), ino, os.O_RDWR)
        await vfs.write(second.fh, 0, b"NEW")
        assert bytes(await vfs.read(first.fh, 0, 9)) == b"NEW"
        await close(vfs, op, second.fh)
        await close(vfs, op, first.fh)
