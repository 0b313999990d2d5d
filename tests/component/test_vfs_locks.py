"""Locks of the file system: who gets them, who waits, and when they go."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest
from support.filesystems import make_volume, open_vfs

from jfsd.types import Caller
from jfsd.vfs.handles import NoHandleJournal
from jfsd.vfs.ports import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jfsd.vfs.vfs import Vfs

END = (1 << 63) - 1
READ, WRITE, UNLOCK = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


class Locker:
    """Opens one file again and again and locks it as different owners."""

    def __init__(self, vfs: Vfs) -> None:
        self.vfs = vfs
        self.op = 0

    def caller(self) -> Caller:
        self.op += 2
        return Caller(0, 0, 1, 0, self.op)

    async def open(self) -> int:
        opened, _ = await self.vfs.create(self.caller(), 1, b"f", 0o644, os.O_RDWR)
        return opened.fh

    async def lock(self, fh: int, owner: int, kind: int, *, wait: bool = False) -> None:
        await self.vfs.setlk(self.caller(), fh, owner, kind, 0, END, owner, wait)

    async def close(self, fh: int, owner: int) -> None:
        await self.vfs.flush(self.caller(), fh, owner)
        await self.vfs.release(self.caller(), fh, None)


@pytest.fixture
async def locker(meta_url: str, tmp_path: Path) -> AsyncIterator[Locker]:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as vfs:
        yield Locker(vfs)


async def refused(attempt: object) -> None:
    with pytest.raises(BlockingIOError) as info:
        await attempt  # type: ignore[misc]
    assert info.value.errno == errno.EAGAIN


async def test_a_waiter_gets_the_lock_when_it_is_released(locker: Locker) -> None:
    one, two = await locker.open(), await locker.open()
    await locker.lock(one, 1, WRITE)
    await refused(locker.lock(two, 2, READ))
    waiter = asyncio.create_task(locker.lock(two, 2, WRITE, wait=True))
    await asyncio.sleep(0.05)
    assert not waiter.done()
    await locker.lock(one, 1, UNLOCK)
    await waiter
    await refused(locker.lock(one, 1, READ))
    await locker.close(one, 1)
    await locker.close(two, 2)


async def test_a_close_drops_the_closers_locks_only(locker: Locker) -> None:
    one, two, three = [await locker.open() for _ in range(3)]
    await locker.lock(one, 1, READ)
    await locker.lock(two, 2, READ)
    await locker.close(one, 1)
    await refused(locker.lock(three, 3, WRITE))
    await locker.close(two, 2)
    await locker.lock(three, 3, WRITE)
    await locker.close(three, 3)


async def test_locks_of_a_file_description_go_with_it(locker: Locker) -> None:
    one, two = await locker.open(), await locker.open()
    await locker.lock(one, 77, WRITE)  # an OFD lock: its owner is no process
    await locker.close(one, 1)
    await locker.lock(two, 2, WRITE)
    await locker.close(two, 2)


async def test_an_interrupted_waiter_leaves_no_lock(locker: Locker) -> None:
    one, two = await locker.open(), await locker.open()
    for _ in range(20):
        await locker.lock(one, 1, WRITE)
        waiter = asyncio.create_task(locker.lock(two, 2, WRITE, wait=True))
        await asyncio.sleep(0.002)
        unlock = asyncio.create_task(locker.lock(one, 1, UNLOCK))
        await asyncio.sleep(0)
        waiter.cancel()
        await unlock
        [outcome] = await asyncio.gather(waiter, return_exceptions=True)
        if outcome is None:
            await refused(locker.lock(one, 1, WRITE))
            await locker.lock(two, 2, UNLOCK)
        else:
            assert isinstance(outcome, asyncio.CancelledError)
    await locker.lock(one, 1, WRITE)
    await locker.close(one, 1)
    await locker.close(two, 2)


async def test_flock_is_exclusive_and_goes_at_release(locker: Locker) -> None:
    vfs = locker.vfs
    one, two = await locker.open(), await locker.open()
    await vfs.flock(locker.caller(), one, 11, WRITE, False)
    await refused(vfs.flock(locker.caller(), two, 22, READ, False))
    waiter = asyncio.create_task(vfs.flock(locker.caller(), two, 22, READ, True))
    await asyncio.sleep(0.02)
    await vfs.release(locker.caller(), one, 11)
    await waiter
    await vfs.release(locker.caller(), two, 22)


async def test_a_refused_lock_of_a_read_only_mount_does_not_fail_the_close(
    meta_url: str, tmp_path: Path
) -> None:
    volume = await make_volume(meta_url, tmp_path / "objects")
    async with open_vfs(meta_url, volume) as vfs:
        locker = Locker(vfs)
        await locker.close(await locker.open(), 1)
    async with open_vfs(meta_url, volume, "ro", Options(read_only=True)) as vfs:
        locker = Locker(vfs)
        ino = (await vfs.lookup(locker.caller(), 1, b"f")).ino
        opened = await vfs.open(locker.caller(), ino, os.O_RDONLY)
        with pytest.raises(OSError, match="Read-only") as info:
            await locker.lock(opened.fh, 1, READ)
        assert info.value.errno == errno.EROFS
        vfs.meta.read_only = True
        await locker.close(opened.fh, 1)


class Journal(NoHandleJournal):
    """Owners that a next server would be told of."""

    def __init__(self) -> None:
        self.owners: set[tuple[int, int]] = set()

    def locking(self, fh: int, owner: int) -> None:
        self.owners.add((fh, owner))

    def unlocked(self, fh: int, owner: int) -> None:
        self.owners.discard((fh, owner))


async def test_an_owner_is_remembered_until_its_locks_are_dropped(
    locker: Locker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies in the middle of a close leaves the rest of it to the next one."""
    journal = locker.vfs.handles.journal = Journal()
    one, two = await locker.open(), await locker.open()
    await locker.lock(one, 1, WRITE)
    setlk = locker.vfs.meta.setlk

    async def fails(*_: object) -> None:
        assert journal.owners == {(one, 1)}
        raise OSError(errno.EIO, "away")

    monkeypatch.setattr(locker.vfs.meta, "setlk", fails)
    with pytest.raises(OSError, match="away"):
        await locker.vfs.flush(locker.caller(), one, 1)
    assert journal.owners == {(one, 1)}
    monkeypatch.setattr(locker.vfs.meta, "setlk", setlk)
    await locker.close(one, 1)
    assert journal.owners == set()
    await locker.lock(two, 2, WRITE)
    await locker.close(two, 2)


async def test_nothing_is_remembered_of_a_handle_that_is_closed(locker: Locker) -> None:
    """Also when its locks went earlier, with another descriptor of the file."""
    journal = locker.vfs.handles.journal = Journal()
    one, two = await locker.open(), await locker.open()
    await locker.lock(one, 1, WRITE)
    await locker.close(two, 1)
    await locker.close(one, 1)
    assert journal.owners == set()
