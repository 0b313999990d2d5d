"""The access log: what is told to whom, and what a reader gets."""

from __future__ import annotations

import asyncio
import re

import pytest

from jfsd.fuse import abi, methods
from jfsd.vfs import accesslog
from jfsd.vfs.accesslog import IDLE_LINE, AccessLog, AccessLogReader, Answered, argument_text

pytestmark = pytest.mark.promise(20)
LINE = re.compile(
    rb"\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d\.000005 \[uid:1,gid:2,pid:3\] read \(7,10,0,1\)"
    rb" - (OK|No such file or directory) <0\.001500>\n"
)


def answered(method="read", arguments="7,10,0,1", errno=0):
    return Answered(1_700_000_000_000_005_999, 1, 2, 3, method, arguments, errno, 0.0015)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(accesslog, "IDLE_S", 0.05)


def test_a_line_is_one_of_the_reference():
    assert LINE.fullmatch(answered().line())
    assert LINE.fullmatch(answered(errno=2).line())


def test_nobody_is_told_after_leaving():
    log, told = AccessLog(), []
    log.listen(told.append)
    log.tell(answered())
    log.leave(told.append)
    log.leave(told.append)
    log.tell(answered())
    assert len(told) == 1
    assert not log.listeners


async def test_a_reader_gets_whole_lines_in_order():
    log = AccessLog()
    reader = AccessLogReader(log)
    for number in range(4):
        log.tell(answered(f"m{number}"))
    one = len(answered("m0").line())
    first = await reader.read(0, 2 * one + 5)
    rest = await reader.read(999, 1 << 20)
    assert [line.split()[3] for line in first.splitlines()] == [b"m0", b"m1"]
    assert [line.split()[3] for line in rest.splitlines()] == [b"m2", b"m3"]
    reader.close()
    assert not log.listeners


async def test_a_line_longer_than_the_read_comes_in_parts():
    log = AccessLog()
    reader = AccessLogReader(log)
    log.tell(answered())
    whole = b""
    while not whole.endswith(b"\n"):
        part = await reader.read(0, 10)
        assert 0 < len(part) <= 10
        whole += part
    assert whole == answered().line()


async def test_a_read_waits_for_a_request_but_not_for_ever(monkeypatch):
    log = AccessLog()
    reader = AccessLogReader(log)
    assert await reader.read(0, 100) == IDLE_LINE
    monkeypatch.setattr(accesslog, "IDLE_S", 60)
    waiting = asyncio.ensure_future(reader.read(0, 1000))
    other = asyncio.ensure_future(reader.read(0, 1000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log.waiting == 2
    log.tell(answered())
    lines = {await waiting, await other}
    assert lines == {answered().line(), IDLE_LINE}
    assert log.waiting == 0


async def test_a_reader_that_is_slow_loses_requests_and_is_told(monkeypatch):
    monkeypatch.setattr(accesslog, "QUEUE_REQUESTS", 3)
    log = AccessLog()
    reader = AccessLogReader(log)
    for number in range(5):
        log.tell(answered(f"m{number}"))
    said = (await reader.read(0, 1 << 20)).splitlines()
    assert [line.split()[3] for line in said[:3]] == [b"m0", b"m1", b"m2"]
    assert said[3:] == [b"# 2 requests are missing here"]
    log.tell(answered("m9"))
    assert b" m9 " in await reader.read(0, 1 << 20)


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"plain", "plain"), ("größe".encode(), "größe"), (b"a\nb", "a\\nb"), (b"\xff", "\\xff")],
)
def test_a_name_stays_on_its_line(name, shown):
    assert argument_text(name) == shown


class Context:
    """Stands for what a handler is given besides numbers and names."""


@pytest.mark.parametrize(
    ("opcode", "ino", "arguments", "result", "method", "shown"),
    [
        (1, 1, (1, b"f", Context()), None, "lookup", "1,f"),
        (15, 7, (3, 4096, 100), b"x" * 50, "read", "7,100,4096,3"),
        (16, 7, (3, 4096, b""), 100, "write", "7,100,4096,3"),
        (16, 7, (3, 4096, b""), None, "write", "7,?,4096,3"),
        (abi.FSYNC, 7, (3, True), None, "fsync", "7,3,1"),
        (45, 1, (1, b"a", 2, b"b", 0, Context()), None, "rename", "1,a,2,b,0"),
        (abi.CREATE, 1, (1, b"f", 0o644, 2, Context()), None, "create", "1,f,420,2"),
        (99, 5, (5,), None, "opcode99", "5"),
    ],
)
def test_a_request_is_told_with_what_it_was_about(opcode, ino, arguments, result, method, shown):
    told = methods.answered((1, opcode, ino, 10, 20, 30), arguments, result, 5, 0.25)
    assert (told.method, told.arguments) == (method, shown)
    assert (told.uid, told.gid, told.pid, told.errno, told.took_s) == (10, 20, 30, 5, 0.25)


def test_errors_have_names():
    assert methods.error_name(2) == "ENOENT"
    assert methods.error_name(9999) == "9999"
