"""What the write buffer promises: order, bounds, and what becomes of data in trouble."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from support.chunk_fakes import FakeMeta, FakeStore, Stack

from jfsd import clock
from jfsd.chunk import slicing
from jfsd.chunk import writer as writer_module
from jfsd.chunk.pending import UPLOADED, SliceRecord
from jfsd.daemon.journal import SliceJournal
from jfsd.daemon.state import Header, State
from jfsd.object.base import StoreFullError
from jfsd.types import CHUNK_SIZE

BLOCK = 4096
BIG_BLOCK = 1 << 16
"""The smallest block that a volume may have."""


@pytest.fixture(autouse=True)
def _quick_ticks(monkeypatch):
    monkeypatch.setattr(writer_module, "_TICK_S", 0.01)


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until told to go on."""

    class Now:
        s = 1000.0
        ns = 5_000_000_000

    monkeypatch.setattr(clock, "monotonic_s", lambda: Now.s)
    monkeypatch.setattr(clock, "now_ns", lambda: Now.ns)
    return Now


async def settle(condition, limit_s=5.0):
    """Wait until `condition` holds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


def records(stack, ino=1, index=0):
    return [(r.pos, r.len) for r in stack.meta.lists.get((ino, index), [])]


def resident_bytes(stack):
    return os.fstat(stack.arena.fd).st_blocks * 512


# -- slices


async def test_sequential_writes_make_one_slice():
    async with Stack() as stack:
        data = os.urandom(20_000)
        for at in range(0, len(data), 700):
            await stack.writer.write(1, at, data[at : at + 700])
        await stack.writer.flush(1)
        assert records(stack) == [(0, 20_000)]
        assert stack.stored(1, 0, 20_000) == data
        assert stack.idle()


async def test_full_blocks_are_uploaded_while_writing_goes_on(now):
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"a" * (2 * BLOCK + 10))
        await settle(lambda: len(stack.store.objects) == 2)
        assert not stack.meta.commits
        assert stack.arena.used_slots == 1
        await stack.writer.flush(1)
        assert sorted(stack.store.objects) == [
            "vol/chunks/0/0/1_0_4096",
            "vol/chunks/0/0/1_1_4096",
            "vol/chunks/0/0/1_2_10",
        ]


async def test_last_block_is_rewritten_in_place_an_uploaded_one_is_not(now):
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"a" * (BLOCK + 100))
        await stack.writer.write(1, BLOCK + 50, b"b" * 100)
        assert len(stack.writer.pending(1, 0)) == 1
        await stack.writer.write(1, BLOCK - 1, b"c" * 2)
        assert len(stack.writer.pending(1, 0)) == 2
        await stack.writer.flush(1)
        assert records(stack) == [(0, BLOCK + 150), (BLOCK - 1, 2)]
        expected = b"a" * (BLOCK - 1) + b"cc" + b"a" * 49 + b"b" * 100
        assert stack.stored(1, 0, BLOCK + 150) == expected


async def test_write_that_a_newer_slice_overlaps_starts_its_own(now):
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"a" * 100)
        await stack.writer.write(1, 150, b"b" * 100)
        await stack.writer.write(1, 100, b"c" * 100)  # continues the first, covers the second
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 250) == b"a" * 100 + b"c" * 100 + b"b" * 50
        assert records(stack) == [(0, 100), (150, 100), (100, 100)]


async def test_slice_with_more_than_three_newer_ones_is_frozen(now):
    async with Stack() as stack:
        for n in range(5):
            await stack.writer.write(1, n * 3000, b"x" * 2000)
        first = stack.writer.pending(1, 0)[0]
        assert not first.frozen
        await stack.writer.write(1, 20_000, b"x" * 2000)
        assert first.frozen


async def test_slice_ends_with_its_chunk(now):
    async with Stack() as stack:
        await stack.writer.write(1, CHUNK_SIZE - 10, b"a" * 30)
        await settle(lambda: records(stack) == [(CHUNK_SIZE - 10, 10)])
        assert [p.index for p in stack.writer.pending(1, 1)] == [1]
        await stack.writer.flush(1)
        assert records(stack, index=1) == [(0, 20)]


async def test_idle_slice_goes_home_after_a_second(now):
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"x")
        now.s += 0.9
        await asyncio.sleep(0.05)
        assert not stack.meta.commits
        now.s += 0.2
        await settle(stack.idle)
        assert records(stack) == [(0, 1)]


async def test_old_slice_goes_home_though_written_to(now):
    async with Stack() as stack:
        for n in range(12):
            await stack.writer.write(1, n, b"x")
            now.s += 0.5
        await settle(lambda: bool(stack.meta.commits))
        assert records(stack)[0] == (0, 12)


# -- packs


async def scatter(stack, places, ino=1, size=40):
    """Write small runs of bytes at places of a file; return what it should hold."""
    model = bytearray(max(places) + size)
    for n, place in enumerate(places):
        data = bytes([n % 255 + 1]) * size
        await stack.writer.write(ino, place, data)
        model[place : place + size] = data
    return bytes(model)


async def test_small_writes_share_an_object_and_a_commit(now):
    async with Stack() as stack:
        places = [n * 7919 % 20_000 for n in range(50)]
        model = await scatter(stack, places)
        assert stack.arena.used_slots == 1
        assert await stack.read(1, 0, len(model)) == model
        await stack.writer.flush(1)
        assert list(stack.store.objects) == ["vol/chunks/0/0/1_0_2000"]
        assert records(stack) == [(place, 40) for place in places]
        assert (len(stack.meta.commits), stack.meta.packs) == (1, 1)
        assert stack.stored(1, 0, len(model)) == model
        assert await stack.read(1, 0, len(model)) == model
        assert stack.idle()


async def test_later_writes_of_a_pack_hide_earlier_ones(now):
    async with Stack() as stack:
        model = await scatter(stack, [0, 500, 20, 520, 10, 500, 30, 0, 400, 15] * 3)
        assert await stack.read(1, 0, len(model)) == model
        await stack.writer.flush(1)
        assert stack.stored(1, 0, len(model)) == model


async def test_a_full_pack_is_sent_and_another_is_begun(now):
    async with Stack() as stack:
        model = await scatter(stack, [n * 7919 % 60_000 for n in range(250)])
        await settle(lambda: stack.meta.packs == 2)
        assert len(stack.writer.pending(1, 0)) < BLOCK // 40
        await stack.writer.flush(1)
        assert stack.stored(1, 0, len(model)) == model


async def test_a_pack_has_a_limited_number_of_parts(now, monkeypatch):
    monkeypatch.setattr(slicing, "PACK_PARTS", 5)
    async with Stack() as stack:
        await scatter(stack, [n * 100 for n in (5, 3, 9, 1, 7)], size=1)
        await settle(lambda: stack.meta.packs == 1)


async def test_a_pack_spans_chunks_of_one_file(now):
    async with Stack() as stack:
        for ino in (1, 2):
            for index in (2, 0, 1):
                await stack.writer.write(ino, index * CHUNK_SIZE + 5, bytes([ino, index]))
        await stack.writer.flush_all()
        assert len(stack.store.objects) == 2
        for ino in (1, 2):
            assert [records(stack, ino, index) for index in range(3)] == [[(5, 2)]] * 3
            assert stack.stored(ino, 2 * CHUNK_SIZE + 5, 2) == bytes([ino, 2])


async def test_streams_in_turn_do_not_become_packs(now):
    async with Stack() as stack:
        model = bytearray(30_000)
        for n in range(40):
            for at in (n * 100, 20_000 + n * 100):
                model[at : at + 100] = data = bytes([n + 1]) * 100
                await stack.writer.write(1, at, data)
        assert await stack.read(1, 0, 30_000) == bytes(model[:24_000])
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 30_000) == bytes(model)
        assert len(records(stack)) <= 8


async def test_writes_that_meet_others_by_chance_stay_in_the_pack(now):
    async with Stack() as stack:
        places = [n * 7919 % 400 * 40 for n in range(100)]
        for n in range(0, 90, 9):
            places[n + 3] = places[n] + 40
        model = await scatter(stack, places)
        await stack.writer.flush(1)
        assert len(stack.meta.commits) == 1
        assert stack.stored(1, 0, len(model)) == model


@pytest.mark.promise(3)
async def test_the_next_process_drops_what_was_refused_and_no_more(now):
    """The answer of a commit that took a part of a pack is lost, and the process with it."""
    state = State.create(Header("m", "v", "/mnt", "0:1", BIG_BLOCK))
    meta, store = FakeMeta(capacity=1000, lose=1.0), FakeStore()
    first = Stack(meta=meta, store=store, journal=SliceJournal(state), block_size=BIG_BLOCK)
    fd = os.dup(first.arena.fd)
    async with first:
        for place in (10, 5000, 50, 6000, 990):
            await first.writer.write(1, place, b"x" * 10)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await first.writer.flush(1)
        await first.writer.write(1, 100, b"y" * 10)
    meta.lose = 0.0
    again = State.load(state.fd)
    second = Stack(
        meta=meta, store=store, journal=SliceJournal(again), block_size=BIG_BLOCK, arena_fd=fd
    )
    async with second:
        second.writer.adopt(again.slices(), opened={1})
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await second.writer.flush(1)
        await second.writer.flush(1)
        expected = bytearray(1000)
        for place in (10, 50, 990):
            expected[place : place + 10] = b"x" * 10
        expected[100:110] = b"y" * 10
        assert second.stored(1, 0, 1000) == bytes(expected)
        assert await second.read(1, 0, 1000) == bytes(expected)
        assert second.idle()
        assert State.load(state.fd).slices() == []
    os.close(fd)
    os.close(state.fd)


async def test_what_is_written_around_a_pack_keeps_its_order(now):
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"a" * 10)
        await stack.writer.write(1, 50, b"b" * 10)  # a pack
        await stack.writer.write(1, 5, b"c" * 5000)  # a slice of its own
        await stack.writer.write(1, 7, b"d" * 10)  # another
        await stack.writer.write(1, 52, b"e" * 3)
        expected = b"a" * 5 + b"cc" + b"d" * 10 + b"c" * 35 + b"eee" + b"c" * 4950
        assert await stack.read(1, 0, 5005) == expected
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 5005) == expected
        assert stack.meta.packs == 2


@pytest.mark.promise(15)
async def test_of_a_refused_pack_is_kept_what_does_not_grow_the_file(now):
    async with Stack(meta=FakeMeta(capacity=1000)) as stack:
        await stack.writer.write(1, 0, b"a" * 900)
        await stack.writer.flush(1)
        before = stack.writer.newest
        for place in (10, 950, 1100, 960, 5000, 30):
            await stack.writer.write(1, place, b"x" * 5)
        await stack.writer.write(1, 900, b"y" * 1500)  # waits behind it, and reaches as far
        await stack.writer.write(1, 100, b"z" * 5)
        await stack.writer.write(1, 3000, b"z" * 5)
        assert stack.writer.newest == before + 9
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await stack.writer.flush(1)
        await stack.writer.flush(1)
        assert stack.meta.attr(1).length == 965
        expected = bytearray(b"a" * 900 + bytes(100))
        for place in (10, 950, 960, 30):
            expected[place : place + 5] = b"x" * 5
        expected[100:105] = b"z" * 5
        assert stack.stored(1, 0, 1000) == bytes(expected)
        assert await stack.read(1, 0, 1000) == bytes(expected[:965])
        await settle(lambda: len(stack.store.objects) == 3)
        assert stack.idle()


@pytest.mark.promise(15)
async def test_a_pack_is_kept_through_an_outage_and_committed_once(now):
    async with Stack(meta=FakeMeta(lose=1.0), retry_s=60) as stack:
        stack.store.down = True
        model = await scatter(stack, [n * 7919 % 20_000 for n in range(50)])
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.writer.flush(1)
        stack.store.down = False
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.writer.flush(1)
        stack.meta.lose = 0
        await stack.writer.flush(1)
        assert len(records(stack)) == 50
        assert stack.stored(1, 0, len(model)) == model
        assert stack.idle()


async def test_a_discarded_pack_leaves_nothing(now):
    async with Stack() as stack:
        stack.store.gate = asyncio.Event()
        await scatter(stack, [n * 7919 % 60_000 for n in range(150)])
        await asyncio.sleep(0.01)
        stack.writer.discard(1)
        stack.store.gate.set()
        await settle(stack.idle)
        await settle(lambda: not stack.store.objects)
        assert not stack.meta.commits


# -- commits


async def test_objects_are_stored_before_the_metadata_knows():
    async with Stack(store=FakeStore(delay=0.005)) as stack:

        def stored(record):
            assert len(stack.body(record.id, record.size)) == record.size

        stack.meta.before_commit = stored
        for n in range(20):
            await stack.writer.write(1, n * 5000, os.urandom(5000 - n * 10))
        await stack.writer.flush(1)
        assert len(stack.meta.commits) > 1


async def test_commits_keep_write_order_though_uploads_do_not():
    async with Stack(store=FakeStore(delay=0.02, seed=3)) as stack:
        for n in range(30):
            await stack.writer.write(1, 7 * n % 5 * 100, bytes([n + 1]) * 150)
        pending = [p.seq for p in stack.writer.pending(1, 0)]
        assert len(pending) > 5
        model = bytearray(550)
        for n in range(30):
            at = 7 * n % 5 * 100
            model[at : at + 150] = bytes([n + 1]) * 150
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 550) == bytes(model)
        times = [commit[3] for commit in stack.meta.commits]
        assert times == sorted(times)


async def test_length_never_exposes_a_gap():
    """The slice of the second chunk is stored first and still committed second."""
    async with Stack() as stack:
        first = asyncio.Event()
        put = stack.store.put

        async def slow_first(key, body, **how):
            if "/1_" in key:
                await first.wait()
            await put(key, body, **how)

        stack.store.put = slow_first
        await stack.writer.write(1, CHUNK_SIZE - 10, b"a" * 30)
        flush = asyncio.ensure_future(stack.writer.flush(1))
        await settle(lambda: len(stack.store.objects) == 1)
        await asyncio.sleep(0.02)
        assert not stack.meta.commits
        first.set()
        await flush
        assert [commit[1] for commit in stack.meta.commits] == [0, 1]


async def test_growing_commits_are_not_under_way_together():
    async with Stack(meta=FakeMeta()) as stack:
        running, most = 0, 0
        commit = stack.meta.commit_slice

        async def slow(*args):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.003)
            try:
                return await commit(*args)
            finally:
                running -= 1

        stack.meta.commit_slice = slow
        for n in range(10):
            await stack.writer.write(1, n * 3000, b"x" * 2000)
        await stack.writer.flush(1)
        assert most == 1
        for n in range(10):
            await stack.writer.write(1, n * 2500 + 3, b"y" * 2000)
        await stack.writer.flush(1)
        assert most > 1  # the first told the length; the others lie inside it


async def test_mtime_is_that_of_the_last_write(now):
    async with Stack() as stack:
        now.ns = 111
        await stack.writer.write(1, 0, b"x")
        now.ns = 222
        await stack.writer.write(1, 1, b"y")
        now.ns = 999
        assert stack.writer.dirty(1) == (2, 222)
        await stack.writer.flush(1)
        assert [commit[3] for commit in stack.meta.commits] == [222]
        assert stack.writer.dirty(1) is None


async def test_commits_of_many_files_are_not_lost_by_their_limit():
    async with Stack(limit=32 << 20, max_uploads=20, slots=4096) as stack:
        for ino in range(1, 600):
            await stack.writer.write(ino, 0, b"x" * 100)
        await asyncio.wait_for(stack.writer.flush_all(), 20)
        assert len(stack.meta.commits) == 599
        assert stack.idle()


# -- trouble


@pytest.mark.promise(15)
async def test_outage_is_told_and_data_is_kept():
    async with Stack(retry_s=60) as stack:
        stack.store.down = True
        await stack.writer.write(1, 0, b"kept")
        for _ in range(2):  # each fsync tries again
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await stack.writer.flush(1)
        await stack.writer.write(1, 4, b"more")
        assert await stack.read(1, 0, 10) == b"keptmore"
        stack.store.down = False
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 8) == b"keptmore"
        assert stack.idle()


@pytest.mark.promise(15)
async def test_failure_in_the_background_is_told_once_at_the_next_write(now):
    async with Stack(retry_s=60) as stack:
        stack.store.down = True
        await stack.writer.write(1, 0, b"a")
        now.s += 2
        await settle(lambda: 1 in stack.writer._failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.writer.write(1, 1, b"b")
        await stack.writer.write(1, 1, b"b")
        stack.store.down = False
        now.s += 100
        await settle(stack.idle)
        assert stack.stored(1, 0, 2) == b"ab"


async def test_failure_that_mended_itself_is_not_told(now):
    async with Stack(retry_s=1) as stack:
        stack.store.down = True
        await stack.writer.write(1, 0, b"a")
        now.s += 2
        await settle(lambda: 1 in stack.writer._failing)
        stack.store.down = False
        now.s += 2
        await settle(stack.idle)
        await stack.writer.write(1, 1, b"b")
        await stack.writer.flush(1)


async def test_full_store_is_told_as_such():
    async with Stack(retry_s=60) as stack:
        put = stack.store.put

        async def full(key, body, **how):
            raise StoreFullError(key)

        stack.store.put = full
        await stack.writer.write(1, 0, b"a")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await stack.writer.flush(1)
        stack.store.put = put
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 1) == b"a"


async def test_all_who_wait_are_told():
    async with Stack(retry_s=60) as stack:
        stack.store.down = True
        await stack.writer.write(1, 0, b"a")
        results = await asyncio.gather(
            *(stack.writer.flush(1) for _ in range(3)), return_exceptions=True
        )
        assert [each.errno for each in results] == [errno.EIO] * 3


async def test_lost_answer_of_a_commit_is_asked_for_again():
    async with Stack(meta=FakeMeta(lose=1.0), retry_s=60) as stack:
        await stack.writer.write(1, 0, b"once")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await stack.writer.flush(1)
        stack.meta.lose = 0
        await stack.writer.flush(1)
        assert records(stack) == [(0, 4)]
        assert stack.idle()


@pytest.mark.promise(15)
@pytest.mark.parametrize("background", [False, True])
async def test_quota_refuses_drops_and_tells(now, background):
    async with Stack(meta=FakeMeta(capacity=1000)) as stack:
        await stack.writer.write(1, 0, b"a" * 900)
        await stack.writer.flush(1)
        await stack.writer.write(1, 900, b"b" * 200)
        await stack.writer.write(1, 5000, b"c")
        await stack.writer.write(1, 10, b"d")
        if background:
            now.s += 2
            await settle(lambda: not stack.writer.dirty(1))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await stack.writer.write(1, 0, b"x")
        else:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                await stack.writer.flush(1)
        await stack.writer.flush(1)
        assert stack.meta.attr(1).length == 900
        assert stack.stored(1, 0, 1000) == b"a" * 10 + b"d" + b"a" * 889 + bytes(100)
        await settle(lambda: len(stack.store.objects) == 2)
        assert stack.idle()


async def test_file_that_is_gone_takes_its_data_along():
    async with Stack() as stack:
        stack.meta.gone.add(1)
        await stack.writer.write(1, 0, b"a" * (3 * BLOCK + 5))
        await stack.writer.write(1, 10 * BLOCK, b"b")
        with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
            await stack.writer.flush(1)
        await settle(lambda: not stack.store.objects)
        await stack.writer.flush(1)
        assert stack.idle()


@pytest.mark.parametrize("closing", ["discard", "release", "adopt"])
async def test_a_refusal_that_nobody_can_be_told_of_is_not_kept(closing):
    """Or it would fail the flush at the end of the mount, for a file that is gone."""
    async with Stack() as stack:
        stack.meta.gone.add(1)
        if closing == "adopt":
            record = SliceRecord(9, 1, 0, 0, 5, 77, 1, (UPLOADED,))
            stack.writer.adopt([record], opened={2})
        else:
            await stack.writer.write(1, 0, b"a" * (3 * BLOCK + 5))
            getattr(stack.writer, closing)(1)
        await stack.writer.flush_all()
        await settle(lambda: not stack.writer.dirty(1))
        await stack.writer.flush_all()
        await stack.writer.flush(1)


async def test_discarded_data_is_not_stored():
    async with Stack() as stack:
        stack.store.gate = asyncio.Event()
        await stack.writer.write(1, 0, b"a" * (3 * BLOCK + 5))
        await stack.writer.write(1, 20 * BLOCK, b"b")
        await asyncio.sleep(0.01)
        assert stack.store.running == 3
        stack.writer.discard(1)
        assert stack.writer.dirty(1) is None
        stack.store.gate.set()
        await settle(stack.idle)
        await settle(lambda: not stack.store.objects)
        assert not stack.meta.commits


async def test_released_file_keeps_no_error(now):
    async with Stack(meta=FakeMeta(capacity=0)) as stack:
        await stack.writer.write(1, 0, b"a")
        now.s += 2
        await settle(lambda: not stack.writer.dirty(1))
        stack.writer.release(1)
        assert stack.idle()
        await stack.writer.write(1, 0, b"a")


# -- memory


@pytest.mark.promise(19)
async def test_buffer_is_bounded_and_writers_wait():
    limit = 40 * BLOCK
    async with Stack(limit=limit) as stack:
        stack.store.gate = asyncio.Event()
        accepted = 0
        data = os.urandom(BLOCK)

        async def load():
            nonlocal accepted
            for n in range(200):
                await stack.writer.write(1, n * BLOCK, data)
                accepted += 1
                assert resident_bytes(stack) <= limit

        task = asyncio.ensure_future(load())
        await asyncio.sleep(0.1)
        assert not task.done()
        assert 10 <= accepted < 40
        stack.store.gate.set()
        await asyncio.wait_for(task, 10)
        await stack.writer.flush(1)
        assert stack.stored(1, 0, 200 * BLOCK) == data * 200
        assert stack.idle()


@pytest.mark.promise(19)
async def test_small_files_are_charged_for_what_they_touch():
    limit = 1 << 20
    async with Stack(limit=limit, block_size=1 << 16) as stack:
        stack.store.gate = asyncio.Event()
        count = 0

        async def load():
            nonlocal count
            for ino in range(1, 1000):
                await stack.writer.write(ino, 0, b"x" * 100)
                count += 1

        task = asyncio.ensure_future(load())
        await asyncio.sleep(0.1)
        assert not task.done()
        assert 60 <= count <= limit // 12288  # a page, and what its slot and slice cost
        assert resident_bytes(stack) <= count * 4096
        stack.store.gate.set()
        await asyncio.wait_for(task, 10)
        await stack.writer.flush_all()
        stack.arena.trim(0)
        assert resident_bytes(stack) == 0
        assert stack.idle()


async def test_open_slices_make_room_when_memory_is_short(now):
    """No slice is old, idle or full, yet a writer does not wait for ever."""
    async with Stack(limit=1 << 20, block_size=1 << 16) as stack:
        for ino in range(1, 300):
            await asyncio.wait_for(stack.writer.write(ino, 0, b"x" * 100), 5)
        assert stack.meta.commits


async def test_write_larger_than_the_buffer():
    async with Stack(limit=16 * BLOCK) as stack:
        data = os.urandom(100 * BLOCK + 77)
        await asyncio.wait_for(stack.writer.write(1, 33, data), 10)
        await stack.writer.flush(1)
        assert stack.stored(1, 33, len(data)) == data


async def test_cancelled_writer_leaks_nothing():
    async with Stack(limit=20 * BLOCK) as stack:
        stack.store.gate = asyncio.Event()
        tasks = [
            asyncio.ensure_future(stack.writer.write(ino, 0, b"x" * 3 * BLOCK))
            for ino in range(1, 20)
        ]
        await asyncio.sleep(0.01)
        waiting = [task for task in tasks if not task.done()]
        assert len(waiting) > 5
        for task in waiting[::2]:
            task.cancel()
        stack.store.gate.set()
        for task in waiting[1:3]:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await stack.writer.flush_all()
        assert stack.idle()


async def test_writer_without_room_gives_up_in_the_end():
    async with Stack(limit=16 * BLOCK, stall_timeout_s=0.05) as stack:
        stack.store.gate = asyncio.Event()

        async def load():
            for n in range(100):
                await stack.writer.write(1, n * BLOCK, b"x" * BLOCK)

        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await load()
        stack.store.gate.set()
        await stack.writer.flush(1)
        assert stack.idle()


async def test_uploads_at_once_are_limited():
    async with Stack(max_uploads=3, store=FakeStore(delay=0.002)) as stack:
        await stack.writer.write(1, 0, os.urandom(30 * BLOCK))
        await stack.writer.flush(1)
        assert stack.store.most == 3


# -- the next process


@pytest.mark.promise(3)
@pytest.mark.parametrize("seed", range(12))
async def test_next_process_brings_home_what_was_accepted(seed):
    """The process ends at any point; the arena and the state are all that is left."""
    store, meta = FakeStore(delay=0.004, seed=seed), FakeMeta(delay=0.002, seed=seed)
    state = State.create(Header("m", "v", "/mnt", "0:1", BIG_BLOCK))
    model = bytearray(600_000)
    sizes = {"block_size": BIG_BLOCK, "limit": 3_000_000}
    first = Stack(store=store, meta=meta, journal=SliceJournal(state), **sizes)
    fd = os.dup(first.arena.fd)
    async with first:
        for n in range(60):
            at = (n * 7919 * (seed + 1)) % 500_000
            data = bytes([n + 1]) * (n * 3331 % 90_000 + 1 if n % 20 < 6 else n + 1)
            await first.writer.write(1, at, data)
            model[at : at + len(data)] = data
            await asyncio.sleep(0.0005)
            if n % 20 == 19 and seed % 3:
                first.writer.push(1)
        assert any(part.slice.packed for part in first.writer.pending(1, 0))
    again = State.load(state.fd)
    found = again.slices()
    assert found
    journal = SliceJournal(again)
    second = Stack(store=store, meta=meta, journal=journal, arena_fd=fd, **sizes)
    async with second:
        second.writer.adopt(found)
        assert second.budget.charged > 0
        got = await second.reader.read(1, 1, 0, 600_000, 600_000)
        assert bytes(got) == bytes(model)
        await second.writer.flush_all()
        assert second.stored(1, 0, 600_000) == bytes(model)
        assert second.idle()
        assert State.load(state.fd).slices() == []
        assert len(meta.commits) == len({commit[2].id for commit in meta.commits})
        assert resident_bytes(second) <= second.arena.warm_bytes
    os.close(fd)
    os.close(state.fd)


async def test_slot_cannot_be_claimed_twice():
    async with Stack() as stack:
        await stack.writer.write(1, 0, b"x")
        slot = stack.writer.records()[0].slots[0]
        with pytest.raises(ValueError, match="cannot be claimed"):
            stack.arena.claim(slot, 1)


async def test_small_file_does_not_wait_for_a_large_one():
    async with Stack(max_uploads=2, store=FakeStore(delay=0.004), limit=4 << 20) as stack:
        await stack.writer.write(1, 0, os.urandom(200 * BLOCK))
        await stack.writer.write(2, 0, b"small")
        await stack.writer.flush(2)
        assert len(stack.store.objects) < 20
        await stack.writer.flush(1)
        assert stack.idle()
