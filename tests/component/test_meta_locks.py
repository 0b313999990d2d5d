"""BSD and POSIX locks among sessions: who gets in, and which records are written."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from support.engines import ROOT, open_meta

from jfsd.meta.locks import END_OF_FILE, HeldLock, LockType
from jfsd.types import Caller

READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
INO = (1 << 53) + 1
BIG_OWNER = 0xFEDCBA9876543210


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.zadd("allSessions", {"1": 1 << 40, "2": 1 << 40})
        yield client


@pytest.fixture(name="metas")
async def fixture_metas(meta_url, client):
    async with AsyncExitStack() as stack:
        metas = [await stack.enter_async_context(open_meta(meta_url, f"m{n}")) for n in (1, 2)]
        metas[0].sid, metas[1].sid = 1, 2
        yield metas


async def refused(awaitable) -> bool:
    try:
        await awaitable
    except BlockingIOError:
        return True
    return False


async def test_flock_records_are_those_of_the_format(metas, client) -> None:
    one, _ = metas
    await one.flock(ROOT, INO, BIG_OWNER, WRITE)
    assert client.hgetall(f"lockf{INO}") == {b"1_FEDCBA9876543210": b"W"}
    assert client.smembers("locked1") == {b"lockf%d" % INO}
    await one.flock(ROOT, INO, BIG_OWNER, READ)
    assert client.hgetall(f"lockf{INO}") == {b"1_FEDCBA9876543210": b"R"}
    await one.flock(ROOT, INO, BIG_OWNER, UNLOCK)
    assert client.keys("lock*") == []


@pytest.mark.promise(13)
async def test_flock_excludes_other_owners(metas) -> None:
    one, two = metas
    await one.flock(ROOT, INO, 1, READ)
    await two.flock(ROOT, INO, 1, READ)
    assert await refused(one.flock(ROOT, INO, 1, WRITE))
    assert await refused(one.flock(ROOT, INO, 2, WRITE))
    await two.flock(ROOT, INO, 1, UNLOCK)
    await one.flock(ROOT, INO, 1, WRITE)
    assert await refused(one.flock(ROOT, INO, 2, READ))
    assert await refused(two.flock(ROOT, INO, 1, READ))


async def test_unlocking_one_of_two_owners_keeps_the_note(metas, client) -> None:
    one, _ = metas
    await one.flock(ROOT, INO, 1, READ)
    await one.flock(ROOT, INO, 2, READ)
    await one.flock(ROOT, INO, 1, UNLOCK)
    assert client.smembers("locked1") == {b"lockf%d" % INO}
    await one.flock(ROOT, INO, 2, UNLOCK)
    assert client.keys("lock*") == []


async def test_unlock_of_nothing_succeeds(metas, client) -> None:
    await metas[0].flock(ROOT, INO, 1, UNLOCK)
    await metas[0].setlk(ROOT, INO, 1, UNLOCK, 0, END_OF_FILE, 1)
    assert client.keys("lock*") == []


@pytest.mark.parametrize("value", [b"R", b"W"])
async def test_flock_of_a_session_that_is_gone_blocks_nobody(metas, client, value) -> None:
    client.hset("lockf7", "99_0000000000000001", value)
    await metas[0].flock(ROOT, 7, 1, WRITE)
    assert client.hkeys("lockf7") == [b"1_0000000000000001"]


async def test_flock_of_a_legacy_session_blocks(metas, client) -> None:
    client.hset("lockf7", "99_0000000000000001", b"W")
    client.zadd("sessions", {"99": 1})
    assert await refused(metas[0].flock(ROOT, 7, 1, READ))


async def test_plock_records_are_those_of_the_format(metas, client) -> None:
    one, _ = metas
    await one.setlk(ROOT, INO, BIG_OWNER, WRITE, 5, 14, 24568)
    await one.setlk(ROOT, INO, BIG_OWNER, READ, 30, 49, 24568)
    assert client.hgetall(f"lockp{INO}") == {
        b"1_FEDCBA9876543210": bytes.fromhex(
            "0000000100005ff80000000000000005000000000000000e"
            "0000000000005ff8000000000000001e0000000000000031"
        )
    }
    assert client.smembers("locked1") == {b"lockp%d" % INO}
    await one.setlk(ROOT, INO, BIG_OWNER, UNLOCK, 0, END_OF_FILE, 24568)
    assert client.keys("lock*") == []


@pytest.mark.promise(13)
async def test_plock_excludes_overlapping_ranges_only(metas) -> None:
    one, two = metas
    await one.setlk(ROOT, INO, 1, WRITE, 10, 19, 100)
    await two.setlk(ROOT, INO, 1, WRITE, 0, 9, 200)
    await two.setlk(ROOT, INO, 1, WRITE, 20, END_OF_FILE, 200)
    assert await refused(two.setlk(ROOT, INO, 1, READ, 19, 19, 200))
    assert await refused(one.setlk(ROOT, INO, 2, READ, 0, 10, 101))
    await one.setlk(ROOT, INO, 1, READ, 10, 19, 100)
    await two.setlk(ROOT, INO, 1, READ, 10, 10, 200)
    assert await refused(two.setlk(ROOT, INO, 1, WRITE, 10, 10, 200))


async def test_plock_of_a_session_that_is_gone_blocks_nobody(metas, client) -> None:
    one, two = metas
    await two.setlk(ROOT, INO, 1, WRITE, 0, END_OF_FILE, 200)
    client.zrem("allSessions", "2")
    assert await one.getlk(INO, 1, WRITE, 0, 1) is None
    await one.setlk(ROOT, INO, 1, WRITE, 0, 1, 100)
    assert client.hkeys(f"lockp{INO}") == [b"1_0000000000000001"]


async def test_getlk_names_pid_only_within_a_session(metas) -> None:
    one, two = metas
    last = (1 << 60) + 3
    await one.setlk(ROOT, INO, 1, WRITE, 5, last, 100)
    assert await one.getlk(INO, 2, READ, 0, 5) == HeldLock(WRITE, 5, last, 100)
    assert await two.getlk(INO, 1, READ, last, END_OF_FILE) == HeldLock(WRITE, 5, last, 0)
    assert await one.getlk(INO, 1, WRITE, 0, END_OF_FILE) is None
    assert await two.getlk(INO, 1, WRITE, 0, 4) is None
    assert await two.getlk(INO, 1, UNLOCK, 0, 9) is None


async def test_bad_ranges_are_einval(metas) -> None:
    for start, end in ((5, 4), (-1, 4), (0, 1 << 63)):
        with pytest.raises(OSError, match="Invalid"):
            await metas[0].setlk(ROOT, INO, 1, READ, start, end, 1)


async def test_without_session_there_are_no_locks(meta_url) -> None:
    async with open_meta(meta_url) as meta:
        with pytest.raises(OSError, match="Read-only"):
            await meta.flock(ROOT, INO, 1, READ)


@pytest.mark.promise(2)
async def test_a_repeated_lock_is_answered_with_the_first_result(metas, client) -> None:
    one, two = metas
    caller = Caller(0, 0, op=4)
    one.ack_source = tuple
    await one.flock(caller, INO, 1, WRITE)
    client.delete(f"lockf{INO}")
    await two.flock(ROOT, INO, 1, WRITE)
    await one.flock(caller, INO, 1, WRITE)
    assert client.hkeys(f"lockf{INO}") == [b"2_0000000000000001"]
