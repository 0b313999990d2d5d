"""Many small writes in one object: what the other program makes of them (promise 14)."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from support.posix import KEEP_SIZE, PUNCH_HOLE, fallocate
from support.session import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.clients import Jfsd, JuiceFS, Mounted
    from support.volume import Volume

pytestmark = [pytest.mark.promise(14), pytest.mark.timeout(180)]

SIZE = 2 << 20
CHUNK = 64 << 20
FORMATS = {
    "plain": ("file", "--trash-days", "0"),
    "lz4-small-blocks": ("file", "--compress", "lz4", "--block-size", "256K", "--trash-days", "0"),
    "zstd-hash": ("file", "--compress", "zstd", "--hash-prefix", "--trash-days", "0"),
    "trash": ("file", "--trash-days", "1"),
}


def scatter(path: Path, seed: int, at: int = 0, count: int = 600) -> bytearray:
    """Write small pieces all over a file without an fsync; return what it holds from `at` on."""
    rng = random.Random(seed)
    expected = bytearray(rng.randbytes(SIZE))
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, expected, at)
    os.fsync(fd)
    for _ in range(count):
        piece = rng.randbytes(rng.choice([1, 100, 4096, 9000]))
        place = rng.randrange(SIZE - len(piece))
        assert os.pwrite(fd, piece, at + place) == len(piece)
        expected[place : place + len(piece)] = piece
    assert os.pread(fd, SIZE, at) == expected
    os.close(fd)
    return expected


def shared(volume: Volume) -> dict[bytes, bytes]:
    """The slices that several records refer to."""
    with volume.database() as client:
        return {k: v for k, v in client.hgetall("sliceRef").items() if int(v) > 0}


@pytest.fixture(params=FORMATS)
def volume(request: pytest.FixtureRequest, new_volume: Callable[..., Volume], jfsd: Jfsd) -> Volume:
    """A volume of each kind of object."""
    return new_volume(*FORMATS[request.param], by=jfsd)


def test_the_other_reads_compacts_and_deletes_it(
    volume: Volume, jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    ours = volume.mount(client=jfsd)
    expected = scatter(ours.path / "f", 1)
    objects = len(volume.kept_objects())
    kept = scatter(ours.path / "kept", 2)
    assert objects < 60, "600 writes"
    assert shared(volume)
    theirs = volume.mount(client=juicefs)
    assert (theirs.path / "f").read_bytes() == expected
    fd = os.open(theirs.path / "f", os.O_RDWR)
    os.pwrite(fd, b"theirs", 1000)
    expected[1000:1006] = b"theirs"
    os.ftruncate(fd, SIZE - 5000)
    os.close(fd)
    assert (ours.path / "f").read_bytes() == expected[: SIZE - 5000]
    theirs.unmount()
    juicefs.fsck(volume.meta_url)
    juicefs.gc(volume.meta_url, "--compact", "--delete")
    ours = volume.remount(ours)
    assert (ours.path / "f").read_bytes() == expected[: SIZE - 5000]
    assert (ours.path / "kept").read_bytes() == kept
    ours.unmount()
    volume.check()


@pytest.mark.parametrize("who", ["jfsd", "juicefs"])
def test_an_object_goes_with_its_last_record(
    who: str, new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    """Pieces in two chunks, of which a copy keeps some."""
    volume = new_volume("file", "--trash-days", "0", by=jfsd)
    ours = volume.mount(client=jfsd)
    expected = scatter(ours.path / "f", 3, at=CHUNK - SIZE // 2)
    source, target = (os.open(ours.path / name, os.O_CREAT | os.O_RDWR) for name in ("f", "copy"))
    middle = CHUNK - SIZE // 4
    assert os.copy_file_range(source, target, SIZE // 2, middle, 0) == SIZE // 2
    os.close(source)
    os.close(target)
    client = {"jfsd": jfsd, "juicefs": juicefs}[who]
    other: Mounted = volume.mount(client=client)
    os.unlink(other.path / "f")
    assert (other.path / "copy").read_bytes() == expected[SIZE // 4 : SIZE // 4 * 3]
    fresh = volume.mount(client=juicefs)
    assert (fresh.path / "copy").read_bytes() == expected[SIZE // 4 : SIZE // 4 * 3]
    os.unlink(other.path / "copy")
    wait_until(lambda: not volume.kept_objects(), 30, "all objects are deleted")
    for mounted in (fresh, other, ours):
        mounted.unmount()
    volume.check()


def test_ours_compacts_truncates_and_punches_it(
    new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    volume = new_volume("file", "--trash-days", "0", by=jfsd)
    ours = volume.mount(client=jfsd)
    expected = scatter(ours.path / "f", 4)
    fd = os.open(ours.path / "f", os.O_RDWR)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100_000, 300_000)
    expected[100_000:400_000] = bytes(300_000)
    os.pwrite(fd, b"a", 200_000)
    os.pwrite(fd, b"b", 150_000)
    expected[200_000:200_001], expected[150_000:150_001] = b"a", b"b"
    os.ftruncate(fd, SIZE // 2)
    os.ftruncate(fd, SIZE)
    expected[SIZE // 2 :] = bytes(SIZE // 2)
    os.close(fd)
    ours = volume.remount(ours)
    assert (ours.path / "f").read_bytes() == expected
    with volume.database() as client:
        wait_until(lambda: client.llen("c2_0") < 10, 30, "the chunk is compacted after a read")
    assert not shared(volume)
    assert (ours.path / "f").read_bytes() == expected
    theirs = volume.mount(client=juicefs)
    assert (theirs.path / "f").read_bytes() == expected
    theirs.unmount()
    ours.unmount()
    volume.check()
