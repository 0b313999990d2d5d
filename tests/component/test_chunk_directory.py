"""The data path on a real directory: codecs, encryption, disk cache, and its memory."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.chunk_fakes import FakeMeta, Stack

from jfsd.chunk.cache import DiskCache
from jfsd.metrics import CACHE
from jfsd.object.encrypt import EncryptedStore
from jfsd.object.envelope import Envelope
from jfsd.object.local import LocalStore

MIB = 1 << 20


@pytest.fixture(scope="module")
def pem():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@pytest.fixture
async def bucket(tmp_path):
    (tmp_path / "bucket").mkdir()
    store = LocalStore(f"{tmp_path}/bucket/")
    yield store
    await store.close()


def disk_cache(tmp_path, **options):
    return DiskCache(
        [tmp_path / "cache"], "uuid", size_bytes=1 << 30, free_space_ratio=0.0, **options
    )


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_round_trip(tmp_path, bucket, pem, compression, encrypted):
    store = EncryptedStore(bucket, Envelope(pem, None, "")) if encrypted else bucket
    meta = FakeMeta()
    rng = random.Random(1)
    data = os.urandom(300_000) + b"jfsd" * 50_000
    options = {"compression": compression, "encrypted": encrypted, "block_size": 1 << 16}
    async with Stack(store=store, meta=meta, limit=4 * MIB, **options) as stack:
        at = 0
        while at < len(data):
            size = rng.randrange(1, 100_000)
            await stack.writer.write(1, at, data[at : at + size])
            at += size
        await stack.writer.flush(1)
        assert stack.idle()
    for cache in (None, disk_cache(tmp_path)):
        async with Stack(
            store=store, meta=meta, limit=4 * MIB, cache=cache, hash_prefix=False, **options
        ) as stack:
            for _ in range(60):
                at = rng.randrange(len(data))
                size = rng.randrange(1, 150_000)
                assert await stack.read(1, at, size, fh=at % 3) == data[at : at + size]
    names = sorted(path.name for path in Path(bucket.root).rglob("*_*"))
    assert names[0] == "1_0_65536"
    assert len(names) == 8


async def test_cache_answers_when_the_store_is_gone(tmp_path, bucket):
    meta, data = FakeMeta(), os.urandom(5 * (1 << 16) + 100)
    async with Stack(store=bucket, meta=meta, block_size=1 << 16, limit=4 * MIB) as stack:
        await stack.writer.write(1, 0, data)
        await stack.writer.flush(1)
    for lost in (False, True):
        if lost:
            shutil.rmtree(f"{tmp_path}/bucket/vol")
        cache = disk_cache(tmp_path)
        async with Stack(
            store=bucket, meta=meta, block_size=1 << 16, limit=4 * MIB, cache=cache
        ) as stack:
            assert await stack.read(1, 0, len(data)) == data
            assert await stack.read(1, 70_000, 100, fh=9) == data[70_000:70_100]


async def test_damaged_cache_is_replaced_from_the_store(tmp_path, bucket):
    meta, data = FakeMeta(), os.urandom(1 << 16)
    for expected in (1, 1):
        cache = disk_cache(tmp_path)
        async with Stack(
            store=bucket, meta=meta, block_size=1 << 16, limit=4 * MIB, cache=cache
        ) as stack:
            if not meta.commits:
                await stack.writer.write(1, 0, data)
                await stack.writer.flush(1)
            for file in (tmp_path / "cache").rglob("*_*_*"):
                raw = bytearray(file.read_bytes())
                raw[1000] ^= 1
                file.write_bytes(raw)
            assert await stack.read(1, 0, len(data)) == data
        files = list((tmp_path / "cache").rglob("*_*_*"))
        assert len(files) == expected
        assert files[0].read_bytes()[: len(data)] == data


@pytest.mark.promise(19)
async def test_memory_stays_inside_the_buffer(tmp_path, bucket):
    """A long sequential write and read at once, far larger than the buffer."""
    limit, total = 32 * MIB, 400 * MIB
    async with Stack(
        store=bucket, block_size=4 * MIB, limit=limit, max_readahead=32 * MIB, slots=None
    ) as stack:
        data = os.urandom(MIB)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for at in range(0, total, MIB):
            await stack.writer.write(1, at, data)
            assert os.fstat(stack.arena.fd).st_blocks * 512 <= limit
            if at >= 200 * MIB:
                got = await stack.reader.read(1, 1, at - 200 * MIB, MIB, stack.length(1))
                assert got[:100] == data[:100]
            assert stack.budget.charged + stack.budget.lent <= limit + 8 * MIB
        await stack.writer.flush(1)
        assert stack.idle()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert after - before < limit + 80 * MIB
        await asyncio.sleep(0)


@pytest.mark.promise(20)
async def test_the_cache_counts_what_it_had_and_what_not(tmp_path, bucket):
    meta, data = FakeMeta(), os.urandom(4 << 16)
    options = {"store": bucket, "meta": meta, "block_size": 1 << 16, "limit": 4 * MIB}
    async with Stack(**options) as stack:
        await stack.writer.write(1, 0, data)
        await stack.writer.flush(1)
    seen = []
    for _ in range(2):
        before = CACHE.hits, CACHE.hit_bytes, CACHE.misses, CACHE.miss_bytes, CACHE.write_bytes
        async with Stack(**options, cache=disk_cache(tmp_path)) as stack:
            assert await stack.read(1, 0, len(data)) == data
        after = CACHE.hits, CACHE.hit_bytes, CACHE.misses, CACHE.miss_bytes, CACHE.write_bytes
        seen.append(tuple(b - a for a, b in zip(before, after, strict=True)))
    assert seen == [(0, 0, 4, 4 << 16, 4 << 16), (4, 4 << 16, 0, 0, 0)]
