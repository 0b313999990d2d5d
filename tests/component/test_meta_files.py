"""Attributes, lengths and slice lists: effects and errors (format.md §9.8 - §9.14, §11)."""

from __future__ import annotations

import errno
import time

import pytest
from support.engines import bare_volume
from support.nodes import OTHER, ROOT, USER, code, open_nodes

from jfsd.chunk.overlay import build_view
from jfsd.meta import codec
from jfsd.types import (
    CHUNK_SIZE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    MAX_FILE_BYTES,
    NOW_NS,
    TRASH_INO,
    NodeType,
    Slice,
)

FILE, DIR, LINK = NodeType.FILE, NodeType.DIRECTORY, NodeType.SYMLINK
CS = CHUNK_SIZE


@pytest.fixture(name="nodes")
async def fixture_nodes(redis_server, meta_db, meta_url):
    with redis_server.client(meta_db) as client:
        async with open_nodes(meta_url, client) as nodes:
            yield nodes
            nodes.check()


def hole(pos: int, length: int) -> Slice:
    return Slice(pos, 0, 0, 0, length)


async def lists(nodes, ino: int) -> dict[int, list[Slice]]:
    keys = nodes.client.keys(f"c{ino}_*")
    return {int(k.split(b"_")[1]): codec.decode_slices(nodes.client.lrange(k, 0, -1)) for k in keys}


# ---- truncate


async def test_truncate_writes_the_holes_of_the_format(nodes) -> None:
    """The example of format.md §9.9."""
    ino = await nodes.make(1, b"f")
    data = nodes.slice(0, 150000)
    await nodes.meta.commit_slice(ino, 0, data, 5)
    await nodes.meta.truncate(ROOT, ino, 100000, through_handle=False)
    attr = await nodes.meta.truncate(ROOT, ino, 200000000, through_handle=False)
    assert attr.length == 200000000
    assert attr.mtime_ns == attr.ctime_ns > 5
    assert await lists(nodes, ino) == {
        0: [data, hole(100000, 50000), hole(100000, 67008864)],
        2: [hole(0, 65782272)],
    }


async def test_truncate_fills_only_lists_that_exist(nodes) -> None:
    ino = await nodes.make(1, b"f")
    data = nodes.slice(0, 10)
    await nodes.meta.commit_slice(ino, 3, data, 5)
    await nodes.meta.truncate(ROOT, ino, 0, through_handle=False)
    assert await lists(nodes, ino) == {0: [hole(0, CS)], 3: [data, hole(0, 10)]}
    await nodes.meta.truncate(ROOT, ino, 6 * CS, through_handle=False)
    assert await lists(nodes, ino) == {
        0: [hole(0, CS), hole(0, CS)],
        3: [data, hole(0, 10), hole(0, CS)],
    }


async def test_truncate_to_the_same_length_writes_nothing(nodes) -> None:
    ino = await nodes.make(1, b"f", length=5)
    nodes.mark()
    await nodes.meta.truncate(nodes.op(), ino, 5, through_handle=False)
    assert nodes.changed() == {}


async def test_largest_length(nodes) -> None:
    ino = await nodes.make(1, b"f")
    attr = await nodes.meta.truncate(nodes.op(), ino, MAX_FILE_BYTES, through_handle=False)
    assert attr.length == MAX_FILE_BYTES == (1 << 57) - 1
    assert await code(nodes.meta.truncate(ROOT, ino, 1 << 57, through_handle=False)) == "EFBIG"
    assert await code(nodes.meta.truncate(ROOT, ino, -1, through_handle=False)) == "EINVAL"
    assert await lists(nodes, ino) == {0: [hole(0, CS)], (1 << 31) - 1: [hole(0, CS - 1)]}
    assert nodes.client.get("usedSpace") == b"%d" % (1 << 57)
    nodes.check()
    last = nodes.slice(CS - 9, 8)
    await nodes.meta.commit_slice(ino, (1 << 31) - 1, last, 7)
    shorter = MAX_FILE_BYTES - (1 << 55) - 12345
    await nodes.meta.truncate(nodes.op(), ino, shorter, through_handle=False)
    nodes.check()
    found = await lists(nodes, ino)
    assert found[(1 << 31) - 1] == [hole(0, CS - 1), last, hole(0, CS - 1)]
    assert set(found) == {0, shorter // CS, (1 << 31) - 1}
    await nodes.meta.link(ROOT, ino, 1, b"g")
    await nodes.meta.truncate(nodes.op(), ino, 1, through_handle=False)
    nodes.check()
    await nodes.meta.unlink(ROOT, 1, b"g")
    result = await nodes.meta.unlink(ROOT, 1, b"f")
    assert result.freed == (ino, 1)


async def test_deleted_length_is_exact(nodes) -> None:
    ino = await nodes.make(1, b"f", length=MAX_FILE_BYTES)
    assert (await nodes.meta.unlink(ROOT, 1, b"f")).freed == (ino, MAX_FILE_BYTES)
    assert nodes.client.zscore("delfiles", f"{ino}:{MAX_FILE_BYTES}")


async def test_truncate_over_many_chunks_touches_what_is_there(nodes) -> None:
    """Beyond 10 000 chunks their lists are found by a scan; a change meanwhile restarts it."""
    ino, other = await nodes.make(1, b"f"), await nodes.make(1, b"g")
    far = 20000
    for index in (0, 7, 15000, far, far + 5):
        await nodes.meta.commit_slice(ino, index, nodes.slice(0, CS), 5)
    await nodes.meta.commit_slice(other, 9000, nodes.slice(0, CS), 5)
    call, meddled = nodes.meta.connection.call, []

    async def meddle(*args):
        reply = await call(*args)
        if args[0] == "SCAN" and not meddled and args[3].startswith(b"c%d" % ino):
            meddled.append(1)
            await nodes.meta.commit_slice(ino, 12000, nodes.slice(0, 5), time.time_ns())
        return reply

    nodes.meta.connection.call = meddle
    try:
        await nodes.meta.truncate(nodes.op(), ino, 10, through_handle=False)
    finally:
        del nodes.meta.connection.call
    found = await lists(nodes, ino)
    assert meddled
    assert {index: records[-1] for index, records in found.items()} == {
        0: hole(10, CS - 10),
        7: hole(0, CS),
        12000: hole(0, CS),
        15000: hole(0, CS),
        far: hole(0, CS),
        far + 5: hole(0, CS),
    }
    assert [len(records) for _, records in sorted(found.items())] == [2] * 6
    assert len((await lists(nodes, other))[9000]) == 1


async def test_truncate_errors(nodes) -> None:
    async def error(ino: int, through: bool = False) -> str:
        return await code(nodes.meta.truncate(USER, ino, 77, through_handle=through))

    file, top = await nodes.make(1, b"f"), await nodes.mkdir(1, b"d")
    assert await error(999) == "ENOENT"
    assert await error(top) == "EPERM"
    for flag in (FLAG_APPEND, FLAG_IMMUTABLE):
        nodes.patch(file, flags=flag)
        assert await error(file) == "EPERM"
    nodes.patch(file, flags=0, parent=TRASH_INO + 1)
    assert await error(file) == "EPERM"
    assert await error(file, True) == "OK"
    nodes.patch(file, parent=1)
    nodes.client.hset("dirDataLength", "1", 77)


# ---- fallocate


async def test_fallocate_extends_or_not(nodes) -> None:
    ino = await nodes.make(1, b"f", length=10)
    assert (await nodes.meta.fallocate(nodes.op(), ino, 1, 0, 9999)).length == 10
    assert (await nodes.meta.fallocate(nodes.op(), ino, 0, 5000, 5000)).length == 10000
    assert (await nodes.meta.fallocate(nodes.op(), ino, 0, 0, 5)).length == 10000
    assert (await nodes.meta.fallocate(nodes.op(), ino, 16, 20000, 5)).length == 20005
    assert await lists(nodes, ino) == {0: [hole(0, 10)]}
    attr = await nodes.meta.fallocate(nodes.op(), ino, 0, MAX_FILE_BYTES - 1, 1)
    assert attr.length == MAX_FILE_BYTES


async def test_fallocate_punches_at_chunk_boundaries(nodes) -> None:
    ino = await nodes.make(1, b"f")
    await nodes.meta.commit_slice(ino, 2, nodes.slice(0, 500), 5)
    nodes.client.delete(f"c{ino}_2")
    for mode in (3, 16, 17):
        nodes.client.delete(*nodes.client.keys(f"c{ino}_*") or ["none"])
        await nodes.meta.fallocate(nodes.op(), ino, mode, CS - 5, CS + 15)
        assert await lists(nodes, ino) == {0: [hole(CS - 5, 5)], 1: [hole(0, CS)], 2: [hole(0, 10)]}
    nodes.client.delete(*nodes.client.keys(f"c{ino}_*"))
    await nodes.meta.fallocate(nodes.op(), ino, 3, 2 * CS + 100, 10 * CS)
    assert await lists(nodes, ino) == {2: [hole(100, 400)]}
    assert nodes.attr(ino).length == 2 * CS + 500


async def test_fallocate_errors(nodes) -> None:
    file, fifo = await nodes.make(1, b"f"), await nodes.make(1, b"p", NodeType.FIFO)

    async def error(ino: int, mode: int, off: int = 0, size: int = 10) -> str:
        return await code(nodes.meta.fallocate(ROOT, ino, mode, off, size))

    assert await error(file, 8) == "ENOTSUP"
    assert await error(file, 32) == "ENOTSUP"
    assert await error(file, 9) == "EINVAL"
    assert await error(file, 2) == "EINVAL"
    assert await error(file, 0, 0, 0) == "EINVAL"
    assert await error(file, 0, MAX_FILE_BYTES, 1) == "EFBIG"
    assert await error(999, 0) == "ENOENT"
    assert await error(fifo, 0) == "EPIPE"
    assert await error(1, 0) == "EPERM"
    nodes.patch(file, flags=FLAG_APPEND)
    assert await error(file, 3) == "EPERM"
    assert await error(file, 1) == "OK"
    nodes.patch(file, flags=FLAG_IMMUTABLE)
    assert await error(file, 0) == "EPERM"


# ---- setattr


async def test_setattr_writes_only_changes(nodes) -> None:
    ino = await nodes.make(1, b"f", mode=0o644)
    before = nodes.attr(ino)
    nodes.mark()
    await nodes.meta.setattr(nodes.op(), ino, mode=0o644, uid=0, gid=0)
    await nodes.meta.setattr(nodes.op(), ino)
    assert nodes.changed() == {}
    attr = await nodes.meta.setattr(
        nodes.op(), ino, mode=0o4755, atime_ns=NOW_NS, mtime_ns=(1 << 33) * 10**9 + 7
    )
    assert attr.atime_ns == attr.ctime_ns > before.atime_ns
    assert (
        await nodes.meta.setattr(nodes.op(), ino, atime_ns=-1_500_000_000)
    ).atime_ns == -1_500_000_000
    assert (attr.mode, attr.mtime_ns) == (0o4755, (1 << 33) * 10**9 + 7)
    assert attr.ctime_ns > before.ctime_ns
    assert set(nodes.changed()) == {b"i%d" % ino}


@pytest.mark.parametrize(
    ("mode", "caller", "kind", "expected"),
    [
        (0o6755, ROOT, FILE, 0o755),
        (0o6644, ROOT, FILE, 0o2644),
        (0o6644, USER, FILE, 0o644),
        (0o6755, ROOT, DIR, 0o6755),
        (0o755, ROOT, FILE, 0o755),
    ],
)
async def test_chown_takes_setuid_and_setgid_away(nodes, mode, caller, kind, expected) -> None:
    ino = await nodes.make(1, b"f", kind, caller=USER)
    nodes.patch(ino, mode=mode)
    assert (await nodes.meta.setattr(caller, ino, gid=1000)).mode == expected
    nodes.patch(ino, mode=mode)
    assert (await nodes.meta.setattr(caller, ino, gid=1000, mode=0o777)).mode == (
        expected & 0o7000 | 0o777
    )


async def test_setattr_ownership(nodes) -> None:
    ino = await nodes.make(1, b"f", caller=USER)
    nodes.patch(ino, mode=0o6777)

    async def error(caller, **changes) -> str:
        return await code(nodes.meta.setattr(caller, ino, **changes))

    assert await error(OTHER, mode=0o777) == "OK"
    assert await error(OTHER, mode=0o4777) == "EPERM"
    assert await error(OTHER, mode=0o776) == "EPERM"
    assert await error(OTHER, gid=1) == "EPERM"
    assert await error(USER, mode=0o1600, gid=1, uid=2) == "OK"
    assert (nodes.attr(ino).uid, nodes.attr(ino).gid, nodes.attr(ino).mode) == (2, 1, 0o1600)
    nodes.patch(ino, uid=0)
    assert await error(USER, atime_ns=5) == "EPERM"
    assert await error(USER, mtime_ns=5) == "EPERM"
    assert await code(nodes.meta.setattr(ROOT, 999, mode=0)) == "ENOENT"
    nodes.patch(ino, parent=TRASH_INO + 1)
    assert await error(ROOT, mode=0) == "EPERM"
    assert await error(ROOT, mode=0, through_handle=True) == "OK"
    nodes.patch(ino, parent=1)


async def test_setattr_flags_and_largest_owner(nodes) -> None:
    ino = await nodes.make(1, b"f")
    top = (1 << 32) - 1
    attr = await nodes.meta.setattr(ROOT, ino, uid=top, gid=top, flags=0x83)
    assert (attr.uid, attr.gid, attr.flags) == (top, top, 0x83)


async def test_chmod_with_acl_stores_another_rule(nodes) -> None:
    nodes.meta.apply(bare_volume(enable_acl=True, dir_stats=True, trash_days=0))
    ino = await nodes.make(1, b"f")
    named = bytes.fromhex("00000001 000003e8 0006 00000000")
    nodes.client.hset("acl", "3", bytes.fromhex("0006 0004 0006 0004") + named)
    nodes.client.set("aclMaxId", "3")
    nodes.patch(ino, access_acl=3, default_acl=9, tier=1)
    attr = await nodes.meta.setattr(ROOT, ino, mode=0o1751)
    assert (attr.mode, attr.access_acl, attr.default_acl, attr.tier) == (0o1751, 4, 9, 1)
    assert nodes.client.hget("acl", "4") == bytes.fromhex("0007 0004 0005 0001") + named
    again = await nodes.meta.setattr(ROOT, ino, mode=0o664)
    assert again.access_acl == 3


# ---- slices


async def test_commit_writes_these_keys(nodes) -> None:
    """Appendix A of format.md: two slices, and the counters after them."""
    ino = await nodes.make(1, b"py")
    nodes.mark()
    first, second = nodes.slice(1000, 5 << 20), nodes.slice(4 << 20, 3000)
    one = await nodes.meta.commit_slice(ino, 0, first, 1111)
    two = await nodes.meta.commit_slice(ino, 0, second, 2222)
    assert (one.records, two.records) == (1, 2)
    assert (two.attr.length, two.attr.mtime_ns) == (5243880, 2222)
    changed = nodes.changed()
    assert changed.pop(b"i%d" % ino) == codec.encode_attr(two.attr)
    assert changed == {
        b"c%d_0" % ino: [codec.encode_slice(first), codec.encode_slice(second)],
        b"usedSpace": b"5246976",
        b"dirUsedSpace": {b"1": b"5246976"},
        b"dirDataLength": {b"1": b"5243880"},
    }
    assert await nodes.meta.read_slices(ino, 0) == [first, second]


async def test_commit_does_not_shrink(nodes) -> None:
    ino = await nodes.make(1, b"f", length=100)
    result = await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 5)
    assert result.attr.length == 100


@pytest.mark.promise(2)
async def test_a_slice_is_committed_once(nodes) -> None:
    ino = await nodes.make(1, b"f")
    record = nodes.slice(0, 10)
    first = await nodes.meta.commit_slice(ino, 0, record, 5)
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 6)
    assert await nodes.meta.commit_slice(ino, 0, record, 5) == first
    assert len(await nodes.meta.read_slices(ino, 0)) == 2


def pack_of(nodes, *places: tuple[int, int, int]) -> list[tuple[int, Slice]]:
    """Records (chunk index, position, bytes) of one new slice, one behind the other."""
    whole = nodes.slice(0, sum(length for _, _, length in places))
    records, off = [], 0
    for index, pos, length in places:
        records.append((index, whole._replace(pos=pos, off=off, len=length)))
        off += length
    return records


async def test_commit_of_a_pack_writes_these_keys(nodes) -> None:
    ino = await nodes.make(1, b"py")
    records = pack_of(nodes, (0, 1000, 10), (2, 4, 5), (0, 500, 600), (0, 1000, 10))
    nodes.mark()
    result = await nodes.meta.commit_pack(ino, records, 2222)
    assert result == ({0: 3, 2: 1}, nodes.attr(ino), frozenset(), 0)
    assert (result.attr.length, result.attr.mtime_ns) == (2 * CS + 9, 2222)
    changed = nodes.changed()
    assert changed.pop(b"i%d" % ino) == codec.encode_attr(result.attr)
    assert changed == {
        b"c%d_0" % ino: [codec.encode_slice(r) for index, r in records if index == 0],
        b"c%d_2" % ino: [codec.encode_slice(records[1][1])],
        b"sliceRef": {b"k1_625": b"3"},
        b"usedSpace": b"%d" % (2 * CS + 4096),
        b"dirUsedSpace": {b"1": b"%d" % (2 * CS + 4096)},
        b"dirDataLength": {b"1": b"%d" % (2 * CS + 9)},
    }
    nodes.check()


@pytest.mark.promise(2)
async def test_a_pack_is_committed_once(nodes) -> None:
    ino = await nodes.make(1, b"f", length=100)
    records = pack_of(nodes, *[(n % 3, n * 7 % 90, 3) for n in range(1000)])
    first = await nodes.meta.commit_pack(ino, records, 5)
    assert first.records == {0: 335, 1: 333, 2: 333}, "a hole is there already"
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 6)
    assert await nodes.meta.commit_pack(ino, records, 5) == first
    assert len(await nodes.meta.read_slices(ino, 0)) == 336
    assert nodes.client.hgetall("sliceRef") == {b"k1_3000": b"999"}


async def test_the_end_of_a_pack_may_be_the_largest(nodes) -> None:
    ino = await nodes.make(1, b"f")
    last = (1 << 31) - 1
    for pos in (CS - 20, CS - 5):
        result = await nodes.meta.commit_pack(
            ino, pack_of(nodes, (0, 5, 5), (63, CS - 1, 1), (last, pos, 4)), 5
        )
        assert result.attr.length == (last * CS) + pos + 4


async def test_of_a_pack_each_record_is_refused_as_if_alone(nodes) -> None:
    nodes.meta.apply(bare_volume(capacity_bytes=5 * 4096, dir_stats=True, trash_days=0))
    ino = await nodes.make(1, b"f", length=4096)
    records = pack_of(
        nodes,
        (0, 0, 9),
        (0, 8192, 9),
        (3, 0, 9),
        (0, 9000, 9),
        (5, 0, 9),
        (0, 70_000, 9),
        (0, 8, 1),
    )
    result = await nodes.meta.commit_pack(ino, records, 5)
    assert result.attr.length == 9009
    assert result.records == {0: 5}, "a hole is there already"
    assert (result.refused, result.error) == ({18, 36, 45}, errno.ENOSPC)
    taken = [records[n][1] for n in (0, 1, 3, 6)]
    assert (await nodes.meta.read_slices(ino, 0))[1:] == taken
    assert nodes.client.hgetall("sliceRef") == {b"k1_%d" % records[0][1].size: b"3"}
    assert await nodes.meta.commit_pack(ino, records, 5) == result
    assert (
        await code(nodes.meta.commit_pack(ino, pack_of(nodes, (9, 0, 1), (9, 2, 1)), 5)) == "ENOSPC"
    )
    one = pack_of(nodes, (9, 0, 1), (0, 0, 1))
    assert (await nodes.meta.commit_pack(ino, one, 5)).refused == {0}
    assert b"k3_2" not in nodes.client.hgetall("sliceRef")
    nodes.check()


async def test_a_pack_is_freed_with_its_last_record(nodes) -> None:
    ino = await nodes.make(1, b"f")
    await nodes.meta.commit_pack(ino, pack_of(nodes, (0, 0, 5), (0, 10, 5), (1, 0, 5)), 5)
    new = nodes.slice(0, 15)
    origin = await nodes.meta.begin_compaction(ino, 0)
    assert await nodes.meta.commit_compaction(ino, 0, origin, 0, new) == []
    assert nodes.client.hgetall("sliceRef") == {b"k1_15": b"0"}
    new = nodes.slice(0, 5)
    origin = await nodes.meta.begin_compaction(ino, 1)
    assert await nodes.meta.commit_compaction(ino, 1, origin, 0, new) == [(1, 15)]


async def test_slice_errors(nodes) -> None:
    ino, top = await nodes.make(1, b"f"), await nodes.mkdir(1, b"d")
    assert await code(nodes.meta.commit_slice(999, 0, nodes.slice(0, 10), 5)) == "ENOENT"
    assert await code(nodes.meta.commit_slice(top, 0, nodes.slice(0, 10), 5)) == "EPERM"
    assert await code(nodes.meta.commit_pack(999, pack_of(nodes, (0, 0, 1)), 5)) == "ENOENT"
    assert await code(nodes.meta.commit_pack(top, pack_of(nodes, (0, 0, 1)), 5)) == "EPERM"
    assert await code(nodes.meta.read_slices(999, 0)) == "ENOENT"
    assert await code(nodes.meta.read_slices(top, 0)) == "EPERM"
    assert await nodes.meta.read_slices(ino, 5) == []
    nodes.client.rpush(f"c{ino}_0", b"short")
    assert await code(nodes.meta.read_slices(ino, 0)) == "EIO"


async def test_ids_are_unique_and_start_at_one(nodes) -> None:
    ids = [await nodes.meta.new_slice_id() for _ in range(9000)]
    assert len(set(ids)) == 9000
    assert min(ids) == 1
    assert nodes.client.get("nextchunk") in (b"12288", b"16384")


# ---- copy_file_range


def painted(records: list[Slice]) -> list[tuple[int, int]]:
    """Return (slice id, offset in the slice) for each 4096 bytes of the head of a chunk."""
    cells: list[tuple[int, int]] = [(0, 0)] * 64
    for record in records:
        for cell in range(64):
            at = cell * 4096
            if record.pos <= at < record.pos + record.len:
                cells[cell] = (record.id, record.off + at - record.pos if record.id else 0)
    return cells


async def test_copy_shares_slices(nodes) -> None:
    src, dst = await nodes.make(1, b"s"), await nodes.make(1, b"d", length=3 * 4096)
    a, b, c = (nodes.slice(p * 4096, n * 4096) for p, n in ((1, 10), (3, 4), (14, 2)))
    for record in (a, b, c):
        await nodes.meta.commit_slice(src, 0, record, 5)
    copied, attr = await nodes.meta.copy_file_range(nodes.op(), src, 4096, dst, 8192, 1 << 20)
    assert (copied, attr.length) == (15 * 4096, 17 * 4096)
    view = painted(await nodes.meta.read_slices(dst, 0))
    assert view[2:17] == painted(await nodes.meta.read_slices(src, 0))[1:16]
    assert nodes.client.hgetall("sliceRef") == {
        b"k%d_%d" % (a.id, a.size): b"2",
        b"k%d_%d" % (b.id, b.size): b"1",
        b"k%d_%d" % (c.id, c.size): b"1",
    }
    assert build_view(await nodes.meta.read_slices(dst, 0))


async def test_copy_across_chunks(nodes) -> None:
    src, dst = await nodes.make(1, b"s"), await nodes.make(1, b"d")
    for index in range(3):
        await nodes.meta.commit_slice(src, index, nodes.slice(0, CS), 5)
    copied, attr = await nodes.meta.copy_file_range(
        nodes.op(), src, CS - 100, dst, 2 * CS - 40, CS + 200
    )
    assert (copied, attr.length) == (CS + 200, 3 * CS + 160)
    assert await lists(nodes, dst) == {
        1: [Slice(CS - 40, 1, CS, CS - 100, 40)],
        2: [
            Slice(0, 1, CS, CS - 60, 60),
            Slice(60, 2, CS, 0, CS - 60),
        ],
        3: [Slice(0, 2, CS, CS - 60, 60), Slice(60, 3, CS, 0, 100)],
    }
    assert nodes.client.hgetall("sliceRef") == {
        b"k1_%d" % CS: b"2",
        b"k2_%d" % CS: b"2",
        b"k3_%d" % CS: b"1",
    }


async def test_copy_of_holes_overwrites(nodes) -> None:
    src, dst = await nodes.make(1, b"s", length=9000), await nodes.make(1, b"d")
    await nodes.meta.commit_slice(dst, 0, nodes.slice(0, 9000), 5)
    assert (await nodes.meta.copy_file_range(nodes.op(), src, 0, dst, 0, 9999))[0] == 9000
    assert (await nodes.meta.read_slices(dst, 0))[-1] == hole(0, 9000)


async def test_copy_within_a_file(nodes) -> None:
    ino = await nodes.make(1, b"f")
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 8192), 5)
    assert (await nodes.meta.copy_file_range(nodes.op(), ino, 0, ino, 8192, 8192))[0] == 8192
    assert painted(await nodes.meta.read_slices(ino, 0))[:4] == [(1, 0), (1, 4096)] * 2


async def test_copy_at_the_far_end(nodes) -> None:
    src = await nodes.make(1, b"s", length=MAX_FILE_BYTES)
    dst = await nodes.make(1, b"d")
    last = (1 << 31) - 1
    await nodes.meta.commit_slice(src, last, nodes.slice(CS - 11, 10), 5)
    begin = MAX_FILE_BYTES - 10
    copied, attr = await nodes.meta.copy_file_range(nodes.op(), src, begin, dst, begin, 10)
    assert (copied, attr.length) == (10, MAX_FILE_BYTES)
    assert (await lists(nodes, dst))[last] == [Slice(CS - 11, 1, 10, 0, 10)]


async def test_copy_errors(nodes) -> None:
    src, dst = await nodes.make(1, b"s", length=100), await nodes.make(1, b"d", length=50)

    async def error(*args) -> str:
        return await code(nodes.meta.copy_file_range(ROOT, *args))

    assert await error(src, 0, src, 50, 51) == "EINVAL"
    assert await error(src, 0, src, 100, 100) == "OK"
    assert await error(src, 0, 999, 0, 10) == "ENOENT"
    assert await error(999, 0, dst, 0, 10) == "ENOENT"
    assert await error(1, 0, dst, 0, 10) == "EINVAL"
    assert await error(src, 0, dst, MAX_FILE_BYTES - 9, 10) == "EFBIG"
    assert await nodes.meta.copy_file_range(ROOT, src, 200, dst, 0, 10) == (0, None)
    assert await nodes.meta.copy_file_range(ROOT, src, 0, dst, 0, 0) == (0, None)
    nodes.patch(dst, flags=FLAG_APPEND)
    assert await error(src, 0, dst, 0, 10) == "EPERM"
    nodes.patch(dst, flags=0)
    nodes.client.lpush(f"c{src}_0", b"damaged")
    nodes.mark()
    assert await error(src, 0, dst, 0, 10) == "EIO"
    assert nodes.changed() == {}
    nodes.client.lpop(f"c{src}_0")


# ---- compaction


async def compactable(nodes, count: int = 7) -> tuple[int, list[Slice]]:
    ino = await nodes.make(1, b"f")
    records = [nodes.slice(3000 * n, 5000) for n in range(count)]
    for record in records:
        await nodes.meta.commit_slice(ino, 0, record, 5)
    return ino, records


@pytest.mark.parametrize("trash", [0, 1])
async def test_compaction_replaces_records(nodes, trash) -> None:
    """The example of format.md §11.6."""
    nodes.meta.apply(bare_volume(trash_days=trash, dir_stats=True))
    ino, records = await compactable(nodes)
    origin = await nodes.meta.begin_compaction(ino, 0)
    late = nodes.slice(0, 7)
    await nodes.meta.commit_slice(ino, 0, late, 6)
    nodes.mark()
    new = Slice(0, 500, 23000, 0, 23000)
    freed = await nodes.meta.commit_compaction(ino, 0, origin, 1, new)
    changed = nodes.changed()
    assert await nodes.meta.read_slices(ino, 0) == [records[0], new, late]
    del changed[b"c%d_0" % ino]
    if trash:
        assert freed == []
        [(field, value)] = changed.pop(b"delSlices").items()
        assert field.startswith(b"500_")
        assert codec.decode_delayed(value) == [(r.id, r.size) for r in records[1:]]
    else:
        assert freed == [(r.id, 5000) for r in records[1:]]
        assert changed.pop(b"sliceRef") == {b"k%d_5000" % r.id: b"-1" for r in records[1:]}
    assert changed == {}


async def test_compaction_of_a_changed_list_does_nothing(nodes) -> None:
    ino, _ = await compactable(nodes)
    origin = await nodes.meta.begin_compaction(ino, 0)
    new = Slice(0, 500, 23000, 0, 23000)
    assert await nodes.meta.commit_compaction(ino, 0, origin, 0, new)
    again = await nodes.meta.commit_compaction(ino, 0, origin, 0, new)
    assert again, "asked again, it tells its first result"
    nodes.mark()
    other = Slice(0, 501, 23000, 0, 23000)
    assert await nodes.meta.commit_compaction(ino, 0, origin, 0, other) is None
    assert nodes.changed() == {}


async def test_compaction_leaves_shared_slices(nodes) -> None:
    ino, records = await compactable(nodes, 2)
    other = await nodes.make(1, b"g")
    await nodes.meta.copy_file_range(nodes.op(), ino, 0, other, 0, 5000)
    origin = await nodes.meta.begin_compaction(ino, 0)
    freed = await nodes.meta.commit_compaction(ino, 0, origin, 0, Slice(0, 500, 8000, 0, 8000))
    assert freed == []
    assert nodes.client.hgetall("sliceRef") == {b"k%d_5000" % record.id: b"0" for record in records}
