"""Objects in a directory: atomic, durable, inside it (format.md §13.1)."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from jfsd.object import tree
from jfsd.object.base import (
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.object.local import LocalStore
from jfsd.object.open import open_store
from jfsd.object.tree import ObjectTree

both_ways = pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])
any_way = pytest.mark.parametrize("way", ["unnamed", "named", "native"])
"""How a new file is written: in Python, durable, or by a native thread."""

WRITER = """
import asyncio, itertools, mmap, sys
from jfsd.object.local import LocalStore

async def main(root, way, start):
    store = LocalStore(root, threads=4)
    store._tree._unnamed = way != "named"
    numbers = itertools.count(int(start))

    async def write():
        for number in numbers:
            size = max(4096, number * 7919 % 2_000_000 // 4096 * 4096)
            body = mmap.mmap(-1, size)
            body[:] = bytes([number % 251]) * size
            key = f"v/{number % 7}/{number}_0_{size}"
            await store.put(key, body, durable=way != "native")
            print(number, flush=True)

    await asyncio.gather(*(write() for _ in range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def store(tmp_path):
    store = LocalStore(f"{tmp_path}/", threads=4)
    yield store
    await store.close()


@any_way
@pytest.mark.promise(3)
def test_a_killed_put_leaves_a_whole_object_or_none(tmp_path, way):
    rng = random.Random(1)
    acknowledged = 0
    for start in range(0, 80_000, 10_000):
        arguments = [f"{tmp_path}/", way, str(start)]
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE
        )
        first = writer.stdout.readline()
        time.sleep(rng.random() * 0.15)
        writer.send_signal(signal.SIGKILL)
        done = {int(line) for line in (first + writer.stdout.read()).split()}
        writer.wait()
        writer.stdout.close()
        found = {}
        for path in tmp_path.rglob("[0-9]*_0_*"):
            number, _, size = map(int, path.name.split("_"))
            found[number] = path
            assert path.stat().st_size == size
            content = path.read_bytes()
            assert content == bytes([number % 251]) * size
        assert done <= set(found)
        acknowledged += len(done)
        left = [path for path in tmp_path.rglob("*") if path.name.startswith(".jfs.")]
        assert way == "named" or not left, left
    assert acknowledged > 20


@both_ways
async def test_what_a_kill_leaves_is_not_listed(tmp_path, store, unnamed):
    store._tree._unnamed = unnamed
    await store.put("v/a", b"x")
    (tmp_path / "v" / ".jfs.1_0_5.tmp.12345").write_bytes(b"part")
    assert [found.key async for found in store.list("v/")] == ["v/a"]


@both_ways
@pytest.mark.promise(3)
async def test_order_of_durability(tmp_path, store, monkeypatch, unnamed):
    """Content, then name, then the name's durability; new directories before it all ends."""
    store._tree._unnamed = unnamed
    events = []

    def record(name, describe):
        real = getattr(os, name)

        def call(*args, **kwargs):
            events.append((name, describe(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(tree.os, name, call)

    def file_of(descriptor, *_):
        return os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(str(tmp_path))

    record("write", lambda *_: "")
    record("fsync", file_of)
    record("link", lambda source, name: name)
    record("rename", lambda source, name: name)
    await store.put("v/chunks/1_0_5", b"hello")
    names = [name for name, _ in events]
    naming = names.index("link" if unnamed else "rename")
    content = [i for i in range(names.index("write"), naming) if names[i] == "fsync"]
    assert len(content) == 1
    assert ".jfs." in events[content[0]][1] or "deleted" in events[content[0]][1]
    assert events[naming + 1 :] == [("fsync", "/v/chunks")]
    assert {path for name, path in events[:naming] if name == "fsync"} >= {"", "/v"}
    events.clear()
    await store.put("v/chunks/2_0_5", b"hello")
    assert [path for name, path in events if name == "fsync"][1:] == ["/v/chunks"]


async def test_directories_that_another_made_are_synced_too(tmp_path, monkeypatch):
    (tmp_path / "v" / "chunks").mkdir(parents=True)
    synced = []
    real = os.fsync

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(tree.os, "fsync", fsync)
    ObjectTree(f"{tmp_path}/").write(f"{tmp_path}/v/chunks/a", b"x", lambda: False)
    assert {str(tmp_path), f"{tmp_path}/v", f"{tmp_path}/v/chunks"} <= set(synced)


@both_ways
async def test_a_cancelled_put_never_stores_what_the_buffer_held_later(
    tmp_path, store, monkeypatch, unnamed
):
    store._tree._unnamed = unnamed
    reached, go_on = threading.Event(), threading.Event()
    real = os.write

    def write(descriptor, view):
        reached.set()
        go_on.wait(10)
        return real(descriptor, view)

    monkeypatch.setattr(tree.os, "write", write)
    buffer = bytearray(b"right" * 1000)
    put = asyncio.create_task(store.put("v/a", memoryview(buffer)))
    await asyncio.to_thread(reached.wait, 10)
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    buffer[:] = b"wrong" * 1000
    go_on.set()
    await store.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@any_way
async def test_modes_follow_the_umask(tmp_path, store, way):
    store._tree._unnamed = way != "named"
    before = os.umask(0o027)
    try:
        for name in "ab":  # the first meets no directory
            await store.put(f"v/chunks/{name}", b"x", durable=way != "native")
    finally:
        os.umask(before)
    for name in "ab":
        assert (tmp_path / "v" / "chunks" / name).stat().st_mode & 0o7777 == 0o640
    assert (tmp_path / "v" / "chunks").stat().st_mode & 0o7777 == 0o750
    assert (tmp_path / "v").stat().st_mode & 0o7777 == 0o750


async def test_long_names_get_short_temporary_ones(store):
    store._tree._unnamed = False
    name = "v/" + "n" * 250
    await store.put(name, b"x")
    assert await store.get(name) == b"x"
    with pytest.raises(StoreError) as failed:
        await store.put("v/" + "n" * 256, b"x")
    assert not failed.value.retryable


@pytest.mark.promise(16)
@pytest.mark.parametrize("key", ["../a", "v/../../a", "..", "v/..", "", "v/", "/", "v/\0a", "."])
async def test_keys_that_lead_outside_are_refused(tmp_path, store, key):
    (tmp_path.parent / "a").write_bytes(b"not yours")
    for call in (store.get(key), store.get(key, 0, 1), store.put(key, b"x"), store.delete(key)):
        with pytest.raises(StoreRefusedError, match="inside"):
            await call
    with pytest.raises(StoreRefusedError):
        await store.head(key)
    assert (tmp_path.parent / "a").read_bytes() == b"not yours"
    with pytest.raises(StoreRefusedError):
        await anext(store.list("../"))


async def test_a_bucket_without_a_slash_begins_the_names(tmp_path):
    store = LocalStore(f"{tmp_path}/pre")
    await store.check()
    await store.put("v/chunks/a", b"x")
    assert (tmp_path / "prev" / "chunks" / "a").read_bytes() == b"x"
    assert [found.key async for found in store.list("v/")] == ["v/chunks/a"]
    (tmp_path / "other").write_bytes(b"")
    assert [found.key async for found in store.list("")] == ["v/chunks/a"]
    await store.close()


@pytest.mark.promise(16)
async def test_a_missing_directory_is_refused_and_not_made(tmp_path):
    store = LocalStore(f"{tmp_path}/none/")
    with pytest.raises(StoreRefusedError, match="create the directory"):
        await store.check()
    with pytest.raises(StoreError, match="gone") as failed:
        await store.put("v/a", b"x")
    assert failed.value.retryable
    with pytest.raises(StoreError) as failed:
        await store.get("v/a")
    assert not isinstance(failed.value, ObjectMissingError)
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(StoreRefusedError, match="not a directory"):
        await store.check()
    await store.close()


@pytest.mark.promise(15)
async def test_a_directory_that_comes_back_is_waited_for(tmp_path):
    store = open_store("file", f"{tmp_path}/disk/")
    put = asyncio.create_task(store.put("v/a", b"x"))
    await asyncio.sleep(0.3)
    assert not put.done()
    (tmp_path / "disk").mkdir()
    await put
    assert (tmp_path / "disk" / "v" / "a").read_bytes() == b"x"
    await store.close()


async def test_directories_removed_by_others_are_made_again(tmp_path, store):
    await store.put("v/chunks/a", b"x")
    await store.delete("v/chunks/a")
    (tmp_path / "v" / "chunks").rmdir()
    (tmp_path / "v").rmdir()
    await store.put("v/chunks/b", b"y")
    assert await store.get("v/chunks/b") == b"y"


async def test_an_object_deleted_by_others_is_missed_soon(tmp_path, store, monkeypatch):
    from jfsd.object import openfiles

    await store.put("v/a", b"hello")
    assert await store.get("v/a", 0, 5) == b"hello"
    (tmp_path / "v" / "a").unlink()
    assert await store.get("v/a", 0, 5) == b"hello"
    now_s = openfiles.monotonic_s()
    monkeypatch.setattr(openfiles, "monotonic_s", lambda: now_s + 60)
    with pytest.raises(ObjectMissingError):
        await store.get("v/a", 0, 5)
    assert not store._open._files


async def test_open_files_are_few(store):
    for number in range(300):
        await store.put(f"v/{number}", b"x")
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(store.get(f"v/{number}", 0, 1) for number in range(300)))
    assert len(os.listdir("/proc/self/fd")) - before <= 128
    await store.close()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid():
        pytest.skip("needs root to mount")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@any_way
@pytest.mark.promise(15)
async def test_a_full_disk(small_disk, way):
    store = LocalStore(f"{small_disk}/")
    store._tree._unnamed = way != "named"
    durable = way != "native"
    for _ in range(2):
        with pytest.raises(StoreFullError, match=str(small_disk)) as failed:
            await store.put("v/a", mmap.mmap(-1, 2 << 20), durable=durable)
        assert not failed.value.retryable
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    await store.put("v/a", bytes(1000), durable=durable)
    await store.close()


@any_way
@pytest.mark.promise(16)
async def test_a_read_only_disk(small_disk, way):
    store = LocalStore(f"{small_disk}/")
    store._tree._unnamed = way != "named"
    put = partial(store.put, body=b"x", durable=way != "native")
    await put("v/a")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for call in (put("v/b"), put("w/b"), store.delete("v/a")):
        with pytest.raises(StoreRefusedError, match="Read-only"):
            await call
    assert await store.get("v/a") == b"x"
    await store.close()


@pytest.mark.promise(3)
async def test_settling_syncs_files_and_names_and_skips_what_is_gone(
    store, tmp_path, monkeypatch
) -> None:
    synced = []
    fsync = os.fsync

    def noting(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(tree.os, "fsync", noting)
    await store.put("v/0/a", b"x", durable=False)
    await store.put("v/0/b", b"y", durable=False)
    assert synced == []
    assert await store.get("v/0/a") == b"x"
    await store.settle(["v/0/a", "v/0/gone", "v/9/gone"])
    assert {f"{tmp_path}/v/0/a", f"{tmp_path}/v/0", f"{tmp_path}/v", f"{tmp_path}"} == set(synced)
    await store.settle(None)


async def test_a_failed_sync_is_final(store, monkeypatch) -> None:
    await store.put("v/a", b"x", durable=False)

    def broken(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(tree.os, "fsync", broken)
    with pytest.raises(StoreError) as caught:
        await store.settle(["v/a"])
    assert not caught.value.retryable


@pytest.mark.promise(3)
async def test_native_syncs_reach_files_and_directories(store, tmp_path) -> None:
    await store.put("v/0/a", b"x", durable=False)
    await store.settle(["v/0/a"])  # makes the directories known
    (tmp_path / "v" / "0" / "null").symlink_to("/dev/null")
    await store.settle(["v/0/a", "v/0/gone"])
    with pytest.raises(StoreError, match="Invalid argument") as caught:  # of fsync(2)
        await store.settle(["v/0/a", "v/0/null"])
    assert not caught.value.retryable
    assert "threads=1" in repr(store._disk)


async def test_an_object_put_again_is_replaced(store, tmp_path) -> None:
    for content in (b"first", b"second", b"third"):
        await store.put("v/a", content, durable=False)
        assert await store.get("v/a") == content
    assert os.listdir(tmp_path / "v") == ["a"]


async def test_closing_finishes_also_what_a_native_thread_could_not_do(store, tmp_path) -> None:
    puts = [
        asyncio.create_task(store.put(f"v/{number}/a", b"x", durable=False)) for number in range(20)
    ]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*puts)
    assert len(list(tmp_path.rglob("a"))) == 20


@pytest.mark.promise(3)
@pytest.mark.parametrize(("point", "left"), [("store.written", []), ("store.named", ["7_0_5"])])
def test_a_kill_at_the_naming_of_an_object(tmp_path, point, left):
    script = """
import asyncio, sys
from jfsd.object.local import LocalStore

async def main(root):
    store = LocalStore(root)
    await store.put("v/7_0_5", b"hello", durable=False)

asyncio.run(main(sys.argv[1]))
"""
    (tmp_path / "v").mkdir()
    died = subprocess.run(
        [sys.executable, "-c", script, f"{tmp_path}/"],
        env={**os.environ, "JFSD_FAILPOINT": point},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "v") == left
    assert all((tmp_path / "v" / name).read_bytes() == b"hello" for name in left)


@pytest.mark.promise(8)
def test_a_repeat_takes_away_what_a_killed_replacement_left(tmp_path):
    tree = ObjectTree(f"{tmp_path}/")
    path = f"{tmp_path}/v/1_0_5"
    tree.write(path, b"first", lambda: False)
    script = (
        "import sys; from jfsd.object.tree import ObjectTree;"
        "ObjectTree(sys.argv[1]).write(sys.argv[2], b'other', lambda: False)"
    )
    died = subprocess.run(
        [sys.executable, "-c", script, f"{tmp_path}/", path],
        env={**os.environ, "JFSD_FAILPOINT": "store.replacing"},
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path / "v")) == 2
    tree.write(path, b"third", lambda: False)
    assert os.listdir(tmp_path / "v") == ["1_0_5"]
    assert (tmp_path / "v" / "1_0_5").read_bytes() == b"third"


def test_replacements_of_one_object_at_once_meet_peacefully(tmp_path):
    trees = [ObjectTree(f"{tmp_path}/") for _ in range(4)]
    bodies = [bytes([number]) * 5000 for number in range(4)]

    def replace(number):
        for _ in range(30):
            trees[number].write(f"{tmp_path}/v/1_0_5000", bodies[number], lambda: False)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(replace, range(4)))
    assert os.listdir(tmp_path / "v") == ["1_0_5000"]
    assert (tmp_path / "v" / "1_0_5000").read_bytes() in bodies
