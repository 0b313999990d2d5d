"""The file system without a kernel: what docs/SEMANTICS.md says of files."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest
from support.filesystems import make_volume, open_vfs

from jfsd.types import MAX_FILE_BYTES, NOW_NS, TRASH_INO, Caller
from jfsd.vfs.ports import Options, SetAttr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jfsd.vfs.vfs import Vfs

ROOT = Caller(0, 0)
RW = os.O_RDWR


class Ops:
    """Numbers the requests as a kernel does."""

    def __init__(self) -> None:
        self._op = 0

    def __call__(self, uid: int = 0) -> Caller:
        self._op += 2
        return Caller(uid, uid, 1, 0o022, self._op)


@pytest.fixture
def op() -> Ops:
    return Ops()


@pytest.fixture
async def vfs(meta_url: str, tmp_path: Path) -> AsyncIterator[Vfs]:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as mounted:
        yield mounted


@pytest.fixture
async def pair(meta_url: str, tmp_path: Path) -> AsyncIterator[tuple[Vfs, Vfs]]:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume, "m1") as one, open_vfs(meta_url, volume, "m2") as two:
        yield one, two


def code(info: pytest.ExceptionInfo[OSError]) -> int | None:
    return info.value.errno


async def content(vfs: Vfs, ino: int) -> bytes:
    opened = await vfs.open(ROOT, ino, os.O_RDONLY)
    try:
        return bytes(await vfs.read(opened.fh, 0, 1 << 20))
    finally:
        await vfs.release(ROOT, opened.fh, None)


async def close(vfs: Vfs, op: Ops, fh: int) -> None:
    await vfs.flush(op(), fh, 1)
    await vfs.release(op(), fh, None)


async def test_within_one_mount_a_read_sees_every_write_that_returned_before(
    vfs: Vfs, op: Ops
) -> None:
    opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
    await vfs.write(opened.fh, 0, b"0123456789")
    await vfs.write(opened.fh, 3, b"xyz")
    assert bytes(await vfs.read(opened.fh, 0, 100)) == b"012xyz6789"
    assert (await vfs.getattr(ROOT, node.ino)).length == 10
    await vfs.fsync(opened.fh, False)
    assert bytes(await vfs.read(opened.fh, 2, 4)) == b"2xyz"
    assert await vfs.read(opened.fh, 10, 10) == b""
    await close(vfs, op, opened.fh)


async def test_what_was_written_before_a_close_is_seen_by_an_open_elsewhere(
    pair: tuple[Vfs, Vfs], op: Ops
) -> None:
    here, there = pair
    opened, node = await here.create(op(), 1, b"f", 0o644, RW)
    await here.write(opened.fh, 0, b"first")
    await close(here, op, opened.fh)
    assert await content(there, node.ino) == b"first"
    again = await here.open(op(), node.ino, RW)
    assert again.keep_cache, "nobody else has written"
    await here.write(again.fh, 0, b"FIRST, longer")
    await close(here, op, again.fh)
    reopened = await there.open(op(), node.ino, os.O_RDONLY)
    assert not reopened.keep_cache, "the kernel's pages are of the first version"
    assert bytes(await there.read(reopened.fh, 0, 100)) == b"FIRST, longer"
    await there.release(op(), reopened.fh, None)


async def test_a_time_that_is_set_after_a_write_is_not_undone_by_its_commit(
    vfs: Vfs, op: Ops
) -> None:
    opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
    await vfs.write(opened.fh, 0, b"data")
    await vfs.setattr(op(), node.ino, SetAttr(mtime_ns=5_000_000_001), None)
    await close(vfs, op, opened.fh)
    attr = await vfs.getattr(ROOT, node.ino)
    assert (attr.mtime_ns, attr.length) == (5_000_000_001, 4)


async def test_one_request_may_set_size_and_times(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
    await vfs.write(opened.fh, 0, b"0123456789")
    caller = op()
    changes = SetAttr(size=4, mode=0o600, mtime_ns=7, atime_ns=NOW_NS)
    attr = await vfs.setattr(caller, node.ino, changes, opened.fh)
    assert (attr.length, attr.mode, attr.mtime_ns) == (4, 0o600, 7)
    assert bytes(await vfs.read(opened.fh, 0, 10)) == b"0123"
    await vfs.write(opened.fh, 8, b"89")
    assert bytes(await vfs.read(opened.fh, 0, 20)) == b"0123\0\0\0\00089"
    await close(vfs, op, opened.fh)


@pytest.mark.promise(4)
@pytest.mark.parametrize("trash_days", [0, 1])
async def test_an_unlinked_file_lives_on_until_its_last_close(
    meta_url: str, tmp_path: Path, op: Ops, trash_days: int
) -> None:
    volume = await make_volume(meta_url, tmp_path / "objects", trash_days=trash_days)
    async with open_vfs(meta_url, volume) as vfs:
        first, node = await vfs.create(op(), 1, b"f", 0o644, RW)
        second = await vfs.open(op(), node.ino, RW)
        await vfs.write(first.fh, 0, b"kept")
        await vfs.fsync(first.fh, False)
        await vfs.unlink(op(), 1, b"f")
        assert (await vfs.getattr(ROOT, node.ino)).nlink == 0
        await close(vfs, op, first.fh)
        await vfs.write(second.fh, 4, b" alive")
        assert bytes(await vfs.read(second.fh, 0, 100)) == b"kept alive"
        await vfs.setattr(op(), node.ino, SetAttr(size=6), second.fh)
        assert bytes(await vfs.read(second.fh, 0, 100)) == b"kept a"
        await close(vfs, op, second.fh)
        if trash_days:
            assert (await vfs.getattr(ROOT, node.ino)).length == 6
        else:
            with pytest.raises(OSError, match="Stale") as info:
                await vfs.getattr(ROOT, node.ino)
            assert code(info) == errno.ESTALE


async def test_link_counts_are_those_without_the_trash(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.create(op(), 1, b"a", 0o644, RW)
    await close(vfs, op, opened.fh)
    assert (await vfs.link(op(), node.ino, 1, b"b")).attr.nlink == 2
    await vfs.unlink(op(), 1, b"a")
    assert (await vfs.lookup(ROOT, 1, b"b")).attr.nlink == 1
    trash = await vfs.lookup(ROOT, 1, b".trash")
    assert trash.ino == TRASH_INO


async def test_a_rename_onto_an_open_file_leaves_its_bytes_to_the_holder(
    meta_url: str, tmp_path: Path, op: Ops
) -> None:
    volume = await make_volume(meta_url, tmp_path / "objects", trash_days=0)
    async with open_vfs(meta_url, volume) as vfs:
        old, _ = await vfs.create(op(), 1, b"old", 0o644, RW)
        await vfs.write(old.fh, 0, b"old")
        new, node = await vfs.create(op(), 1, b"new", 0o644, RW)
        await vfs.write(new.fh, 0, b"new")
        await vfs.rename(op(), 1, b"new", 1, b"old", 0)
        assert bytes(await vfs.read(old.fh, 0, 10)) == b"old"
        assert (await vfs.lookup(ROOT, 1, b"old")).ino == node.ino
        await close(vfs, op, old.fh)
        await close(vfs, op, new.fh)
        assert await content(vfs, node.ino) == b"new"


async def test_a_file_may_be_2_57_minus_1_bytes_long_and_no_longer(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
    attr = await vfs.setattr(op(), node.ino, SetAttr(size=MAX_FILE_BYTES), None)
    assert attr.length == 2**57 - 1
    with pytest.raises(OSError, match="too large") as info:
        await vfs.setattr(op(), node.ino, SetAttr(size=MAX_FILE_BYTES + 1), None)
    assert code(info) == errno.EFBIG
    await vfs.write(opened.fh, MAX_FILE_BYTES - 3, b"end")
    with pytest.raises(OSError, match="too large"):
        await vfs.write(opened.fh, MAX_FILE_BYTES - 2, b"end")
    assert bytes(await vfs.read(opened.fh, MAX_FILE_BYTES - 4, 100)) == b"\0end"
    await close(vfs, op, opened.fh)


async def test_seek_tells_the_holes_of_the_slice_list(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
    await vfs.write(opened.fh, 70 << 20, b"x" * 10)
    await vfs.setattr(op(), node.ino, SetAttr(size=80 << 20), opened.fh)
    seek = vfs.lseek
    assert await seek(opened.fh, 0, os.SEEK_HOLE) == 0
    assert await seek(opened.fh, 0, os.SEEK_DATA) == 70 << 20
    assert await seek(opened.fh, 70 << 20, os.SEEK_HOLE) == (70 << 20) + 10
    with pytest.raises(OSError, match="No such device") as info:
        await seek(opened.fh, 75 << 20, os.SEEK_DATA)
    assert code(info) == errno.ENXIO
    with pytest.raises(OSError, match="No such device"):
        await seek(opened.fh, 80 << 20, os.SEEK_HOLE)
    await close(vfs, op, opened.fh)


async def test_copy_file_range_shares_slices_and_sees_pending_writes(vfs: Vfs, op: Ops) -> None:
    source, _ = await vfs.create(op(), 1, b"s", 0o644, RW)
    target, node = await vfs.create(op(), 1, b"t", 0o644, RW)
    await vfs.write(source.fh, 0, bytes(range(256)) * 64)
    await vfs.write(target.fh, 0, b"-" * 100)
    copied = await vfs.copy_file_range(op(), source.fh, 256, target.fh, 50, 512, 0)
    assert copied == 512
    assert bytes(await vfs.read(target.fh, 0, 1000)) == b"-" * 50 + bytes(range(256)) * 2
    assert await vfs.copy_file_range(op(), source.fh, 1 << 20, target.fh, 0, 10, 0) == 0
    assert (await vfs.getattr(ROOT, node.ino)).length == 562
    await close(vfs, op, source.fh)
    await close(vfs, op, target.fh)


async def test_a_nameless_file_is_gone_at_its_close(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.tmpfile(op(), 1, 0o600, RW)
    await vfs.write(opened.fh, 0, b"temp")
    assert bytes(await vfs.read(opened.fh, 0, 10)) == b"temp"
    await close(vfs, op, opened.fh)
    with pytest.raises(OSError, match="Stale"):
        await vfs.getattr(ROOT, node.ino)


async def test_a_nameless_file_that_is_given_a_name_stays(vfs: Vfs, op: Ops) -> None:
    opened, node = await vfs.tmpfile(op(), 1, 0o600, RW)
    await vfs.write(opened.fh, 0, b"kept")
    await vfs.link(op(), node.ino, 1, b"named")
    await close(vfs, op, opened.fh)
    assert await content(vfs, (await vfs.lookup(ROOT, 1, b"named")).ino) == b"kept"


async def test_reserved_names_cannot_be_made_or_removed(vfs: Vfs, op: Ops) -> None:
    for name in (b".trash", b".config", b".stats", b".control", b".accesslog"):
        with pytest.raises(OSError, match="exists") as info:
            await vfs.mkdir(op(), 1, name, 0o755)
        assert code(info) == errno.EEXIST
        with pytest.raises(OSError, match="not permitted"):
            await vfs.unlink(op(), 1, name)
    node = await vfs.mkdir(op(), 1, b"d", 0o755)
    await vfs.mkdir(op(), node.ino, b".config", 0o755)


async def test_a_read_only_mount_changes_nothing(meta_url: str, tmp_path: Path, op: Ops) -> None:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as vfs:
        opened, node = await vfs.create(op(), 1, b"f", 0o644, RW)
        await close(vfs, op, opened.fh)
    async with open_vfs(meta_url, volume, "ro", Options(read_only=True)) as vfs:
        for attempt in (
            vfs.mkdir(op(), 1, b"d", 0o755),
            vfs.unlink(op(), 1, b"f"),
            vfs.rename(op(), 1, b"f", 1, b"g", 0),
            vfs.setattr(op(), node.ino, SetAttr(mode=0), None),
            vfs.open(op(), node.ino, os.O_WRONLY),
        ):
            with pytest.raises(OSError, match="Read-only") as info:
                await attempt
            assert code(info) == errno.EROFS
        assert await content(vfs, node.ino) == b""


async def length_at_open(vfs: Vfs, ino: int) -> int:
    opened = await vfs.open(ROOT, ino, os.O_RDONLY)
    length = vfs.handles.get(opened.fh).inode.attr.length
    await vfs.release(ROOT, opened.fh, None)
    return length


async def test_the_open_cache_reuses_attributes_of_closed_files_for_its_time(
    meta_url: str, tmp_path: Path, op: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    for module in ("core", "files", "names"):
        monkeypatch.setattr(f"jfsd.vfs.{module}.monotonic_s", lambda: now_s)
    volume = await make_volume(meta_url, tmp_path / "objects")
    cached = Options(open_cache_s=10)
    async with (
        open_vfs(meta_url, volume, "m1", cached) as one,
        open_vfs(meta_url, volume, "m2") as two,
    ):
        opened, node = await one.create(op(), 1, b"f", 0o644, RW)
        await close(one, op, opened.fh)
        await two.setattr(op(), node.ino, SetAttr(size=5), None)
        now_s += 9
        assert await length_at_open(one, node.ino) == 0
        now_s += 2  # the open before has not made it last longer
        assert await length_at_open(one, node.ino) == 5
        await one.setattr(op(), node.ino, SetAttr(size=3), None)
        assert await length_at_open(one, node.ino) == 3
        assert await length_at_open(two, node.ino) == 3


@pytest.mark.promise(6)
async def test_listings_of_one_directory_at_once_do_not_disturb_each_other(
    vfs: Vfs, op: Ops
) -> None:
    for index in range(600):
        await vfs.symlink(op(), 1, b"%d" % index, b"x")
    fh = await vfs.opendir(op(), 1)

    async def names() -> list[bytes]:
        found: list[bytes] = []
        cookie = 0
        while True:
            page, start = await vfs.readdir(fh, cookie)
            taken = page.names[start : start + 50]
            if not taken:
                return found
            found += taken
            cookie = page.cookies[start + len(taken) - 1]

    expected = sorted([b".", b".."] + [b"%d" % index for index in range(600)])
    for listed in await asyncio.gather(*(names() for _ in range(8))):
        assert sorted(listed) == expected
