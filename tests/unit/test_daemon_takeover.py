"""Which settings a live mount goes on with: what was fixed, what a file says, what was last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jfsd.config.runtime import MountRecord, register
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source, last_wanted
from jfsd.config.volume import new_volume
from jfsd.daemon.former import last_settings
from jfsd.daemon.state import Header
from jfsd.daemon.store import same_address, with_address
from jfsd.daemon.takeover import FIXED, check_same_mount, fixed_options, keeping_fixed
from jfsd.errors import ExitCode, RefusedError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.promise(11)

MADE = MountSettings(fuse_options=("noexec", "ro", "_netdev"), subdir="team", prefetch=2)


def header(settings: MountSettings = MADE, **options: str) -> Header:
    kept = {**fixed_options(settings), **options}
    return Header("id", "u", "/m", "0:9", 4 << 20, options=kept)


def test_fixed_options_are_kept_in_one_form() -> None:
    assert fixed_options(MADE) == {
        "-o": "noexec",
        "--read-only": "true",
        "--subdir": "team",
        "--enable-xattr": "true",
    }
    other = MountSettings(fuse_options=("nosuid", "noexec"), read_only=True, subdir="/team/")
    check_same_mount(header(), "/m", "u", other)


def test_a_live_mount_keeps_what_is_fixed_and_takes_the_rest() -> None:
    asked = MountSettings(fuse_options=("rw", "sync"), enable_xattr=False, prefetch=9)
    kept = keeping_fixed(asked, header())
    assert (kept.fuse_options, kept.read_only, kept.subdir) == (("noexec",), True, "team")
    assert (kept.enable_xattr, kept.prefetch) == (True, 9)
    check_same_mount(header(), "/m", "u", kept)


def test_what_does_not_differ_stays_as_it_was_written() -> None:
    asked = MountSettings(fuse_options=("noexec", "nofail"), read_only=True, subdir="team")
    assert keeping_fixed(asked, header()) == asked


def test_only_what_may_be_kept_is_kept() -> None:
    asked = MountSettings(fuse_options=("noexec",), read_only=True)
    kept = keeping_fixed(asked, header(), ("o", "read-only", "enable-xattr"))
    assert kept == asked
    with pytest.raises(RefusedError, match=r"--subdir was team, is \(none\);") as refused:
        check_same_mount(header(), "/m", "u", kept)
    assert refused.value.exit_code is ExitCode.ALREADY_MOUNTED


def test_an_option_that_an_older_version_did_not_keep_is_taken_as_asked() -> None:
    kept = header()
    del kept.options["--subdir"]
    assert keeping_fixed(MountSettings(subdir="x"), kept).subdir == "x"


def test_words_that_this_version_does_not_know_are_refused() -> None:
    with pytest.raises(RefusedError, match="-o future"):
        keeping_fixed(MountSettings(), header(**{"-o": "future"}))
    assert set(FIXED) == {"o", "read-only", "subdir", "enable-xattr"}


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MountRecord:
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
    last = MountSettings(prefetch=7, bucket="/b", attr_cache_s=3.0)
    source = Source("/etc/jfs/x.toml", "", "", {}).as_dict()
    record = MountRecord("/m", "redis://h/1", "vol", "u", 1, options=last.as_texts(), source=source)
    register(record)
    return record


def test_the_last_options_are_known_by_the_file(record: MountRecord) -> None:
    source = Source("/etc/jfs/x.toml", "", "", {"attr-cache": 5.0})
    found = last_wanted(source)
    assert found is not None
    assert (found.meta_url, found.mountpoint) == ("redis://h/1", "/m")
    assert found.settings == MountSettings(prefetch=7, bucket="/b", attr_cache_s=5.0)
    assert last_wanted(Source("/etc/jfs/y.toml")) is None
    assert last_wanted(Source("", "redis://h/1", "/m")) is None


def test_the_last_options_are_those_of_the_same_volume(record: MountRecord) -> None:
    volume = new_volume("vol", "file", "/b")
    assert last_settings("/m", volume) is None
    object.__setattr__(volume, "uuid", "u")
    assert last_settings("/m", volume) == MountSettings(prefetch=7, bucket="/b", attr_cache_s=3.0)
    assert last_settings("/n", volume) is None


def test_what_makes_a_store_another_one() -> None:
    one = MountSettings(bucket="/a", prefetch=1)
    assert same_address(one, MountSettings(bucket="/a", prefetch=2))
    assert not same_address(one, MountSettings(bucket="/b"))
    assert not same_address(one, MountSettings(bucket="/a", secret_key_file="/k"))
    assert with_address(one, MountSettings(bucket="/b", prefetch=5)) == MountSettings(bucket="/b")
