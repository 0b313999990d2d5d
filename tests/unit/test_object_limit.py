"""Bandwidth limits."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.chunk_fakes import FakeStore

from jfsd.object.limit import BURST_S, LimitedStore, RateLimit, mbps


def test_megabits():
    assert mbps(8) == 1_000_000
    assert mbps(0) == 0


async def test_no_limit_takes_no_time():
    limit = RateLimit()
    began = time.monotonic()
    for _ in range(1000):
        await limit.take(1 << 30)
    assert time.monotonic() - began < 0.5


async def test_the_rate_is_kept():
    limit = RateLimit(1000)
    began = time.monotonic()
    await asyncio.gather(*(limit.take(50) for _ in range(16)))
    took_s = time.monotonic() - began
    assert took_s >= (16 - 1) * 50 / 1000 - BURST_S
    assert took_s < 3


async def test_nobody_is_overtaken():
    limit = RateLimit(10_000)
    order = []

    async def taker(number, count):
        await limit.take(count)
        order.append(number)

    counts = [3000, 1, 3000, 1, 1, 3000, 1]
    await asyncio.gather(*(taker(n, count) for n, count in enumerate(counts)))
    assert order == list(range(len(counts)))


async def test_a_cancelled_taker_takes_nothing_and_lets_the_next_one_through():
    limit = RateLimit(1000)
    await limit.take(600)
    waiting = asyncio.create_task(limit.take(1_000_000))
    following = asyncio.create_task(limit.take(1))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait_for(following, 2)


async def test_a_changed_rate_counts_for_those_who_wait():
    limit = RateLimit(1)
    await limit.take(1_000_000)
    waiting = asyncio.create_task(limit.take(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    limit.rate = 0
    await asyncio.wait_for(waiting, 2)


async def test_store_limits_both_ways_apart():
    inner = FakeStore()
    store = LimitedStore(inner, RateLimit(10_000), RateLimit(10_000))
    await store.put("k", b"x" * 4000)
    began = time.monotonic()
    assert len(await store.get("k")) == 4000
    assert time.monotonic() - began < 0.1
    await store.get("k", 0, 10)
    assert time.monotonic() - began >= 4000 / 10_000 - BURST_S - 0.01
    began = time.monotonic()
    await store.put("k", b"x" * 4000)
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize("rate", [0, 5])
def test_repr(rate):
    assert "RateLimit" in repr(RateLimit(rate))
