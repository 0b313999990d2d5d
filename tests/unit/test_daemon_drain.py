"""Drain: what was written is stored, what comes meanwhile waits, errors stay where they are."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from support.chunk_fakes import FakeMeta, FakeStore, Stack

from jfsd.daemon import drain as draining
from jfsd.daemon.drain import count, drain, flush_all

BLOCK = 4096


async def test_everything_written_before_is_stored_and_committed():
    async with Stack() as stack:
        content = {ino: os.urandom(3 * BLOCK + ino) for ino in range(1, 8)}
        for ino, data in content.items():
            await stack.writer.write(ino, 0, data)
        left = await drain(stack.writer, timeout_s=30)
        assert left == (0, 0, 0, 0)
        for ino, data in content.items():
            assert stack.stored(ino, 0, len(data)) == data
        assert stack.idle()


async def test_progress_tells_what_is_left():
    async with Stack(store=FakeStore(delay=0.05), max_uploads=1) as stack:
        for ino in range(1, 5):
            await stack.writer.write(ino, 0, bytes(2 * BLOCK))
        told = []

        async def tell(left):
            told.append(left)

        await drain(stack.writer, tell=tell)
        assert told[0].files == 4
        assert told[0].bytes <= 8 * BLOCK
        assert [each.bytes for each in told] == sorted((each.bytes for each in told), reverse=True)
        assert told[-1] == (0, 0, 0, 0)


@pytest.mark.promise(3)
async def test_what_cannot_be_stored_in_time_is_kept():
    store = FakeStore(gate=asyncio.Event())
    async with Stack(store=store) as stack:
        data = os.urandom(2 * BLOCK)
        await stack.writer.write(1, 0, data)
        left = await drain(stack.writer, timeout_s=0.2)
        assert (left.files, left.slices, left.bytes) == (1, 1, 2 * BLOCK)
        assert await stack.read(1, 0, 2 * BLOCK) == data
        store.gate.set()
        assert not (await drain(stack.writer)).slices
        assert stack.stored(1, 0, 2 * BLOCK) == data


async def test_what_is_written_meanwhile_does_not_keep_it_from_its_end():
    store = FakeStore(delay=0.02)
    async with Stack(store=store) as stack:
        stop = asyncio.Event()

        async def write():
            off = 0
            while not stop.is_set():
                await stack.writer.write(2, off, bytes(100))
                off += 10_000
                await asyncio.sleep(0)

        await stack.writer.write(1, 0, bytes(5 * BLOCK))
        busy = asyncio.ensure_future(write())
        await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            left = await drain(stack.writer)
        assert not left.slices
        assert stack.stored(1, 0, 5 * BLOCK) == bytes(5 * BLOCK)
        stop.set()
        await busy


@pytest.mark.promise(15)
async def test_a_refusal_is_left_for_the_program():
    meta = FakeMeta(capacity=10)
    async with Stack(meta=meta) as stack:
        await stack.writer.write(1, 0, bytes(100))
        assert not (await drain(stack.writer, timeout_s=30)).slices
        with pytest.raises(OSError, match="No space") as refused:
            await stack.writer.flush(1)
        assert refused.value.errno == errno.ENOSPC


async def test_files_that_fail_are_counted_and_tried_again():
    store = FakeStore(down=True)
    async with Stack(store=store, retry_s=0.05) as stack:
        await stack.writer.write(1, 0, bytes(BLOCK))
        await drain(stack.writer, timeout_s=0.3)
        assert count(stack.writer, stack.writer.newest).failing_files == 1
        store.down = False
        assert not (await drain(stack.writer, timeout_s=60)).slices


class Manager:
    """What the service manager is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def extend_timeout(self, seconds: float) -> None:
        self.told.append(f"{seconds:g} s")

    def status(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.promise(12)
async def test_a_stop_asks_for_time_as_long_as_it_gets_on(monkeypatch):
    monkeypatch.setattr(draining, "_BEAT_S", 0.02)
    manager = Manager()
    async with Stack(store=FakeStore(delay=0.05), max_uploads=1) as stack:
        for ino in range(1, 6):
            await stack.writer.write(ino, 0, bytes(2 * BLOCK))
        await flush_all(stack.writer, manager, patience_s=20)
        assert count(stack.writer, stack.writer.newest) == (0, 0, 0, 0)
    assert manager.told.count("20 s") >= 3
    assert any(line.startswith("stopping: ") and " files to store" in line for line in manager.told)


async def test_a_store_that_takes_nothing_ends_the_wait(monkeypatch):
    monkeypatch.setattr(draining, "_BEAT_S", 0.02)
    store = FakeStore(gate=asyncio.Event())
    async with Stack(store=store) as stack:
        await stack.writer.write(1, 0, bytes(BLOCK))
        with pytest.raises(TimeoutError, match="nothing was stored"):
            await flush_all(stack.writer, Manager(), patience_s=0.1)
        store.gate.set()
        await drain(stack.writer)


async def test_files_that_cannot_be_stored_are_told(monkeypatch):
    monkeypatch.setattr(draining, "_BEAT_S", 0.02)

    class Broken:
        newest = 0
        failing_files = 1

        def unstored(self, _):
            return ()

        async def flush_all(self):
            raise ExceptionGroup("not stored", [OSError(errno.EIO, "no")])

    with pytest.raises(ExceptionGroup):
        await flush_all(Broken(), Manager(), patience_s=1)
