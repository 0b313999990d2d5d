"""Memory of the data path: who gets it, and that it is given back."""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from jfsd.chunk.arena import SLOT_COST_BYTES, Arena
from jfsd.chunk.budget import Budget
from jfsd.chunk.pool import BlockPool

SLOT = 1 << 16


@pytest.fixture
def arena():
    made = Arena(Budget(40 * SLOT), SLOT, slots=100)
    yield made
    made.close()


def resident(arena):
    return os.fstat(arena.fd).st_blocks * 512


def fill(arena, slot, size):
    """Touch the first `size` bytes of a slot as a writer does; return what it costs."""
    arena.budget.charge(extra := arena.grow(slot, size))
    arena.view(slot, 0, size)[:] = b"x" * size
    return extra


# -- budget


async def test_requests_are_served_in_order():
    budget = Budget(100)
    assert budget.try_take(90)
    done = []

    async def take(n):
        await budget.take(n)
        done.append(n)

    tasks = [asyncio.ensure_future(take(n)) for n in (50, 5, 20)]
    await asyncio.sleep(0)
    assert not budget.try_take(5)  # would fit, but others came first
    budget.give(20)
    await asyncio.sleep(0)
    assert done == []
    budget.give(30)
    await asyncio.gather(*tasks[:2])
    assert done == [50, 5]
    assert not tasks[2].done()
    budget.give(60)
    await asyncio.gather(*tasks)
    assert done == [50, 5, 20]
    assert budget.charged == 90 - 110 + 75


async def test_request_beyond_the_limit_is_served_when_nothing_is_charged():
    budget = Budget(100)
    budget.try_take(1)
    task = asyncio.ensure_future(budget.take(500))
    await asyncio.sleep(0)
    assert not task.done()
    budget.give(1)
    await task
    assert budget.charged == 500


@pytest.mark.parametrize("seed", range(20))
async def test_cancelled_waits_leave_no_trace(seed):
    rng = random.Random(seed)
    budget = Budget(100)

    async def work():
        n = rng.randrange(1, 60)
        await budget.take(n)
        try:
            await asyncio.sleep(rng.random() * 0.002)
        finally:
            budget.give(n)

    tasks = [asyncio.ensure_future(work()) for _ in range(60)]
    while not all(task.done() for task in tasks):
        assert budget.charged <= 100
        await asyncio.sleep(0)
        rng.choice(tasks).cancel() if rng.random() < 0.3 else None
    assert (budget.charged, budget.wanted) == (0, 0)


async def test_pressure_is_told():
    budget = Budget(10)
    budget.try_take(10)
    told = []
    budget.on_pressure = lambda: told.append(budget.wanted)
    task = asyncio.ensure_future(budget.take(7))
    await asyncio.sleep(0)
    assert told == [7]
    budget.give(10)
    await task


async def test_higher_limit_serves_at_once():
    budget = Budget(10)
    budget.try_take(10)
    task = asyncio.ensure_future(budget.take(5))
    await asyncio.sleep(0)
    budget.set_limit(20)
    await task


# -- arena


async def test_slots_are_apart_and_keep_their_bytes(arena):
    slots = [arena.alloc(filled=False) for _ in range(10)]
    assert len(set(slots)) == 10
    for n, slot in enumerate(slots):
        fill(arena, slot, SLOT)
        arena.view(slot, 0, SLOT)[:] = bytes([n]) * SLOT
    for n, slot in enumerate(slots):
        assert arena.view(slot, 100, 200) == bytes([n]) * 100


async def test_charge_follows_the_pages(arena):
    slot = arena.alloc(filled=False)
    assert arena.grow(slot, 1) == 4096 + SLOT_COST_BYTES
    assert arena.grow(slot, 4096) == 0
    assert arena.grow(slot, 4097) == 4096
    assert arena.grow(slot, 10) == 0


async def test_freed_memory_goes_back_to_the_machine(arena):
    slot = arena.alloc(filled=True)
    fill(arena, slot, SLOT - 4096)
    assert resident(arena) == SLOT - 4096
    arena.free(slot)
    assert (resident(arena), arena.budget.charged, arena.budget.lent) == (0, 0, 0)


async def test_some_small_slots_stay_warm_and_are_used_again(arena):
    slots = [arena.alloc(filled=False) for _ in range(50)]
    for slot in slots:
        fill(arena, slot, 10_000)
    for slot in slots:
        arena.free(slot)
    assert resident(arena) == 32 * 12288
    assert arena.budget.charged == 0
    assert arena.budget.lent == arena.warm_bytes == 32 * (12288 + SLOT_COST_BYTES)
    slot = arena.alloc(filled=False)
    assert slot in slots[:32]
    assert arena.grow(slot, 4097) == 0
    assert arena.grow(slot, 12289) == 4096
    assert resident(arena) == 32 * 12288
    arena.trim(0)
    assert resident(arena) == 12288
    assert arena.budget.lent == 0


async def test_full_slots_stay_warm_and_are_used_again(arena):
    slot = arena.alloc(filled=True)
    fill(arena, slot, SLOT)
    arena.free(slot)
    assert arena.budget.charged == 0
    assert arena.budget.lent == arena.warm_bytes == SLOT + SLOT_COST_BYTES
    assert arena.alloc(filled=False) != slot
    assert arena.alloc(filled=True) == slot
    assert arena.grow(slot, 100) == 0
    assert arena.budget.lent == 0


async def test_warm_slots_are_at_most_half_and_go_when_asked(arena):
    slots = [arena.alloc(filled=True) for _ in range(30)]
    for slot in slots:
        fill(arena, slot, SLOT)
    for slot in slots:
        arena.free(slot)
    assert resident(arena) <= 21 * SLOT
    assert arena.budget.borrow(35 * SLOT)
    assert resident(arena) <= 5 * SLOT
    arena.trim(0)
    assert resident(arena) == 0


async def test_cold_growth_makes_warm_slots_give_way(arena):
    slots = [arena.alloc(filled=True) for _ in range(20)]
    for slot in slots:
        fill(arena, slot, SLOT)
    for slot in slots:
        arena.free(slot)
    warm = resident(arena)
    assert warm > 15 * SLOT
    for _ in range(60):
        fill(arena, arena.alloc(filled=False), SLOT // 2)
        assert resident(arena) <= arena.budget.limit + SLOT
    assert resident(arena) < warm + 30 * SLOT


async def test_slots_run_out_only_at_the_end(arena):
    for _ in range(100):
        arena.alloc(filled=False)
    with pytest.raises(MemoryError):
        arena.alloc(filled=False)


async def test_another_arena_finds_the_bytes(arena):
    kept = [arena.alloc(filled=False) for _ in range(5)]
    for slot in kept:
        fill(arena, slot, 5000)
    other = Arena(Budget(40 * SLOT), SLOT, fd=arena.fd)
    assert other.slots == 100
    other.claim(kept[1], 5000)
    other.claim(kept[3], 5000)
    assert other.budget.charged == 2 * (8192 + SLOT_COST_BYTES)
    other.sweep()
    assert resident(other) == 2 * 8192
    assert other.view(kept[3], 0, 5000) == b"x" * 5000
    fresh = {other.alloc(filled=False) for _ in range(98)}
    assert len(fresh) == 98
    assert not fresh & {kept[1], kept[3]}
    other.close()


# -- pool


async def test_pool_is_half_of_the_budget_and_drops_the_oldest():
    budget = Budget(10_000)
    pool = BlockPool(budget)
    for key in range(20):
        assert pool.reserve(500)
        pool.fill(key, 500, bytes(500))
    assert len(pool) == 4
    assert budget.lent <= pool.capacity
    assert 19 in pool
    assert 0 not in pool
    assert pool.get(16) is not None
    pool.reserve(500)
    pool.fill(99, 500, bytes(500))
    assert 16 in pool  # it was used
    assert 17 not in pool


async def test_pool_gives_way_to_writers():
    budget = Budget(10_000)
    pool = BlockPool(budget)
    for key in range(4):
        pool.reserve(500)
        pool.fill(key, 500, bytes(500))
    assert budget.try_take(9_000)
    budget.settle()
    assert budget.charged + budget.lent <= 10_000
    assert len(pool) == 0
    assert not pool.reserve(2_000)


async def test_download_under_way_is_waited_for():
    budget = Budget(10_000)
    pool = BlockPool(budget)
    assert pool.reserve(3_000)
    task = asyncio.ensure_future(budget.take(8_000))
    budget.charge(1)
    await asyncio.sleep(0)
    assert not task.done()
    pool.fill(1, 3_000, None)
    await task
    assert budget.lent == 0
