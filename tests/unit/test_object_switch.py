"""A store is exchanged while it is used; the former one is closed after its last call."""

from __future__ import annotations

import asyncio
import logging

import pytest
from support.chunk_fakes import FakeStore

from jfsd.object.switch import SwitchedStore


class Held(FakeStore):
    """A store that knows that it was closed, and is not used afterwards."""

    closed = 0

    async def get(self, key, offset=0, length=None):
        try:
            return await super().get(key, offset, length)
        finally:
            assert not self.closed

    async def close(self):
        self.closed += 1


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_former_store_lives_until_its_calls_have_ended() -> None:
    old, new = Held(gate=asyncio.Event()), Held()
    old.objects["k"], new.objects["k"] = b"old", b"new"
    store = SwitchedStore(old)
    calls = [asyncio.create_task(store.get("k")) for _ in range(3)]
    await settled()
    store.switch(new)
    assert store.inner is new
    await settled()
    assert (old.closed, store.former) == (0, [old])
    calls[0].cancel()
    old.gate.set()
    assert await asyncio.gather(*calls[1:]) == [b"old", b"old"]
    assert await store.get("k") == b"new"
    await settled()
    assert (old.closed, new.closed, store.former) == (1, 0, [])
    await store.close()
    assert (old.closed, new.closed) == (1, 1)


async def test_an_idle_store_is_closed_at_once() -> None:
    old, new = Held(), Held()
    store = SwitchedStore(old)
    store.switch(new)
    await settled()
    assert old.closed == 1
    await store.close()


async def test_a_listing_holds_its_store() -> None:
    old, new = Held(), Held()
    await old.put("a", b"")
    await old.put("b", b"")
    store = SwitchedStore(old)
    listing = store.list("")
    assert (await anext(listing)).key == "a"
    store.switch(new)
    await settled()
    assert old.closed == 0
    assert [found.key async for found in listing] == ["b"]
    await settled()
    assert old.closed == 1
    await store.close()


async def test_the_end_does_not_wait_for_calls_that_hang() -> None:
    old, new = FakeStore(gate=asyncio.Event()), Held()
    store = SwitchedStore(old)
    call = asyncio.create_task(store.get("k"))
    await settled()
    store.switch(new)
    await store.close()
    assert new.closed == 1
    call.cancel()
    await asyncio.wait([call])


async def test_a_store_that_does_not_close_is_told_and_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(FakeStore):
        async def close(self):
            raise OSError("stuck")

    store = SwitchedStore(Broken())
    with caplog.at_level(logging.ERROR):
        store.switch(FakeStore())
        await settled()
    assert "was not closed" in caplog.text
    assert store.former == []
    await store.close()
