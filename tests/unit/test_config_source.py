"""Where settings come from: a file, a command line, or both; what differs between two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Change, Kind
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source, Wanted, differences, given
from jfsd.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

FILE = 'meta = "redis://file/1"\nattr-cache = 5\nprefetch = 7\noptions = ["noatime"]\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mnt-jfs.toml"
    path.write_text(FILE)
    path.chmod(0o600)
    return path


def test_the_command_line_wins_over_the_file(config: Path) -> None:
    source = Source(str(config), "redis://line/2", "/srv", {"prefetch": 2, "o": ("noexec",)})
    assert source.load() == Wanted(
        "redis://line/2",
        "/srv",
        MountSettings(attr_cache_s=5.0, prefetch=2, fuse_options=("noexec",)),
    )


def test_the_file_says_what_the_command_line_does_not(config: Path) -> None:
    wanted = Source(str(config)).load()
    assert wanted[:2] == ("redis://file/1", "/mnt/jfs")
    assert wanted.settings.prefetch == 7


def test_the_file_is_read_each_time(config: Path) -> None:
    source = Source(str(config))
    assert source.load().settings.attr_cache_s == 5
    config.write_text(FILE.replace("attr-cache = 5", "attr-cache = 6"))
    assert source.load().settings.attr_cache_s == 6


def test_no_file_is_needed() -> None:
    source = Source("", "redis://h", "/m", {"prefetch": 2})
    assert source.load() == Wanted("redis://h", "/m", MountSettings(prefetch=2))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Source("", "", "/m"), 'the command line: meta: is missing; add the line meta = "redis'),
        (Source("", "redis://h", ""), "the command line: mountpoint: is missing"),
    ],
)
def test_what_nobody_says_is_asked_for(source: Source, said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        source.load()


def test_file_and_command_line_may_contradict_each_other(config: Path) -> None:
    config.write_text('meta = "redis://h"\noptions = ["rw"]')
    with pytest.raises(RefusedError, match="contradict"):
        Source(str(config), "", "", {"read-only": True}).load()


def _values(flag):
    numbers = {
        Kind.COUNT: st.integers(0, 10**6),
        Kind.MBPS: st.integers(0, 10**6),
        Kind.BYTES: st.integers(0, 1 << 50),
        Kind.SECONDS: st.decimals(0, 10**6, places=3).map(float),
        Kind.RATIO: st.decimals(0, 1, places=6).map(float),
        Kind.SWITCH: st.booleans(),
        Kind.TEXT: st.text(),
        Kind.CHOICE: st.sampled_from(flag.choices or ("",)),
        Kind.PATHS: st.lists(st.sampled_from(["/a", "/b c"]), min_size=1).map(tuple),
        Kind.WORDS: st.lists(st.sampled_from(["ro", "noatime"])).map(tuple),
    }
    return st.tuples(st.just(flag), numbers[flag.kind])


@cases(st.sampled_from(MOUNT_FLAGS).flatmap(_values))
def test_what_is_shown_of_a_value_can_be_read_back(case) -> None:
    flag, value = case
    read = flag._read(flag.show(value))
    assert read == (pytest.approx(value) if isinstance(value, float) else value)


def test_a_source_survives_the_record() -> None:
    overrides = {"prefetch": 2, "o": ("ro", "noexec"), "cache-size": 5 << 30, "read-only": True}
    source = Source("/etc/jfs/x.toml", "redis://:pw@h", "/m", overrides)
    fields = json.loads(json.dumps(source.as_dict()))
    assert "pw" not in json.dumps(fields)
    assert Source.from_dict(fields, "redis://:pw@h") == source
    assert Source.from_dict({}, "redis://h") == Source("", "redis://h")


def test_a_record_of_a_version_with_another_option_is_refused() -> None:
    with pytest.raises(RefusedError, match="writeback: is not an option of mount"):
        Source.from_dict({"overrides": {"writeback": "true"}}, "")


def test_options_that_were_given_make_the_same_settings() -> None:
    settings = MountSettings(prefetch=3, fuse_options=("ro",))
    assert given(settings) == {"prefetch": 3, "o": ("ro",), "read-only": True}
    assert Source("", "m", "/m", given(settings)).load().settings == settings
    assert given(MountSettings()) == {}


def wanted(url: str = "redis://h", mountpoint: str = "/m", **fields: object) -> Wanted:
    return Wanted(url, mountpoint, MountSettings(**fields))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("noatime,noexec", "noexec,noatime,noatime"),
        ("", "_netdev,nofail,defaults,x-systemd.automount,nonempty"),
        ("", "nosuid,nodev,exec,atime,diratime,relatime,rw"),
        ("fsname=b", "fsname=a,fsname=b"),
    ],
)
def test_mount_options_that_come_to_the_same_do_not_differ(one: str, other: str) -> None:
    before, after = (wanted(fuse_options=tuple(words.split(","))) for words in (one, other))
    assert differences(before, after) == []


@pytest.mark.parametrize("word", ["noatime", "suid", "allow_other", "max_read=4096", "sync"])
def test_mount_options_with_an_effect_differ(word: str) -> None:
    (found,) = differences(wanted(), wanted(fuse_options=(word,)))
    assert str(found) == f"-o (none) -> {word}"


def test_a_live_mount_may_keep_what_a_file_alone_says() -> None:
    assert Source("/f", "", "", {}).left_to_file == ("o", "read-only", "subdir", "enable-xattr")
    assert Source("/f", "", "", {"o": ("sync",)}).left_to_file == ("subdir", "enable-xattr")
    assert Source("/f", "", "", {"subdir": "x"}).left_to_file == ("o", "read-only", "enable-xattr")
    assert Source("", "redis://h", "/m").left_to_file == ()


def test_differences_are_told_with_when_they_take_effect() -> None:
    before = wanted(fuse_options=("noatime",))
    after = wanted("redis://g", "/n", attr_cache_s=60.0, cache_size_bytes=0)
    assert [(str(each), each.change) for each in differences(before, after)] == [
        ("meta redis://h -> redis://g", Change.RESTART),
        ("mountpoint /m -> /n", Change.FIXED),
        ("-o noatime -> (none)", Change.FIXED),
        ("--attr-cache 1s -> 1m", Change.LIVE),
        ("--cache-size 100G -> 0", Change.LIVE),
    ]
    assert differences(before, before) == []


def test_a_changed_password_is_told_and_not_shown() -> None:
    (found,) = differences(wanted("redis://u:alt@h/1"), wanted("redis://u:neu@h/1"))
    assert str(found) == "meta redis://u:***@h/1 -> redis://u:***@h/1 (another password)"


def test_only_what_the_kernel_was_told_is_fixed() -> None:
    fixed = {name for name, flag in BY_NAME.items() if flag.change is Change.FIXED}
    assert fixed == {"o", "read-only", "subdir", "enable-xattr"}
