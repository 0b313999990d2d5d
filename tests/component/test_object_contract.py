"""What every store does (jfsd/object/base.py), on each of them with real parts."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from jfsd.object.base import ObjectMissingError, ObjectStore
from jfsd.object.encrypt import EncryptedStore
from jfsd.object.envelope import Envelope
from jfsd.object.local import LocalStore
from jfsd.object.open import open_store
from jfsd.object.s3 import Credentials, S3Store
from jfsd.object.s3url import parse_s3
from jfsd.object.shards import ShardedStore

MIB = 1 << 20


def make_local(request):
    return LocalStore(f"{request.getfixturevalue('tmp_path')}/")


def make_named(request):
    store = make_local(request)
    store._tree._unnamed = False  # as on a file system without O_TMPFILE
    return store


@pytest.fixture(scope="module")
def shared_bucket(weed):
    return weed.bucket()


def make_s3(request):
    bucket = request.getfixturevalue("shared_bucket")
    return S3Store(parse_s3(bucket.url, {}), Credentials(bucket.access_key, bucket.secret_key))


def make_library(request):
    """The same bucket through the client library, which is used where the short way is closed."""
    store = make_s3(request)

    async def open_library():
        store._way = await store._open_library()
        return store._way

    store._open = open_library
    return store


def make_sharded(request):
    root = request.getfixturevalue("tmp_path")
    for number in range(3):
        (root / str(number)).mkdir()
    return ShardedStore([LocalStore(f"{root}/{number}/") for number in range(3)])


def make_encrypted(request):
    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return EncryptedStore(make_local(request), Envelope(pem.decode(), None, ""))


def make_full_s3(request):
    bucket = request.getfixturevalue("shared_bucket")
    return open_store("minio", bucket.url, bucket.access_key, bucket.secret_key)


@pytest.fixture(
    params=[
        make_local,
        make_named,
        make_s3,
        make_library,
        make_sharded,
        make_encrypted,
        make_full_s3,
    ],
    ids=lambda make: make.__name__.removeprefix("make_"),
)
async def store(request):
    store: ObjectStore = request.param(request)
    await store.check()
    yield store
    keys = [found.key async for found in store.list("")]
    await asyncio.gather(*(store.delete(key) for key in keys))
    await store.close()


@pytest.mark.parametrize("size", [0, 1, 4095, 300_000, 4 * MIB])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_what_is_put_can_be_got(store, size, kind):
    content = os.urandom(size)
    await store.put("v/chunks/0/0/1_0_5", kind(content))
    found = await store.get("v/chunks/0/0/1_0_5")
    assert type(found) is bytes
    assert found == content
    info = await store.head("v/chunks/0/0/1_0_5")
    assert info.key == "v/chunks/0/0/1_0_5"
    assert info.size == size
    assert abs(info.mtime_ns - time.time_ns()) < 60e9


async def test_ranges(store):
    content = os.urandom(MIB)
    await store.put("v/a", content)
    for offset, length in [(0, 1), (0, 5000), (1, 1), (MIB - 1, 1), (4096, MIB), (100, 500_000)]:
        for _ in range(2):  # the second one may come from an open file
            assert await store.get("v/a", offset, length) == content[offset : offset + length]
    assert await store.get("v/a", 0, MIB) == content
    assert await store.get("v/a", MIB - 10, 100) == content[-10:]
    assert await store.get("v/a", MIB - 10) == content[-10:]
    assert await store.get("v/a", MIB, 10) == b""
    assert await store.get("v/a", MIB + 5) == b""
    assert await store.get("v/a", 5, 0) == b""


async def test_missing_objects(store):
    await store.put("v/dir/a", b"x")
    for key in ("v/none", "v/none/none", "v/dir"):
        with pytest.raises(ObjectMissingError):
            await store.get(key)
        with pytest.raises(ObjectMissingError):
            await store.get(key, 1, 1)
        with pytest.raises(ObjectMissingError):
            await store.head(key)
    await store.delete("v/none")
    await store.delete("v/none/none")
    await store.delete("v/dir/a/none")
    assert await store.get("v/dir/a") == b"x"


async def test_overwrite_and_delete(store):
    await store.put("v/juicefs_uuid", b"one, longer")
    assert await store.get("v/juicefs_uuid", 0, 3) == b"one"
    await store.put("v/juicefs_uuid", b"two")
    assert await store.get("v/juicefs_uuid", 0, 3) == b"two"
    assert await store.get("v/juicefs_uuid") == b"two"
    await store.delete("v/juicefs_uuid")
    with pytest.raises(ObjectMissingError):
        await store.get("v/juicefs_uuid", 0, 3)
    await store.put("v/juicefs_uuid", b"three")
    assert await store.get("v/juicefs_uuid") == b"three"


async def test_listing(store, request):
    keys = [f"v/chunks/0/{n // 10}/{n}_0_{n}" for n in range(30)]
    weed = "s3" in request.node.name or "library" in request.node.name
    if not weed:
        keys.append("v/chunks-x")  # SeaweedFS sorts it behind v/chunks/
    keys += ["v/chunks0", "v/juicefs_uuid", "w/a", "v/chunks/00/1"]
    for key in keys:
        await store.put(key, b"x" * (len(key) % 5))
    found = [info async for info in store.list("v/")]
    assert [info.key for info in found] == sorted(k for k in keys if k.startswith("v/"))
    assert all(info.size == len(info.key) % 5 for info in found)
    for prefix in ("", "v", "v/chunks", "v/chunks/", "v/chunks/0/1/", "v/chunks/0/1/1", "x"):
        listed = [info.key async for info in store.list(prefix)]
        assert listed == sorted(k for k in keys if k.startswith(prefix)), prefix
    middle = ["v/chunks/0/1/11_0_11", "v/chunks0", "v/chunks/0/9", "w"]
    if not weed:
        middle.append("v/chunks/0/1")  # SeaweedFS goes on behind the whole directory
    for after in middle:
        listed = [info.key async for info in store.list("v/", after)]
        assert listed == sorted(k for k in keys if k.startswith("v/") and k > after), after


async def test_a_long_listing(store, request):
    once = "full_s3" not in request.node.name and "library" not in request.node.name
    count = 1005 if once else 50  # once over two pages is enough
    await asyncio.gather(*(store.put(f"v/{n:04}", b"") for n in range(count)))
    listed = [info.key async for info in store.list("v/")]
    assert listed == [f"v/{n:04}" for n in range(count)]
    partly = store.list("v/")
    assert (await anext(partly)).key == "v/0000"
    await partly.aclose()


async def test_64_at_a_time(store):
    contents = {f"v/{n}": os.urandom(n * 3000) for n in range(64)}
    await asyncio.gather(*(store.put(k, memoryview(c)) for k, c in contents.items()))
    found = await asyncio.gather(*(store.get(k) for k in contents))
    assert found == list(contents.values())
    parts = await asyncio.gather(*(store.get(k, 100, 1000) for k in contents))
    assert parts == [c[100:1100] for c in contents.values()]
    await asyncio.gather(*(store.delete(k) for k in contents))
    assert [info async for info in store.list("v/")] == []
