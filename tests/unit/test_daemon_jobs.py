"""Background jobs, switched on and off."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from jfsd.daemon.jobs import JobSwitch
from jfsd.meta.engine import FencedError


class Jobs:
    def __init__(self) -> None:
        self.running = self.started = 0
        self.error: BaseException | None = None

    async def run(self) -> None:
        self.started += 1
        self.running += 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._work())
        finally:
            self.running -= 1

    async def _work(self) -> None:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(3600)


async def test_jobs_run_while_they_are_switched_on() -> None:
    jobs, session = Jobs(), SimpleNamespace(clean_others=None)
    switch = JobSwitch(jobs, session)
    assert not switch.on
    for _ in range(3):
        await switch.set(True)
        await switch.set(True)
        await asyncio.sleep(0.01)
        assert (switch.on, session.clean_others, jobs.running) == (True, True, 1)
        await switch.set(False)
        assert (switch.on, session.clean_others, jobs.running) == (False, False, 0)
    await switch.set(False)
    assert jobs.started == 3


async def test_a_read_only_mount_has_no_jobs() -> None:
    jobs = Jobs()
    switch = JobSwitch(jobs, SimpleNamespace(), allowed=False)
    await switch.set(True)
    await asyncio.sleep(0.01)
    assert not switch.on
    assert jobs.started == 0


async def test_a_fenced_server_ends_its_jobs_quietly(caplog) -> None:
    jobs = Jobs()
    jobs.error = FencedError()
    switch = JobSwitch(jobs, SimpleNamespace())
    await switch.set(True)
    await asyncio.sleep(0.05)
    assert "background jobs stop: " in caplog.text
    await switch.set(False)
