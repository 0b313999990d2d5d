"""Entries: what each operation writes, which errors it gives, and in which order (format.md §9)."""

from __future__ import annotations

import dataclasses
import time

import pytest
from support.engines import bare_volume
from support.nodes import OTHER, ROOT, USER, code, open_nodes

from jfsd.meta import codec
from jfsd.meta.engine import NodeExistsError
from jfsd.meta.names import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_RESTORE
from jfsd.types import FLAG_APPEND, FLAG_IMMUTABLE, FLAG_SKIP_TRASH, TRASH_INO, Caller, NodeType

FILE, DIR, LINK = NodeType.FILE, NodeType.DIRECTORY, NodeType.SYMLINK
HOUR1 = TRASH_INO + 1
TYPES = {FILE: b"\1", DIR: b"\2", LINK: b"\3"}


def entry(kind: NodeType, ino: int) -> bytes:
    return codec.encode_entry(kind, ino)


@pytest.fixture(name="nodes")
async def fixture_nodes(redis_server, meta_db, meta_url):
    with redis_server.client(meta_db) as client:
        async with open_nodes(meta_url, client) as nodes:
            yield nodes
            nodes.check()


@pytest.fixture(name="trash")
async def fixture_trash(nodes):
    """The same volume with its trash on."""
    nodes.meta.apply(bare_volume(trash_days=1, dir_stats=True))
    if not nodes.client.exists(f"i{TRASH_INO}"):
        nodes.client.set(f"i{TRASH_INO}", nodes.client.get("i1"))
    return nodes


# ---- mknod


async def test_mknod_writes_these_keys_and_no_other(nodes) -> None:
    nodes.mark()
    before = nodes.attr(1)
    caller = Caller(1000, 100, umask=0o22, op=2)
    ino, attr = await nodes.meta.mknod(caller, 1, b"f", FILE, 0o666)
    changed = nodes.changed()
    assert changed.pop(b"i1") != codec.encode_attr(before)
    assert changed == {
        b"i2": codec.encode_attr(attr),
        b"d1": {b"f": entry(FILE, 2)},
        b"usedSpace": b"4096",
        b"totalInodes": b"1",
        b"dirUsedSpace": {b"1": b"4096"},
        b"dirUsedInodes": {b"1": b"1"},
    }
    assert (ino, len(nodes.client.get("i2"))) == (2, 72)
    now = attr.atime_ns
    assert abs(now - time.time_ns()) < 60e9
    assert attr == nodes.attr(2)
    assert (attr.mode, attr.uid, attr.gid, attr.nlink, attr.parent) == (0o644, 1000, 100, 1, 1)
    assert attr.mtime_ns == attr.ctime_ns == now
    after = nodes.attr(1)
    assert after.mtime_ns == after.ctime_ns == now
    assert dataclasses.replace(after, mtime_ns=0, ctime_ns=0) == dataclasses.replace(
        before, mtime_ns=0, ctime_ns=0
    )
    assert nodes.client.get("nextinode") == b"1024"


async def test_mkdir_counts_a_link_and_makes_statistics(nodes) -> None:
    ino = await nodes.mkdir(1, b"d")
    attr = nodes.attr(ino)
    assert (attr.nlink, attr.length, attr.mode) == (2, 4096, 0o755)
    assert nodes.attr(1).nlink == 3
    for key in ("dirUsedInodes", "dirUsedSpace", "dirDataLength"):
        assert nodes.client.hget(key, str(ino)) == b"0"


async def test_symlink_keeps_its_target(nodes) -> None:
    target = b"x" * 4095
    ino, attr = await nodes.meta.mknod(ROOT, 1, b"l", LINK, 0, 0, target)
    assert nodes.client.get(f"s{ino}") == target
    assert (attr.mode, attr.length, attr.rdev) == (0o777, 4095, 0)
    assert await nodes.meta.readlink(ino) == target
    assert await code(nodes.meta.mknod(ROOT, 1, b"m", LINK, 0, 0, b"")) == "EINVAL"
    assert await code(nodes.meta.mknod(ROOT, 1, b"m", LINK, 0, 0, b"a\0b")) == "EINVAL"
    assert await code(nodes.meta.readlink(1)) == "EINVAL"


async def test_device_keeps_its_number(nodes) -> None:
    _, attr = await nodes.meta.mknod(ROOT, 1, b"n", NodeType.CHARDEV, 0o600, rdev=0xFFFFFFFF)
    assert (attr.type, attr.rdev, attr.length) == (NodeType.CHARDEV, 0xFFFFFFFF, 0)


async def test_largest_owner_survives(nodes) -> None:
    biggest = Caller((1 << 32) - 1, (1 << 32) - 2)
    _, attr = await nodes.meta.mknod(biggest, 1, b"f", FILE, 0o7777)
    assert (attr.uid, attr.gid, attr.mode) == ((1 << 32) - 1, (1 << 32) - 2, 0o7777)


async def test_setgid_parent_gives_its_group(nodes) -> None:
    top = await nodes.mkdir(1, b"d")
    nodes.patch(top, mode=0o2775, gid=55)
    file, folder = await nodes.make(top, b"f", caller=USER), await nodes.mkdir(top, b"s")
    assert (nodes.attr(file).gid, nodes.attr(file).mode) == (55, 0o644)
    assert (nodes.attr(folder).gid, nodes.attr(folder).mode) == (55, 0o2755)


@pytest.mark.parametrize(
    ("acls", "tier", "length"), [((0, 0), 0, 72), ((0, 0), 2, 73), ((3, 0), 0, 80), ((3, 0), 2, 81)]
)
async def test_record_lengths_and_unknown_bits_survive_changes(nodes, acls, tier, length) -> None:
    top = await nodes.mkdir(1, b"d")
    file = await nodes.make(top, b"f")
    for ino in (top, file):
        nodes.patch(ino, access_acl=acls[0], default_acl=acls[1], tier=tier, flags=0x84)
    await nodes.mkdir(top, b"sub")
    await nodes.meta.rename(ROOT, top, b"f", top, b"g")
    await nodes.meta.truncate(ROOT, file, 5, through_handle=True)
    await nodes.meta.commit_slice(file, 0, nodes.slice(0, 9), time.time_ns())
    await nodes.meta.setattr(ROOT, file, uid=5)
    await nodes.meta.link(ROOT, file, 1, b"h")
    await nodes.meta.fallocate(ROOT, file, 0, 0, 100)
    for ino in (top, file):
        attr = nodes.attr(ino)
        assert len(nodes.client.get(f"i{ino}")) == length
        assert (attr.access_acl, attr.default_acl, attr.tier, attr.flags) == (*acls, tier, 0x84)


async def test_new_nodes_inherit_tier_and_skip_trash(nodes) -> None:
    top = await nodes.mkdir(1, b"d")
    nodes.patch(top, tier=3, flags=FLAG_SKIP_TRASH | FLAG_APPEND)
    ino = await nodes.make(top, b"f")
    assert (nodes.attr(ino).tier, nodes.attr(ino).flags) == (3, FLAG_SKIP_TRASH)
    assert len(nodes.client.get(f"i{ino}")) == 73


async def test_ancient_record_is_rewritten_whole(nodes) -> None:
    top = await nodes.mkdir(1, b"d")
    nodes.client.set(f"i{top}", nodes.client.get(f"i{top}")[:63])
    await nodes.make(top, b"f")
    assert len(nodes.client.get(f"i{top}")) == 72
    assert nodes.attr(top).parent == 0
    nodes.patch(top, parent=1)


async def test_mknod_errors(nodes) -> None:
    file = await nodes.make(1, b"f")
    top = await nodes.mkdir(1, b"d")
    mk = nodes.meta.mknod
    with pytest.raises(NodeExistsError) as caught:
        await mk(ROOT, 1, b"d", FILE, 0)
    assert caught.value.ino == top
    assert codec.decode_attr(caught.value.attr) == nodes.attr(top)
    assert await code(mk(ROOT, 99, b"x", FILE, 0)) == "ENOENT"
    assert await code(mk(ROOT, file, b"x", FILE, 0)) == "ENOTDIR"
    assert await code(mk(ROOT, 1, b"x" * 256, FILE, 0)) == "ENAMETOOLONG"
    assert await code(mk(ROOT, 1, b"", FILE, 0)) == "EINVAL"
    assert await code(mk(ROOT, 1, b"a/b", FILE, 0)) == "EINVAL"
    assert await code(mk(ROOT, 1, b"a\0b", FILE, 0)) == "EINVAL"
    assert await code(mk(ROOT, 1, b"..", DIR, 0)) == "EEXIST"
    assert await code(mk(ROOT, TRASH_INO, b"x", DIR, 0)) == "EPERM"
    assert await code(mk(ROOT, HOUR1, b"x", DIR, 0)) == "EPERM"
    assert await code(mk(ROOT, 1, b".trash", DIR, 0)) == "EPERM"
    nodes.patch(top, flags=FLAG_IMMUTABLE)
    assert await code(mk(ROOT, top, b"x", FILE, 0)) == "EPERM"
    nodes.patch(top, flags=FLAG_APPEND)
    assert await code(mk(ROOT, top, b"x" * 255, FILE, 0)) == "OK"
    nodes.patch(top, flags=0, parent=HOUR1)
    assert await code(mk(ROOT, top, b"y", FILE, 0)) == "ENOENT"
    nodes.patch(top, parent=1)
    nodes.meta.read_only = True
    assert await code(mk(ROOT, 1, b"x", FILE, 0)) == "EROFS"


async def test_create_takes_an_existing_file_unless_exclusive(nodes) -> None:
    ino, attr, created = await nodes.meta.create(ROOT, 1, b"f", 0o600, False)
    assert created
    assert await nodes.meta.create(ROOT, 1, b"f", 0o644, False) == (ino, attr, False)
    assert await code(nodes.meta.create(ROOT, 1, b"f", 0o644, True)) == "EEXIST"
    await nodes.mkdir(1, b"d")
    assert await code(nodes.meta.create(ROOT, 1, b"d", 0o644, False)) == "EEXIST"


async def test_names_are_bytes(nodes) -> None:
    name = bytes(b for b in range(1, 256) if b != 0x2F)
    ino = await nodes.make(1, name)
    assert (await nodes.meta.lookup(1, name))[0] == ino
    [[found]] = [batch async for batch in nodes.meta.readdir(1)]
    assert found.name == name


# ---- lookup and listings


async def test_lookup(nodes) -> None:
    ino = await nodes.make(1, b"f")
    assert await nodes.meta.lookup(1, b"f") == (ino, nodes.attr(ino))
    assert await code(nodes.meta.lookup(1, b"g")) == "ENOENT"
    assert await code(nodes.meta.lookup(ino, b"g")) == "ENOENT"
    nodes.client.delete(f"i{ino}")
    missing, attr = await nodes.meta.lookup(1, b"f")
    assert (missing, attr.type, attr.nlink, attr.mode) == (ino, FILE, 0, 0)
    assert await code(nodes.meta.getattr(ino)) == "ENOENT"
    assert (await nodes.meta.unlink(ROOT, 1, b"f")).attr is None


async def test_root_and_trash_have_defaults(nodes) -> None:
    record = nodes.client.get("i1")
    nodes.client.delete("i1", f"i{TRASH_INO}")
    assert (await nodes.meta.getattr(1)).mode == 0o777
    ino, attr = await nodes.meta.lookup(1, b".trash")
    assert (ino, attr.mode) == (TRASH_INO, 0o555)
    nodes.client.set("i1", record)


async def test_readdir_lists_every_name_once(nodes) -> None:
    value = entry(FILE, 5)
    many = {b"n%d" % n: value for n in range(25000)}
    nodes.client.hset("d77", mapping=many)
    nodes.client.set("i5", codec.encode_attr(nodes.attr(1)))
    seen = [e async for batch in nodes.meta.readdir(77, plus=True) for e in batch]
    assert sorted(e.name for e in seen) == sorted(many)
    assert {e.attr for e in seen if e.attr is None} == set()
    assert [b async for b in nodes.meta.readdir(78)] == []
    nodes.client.delete("d77", "i5")


async def test_getattrs_keeps_the_order(nodes) -> None:
    file = await nodes.make(1, b"f")
    assert await nodes.meta.getattrs([file, 999, 1]) == [nodes.attr(file), None, nodes.attr(1)]


# ---- unlink


async def test_unlink_without_trash_deletes(nodes) -> None:
    freed = []
    nodes.meta.freed = lambda ino, length: freed.append((ino, length))
    nodes.mark()
    ino = await nodes.make(1, b"f", length=10000)
    nodes.client.hset(f"x{ino}", "user.a", "b")
    nodes.client.delete(f"c{ino}_0")
    result = await nodes.meta.unlink(ROOT, 1, b"f")
    changed = nodes.changed()
    del changed[b"i1"]
    zset = changed.pop(b"delfiles")
    assert list(zset) == [b"%d:10000" % ino]
    assert abs(zset[b"%d:10000" % ino] - time.time()) < 60
    assert changed == {b"usedSpace": b"0", b"totalInodes": b"0"}
    assert result.freed == (ino, 10000)
    assert freed == [(ino, 10000)]
    assert not result.sustained


async def test_unlink_of_symlink_and_fifo(nodes) -> None:
    nodes.mark()
    for kind in (LINK, NodeType.FIFO):
        await nodes.make(1, b"n", kind)
        assert (await nodes.meta.unlink(ROOT, 1, b"n")).freed is None
    changed = nodes.changed()
    assert set(changed) == {b"i1", b"usedSpace", b"totalInodes"}


@pytest.mark.promise(4)
async def test_open_file_is_sustained_until_released(nodes) -> None:
    ino = await nodes.make(1, b"f", length=5)
    result = await nodes.meta.unlink(ROOT, 1, b"f", {ino, 12345})
    assert result.sustained
    assert result.freed is None
    assert nodes.client.smembers("session7") == {b"%d" % ino}
    assert nodes.attr(ino).nlink == 0
    assert nodes.client.get("totalInodes") == b"1"
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 9000), time.time_ns())
    nodes.check()
    await nodes.meta.release_sustained(ino)
    assert not nodes.client.exists("session7", f"i{ino}")
    assert nodes.client.zrange("delfiles", 0, -1) == [b"%d:9000" % ino]
    await nodes.meta.release_sustained(ino)
    assert nodes.client.get("usedSpace") == b"0"


@pytest.mark.promise(4)
async def test_many_open_files_are_asked_for(nodes) -> None:
    opened = set(range(10**6, 10**6 + 1000))
    one, two = await nodes.make(1, b"one"), await nodes.make(1, b"two")
    opened.add(one)
    assert (await nodes.meta.unlink(nodes.op(), 1, b"one", opened)).sustained
    assert not (await nodes.meta.unlink(nodes.op(), 1, b"two", opened)).sustained
    three, four = await nodes.make(1, b"three"), await nodes.make(1, b"four")
    opened.add(four)
    result = await nodes.meta.rename(nodes.op(), 1, b"three", 1, b"four", 0, opened)
    assert (result.ino, result.replaced, result.sustained) == (three, four, True)
    assert nodes.client.smembers("session7") == {b"%d" % one, b"%d" % four}
    assert not nodes.client.exists(f"i{two}")


async def test_unlink_errors(nodes) -> None:
    top = await nodes.mkdir(1, b"d", 0o1777)
    ino = await nodes.make(top, b"f", caller=USER)
    assert await code(nodes.meta.unlink(ROOT, 1, b"d")) == "EPERM"
    assert await code(nodes.meta.unlink(ROOT, 1, b"x")) == "ENOENT"
    assert await code(nodes.meta.unlink(ROOT, 1, b".trash")) == "EPERM"
    assert await code(nodes.meta.unlink(USER, HOUR1, b"x")) == "EPERM"
    assert await code(nodes.meta.unlink(ROOT, HOUR1, b"x")) == "ENOENT"
    assert await code(nodes.meta.unlink(OTHER, top, b"f")) == "EACCES"
    for flag in (FLAG_APPEND, FLAG_IMMUTABLE):
        nodes.patch(ino, flags=flag)
        assert await code(nodes.meta.unlink(ROOT, top, b"f")) == "EPERM"
        nodes.patch(ino, flags=0)
        nodes.patch(top, flags=flag)
        assert await code(nodes.meta.unlink(ROOT, top, b"f")) == "EPERM"
        nodes.patch(top, flags=0)
    assert await code(nodes.meta.unlink(USER, top, b"f")) == "OK"


# ---- trash


def hour() -> bytes:
    return time.strftime("%Y-%m-%d-%H", time.gmtime()).encode()


async def test_unlink_moves_to_the_hour(trash) -> None:
    nodes = trash
    top = await nodes.mkdir(1, b"d")
    ino = await nodes.make(top, b"f", length=5000)
    nodes.mark()
    name = hour()
    result = await nodes.meta.unlink(ROOT, top, b"f", {ino})
    assert (result.freed, result.sustained) == (None, False)
    changed = nodes.changed()
    assert changed.pop(b"i%d" % ino)
    assert changed.pop(b"i%d" % top)
    bin_ = b"%d" % HOUR1
    assert changed == {
        b"d%d" % top: None,
        b"d%d" % TRASH_INO: {name: entry(DIR, HOUR1)},
        b"i" + bin_: nodes.client.get(b"i" + bin_),
        b"d" + bin_: {b"%d-%d-f" % (top, ino): entry(FILE, ino)},
        b"usedSpace": b"%d" % (8192 + 4096 + 4096),
        b"totalInodes": b"3",
        b"dirUsedSpace": {b"1": b"4096", b"%d" % top: b"0", bin_: b"8192"},
        b"dirUsedInodes": {b"1": b"1", b"%d" % top: b"0", bin_: b"1"},
        b"dirDataLength": {b"1": b"0", b"%d" % top: b"0", bin_: b"5000"},
    }
    attr = nodes.attr(HOUR1)
    assert (attr.mode, attr.nlink, attr.length, attr.parent) == (0o555, 2, 4096, TRASH_INO)
    assert len(nodes.client.get(b"i" + bin_)) == 72
    assert (nodes.attr(ino).parent, nodes.attr(ino).nlink) == (HOUR1, 1)
    assert nodes.client.get("nextTrash") == b"1"


async def test_trash_names_are_cut_to_255_bytes(trash) -> None:
    ino = await trash.make(1, b"n" * 255)
    await trash.meta.unlink(ROOT, 1, b"n" * 255)
    [name] = trash.client.hkeys(f"d{HOUR1}")
    assert name == (b"1-%d-" % ino + b"n" * 255)[:255]


async def test_life_of_hard_links_to_the_trash(trash) -> None:
    """The life cycle of format.md §6.3, step by step."""
    nodes = trash
    nine, ten = await nodes.mkdir(1, b"9"), await nodes.mkdir(1, b"10")
    ino = await nodes.make(nine, b"h1")
    await nodes.meta.link(ROOT, ino, ten, b"h2")

    def parents() -> dict[int, int]:
        return {int(k): int(v) for k, v in nodes.client.hgetall(f"p{ino}").items()}

    assert parents() == {nine: 1, ten: 1}
    assert (nodes.attr(ino).parent, nodes.attr(ino).nlink) == (0, 2)
    await nodes.meta.rename(ROOT, ten, b"h2", 1, b"h2")
    assert parents() == {nine: 1, ten: 0, 1: 1}
    await nodes.meta.unlink(ROOT, nine, b"h1")
    assert parents() == {nine: 0, ten: 0, 1: 1, HOUR1: 1}
    await nodes.meta.unlink(ROOT, 1, b"h2")
    assert parents() == {nine: 0, ten: 0, 1: 0, HOUR1: 2}
    assert nodes.attr(ino).nlink == 2
    assert await nodes.meta.trash_links(ino) == 2
    nodes.check()
    names = nodes.client.hkeys(f"d{HOUR1}")
    assert set(names) == {b"%d-%d-h1" % (nine, ino), b"1-%d-h2" % ino}
    for name in names:
        await nodes.meta.unlink(ROOT, HOUR1, name)
    assert not nodes.client.exists(f"i{ino}", f"p{ino}")


async def test_same_name_twice_in_an_hour_is_deleted_the_second_time(trash) -> None:
    ino = await trash.make(1, b"a")
    await trash.meta.link(ROOT, ino, 1, b"b")
    await trash.meta.unlink(ROOT, 1, b"b")
    await trash.meta.link(ROOT, ino, 1, b"b")
    await trash.meta.unlink(ROOT, 1, b"b")
    assert trash.attr(ino).nlink == 2
    trash.check()


async def test_skip_trash_deletes_at_once(trash) -> None:
    ino = await trash.make(1, b"f")
    trash.patch(ino, flags=FLAG_SKIP_TRASH)
    assert (await trash.meta.unlink(ROOT, 1, b"f")).freed == (ino, 0)
    top = await trash.mkdir(1, b"d")
    trash.patch(top, flags=FLAG_SKIP_TRASH)
    await trash.meta.rmdir(ROOT, 1, b"d")
    assert not trash.client.exists(f"i{top}", f"d{TRASH_INO}")


async def test_restoring_and_emptying(trash) -> None:
    nodes = trash
    ino = await nodes.make(1, b"f", length=100)
    await nodes.mkdir(1, b"d")
    await nodes.meta.unlink(ROOT, 1, b"f")
    await nodes.meta.rmdir(ROOT, 1, b"d")
    name = b"1-%d-f" % ino
    assert await code(nodes.meta.rename(USER, HOUR1, name, 1, b"g")) == "EPERM"
    assert await code(nodes.meta.rename(ROOT, 1, b"g", HOUR1, b"g")) == "EPERM"
    assert await code(nodes.meta.rmdir(ROOT, TRASH_INO, hour())) == "EPERM"
    flags = RENAME_NOREPLACE | RENAME_RESTORE
    await nodes.meta.rename(ROOT, HOUR1, name, 1, b"f", flags)
    assert nodes.attr(ino).parent == 1
    nodes.check()
    [folder] = nodes.client.hkeys(f"d{HOUR1}")
    await nodes.meta.rmdir(ROOT, HOUR1, folder)
    before = nodes.client.get(f"i{TRASH_INO}")
    await nodes.meta.rmdir(ROOT, TRASH_INO, hour(), emptying_trash=True)
    assert nodes.client.get(f"i{TRASH_INO}") == before
    assert not nodes.client.exists(f"i{HOUR1}", f"d{TRASH_INO}")


# ---- rmdir


async def test_rmdir_removes_all_its_fields(nodes) -> None:
    nodes.mark()
    ino = await nodes.mkdir(1, b"d")
    for key in ("dirQuota", "dirQuotaUsedSpace", "dirQuotaUsedInodes"):
        nodes.client.hset(key, str(ino), 0)
    nodes.client.hset(f"x{ino}", "a", "b")
    await nodes.meta.rmdir(ROOT, 1, b"d")
    assert set(nodes.changed()) == {b"i1", b"usedSpace", b"totalInodes"}
    assert nodes.attr(1).nlink == 2


async def test_rmdir_errors(nodes) -> None:
    rmdir = nodes.meta.rmdir
    await nodes.make(1, b"f")
    top = await nodes.mkdir(1, b"d", 0o1777)
    below = await nodes.mkdir(top, b"e", caller=USER)
    assert await code(rmdir(ROOT, 1, b"f")) == "ENOTDIR"
    assert await code(rmdir(ROOT, 1, b"x")) == "ENOENT"
    assert await code(rmdir(ROOT, 1, b"d")) == "ENOTEMPTY"
    assert await code(rmdir(ROOT, 1, b".")) == "EINVAL"
    assert await code(rmdir(ROOT, 1, b"..")) == "ENOTEMPTY"
    assert await code(rmdir(ROOT, 1, b".trash")) == "EPERM"
    assert await code(rmdir(OTHER, top, b"e")) == "EACCES"
    nodes.patch(top, flags=FLAG_APPEND)
    assert await code(rmdir(ROOT, top, b"e")) == "EPERM"
    nodes.patch(top, flags=0)
    nodes.patch(below, flags=FLAG_IMMUTABLE)
    assert await code(rmdir(USER, top, b"e")) == "OK"


# ---- rename


async def test_rename_within_a_directory(nodes) -> None:
    ino = await nodes.make(1, b"a", length=7)
    before = nodes.attr(ino)
    nodes.mark()
    await nodes.meta.rename(ROOT, 1, b"a", 1, b"b")
    changed = nodes.changed()
    assert set(changed) == {b"i1", b"i%d" % ino, b"d1"}
    assert changed[b"d1"] == {b"b": entry(FILE, ino)}
    after = nodes.attr(ino)
    assert after.ctime_ns > before.ctime_ns
    assert dataclasses.replace(after, ctime_ns=before.ctime_ns) == before


async def test_rename_of_a_directory_moves_a_link(nodes) -> None:
    one, two = await nodes.mkdir(1, b"1"), await nodes.mkdir(1, b"2")
    ino = await nodes.mkdir(one, b"d")
    await nodes.meta.rename(ROOT, one, b"d", two, b"e")
    assert (nodes.attr(one).nlink, nodes.attr(two).nlink, nodes.attr(ino).parent) == (2, 3, two)


@pytest.mark.parametrize("kind", [FILE, LINK, DIR])
@pytest.mark.parametrize("same", [True, False])
async def test_rename_replaces(nodes, kind, same) -> None:
    other = 1 if same else await nodes.mkdir(1, b"other")
    await nodes.make(1, b"a", kind)
    old = await nodes.make(other, b"b", kind)
    result = await nodes.meta.rename(ROOT, 1, b"a", other, b"b")
    assert result.replaced == old
    assert not nodes.client.exists(f"i{old}", f"s{old}")
    assert (result.freed == (old, 0)) == (kind is FILE)
    assert nodes.client.hexists("dirUsedSpace", str(old)) == 0


@pytest.mark.parametrize("kind", [FILE, LINK, DIR])
async def test_rename_puts_what_it_replaces_into_the_trash(trash, kind) -> None:
    one, two = await trash.mkdir(1, b"1"), await trash.mkdir(1, b"2")
    await trash.make(one, b"a", kind)
    old = await trash.make(two, b"b", kind)
    result = await trash.meta.rename(ROOT, one, b"a", two, b"b")
    assert (result.replaced, result.freed, result.sustained) == (old, None, False)
    assert trash.client.hgetall(f"d{HOUR1}") == {b"%d-%d-b" % (two, old): entry(kind, old)}
    assert trash.attr(old).parent == HOUR1


async def test_rename_over_one_of_two_links(nodes) -> None:
    old = await nodes.make(1, b"a")
    top = await nodes.mkdir(1, b"d")
    await nodes.meta.link(ROOT, old, top, b"b")
    await nodes.make(1, b"c")
    result = await nodes.meta.rename(ROOT, 1, b"c", top, b"b")
    assert (result.replaced, result.freed) == (old, None)
    assert nodes.attr(old).nlink == 1


async def test_rename_sustains_what_is_open(nodes) -> None:
    await nodes.make(1, b"a")
    old = await nodes.make(1, b"b", length=4097)
    result = await nodes.meta.rename(ROOT, 1, b"a", 1, b"b", 0, {old})
    assert result.sustained
    assert nodes.client.smembers("session7") == {b"%d" % old}


@pytest.mark.parametrize(("first", "second"), [(FILE, DIR), (DIR, FILE), (DIR, DIR), (FILE, LINK)])
@pytest.mark.parametrize("same", [True, False])
async def test_exchange(nodes, first, second, same) -> None:
    other = 1 if same else await nodes.mkdir(1, b"other")
    a, b = await nodes.make(1, b"a", first), await nodes.make(other, b"b", second)
    links = await nodes.make(1, b"l", length=100)
    await nodes.meta.link(ROOT, links, other, b"m")
    await nodes.meta.rename(ROOT, 1, b"a", other, b"b", RENAME_EXCHANGE)
    assert (await nodes.meta.lookup(1, b"a"))[0] == b
    assert (await nodes.meta.lookup(other, b"b"))[0] == a
    nodes.check()
    await nodes.meta.rename(ROOT, 1, b"a", other, b"m", RENAME_EXCHANGE)


async def test_rename_that_does_nothing(nodes) -> None:
    ino = await nodes.make(1, b"a")
    await nodes.meta.link(ROOT, ino, 1, b"b")
    nodes.mark()
    await nodes.meta.rename(ROOT, 1, b"a", 1, b"a")
    await nodes.meta.rename(ROOT, 1, b"a", 1, b"b")
    assert nodes.changed() == {}


async def test_rename_errors(nodes) -> None:
    async def error(*args, caller=ROOT) -> str:
        return await code(nodes.meta.rename(caller, *args))

    file, top = await nodes.make(1, b"f"), await nodes.mkdir(1, b"d")
    below = await nodes.mkdir(top, b"e")
    deep = await nodes.mkdir(below, b"g")
    await nodes.make(1, b"h")
    assert await error(1, b"x", 1, b"y") == "ENOENT"
    assert await error(1, b"f", 999, b"y") == "ENOENT"
    assert await error(1, b"f", file, b"y") == "ENOTDIR"
    assert await error(1, b"f", 1, b"h", RENAME_NOREPLACE) == "EEXIST"
    assert await error(1, b"f", 1, b"x", RENAME_EXCHANGE) == "ENOENT"
    assert await error(1, b"d", 1, b"f") == "ENOTDIR"
    assert await error(1, b"f", 1, b"d") == "EISDIR"
    assert await error(top, b"e", 1, b"d") == "ENOTEMPTY"
    assert await error(1, b"d", top, b"x") == "EPERM"
    assert await error(1, b"d", below, b"x") == "EPERM"
    assert await error(1, b"d", deep, b"x") == "EINVAL"
    assert await error(deep, b"x", 1, b"d") == "ENOENT"
    assert await error(below, b"g", 1, b"d", RENAME_EXCHANGE) == "EINVAL"
    assert await error(1, b"f", 1, b"x", 4) == "ENOTSUP"
    assert await error(1, b"f", 1, b"x", 5) == "ENOTSUP"
    for flags in (3, 8, 6, 32, 34):
        assert await error(1, b"f", 1, b"x", flags) == "EINVAL"
    assert await error(1, b"f", 1, b"") == "EINVAL"
    assert await error(1, b"f", 1, b"x" * 256) == "ENAMETOOLONG"
    assert await error(1, b".trash", 1, b"x") == "EPERM"
    assert await error(1, b"f", 1, b".trash") == "EPERM"
    for flag in (FLAG_APPEND, FLAG_IMMUTABLE):
        nodes.patch(file, flags=flag)
        assert await error(1, b"f", top, b"x") == "EPERM"
        assert await error(1, b"h", 1, b"f") == "EPERM"
        nodes.patch(file, flags=0)
    nodes.patch(top, flags=FLAG_IMMUTABLE)
    assert await error(1, b"f", top, b"x") == "EPERM"
    nodes.patch(top, flags=FLAG_APPEND)
    assert await error(top, b"e", 1, b"x") == "EPERM"
    assert await error(1, b"f", top, b"x") == "OK"


async def test_rename_in_sticky_directories(nodes) -> None:
    sticky = await nodes.mkdir(1, b"s", 0o1777)
    open_ = await nodes.mkdir(1, b"o", 0o777)
    await nodes.make(sticky, b"f", caller=USER)
    await nodes.make(open_, b"g", caller=OTHER)
    await nodes.make(sticky, b"h", caller=OTHER)
    assert await code(nodes.meta.rename(OTHER, sticky, b"f", sticky, b"x")) == "EACCES"
    assert await code(nodes.meta.rename(OTHER, sticky, b"f", open_, b"x")) == "EACCES"
    assert await code(nodes.meta.rename(OTHER, open_, b"g", sticky, b"f")) == "EACCES"
    assert await code(nodes.meta.rename(OTHER, sticky, b"h", open_, b"h")) == "OK"
    nodes.patch(sticky, uid=OTHER.uid)
    assert await code(nodes.meta.rename(OTHER, open_, b"g", sticky, b"f")) == "OK"


# ---- link and files without a name


async def test_link_errors(nodes) -> None:
    file, top = await nodes.make(1, b"f"), await nodes.mkdir(1, b"d")
    link = nodes.meta.link
    assert await code(link(ROOT, top, 1, b"x")) == "EPERM"
    assert await code(link(ROOT, 999, 1, b"x")) == "ENOENT"
    assert await code(link(ROOT, file, 999, b"x")) == "ENOENT"
    assert await code(link(ROOT, file, file, b"x")) == "ENOTDIR"
    assert await code(link(ROOT, file, 1, b"d")) == "EEXIST"
    assert await code(link(ROOT, file, TRASH_INO, b"x")) == "EPERM"
    assert await code(link(ROOT, file, 1, b"..")) == "EEXIST"
    nodes.patch(file, flags=FLAG_APPEND)
    assert await code(link(ROOT, file, top, b"x")) == "EPERM"
    nodes.patch(file, flags=0)
    nodes.patch(top, flags=FLAG_IMMUTABLE)
    assert await code(link(ROOT, file, top, b"x")) == "EPERM"


async def test_link_twice_in_one_directory(nodes) -> None:
    ino = await nodes.make(1, b"a", length=5000)
    attr = await nodes.meta.link(ROOT, ino, 1, b"b")
    assert (attr.nlink, attr.parent) == (2, 0)
    assert nodes.client.hgetall(f"p{ino}") == {b"1": b"2"}
    assert nodes.client.hget("dirDataLength", "1") == b"10000"
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 9000), 5)
    assert nodes.client.hget("dirDataLength", "1") == b"18000"
    await nodes.meta.unlink(ROOT, 1, b"a")
    assert (nodes.attr(ino).nlink, nodes.attr(ino).parent) == (1, 0)


async def test_file_without_name(nodes) -> None:
    ino, attr = await nodes.meta.tmpfile(ROOT, 1, 0o600)
    assert attr.nlink == 0
    assert not nodes.client.exists("d1")
    nodes.check()
    named = await nodes.meta.link(ROOT, ino, 1, b"now")
    assert (named.nlink, named.parent) == (1, 1)
    assert not nodes.client.exists("session7", f"p{ino}")
    await nodes.meta.release_sustained(ino)
    assert nodes.client.exists(f"i{ino}")
    ino, _ = await nodes.meta.tmpfile(ROOT, 1, 0o600)
    await nodes.meta.release_sustained(ino)
    assert not nodes.client.exists("session7", f"i{ino}")


# ---- quotas


def set_quota(client, ino: int, space: int, inodes: int, used=(0, 0)) -> None:
    client.hset("dirQuota", str(ino), codec.encode_quota(space, inodes))
    client.hset("dirQuotaUsedSpace", str(ino), used[0])
    client.hset("dirQuotaUsedInodes", str(ino), used[1])


async def test_directory_quota_is_exact(nodes) -> None:
    top = await nodes.mkdir(1, b"d")
    sub = await nodes.mkdir(top, b"s")
    set_quota(nodes.client, top, 5 * 4096, 4, (4096, 1))
    set_quota(nodes.client, sub, -1, -1)
    file = await nodes.make(sub, b"1")
    other = await nodes.make(1, b"other", length=12289)
    assert await code(nodes.meta.truncate(ROOT, file, 3 * 4096, through_handle=True)) == "OK"
    await nodes.make(sub, b"2")
    nodes.check()
    for failing in (
        nodes.meta.truncate(ROOT, file, 3 * 4096 + 1, through_handle=True),
        nodes.meta.fallocate(ROOT, file, 0, 0, 3 * 4096 + 1),
        nodes.meta.commit_slice(file, 0, nodes.slice(12288, 1), 1),
        nodes.meta.copy_file_range(ROOT, other, 0, file, 12288, 1),
        nodes.meta.mknod(ROOT, sub, b"3", FILE, 0),
        nodes.meta.link(ROOT, other, sub, b"3"),
        nodes.meta.rename(ROOT, 1, b"other", sub, b"3"),
    ):
        assert await code(failing) == "EDQUOT"
    assert await code(nodes.meta.truncate(ROOT, file, 0, through_handle=True)) == "OK"
    await nodes.meta.unlink(ROOT, sub, b"2")
    assert await code(nodes.meta.rename(ROOT, 1, b"other", sub, b"3")) == "EDQUOT"
    nodes.client.hset("dirQuota", str(top), codec.encode_quota(0, 0))
    assert await code(nodes.meta.rename(ROOT, 1, b"other", sub, b"3")) == "OK"


async def test_moving_trees_between_quotas(nodes) -> None:
    one, two = await nodes.mkdir(1, b"1"), await nodes.mkdir(1, b"2")
    set_quota(nodes.client, one, -1, -1)
    set_quota(nodes.client, two, 8 * 4096, 100)
    tree = await nodes.mkdir(one, b"t")
    await nodes.make(tree, b"f", length=5000)
    await nodes.make(await nodes.mkdir(tree, b"u"), b"g")
    back = await nodes.mkdir(two, b"b")
    await nodes.make(back, b"h", length=4 * 4096)
    nodes.check()
    assert await code(nodes.meta.rename(ROOT, one, b"t", two, b"t")) == "EDQUOT"
    await nodes.meta.rename(nodes.op(), one, b"t", two, b"b", RENAME_EXCHANGE)
    nodes.check()
    await nodes.meta.rename(nodes.op(), two, b"b", 1, b"t")
    nodes.check()
    set_quota(nodes.client, tree, -1, -1, (5 * 4096, 4))
    nodes.client.hset("dirQuotaUsedSpace", str(tree), 8192 + 4096 + 4096)
    nodes.client.hset("dirQuotaUsedInodes", str(tree), 3)
    await nodes.meta.rename(nodes.op(), 1, b"t", two, b"t")


async def test_trash_is_outside_of_directory_quotas(trash) -> None:
    set_quota(trash.client, 1, -1, -1)
    top = await trash.mkdir(1, b"d")
    set_quota(trash.client, top, -1, -1)
    ino = await trash.make(top, b"f", length=9000)
    await trash.meta.unlink(ROOT, top, b"f")
    trash.check()
    await trash.meta.rename(ROOT, HOUR1, b"%d-%d-f" % (top, ino), top, b"f")
    trash.check()


async def test_volume_limits(nodes) -> None:
    nodes.meta.apply(bare_volume(capacity_bytes=3 * 4096, inodes=2, trash_days=0))
    ino = await nodes.make(1, b"a")
    assert await code(nodes.meta.truncate(ROOT, ino, 3 * 4096 + 1, through_handle=True)) == "ENOSPC"
    assert await code(nodes.meta.truncate(ROOT, ino, 2 * 4096, through_handle=True)) == "OK"
    await nodes.make(1, b"b")
    assert await code(nodes.meta.mknod(ROOT, 1, b"c", FILE, 0)) == "ENOSPC"
    await nodes.meta.unlink(ROOT, 1, b"a")
    assert await nodes.meta.statfs() == (12288, 8192, 2, 1)


async def test_user_and_group_usage(nodes) -> None:
    nodes.meta.apply(
        bare_volume(user_group_quota=True, dir_stats=True, trash_days=0, capacity_bytes=0)
    )
    client = nodes.client
    ino = await nodes.make(1, b"a", caller=USER, length=5000)
    nodes.check()
    assert client.hgetall("userQuota") == {b"1000": b"\xff" * 16}
    assert client.hgetall("userQuotaUsedSpace") == {b"1000": b"8192"}
    await nodes.meta.setattr(ROOT, ino, uid=5, gid=6)
    nodes.check()
    client.hset("userQuota", "5", codec.encode_quota(8192, 2))
    client.hset("groupQuota", "7", codec.encode_quota(4096, 1))
    five, seven = Caller(5, 6), Caller(6, 7)
    assert await code(nodes.meta.mknod(five, 1, b"b", FILE, 0)) == "EDQUOT"
    assert await code(nodes.meta.truncate(ROOT, ino, 8193, through_handle=True)) == "EDQUOT"
    assert await code(nodes.meta.mknod(seven, 1, b"b", FILE, 0)) == "OK"
    assert await code(nodes.meta.mknod(seven, 1, b"c", FILE, 0)) == "EDQUOT"
    await nodes.meta.unlink(ROOT, 1, b"a")
    await nodes.meta.unlink(ROOT, 1, b"b")


async def test_statfs_is_narrowed_by_quotas(nodes) -> None:
    assert await nodes.meta.statfs() == (1 << 50, 1 << 50, 10 << 20, 10 << 20)
    top = await nodes.mkdir(1, b"d")
    sub = await nodes.mkdir(top, b"s")
    set_quota(nodes.client, top, 1 << 30, 100, (4096, 1))
    assert await nodes.meta.statfs(sub) == (1 << 30, (1 << 30) - 4096, 100, 99)
    nodes.client.set("usedSpace", (1 << 50) * 9 // 10)
    assert (await nodes.meta.statfs())[0] == 1 << 51
    nodes.client.set("usedSpace", 8192)
