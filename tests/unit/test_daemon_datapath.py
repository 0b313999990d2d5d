"""Where a cache is of no use."""

from __future__ import annotations

import pytest

from jfsd.config.settings import MountSettings
from jfsd.config.volume import new_volume
from jfsd.daemon.datapath import _is_on_one_disk
from jfsd.record import replace


@pytest.fixture
def volume(tmp_path):
    return new_volume("volume", "file", f"{tmp_path}/")


def test_copies_of_plain_files_on_their_own_disk_are_not_made(volume, tmp_path) -> None:
    settings = MountSettings(cache_dirs=(f"{tmp_path}/cache/not/there/yet",))
    assert _is_on_one_disk(volume, settings)
    assert not _is_on_one_disk(volume, replace(settings, cache_dirs=("/dev/shm",)))
    assert not _is_on_one_disk(replace(volume, bucket="/not/there/"), settings)


def test_what_has_to_be_decoded_or_fetched_is_cached(volume, tmp_path) -> None:
    settings = MountSettings(cache_dirs=(f"{tmp_path}/cache",))
    assert not _is_on_one_disk(replace(volume, compression="lz4"), settings)
    assert not _is_on_one_disk(replace(volume, encrypt_key="key"), settings)
    assert not _is_on_one_disk(replace(volume, storage="s3", bucket="http://x/y"), settings)
