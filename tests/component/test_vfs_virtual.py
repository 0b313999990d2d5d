"""Files of the mount's root that are on no volume, without a kernel."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest
from support.filesystems import make_volume, open_vfs

from jfsd.metrics import CACHE, META, OBJECT_BYTES, OBJECTS
from jfsd.types import Caller
from jfsd.vfs.accesslog import Answered
from jfsd.vfs.dirs import blank_attr
from jfsd.vfs.ports import Options, SetAttr
from jfsd.vfs.virtual import ACCESS_LOG_INO, CONFIG_INO, STATS_INO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from jfsd.vfs.vfs import Vfs

pytestmark = pytest.mark.promise(20)
ROOT = Caller(0, 0, 1, 0, 2)


@pytest.fixture
async def vfs(meta_url: str, tmp_path: Path) -> AsyncIterator[Vfs]:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as mounted:
        yield mounted


async def failure(work: Awaitable[object]) -> int:
    with pytest.raises(OSError) as info:  # noqa: PT011 - the errno is the point
        await work
    return info.value.errno or 0


async def test_they_are_found_by_name_in_the_root_alone(vfs: Vfs) -> None:
    for name, ino in (
        (b".accesslog", ACCESS_LOG_INO),
        (b".stats", STATS_INO),
        (b".config", CONFIG_INO),
    ):
        node = await vfs.lookup(ROOT, 1, name)
        assert node.ino == ino
        assert node.attr == await vfs.getattr(ROOT, ino)
    below = await vfs.mkdir(ROOT, 1, b"d", 0o755)
    assert await failure(vfs.lookup(ROOT, below.ino, b".stats")) == errno.ENOENT
    assert await failure(vfs.lookup(ROOT, 1, b".control")) == errno.ENOENT


async def test_they_are_in_the_root_of_a_mounted_directory(meta_url: str, tmp_path: Path) -> None:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as whole:
        below = await whole.mkdir(ROOT, 1, b"d", 0o755)
    async with open_vfs(meta_url, volume, "m2", Options(root=below.ino)) as part:
        assert (await part.lookup(ROOT, 1, b".stats")).ino == STATS_INO


async def test_a_text_is_that_of_the_moment_when_its_beginning_is_read(vfs: Vfs) -> None:
    texts = iter(("first text", "second text"))
    vfs.texts[STATS_INO] = lambda: next(texts)
    opened = await vfs.open(ROOT, STATS_INO, os.O_RDONLY)
    assert opened.direct_io
    assert await vfs.read(opened.fh, 0, 5) == b"first"
    assert await vfs.read(opened.fh, 5, 100) == b" text"
    assert await vfs.read(opened.fh, 10, 100) == b""
    assert await vfs.read(opened.fh, 0, 100) == b"second text"
    await vfs.flush(ROOT, opened.fh, 1)
    await vfs.release(ROOT, opened.fh, 1)
    assert len(vfs.handles) == 0
    other = await vfs.open(ROOT, CONFIG_INO, os.O_RDONLY)
    assert await vfs.read(other.fh, 0, 100) == b""


@pytest.mark.promise(7)
async def test_a_reader_that_waits_is_not_waited_for(vfs: Vfs) -> None:
    """A server that leaves counts it among those that the next one goes on with."""
    opened = await vfs.open(ROOT, ACCESS_LOG_INO, os.O_RDONLY)
    waiting = asyncio.ensure_future(vfs.read(opened.fh, 0, 1000))
    async with asyncio.timeout(30):
        while vfs.waiting_locks != 1:
            await asyncio.sleep(0)
    vfs.access.tell(Answered(0, 0, 0, 0, "open", "1", 0, 0.0))
    assert b" open " in await waiting
    assert vfs.waiting_locks == 0


@pytest.mark.promise(4)
async def test_handles_of_an_earlier_server_end_or_go_on(vfs: Vfs) -> None:
    vfs.texts[STATS_INO] = lambda: "a text"
    for fh, ino in ((11, STATS_INO), (12, ACCESS_LOG_INO)):
        vfs.adopt_view(vfs.handles.restore(fh, ino, blank_attr(1), os.O_RDONLY, 100 + fh, 0.0))
    assert await vfs.read(11, 3, 100) == b""
    assert await vfs.read(11, 0, 100) == b"a text"
    vfs.access.tell(Answered(0, 0, 0, 0, "open", "1", 0, 0.0))
    assert b" open (1) - OK" in await vfs.read(12, 500, 1000)
    again = await vfs.open(Caller(0, 0, 1, 0, 112), ACCESS_LOG_INO, os.O_RDONLY)
    assert again.fh == 12
    assert len(vfs.access.listeners) == 1
    await vfs.release(ROOT, 12, None)
    assert vfs.access.listeners == ()


async def test_nothing_of_them_can_be_changed(vfs: Vfs) -> None:
    for ino in (ACCESS_LOG_INO, STATS_INO):
        assert await failure(vfs.open(ROOT, ino, os.O_WRONLY)) == errno.EACCES
        assert await failure(_later(vfs.setattr, ROOT, ino, SetAttr(size=0), None)) == errno.EPERM
        assert await failure(_later(vfs.link, ROOT, ino, 1, b"x")) == errno.EPERM
        assert await failure(_later(vfs.setxattr, ROOT, ino, b"user.a", b"", 0)) == errno.EPERM
        assert await failure(_later(vfs.removexattr, ROOT, ino, b"user.a")) == errno.EPERM
        assert await failure(_later(vfs.getxattr, ROOT, ino, b"user.a")) == errno.ENODATA
        assert await vfs.listxattr(ino) == []
    opened = await vfs.open(ROOT, STATS_INO, os.O_RDONLY)
    assert await failure(_later(vfs.flock, ROOT, opened.fh, 1, 0, False)) == errno.EPERM
    assert await failure(_later(vfs.setlk, ROOT, opened.fh, 1, 0, 0, 9, 1, False)) == errno.EPERM
    assert await failure(_later(vfs.lseek, opened.fh, 0, os.SEEK_DATA)) == errno.EINVAL
    copy = _later(vfs.copy_file_range, ROOT, opened.fh, 0, opened.fh, 0, 10, 0)
    assert await failure(copy) == errno.EXDEV


async def _later(operation: object, *args: object) -> None:
    """Call an operation that may fail before it is awaited."""
    await operation(*args)


async def test_work_is_counted_where_it_is_done(vfs: Vfs) -> None:
    before = {
        "meta": META.total().count,
        "puts": OBJECTS["PUT"].count,
        "put_bytes": OBJECT_BYTES["PUT"],
        "get_bytes": OBJECT_BYTES["GET"],
        "found": CACHE.hits + CACHE.misses,
    }
    opened, node = await vfs.create(Caller(0, 0, 1, 0, 4), 1, b"f", 0o644, os.O_RDWR)
    await vfs.write(opened.fh, 0, bytes(70_000))
    await vfs.fsync(opened.fh, False)
    assert META.total().count >= before["meta"] + 2
    assert OBJECTS["PUT"].count == before["puts"] + 1
    assert OBJECT_BYTES["PUT"] == before["put_bytes"] + 70_000
    vfs.reader.invalidate(node.ino)
    assert len(await vfs.read(opened.fh, 0, 70_000)) == 70_000
    read = OBJECT_BYTES["GET"] - before["get_bytes"]
    assert read in {0, 70_000}
    await vfs.release(Caller(0, 0, 1, 0, 6), opened.fh, None)
