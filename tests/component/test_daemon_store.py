"""The store of a mount follows the volume's setting."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

import pytest

from jfsd.config.settings import MountSettings
from jfsd.config.volume import Volume, new_volume
from jfsd.daemon import store as module
from jfsd.daemon.store import VolumeStore
from jfsd.errors import RefusedError
from jfsd.object.limit import LimitedStore
from jfsd.object.open import write_uuid

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
    return dataclasses.replace(volume, bucket=f"{place}/")


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
    changed = dataclasses.replace(volume, upload_limit_mbps=8, download_limit_mbps=80)
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
