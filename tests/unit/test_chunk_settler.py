"""What fsync promises of data that is stored and not yet durable (promise 3)."""

from __future__ import annotations

import asyncio
import errno

import pytest
from support.chunk_fakes import Stack

from jfsd.chunk import settler as module
from jfsd.chunk.settler import Settler
from jfsd.object.base import StoreError

pytestmark = pytest.mark.promise(3)


class Disk:
    """Notes what was settled, and fails or waits when told to."""

    def __init__(self) -> None:
        self.settled: list[list[tuple[int, int]] | None] = []
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def settle(self, slices) -> None:
        self.settled.append(None if slices is None else list(slices))
        await self.gate.wait()
        if self.broken:
            raise StoreError("the disk is broken")


async def test_an_fsync_makes_the_blocks_of_its_file_durable_and_a_close_does_not() -> None:
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"one")
        await stack.writer.write(2, 0, b"two")
        await stack.writer.flush(1)
        await stack.writer.flush(2)
        assert len(stack.store.objects) == len(stack.store.loose) == 2
        await stack.writer.sync(1)
        [left] = stack.store.loose
        assert stack.store.objects[left] == b"two"


async def test_what_nobody_syncs_is_durable_soon_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETTLE_AFTER_S", 0.0)
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"one")
        await stack.writer.flush(1)
        async with asyncio.timeout(30):
            while stack.store.loose:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(module, "SETTLE_AFTER_S", 1e9)
        await stack.writer.write(1, 0, b"two")
        await stack.writer.flush_all()
        assert not stack.store.loose


async def test_an_fsync_waits_until_all_of_earlier_processes_is_durable() -> None:
    disk = Disk()
    disk.gate.clear()
    settler = Settler(disk.settle)
    settler.start()
    syncing = asyncio.ensure_future(settler.sync(1))
    await asyncio.sleep(0.01)
    assert not syncing.done()
    assert disk.settled == [None]
    disk.gate.set()
    await syncing
    await settler.close()


async def test_an_fsync_covers_what_is_being_settled_behind_its_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETTLE_AFTER_S", 0.0)
    disk = Disk()
    disk.gate.clear()
    settler = Settler(disk.settle)
    settler.add(1, 10, 100)
    settler.tick()
    settler.add(1, 11, 100)
    syncing = asyncio.ensure_future(settler.sync(1))
    await asyncio.sleep(0.01)
    assert disk.settled == [[(10, 100)], [(11, 100), (10, 100)]]
    disk.gate.set()
    await syncing
    await settler.close()


async def test_a_disk_that_fails_is_told_to_the_fsync_once() -> None:
    disk = Disk()
    settler = Settler(disk.settle)
    settler.add(1, 10, 100)
    disk.broken = True
    with pytest.raises(OSError, match="Input/output") as caught:
        await settler.sync(1)
    assert caught.value.errno == errno.EIO
    await settler.sync(1)


async def test_a_failure_behind_everybodys_back_is_told_to_the_next_fsync_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SETTLE_AFTER_S", 0.0)
    disk = Disk()
    disk.broken = True
    settler = Settler(disk.settle)
    settler.add(1, 10, 100)
    settler.tick()
    await asyncio.sleep(0.01)
    disk.broken = False
    await settler.sync(2)
    with pytest.raises(OSError, match="Input/output"):
        await settler.sync(1)
    await settler.sync(1)
    await settler.close()


async def test_an_fsync_that_is_cancelled_leaves_the_work_to_the_next() -> None:
    disk = Disk()
    disk.gate.clear()
    settler = Settler(disk.settle)
    settler.add(1, 10, 100)
    syncing = asyncio.ensure_future(settler.sync(1))
    await asyncio.sleep(0.01)
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    disk.gate.set()
    await settler.sync(1)
    assert disk.settled == [[(10, 100)], [(10, 100)]]
