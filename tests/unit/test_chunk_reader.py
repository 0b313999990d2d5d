"""Reads: what they show, what they fetch, and what they try again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter

import pytest
from support.chunk_fakes import FakeMeta, FakeStore, Stack

from jfsd.chunk import reader as reader_module
from jfsd.chunk.cache import MemoryCache
from jfsd.types import CHUNK_SIZE, Slice

BLOCK = 4096


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    monkeypatch.setattr(reader_module, "_RETRY_STEP_S", 0.001)


def slice_of(stack, slice_id, data):
    """Put the objects of a slice into the store, as another client does."""
    for j, at in enumerate(range(0, len(data), BLOCK)):
        part = data[at : at + BLOCK]
        path = f"vol/chunks/{slice_id // 10**6}/{slice_id // 1000}/{slice_id}_{j}_{len(part)}"
        stack.store.objects[path] = part


def commit(stack, ino, record, index=0):
    stack.meta.lists.setdefault((ino, index), []).append(record)
    attr = stack.meta.attr(ino)
    attr.length = max(attr.length, index * CHUNK_SIZE + record.pos + record.len)


def foreign_file(stack, ino, data, slice_id=5000):
    slice_of(stack, slice_id, data)
    commit(stack, ino, Slice(0, slice_id, len(data), 0, len(data)))


def gets(stack, kind="get"):
    return Counter(key for call, key in stack.store.calls if call == kind)


async def test_holes_and_the_end_of_the_file():
    async with Stack() as stack:
        commit(stack, 1, Slice(100, 0, 0, 0, 50))
        foreign = os.urandom(60)
        slice_of(stack, 9, foreign)
        commit(stack, 1, Slice(200, 9, 60, 10, 40))
        assert await stack.read(1, 0, 1000) == bytes(200) + foreign[10:50]
        assert bytes(await stack.reader.read(1, 1, 190, 30, 205)) == bytes(10) + foreign[10:15]
        assert bytes(await stack.reader.read(1, 1, 240, 10, 240)) == b""
        assert bytes(await stack.reader.read(1, 1, 230, 100, 10_000)) == (
            foreign[40:50] + bytes(90)
        )


async def test_read_across_blocks_slices_and_chunks():
    async with Stack() as stack:
        data = os.urandom(5 * BLOCK)
        foreign_file(stack, 1, data)
        commit(stack, 1, Slice(CHUNK_SIZE - 10, 0, 0, 0, 10))
        slice_of(stack, 7, b"z" * 20)
        commit(stack, 1, Slice(0, 7, 20, 0, 20), index=1)
        assert await stack.read(1, 100, 4 * BLOCK) == data[100 : 100 + 4 * BLOCK]
        assert await stack.read(1, CHUNK_SIZE - 5, 15) == bytes(5) + b"z" * 10


async def test_many_readers_of_a_block_share_one_request():
    async with Stack(store=FakeStore(delay=0.01)) as stack:
        data = os.urandom(BLOCK)
        foreign_file(stack, 1, data)
        results = await asyncio.gather(*(stack.read(1, n * 10, 3000, fh=n) for n in range(1, 20)))
        assert results == [data[n * 10 : n * 10 + 3000] for n in range(1, 20)]
        assert list(gets(stack).values()) == [1]
        assert stack.meta.reads == 1


async def test_cancelled_reader_does_not_take_the_others_along():
    async with Stack(store=FakeStore(gate=asyncio.Event())) as stack:
        data = os.urandom(BLOCK)
        foreign_file(stack, 1, data)
        first, second = (asyncio.ensure_future(stack.read(1, 0, BLOCK, fh=n)) for n in (1, 2))
        await asyncio.sleep(0.01)
        first.cancel()
        stack.store.gate.set()
        assert await second == data


async def test_stream_fetches_each_block_once_and_ahead():
    async with Stack(max_readahead=8 * BLOCK) as stack:
        data = os.urandom(50 * BLOCK)
        foreign_file(stack, 1, data)
        for at in range(0, len(data), 1000):
            assert await stack.read(1, at, 1000) == data[at : at + 1000]
            await asyncio.sleep(0)
            if at == 20_000:
                ahead = max(int(key.split("_")[1]) for key in gets(stack))
                assert 8 <= ahead <= 14
        assert set(gets(stack).values()) == {1}
        assert not gets(stack, "range")


async def test_windows_are_bounded_by_the_buffer():
    async with Stack(max_readahead=1 << 20, limit=40 * BLOCK) as stack:
        data = os.urandom(200 * BLOCK)
        foreign_file(stack, 1, data)
        for at in range(0, 150 * BLOCK, 1000):
            await stack.read(1, at, 1000)
            assert stack.budget.lent <= 20 * (BLOCK + 512)
        assert max(gets(stack).values()) == 1
        stack.reader.release(1)
        assert stack.reader._windows == 0


async def test_readahead_goes_on_into_the_next_chunk():
    async with Stack(max_readahead=8 * BLOCK) as stack:
        base = CHUNK_SIZE - 6 * BLOCK
        slice_of(stack, 5, os.urandom(6 * BLOCK))
        commit(stack, 1, Slice(base, 5, 6 * BLOCK, 0, 6 * BLOCK))
        slice_of(stack, 6, os.urandom(6 * BLOCK))
        commit(stack, 1, Slice(0, 6, 6 * BLOCK, 0, 6 * BLOCK), index=1)
        for n in range(20):
            await stack.read(1, base + n * 1000, 1000)
        await asyncio.sleep(0.01)
        assert any("/6_" in key for key in gets(stack))


async def test_small_random_reads_fetch_parts():
    async with Stack(block_size=1 << 16, limit=4 << 20) as stack:
        data = os.urandom(1 << 16)
        stack.store.objects["vol/chunks/0/0/3_0_65536"] = data
        commit(stack, 1, Slice(0, 3, 1 << 16, 0, 1 << 16))
        for at in (60_000, 5_000, 30_000):
            assert await stack.read(1, at, 100) == data[at : at + 100]
        assert sum(gets(stack, "range").values()) == 3
        assert not gets(stack)


@pytest.mark.parametrize("options", [{"compression": "lz4"}, {"encrypted": True}])
async def test_no_parts_of_encoded_blocks(options):
    async with Stack(block_size=1 << 16, limit=4 << 20, **options) as stack:
        await stack.writer.write(1, 0, b"abcd" * (1 << 14))
        await stack.writer.flush(1)
        assert await stack.read(1, 50_000, 100) == b"abcd" * 25
        assert not gets(stack, "range")


async def test_random_reads_bring_the_block_into_the_cache():
    cache = MemoryCache(1 << 20)
    async with Stack(block_size=1 << 16, limit=4 << 20, cache=cache, prefetch=1) as stack:
        data = os.urandom(1 << 16)
        stack.store.objects["vol/chunks/0/0/3_0_65536"] = data
        commit(stack, 1, Slice(0, 3, 1 << 16, 0, 1 << 16))
        assert await stack.read(1, 60_000, 100) == data[60_000:60_100]
        await asyncio.sleep(0.01)
        assert await stack.read(1, 10_000, 100) == data[10_000:10_100]
        assert (sum(gets(stack, "range").values()), sum(gets(stack).values())) == (1, 1)
        assert cache.used_bytes == 1 << 16


async def test_small_fresh_blocks_are_cached_big_ones_are_not():
    cache = MemoryCache(1 << 20)
    async with Stack(cache=cache) as stack:
        await stack.writer.write(1, 0, b"x" * (BLOCK + 100))
        await stack.writer.flush(1)
        assert cache.used_bytes == 100
        assert await stack.read(1, BLOCK, 100) == b"x" * 100
        assert not gets(stack)


# -- lists


async def test_own_commits_do_not_cost_a_request():
    async with Stack() as stack:
        assert await stack.read(1, 0, 10) == b""
        await stack.writer.write(1, 0, b"one")
        assert await stack.read(1, 0, 10) == b"one"
        await stack.writer.flush(1)
        await stack.writer.write(1, 1, b"two")
        await stack.writer.flush(1)
        assert await stack.read(1, 0, 10) == b"otwo"
        assert stack.meta.reads == 1


async def test_own_commit_shows_those_of_others():
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"ours")
        await stack.writer.flush(1)
        assert await stack.read(1, 0, 10) == b"ours"
        slice_of(stack, 77, b"theirs")
        commit(stack, 1, Slice(4, 77, 6, 0, 6))
        await stack.writer.write(1, 10, b"!")
        await stack.writer.flush(1)
        assert await stack.read(1, 0, 20) == b"ourstheirs!"


async def test_invalidate_shows_what_others_did():
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 100)
        assert await stack.read(1, 0, 100) == b"a" * 100
        slice_of(stack, 77, b"b" * 50)
        commit(stack, 1, Slice(0, 77, 50, 0, 50))
        stack.reader.invalidate(1)
        assert await stack.read(1, 0, 100) == b"b" * 50 + b"a" * 50


async def test_list_invalidated_while_it_is_read_is_read_again():
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 100)
        read_slices, gate = stack.meta.read_slices, asyncio.Event()

        async def slow(*args, **how):
            found = await read_slices(*args, **how)
            await gate.wait()
            return found

        stack.meta.read_slices = slow
        task = asyncio.ensure_future(stack.read(1, 0, 100))
        await asyncio.sleep(0.01)
        slice_of(stack, 77, b"b" * 100)
        commit(stack, 1, Slice(0, 77, 100, 0, 100))
        stack.reader.invalidate(1)
        gate.set()
        assert await task == b"b" * 100


async def test_commit_while_the_list_is_read_is_not_lost():
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 100)
        read_slices, gate = stack.meta.read_slices, asyncio.Event()

        async def slow(*args, **how):
            found = await read_slices(*args, **how)
            await gate.wait()
            return found

        stack.meta.read_slices = slow
        task = asyncio.ensure_future(stack.read(1, 0, 100))
        await asyncio.sleep(0.01)
        await stack.writer.write(1, 10, b"new")
        await stack.writer.flush(1)
        gate.set()
        assert await task == b"a" * 10 + b"new" + b"a" * 87
        assert await stack.read(1, 0, 100) == b"a" * 10 + b"new" + b"a" * 87


async def test_chunk_of_many_pieces_is_compacted():
    async with Stack(compacting=True) as stack:
        model = bytearray(1000)
        for n in range(5):
            slice_of(stack, 100 + n, bytes([n + 1]) * 300)
            commit(stack, 1, Slice(n * 150, 100 + n, 300, 0, 300))
            model[n * 150 : n * 150 + 300] = bytes([n + 1]) * 300
        assert await stack.read(1, 0, 1000) == bytes(model[:900])
        while stack.compactor._running:
            await asyncio.sleep(0.001)
        assert [(r.pos, r.len) for r in stack.meta.lists[1, 0]] == [(0, 900)]
        assert await stack.read(1, 0, 1000) == bytes(model[:900])
        assert len(stack.store.objects) == 1


# -- trouble


async def test_missing_object_has_the_list_read_again():
    """Another client compacted the chunk after we read its list."""
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 100)
        await stack.lists.get(1, 0)
        stack.store.objects.clear()
        slice_of(stack, 88, b"a" * 100)
        stack.meta.lists[1, 0] = [Slice(0, 88, 100, 0, 100)]
        assert await stack.read(1, 0, 100) == b"a" * 100


async def test_missing_object_is_waited_for_then_an_error(caplog):
    async with Stack(io_retries=3) as stack:
        commit(stack, 1, Slice(0, 5, 100, 0, 100))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.read(1, 0, 100)
        assert sum(gets(stack).values()) == 4
        assert stack.meta.reads == 4
        (record,) = caplog.records
        assert "file 1 cannot be read" in record.getMessage()
        assert "5_0_100" in record.getMessage()


async def test_short_object_is_an_error():
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 100)
        (key,) = stack.store.objects
        stack.store.objects[key] = b"a" * 99
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.read(1, 0, 100)
        stack.store.objects[key] = b"b" * 101  # the excess is ignored
        assert await stack.read(1, 0, 100) == b"b" * 100


async def test_store_that_is_down_is_an_error_and_forgotten_after():
    async with Stack() as stack:
        foreign_file(stack, 1, b"a" * 10 * BLOCK)
        stack.store.down = True
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.read(1, 0, 100)
        stack.store.down = False
        assert await stack.read(1, 0, 100) == b"a" * 100


async def test_metadata_errors_pass_through():
    async with Stack(meta=FakeMeta(down=True)) as stack:
        with pytest.raises(ConnectionError):
            await stack.reader.read(1, 1, 0, 10, 10)
        stack.meta.down = False
        assert bytes(await stack.reader.read(1, 1, 0, 10, 10)) == bytes(10)


async def test_pending_block_that_was_uploaded_is_read_from_the_store():
    async with Stack() as stack:
        data = os.urandom(3 * BLOCK)
        await stack.writer.write(1, 0, data + b"tail")
        while len(stack.store.objects) < 3:
            await asyncio.sleep(0.001)
        assert not stack.meta.commits
        assert await stack.read(1, 0, len(data) + 4) == data + b"tail"


async def test_part_beyond_the_end_of_a_short_object_is_an_error():
    async with Stack(block_size=1 << 16, limit=4 << 20, io_retries=1) as stack:
        stack.store.objects["vol/chunks/0/0/3_0_65536"] = bytes(50_000)
        commit(stack, 1, Slice(0, 3, 1 << 16, 0, 1 << 16))
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.read(1, 49_990, 100)


async def test_own_compaction_does_not_send_readers_after_old_objects():
    async with Stack(compacting=True) as stack:
        for n in range(3):
            await stack.writer.write(1, n * 10, bytes([n + 1]) * 20)
            await stack.writer.flush(1)
        before = await stack.read(1, 0, 100)
        await stack.compactor.compact(1, 0)
        stack.store.calls.clear()
        for key in range(10):
            stack.blocks.pool.drop(key * 1024)
        assert await stack.read(1, 0, 100) == before
        assert len(stack.store.calls) == 1
