"""Background jobs: what they delete, what they leave alone, and that they can die at any point."""

from __future__ import annotations

import contextlib
import struct
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.engines import bare_volume, open_meta

from jfsd.meta.codec import encode_attr, encode_delayed, encode_entry, encode_slice
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.jobs.slices import field_of, slice_of
from jfsd.meta.jobs.trash import parse_hour
from jfsd.object.base import StoreError
from jfsd.types import CHUNK_SIZE, TRASH_INO, Attr, NodeType, Slice

HUGE_ID = (1 << 62) + 12345
NOW = int(time.time())


class Store:
    """Objects that have been deleted; `broken` makes every deletion fail."""

    def __init__(self) -> None:
        self.deleted: list[tuple[int, int]] = []
        self.broken = False

    async def delete_slice(self, slice_id: int, size: int) -> None:
        if self.broken:
            raise StoreError("away")
        self.deleted.append((slice_id, size))


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", bare_volume().to_json())
        yield client


@pytest.fixture(name="meta")
async def fixture_meta(meta_url, client):
    async with open_meta(meta_url) as meta:
        yield meta


@pytest.fixture(name="store")
def fixture_store():
    return Store()


@pytest.fixture(name="jobs")
async def fixture_jobs(meta, store):
    jobs = Housekeeping(meta, store.delete_slice)
    yield jobs
    await jobs.close()


def put_chunk(client, ino: int, index: int, *slices: tuple[int, int]) -> None:
    for id_, size in slices:
        client.rpush(f"c{ino}_{index}", encode_slice(Slice(0, id_, size, 0, size or 100)))


async def test_deleting_a_file_deletes_its_lists_references_and_note(jobs, client, store) -> None:
    ino = (1 << 53) + 1
    put_chunk(client, ino, 0, (1, 100), (0, 0), (2, 200), (2, 200))
    put_chunk(client, ino, 3, (HUGE_ID, 4194304))
    put_chunk(client, ino + 1, 0, (3, 300))
    client.hset("sliceRef", field_of(2, 200), 1)
    length = 3 * CHUNK_SIZE + 1
    client.zadd("delfiles", {f"{ino}:{length}": NOW})
    await jobs.files.delete(ino, length)
    assert sorted(store.deleted) == [(1, 100), (2, 200), (HUGE_ID, 4194304)]
    assert sorted(client.scan_iter("c*")) == [b"c%d_0" % (ino + 1)]
    assert client.exists("delfiles", "sliceRef") == 0


async def test_a_shared_slice_stays(jobs, client, store) -> None:
    put_chunk(client, 7, 0, (1, 100))
    client.hset("sliceRef", field_of(1, 100), 1)
    await jobs.files.delete(7, 100)
    assert store.deleted == []
    assert client.hgetall("sliceRef") == {b"k1_100": b"0"}


async def test_lists_beyond_the_length_go_too(jobs, client, store) -> None:
    for index in range(5):
        put_chunk(client, 7, index, (index + 1, 100))
    await jobs.files.delete(7, 0)
    assert len(store.deleted) == 5
    assert list(client.scan_iter("c*")) == []


async def test_a_sparse_file_of_the_greatest_length(jobs, client, store) -> None:
    put_chunk(client, 7, (1 << 31) - 1, (1, 100))
    put_chunk(client, 77, 0, (2, 100))
    await jobs.files.delete(7, (CHUNK_SIZE << 31) - 1)
    assert store.deleted == [(1, 100)]
    assert list(client.scan_iter("c*")) == [b"c77_0"]


async def test_elements_that_are_no_records_do_not_stop_a_deletion(jobs, client, store) -> None:
    client.rpush("c7_0", b"short")
    put_chunk(client, 7, 0, (1, 100))
    await jobs.files.delete(7, 100)
    assert store.deleted == [(1, 100)]


async def test_objects_that_cannot_be_deleted_are_found_later(jobs, client, store) -> None:
    put_chunk(client, 7, 0, (1, 100))
    store.broken = True
    await jobs.files.delete(7, 100)
    assert client.hgetall("sliceRef") == {b"k1_100": b"-1"}
    assert await jobs.slices.sweep() == 0
    store.broken = False
    assert await jobs.slices.sweep() == 1
    assert store.deleted == [(1, 100)]
    assert client.exists("sliceRef") == 0


async def test_a_file_freed_here_is_deleted_at_once(jobs, meta, client, store) -> None:
    put_chunk(client, 7, 0, (1, 100))
    client.zadd("delfiles", {"7:100": NOW})
    meta.freed(7, 100)
    await jobs.close()
    assert store.deleted == [(1, 100)]
    assert client.exists("delfiles") == 0


async def test_no_more_than_a_hundred_files_at_once(jobs, meta, client) -> None:
    for ino in range(200):
        client.zadd("delfiles", {f"{ino}:100": NOW})
        meta.freed(ino, 100)
    await jobs.close()
    assert client.zcard("delfiles") == 100


async def test_only_notes_older_than_an_hour_are_swept(jobs, client, store) -> None:
    for ino, age in ((7, 3700), (8, 600)):  # NOW was when the session began
        put_chunk(client, ino, 0, (ino, 100))
        client.zadd("delfiles", {f"{ino}:100": NOW - age})
    client.zadd("delfiles", {"9": NOW - 4000, "10:x:200": NOW - 4000})
    assert await jobs.files.sweep() == 1
    assert store.deleted == [(7, 100)]
    put_chunk(client, 9, 0, (9, 100))
    assert await jobs.files.sweep_legacy() == 2
    assert store.deleted == [(7, 100), (9, 100)]
    assert client.zrange("delfiles", 0, -1) == [b"8:100"]
    assert await jobs.files.sweep_legacy() == 0


async def test_zero_references_go_when_seen_twice(jobs, client) -> None:
    client.hset("sliceRef", mapping={"k1_100": 0, "k2_100": 1})
    await jobs.slices.sweep()
    client.hset("sliceRef", "k3_100", 0)
    assert client.hlen("sliceRef") == 3
    await jobs.slices.sweep()
    assert client.hgetall("sliceRef") == {b"k2_100": b"1", b"k3_100": b"0"}


async def test_fields_that_are_no_slices_are_left_alone(jobs, client, store) -> None:
    client.hset("sliceRef", mapping={"x1_100": -1, "k1": -1})
    assert await jobs.slices.sweep() == 0
    assert client.hlen("sliceRef") == 2


@given(st.integers(1, (1 << 64) - 1), st.integers(0, (1 << 32) - 1))
def test_fields_of_references(id_: int, size: int) -> None:
    assert slice_of(field_of(id_, size)) == (id_, size)


async def test_replaced_slices_expire(jobs, client, store) -> None:
    day = 86400
    client.hset(
        "delSlices", f"11_{NOW - 2 * day}", encode_delayed([(1, 5000), (2, 5000), (1, 5000)])
    )
    client.hset("delSlices", f"12_{NOW - day // 2}", encode_delayed([(3, 5000)]))
    client.hset("sliceRef", mapping={"k1_5000": 1, "k2_5000": 1})
    assert await jobs.slices.expire_delayed(1) == 1
    assert store.deleted == [(1, 5000)]
    assert client.hgetall("sliceRef") == {b"k2_5000": b"0"}
    assert client.hkeys("delSlices") == [b"12_%d" % (NOW - day // 2)]
    assert await jobs.slices.expire_delayed(1) == 0


def test_observed_delayed_value() -> None:
    assert encode_delayed([(4, 5000)]) == struct.pack(">QI", 4, 5000)


def put_trash(client, number: int, age_hours: float) -> int:
    """Make an hourly directory of some hours ago; return its inode."""
    ino = TRASH_INO + number
    name = (datetime.now(UTC) - timedelta(hours=age_hours)).strftime("%Y-%m-%d-%H")
    directory = Attr(NodeType.DIRECTORY, 0o555, nlink=2, length=4096)
    client.set(f"i{TRASH_INO}", encode_attr(directory))
    directory.parent = TRASH_INO
    client.set(f"i{ino}", encode_attr(directory))
    client.hset(f"d{TRASH_INO}", name, encode_entry(NodeType.DIRECTORY, ino))
    count(client, 4096)
    return ino


def count(client, space: int) -> None:
    client.incrby("usedSpace", space)
    client.incr("totalInodes")


def put_node(client, parent: int, ino: int, kind: NodeType, **fields: int) -> None:
    length = {NodeType.FILE: 5000, NodeType.DIRECTORY: 4096}.get(kind, 3)
    attr = Attr(kind, 0o644, length=length, parent=parent, **fields)
    client.set(f"i{ino}", encode_attr(attr))
    client.hset(f"d{parent}", f"1-{ino}-name", encode_entry(kind, ino))
    count(client, 8192 if kind is NodeType.FILE else 4096)


async def test_old_trash_is_emptied_wholly(jobs, client, store) -> None:
    old, young = put_trash(client, 1, 27), put_trash(client, 2, 25)
    put_node(client, old, 10, NodeType.FILE)
    put_chunk(client, 10, 0, (1, 5000))
    put_node(client, old, 11, NodeType.SYMLINK)
    client.set("s11", "xyz")
    put_node(client, old, 12, NodeType.DIRECTORY)
    put_node(client, 12, 13, NodeType.FILE)
    put_node(client, 12, 14, NodeType.FIFO)
    client.hset("x13", "user.a", "b")
    put_node(client, old, 15, NodeType.FIFO)
    client.delete("i15")
    put_node(client, young, 20, NodeType.FILE)
    assert await jobs.empty_trash() == 1
    await jobs.close()
    assert store.deleted == [(1, 5000)]
    assert client.hkeys(f"d{TRASH_INO}") == [
        (datetime.now(UTC) - timedelta(hours=25)).strftime("%Y-%m-%d-%H").encode()
    ]
    assert sorted(client.scan_iter("[idsxc]*")) == sorted(
        [b"i%d" % TRASH_INO, b"d%d" % TRASH_INO, b"i%d" % young, b"d%d" % young, b"i20", b"setting"]
    )
    assert client.get("usedSpace") == b"%d" % (4096 + 8192)
    assert client.get("totalInodes") == b"2"


async def test_trash_that_is_open_here_lives_on(meta, client, store) -> None:
    meta.sid = 5
    jobs = Housekeeping(meta, store.delete_slice, lambda: [10, 99])
    old = put_trash(client, 1, 27)
    put_node(client, old, 10, NodeType.FILE)
    put_node(client, old, 11, NodeType.FILE)
    assert await jobs.empty_trash() == 1
    await jobs.close()
    assert client.exists("i10") == 1
    assert client.smembers("session5") == {b"10"}
    assert client.exists("i11") == 0


async def test_an_entry_that_resists_keeps_its_hour(jobs, client) -> None:
    old = put_trash(client, 1, 27)
    put_node(client, old, 10, NodeType.FILE, flags=1)
    put_node(client, old, 11, NodeType.FILE)
    assert await jobs.empty_trash() == 0
    await jobs.close()
    assert client.hkeys(f"d{old}") == [b"1-10-name"]
    assert client.exists(f"i{old}") == 1


async def test_names_in_the_trash_that_are_no_hours_are_skipped(jobs, client) -> None:
    old = put_trash(client, 2, 27)
    client.hset(f"d{TRASH_INO}", "notes", encode_entry(NodeType.DIRECTORY, TRASH_INO + 1))
    assert await jobs.empty_trash() == 1
    assert client.exists(f"i{old}") == 0
    assert client.hkeys(f"d{TRASH_INO}") == [b"notes"]


async def test_without_trash_there_is_nothing_to_empty(jobs) -> None:
    assert await jobs.empty_trash() == 0


def test_hours() -> None:
    assert parse_hour(b"1970-01-02-03") == 27 * 3600
    assert parse_hour(b"1970-01-02") is None
    assert parse_hour(b"\xff") is None


class Killed(BaseException):
    """The process is killed here."""


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 12))
async def test_killed_anywhere_the_rest_is_done_by_the_next(
    meta_url, redis_server, meta_db, commands: int
) -> None:
    store = Store()
    with redis_server.client(meta_db) as client:
        client.flushdb()
        for index in range(3):
            put_chunk(client, 7, index, (index * 2 + 1, 100), (index * 2 + 2, 100))
        client.zadd("delfiles", {f"7:{3 * CHUNK_SIZE}": NOW - 4000})
        async with open_meta(meta_url) as meta:
            left = commands

            async def call(*args: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return await original(*args)

            original, meta.connection.call = meta.connection.call, call
            with contextlib.suppress(Killed):
                await Housekeeping(meta, store.delete_slice).files.sweep()
        async with open_meta(meta_url) as meta:
            jobs = Housekeeping(meta, store.delete_slice)
            await jobs.files.sweep()
            await jobs.slices.sweep()
        assert {id_ for id_, _ in store.deleted} == {1, 2, 3, 4, 5, 6}
        assert client.exists("delfiles", "sliceRef", "c7_0", "c7_1", "c7_2") == 0
