"""The workers' loop, with a socket in place of the kernel and a small stand-in for pyfuse3."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import uvloop

from jfsd.fuse.loop import ClosedResourceError, Workers


class Bench:
    """Reads one byte per request, as pyfuse3 reads one request; answers after `gate`."""

    def __init__(self):
        self.kernel, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.ours.setblocking(False)
        self.ready = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answered = []
        self.spurious = 0
        self.init_seen = False
        self.direct = set()
        self.waiting_tasks = 0
        self.workers = Workers(self.ours.fileno(), self._on_ready, kernel=self)

    def _on_ready(self):
        self.ready += 1

    def take(self):
        """Carry out requests that begin with "d"; those with "dw" wait for the gate."""
        try:
            request = self.ours.recv(10, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if not request.startswith(b"d") or request == b"die":
            return True
        self.ours.recv(10)
        if request.startswith(b"dw"):
            self.waiting_tasks += 1
            self.direct.add(asyncio.create_task(self._direct(request)))
        else:
            self.answered.append(request)
        return False

    async def _direct(self, request):
        await self.gate.wait()
        self.answered.append(request)
        self.waiting_tasks -= 1
        self.workers.relieved()

    def waiting(self):
        return self.waiting_tasks

    def cancel_waiting(self):
        for task in self.direct:
            task.cancel()

    def ended(self):
        return False

    async def worker(self, fail=None):
        workers = self.workers
        while True:
            try:
                async with workers.Lock():
                    await workers.lowlevel.wait_readable(self.ours.fileno())
            except ClosedResourceError:
                return
            if not self.init_seen:
                self.init_seen = True
                workers.start_soon(self.worker, name="second")
                continue
            try:
                request = self.ours.recv(10)
            except BlockingIOError:
                self.spurious += 1
                continue
            if request == b"die":
                raise OSError(5, "die")
            if not workers._idle:
                workers.start_soon(self.worker, name="more")
            await self.gate.wait()
            self.answered.append(request)

    async def main(self):
        async with self.workers.open_nursery() as nursery:
            nursery.start_soon(self.worker, name="first")

    def close(self):
        self.kernel.close()
        self.ours.close()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running():
    bench = Bench()
    main = asyncio.create_task(bench.main())
    await settle()
    try:
        yield bench, main
    finally:
        bench.gate.set()
        bench.workers.close()
        with contextlib.suppress(OSError):
            await main
        bench.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def on(request):
    def run(test):
        loop = request.param()
        try:
            return loop.run_until_complete(asyncio.wait_for(test(), 10))
        finally:
            loop.close()

    return run


def test_init_needs_no_readiness_and_is_reported_once(on):
    async def test():
        async with running() as (bench, _):
            assert bench.init_seen
            assert bench.ready == 1
            assert repr(bench.workers) == "<Workers serving busy=0 idle=2>"

    on(test)


def test_every_request_is_read_once(on):
    async def test():
        async with running() as (bench, _):
            for i in range(50):
                bench.kernel.send(b"%d" % i)
            while len(bench.answered) < 50:
                await asyncio.sleep(0)
            assert sorted(bench.answered, key=int) == [b"%d" % i for i in range(50)]
            assert bench.spurious == 0

    on(test)


def test_slow_requests_do_not_keep_others_from_being_read(on):
    async def test():
        async with running() as (bench, _):
            bench.gate.clear()
            for i in range(100):
                bench.kernel.send(b"%d" % i)
            while bench.workers.busy < 100:
                await asyncio.sleep(0)
            assert bench.answered == []
            bench.gate.set()
            await settle()
            assert len(bench.answered) == 100
            assert bench.workers.busy == 0

    on(test)


def test_what_is_carried_out_directly_wakes_no_worker(on):
    async def test():
        async with running() as (bench, _):
            for i in range(50):
                bench.kernel.send((b"%d", b"d%d")[i % 2] % i)
            while len(bench.answered) < 50:
                await asyncio.sleep(0)
            assert sorted(bench.answered, key=lambda each: int(each.strip(b"d"))) == [
                (b"%d", b"d%d")[i % 2] % i for i in range(50)
            ]
            assert bench.spurious == 0
            assert repr(bench.workers) == "<Workers serving busy=0 idle=2>"

    on(test)


def test_what_waits_without_a_worker_is_busy_and_waited_for(on):
    async def test():
        async with running() as (bench, main):
            bench.gate.clear()
            bench.kernel.send(b"dw")
            bench.kernel.send(b"d")
            await settle()
            assert bench.answered == [b"d"]
            assert bench.workers.busy == 1
            bench.workers.park()
            done = asyncio.create_task(bench.workers.answered())
            bench.workers.close()
            await settle()
            assert not done.done()
            assert not main.done()
            bench.gate.set()
            await done
            await main
            assert bench.answered == [b"d", b"dw"]

    on(test)


def test_no_more_are_read_than_may_be_in_work(on):
    async def test():
        async with running() as (bench, _):
            bench.workers._most = 3
            bench.gate.clear()
            for i in range(4):
                bench.kernel.send(b"dw%d" % i)
            bench.kernel.send(b"5")
            await settle()
            assert bench.workers.busy == 3
            bench.gate.set()
            await settle()
            assert bench.answered == [b"dw0", b"dw1", b"dw2", b"dw3", b"5"]
            assert bench.workers.busy == 0

    on(test)


def test_parked_it_reads_nothing_and_finishes_what_it_has(on):
    async def test():
        async with running() as (bench, main):
            bench.gate.clear()
            bench.kernel.send(b"1")
            await settle()
            bench.workers.park()
            bench.kernel.send(b"2")
            done = asyncio.create_task(bench.workers.answered())
            await settle()
            assert not done.done()
            bench.gate.set()
            await done
            assert bench.answered == [b"1"]
            assert repr(bench.workers).startswith("<Workers parked busy=0")
            bench.workers.resume()
            await settle()
            assert bench.answered == [b"1", b"2"]
            bench.workers.close()
            await main

    on(test)


def test_a_worker_that_fails_ends_the_others_and_is_heard_of(on):
    async def test():
        async with running() as (bench, main):
            bench.kernel.send(b"die")
            with pytest.raises(OSError, match="die"):
                await main

    on(test)


def test_cancelled_while_idle_or_granted_it_goes_on(on):
    async def test():
        async with running() as (bench, _):
            task = next(iter(bench.workers._tasks))
            task.cancel()
            await settle()
            assert repr(bench.workers) == "<Workers serving busy=0 idle=1>"
            bench.kernel.send(b"1")
            await settle()
            assert bench.answered == [b"1"]

    on(test)


def test_held_it_reads_nothing_until_there_is_room(on):
    async def test():
        async with running() as (bench, _):
            bench.workers.hold(True)
            bench.kernel.send(b"1")
            await settle()
            assert bench.answered == []
            bench.workers.hold(False)
            await settle()
            assert bench.answered == [b"1"]

    on(test)


def test_held_and_parked_it_reads_when_both_have_ended(on):
    async def test():
        async with running() as (bench, _):
            bench.workers.hold(True)
            bench.workers.park()
            bench.kernel.send(b"1")
            bench.workers.hold(False)
            await settle()
            assert bench.answered == []
            bench.workers.hold(True)
            bench.workers.resume()
            await settle()
            assert bench.answered == []
            bench.workers.hold(False)
            await settle()
            assert bench.answered == [b"1"]

    on(test)
