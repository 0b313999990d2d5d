"""Small files are read without a thread when the kernel has them in memory."""

from __future__ import annotations

import os

import pytest

from jfsd.chunk.cache_file import CachedBlock, write_block
from jfsd.object import nowait
from jfsd.object._disk import read_file_now, read_now
from jfsd.object.local import LocalStore


def test_a_file_just_written_is_read_at_once_and_a_long_or_missing_one_is_not(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert read_file_now(bytes(path), 10) == b"0123456789"
    descriptor, size = read_file_now(bytes(path), 9)
    assert (os.read(descriptor, 99), size) == (b"0123456789", 10)
    assert read_now(descriptor, 2, 3) == b"234"
    assert read_now(descriptor, 8, 3) is None
    os.close(descriptor)
    assert read_file_now(bytes(tmp_path / "b"), 10) is None
    assert read_file_now(bytes(tmp_path), 10) is None
    os.mkfifo(tmp_path / "pipe")
    assert read_file_now(bytes(tmp_path / "pipe"), 10) is None
    path.write_bytes(b"")
    assert read_file_now(bytes(path), 10) == b""


def test_a_cached_block_is_opened_with_its_checksums(tmp_path) -> None:
    path = str(tmp_path / "block")
    write_block(path, b"x" * 40000, checksum=True)
    block = CachedBlock(path, 40000, checksum=True, wait=False)
    assert block.read(32768, 100, wait=False) == b"x" * 100


def test_an_old_kernel_makes_it_wait_for_a_thread(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(nowait, "_SYS_OPENAT2", 100_000)
    with pytest.raises(BlockingIOError):
        nowait.open_cached(str(tmp_path))


def test_what_is_not_there_is_missing_or_unknown(tmp_path) -> None:
    with pytest.raises((FileNotFoundError, BlockingIOError)):
        nowait.open_cached(str(tmp_path / "missing"))


async def test_a_store_reads_small_objects_on_the_loop(tmp_path, monkeypatch) -> None:
    store = LocalStore(f"{tmp_path}/")
    await store.put("a", b"0123456789")
    monkeypatch.setattr(store, "_disk", None)
    assert await store.get("a") == b"0123456789"
    monkeypatch.undo()
    os.unlink(tmp_path / "a")
    await store.close()
