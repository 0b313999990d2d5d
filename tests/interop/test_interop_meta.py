"""Our metadata and the reference's on one volume: locks, ACLs, sessions, quotas, deletion."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from support.engines import ROOT, open_meta

from jfsd.config.volume import Volume
from jfsd.meta.acl import ACCESS_XATTR, DEFAULT_XATTR, Rule, to_kernel
from jfsd.meta.clone import Cloner
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.locks import END_OF_FILE, LockType
from jfsd.meta.session import Session, SessionInfo
from jfsd.meta.status import read_status
from jfsd.record import replace
from jfsd.types import TRASH_INO, Caller, NodeType

pytestmark = pytest.mark.promise(14)

READ, WRITE, UNLOCK = LockType.READ, LockType.WRITE, LockType.UNLOCK
USER = Caller(1000, 1000, umask=0o022)


@pytest.fixture(name="volume")
def fixture_volume(new_volume, juicefs):
    return new_volume("file", "--enable-acl", "--trash-days", "1", by=juicefs)


@pytest.fixture(name="mount")
def fixture_mount(volume, juicefs) -> Path:
    return volume.mount("--heartbeat", "1s", client=juicefs).path


@pytest.fixture(name="meta")
async def fixture_meta(volume):
    async with open_meta(volume.meta_url) as meta:
        session = Session(meta, SessionInfo.of_this_process("/mnt/ours"), heartbeat_s=1)
        await session.load_volume()
        await session.open()
        meta.session = session
        yield meta
        await session.close()


@pytest.fixture(name="jobs")
async def fixture_jobs(meta, volume):
    chunks = volume.storage.directory / volume.name / "chunks"

    async def delete_slice(slice_id: int, size: int) -> None:
        folder = chunks / str(slice_id // 10**6) / str(slice_id // 1000)
        for index in range((size + (1 << 22) - 1) >> 22):
            length = min(1 << 22, size - (index << 22))
            (folder / f"{slice_id}_{index}_{length}").unlink(missing_ok=True)

    jobs = Housekeeping(meta, delete_slice)
    yield jobs
    await jobs.close()


async def refused(awaitable) -> bool:
    try:
        await awaitable
    except BlockingIOError:
        return True
    return False


def try_lock(lock, *args: object) -> bool:
    try:
        lock(*args)
    except BlockingIOError:
        return False
    return True


async def test_flocks_exclude_each_other(meta, mount) -> None:
    with (mount / "f").open("w") as file:
        ino = os.fstat(file.fileno()).st_ino
        fcntl.flock(file, fcntl.LOCK_EX)
        assert await refused(meta.flock(ROOT, ino, 1, READ))
        fcntl.flock(file, fcntl.LOCK_SH)
        await meta.flock(ROOT, ino, 1, READ)
        assert await refused(meta.flock(ROOT, ino, 1, WRITE))
        assert not try_lock(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        await meta.flock(ROOT, ino, 1, WRITE)
        assert not try_lock(fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        await meta.flock(ROOT, ino, 1, UNLOCK)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_posix_locks_exclude_each_other(meta, mount) -> None:
    with (mount / "f").open("w+") as file:
        ino = os.fstat(file.fileno()).st_ino
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 5)
        assert await refused(meta.setlk(ROOT, ino, 1, READ, 14, END_OF_FILE, 1))
        held = await meta.getlk(ino, 1, READ, 0, END_OF_FILE)
        assert held is not None
        assert (held.type, held.start, held.end) == (WRITE, 5, 14)
        await meta.setlk(ROOT, ino, 1, WRITE, 15, END_OF_FILE, 1)
        assert not try_lock(fcntl.lockf, file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 15)
        asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, start, length, _ = struct.unpack(
            "hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked)
        )
        assert (kind, start, length) == (fcntl.F_WRLCK, 15, 0)
        await meta.setlk(ROOT, ino, 1, UNLOCK, 0, END_OF_FILE, 1)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0)


def joined(value: bytes) -> list[tuple[int, ...]]:
    """Return records with neighbours joined: the reference leaves some apart."""
    result: list[list[int]] = []
    for kind, pid, start, end in struct.iter_unpack(">IIQQ", value):
        if result and result[-1][:2] == [kind, pid] and result[-1][3] + 1 == start:
            result[-1][3] = end
        else:
            result.append([kind, pid, start, end])
    return [tuple(record) for record in result]


async def test_posix_records_are_the_references(meta, mount, redis_server, meta_url_db) -> None:
    kinds = {READ: fcntl.LOCK_SH, WRITE: fcntl.LOCK_EX, UNLOCK: fcntl.LOCK_UN}
    dice = random.Random(7)
    with (mount / "theirs").open("w+") as file, redis_server.client(meta_url_db) as client:
        theirs = os.fstat(file.fileno()).st_ino
        for _ in range(60):
            kind = dice.choice(list(kinds))
            start, length = dice.randrange(50), dice.randrange(20)
            fcntl.lockf(file, kinds[kind], length, start)
            last = start + length - 1 if length else END_OF_FILE
            await meta.setlk(ROOT, 1 << 40, 5, kind, start, last, os.getpid())
            ours = client.hvals(f"lockp{1 << 40}")
            assert [joined(value) for value in client.hvals(f"lockp{theirs}")] == [
                joined(value) for value in ours
            ]


@pytest.fixture(name="meta_url_db")
def fixture_meta_url_db(volume) -> int:
    return int(volume.meta_url.rpartition("=")[2])


async def test_acls_are_read_by_both(meta, mount) -> None:
    rule = Rule(7, 5, 7, 1, ((1000, 6), (1001, 4)), ((5, 3),))
    for number, (path, flags) in enumerate([("d", "-m"), ("e", "-dm")]):
        (mount / path).mkdir()
        ino = (mount / path).stat().st_ino
        subprocess.run(
            ["setfacl", flags, "u::7,g::5,o:1,u:1000:6,u:1001:4,g:5:3,m:7", mount / path],
            check=True,
        )
        name = (ACCESS_XATTR, DEFAULT_XATTR)[number]
        assert await meta.getxattr(ino, name) == to_kernel(rule) == os.getxattr(mount / path, name)
        assert name in await meta.listxattr(ino)
    changed = Rule(6, 4, 4, 0, ((1000, 7),))
    path = mount / "d"
    await meta.setxattr(ROOT, path.stat().st_ino, ACCESS_XATTR, to_kernel(changed))
    await asyncio.sleep(1.2)
    assert os.getxattr(path, ACCESS_XATTR) == to_kernel(changed)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("spec", ["u::7,g::5,o:0", "u::7,g::5,o:4,u:1000:7,g:5:3,m:6"])
async def test_default_acls_are_inherited_as_by_the_reference(meta, mount, spec) -> None:
    parent = mount / "parent"
    parent.mkdir()
    subprocess.run(["setfacl", "-dm", spec, parent], check=True)
    ino = parent.stat().st_ino
    for kind, mode in (
        (NodeType.FILE, 0o666),
        (NodeType.FILE, 0o2751),
        (NodeType.DIRECTORY, 0o777),
    ):
        theirs = parent / f"theirs{mode:o}"
        old = os.umask(0o027)
        if kind is NodeType.FILE:
            os.close(os.open(theirs, os.O_CREAT | os.O_EXCL, mode))
        else:
            theirs.mkdir(mode)
        os.umask(old)
        new, _ = await meta.mknod(Caller(0, 0, umask=0o027), ino, b"ours%o" % mode, kind, mode)
        a, b = await meta.getattr(theirs.stat().st_ino), await meta.getattr(new)
        assert (a.mode, a.access_acl, a.default_acl) == (b.mode, b.access_acl, b.default_acl)
        theirs.chmod(0o4730)
        await meta.setattr(ROOT, new, mode=0o4730)
        a, b = await meta.getattr(theirs.stat().st_ino), await meta.getattr(new)
        assert (a.mode, a.access_acl, a.default_acl) == (b.mode, b.access_acl, b.default_acl)


async def test_status_is_the_references(meta, mount, volume, juicefs) -> None:
    (mount / "f").write_text("hello")
    (mount / "f").unlink()
    setting = Volume.parse(await meta.connection.call("GET", meta.keys.setting))
    await asyncio.sleep(1.1)
    theirs = juicefs.run("status", "--more", volume.meta_url).stdout
    ours = await read_status(meta, setting)
    decoded = json.loads(theirs)
    for session in (*decoded["Sessions"], *ours["Sessions"]):
        session.pop("Expire")
    assert ours == decoded
    assert {one["MountPoint"] for one in decoded["Sessions"]} == {str(mount), "/mnt/ours"}


async def test_quotas_agree(meta, mount, volume, juicefs) -> None:
    (mount / "q").mkdir()
    juicefs.quota("set", volume.meta_url, "--path", "/q", "--capacity", "1", "--inodes", "6")
    ino = (mount / "q").stat().st_ino
    below, _ = await meta.mknod(USER, ino, b"below", NodeType.DIRECTORY, 0o755)
    file, _ = await meta.mknod(USER, below, b"file", NodeType.FILE, 0o644)
    await meta.truncate(USER, file, 100_000, through_handle=True)
    for number in range(4):
        await meta.mknod(USER, ino, b"f%d" % number, NodeType.FILE, 0o644)
    with pytest.raises(OSError, match="quota"):
        await meta.mknod(USER, ino, b"more", NodeType.FILE, 0o644)
    with pytest.raises(OSError, match="quota"):
        await meta.truncate(USER, file, 1 << 30, through_handle=True)
    await meta.unlink(USER, ino, b"f0", ())
    await asyncio.sleep(3.2)
    report = juicefs.quota("check", volume.meta_url, "--path", "/q")
    assert "<ERROR>" not in report
    assert "inconsistent" not in report
    assert "| /q " in juicefs.quota("get", volume.meta_url, "--path", "/q")


async def test_user_and_group_quotas_agree(meta, mount, volume, juicefs) -> None:
    juicefs.quota("set", volume.meta_url, "--uid", "1000", "--capacity", "1", "--inodes", "5")
    juicefs.quota("set", volume.meta_url, "--gid", "77", "--capacity", "1", "--inodes", "2")
    meta.session.on_volume = meta.apply
    await meta.session.beat()
    top, _ = await meta.mknod(USER, 1, b"u", NodeType.DIRECTORY, 0o777)
    for number in range(4):
        file, _ = await meta.mknod(USER, top, b"f%d" % number, NodeType.FILE, 0o644)
    for call in (
        meta.mknod(USER, top, b"more", NodeType.FILE, 0o644),
        meta.truncate(USER, file, 1 << 30, through_handle=True),
    ):
        with pytest.raises(OSError, match="quota"):
            await call
    await meta.truncate(USER, file, 10_000, through_handle=True)
    await meta.setattr(ROOT, file, uid=1001, gid=77)
    await meta.mknod(Caller(5, 77), top, b"g", NodeType.FILE, 0o644)
    with pytest.raises(OSError, match="quota"):
        await meta.mknod(Caller(5, 77), top, b"h", NodeType.FILE, 0o644)
    await meta.mknod(USER, top, b"more", NodeType.FILE, 0o644)
    for owner in (("--uid", "1000"), ("--uid", "1001"), ("--gid", "77"), ("--gid", "1000")):
        report = juicefs.quota("check", volume.meta_url, *owner)
        assert "<ERROR>" not in report, report
        assert "inconsistent" not in report, report


async def test_a_dead_reference_is_cleaned_up(
    meta, volume, juicefs, jobs, redis_server, meta_url_db
) -> None:
    mounted = volume.mount("--heartbeat", "1s", client=juicefs)
    await meta.connection.call("SET", meta.keys.setting, await no_trash(meta))
    await asyncio.sleep(2.5)
    hand = (mounted.path / "locked").open("w+")
    gone = (mounted.path / "gone").open("w+")
    try:
        ino, gone_ino = os.fstat(hand.fileno()).st_ino, os.fstat(gone.fileno()).st_ino
        fcntl.flock(hand, fcntl.LOCK_EX)
        fcntl.lockf(hand, fcntl.LOCK_EX, 0)
        gone.write("x" * 5000)
        gone.flush()
        os.fsync(gone.fileno())
        (mounted.path / "gone").unlink()
        mounted.kill()
    finally:
        for file in (hand, gone):
            with contextlib.suppress(OSError):
                file.close()
    assert await refused(meta.flock(ROOT, ino, 1, READ))
    assert (await meta.getattr(gone_ino)).nlink == 0
    cleaned: list[int] = []
    for _ in range(100):
        await meta.session.beat()
        with redis_server.client(meta_url_db) as client:
            if client.zcard("allSessions") == 1:
                break
        await asyncio.sleep(0.1)
    await meta.flock(ROOT, ino, 1, WRITE)
    await meta.setlk(ROOT, ino, 1, WRITE, 0, END_OF_FILE, 1)
    with pytest.raises(FileNotFoundError):
        await meta.getattr(gone_ino)
    await jobs.close()
    assert [p.name for p in volume.kept_objects() if p.name.endswith("_5000")] == cleaned
    with redis_server.client(meta_url_db) as client:
        assert sorted(client.hkeys("sessionInfos")) == [str(meta.sid).encode()]
        assert not list(client.scan_iter("session[0-9]*"))
        assert not client.exists("delfiles")


async def no_trash(meta) -> bytes:
    volume = Volume.parse(await meta.connection.call("GET", meta.keys.setting))
    return replace(volume, trash_days=0).to_json()


async def test_nothing_leaks_after_our_jobs(
    meta, mount, volume, juicefs, jobs, monkeypatch
) -> None:
    monkeypatch.setitem(juicefs.extra_env, "JFS_GC_SKIPPEDTIME", "1")
    (mount / "d").mkdir()
    for number in range(20):
        (mount / "d" / f"f{number}").write_bytes(bytes(range(200)) * 500)
    (mount / "big").write_bytes(b"x" * (5 << 20))
    top = (mount / "d").stat().st_ino
    await Cloner(meta, jobs.trees).clone(ROOT, top, 1, b"copy")
    await asyncio.sleep(1.2)
    assert (mount / "copy" / "f7").read_bytes() == bytes(range(200)) * 500
    for number in range(20):
        await meta.unlink(ROOT, top, b"f%d" % number, ())
    await meta.unlink(ROOT, 1, b"big", ())
    await meta.rmdir(ROOT, 1, b"d")
    hours = [entry async for batch in meta.readdir(TRASH_INO) for entry in batch]
    for hour in hours:
        assert await jobs.trees.remove(TRASH_INO, hour.name, hour.ino)
    await jobs.slices.sweep()
    await jobs.close()
    assert len(volume.kept_objects()) == 20
    assert (mount / "copy" / "f7").read_bytes() == bytes(range(200)) * 500
    await asyncio.sleep(2.1)
    report = juicefs.gc(volume.meta_url)
    assert "0 leaked" in report
    assert "20 valid" in report, report
    volume.check()
    juicefs.run("fsck", volume.meta_url, "--path", "/", "-r", "--sync-dir-stat")
