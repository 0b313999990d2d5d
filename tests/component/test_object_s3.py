"""Objects in S3: what is sent, what comes back, and outages (format.md §13.2)."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from contextlib import suppress

import crc32c
import pytest
from support.scripted import Script, make_certificate, opened, reply

from jfsd.object.base import (
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.object.open import open_store


@pytest.fixture
def bucket(weed):
    return weed.bucket()


# -- against a real server


async def test_checksums_are_what_the_reference_writes(weed, bucket):
    async with opened(bucket.url, bucket.access_key, bucket.secret_key) as store:
        await store.put("v/a", memoryview(b"hello"))
        s3 = weed.client()
        head = s3.head_object(Bucket=bucket.name, Key="v/a")
        assert head["Metadata"] == {"crc32c": "2591144780"}
        assert head["ContentType"] == "application/octet-stream"
        s3.put_object(Bucket=bucket.name, Key="v/b", Body=b"hullo", Metadata=head["Metadata"])
        with pytest.raises(StoreError, match="checksum") as failed:
            await store.get("v/b")
        assert failed.value.retryable
        assert await store.get("v/b", 1, 2) == b"ul"
        s3.put_object(Bucket=bucket.name, Key="v/c", Body=b"without")
        assert await store.get("v/c") == b"without"
        s3.close()
    async with opened(
        f"{bucket.url}?disable-checksum=true", bucket.access_key, bucket.secret_key
    ) as store:
        assert await store.get("v/b") == b"hullo"


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret_key": "topsecret"}, "secret key"),
        ({"access_key": "nobody", "secret_key": "topsecret"}, "access key is unknown"),
        ({"name": "no-such-bucket"}, "create the bucket"),
        ({"access_key": "anonymous", "secret_key": "topsecret"}, "denied"),
    ],
)
async def test_refusals_say_what_to_do(bucket, caplog, change, words):
    caplog.set_level(logging.DEBUG)
    other = bucket._replace(**change)
    async with opened(other.url, other.access_key, other.secret_key) as store:
        for call in (store.check(), store.put("v/a", b"x"), store.get("v/a")):
            with pytest.raises(StoreRefusedError, match=words) as refused:
                await call
            assert other.name in str(refused.value)
            assert "\n" not in str(refused.value)
            assert "topsecret" not in str(refused.value)
    assert "topsecret" not in caplog.text


@pytest.mark.promise(16)
async def test_keys_of_the_environment(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    async with opened(bucket.url, "", "") as store:
        with pytest.raises(StoreRefusedError, match="AWS_ACCESS_KEY_ID"):
            await store.check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.secret_key)
    async with opened(bucket.url, "", "") as store:
        await store.check()
        await store.put("v/a", b"x")
        assert await store.get("v/a") == b"x"


@pytest.mark.promise(15)
@pytest.mark.parametrize("how", ["hang", "kill"])
async def test_a_server_that_goes_and_comes_back(weed, bucket, how):
    """64 writers and readers see nothing of it."""
    store = open_store(
        "s3",
        bucket.url,
        bucket.access_key,
        bucket.secret_key,
        get_timeout_s=1.5,
        put_timeout_s=1.5,
        io_retries=3,
    )
    contents = {f"v/{n}": os.urandom(n * 2000) for n in range(64)}
    half = dict(list(contents.items())[:32])
    await asyncio.gather(*(store.put(k, memoryview(c)) for k, c in half.items()))
    await asyncio.to_thread(weed.pause if how == "hang" else weed.stop)
    calls = [asyncio.create_task(store.put(k, memoryview(c))) for k, c in contents.items()]
    reads = [asyncio.create_task(store.get(k)) for k in half]
    await asyncio.sleep(3)
    assert not any(call.done() for call in (*calls, *reads))
    await asyncio.to_thread(weed.resume if how == "hang" else weed.start)
    await asyncio.wait_for(asyncio.gather(*calls), 60)
    assert await asyncio.gather(*reads) == list(half.values())
    assert await asyncio.gather(*(store.get(k) for k in contents)) == list(contents.values())
    await store.close()


@pytest.mark.promise(15)
async def test_a_server_that_stays_away_is_an_error_in_the_end(bucket):
    url = "http://127.0.0.1:1/bkt"
    store = open_store("s3", url, "ak", "topsecret", io_retries=2, retry_deadline_s=0.5)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"bucket bkt at http://127\.0\.0\.1:1") as failed:
        await store.put("v/a", b"x")
    assert 0.5 <= time.monotonic() - began < 10
    assert "topsecret" not in str(failed.value)
    await store.close()


async def test_a_cancelled_put_sends_nothing_of_what_the_buffer_holds_later(weed, bucket):
    async with opened(bucket.url, bucket.access_key, bucket.secret_key) as store:
        await store.check()
        buffer = bytearray(b"r" * (4 << 20))
        await asyncio.to_thread(weed.pause)
        put = asyncio.create_task(store.put("v/a", memoryview(buffer)))
        await asyncio.sleep(0.3)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        buffer[:] = b"w" * len(buffer)
        await asyncio.to_thread(weed.resume)
        await asyncio.sleep(0.5)
        with suppress(ObjectMissingError):
            assert await store.get("v/a") == b"r" * len(buffer)


# -- against a server that says what the test wants


@pytest.fixture
async def script():
    return Script()


async def test_requests_are_signed_without_hashing_the_body(script):
    content = os.urandom(1 << 20)
    async with script.serving() as url, opened(url, "ak", "sk", "token") as store:
        await store.put("v/a b", memoryview(content))
        first, headers, body = script.requests[0]
        assert first == "PUT /bkt/v/a%20b HTTP/1.1"
        assert body == content
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert headers["x-amz-meta-crc32c"] == str(crc32c.crc32c(content))
        assert headers["x-amz-security-token"] == "token"
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=ak/")
        assert "/us-east-1/s3/aws4_request" in headers["authorization"]
        assert not any(name.startswith("x-amz-checksum") for name in headers)
        assert "content-md5" not in headers
        assert "expect" not in headers


async def test_anonymous_requests_carry_no_signature(script):
    async with script.serving() as url, opened(url, "anonymous", "sk") as store:
        await store.get("v/a")
        assert "authorization" not in script.requests[0][1]


async def test_ranges_are_inclusive(script):
    script.answers = [reply(206, b"bcd"), reply(200, b"abcdefgh")]
    async with script.serving() as url, opened(url) as store:
        assert await store.get("v/a", 1, 3) == b"bcd"
        assert script.requests[0][1]["range"] == "bytes=1-3"
        assert await store.get("v/a", 2, 3) == b"cde"  # a server that does not know ranges


@pytest.mark.parametrize(
    ("answer", "kind", "retryable"),
    [
        (reply(500, code="InternalError"), StoreError, True),
        (reply(503, code="SlowDown"), StoreError, True),
        (reply(503, b"<html>gateway</html>"), StoreError, True),
        (reply(429, code="TooManyRequests"), StoreError, True),
        (reply(400, code="RequestTimeout"), StoreError, True),
        (reply(400, code="EntityTooLarge"), StoreError, False),
        (reply(403, code="RequestTimeTooSkewed"), StoreRefusedError, False),
        (reply(400, code="ExpiredToken"), StoreRefusedError, False),
        (reply(403, code="AccessDenied"), StoreRefusedError, False),
        (reply(507, code="XMinioStorageFull"), StoreFullError, False),
        (reply(404, code="NoSuchKey"), ObjectMissingError, False),
        (reply(404, code="NoSuchBucket"), StoreRefusedError, False),
        (reply(200, b"half", length=10, Connection="close"), StoreError, True),
        (b"nonsense\r\n\r\n", StoreError, True),
        (b"Connection: close", StoreError, True),
    ],
)
async def test_answers_and_their_meaning(script, answer, kind, retryable):
    async with script.serving() as url, opened(url, secret_key="topsecret") as store:
        script.answers = [answer]
        with pytest.raises(kind) as failed:
            await store.get("v/a")
        assert type(failed.value) is kind
        assert failed.value.retryable is retryable
        assert "bkt" in str(failed.value)
        assert "topsecret" not in str(failed.value)
        assert "\n" not in str(failed.value)
        assert len(script.requests) == 1, "the library repeated by itself"


async def test_an_idle_connection_that_was_closed_is_no_error(script):
    script.answers = [reply(200, b"one"), reply(200, b"two")]
    async with script.serving() as url:
        store = open_store("s3", url, "ak", "sk")
        assert await store.get("v/a") == b"one"
        script.answers.insert(0, b"Connection: close")
        assert await store.get("v/a") == b"two"
        await store.close()


async def test_the_region_is_asked_for(script, monkeypatch):
    location = b"<LocationConstraint>eu-central-7</LocationConstraint>"
    script.answers = [reply(200, location), reply(200, b"x")]
    async with script.serving() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url.removesuffix("/bkt"))
        async with opened("https://bkt") as store:
            assert await store.get("v/a") == b"x"
        assert "location" in script.requests[0][0]
        assert "/us-east-1/" in script.requests[0][1]["authorization"]
        assert "/eu-central-7/" in script.requests[1][1]["authorization"]


@pytest.mark.promise(16)
async def test_tls_files_that_cannot_be_read(script):
    async with opened("https://127.0.0.1:1/bkt?ca-certs=/none") as store:
        with pytest.raises(StoreRefusedError, match="ca-certs"):
            await store.check()


@pytest.fixture
def certificate(tmp_path):
    return make_certificate(tmp_path)


async def test_tls(script, certificate):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    async with script.serving(tls) as url:
        async with opened(url) as store:
            with pytest.raises(StoreRefusedError, match="ca-certs"):
                await store.get("v/a")
        assert script.requests == []
        for query in (f"ca-certs={certificate}", "tls-insecure-skip-verify=true"):
            script.answers = [reply(200, b"x")]
            async with opened(f"{url}?{query}") as store:
                assert await store.get("v/a") == b"x"
