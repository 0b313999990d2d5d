"""Compaction: no byte changes, and nothing is left behind (format.md §11.4)."""

from __future__ import annotations

import asyncio
import errno
import os
import random

import pytest
from support.chunk_fakes import FakeStore, Stack

from jfsd.chunk import compact
from jfsd.types import Slice

BLOCK = 4096


def put_slice(stack, slice_id, data):
    for j, at in enumerate(range(0, len(data), BLOCK)):
        part = data[at : at + BLOCK]
        stack.store.objects[f"vol/chunks/0/{slice_id // 1000}/{slice_id}_{j}_{len(part)}"] = part


def fill(stack, seed, count=12, span=60_000):
    """Put overlapping slices and holes into chunk 0 of file 1; return its bytes."""
    rng = random.Random(seed)
    model = bytearray(span)
    for n in range(count):
        pos = rng.randrange(span - 1)
        size = rng.randrange(1, min(15_000, span - pos) + 1)
        if rng.random() < 0.2:
            record, data = Slice(pos, 0, 0, 0, size), bytes(size)
        else:
            off = rng.randrange(5_000)
            whole = os.urandom(off + size + 10)
            put_slice(stack, 100 + n, whole)
            record, data = Slice(pos, 100 + n, len(whole), off, size), whole[off : off + size]
        stack.meta.lists.setdefault((1, 0), []).append(record)
        model[pos : pos + size] = data
    return bytes(model)


@pytest.mark.parametrize("seed", range(15))
async def test_bytes_stay_and_old_objects_go(seed):
    async with Stack() as stack:
        model = fill(stack, seed)
        assert await stack.compactor.compact(1, 0)
        (record,) = stack.meta.lists[1, 0]
        assert record.off == 0
        assert record.len == record.size
        assert stack.stored(1, 0, 60_000) == model
        assert len(stack.store.objects) == -(-record.size // BLOCK)
        assert not await stack.compactor.compact(1, 0)


async def test_skipped_record_keeps_its_objects():
    async with Stack(block_size=1 << 20, limit=64 << 20) as stack:
        big = os.urandom(2 << 20)
        for j in range(2):
            stack.store.objects[f"vol/chunks/0/0/50_{j}_1048576"] = big[j << 20 : (j + 1) << 20]
        stack.meta.lists[1, 0] = [Slice(0, 50, 2 << 20, 0, 2 << 20)]
        for n in range(3):
            stack.store.objects[f"vol/chunks/0/0/{60 + n}_0_10"] = b"x" * 10
            stack.meta.lists[1, 0].append(Slice((2 << 20) + n * 10, 60 + n, 10, 0, 10))
        assert await stack.compactor.compact(1, 0)
        first, second = stack.meta.lists[1, 0]
        assert first.id == 50
        assert (second.pos, second.len) == (2 << 20, 30)
        assert stack.stored(1, 0, (2 << 20) + 30) == big + b"x" * 30


async def test_list_changed_meanwhile_leaves_nothing_behind():
    async with Stack() as stack:
        model = fill(stack, 1)
        before = set(stack.store.objects)
        commit = stack.meta.commit_compaction

        async def late(ino, index, origin, skipped, record):
            stack.meta.lists[ino, index].insert(0, Slice(0, 0, 0, 0, 1))
            return await commit(ino, index, origin, skipped, record)

        stack.meta.commit_compaction = late
        assert not await stack.compactor.compact(1, 0)
        assert set(stack.store.objects) == before
        assert stack.stored(1, 0, 60_000) == model


async def test_records_appended_meanwhile_stay_behind():
    async with Stack() as stack:
        model = bytearray(fill(stack, 2))
        commit = stack.meta.commit_compaction

        async def late(ino, index, origin, skipped, record):
            await stack.writer.write(1, 5, b"late")
            await stack.writer.flush(1)
            return await commit(ino, index, origin, skipped, record)

        stack.meta.commit_compaction = late
        assert await stack.compactor.compact(1, 0)
        model[5:9] = b"late"
        assert stack.stored(1, 0, 60_000) == bytes(model)
        assert await stack.read(1, 0, 60_000) == bytes(model)[: stack.length(1)]


async def test_unreadable_slice_stops_it_and_leaves_nothing_behind():
    async with Stack() as stack:
        fill(stack, 3)
        last = [record.id for record in stack.meta.lists[1, 0] if record.id][-1]
        stack.store.objects = {
            key: body for key, body in stack.store.objects.items() if f"/{last}_" not in key
        }
        before = set(stack.store.objects)
        records = list(stack.meta.lists[1, 0])
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.compactor.compact(1, 0)
        assert set(stack.store.objects) == before
        assert stack.meta.lists[1, 0] == records


async def test_failure_in_the_background_is_nobodys_error():
    async with Stack() as stack:
        stack.meta.down = True
        stack.compactor.schedule(1, 0)
        while stack.compactor._running:
            await asyncio.sleep(0.001)


async def test_one_for_each_chunk_and_few_at_once():
    async with Stack(store=FakeStore(delay=0.003)) as stack:
        models = {}
        for index in range(30):
            fill(stack, index, count=4, span=9_000)
            stack.meta.lists[1, index] = stack.meta.lists.pop((1, 0))
            models[index] = list(stack.meta.lists[1, index])
        running, most, begun = 0, 0, []
        begin = stack.compactor._compact

        async def count(ino, index, origin):
            nonlocal running, most
            begun.append(index)
            running += 1
            most = max(most, running)
            try:
                return await begin(ino, index, origin)
            finally:
                running -= 1

        stack.compactor._compact = count
        for index in range(30):
            for _ in range(3):
                stack.compactor.schedule(1, index)
        while stack.compactor._running:
            await asyncio.sleep(0.001)
        assert sorted(begun) == list(range(30))
        assert most == 10


@pytest.mark.parametrize(
    ("records", "added", "when", "waits"),
    [
        (98, 1, "not", False),
        (99, 1, "quiet", False),
        (100, 1, "not", False),
        (199, 1, "quiet", False),
        (350, 1, "not", False),
        (98, 98, "not", False),
        (150, 52, "quiet", False),
        (351, 1, "quiet", False),
        (1500, 1000, "quiet", False),
        (1501, 1, "now", False),
        (2499, 1, "now", False),
        (2500, 1, "now", True),
    ],
)
async def test_when_a_commit_calls_for_it(records, added, when, waits, monkeypatch):
    monkeypatch.setattr(compact, "QUIET_S", 0.02)
    async with Stack() as stack:
        future = stack.compactor.after_commit(1, 0, records, added)
        assert bool(stack.compactor._running) == (when == "now")
        assert (future is not None) == waits
        begun = []
        stack.compactor.schedule = lambda ino, index: begun.append((ino, index))
        await asyncio.sleep(0.1)
        assert begun == ([(1, 0)] if when == "quiet" else [])
        if future is not None:
            await future


async def test_a_chunk_is_left_alone_while_it_is_written_to(monkeypatch):
    monkeypatch.setattr(compact, "QUIET_S", 0.2)
    async with Stack() as stack:
        began = asyncio.get_running_loop().time()
        assert stack.compactor.after_commit(1, 0, 99) is None
        for records in range(100, 120):
            await asyncio.sleep(0.02)
            stack.compactor.after_commit(1, 0, records)
        begun = []
        stack.compactor.schedule = lambda *_: begun.append(asyncio.get_running_loop().time())
        async with asyncio.timeout(5):
            while not begun:
                await asyncio.sleep(0.01)
        assert begun[0] - began > 0.4
        stack.compactor.after_commit(1, 0, 199)
    assert not stack.compactor._planned


async def test_commits_wait_for_a_chunk_that_is_too_long():
    async with Stack(compacting=True) as stack:
        for n in range(2499):
            put_slice(stack, 9000 + n, b"abc")
        stack.meta.lists[1, 0] = [Slice(n % 100, 9000 + n, 3, 0, 3) for n in range(2499)]
        await stack.writer.write(1, 0, b"x")
        await stack.writer.flush(1)
        await stack.writer.write(1, 1, b"y")
        await stack.writer.flush(1)
        assert len(stack.meta.lists[1, 0]) <= 1502
        while stack.compactor._running:
            await asyncio.sleep(0.001)
        assert stack.stored(1, 0, 2) == b"xy"
        assert stack.idle()
