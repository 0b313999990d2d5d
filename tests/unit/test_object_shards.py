"""Objects spread over several buckets (format.md §13.3)."""

from __future__ import annotations

import pytest
from support.chunk_fakes import FakeStore

from jfsd.errors import RefusedError
from jfsd.object.base import StoreError, StoreRefusedError
from jfsd.object.shards import ShardedStore, fnv1a_32, shard_buckets, shard_of

EXAMPLE = "myjfs/chunks/0/0/1_0_4194304"


def test_hash():
    assert fnv1a_32(b"") == 0x811C9DC5
    assert fnv1a_32(EXAMPLE.encode()) == 0x964A9AA8
    assert shard_of(EXAMPLE, 7) == 0x964A9AA8 % 7


def test_templates():
    assert shard_buckets("/data/", 0) == ["/data/"]
    assert shard_buckets("/da%dta/", 1) == ["/da%dta/"]
    assert shard_buckets("http://b-%d.host?x=%20", 3) == [
        "http://b-0.host?x=%20",
        "http://b-1.host?x=%20",
        "http://b-2.host?x=%20",
    ]
    assert shard_buckets("b%03d", 2) == ["b000", "b001"]


@pytest.mark.promise(16)
@pytest.mark.parametrize(("bucket", "shards"), [("/data/", 2), ("/%d/%d/", 2), ("/%d/", 257)])
def test_templates_that_do_not_fit_are_refused(bucket, shards):
    with pytest.raises(RefusedError):
        shard_buckets(bucket, shards)


async def test_each_object_has_one_home():
    parts = [FakeStore() for _ in range(5)]
    store = ShardedStore(parts)
    keys = [f"v/chunks/0/0/{n}_0_10" for n in range(200)]
    for key in keys:
        await store.put(key, key.encode())
    for number, part in enumerate(parts):
        assert part.objects
        assert all(shard_of(key, 5) == number for key in part.objects)
    assert [await store.get(key) for key in keys] == [key.encode() for key in keys]
    await store.delete(keys[0])
    assert sum(len(part.objects) for part in parts) == 199


async def test_a_listing_is_merged_in_order():
    parts = [FakeStore() for _ in range(3)]
    store = ShardedStore(parts)
    keys = sorted(f"v/{n}" for n in range(50))
    for key in keys:
        await store.put(key, b"x")
    await store.put("other", b"x")
    assert [found.key async for found in store.list("v/")] == keys
    assert [found.key async for found in store.list("v/", "v/30")] == [
        k for k in keys if k > "v/30"
    ]


async def test_a_listing_that_is_given_up_closes_all_of_them():
    store = ShardedStore([FakeStore(), FakeStore()])
    for n in range(10):
        await store.put(f"v/{n}", b"x")
    listing = store.list("v/")
    assert (await anext(listing)).key == "v/0"
    await listing.aclose()


async def test_one_bad_bucket_fails_the_check():
    class Refused(FakeStore):
        async def check(self):
            raise StoreRefusedError("bucket 1: forbidden")

    with pytest.raises(StoreRefusedError):
        await ShardedStore([FakeStore(), Refused()]).check()
    await ShardedStore([FakeStore(), FakeStore()]).check()
    with pytest.raises(StoreError):
        await ShardedStore([FakeStore(), FakeStore(down=True)]).check()
