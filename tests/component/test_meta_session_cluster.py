"""Sessions, locks, xattrs and jobs on a cluster, where every key has a prefix (format.md §2.2)."""

from __future__ import annotations

import time

import pytest
from support.engines import ROOT, bare_volume, open_meta
from support.redis import RedisServer
from support.session import free_ports

from jfsd.meta.acl import ACCESS_XATTR, Rule, to_kernel
from jfsd.meta.codec import encode_attr, encode_slice
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.locks import LockType
from jfsd.meta.session import Session, SessionInfo
from jfsd.types import CHUNK_SIZE, Attr, NodeType, Slice


@pytest.fixture(name="server", scope="module")
def fixture_server(bed):
    server = RedisServer(bed, port=free_ports(1)[0])
    yield server
    server.service.end()


async def test_everything_of_a_session_lies_under_the_prefix(server) -> None:
    client = server.client()
    client.flushdb()
    client.set("{3}setting", bare_volume(enable_acl=True).to_json())
    client.set("{3}i7", encode_attr(Attr(NodeType.FILE, 0o644, parent=1)))
    async with open_meta(server.url(3)) as meta:
        deleted = []

        async def delete_slice(slice_id: int, size: int) -> None:
            deleted.append((slice_id, size))

        session = Session(meta, SessionInfo.of_this_process("/mnt/x"))
        jobs = Housekeeping(meta, delete_slice)
        await session.load_volume()
        sid = await session.open()
        await meta.flock(ROOT, 7, 1, LockType.WRITE)
        await meta.setlk(ROOT, 7, 1, LockType.WRITE, 0, 9, 1)
        assert client.smembers(f"{{3}}locked{sid}") == {b"{3}lockf7", b"{3}lockp7"}
        await meta.setxattr(ROOT, 7, b"user.a", b"b")
        await meta.setxattr(ROOT, 7, ACCESS_XATTR, to_kernel(Rule(6, 4, 6, 4, ((1, 6),))))
        for index in (0, 5):
            client.rpush(f"{{3}}c8_{index}", encode_slice(Slice(0, index + 1, 9, 0, 9)))
        client.zadd("{3}delfiles", {f"8:{CHUNK_SIZE << 30}": time.time() - 4000})
        client.zadd("{3}allSessions", {"9": 5})
        client.hset("{3}lockf7", "9_0000000000000001", "R")
        client.sadd("{3}locked9", "{3}lockf7")
        await session.beat()
        assert client.hkeys("{3}lockf7") == [b"%d_0000000000000001" % sid]
        assert await jobs.files.sweep() == 1
        assert sorted(deleted) == [(1, 9), (6, 9)]
        await jobs.empty_trash()
        await jobs.close()
        await session.close()
    keys = set(client.scan_iter())
    assert all(key.startswith(b"{3}") for key in keys)
    assert not {key for key in keys if b"lock" in key or b"ession" in key} - {
        b"{3}nextsession",
        b"{3}lastCleanupSessions",
    }
