"""The short way to S3 and that through the client library: which is taken, and what goes wrong."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import ssl
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress

import crc32c
import pytest
import uvloop
from support.scripted import Script, make_certificate, opened, reply

from jfsd.object.base import ObjectMissingError, StoreError, StoreRefusedError
from jfsd.object.s3 import Credentials, S3Store
from jfsd.object.s3lean import LeanWay
from jfsd.object.s3url import parse_s3
from jfsd.object.s3wire import LibraryWay

MIB = 1 << 20
LIBRARYS_MARK = "amz-sdk-invocation-id"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")


def by_library(script):
    """Return which requests came through the client library."""
    return [LIBRARYS_MARK in headers for _, headers, _ in script.requests]


# -- against a real server


async def test_both_ways_do_the_same(weed, tmp_path):
    bucket = weed.bucket()
    async with opened(bucket.url, bucket.access_key, bucket.secret_key) as store:
        library, lean = await store._open_library(), await store._open()
        assert isinstance(lean, LeanWay)
        assert isinstance(library, LibraryWay)
        for writer, reader in ((lean, library), (library, lean)):
            for size in (0, 1, 70_000, 4 * MIB):
                content, key = os.urandom(size), f"v/a ü+%~/{size}"
                crc = str(crc32c.crc32c(content))
                await writer.put(key, memoryview(content), "text/plain", crc)
                assert await reader.get(key) == (content, False, crc)
                assert await reader.get(key, f"bytes={size}-") == (b"", True, "")
                if size:
                    assert await reader.get(key, "bytes=0-0") == (content[:1], True, crc)
                assert await reader.head(key) == await writer.head(key)
                await writer.delete(key)
                with pytest.raises(ObjectMissingError) as theirs:
                    await writer.get(key)
                with pytest.raises(ObjectMissingError) as ours:
                    await reader.get(key)
                assert str(ours.value) == str(theirs.value)
        await lean.check()
        await library.check()


@pytest.mark.promise(7)
def test_the_first_request_needs_no_client_library(weed):
    """After a crash reads of the store wait for nothing but a connection."""
    bucket = weed.bucket()
    code = """if True:
        import asyncio, sys
        from jfsd.object.open import open_store
        async def main():
            store = open_store("s3", *sys.argv[1:])
            await store.check()
            await store.put("v/a", b"abc")
            print(await store.get("v/a"), await store.get("v/a", 1, 1), await store.head("v/a"))
            await store.delete("v/a")
            await store.close()
        asyncio.run(main())
        print(sorted({"aioboto3", "aiohttp", "botocore"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", code, bucket.url, bucket.access_key, bucket.secret_key]
    shown = subprocess.check_output(command, text=True, timeout=60)
    assert shown.startswith("b'abc' b'b' ObjectInfo(key='v/a', size=3")
    assert shown.splitlines()[1] == "[]"


def test_on_the_loop_of_the_daemon(weed):
    """As many requests of all sizes as there are connections, and more."""
    bucket = weed.bucket()

    async def main():
        store = S3Store(
            parse_s3(bucket.url, {}),
            Credentials(bucket.access_key, bucket.secret_key),
            connections=4,
        )
        contents = {f"v/{n}": os.urandom(n * n * 997) for n in range(40)}
        await asyncio.gather(*(store.put(k, memoryview(c)) for k, c in contents.items()))
        for _ in range(3):
            found = await asyncio.gather(*(store.get(k) for k in contents))
            assert found == list(contents.values())
            calls = [asyncio.create_task(store.get(k)) for k in contents]
            await asyncio.sleep(0.005)
            for call in calls[::3]:
                call.cancel()
            for call, content in zip(calls, contents.values(), strict=True):
                with suppress(asyncio.CancelledError):
                    assert await call == content
        assert store._lean._pool._made < 150, "of more than 200 requests"
        await store.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_kill_within_a_put_leaves_nothing(weed):
    """LIFECYCLE: a put in an S3 store."""
    bucket = weed.bucket()
    code = """if True:
        import asyncio, sys
        from jfsd.object.open import open_store
        async def main():
            store = open_store("s3", *sys.argv[1:])
            await store.put("v/whole", b"abc")
            print("ready", flush=True)
            sys.stdin.readline()
            put = asyncio.create_task(store.put("v/part", bytes(64 << 20)))
            await asyncio.sleep(0.5)
            print("sending", flush=True)
            await put
        asyncio.run(main())
    """
    command = [sys.executable, "-c", code, bucket.url, bucket.access_key, bucket.secret_key]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        weed.pause()
        try:
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "sending\n"
            child.kill()
            child.wait(20)
        finally:
            weed.resume()
    time.sleep(0.5)  # the server reads what there is
    assert weed.keys(bucket) == ["v/whole"]


# -- which way


@pytest.fixture
async def script():
    return Script()


async def test_keys_of_the_environment_come_by_the_library(script, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "envkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    script.answers = [reply(200, b"x")]
    async with script.serving() as url, opened(url, "") as store:
        assert await store.get("v/a") == b"x"
    assert by_library(script) == [False]
    assert "Credential=envkey/" in script.requests[0][1]["authorization"]


async def test_keys_that_expire_are_renewed(script, monkeypatch):
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=2)).isoformat()
    steward = Script()
    for number in range(9):
        keys = {"AccessKeyId": f"k{number}", "SecretAccessKey": "s", "Token": "t"}
        keys["Expiration"] = expires
        steward.answers.append(reply(200, json.dumps(keys).encode()))
    async with steward.serving() as keys_url, script.serving() as url, opened(url, "") as store:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", keys_url)
        await store.put("v/a", b"x")
        await store.put("v/a", b"x")
    used = [headers["authorization"].partition("/")[0][-2:] for _, headers, _ in script.requests]
    issued = [f"k{number}" for number in range(len(steward.requests))]
    assert used == issued[-2:]
    assert by_library(script) == [False, False]
    assert script.requests[0][1]["x-amz-security-token"] == "t"


async def test_a_proxy_is_the_librarys_business(script, monkeypatch):
    async with script.serving() as url:
        monkeypatch.setenv("http_proxy", url.removesuffix("/bkt"))
        script.answers = [reply(200, b"x")]
        async with opened("http://store.example/bkt") as store:
            assert await store.get("v/a") == b"x"
        assert script.requests[0][0] == "GET http://store.example/bkt/v/a HTTP/1.1"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with opened(url) as store:
            await store.put("v/a", b"x")
    assert by_library(script) == [True, False]


@pytest.mark.parametrize("how", ["put", "get", "head", "delete"])
async def test_a_redirect_is_followed_by_the_library(script, how):
    moved = reply(301, code="PermanentRedirect", x_amz_bucket_region="eu-central-7")
    if how == "head":
        moved = reply(301, length=0, x_amz_bucket_region="eu-central-7")
    good = reply(200, b"", Last_Modified="Sat, 28 Nov 2026 04:14:00 GMT")
    script.answers = [moved, moved, good, good]
    async with script.serving() as url, opened(url) as store:
        for _ in range(2):
            await (store.put("v/a", b"x") if how == "put" else getattr(store, how)("v/a"))
    assert by_library(script) == [False, True, True, True]
    assert "/us-east-1/" in script.requests[0][1]["authorization"]
    assert "/eu-central-7/" in script.requests[2][1]["authorization"]
    assert "/eu-central-7/" in script.requests[3][1]["authorization"]


async def test_a_redirect_that_leads_nowhere_is_refused(script):
    script.answers = [*[reply(301, code="PermanentRedirect")] * 2, reply(301)]
    async with script.serving() as url, opened(url) as store:
        with pytest.raises(StoreRefusedError, match="another region"):
            await store.get("v/a")


# -- what goes wrong


@pytest.mark.parametrize(
    "answer",
    [
        reply(500, code="InternalError"),
        reply(503, code="SlowDown"),
        reply(503, b"<html>gateway</html>"),
        reply(503),
        reply(403, b"Forbidden"),
        reply(403),
        reply(404),
        reply(404, b"<html><body>no</body></html>"),
        reply(403, code="RequestTimeTooSkewed"),
        reply(507, code="XMinioStorageFull"),
        reply(400, code="EntityTooLarge"),
        reply(416, code="InvalidRange"),
        reply(429),
    ],
)
async def test_errors_are_the_same_on_both_ways(script, answer):
    async with script.serving() as url, opened(url, secret_key="topsecret") as store:
        library, lean = await store._open_library(), await store._open()
        failures = []
        for way in (library, lean):
            for call in (lambda w: w.get("v/a"), lambda w: w.put("v/a", b"x", "x/y", "1")):
                script.answers = [answer]
                with pytest.raises(StoreError) as failed:
                    await call(way)
                failures.append((type(failed.value), failed.value.retryable, str(failed.value)))
    assert failures[:2] == failures[2:]
    assert by_library(script) == [True, True, False, False]


class Misbehaving:
    """A server whose connections are served by a function of the test."""

    def __init__(self, serve):
        self.connections = 0
        self._serve = serve

    @asynccontextmanager
    async def serving(self):
        async def served(reader, writer):
            self.connections += 1
            try:
                await self._serve(self.connections, reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/bkt"


async def read_request(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
    return await reader.readexactly(length)


async def test_connections_that_were_closed_while_idle_are_replaced():
    """Even if the server only tells when the next request comes: one call, one attempt."""

    async def serve(number, reader, writer):
        await read_request(reader)
        writer.write(reply(200, b"%d" % number))
        await read_request(reader)  # and closes instead of an answer

    server = Misbehaving(serve)
    async with server.serving() as url, opened(url) as store:
        assert [await store.get("v/a") for _ in range(4)] == [b"1", b"2", b"3", b"4"]
        assert await asyncio.gather(*(store.get("v/a") for _ in range(3)))
    assert server.connections == 7


async def test_a_fresh_connection_that_is_closed_is_a_failure():
    async def serve(number, reader, writer):
        await read_request(reader)

    server = Misbehaving(serve)
    async with server.serving() as url, opened(url) as store:
        with pytest.raises(StoreError, match="closed") as failed:
            await store.get("v/a")
        assert failed.value.retryable
    assert server.connections == 1


async def test_a_slow_answer_is_waited_for_and_silence_is_not():
    async def serve(number, reader, writer):
        await read_request(reader)
        for byte in reply(200, b"slow", length=4):
            writer.write(bytes([byte]))
            await asyncio.sleep(0.002)
        await read_request(reader)
        writer.write(reply(200, b"hal", length=4))
        await reader.read()

    async with Misbehaving(serve).serving() as url, opened(url) as store:
        assert await store.get("v/a") == b"slow"
        store._lean._pool._read_timeout_s = 0.3
        with pytest.raises(StoreError, match="nothing came"):
            await store.get("v/a")


async def test_chunks_and_answers_of_unknown_length_are_read():
    content = os.urandom(200_000)
    half = len(content) // 2

    async def serve(number, reader, writer):
        await read_request(reader)
        if number == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (content[:half], content[half:], b""):
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + content)

    async with Misbehaving(serve).serving() as url, opened(url) as store:
        assert await store.get("v/a") == content
        assert await store.get("v/a") == content
        assert await store.get("v/a") == content


async def test_a_longer_answer_than_stated_does_not_become_the_next_one():
    async def serve(number, reader, writer):
        await read_request(reader)
        writer.write(reply(200, b"right" + reply(200, b"wrong"), length=5))
        await read_request(reader)
        writer.write(reply(200, b"never"))

    server = Misbehaving(serve)
    async with server.serving() as url, opened(url) as store:
        assert [await store.get("v/a") for _ in range(3)] == [b"right"] * 3
    assert server.connections == 3


async def test_nothing_is_sent_from_a_buffer_after_a_cancellation():
    """Whatever the server reads later, and however slowly: it is the old content or nothing."""
    begun, going_on = asyncio.Event(), asyncio.Event()
    received = []

    async def serve(number, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await going_on.wait()
        received.append(await reader.read(-1))

    async with Misbehaving(serve).serving() as url, opened(url) as store:
        buffer = bytearray(b"r" * (32 * MIB))
        put = asyncio.create_task(store.put("v/a", memoryview(buffer)))
        await begun.wait()
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        buffer[:] = b"w" * len(buffer)
        going_on.set()
        while not received:
            await asyncio.sleep(0.01)
    assert set(received[0]) <= {ord("r")}


# -- TLS


def test_tls_on_both_loops(tmp_path):
    """Large bodies both ways, requests that follow each other, a cancellation."""
    path = make_certificate(tmp_path)
    for make_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(_exchange_over_tls(path))


async def _exchange_over_tls(path):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(path)
    script = Script()
    async with script.serving(tls) as url, opened(f"{url}?ca-certs={path}") as store:
        for size in (0, 1, 16_000, 100_000, 5 * MIB):
            content = os.urandom(size)
            script.answers = [reply(200), reply(200, content)]
            await store.put("v/a", memoryview(content))
            assert script.requests[-1][2] == content
            assert await store.get("v/a") == content
        assert store._lean._pool._made < 5, "of ten requests"
        script.answers = [reply(200, b"half", length=10, Connection="close")]
        with pytest.raises(StoreError):
            await store.get("v/a")
        put = asyncio.create_task(store.put("v/a", bytes(5 * MIB)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        put.cancel()
        with suppress(asyncio.CancelledError):
            await put
        await store.put("v/a", b"and on")


async def test_a_certificate_of_another_host_is_not_trusted(script, tmp_path):
    """On neither way."""
    path = make_certificate(tmp_path, "127.0.0.2")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(path)
    async with script.serving(tls) as url:
        async with opened(f"{url}?ca-certs={path}") as store:
            for way in (await store._open(), await store._open_library()):
                with pytest.raises(StoreRefusedError, match="not trusted"):
                    await way.get("v/a")
        async with opened(f"{url}?tls-insecure-skip-verify=1") as store:
            await store.put("v/a", b"x")
    assert len(script.requests) == 1


async def test_a_client_certificate_is_shown(script, tmp_path):
    path = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=path)
    tls.load_cert_chain(path)
    tls.verify_mode = ssl.CERT_REQUIRED
    async with script.serving(tls) as url:
        async with opened(f"{url}?ca-certs={path}") as store:
            with pytest.raises(StoreError):
                await store.get("v/a")
        query = f"ssl-cert={path}&ssl-key={path}"
        for trust in (f"ca-certs={path}", "tls-insecure-skip-verify=1"):
            async with opened(f"{url}?{trust}&{query}") as store:
                await store.put("v/a", b"x")
    assert len(script.requests) == 2
