"""The test bed itself: its servers answer, its mounts mount, its checks notice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.redis import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.clients import JuiceFS
    from support.session import Session
    from support.volume import Volume
    from support.weed import WeedServer


def test_each_test_gets_an_empty_database(redis_server: RedisServer, meta_db: int) -> None:
    with redis_server.client(meta_db) as client:
        assert client.dbsize() == 0
        client.set("a", 1)


def test_a_durable_redis_keeps_what_it_acknowledged(bed: Session) -> None:
    server = RedisServer(bed, durable=True)
    with server.client() as client:
        client.set("a", b"1")
    server.stop()
    server.start()
    with server.client() as client:
        assert client.get("a") == b"1"
    server.service.end()


def test_weed_keeps_objects_over_a_kill(weed: WeedServer) -> None:
    bucket = weed.bucket()
    client = weed.client()
    client.put_object(Bucket=bucket.name, Key="a/b", Body=b"x" * 1000)
    weed.stop()
    weed.start()
    assert client.get_object(Bucket=bucket.name, Key="a/b")["Body"].read() == b"x" * 1000
    assert weed.keys(bucket) == ["a/b"]
    client.close()


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_the_reference_mounts(
    kind: str, new_volume: Callable[..., Volume], juicefs: JuiceFS
) -> None:
    volume = new_volume(kind, by=juicefs)
    mounted = volume.mount()
    (mounted.path / "f").write_bytes(b"hello")
    assert len(mounted.pids()) == 2
    mounted = volume.remount(mounted)
    assert (mounted.path / "f").read_bytes() == b"hello"
    mounted.unmount()
    volume.check()


def test_a_hung_mount_is_aborted(
    bed: Session, new_volume: Callable[..., Volume], juicefs: JuiceFS
) -> None:
    volume = new_volume("file", by=juicefs)
    mounted = volume.mount()
    mounted.service.signal(19, group=True)
    bed.deadline(0.5)
    with pytest.raises(OSError, match=r"abort|not connected"):
        (mounted.path / "nothing").stat()
    assert bed.deadline(None) == [str(mounted.path)]
    mounted.kill()


async def test_asyncio_tests_run() -> None:
    await asyncio.sleep(0)
