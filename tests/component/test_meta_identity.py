"""Exactly once: repeats, fences, lost scripts, and how results are forgotten (handover.md §4)."""

from __future__ import annotations

import asyncio
import errno

import pytest
from support.engines import open_meta
from support.nodes import ROOT, code, open_nodes

from jfsd.meta.engine import FencedError
from jfsd.meta.names import RENAME_EXCHANGE
from jfsd.types import Caller, NodeType, Slice

FILE, DIR, LINK = NodeType.FILE, NodeType.DIRECTORY, NodeType.SYMLINK
OP = Caller(0, 0, op=1000)


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        yield client


@pytest.fixture(name="nodes")
async def fixture_nodes(client, meta_url):
    async with open_nodes(meta_url, client) as nodes:
        nodes.meta.ack_source = list
        yield nodes


@pytest.fixture(name="successor")
async def fixture_successor(nodes, meta_url):
    """The next server of the same mount."""
    async with open_meta(meta_url, generation=2) as meta:
        meta.sid = nodes.meta.sid
        meta.ack_source = list
        yield meta


async def prepare(nodes) -> dict[str, int]:
    """Some nodes that the calls below work on."""
    made = {"d": await nodes.mkdir(1, b"d"), "e": await nodes.mkdir(1, b"e")}
    made["f"] = await nodes.make(1, b"f", length=20000)
    made["g"] = await nodes.make(1, b"g", length=20000)
    return made


CALLS = {
    "mknod": lambda m, _: m.mknod(OP, 1, b"new", FILE, 0o644),
    "mkdir": lambda m, _: m.mknod(OP, 1, b"new", DIR, 0o755),
    "symlink": lambda m, _: m.mknod(OP, 1, b"new", LINK, 0, 0, b"to"),
    "create": lambda m, _: m.create(OP, 1, b"new", 0o644, True),
    "tmpfile": lambda m, _: m.tmpfile(OP, 1, 0o644),
    "unlink": lambda m, _: m.unlink(OP, 1, b"f"),
    "unlink open": lambda m, n: m.unlink(OP, 1, b"f", {n["f"]}),
    "rmdir": lambda m, _: m.rmdir(OP, 1, b"d"),
    "rename": lambda m, _: m.rename(OP, 1, b"f", 1, b"g"),
    "exchange": lambda m, n: m.rename(OP, 1, b"f", 1, b"d", RENAME_EXCHANGE),
    "link": lambda m, n: m.link(OP, n["f"], 1, b"new"),
    "truncate": lambda m, n: m.truncate(OP, n["f"], 5, through_handle=False),
    "fallocate": lambda m, n: m.fallocate(OP, n["f"], 3, 0, 5000),
    "setattr": lambda m, n: m.setattr(OP, n["f"], mode=0o777),
    "copy": lambda m, n: m.copy_file_range(OP, n["f"], 0, n["g"], 20000, 5000),
    "commit": lambda m, n: m.commit_slice(n["f"], 0, Slice(0, 77, 9, 0, 9), 12345),
    "pack": lambda m, n: m.commit_pack(
        n["f"], [(0, Slice(5, 78, 9, 0, 4)), (1, Slice(0, 78, 9, 4, 5))], 12345
    ),
}


@pytest.mark.promise(2)
@pytest.mark.parametrize("name", CALLS)
async def test_a_repeat_gets_the_first_result_and_does_nothing(nodes, successor, name) -> None:
    """Also by the next server, and after others have changed the same names."""
    made = await prepare(nodes)
    first = await CALLS[name](nodes.meta, made)
    async with open_meta(nodes.url, "other") as other:
        for entry in (b"new", b"f", b"g", b"d"):
            await code(other.rename(ROOT, 1, entry, made["e"], entry))
        await code(other.mknod(ROOT, 1, b"new", FILE, 0))
        await code(other.setattr(ROOT, made["f"], mode=0o123))
    nodes.mark()
    assert await CALLS[name](nodes.meta, made) == first
    assert await CALLS[name](successor, made) == first
    assert nodes.changed() == {}
    nodes.check()


@pytest.mark.promise(2)
@pytest.mark.parametrize("name", CALLS)
async def test_an_older_server_is_fenced(nodes, successor, name) -> None:
    made = await prepare(nodes)
    await nodes.meta.claim()
    await successor.claim()
    nodes.mark()
    with pytest.raises(FencedError):
        await CALLS[name](nodes.meta, made)
    with pytest.raises(FencedError):
        await nodes.meta.claim()
    assert nodes.changed() == {}
    await CALLS[name](successor, made)
    await nodes.meta.lookup(1, b"e")


@pytest.mark.parametrize("name", CALLS)
async def test_scripts_come_back_when_the_server_lost_them(nodes, client, name) -> None:
    made = await prepare(nodes)
    client.script_flush()
    await CALLS[name](nodes.meta, made)
    client.script_flush()
    await nodes.meta.lookup(1, b"e")
    await nodes.meta.statfs()
    nodes.check()


async def test_an_error_is_not_recorded(nodes, client) -> None:
    assert await code(nodes.meta.unlink(OP, 1, b"x")) == "ENOENT"
    await nodes.make(1, b"x")
    assert await code(nodes.meta.unlink(OP, 1, b"x")) == "OK"


async def test_read_only_writes_nothing(nodes, client, meta_url) -> None:
    made = await prepare(nodes)
    nodes.mark()
    async with open_meta(meta_url, "reader", read_only=True) as meta:
        meta.sid = 0
        for call in CALLS.values():
            with pytest.raises(OSError, match=r".*") as caught:
                await call(meta, made)
            assert caught.value.errno in (errno.EROFS, errno.ENOTSUP)
        await meta.lookup(1, b"f")
    assert nodes.changed() == {}
    assert not client.exists("jfsdreader")


def recorded(client) -> set[bytes]:
    return set(client.hkeys("jfsdm1")) - {b"g"}


@pytest.mark.promise(2)
async def test_answered_results_go_with_the_next_script(nodes, client) -> None:
    answered = []
    nodes.meta.ack_source = lambda: [answered.pop() for _ in range(len(answered))]
    for op in (2, 4, 6):
        await nodes.meta.mknod(ROOT._replace(op=op), 1, b"%d" % op, FILE, 0)
    assert recorded(client) == {b"2.mknod", b"4.mknod", b"6.mknod"}
    answered += [2, 6]
    await nodes.meta.mknod(ROOT._replace(op=8), 1, b"8", FILE, 0)
    assert recorded(client) == {b"4.mknod", b"8.mknod"}
    await nodes.meta.mknod(ROOT._replace(op=4), 1, b"4", FILE, 0)
    answered += [4, 8]
    await asyncio.sleep(4.2)
    assert recorded(client) == set()


async def test_two_steps_of_a_request_have_two_identities(nodes, client) -> None:
    ino = await nodes.make(1, b"f")
    answered = []
    nodes.meta.ack_source = lambda: [answered.pop() for _ in range(len(answered))]
    await nodes.meta.truncate(OP, ino, 5, through_handle=False)
    await nodes.meta.setattr(OP, ino, mode=0o600)
    await nodes.meta.setattr(OP._replace(op=OP.op | 1), ino, mode=0o601)
    assert recorded(client) >= {b"1000.truncate", b"1000.setattr", b"1001.setattr"}
    assert (nodes.attr(ino).length, nodes.attr(ino).mode) == (5, 0o601)
    answered.append(1000)
    await nodes.make(1, b"g")
    assert not recorded(client) & {b"1000.truncate", b"1000.setattr", b"1001.setattr"}


async def test_our_own_results_are_forgotten_after_a_while(nodes, client) -> None:
    await nodes.meta.mknod(ROOT, 1, b"a", FILE, 0)
    ino, _ = await nodes.meta.lookup(1, b"a")
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 5)
    assert recorded(client) == {b"n1-1", b"s1"}
    await asyncio.sleep(4.2)
    assert recorded(client) == set()


async def test_results_of_the_dead_are_forgotten_on_demand(nodes, successor, client) -> None:
    for op in (2, 4, 6):
        await nodes.meta.mknod(ROOT._replace(op=op), 1, b"%d" % op, FILE, 0)
    await nodes.meta.mknod(ROOT, 1, b"own", FILE, 0)
    ino, _ = await nodes.meta.lookup(1, b"2")
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 5)
    await nodes.meta.commit_slice(ino, 0, nodes.slice(0, 10), 5)
    await successor.claim()
    await successor.mknod(ROOT._replace(op=8), 1, b"8", FILE, 0)
    await successor.mknod(ROOT, 1, b"ours", FILE, 0)
    await successor.commit_slice(ino, 0, nodes.slice(0, 10), 5)
    await successor.forget_others(unanswered=[4], pending_slices=[2])
    assert recorded(client) == {b"4.mknod", b"8.mknod", b"n2-1", b"s2", b"s3"}
    await successor.forget_mount()
    assert not client.exists("jfsdm1")


@pytest.mark.promise(2)
@pytest.mark.timeout(60)
async def test_killed_connections_lose_and_double_nothing(nodes, client) -> None:
    """Sockets are cut all the time; no call fails, and every change happens once."""
    stop = asyncio.Event()
    kills = 0

    async def killer() -> None:
        nonlocal kills
        while not stop.is_set():
            await asyncio.sleep(0.01)
            kills += client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def worker(number: int) -> None:
        for turn in range(40):
            name = b"%d-%d" % (number, turn)
            ino = await nodes.mkdir(1, name)
            file = await nodes.make(ino, b"f")
            await nodes.meta.commit_slice(file, 0, nodes.slice(0, 5000), 5)
            await nodes.meta.link(nodes.op(), file, 1, name + b"l")
            await nodes.meta.rename(nodes.op(), ino, b"f", ino, b"g")
            await nodes.meta.rename(nodes.op(), ino, b"g", 1, name + b"g")
            await nodes.meta.unlink(nodes.op(), 1, name + b"l")
            await nodes.meta.rmdir(nodes.op(), 1, name)

    task = asyncio.create_task(killer())
    await asyncio.gather(*(worker(n) for n in range(16)))
    stop.set()
    await task
    assert kills > 5
    assert nodes.meta.connection.reconnects > 5
    assert client.hlen("d1") == 16 * 40
    assert {client.llen(key) for key in client.keys("c*")} == {1}
    nodes.check()
