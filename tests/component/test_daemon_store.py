"""The store of a mount follows the volume's setting."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from jfsd.config.settings import MountSettings
from jfsd.config.volume import Volume, new_volume
from jfsd.daemon import store as module
from jfsd.daemon.store import VolumeStore
from jfsd.errors import RefusedError
from jfsd.object.base import StoreError
from jfsd.object.limit import LimitedStore
from jfsd.object.open import write_uuid
from jfsd.object.retry import RetryingStore
from jfsd.record import replace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return new_volume("vol", "file", f"{tmp_path}/old/")


@pytest.fixture
async def store(tmp_path: Path, volume: Volume) -> AsyncIterator[VolumeStore]:
    (tmp_path / "old").mkdir()
    opened = VolumeStore(volume, MountSettings())
    await write_uuid(opened, volume.name, volume.uuid)
    yield opened
    await opened.close()


def moved(volume: Volume, place: Path) -> Volume:
    return replace(volume, bucket=f"{place}/")


async def until(path: Path, store: VolumeStore) -> None:
    async with asyncio.timeout(10):
        while True:
            await store.put("vol/chunks/0/0/1_0_1", b"x")
            if path.exists():
                return
            await asyncio.sleep(0.01)


async def test_another_bucket_is_used_from_then_on(
    store: VolumeStore, volume: Volume, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    store.follow(moved(volume, tmp_path / "new"))
    await until(tmp_path / "new/vol/chunks/0/0/1_0_1", store)
    await store.put("vol/chunks/0/0/2_0_1", b"y")
    assert not (tmp_path / "old/vol/chunks/0/0/2_0_1").exists()


async def test_a_bucket_that_cannot_be_used_yet_is_tried_again(
    store: VolumeStore,
    volume: Volume,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.05)
    other = VolumeStore(moved(volume, tmp_path / "new"), MountSettings())
    (tmp_path / "new").mkdir()
    await write_uuid(other, volume.name, "5c3a51f0-0000-4000-8000-000000000000")
    store.follow(moved(volume, tmp_path / "new"))
    async with asyncio.timeout(10):
        while not caplog.records:
            await asyncio.sleep(0.01)
    assert caplog.records[0].levelno == logging.ERROR
    assert "belongs to another volume" in caplog.records[0].getMessage()
    await store.put("vol/chunks/0/0/3_0_1", b"z")
    assert (tmp_path / "old/vol/chunks/0/0/3_0_1").exists()
    await write_uuid(other, volume.name, volume.uuid)
    await other.close()
    await until(tmp_path / "new/vol/chunks/0/0/1_0_1", store)


async def test_limits_change_at_once_and_options_come_first(
    store: VolumeStore, volume: Volume, tmp_path: Path
) -> None:
    changed = replace(volume, upload_limit_mbps=8, download_limit_mbps=80)
    store.follow(changed)
    assert isinstance(store.inner, LimitedStore)
    assert (store.inner.upload.rate, store.inner.download.rate) == (1e6, 1e7)
    own = VolumeStore(volume, MountSettings(upload_limit_mbps=16, bucket=f"{tmp_path}/own/"))
    own.follow(moved(changed, tmp_path / "new"))
    assert isinstance(own.inner, LimitedStore)
    assert own.inner.upload.rate == 2e6
    (tmp_path / "own").mkdir()
    await asyncio.sleep(0.05)
    await own.put("vol/x", b"x")
    assert (tmp_path / "own/vol/x").exists()
    await own.close()


async def test_a_bucket_of_another_volume_is_refused(volume: Volume, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    opened = VolumeStore(volume, MountSettings())
    await write_uuid(opened, volume.name, "5c3a51f0-0000-4000-8000-000000000000")
    with pytest.raises(RefusedError, match="another volume"):
        await opened.check_ours(volume)
    await opened.close()


async def test_other_options_move_the_store(
    store: VolumeStore, volume: Volume, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    await store.move(MountSettings(bucket=f"{tmp_path}/new/", prefetch=9))
    await store.put("vol/chunks/0/0/1_0_1", b"x")
    assert (tmp_path / "new/vol/chunks/0/0/1_0_1").exists()
    assert store.settings == MountSettings(bucket=f"{tmp_path}/new/")
    await store.move(MountSettings())
    await store.put("vol/chunks/0/0/2_0_1", b"x")
    assert (tmp_path / "old/vol/chunks/0/0/2_0_1").exists()
    async with asyncio.timeout(10):  # what was begun there is brought to its end
        while store.former:
            await asyncio.sleep(0.01)


async def test_a_store_that_is_not_the_volumes_is_not_moved_to(
    store: VolumeStore, volume: Volume, tmp_path: Path
) -> None:
    other = VolumeStore(moved(volume, tmp_path / "new"), MountSettings())
    (tmp_path / "new").mkdir()
    await write_uuid(other, volume.name, "5c3a51f0-0000-4000-8000-000000000000")
    await other.close()
    before = store.inner
    with pytest.raises(RefusedError, match="another volume"):
        await store.move(MountSettings(bucket=f"{tmp_path}/new/"))
    with pytest.raises(StoreError):
        await store.move(MountSettings(bucket=f"{tmp_path}/none/"))
    with pytest.raises(RefusedError, match="cannot be read"):
        await store.move(MountSettings(secret_key_file=f"{tmp_path}/none"))
    assert store.inner is before
    assert store.settings == MountSettings()


async def test_other_limits_need_no_other_client_unless_it_is_too_small(
    volume: Volume, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    store = VolumeStore(volume, MountSettings(max_uploads=2, max_downloads=2))
    await write_uuid(store, volume.name, volume.uuid)
    first = store.inner
    store.limit(MountSettings(max_uploads=1, max_downloads=3, upload_limit_mbps=8))
    await asyncio.sleep(0.05)
    assert store.inner is first
    assert isinstance(first, LimitedStore)
    assert first.upload.rate == 1e6
    store.limit(MountSettings(max_uploads=20, max_downloads=3, upload_limit_mbps=16))
    async with asyncio.timeout(10):
        while store.inner is first or store.former:
            await asyncio.sleep(0.01)
    assert isinstance(store.inner, LimitedStore)
    assert store.inner.upload.rate == 2e6
    assert isinstance(store.inner.inner, RetryingStore)
    await store.put("vol/x", b"x")
    await store.close()


async def test_limits_leave_the_address_alone(store: VolumeStore, tmp_path: Path) -> None:
    store.limit(MountSettings(bucket=f"{tmp_path}/other/", io_retries=3))
    assert store.settings == MountSettings(io_retries=3)
    await asyncio.sleep(0.05)
    await store.put("vol/y", b"x")
    assert (tmp_path / "old/vol/y").exists()
