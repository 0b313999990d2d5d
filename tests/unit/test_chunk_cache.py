"""The local cache: the reference's layout, and never an error (format.md Appendix B)."""

from __future__ import annotations

import asyncio
import errno
import os
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from jfsd.chunk import cache as cache_module
from jfsd.chunk import cache_file
from jfsd.chunk.cache import DiskCache, MemoryCache
from jfsd.chunk.cache_file import UNIT_BYTES, CachedBlock, DamagedFileError, trailer, write_block

UUID = "5d2cb8bb-6a4f-4a59-9e4b-0f3e0a1f1d11"


def name(slice_id, length, index=0):
    return f"chunks/0/{slice_id // 1000}/{slice_id}_{index}_{length}"


class Opened:
    """A started cache that is closed at the end."""

    def __init__(self, root, **options):
        options.setdefault("free_space_ratio", 0.0)
        options.setdefault("size_bytes", 1 << 30)
        self.cache = DiskCache([root], UUID, **options)

    async def __aenter__(self):
        await self.cache.start()
        return self.cache

    async def __aexit__(self, *exc):
        await self.cache.close()


async def written(cache):
    async with asyncio.timeout(5):
        while cache._queued_bytes:
            await asyncio.sleep(0.001)


# -- the file


def test_trailer_of_hello():
    assert trailer(b"hello").hex() == "9a71bb4c"


def test_trailer_has_one_checksum_for_each_started_unit():
    assert len(trailer(bytes(4 << 20))) == 512
    assert len(trailer(bytes(UNIT_BYTES + 1))) == 8


def test_file_of_a_block(tmp_path):
    path = tmp_path / "a" / "b" / "1_0_5"
    write_block(path, b"hello", checksum=True)
    assert path.read_bytes().hex() == b"hello".hex() + "9a71bb4c"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["1_0_5"]
    write_block(path, b"hello", checksum=False)
    assert path.read_bytes() == b"hello"


@pytest.mark.parametrize("length", [1, UNIT_BYTES - 1, UNIT_BYTES, 3 * UNIT_BYTES + 17])
@pytest.mark.parametrize("checksum", [True, False])
def test_parts_of_a_block(tmp_path, length, checksum):
    data = os.urandom(length)
    path = tmp_path / "x"
    write_block(path, data, checksum=checksum)
    block = CachedBlock(str(path), length, checksum=True)
    for off in {0, 1, length // 2, length - 1}:
        for size in {1, (length - off) // 2 + 1, length - off}:
            if off + size <= length:
                assert bytes(block.read(off, size)) == data[off : off + size]


def test_every_flipped_byte_is_seen_by_a_read_of_its_unit(tmp_path):
    data = os.urandom(2 * UNIT_BYTES + 100)
    path = tmp_path / "x"
    size = write_block(path, data, checksum=True)
    for at in (0, 5, UNIT_BYTES, 2 * UNIT_BYTES + 99, size - 12, size - 1):
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        bad = tmp_path / f"bad{at}"
        bad.write_bytes(raw)
        block = CachedBlock(str(bad), len(data), checksum=True)
        unit = at // UNIT_BYTES if at < len(data) else (at - len(data)) // 4
        with pytest.raises(DamagedFileError):
            block.read(unit * UNIT_BYTES + 1, 1)
        other = (unit + 1) % 3
        assert block.read(other * UNIT_BYTES, 1) == data[other * UNIT_BYTES :][:1]


@pytest.mark.parametrize("change", [-1, 1, -6, 5])
def test_file_of_another_size_is_damaged(tmp_path, change):
    path = tmp_path / "x"
    write_block(path, b"hello", checksum=True)
    os.truncate(path, 9 + change)
    with pytest.raises(DamagedFileError):
        CachedBlock(str(path), 5, checksum=True)


def test_file_cut_while_it_is_open_is_damaged(tmp_path):
    path = tmp_path / "x"
    write_block(path, b"hello", checksum=True)
    block = CachedBlock(str(path), 5, checksum=True)
    os.truncate(path, 3)
    with pytest.raises(DamagedFileError):
        block.read(0, 5)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_file.os, "writev", lambda fd, parts: 3)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write_block(tmp_path / "x", b"hello", checksum=True)
    assert not list(tmp_path.iterdir())


# -- the directory


async def test_layout(tmp_path):
    async with Opened(tmp_path) as cache:
        cache.put("chunks/0/4/4098_0_5", b"hello")
        await written(cache)
    root = tmp_path / UUID
    assert (root / "raw/chunks/0/4/4098_0_5").read_bytes() == b"hello" + bytes.fromhex("9a71bb4c")
    uuid.UUID((root / ".lock").read_text())


async def test_blocks_survive_a_restart(tmp_path):
    data = os.urandom(100_000)
    async with Opened(tmp_path) as cache:
        cache.put(name(1, len(data)), data)
        await written(cache)
    async with Opened(tmp_path) as cache:
        assert bytes(await cache.get(name(1, len(data)), 0, len(data))) == data
        async with asyncio.timeout(5):
            while cache.used_bytes != len(data) + 16:
                await asyncio.sleep(0.001)


async def test_open_block_is_read_without_waiting(tmp_path):
    data = os.urandom(100_000)
    async with Opened(tmp_path) as cache:
        path = name(1, len(data))
        assert cache.get_now(path, 0, 10) is None
        cache.put(path, data)
        await written(cache)
        assert bytes(await cache.get(path, 50_000, 100)) == data[50_000:50_100]
        assert bytes(cache.get_now(path, 70_000, 100)) == data[70_000:70_100]


async def test_open_blocks_are_few(tmp_path):
    async with Opened(tmp_path) as cache:
        for n in range(1, 100):
            cache.put(name(n, 10), b"0123456789")
        await written(cache)
        before = len(os.listdir("/proc/self/fd"))
        for n in range(1, 100):
            assert bytes(await cache.get(name(n, 10), 3, 2)) == b"34"
        assert len(os.listdir("/proc/self/fd")) <= before + 64


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 10),
        lambda path: path.write_bytes(b"x" * path.stat().st_size),
        lambda path: path.write_bytes(b""),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
async def test_harmed_file_is_a_miss_and_removed(tmp_path, harm, opened):
    data = os.urandom(50_000)
    path = name(1, len(data))
    file = tmp_path / UUID / "raw" / path
    async with Opened(tmp_path) as cache:
        cache.put(path, data)
        await written(cache)
        if opened:
            await cache.get(path, 0, 10)
        harm(file)
        found = cache.get_now(path, 0, 10) if opened else None
        if found is None:
            found = await cache.get(path, 0, len(data))
        if not (opened and not file.exists()):  # an unlinked file that is open is still right
            assert found is None
    assert not file.exists()


async def test_directory_in_place_of_a_file_is_a_miss(tmp_path):
    async with Opened(tmp_path) as cache:
        (tmp_path / UUID / "raw" / name(1, 5)).mkdir(parents=True)
        assert await cache.get(name(1, 5), 0, 5) is None


async def test_size_is_kept_and_what_was_read_last_stays(tmp_path):
    async with Opened(tmp_path, size_bytes=100_000) as cache:
        data = os.urandom(9_996)
        for n in range(1, 9):
            cache.put(name(n, len(data)), data)
        await written(cache)
        assert await cache.get(name(1, len(data)), 0, 10) is not None
        for n in range(9, 16):
            cache.put(name(n, len(data)), data)
        await written(cache)
        assert cache.used_bytes <= 100_000
        files = list((tmp_path / UUID / "raw").rglob("*_*"))
        assert sum(each.stat().st_size for each in files) == cache.used_bytes
        assert {name(1, len(data)), name(15, len(data))} <= {
            str(each.relative_to(tmp_path / UUID / "raw")) for each in files
        }


async def test_size_is_kept_after_a_restart(tmp_path):
    data = os.urandom(9_996)
    async with Opened(tmp_path) as cache:
        for n in range(1, 9):
            cache.put(name(n, len(data)), data)
        await written(cache)
    async with Opened(tmp_path, size_bytes=50_000) as cache:
        async with asyncio.timeout(5):
            while not 0 < cache.used_bytes <= 50_000:
                await asyncio.sleep(0.001)


async def test_block_that_another_client_has_not_uploaded_stays(tmp_path):
    async with Opened(tmp_path, size_bytes=20_000) as cache:
        data = os.urandom(9_000)
        cache.put(name(1, len(data)), data)
        await written(cache)
        file = tmp_path / UUID / "raw" / name(1, len(data))
        os.link(file, tmp_path / "rawstaging")
        for n in range(2, 9):
            cache.put(name(n, len(data)), data)
        await written(cache)
        assert file.exists()


async def test_full_disk_is_not_filled_further(tmp_path):
    async with Opened(tmp_path, free_space_ratio=1.0) as cache:
        cache.put(name(1, 5), b"hello")
        await written(cache)
        assert cache.used_bytes == 0
        assert await cache.get(name(1, 5), 0, 5) is None


async def test_a_burst_leaves_the_free_space_that_is_wanted(tmp_path, monkeypatch):
    total, block = 100, bytes(4 * 4096)

    def statvfs(_path):
        used = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) // 4096
        return SimpleNamespace(f_blocks=total, f_bavail=total - used, f_frsize=4096)

    monkeypatch.setattr("os.statvfs", statvfs)
    async with Opened(tmp_path, free_space_ratio=0.5) as cache:
        for n in range(1, 40):  # all within the time between two checks
            cache.put(name(n, len(block)), block)
        await written(cache)
        free = statvfs(tmp_path).f_bavail
        assert 48 <= free <= 60
        assert await cache.get(name(39, len(block)), 0, 5) == block[:5]


async def test_failing_disk_is_left_alone(tmp_path, monkeypatch, caplog):
    calls = 0

    def fail(*args, **kwargs):
        nonlocal calls
        calls += 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with Opened(tmp_path) as cache:
        cache.put(name(1, 5), b"hello")
        await written(cache)
        monkeypatch.setattr(cache_module, "write_block", fail)
        for n in range(2, 10):
            cache.put(name(n, 5), b"hello")
            await written(cache)
        assert calls == 1
        assert await cache.get(name(1, 5), 0, 5) is None
    assert len([each for each in caplog.records if "not used for a while" in each.message]) == 1


async def test_directory_that_cannot_be_made_is_no_cache(tmp_path):
    (tmp_path / "file").write_text("")
    async with Opened(tmp_path / "file") as cache:
        cache.put(name(1, 5), b"hello")
        assert await cache.get(name(1, 5), 0, 5) is None


async def test_slow_disk_drops_instead_of_queueing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_MAX_QUEUED_BYTES", 1000)
    store = cache_module._Directory.store

    def slow(self, path, block):
        time.sleep(0.005)
        store(self, path, block)

    monkeypatch.setattr(cache_module._Directory, "store", slow)
    async with Opened(tmp_path) as cache:
        for n in range(1, 50):
            cache.put(name(n, 300), bytes(300))
            assert cache._queued_bytes <= 1000
        await written(cache)
        assert 3 * 304 <= cache.used_bytes < 20 * 304


async def test_left_over_of_an_interrupted_write_is_removed(tmp_path):
    folder = tmp_path / UUID / "raw/chunks/0/0"
    folder.mkdir(parents=True)
    old, new = folder / "1_0_5.tmp", folder / "2_0_5.99-1.tmp"
    for each in (old, new):
        each.write_bytes(b"hel")
    os.utime(old, (1, 1))
    async with Opened(tmp_path):
        async with asyncio.timeout(5):
            while old.exists():
                await asyncio.sleep(0.001)
        assert new.exists()  # somebody may be writing it


async def test_two_caches_share_a_directory(tmp_path):
    async with Opened(tmp_path) as one, Opened(tmp_path) as other:
        data = os.urandom(70_000)
        for n in range(1, 20):
            (one if n % 2 else other).put(name(n, len(data)), data)
            (other if n % 2 else one).put(name(n, len(data)), data)
        await written(one)
        await written(other)
        for n in range(1, 20):
            assert bytes(await one.get(name(n, len(data)), 0, len(data))) == data
            if n % 3 == 0:
                one.remove(name(n, len(data)))
        await asyncio.to_thread(one._worker.submit(int).result)
        found = [await other.get(name(n, len(data)), 0, len(data)) for n in range(1, 20)]
        assert [each is None for each in found] == [n % 3 == 0 for n in range(1, 20)]
        assert not list(Path(tmp_path).rglob("*.tmp"))


async def test_several_directories_share_the_blocks(tmp_path):
    roots = [tmp_path / "a", tmp_path / "b"]
    cache = DiskCache(roots, UUID, size_bytes=1 << 30, free_space_ratio=0.0)
    await cache.start()
    for n in range(1, 101):
        cache.put(name(n, 5), b"hello")
    await written(cache)
    await cache.close()
    counts = [len(list(root.rglob("*_0_5"))) for root in roots]
    assert sum(counts) == 100
    assert min(counts) > 20
    again = DiskCache(roots, UUID, size_bytes=1 << 30, free_space_ratio=0.0)
    await again.start()
    for n in range(1, 101):
        assert bytes(await again.get(name(n, 5), 0, 5)) == b"hello"
    await again.close()


# -- in memory


async def test_memory_cache_is_bounded():
    cache = MemoryCache(100)
    for n in range(10):
        cache.put(name(n, 30), bytes([n]) * 30)
    assert cache.used_bytes == 90
    assert bytes(cache.get_now(name(9, 30), 10, 5)) == b"\x09" * 5
    assert await cache.get(name(6, 30), 0, 5) is None
    cache.put(name(99, 200), bytes(200))
    assert cache.used_bytes == 90  # too large, and no reason to drop the others
    cache.put(name(1, 30), bytes(30))
    cache.put(name(1, 30), bytes(30))
    assert cache.used_bytes == 90
    cache.remove(name(1, 30))
    assert cache.used_bytes == 60


async def test_a_block_is_read_from_the_queue_until_its_file_is_written(tmp_path):
    async with Opened(tmp_path) as cache:
        path = name(1, 5)
        cache.put(path, b"hello")
        assert cache.get_now(path, 1, 3) == b"ell"
        assert not list(tmp_path.rglob("*_0_5"))
        await written(cache)
        assert list(tmp_path.rglob("*_0_5"))
        assert cache.get_now(path, 1, 3) == b"ell"
        cache.put(name(2, 5), b"other")
        cache.remove(name(2, 5))
        assert cache.get_now(name(2, 5), 0, 5) is None
        await written(cache)
        assert [each.name for each in tmp_path.rglob("*_0_5")] == ["1_0_5"]
