"""Clones, directory statistics, quotas and status: what is in the database afterwards."""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import contextmanager

import pytest
from support.engines import bare_volume, open_meta

from jfsd.meta.clone import Cloner
from jfsd.meta.codec import encode_attr, encode_delayed, encode_entry, encode_quota, encode_slice
from jfsd.meta.jobs.dirstats import ensure_dir_stats
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.quota import Quota, QuotaKind, read_quotas
from jfsd.meta.session import Session, SessionInfo
from jfsd.meta.status import read_status
from jfsd.types import CHUNK_SIZE, TRASH_INO, Attr, Caller, NodeType, Slice

USER = Caller(1000, 100, umask=0o022)
FILE, DIRECTORY = NodeType.FILE, NodeType.DIRECTORY
VOLUME = bare_volume()


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", VOLUME.to_json())
        root = Attr(DIRECTORY, 0o777, nlink=2, length=4096, parent=1)
        client.set("i1", encode_attr(root))
        for key in ("dirDataLength", "dirUsedSpace", "dirUsedInodes"):
            client.hset(key, "1", 0)
        yield client


@pytest.fixture(name="meta")
async def fixture_meta(meta_url, client):
    async with open_meta(meta_url) as meta:
        yield meta


@pytest.fixture(name="jobs")
async def fixture_jobs(meta):
    async def delete_slice(slice_id: int, size: int) -> None:
        pass

    jobs = Housekeeping(meta, delete_slice)
    yield jobs
    await jobs.close()


@pytest.fixture(name="cloner")
def fixture_cloner(meta, jobs):
    return Cloner(meta, jobs.trees)


@contextmanager
def fails(number: int):
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def make_file(meta, parent: int, name: bytes, length: int = 5000) -> int:
    ino, _ = await meta.mknod(Caller(7, 7), parent, name, FILE, 0o666)
    id_ = await meta.new_slice_id()
    await meta.commit_slice(ino, 0, Slice(0, id_, length, 0, length), time.time_ns())
    return ino


async def make_tree(meta) -> int:
    """Make /tree with a file, a hole, a symlink, a FIFO and a directory with a file."""
    top, _ = await meta.mknod(Caller(7, 7), 1, b"tree", DIRECTORY, 0o777)
    await make_file(meta, top, b"file")
    await meta.mknod(Caller(7, 7), top, b"link", NodeType.SYMLINK, 0o777, target=b"to/where")
    await meta.mknod(Caller(7, 7), top, b"fifo", NodeType.FIFO, 0o600)
    below, _ = await meta.mknod(Caller(7, 7), top, b"below", DIRECTORY, 0o1777)
    await make_file(meta, below, b"\xff file", 100_000)
    await meta.setxattr(Caller(7, 7), below, b"user.a", b"b")
    return top


async def listing(meta, ino: int) -> dict[bytes, Attr]:
    found = {}
    async for batch in meta.readdir(ino, plus=True):
        for entry in batch:
            found[entry.name] = entry.attr
            if entry.type is DIRECTORY:
                below = await listing(meta, entry.ino)
                found.update({entry.name + b"/" + name: attr for name, attr in below.items()})
    return found


def usage(client) -> tuple[int, int]:
    return int(client.get("usedSpace") or 0), int(client.get("totalInodes") or 0)


async def test_clone_of_a_file_shares_its_slices(meta, client, cloner) -> None:
    source = await make_file(meta, 1, b"a")
    client.rpush(f"c{source}_0", encode_slice(Slice(0, 0, 0, 0, 10)))
    await meta.setxattr(USER, source, b"user.a", b"b")
    before = usage(client)
    copy = await cloner.clone(USER, source, 1, b"b")
    attr = await meta.getattr(copy)
    assert (attr.uid, attr.gid, attr.mode, attr.nlink, attr.length) == (1000, 100, 0o644, 1, 5000)
    assert await meta.read_slices(copy, 0) == await meta.read_slices(source, 0)
    assert client.hgetall("sliceRef") == {b"k1_5000": b"1"}
    assert await meta.getxattr(copy, b"user.a") == b"b"
    assert usage(client) == (before[0] + 8192, before[1] + 1)
    assert client.hget("dirDataLength", "1") == b"10000"
    assert (await meta.lookup(1, b"b"))[0] == copy


async def test_preserving_clone_keeps_owner_mode_and_times(meta, cloner) -> None:
    source = await make_file(meta, 1, b"a")
    old = await meta.getattr(source)
    copy = await cloner.clone(USER, source, 1, b"b", preserve=True)
    assert await meta.getattr(copy) == old


async def test_clone_of_a_tree(meta, client, cloner) -> None:
    top = await make_tree(meta)
    old, before = await listing(meta, top), usage(client)
    copy = await cloner.clone(USER, top, 1, b"copy")
    new, after = await listing(meta, copy), usage(client)
    assert new.keys() == old.keys()
    for name, attr in new.items():
        assert (attr.type, attr.length, attr.nlink) == (
            old[name].type,
            old[name].length,
            old[name].nlink,
        )
        assert attr.uid == 1000
    assert after == (2 * before[0], 2 * before[1])
    assert client.exists("detachedNodes") == 0
    assert await meta.readlink((await meta.lookup(copy, b"link"))[0]) == b"to/where"
    assert (await meta.getattr(1)).nlink == 4
    assert (await meta.getattr(copy)).nlink == 3
    for key in ("dirDataLength", "dirUsedSpace", "dirUsedInodes"):
        assert client.hget(key, copy) == client.hget(key, top)
    assert client.hget("dirUsedInodes", "1") == b"2"


@pytest.mark.parametrize("failing", ["clone_node", "clone_attach"])
async def test_nothing_is_left_of_a_clone_that_fails(meta, client, cloner, failing) -> None:
    top = await make_tree(meta)
    before = {key: client.dump(key) for key in client.scan_iter()}
    original, calls = meta.mutate, 0

    async def mutate(script: str, *args: object) -> list[object]:
        nonlocal calls
        calls += script == failing
        if calls == (4 if failing == "clone_node" else 1) and script == failing:
            raise OSError(errno.ENOSPC, "full")
        return await original(script, *args)

    meta.mutate = mutate
    with fails(errno.ENOSPC):
        await cloner.clone(USER, top, 1, b"copy")
    await asyncio.sleep(0.1)
    for key in ("delfiles", "nextinode", "sliceRef", "jfsdm1"):
        before.pop(key.encode(), None)
    after = {key: client.dump(key) for key in client.scan_iter()}
    for key in ("delfiles", "nextinode", "sliceRef", "jfsdm1"):
        after.pop(key.encode(), None)
    assert after == before


async def test_a_clone_that_was_killed_is_removed_a_day_later(meta, client, cloner, jobs) -> None:
    top = await make_tree(meta)
    client.hset("dirQuota", "1", encode_quota(-1, -1))
    client.hset("dirQuotaUsedSpace", "1", 50000)
    client.hset("dirQuotaUsedInodes", "1", 5)
    keys, before = set(client.scan_iter()), usage(client)
    new = await meta.inodes.next()
    await cloner._clone_node(USER, top, new, 1, b"", 0, top=True)
    await cloner._clone_entries(USER, top, new, 0)
    assert usage(client) == (2 * before[0], 2 * before[1])
    assert int(client.hget("dirQuotaUsedInodes", "1")) == 5 + before[1]
    await jobs.empty_trash()
    assert client.exists(f"i{new}")
    client.zadd("detachedNodes", {str(new): time.time() - 90000})
    await jobs.empty_trash()
    await jobs.close()
    assert set(client.scan_iter()) - {b"sliceRef", b"jfsdm1"} == keys - {b"jfsdm1"}
    assert usage(client) == before
    assert client.hget("dirQuotaUsedInodes", "1") == b"5"
    assert client.hget("dirQuotaUsedSpace", "1") == b"50000"


async def test_clone_of_a_file_with_too_many_chunks_to_try(meta, client, cloner) -> None:
    source = await make_file(meta, 1, b"a")
    await meta.commit_slice(
        source, (1 << 31) - 1, Slice(CHUNK_SIZE - 2, 9, 1, 0, 1), time.time_ns()
    )
    copy = await cloner.clone(USER, source, 1, b"b")
    assert (await meta.getattr(copy)).length == (CHUNK_SIZE << 31) - 1
    for index in (0, (1 << 31) - 1):
        assert await meta.read_slices(copy, index) == await meta.read_slices(source, index)


async def test_refusals(meta, client, cloner) -> None:
    top = await make_tree(meta)
    below = (await meta.lookup(top, b"below"))[0]
    file = (await meta.lookup(top, b"file"))[0]
    for number, arguments in (
        (errno.EEXIST, (file, 1, b"tree")),
        (errno.EEXIST, (top, 1, b"tree")),
        (errno.EINVAL, (top, below, b"copy")),
        (errno.EPERM, (file, 1, b".trash")),
        (errno.EPERM, (file, TRASH_INO + 1, b"copy")),
        (errno.EPERM, (TRASH_INO, 1, b"copy")),
        (errno.ENOENT, (12345, 1, b"copy")),
        (errno.ENOENT, (file, 12345, b"copy")),
        (errno.ENOTDIR, (file, file, b"copy")),
        (errno.ENAMETOOLONG, (file, 1, b"c" * 256)),
        (errno.EINVAL, (file, 1, b"a/b")),
    ):
        with fails(number):
            await cloner.clone(USER, *arguments)
    assert client.exists("detachedNodes") == 0


async def test_clone_obeys_quotas(meta, client, cloner) -> None:
    top = await make_tree(meta)
    used = usage(client)
    meta.apply(bare_volume(inodes=used[1] + 3))
    with fails(errno.ENOSPC):
        await cloner.clone(USER, top, 1, b"copy")
    assert usage(client) == used
    meta.apply(bare_volume())
    client.hset("dirQuota", "1", encode_quota(10_000, 0))
    client.hset("dirQuotaUsedInodes", "1", 0)
    with fails(errno.EDQUOT):
        await cloner.clone(USER, top, 1, b"copy")
    assert int(client.hget("dirQuotaUsedSpace", "1") or 0) == 0


async def test_missing_statistics_are_computed(meta, client) -> None:
    top = await make_tree(meta)
    expected = [client.hget(key, top) for key in ("dirDataLength", "dirUsedSpace", "dirUsedInodes")]
    client.hdel("dirUsedSpace", top)
    client.hset("dirDataLength", top, -1)
    assert await ensure_dir_stats(meta, top)
    assert expected == [
        client.hget(key, top) for key in ("dirDataLength", "dirUsedSpace", "dirUsedInodes")
    ]
    assert expected == [b"5000", b"20480", b"4"]
    assert not await ensure_dir_stats(meta, 12345)


async def test_statistics_that_are_there_stay(meta, client) -> None:
    client.hset("dirUsedInodes", "1", 77)
    assert await ensure_dir_stats(meta, 1)
    assert client.hget("dirUsedInodes", "1") == b"77"


async def test_quotas_are_read_with_and_without_limits(meta, client) -> None:
    client.hset("dirQuota", mapping={"9": encode_quota(1 << 30, 100), "10": encode_quota(-1, 0)})
    client.hset("dirQuotaUsedSpace", "9", 8192)
    client.hset("dirQuotaUsedInodes", "9", 2)
    client.hset("userQuotaUsedInodes", "1000", 3)
    kind = QuotaKind.DIRECTORY
    assert await read_quotas(meta, kind) == [
        Quota(kind, 9, 1 << 30, 100, 8192, 2),
        Quota(kind, 10, 0, 0, 0, 0),
    ]
    assert await read_quotas(meta, QuotaKind.USER) == [Quota(QuotaKind.USER, 1000, 0, 0, 0, 3)]
    assert await read_quotas(meta, QuotaKind.GROUP) == []


async def test_status_of_a_used_volume(meta, client) -> None:
    session = Session(meta, SessionInfo.of_this_process("/mnt/x"))
    await session.open()
    client.zadd("allSessions", {"9": 1_700_000_000})
    client.hset("sessionInfos", "9", "no JSON")
    await make_tree(meta)
    hour = TRASH_INO + 1
    client.hset(f"d{TRASH_INO}", "2020-01-01-00", encode_entry(DIRECTORY, hour))
    for ino in (50, 51):
        client.hset(f"d{hour}", f"1-{ino}-x", encode_entry(FILE, ino))
        client.set(f"i{ino}", encode_attr(Attr(FILE, 0o644, length=ino)))
    client.hset(f"d{hour}", "1-52-x", encode_entry(DIRECTORY, 52))
    client.hset("delSlices", "3_100", encode_delayed([(1, 10), (2, 20)]))
    client.hset("sliceRef", mapping={"k7_100": -1, "k8_100": 0})
    client.zadd("delfiles", {"60:1000": 1, "61:2": 1})
    status = await read_status(meta, VOLUME)
    assert status["Setting"]["Name"] == "bare"
    assert [one["Sid"] for one in status["Sessions"]] == [1, 9]
    assert status["Sessions"][0]["MountPoint"] == "/mnt/x"
    assert status["Sessions"][1] == {
        "Sid": 9,
        "Expire": "2023-11-14T22:13:20Z",
        "Corrupt": "no JSON",
    }
    used, inodes = usage(client)
    assert status["Stat"] == {
        "UsedSpace": used,
        "AvailableSpace": (1 << 50) - used,
        "UsedInodes": inodes,
        "AvailableInodes": 10 << 20,
        "TrashFileCount": 2,
        "TrashFileSize": 101,
        "TrashSliceCount": 2,
        "TrashSliceSize": 30,
        "PendingDeletedFileCount": 2,
        "PendingDeletedFileSize": 1002,
        "PendingDeletedSliceCount": 1,
        "PendingDeletedSliceSize": 100,
    }
    assert list((await read_status(meta, VOLUME, more=False))["Stat"]) == [
        "UsedSpace",
        "AvailableSpace",
        "UsedInodes",
        "AvailableInodes",
    ]
