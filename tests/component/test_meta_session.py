"""Sessions: registration, heartbeat, and who cleans up after the dead."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from support.engines import ROOT, bare_volume, open_meta

from jfsd.config.version import parse_version
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.codec import encode_attr
from jfsd.meta.engine import FencedError
from jfsd.meta.locks import LockType
from jfsd.meta.session import Session, SessionInfo, rfc3339, take_turn
from jfsd.record import replace
from jfsd.types import Attr, NodeType

VOLUME = bare_volume()


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", VOLUME.to_json())
        yield client


@pytest.fixture(name="meta")
async def fixture_meta(meta_url, client):
    async with open_meta(meta_url) as meta:
        yield meta


def put_unlinked_file(client, ino: int) -> None:
    attr = Attr(NodeType.FILE, 0o644, nlink=0, length=5000, parent=1)
    client.set(f"i{ino}", encode_attr(attr))
    client.incrby("usedSpace", 8192)
    client.incr("totalInodes")


def session_of(meta, **options) -> Session:
    return Session(meta, SessionInfo.of_this_process("/mnt/x"), **options)


async def test_registration_reads_like_the_references(meta, client) -> None:
    session = session_of(meta)
    assert await session.open() == 1 == meta.sid
    stored = json.loads(client.hget("sessionInfos", "1"))
    assert list(stored) == [
        "Version",
        "HostName",
        "IPAddrs",
        "MountPoint",
        "MountTime",
        "ProcessID",
    ]
    assert parse_version(stored["Version"]) == parse_version("1.4.2")
    assert stored["MountPoint"] == "/mnt/x"
    assert client.zscore("allSessions", "1") == pytest.approx(time.time() + 60, abs=2)
    assert await session_of(meta).open() == 2
    assert client.get("nextsession") == b"2"


def test_time_format() -> None:
    assert rfc3339(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"


async def test_close_leaves_nothing(meta, client) -> None:
    session = session_of(meta)
    sid = await session.open()
    await meta.flock(ROOT, 7, 1, LockType.WRITE)
    await meta.setlk(ROOT, 7, 1, LockType.WRITE, 0, 9, 1)
    put_unlinked_file(client, 8)
    client.sadd(f"session{sid}", 8)
    freed = []
    meta.freed = lambda *file: freed.append(file)
    await session.close()
    assert freed == [(8, 5000)]
    assert client.zrange("delfiles", 0, -1) == [b"8:5000"]
    client.delete("delfiles")
    assert {key: client.get(key) for key in client.scan_iter() if key != b"setting"} == {
        b"nextsession": b"1",
        b"usedSpace": b"0",
        b"totalInodes": b"0",
    }
    assert meta.sid == 0


@pytest.mark.promise(5)
async def test_next_process_goes_on_under_the_same_id(meta_url, client) -> None:
    async with open_meta(meta_url, generation=1) as old:
        sid = await session_of(old).open()
        await old.claim()
        await old.flock(ROOT, 7, 1, LockType.WRITE)
        async with open_meta(meta_url, generation=2) as new:
            session = session_of(new)
            lost: list[None] = []
            session.on_locks_lost = lambda: lost.append(None)
            await new.claim()
            assert await session.open(sid) == sid
            assert not lost
            assert client.hkeys("lockf7") == [b"%d_0000000000000001" % sid]
            with pytest.raises(FencedError):
                await session_of(old).beat()


async def test_beat_extends_and_notices_that_it_was_cleaned(meta, client) -> None:
    session = session_of(meta)
    sid = await session.open()
    lost: list[None] = []
    session.on_locks_lost = lambda: lost.append(None)
    client.zadd("allSessions", {str(sid): 5})
    await session.beat()
    assert client.zscore("allSessions", str(sid)) > time.time() + 50
    assert not lost
    client.hdel("sessionInfos", sid)
    await session.beat()
    assert lost
    assert client.hexists("sessionInfos", sid)


async def test_beat_follows_the_setting(meta, client) -> None:
    session = session_of(meta)
    await session.load_volume()
    await session.open()
    seen = []
    session.on_volume = seen.append
    await session.beat()
    assert not seen
    client.set("setting", replace(VOLUME, trash_days=9).to_json())
    await session.beat()
    await session.beat()
    assert [volume.trash_days for volume in seen] == [9]


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        (None, ExitCode.VOLUME_MISSING),
        (bare_volume().to_json(), ExitCode.VOLUME_CONFLICT),
        (replace(VOLUME, meta_version=2).to_json(), ExitCode.VOLUME_UNSUPPORTED),
        (replace(VOLUME, change_log=True).to_json(), ExitCode.VOLUME_UNSUPPORTED),
    ],
)
async def test_run_ends_when_the_volume_is_no_more(meta, client, setting, code) -> None:
    session = session_of(meta, heartbeat_s=0.02)
    await session.load_volume()
    await session.open()
    client.delete("setting") if setting is None else client.set("setting", setting)
    with pytest.raises(RefusedError) as caught:
        await asyncio.wait_for(session.run(), 10)
    assert caught.value.exit_code is code


async def test_another_volume_in_the_database_is_left_alone(meta, client) -> None:
    session = session_of(meta, heartbeat_s=0.02)
    await session.load_volume()
    sid = await session.open()
    client.flushdb()
    client.set("setting", bare_volume().to_json())
    client.hset("sessionInfos", sid, "{}")  # ids begin anew in a new volume
    client.zadd("allSessions", {str(sid): 2000})
    client.sadd(f"session{sid}", 7)
    client.set("i1", encode_attr(Attr(NodeType.DIRECTORY, 0o777, nlink=2, parent=1)))
    before = {key: client.dump(key) for key in client.scan_iter()}
    with pytest.raises(RefusedError):
        await asyncio.wait_for(session.run(), 10)
    with pytest.raises(OSError, match="Read-only"):
        await meta.mknod(ROOT, 1, b"stray", NodeType.DIRECTORY, 0o755, 0)
    await session.close()
    assert {key: client.dump(key) for key in client.scan_iter()} == before


async def test_loading_a_volume_that_is_not_there(meta, client) -> None:
    client.delete("setting")
    with pytest.raises(RefusedError) as caught:
        await session_of(meta).load_volume()
    assert caught.value.exit_code is ExitCode.VOLUME_MISSING


def die(client, sid: int = 50) -> None:
    """Leave what a killed client leaves: locks, an open unlinked file, a registration."""
    client.hset("sessionInfos", sid, "{}")
    client.zadd("allSessions", {str(sid): 1000})
    client.hset("lockf7", f"{sid}_0000000000000001", "W")
    client.hset("lockf7", "51_0000000000000001", "R")
    client.hset("lockp9", f"{sid}_0000000000000002", b"\0" * 24)
    client.sadd(f"locked{sid}", "lockf7", "lockp9", "lockp10")
    put_unlinked_file(client, 8)
    client.sadd(f"session{sid}", 8, 88)


async def test_stale_session_is_cleaned_wholly(meta, client) -> None:
    session = session_of(meta)
    await session.open()
    die(client)
    await session.beat()
    assert client.zrange("delfiles", 0, -1) == [b"8:5000"]
    assert client.hkeys("lockf7") == [b"51_0000000000000001"]
    assert client.exists("lockp9", "locked50", "session50", "i8") == 0
    assert client.hkeys("sessionInfos") == [b"1"]
    assert client.zrange("allSessions", 0, -1) == [b"1"]


async def test_a_session_that_came_back_is_left_alone(meta, client) -> None:
    die(client)
    client.zadd("allSessions", {"50": time.time() + 100})
    assert not await session_of(meta).clean(50, int(time.time()))
    assert client.exists("lockp9", "locked50", "session50", "i8") == 4


async def test_a_failed_clean_up_keeps_the_session_for_the_next_run(meta, client) -> None:
    die(client)
    client.delete("i8")
    client.hset("i8", "not", "a record")
    assert await session_of(meta).clean_stale() == []
    assert client.zrange("allSessions", 0, -1) == [b"50"]
    client.delete("i8")
    assert await session_of(meta).clean_stale() == [50]


async def test_legacy_sessions_are_stale_after_five_minutes(meta, client) -> None:
    client.zadd("sessions", {"60": time.time() - 200, "61": time.time() - 400})
    assert await session_of(meta).clean_stale() == [61]
    assert client.zrange("sessions", 0, -1) == [b"60"]


async def test_more_locks_than_fit_one_script(meta, client) -> None:
    die(client)
    for ino in range(1000, 1500):
        client.hset(f"lockf{ino}", "50_0000000000000001", "W")
        client.sadd("locked50", f"lockf{ino}")
    assert await session_of(meta).clean_stale() == [50]
    assert client.keys("lockf1*") == []


async def test_read_only_mounts_write_nothing(meta_url, client) -> None:
    async with open_meta(meta_url, read_only=True) as meta:
        session = session_of(meta)
        die(client)
        before = sorted(client.keys())
        await session.load_volume()
        assert await session.open() == 0
        await session.beat()
        await session.close()
        assert sorted(client.keys()) == before


async def test_turns_are_taken_once_per_period(meta, client) -> None:
    assert await take_turn(meta, "lastCleanupFiles", 3240)
    assert not await take_turn(meta, "lastCleanupFiles", 3240)
    last = int(client.get("lastCleanupFiles"))
    assert last == pytest.approx(time.time(), abs=2)
    client.set("lastCleanupFiles", last - 3241)
    assert await take_turn(meta, "lastCleanupFiles", 3240)


async def test_another_heartbeat_counts_from_now_on(meta, client):
    session = Session(meta, SessionInfo.of_this_process("/m"), heartbeat_s=3600)
    await session.load_volume()
    sid = await session.open()
    running = asyncio.create_task(session.run())
    try:
        assert client.zscore("allSessions", sid) > time.time() + 3600
        session.set_heartbeat(1)
        async with asyncio.timeout(20):
            while client.zscore("allSessions", sid) > time.time() + 60:
                await asyncio.sleep(0.01)
            first = client.zscore("allSessions", sid)
            while client.zscore("allSessions", sid) <= first:
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.wait([running])
    await session.close()
