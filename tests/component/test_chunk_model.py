"""Writer, reader and compactor against a byte array, with a slow and failing store."""

from __future__ import annotations

import asyncio
import errno
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chunk_fakes import FakeMeta, FakeStore, Stack

from jfsd.chunk import writer as writer_module
from jfsd.types import CHUNK_SIZE

BASE = CHUNK_SIZE - 30_000
WINDOW = 60_000


@pytest.fixture(autouse=True, scope="module")
def _quick_ticks():
    normal, writer_module._TICK_S = writer_module._TICK_S, 0.01
    yield
    writer_module._TICK_S = normal


class Model:
    """A window of a file; every write has a byte value of its own."""

    def __init__(self, ino):
        self.ino = ino
        self.bytes = bytearray(WINDOW)
        self.high = 0
        self.log = []
        self.done = 0

    def begin(self, at, size):
        """Note a write that may be seen from now on."""
        value = len(self.log) % 255 + 1
        self.log.append((at, size, value))
        return bytes([value]) * size

    def accepted(self):
        """The last write must be seen from now on."""
        at, size, value = self.log[-1]
        self.bytes[at : at + size] = bytes([value]) * size
        self.high = max(self.high, at + size)
        self.done = len(self.log)


async def check_read(stack, model, rng):
    """A read shows each byte as it was when it began or as a write during it made it."""
    at = rng.randrange(WINDOW)
    size = min(rng.choice([1, 100, 5000, 20000]), WINDOW - at)
    before, seen = bytes(model.bytes[at : at + size]), model.done
    length = max(BASE + model.high, 0) if model.high else 0
    got = bytes(await stack.reader.read(model.ino, rng.randrange(3), BASE + at, size, length))
    assert len(got) == max(0, min(at + size + BASE, length) - BASE - at)
    during = model.log[seen:]
    for n, byte in enumerate(got):
        if byte != before[n]:
            allowed = {v for a, s, v in during if a <= at + n < a + s}
            assert byte in allowed, f"byte {at + n} is {byte}, was {before[n]}, may be {allowed}"


def check_error(error, failing):
    assert failing
    assert error.errno == errno.EIO


async def run(seed, *, store, meta, failing):
    rng = random.Random(seed)
    stack = Stack(
        store=store,
        meta=meta,
        limit=rng.choice([100_000, 1 << 20]),
        compacting=rng.random() < 0.5,
        retry_s=0.001,
    )
    model = Model(7)
    readers = set()
    async with stack:
        for _ in range(rng.randrange(10, 120)):
            act = rng.random()
            if act < 0.6:
                at = rng.randrange(WINDOW - 1)
                if rng.random() < 0.5 and model.log:
                    at = sum(model.log[-1][:2]) % (WINDOW - 1)
                size = min(rng.choice([1, 300, 4096, 9000, 30000]), WINDOW - at)
                data = model.begin(at, size)
                while True:
                    try:
                        await stack.writer.write(7, BASE + at, data)
                        model.accepted()
                        break
                    except OSError as error:
                        check_error(error, failing)
            elif act < 0.8:
                task = asyncio.ensure_future(check_read(stack, model, rng))
                readers.add(task)
                if rng.random() < 0.5:
                    await task
            elif act < 0.9:
                try:
                    await stack.writer.flush(7)
                except OSError as error:
                    check_error(error, failing)
                else:
                    if not failing:
                        stored = stack.stored(7, BASE, WINDOW)
                        assert stored == bytes(model.bytes)
            elif act < 0.95:
                stack.reader.invalidate(7)
            else:
                await asyncio.sleep(rng.random() * 0.01)
        store.fail = meta.fail = meta.lose = 0
        await asyncio.gather(*readers)
        while True:
            try:
                await stack.writer.flush(7)
                break
            except OSError:
                assert failing
        stack.reader.invalidate(7)
        got = await stack.read(7, BASE, WINDOW)
        assert got == bytes(model.bytes[: model.high])
        while stack.compactor._running:
            await asyncio.wait(list(stack.compactor._running.values()))
        assert stack.stored(7, BASE, WINDOW) == bytes(model.bytes)
        assert stack.idle(), repr(stack.budget)
        assert len(meta.commits) == len({commit[2].id for commit in meta.commits})


@pytest.mark.promise(15)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 40))
def test_reads_see_writes_and_all_comes_home(seed):
    store, meta = FakeStore(delay=0.003, seed=seed), FakeMeta(delay=0.002, seed=seed)
    asyncio.run(run(seed, store=store, meta=meta, failing=False))


@pytest.mark.promise(15)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 40))
def test_the_same_while_store_and_metadata_fail(seed):
    store = FakeStore(delay=0.002, seed=seed, fail=0.0)
    meta = FakeMeta(delay=0.002, seed=seed, lose=0.1)
    original = store.put

    async def put(key, body, **how):
        if store._random.random() < 0.15 and store.fail >= 0 and not store.down:
            await asyncio.sleep(0.001)
            if meta.lose:
                raise ConnectionError("reset")
        await original(key, body, **how)

    store.put = put
    asyncio.run(run(seed, store=store, meta=meta, failing=True))
