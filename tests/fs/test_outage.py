"""Redis or the store away for a while is a wait, not an error, and nothing is lost."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from support.load import Load
from support.posix import attempt
from support.redis import RedisServer
from support.weed import WeedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(15), pytest.mark.timeout(240)]
SHORT_S, LONG_S = 4, 30


@pytest.fixture
def own_redis(bed: Session) -> Iterator[RedisServer]:
    """A Redis that keeps what it acknowledged, for this test alone."""
    server = RedisServer(bed, durable=True)
    yield server
    server.service.kill()


@pytest.fixture
def own_weed(bed: Session) -> Iterator[WeedServer]:
    """An S3 server for this test alone."""
    server = WeedServer(bed)
    yield server
    server.service.kill()


def hang(server: RedisServer | WeedServer, for_s: float) -> None:
    server.pause()
    time.sleep(for_s)
    server.resume()


def crash(server: RedisServer | WeedServer, for_s: float) -> None:
    server.stop()
    time.sleep(for_s)
    server.start()


def _event(who: str, how: Callable[..., None], for_s: int) -> object:
    marks = [pytest.mark.slow] if for_s == LONG_S else []
    if (who, how) == ("redis", crash):
        marks.append(pytest.mark.jfsd_only)  # the reference answers EIO when a connection breaks
    return pytest.param(who, how, for_s, id=f"{who}-{how.__name__}-{for_s}s", marks=marks)


EVENTS = [
    _event(who, how, for_s)
    for for_s in (SHORT_S, LONG_S)
    for who in ("redis", "store")
    for how in (hang, crash)
]


@pytest.mark.parametrize(("who", "how", "for_s"), EVENTS)
def test_a_load_waits_and_loses_nothing(
    who: str,
    how: Callable[[RedisServer | WeedServer, float], None],
    for_s: float,
    own_redis: RedisServer,
    own_weed: WeedServer,
    new_volume: Callable[..., Volume],
) -> None:
    volume = new_volume("s3", redis=own_redis, store=own_weed)
    mounted = volume.mount("--heartbeat", "20s")
    load = Load(mounted.path)
    try:
        time.sleep(1)
        how(own_redis if who == "redis" else own_weed, for_s)
        time.sleep(2)
        reports = load.stop()
    finally:
        load.kill()
    assert all(report.operations > 20 for report in reports.values()), reports
    load.verify(mounted.path)
    mounted = volume.remount(mounted)
    load.verify(mounted.path)
    mounted.unmount()
    volume.check()


def test_what_is_in_the_buffer_survives_an_outage_of_the_store(
    own_redis: RedisServer, own_weed: WeedServer, new_volume: Callable[..., Volume]
) -> None:
    """Written while the store is away, read before and after it is back."""
    volume = new_volume("s3", redis=own_redis, store=own_weed)
    mounted = volume.mount()
    content = os.urandom(9 << 20)
    own_weed.stop()
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    for offset in range(0, len(content), 1 << 17):
        os.pwrite(fd, content[offset : offset + (1 << 17)], offset)
    time.sleep(2)
    own_weed.start()
    os.fsync(fd)
    assert os.pread(fd, len(content), 0) == content[: os.fstat(fd).st_size]
    os.close(fd)
    mounted = volume.remount(mounted)
    assert (mounted.path / "f").read_bytes() == content
    mounted.unmount()


@pytest.mark.jfsd_only
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_store_that_stays_away_is_an_error_at_fsync(
    own_redis: RedisServer, own_weed: WeedServer, new_volume: Callable[..., Volume]
) -> None:
    """EIO after the configured deadline, and the data is still kept for the next try."""
    volume = new_volume("s3", redis=own_redis, store=own_weed)
    mounted = volume.mount("--io-retries", "1", "--put-timeout", "2s")
    content = os.urandom(300_000)
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    own_weed.stop()
    os.pwrite(fd, content, 0)
    assert attempt(os.fsync, fd).error == "EIO"
    own_weed.start()
    _until_fine(lambda: attempt(os.fsync, fd).error is None)
    os.close(fd)
    mounted = volume.remount(mounted)
    assert (mounted.path / "f").read_bytes() == content
    mounted.unmount()


def _until_fine(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.5)
