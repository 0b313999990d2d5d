"""Native threads for object files: what they do, what a cancellation and an end leave."""

from __future__ import annotations

import asyncio
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jfsd.object._disk import Pool
from jfsd.object.disk import Disk
from jfsd.object.tree import AbandonedError

MIB = 1 << 20


@pytest.fixture
async def disk():
    disk = Disk(4)
    yield disk
    await disk.close()
    assert object_threads() == []


@pytest.fixture
async def single():
    """A disk of one thread, so that a job can stand before others."""
    disk = Disk(1)
    yield disk
    await disk.close()


@pytest.fixture
def gate(tmp_path):
    """A pipe whose opening holds a thread until somebody opens the other end."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


def object_threads() -> list[Path]:
    """Return the native threads of this process."""
    tasks = Path("/proc/self/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text() == "object\n"]


def aligned(content: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


def hold(single: Disk, gate: Path) -> asyncio.Task[bytes]:
    return asyncio.create_task(single.read(str(gate), 0, 10))


async def let_go(gate: Path, held: asyncio.Task[bytes]) -> None:
    descriptor = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
    os.close(descriptor)
    with pytest.raises(FileNotFoundError):  # a pipe is no object
        await held


async def refused(disk: Disk) -> None:
    """Ask for more until the disk takes no more."""
    while True:
        disk._pool.delete(asyncio.get_running_loop().create_future(), b"/none/at/all")
        await asyncio.sleep(0.01)


async def test_files_are_written_read_synced_and_removed(tmp_path, disk) -> None:
    names = [f"{tmp_path}/{number}" for number in range(50)]
    await asyncio.gather(*(disk.put(name, name.encode()) for name in names))
    await disk.settle([*names, f"{tmp_path}", f"{tmp_path}/gone", f"{names[0]}/gone"])
    assert len(object_threads()) <= 4
    for name in names:
        assert await disk.read(name, 3, 4) == name.encode()[3:7]
        assert await disk.read(name, 3, 4000) == name.encode()[3:]
        assert await disk.read_rest(name, 3) == name.encode()[3:]
        assert await disk.read(name, 4000, 10) == b""
    await asyncio.gather(*(disk.delete(name) for name in [*names, *names, f"{names[0]}/a"]))
    assert list(tmp_path.iterdir()) == []


async def test_long_files_are_read_in_two_steps_and_kept_ones_stay_open(tmp_path, disk) -> None:
    content = os.urandom(MIB)
    await disk.put(f"{tmp_path}/long", content)
    assert await disk.read_rest(f"{tmp_path}/long", 10) == content[10:]
    data, descriptor, size = await disk.read_keeping(f"{tmp_path}/long", 5, 10)
    assert (data, size) == (content[5:15], MIB)
    assert await disk.read_open(descriptor, 3, 2 * MIB) == content[3:]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_what_stands_in_the_way_is_said(tmp_path, disk) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    await disk.put(f"{tmp_path}/a", b"first")
    for call, error in (
        (disk.put(f"{tmp_path}/none/a", b"x"), FileNotFoundError),
        (disk.put(f"{tmp_path}/a", b"x"), FileExistsError),
        (disk.put(f"{tmp_path}/a/b", b"x"), NotADirectoryError),
        (disk.read(f"{tmp_path}/none", 0, 1), FileNotFoundError),
        (disk.read_rest(f"{tmp_path}", 0), FileNotFoundError),
        (disk.delete(f"{tmp_path}"), IsADirectoryError),
    ):
        with pytest.raises(error):
            await call
    with pytest.raises(OSError, match="Invalid argument"):  # of fsync(2)
        await disk.settle([f"{tmp_path}/a", f"{tmp_path}/null", f"{tmp_path}/a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "null"]
    assert (tmp_path / "a").read_bytes() == b"first"


@pytest.mark.promise(3)
async def test_what_was_cancelled_in_the_queue_is_never_begun(tmp_path, single, gate) -> None:
    held = hold(single, gate)
    (tmp_path / "kept").touch()
    body = bytearray(b"right")
    tasks = [
        asyncio.create_task(call)
        for call in (single.put(f"{tmp_path}/a", body), single.delete(f"{tmp_path}/kept"))
    ]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await let_go(gate, held)
    await single.read(f"{tmp_path}/kept", 0, 1)
    body.clear()  # nobody has it any more
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gate", "kept"]


@pytest.mark.parametrize("make", [aligned, bytearray], ids=["direct", "buffered"])
@pytest.mark.promise(3)
async def test_a_put_cancelled_on_the_way_stores_all_or_nothing(tmp_path, disk, make) -> None:
    right, wrong = b"right" * 1_677_721 + b"999", b"wrong" * 1_677_721 + b"999"
    await disk.put(f"{tmp_path}/first", make(right))
    for number in range(24):
        body = make(right)
        put = asyncio.create_task(disk.put(f"{tmp_path}/{number}", body))
        await asyncio.sleep(number % 12 * 0.0005)
        put.cancel()
        await asyncio.wait([put])
        body[:] = wrong
    await disk.close()
    for path in tmp_path.iterdir():
        assert path.read_bytes() == right


async def test_large_aligned_blocks_pass_the_page_cache_by(tmp_path, direct_disk) -> None:
    content = os.urandom(4 * MIB)
    body = aligned(content)
    for number in range(3):
        await direct_disk.put(f"{tmp_path}/{number}", body)
        assert (tmp_path / str(number)).read_bytes() == content
    with memoryview(body) as view:
        await direct_disk.put(f"{tmp_path}/odd", view[1:])
        await direct_disk.put(f"{tmp_path}/shifted", view[1 : 1 + MIB])
        await direct_disk.put(f"{tmp_path}/short", view[: MIB // 2])
    assert (tmp_path / "odd").read_bytes() == content[1:]
    assert (tmp_path / "shifted").read_bytes() == content[1 : 1 + MIB]
    assert repr(direct_disk).endswith("direct=3 buffered=1>")


@pytest.fixture
async def direct_disk(tmp_path):
    try:
        os.close(os.open(tmp_path, os.O_WRONLY | os.O_TMPFILE | os.O_DIRECT))
    except OSError:
        pytest.skip("needs a file system with O_DIRECT")
    disk = Disk(2)
    disk._pool = Pool(2, direct_rate=1.0)
    yield disk
    await disk.close()


async def test_a_slow_disk_is_left_to_the_page_cache(tmp_path, direct_disk) -> None:
    direct_disk._pool = Pool(2, direct_rate=1e18)
    for number in range(5):
        await direct_disk.put(f"{tmp_path}/{number}", aligned(bytes(MIB)))
    assert repr(direct_disk).endswith("direct=1 buffered=4>")


async def test_a_file_system_without_direct_writes_is_asked_once(tmp_path, disk) -> None:
    if os.geteuid():
        pytest.skip("needs root to mount")
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        content = os.urandom(2 * MIB)
        for number in range(3):
            await disk.put(f"{tmp_path}/{number}", aligned(content))
            assert (tmp_path / str(number)).read_bytes() == content
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert repr(disk).endswith("direct=1 buffered=2>")


async def test_closing_finishes_writes_and_leaves_syncs(tmp_path, single, gate) -> None:
    held = hold(single, gate)
    puts = [asyncio.create_task(single.put(f"{tmp_path}/{n}", b"x" * n)) for n in range(30)]
    settling = asyncio.create_task(single.settle([f"{tmp_path}/0"]))
    await asyncio.sleep(0)
    closing = asyncio.create_task(single.close())
    with pytest.raises(RuntimeError, match="closed"):
        await refused(single)
    await let_go(gate, held)
    await closing
    await asyncio.gather(*puts)
    with pytest.raises(AbandonedError):
        await settling
    assert [(tmp_path / str(n)).stat().st_size for n in range(30)] == list(range(30))
    assert object_threads() == []


async def test_a_cancelled_read_leaves_no_file_open(tmp_path, single, gate) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    await single.read(f"{tmp_path}/a", 0, 1)
    before = len(os.listdir("/proc/self/fd"))
    held = hold(single, gate)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    reads = [
        asyncio.create_task(single.read_keeping(f"{tmp_path}/a", 0, 1)),
        asyncio.create_task(single.read_open(descriptor, 0, 1)),
    ]
    await asyncio.sleep(0)
    for read in reads:
        read.cancel()
    await asyncio.wait(reads)
    await let_go(gate, held)
    await single.read(f"{tmp_path}/a", 0, 1)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_threads_take_no_signals_and_are_few(tmp_path, disk) -> None:
    for number in range(20):
        await disk.put(f"{tmp_path}/{number}", b"x")
    (thread,) = object_threads()  # the one that was idle is taken again
    blocked = next(
        int(line.split()[1], 16)
        for line in (thread / "status").read_text().splitlines()
        if line.startswith("SigBlk")
    )
    assert blocked >> 14 & 1  # SIGTERM
    assert blocked >> 1 & 1  # SIGINT


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_forked_child_is_told_that_it_has_no_threads(tmp_path, disk) -> None:
    await disk.put(f"{tmp_path}/a", b"x")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            disk._pool.delete(None, bytes(tmp_path / "a"))
        except RuntimeError:
            del disk
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert await disk.read(f"{tmp_path}/a", 0, 1) == b"x"


def test_the_end_of_a_process_waits_for_no_thread(tmp_path, gate) -> None:
    script = """
import asyncio, sys
from jfsd.object.disk import Disk

disks = [Disk(2), Disk(2)]

async def main(gate):
    for disk in disks:
        asyncio.create_task(disk.read(gate, 0, 1))
        asyncio.create_task(disk.put(f"{gate}.new", bytes(9)))
    await asyncio.sleep(0.1)

asyncio.run(main(sys.argv[1]))
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, gate], check=True, timeout=60, stdout=subprocess.PIPE
    )
    assert done.stdout == b"ended\n"


async def test_one_wake_up_serves_many(tmp_path) -> None:
    pool, loop = Pool(4), asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(20)]
    jobs = [
        pool.put(future, bytes(tmp_path), bytes(tmp_path / str(number)), b"x")
        for number, future in enumerate(futures)
    ]
    await asyncio.to_thread(pool.join)
    assert os.eventfd_read(pool.fileno()) == 1
    assert {job for _, job in pool.collect()} == set(jobs)
    assert pool.collect() == []
    assert [job.error for job in jobs] == [0] * 20
