"""One connection: what is sent, and what is made of anything that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import socket

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jfsd.object import httpwire
from jfsd.object.httpwire import SCRATCH_BYTES, Connection, HttpError, StaleError

REQUEST = b"GET /k HTTP/1.1\r\nhost: h\r\n\r\n"


def on_both_loops(test):
    """Run a test on asyncio's own loop, and on the one that the daemon has."""

    def run(make_loop, **arguments):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(test(**arguments))

    named = inspect.Parameter("make_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([named, *inspect.signature(test).parameters.values()])
    run.__name__ = test.__name__
    run.pytestmark = getattr(test, "pytestmark", [])
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return pytest.mark.parametrize("make_loop", loops.values(), ids=loops)(run)


@contextlib.asynccontextmanager
async def linked():
    """A connection, and the server's end of it as a stream."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        theirs, _ = listening.accept()
    ours.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=theirs)
    connection = Connection(ours, bytearray(SCRATCH_BYTES))
    try:
        yield connection, reader, writer
    finally:
        connection.close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(connection, body=b"", *, bodiless=False, timeout_s=10):
    return await connection.exchange(REQUEST, body, bodiless=bodiless, timeout_s=timeout_s)


async def answered(pieces, *, bodiless=False, close=True):
    """Return what is made of `pieces`, which are sent one after the other."""
    async with linked() as (connection, reader, writer):
        call = asyncio.create_task(ask(connection, bodiless=bodiless))
        await reader.readexactly(len(REQUEST))
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if close:
            writer.close()
        try:
            answer = await asyncio.wait_for(call, 20)
        finally:
            state = repr(connection)
        return answer, state


CONTENT = os.urandom(300_000)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello", b"hello", "IDLE"),
    (b"HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", b"", "IDLE"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1", b"1", "IDLE"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + CONTENT, CONTENT, "IDLE"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b"", "IDLE"),
    (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-T: r\r\n\r\n", b"abcde", "IDLE"),
    (CHUNKED + b"493e0\r\n" + CONTENT + b"\r\n0\r\n\r\n", CONTENT, "IDLE"),
    (b"HTTP/1.1 200 OK\r\n\r\nup to the end", b"up to the end", "CLOSED"),
    (b"HTTP/1.0 200 OK\r\n\r\n" + CONTENT, CONTENT, "CLOSED"),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", b"ab", "CLOSED"),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab", b"ab", "IDLE"),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab", b"ab", "CLOSED"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab too much", b"ab", "CLOSED"),
    (
        b"HTTP/1.1 100 Continue\r\n\r\n" + EARLY_HINTS,
        b"ab",
        "IDLE",
    ),
    (
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 60000 + b"\r\nContent-Length: 1\r\n\r\na",
        b"a",
        "IDLE",
    ),
]


@on_both_loops
@pytest.mark.parametrize("step", [1 << 20, 70_000, 7])
@pytest.mark.parametrize(("sent", "body", "state"), ANSWERS)
async def test_bodies_of_all_kinds(sent, body, state, step):
    if len(sent) > 10_000 * step:
        step = len(sent) // 50
    pieces = [sent[at : at + step] for at in range(0, len(sent), step)]
    answer, shown = await answered(pieces, close=state == "CLOSED")
    assert type(answer.body) is bytes
    assert answer.body == body
    assert state in shown
    assert answer.status in (200, 204)
    assert all(name == name.lower() for name in answer.headers)


@on_both_loops
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent", "within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "4 bytes into"),
        (CHUNKED + b"5\r\nab", "within"),
        (CHUNKED + b"zz\r\nab\r\n", "no HTTP"),
        (b"nonsense\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n", "too long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", "HTTP|too long"),
        (b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20000, "too long"),
        (
            CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"0\r\n\r\n",
            "no HTTP",
        ),
    ],
)
async def test_answers_that_are_none(sent, words):
    with pytest.raises(OSError, match=words) as failed:
        await answered([sent])
    assert not isinstance(failed.value, StaleError)


@on_both_loops
async def test_an_answer_to_head_has_no_body():
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    answer, shown = await answered([sent], bodiless=True, close=False)
    assert (answer.body, answer.text(b"content-length")) == (b"", "99")
    assert "IDLE" in shown


@on_both_loops
async def test_requests_follow_each_other_on_one_connection():
    async with linked() as (connection, reader, writer):
        for length in (0, 1, 20_000, 40_000, 3 << 20):
            content = os.urandom(length)
            call = asyncio.create_task(ask(connection, memoryview(content)))
            assert await reader.readexactly(len(REQUEST)) == REQUEST
            assert await reader.readexactly(length) == content
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
            writer.write(content)
            assert (await call).body == content
        assert "served=5" in repr(connection)


@on_both_loops
async def test_bytes_arrive_in_place():
    """The body is received in the object that is returned: nobody else has a copy of it."""
    room = httpwire._Room(100_000)
    room.add(memoryview(CONTENT[:100_000]))
    file = room._file
    taken = room.take()
    assert taken == CONTENT[:100_000]
    assert file.getvalue() is taken


@on_both_loops
async def test_an_answer_before_the_body_was_sent():
    async with linked() as (connection, _, writer):
        call = asyncio.create_task(ask(connection, bytes(8 << 20)))
        await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        answer = await call
        assert (answer.status, answer.body) == (403, b"no")
        assert not connection.reusable


@on_both_loops
async def test_a_connection_that_breaks_while_a_body_is_sent():
    """The answer is what counts if it has come; in any case nobody waits in vain."""
    for words in (b"HTTP/1.1 503 Slow\r\nContent-Length: 2\r\n\r\nno", b""):
        async with linked() as (connection, reader, writer):
            call = asyncio.create_task(ask(connection, bytes(64 << 20), timeout_s=100))
            await reader.readexactly(len(REQUEST))
            writer.write(words)
            await writer.drain()
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                assert (await asyncio.wait_for(call, 20)).status == 503
            assert not connection.reusable


@on_both_loops
async def test_a_closed_connection_is_stale_only_if_it_was_used_before():
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
    async with linked() as (connection, reader, writer):
        call = asyncio.create_task(ask(connection))
        await reader.readexactly(len(REQUEST))
        writer.write(one)
        assert (await call).body == b"1"
        again = asyncio.create_task(ask(connection))
        await reader.readexactly(len(REQUEST))
        writer.close()
        with pytest.raises(StaleError):
            await again
    async with linked() as (connection, reader, writer):
        call = asyncio.create_task(ask(connection))
        await reader.readexactly(len(REQUEST))
        writer.close()
        with pytest.raises(ConnectionError) as failed:
            await call
        assert not isinstance(failed.value, StaleError)


@on_both_loops
async def test_what_nobody_asked_for_is_no_answer():
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
    async with linked() as (connection, _, writer):
        call = asyncio.create_task(ask(connection))
        await asyncio.sleep(0)
        writer.write(one)
        assert (await call).body == b"1"
        os.write(writer.get_extra_info("socket").fileno(), one.replace(b"\n1", b"\n2"))
        with pytest.raises(StaleError):
            await ask(connection)
    async with linked() as (connection, _, writer):
        os.write(writer.get_extra_info("socket").fileno(), one)
        await asyncio.sleep(0.05)
        assert "CLOSED" in repr(connection)
        with pytest.raises(StaleError):
            await ask(connection)


@on_both_loops
async def test_silence_ends():
    """It is counted from the last byte that came or went."""
    async with linked() as (connection, reader, writer):
        call = asyncio.create_task(ask(connection, timeout_s=1000))
        await reader.readexactly(len(REQUEST))
        connection._look(1000)
        connection._moved_s = before_s = connection._loop.time() - 999
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while connection._moved_s == before_s:
            await asyncio.sleep(0.001)
        connection._look(500)
        assert "HEAD" in repr(connection)
        connection._moved_s -= 501
        connection._look(500)
        with pytest.raises(TimeoutError, match="500"):
            await call
        assert "CLOSED" in repr(connection)
    async with linked() as (connection, _, _):
        with pytest.raises(TimeoutError):
            await ask(connection, timeout_s=0.05)


@on_both_loops
async def test_a_cancelled_request_lets_go_of_the_buffer():
    async with linked() as (connection, reader, _):
        buffer = bytearray(b"r" * (8 << 20))
        view = memoryview(buffer)
        call = asyncio.create_task(ask(connection, view))
        await reader.readexactly(len(REQUEST) + 1000)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        buffer[:] = b"w" * len(buffer)
        view.release()
        buffer.clear()  # fails while anybody refers to its memory
        assert b"w" not in await reader.read()


@on_both_loops
async def test_a_cancelled_answer_is_forgotten():
    async with linked() as (connection, _, writer):
        call = asyncio.create_task(ask(connection))
        await asyncio.sleep(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + CONTENT[:200_000])
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert "CLOSED" in repr(connection)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=st.sampled_from([sent for sent, _, _ in ANSWERS if len(sent) < 1000]),
    cuts=st.lists(st.integers(0, 200), max_size=4),
    noise=st.lists(st.tuples(st.integers(0, 200), st.binary(max_size=6)), max_size=3),
)
def test_whatever_comes_ends_in_an_answer_or_an_error(base, cuts, noise):
    """Never in another exception, a hang, or more than one answer."""
    sent = bytearray(base)
    for at, piece in noise:
        sent[at : at + len(piece)] = piece
    points = sorted({0, *cuts, len(sent)})
    pieces = [bytes(sent[a:b]) for a, b in itertools.pairwise(points)]
    with contextlib.suppress(HttpError, ConnectionError), asyncio.Runner() as runner:
        answer, _ = runner.run(answered(pieces))
        assert 200 <= answer.status <= 999 or answer.status < 100
        assert len(answer.body) <= len(sent)
