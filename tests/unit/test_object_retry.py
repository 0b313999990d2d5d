"""Waiting for a store that is away."""

from __future__ import annotations

import asyncio
import logging

import pytest
from support.chunk_fakes import FakeStore

from jfsd.metrics import OBJECT_BYTES, OBJECT_ERRORS, OBJECTS
from jfsd.object import retry
from jfsd.object.base import ObjectMissingError, StoreError, StoreFullError, StoreRefusedError
from jfsd.object.retry import RetryingStore, RetryPolicy, delay_s


class Moody(FakeStore):
    """Raises what stands in `moods` first, then behaves."""

    def __init__(self, *moods):
        super().__init__()
        self.moods = list(moods)

    async def _pause(self, call, key):
        self.calls.append((call, key))
        if self.moods:
            mood = self.moods.pop(0)
            if mood is not None:
                raise mood

    def __str__(self):
        return "the store"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch):
        self.now_s = 1000.0
        self.pauses = []
        monkeypatch.setattr(retry, "monotonic_s", lambda: self.now_s)
        monkeypatch.setattr(retry.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def down(count):
    return [StoreError("away") for _ in range(count)]


@pytest.mark.promise(15)
async def test_a_store_that_comes_back_is_waited_for(clock):
    inner = Moody(*down(7))
    store = RetryingStore(inner, RetryPolicy(10, 0))
    await store.put("k", b"x")
    assert inner.objects == {"k": b"x"}
    assert len(inner.calls) == 8


@pytest.mark.promise(15)
async def test_retries_and_deadline_must_both_be_used_up(clock):
    inner = Moody(*down(10_000))
    with pytest.raises(StoreError, match="away"):
        await RetryingStore(inner, RetryPolicy(10, 0)).get("k")
    assert len(inner.calls) == 11
    began = clock.now_s
    with pytest.raises(StoreError):
        await RetryingStore(inner, RetryPolicy(10, 60)).get("k")
    assert 60 <= clock.now_s - began <= 66
    inner.calls.clear()
    with pytest.raises(StoreError):
        await RetryingStore(inner, RetryPolicy(0, 0)).get("k")
    assert len(inner.calls) == 1


async def test_for_ever(clock):
    inner = Moody(*down(500))
    await RetryingStore(inner, RetryPolicy(None, 0)).put("k", b"x")
    assert clock.now_s > 1300


@pytest.mark.parametrize(
    "error", [ObjectMissingError("m"), StoreRefusedError("r"), StoreFullError("f")]
)
async def test_what_waiting_cannot_mend_is_raised_at_once(clock, error):
    inner = Moody(error)
    with pytest.raises(type(error)):
        await RetryingStore(inner, RetryPolicy()).get("k")
    assert len(inner.calls) == 1
    inner = Moody(*down(2), error)
    with pytest.raises(type(error)):
        await RetryingStore(inner, RetryPolicy()).get("k")
    assert len(inner.calls) == 3


async def test_the_check_at_the_start_does_not_wait_long(clock):
    with pytest.raises(StoreError):
        await RetryingStore(Moody(*down(100)), RetryPolicy()).check()
    assert clock.now_s < 1001


async def test_an_attempt_has_a_time_limit():
    class Hung(FakeStore):
        async def get(self, key, offset=0, length=None):
            self.calls.append(("get", key))
            if len(self.calls) < 3:
                await asyncio.Event().wait()
            return b"x"

    inner = Hung()
    store = RetryingStore(inner, RetryPolicy(5, 0, get_timeout_s=0.02))
    assert await store.get("k") == b"x"
    assert len(inner.calls) == 3
    store = RetryingStore(Hung(), RetryPolicy(0, 0, get_timeout_s=0.02))
    with pytest.raises(StoreError, match="no answer in"):
        await store.get("k")


async def test_a_cancelled_call_ends_at_once():
    inner = FakeStore(down=True)
    store = RetryingStore(inner, RetryPolicy(None))
    call = asyncio.create_task(store.put("k", b"x"))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_listing_goes_on_where_it_broke(clock):
    class Breaks(FakeStore):
        breaks = 3

        async def list(self, prefix, start_after=""):
            count = 0
            async for found in super().list(prefix, start_after):
                if count == 3 and self.breaks:
                    self.breaks -= 1
                    raise StoreError("broke")
                count += 1
                yield found

    inner = Breaks()
    inner.objects = {f"v/{n:02}": b"" for n in range(20)}
    store = RetryingStore(inner, RetryPolicy(5, 0))
    assert [found.key async for found in store.list("v/")] == sorted(inner.objects)
    assert inner.breaks == 0


@pytest.mark.promise(15)
async def test_log_says_first_failure_each_half_minute_and_end(clock, caplog):
    caplog.set_level(logging.INFO)
    inner = Moody(*down(40))
    await RetryingStore(inner, RetryPolicy(None)).put("k", b"x")
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    lasted = clock.now_s - 1000
    assert lasted > 60
    assert 2 <= len(warnings) <= lasted / 30 + 1
    assert warnings[0].getMessage() == "away; trying again"
    last = caplog.records[-1]
    assert last.levelno == logging.INFO
    assert last.getMessage() == f"the store: answers again after {lasted:.1f} s"


async def test_many_waiting_calls_make_one_line(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(retry, "delay_s", lambda repeated: 0.01)
    inner = FakeStore(down=True)
    store = RetryingStore(inner, RetryPolicy(None))
    calls = [asyncio.create_task(store.put(f"k{n}", b"x")) for n in range(20)]
    await asyncio.sleep(0.1)
    inner.down = False
    await asyncio.gather(*calls)
    assert [r.levelno for r in caplog.records] == [logging.WARNING, logging.INFO]


def test_delays_grow_to_a_bound_and_are_spread():
    assert max(delay_s(0) for _ in range(100)) <= 0.1
    late = [delay_s(n) for n in range(10, 200)]
    assert max(late) <= 5
    assert min(late) < 1 < 4 < max(late)


@pytest.mark.promise(20)
async def test_every_attempt_is_counted_by_method(clock):
    before = dict(OBJECT_ERRORS), {key: OBJECTS[key].count for key in ("GET", "PUT", "DELETE")}
    moved = OBJECT_BYTES["GET"], OBJECT_BYTES["PUT"]
    store = RetryingStore(Moody(*down(2)), RetryPolicy(10, 0))
    await store.put("k", b"12345")
    assert await store.get("k", 0, 3) == b"123"
    with pytest.raises(ObjectMissingError):
        await store.get("missing")
    assert OBJECT_ERRORS["PUT"] == before[0].get("PUT", 0) + 2
    assert OBJECT_ERRORS["GET"] == before[0].get("GET", 0)
    assert OBJECTS["PUT"].count == before[1]["PUT"] + 3
    assert OBJECTS["GET"].count == before[1]["GET"] + 2
    assert (OBJECT_BYTES["GET"], OBJECT_BYTES["PUT"]) == (moved[0] + 3, moved[1] + 5)
