"""What a new server clears away of the one before: all of it, and nothing too early."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from support.engines import open_meta
from support.nodes import ROOT, open_nodes

from jfsd.chunk.pending import Draft
from jfsd.daemon import aftermath
from jfsd.daemon.aftermath import clear_away, settle
from jfsd.daemon.state import Header, State
from jfsd.object.base import StoreError
from jfsd.types import NodeType, Slice

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import redis
    from support.nodes import Nodes

    from jfsd.meta.client import Meta

FILE = NodeType.FILE


class Kernel:
    """Requests as the test wants them."""

    def __init__(self) -> None:
        self.caught_up = True
        self.unanswered: set[int] = set()
        self.waiting: set[int] = set()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "_POLL_S", 0.01)


@pytest.fixture(name="client")
def fixture_client(redis_server: object, meta_db: int) -> Iterator[redis.Redis]:
    with redis_server.client(meta_db) as client:
        yield client


@pytest.fixture(name="nodes")
async def fixture_nodes(client: redis.Redis, meta_url: str) -> AsyncIterator[Nodes]:
    async with open_nodes(meta_url, client) as nodes:
        nodes.meta.ack_source = list
        yield nodes


@pytest.fixture(name="next_meta")
async def fixture_next_meta(nodes: Nodes, meta_url: str) -> AsyncIterator[Meta]:
    async with open_meta(meta_url, generation=2) as meta:
        meta.sid = nodes.meta.sid
        meta.ack_source = list
        yield meta


@pytest.fixture(name="state")
def fixture_state() -> Iterator[State]:
    state = State.create(Header("m1", "uuid", "/mnt/x", "0:40", 4 << 20))
    yield state
    state.close()
    os.close(state.fd)


async def nothing() -> None:
    """Have no drafts."""


async def opened_and_unlinked(nodes: Nodes, name: bytes) -> int:
    ino, _ = await nodes.meta.mknod(ROOT, 1, name, FILE, 0)
    assert (await nodes.meta.unlink(ROOT, 1, name, {ino})).sustained
    return ino


@pytest.mark.promise(4)
async def test_a_release_that_was_cut_short_is_finished(nodes: Nodes, next_meta: Meta) -> None:
    closed = await opened_and_unlinked(nodes, b"closed")
    still_open = await opened_and_unlinked(nodes, b"open")
    await next_meta.claim()
    await clear_away(Kernel(), next_meta, lambda: {still_open}, list, nothing)
    assert await next_meta.sustained_inos() == {still_open}
    assert await next_meta.getattrs([closed]) == [None]


@pytest.mark.promise(2)
async def test_results_are_kept_until_repeats_are_answered(
    nodes: Nodes, next_meta: Meta, client: redis.Redis
) -> None:
    for op in (2, 4, 6):
        await nodes.meta.mknod(ROOT._replace(op=op), 1, b"%d" % op, FILE, 0)
    await next_meta.claim()
    kernel = Kernel()
    kernel.caught_up, kernel.unanswered, kernel.waiting = False, {4, 6}, {6}
    task = asyncio.create_task(clear_away(kernel, next_meta, set, list, nothing))
    await asyncio.sleep(0.1)
    kernel.caught_up = True
    await asyncio.sleep(0.1)
    assert client.hlen("jfsdm1") == 4, "request 4 has not met its result yet"
    kernel.unanswered = {6}
    await task
    assert set(client.hkeys("jfsdm1")) == {b"g", b"6.mknod"}, "6 waits for a lock"


async def test_objects_that_nobody_refers_to_are_deleted(
    nodes: Nodes, next_meta: Meta, state: State
) -> None:
    ino = await nodes.make(1, b"f")
    for _ in range(3):
        await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 100), 5)
    origin = await nodes.meta.begin_compaction(ino, 0)
    assert await nodes.meta.commit_compaction(ino, 0, origin, 0, Slice(0, 900, 100, 0, 100))
    await next_meta.claim()
    for number in (900, 901, 902):
        state.put_draft(Draft(number, 100, ino, 0))
    deleted = []

    async def delete(number: int, size: int) -> None:
        if number == 902:
            raise StoreError("away")
        deleted.append((number, size))

    await settle(state.drafts(), state, next_meta, delete)
    assert deleted == [(901, 100)], "900 was committed, its objects are the file's bytes"
    assert [draft.id for draft in state.drafts()] == [902]


async def test_redis_that_is_away_leaves_it_to_the_next_server(
    nodes: Nodes, next_meta: Meta, monkeypatch: pytest.MonkeyPatch
) -> None:
    ino = await opened_and_unlinked(nodes, b"closed")

    async def fails(_: int) -> None:
        raise OSError(5, "away")

    with monkeypatch.context() as patched:
        patched.setattr(next_meta, "release_sustained", fails)
        await clear_away(Kernel(), next_meta, set, list, nothing)
    assert await next_meta.sustained_inos() == {ino}
