"""Redis or the store is away while servers come and go: everything waits, nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support.kept import KeptJfsd
from support.load import Load
from support.redis import RedisServer
from support.weed import WeedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(10), pytest.mark.timeout(240)]
LOAD = ("names", "writer", "appender", "contender", "unlinked")


@pytest.fixture
def own_redis(bed: Session) -> Iterator[RedisServer]:
    server = RedisServer(bed)
    yield server
    server.service.kill()


@pytest.fixture
def own_weed(bed: Session) -> Iterator[WeedServer]:
    server = WeedServer(bed)
    yield server
    server.service.kill()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGUSR2], ids=["kill", "handover"])
def test_redis_is_away(
    own_redis: RedisServer, new_volume: Callable[..., Volume], bed: Session, by: int
) -> None:
    kept = KeptJfsd(bed).mount_kept(new_volume("file", redis=own_redis))
    load = Load(kept.path, LOAD)
    try:
        time.sleep(0.5)
        own_redis.pause()
        ended = kept.send(by)
        with ThreadPoolExecutor(1) as program:
            waits = program.submit(os.mkdir, kept.path / "while it is away")
            time.sleep(2)
            assert len(kept.ended()) >= ended
            assert not waits.done()
            own_redis.resume()
            waits.result(90)
        kept.await_served(ended)
        load.compare()
        load.stop()
    finally:
        own_redis.resume()
        load.kill()
    load.verify(kept.path)
    kept.check()


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGUSR2], ids=["kill", "handover"])
def test_the_store_is_away(
    own_weed: WeedServer, new_volume: Callable[..., Volume], bed: Session, by: int
) -> None:
    """Also slow requests: a read and an fsync take as long as the store is away."""
    kept = KeptJfsd(bed).mount_kept(new_volume("s3", store=own_weed), "--cache-size", "0")
    data = os.urandom(6 << 20)
    (kept.path / "old").write_bytes(data)
    try:
        with (kept.path / "new").open("wb", buffering=0) as file, ThreadPoolExecutor(2) as program:
            own_weed.pause()
            for start in range(0, len(data), 1 << 20):
                file.write(data[start : start + (1 << 20)])
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            slow = [program.submit(os.fsync, file.fileno())]
            slow.append(program.submit((kept.path / "old").read_bytes))
            for _ in range(2):
                kept.replace(by)
                time.sleep(1)
            assert not slow[0].done()
            own_weed.resume()
            slow[0].result(90)
            assert slow[1].result(90) == data
    finally:
        own_weed.resume()
    assert (kept.path / "new").read_bytes() == data
    kept.check()
