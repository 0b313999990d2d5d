"""The data path takes other sizes and numbers while it works."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from typing import TYPE_CHECKING

import pytest
from support.chunk_fakes import FakeStore, Stack

from jfsd.chunk import arena as arena_module
from jfsd.chunk.arena import Arena
from jfsd.chunk.budget import Budget
from jfsd.chunk.cache import DiskCache, MemoryCache
from jfsd.chunk.readahead import Streams

if TYPE_CHECKING:
    from pathlib import Path

SLOT = 1 << 12
UUID = "5d2cb8bb-6a4f-4a59-9e4b-0f3e0a1f1d11"


async def until(true, limit_s=20):
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.001)


# -- the arena


def test_a_larger_limit_gets_more_slots_and_views_stay_valid(monkeypatch) -> None:
    monkeypatch.setattr(arena_module, "_MIN_SLOTS", 4)
    arena = Arena(Budget(32 << 10), SLOT)
    assert arena.slots == 4
    slots = [arena.alloc(filled=False) for _ in range(4)]
    for slot in slots:
        arena.budget.charge(arena.grow(slot, 4))
    view = arena.view(slots[0], 0, 4)
    view[:] = b"abcd"
    arena.fit(64 << 10)
    assert arena.slots == 8
    more = [arena.alloc(filled=False) for _ in range(4)]
    assert sorted(slots + more) == list(range(8))
    assert bytes(arena.view(slots[0], 0, 4)) == b"abcd"
    arena.view(slots[0], 0, 4)[:] = b"efgh"
    assert bytes(view) == b"efgh"  # the same pages
    assert os.fstat(arena.fd).st_size == 8 * SLOT
    arena.fit(16 << 10)
    assert arena.slots == 8
    arena.close()


def test_addresses_are_given_back_when_the_arena_grows() -> None:
    arena = Arena(Budget(64 << 20), 1 << 22)
    gc.collect()

    def mapped():
        with open("/proc/self/maps", encoding="ascii") as maps:
            return sum("jfsd-arena" in line for line in maps)

    before = mapped()
    for gib in range(1, 6):
        arena.fit(gib << 30)
    assert mapped() == before
    arena.close()


def test_the_slots_of_the_largest_limit_have_addresses() -> None:
    arena = Arena(Budget(1 << 40), 1 << 22)
    assert arena.slots * arena.slot_bytes == 32 << 40
    arena.fit(1 << 40)
    arena.close()


# -- the buffer


@pytest.mark.parametrize("seed", range(3))
async def test_the_buffer_changes_while_files_are_written(seed) -> None:
    rng = random.Random(seed)
    async with Stack(store=FakeStore(), limit=1 << 17) as stack:
        stop = False

        async def write(ino):
            off = 0
            while not stop:
                await stack.writer.write(ino, off, bytes([ino]) * 3000)
                off += 3000
                await asyncio.sleep(0)
            await stack.writer.flush(ino)
            return off

        tasks = [asyncio.create_task(write(ino)) for ino in (2, 3, 4)]
        for _ in range(30):
            limit = rng.choice((1 << 16, 1 << 17, 1 << 20))
            stack.arena.fit(limit)
            stack.budget.set_limit(limit)
            stack.blocks.budget_changed()
            await asyncio.sleep(0.01)
        stop = True
        lengths = await asyncio.gather(*tasks)
        for ino, length in zip((2, 3, 4), lengths, strict=True):
            assert stack.stored(ino, 0, length) == bytes([ino]) * length
        assert stack.budget.charged == 0
        assert stack.budget.lent <= stack.budget.limit


async def test_a_writer_that_waits_goes_on_in_a_larger_buffer() -> None:
    store = FakeStore(gate=asyncio.Event())
    async with Stack(store=store, limit=1 << 16, max_uploads=1) as stack:
        writing = asyncio.create_task(stack.writer.write(2, 0, b"x" * (1 << 17)))
        await until(lambda: stack.budget.wanted)
        assert not writing.done()
        stack.arena.fit(1 << 20)
        stack.budget.set_limit(1 << 20)
        await asyncio.wait_for(writing, 20)
        store.gate.set()
        await stack.writer.flush(2)


# -- uploads and downloads


async def test_more_uploads_begin_as_soon_as_they_may() -> None:
    store = FakeStore(gate=asyncio.Event())
    async with Stack(store=store, max_uploads=1) as stack:
        await stack.writer.write(2, 0, b"x" * 4096 * 10)
        await until(lambda: store.running == 1)
        stack.writer.set_max_uploads(6)
        await until(lambda: store.running == 6)
        stack.writer.set_max_uploads(2)
        store.gate.set()
        await stack.writer.flush(2)
        store.gate.clear()
        store.most = 0
        await stack.writer.write(3, 0, b"x" * 4096 * 10)
        await until(lambda: store.running == 2)
        store.gate.set()
        await stack.writer.flush(3)
        assert store.most == 2


async def test_more_downloads_begin_and_none_is_lost() -> None:
    store = FakeStore(gate=asyncio.Event())
    async with Stack(store=store, max_downloads=1, max_readahead=0) as stack:
        store.gate.set()
        for ino in range(2, 12):
            await stack.writer.write(ino, 0, bytes([ino]) * 4096)
            await stack.writer.flush(ino)
        store.gate.clear()
        store.most = 0
        first = [asyncio.create_task(stack.read(ino, 0, 4096)) for ino in (2, 3)]
        await until(lambda: store.running == 1)
        stack.blocks.set_max_downloads(4)
        more = [asyncio.create_task(stack.read(ino, 0, 4096)) for ino in range(4, 12)]
        await until(lambda: store.running == 5)
        store.gate.set()
        found = await asyncio.gather(*first, *more)
        assert found == [bytes([ino]) * 4096 for ino in range(2, 12)]


# -- reading ahead


def test_a_smaller_window_holds_for_streams_under_way() -> None:
    streams = Streams(1 << 20, 32 << 20)
    off = 0
    for _ in range(64):
        streams.observe(off, 1 << 20, 1 << 40)
        off += 1 << 20
    assert streams.window == 32 << 20
    streams.limit(2 << 20)
    assert streams.window == 2 << 20
    assert streams.observe(off, 1 << 20, 1 << 40).stop <= off + (3 << 20)
    streams.limit(8 << 20)
    for _ in range(64):
        off += 1 << 20
        streams.observe(off, 1 << 20, 1 << 40)
    assert streams.window == 8 << 20


async def test_reading_ahead_can_be_switched_off_and_on() -> None:
    async with Stack() as stack:
        await stack.writer.write(2, 0, bytes(1 << 16))
        await stack.writer.flush(2)
        assert await stack.read(2, 0, 4096) == bytes(4096)
        stack.reader.set_max_readahead(0)
        assert stack.reader._windows == 0
        assert await stack.read(2, 4096, 4096) == bytes(4096)
        stack.reader.set_max_readahead(1 << 16)
        for off in range(8192, 1 << 16, 4096):
            assert await stack.read(2, off, 4096) == bytes(4096)
        assert stack.reader._windows > 0


# -- caches


async def test_a_memory_cache_shrinks_at_once() -> None:
    cache = MemoryCache(100)
    for number in range(10):
        cache.put(str(number), bytes(10))
    cache.resize(35)
    assert cache.used_bytes == 30
    assert cache.get_now("9", 0, 1) is not None
    assert cache.get_now("6", 0, 1) is None
    cache.resize(1000)
    cache.put("big", bytes(500))
    assert cache.used_bytes == 530


async def test_a_disk_cache_shrinks_in_the_background(tmp_path: Path) -> None:
    cache = DiskCache([tmp_path], UUID, size_bytes=1 << 30, free_space_ratio=0.0)
    await cache.start()
    for number in range(20):
        cache.put(f"chunks/0/0/{number}_0_1000", bytes(1000))
    await until(lambda: not cache._queued_bytes)
    full = cache.used_bytes
    cache.resize(full // 2, 0.0)
    await until(lambda: cache.used_bytes <= full // 2)
    kept = [path for path in tmp_path.rglob("*_*_*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) == cache.used_bytes
    cache.resize(1 << 30, 0.999)  # the disk has less free space than that
    await until(lambda: cache.used_bytes == 0)
    cache.put("chunks/0/0/99_0_1000", bytes(1000))
    await until(lambda: not cache._queued_bytes)
    assert cache.used_bytes == 0
    await cache.close()


async def test_another_cache_takes_over_under_readers(tmp_path: Path) -> None:
    def disk(name):
        return DiskCache([tmp_path / name], UUID, size_bytes=1 << 30, free_space_ratio=0.0)

    async with Stack(cache=disk("a"), limit=1 << 16) as stack:
        for ino in range(2, 30):
            await stack.writer.write(ino, 0, bytes([ino]) * 4096)
            await stack.writer.flush(ino)
        stop = False

        async def read(ino):
            while not stop:
                assert await stack.read(ino, 100, 50) == bytes([ino]) * 50
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(read(ino)) for ino in range(2, 30)]
        for name in ("b", "", "c", "memory", "d"):
            cache = MemoryCache(1 << 20) if name == "memory" else disk(name) if name else None
            if cache is not None:
                await cache.start()
            stack.blocks.use_cache(cache)
            assert stack.blocks.cache is cache
            await asyncio.sleep(0.05)
        stop = True
        await asyncio.gather(*tasks)


async def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache([tmp_path / "file", tmp_path / "ok"], UUID, size_bytes=1 << 30)
    await cache.start()
    assert cache.unusable == [f"{tmp_path}/file/{UUID}"]
    await cache.close()
