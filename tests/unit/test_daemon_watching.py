"""The answers to `profile`: whose requests are told, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from jfsd.daemon import watching as watching_module
from jfsd.daemon.watching import Watching
from jfsd.vfs.accesslog import AccessLog, Answered
from jfsd.vfs.virtual import CONFIG_INO, STATS_INO

pytestmark = pytest.mark.promise(20)


class FakeReport:
    def __init__(self):
        self.vfs = SimpleNamespace(access=AccessLog(), texts={})
        self.state = SimpleNamespace(header=SimpleNamespace(metrics=""))

    def prometheus(self):
        return ""

    stats = config = prometheus

    def numbers(self):
        return {"n": 1}


class FakeCall:
    def __init__(self, **request):
        self.request = request
        self.told = asyncio.Queue()

    def number(self, name):
        return self.request.get(name)

    async def tell(self, progress):
        await self.told.put(progress)


@pytest.fixture
def watching(monkeypatch):
    monkeypatch.setattr(watching_module, "MIN_INTERVAL_S", 0.01)
    return Watching(FakeReport(), inherits=False)


def answered(method, uid=0, pid=1, took_s=0.5):
    return Answered(0, uid, 0, pid, method, "", 0, took_s)


async def profiled(watching, call, *requests):
    """Return what is told of these requests."""
    task = asyncio.ensure_future(watching.profile(call))
    access = watching.report.vfs.access
    async with asyncio.timeout(30):
        while not access.listeners:
            await asyncio.sleep(0)
        for request in requests:
            access.tell(request)
        told = (await call.told.get())["methods"]
        again = (await call.told.get())["methods"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert again == {}
    assert access.listeners == ()
    return told


async def test_requests_are_summed_by_method_in_each_interval(watching):
    requests = [answered("read"), answered("read", took_s=0.25), answered("open")]
    told = await profiled(watching, FakeCall(interval_s=0.01), *requests)
    assert told == {"read": [2, 0.75], "open": [1, 0.5]}


async def test_only_those_that_were_asked_for_are_told(watching):
    requests = [answered("read", uid=7, pid=2), answered("open", uid=7), answered("write", uid=8)]
    call = FakeCall(interval_s=0.01, uid=7, pid=1)
    assert await profiled(watching, call, *requests) == {"open": [1, 0.5]}


async def test_user_0_is_a_choice_as_well(watching):
    requests = [answered("read", uid=0), answered("open", uid=5)]
    told = await profiled(watching, FakeCall(interval_s=0.01, uid=0), *requests)
    assert set(told) == {"read"}


async def test_the_virtual_files_say_what_the_report_says(watching):
    assert set(watching.report.vfs.texts) == {STATS_INO, CONFIG_INO}
    assert await watching.stats(FakeCall()) == {"numbers": {"n": 1}}
