"""Configuration files: what they may say, and what a refusal of them says."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from jfsd.config.file import KEYS, config_path, is_instance, read_config
from jfsd.config.flags import MOUNT_FLAGS, Kind
from jfsd.config.settings import MountSettings, settings_from
from jfsd.errors import ExitCode, RefusedError

if TYPE_CHECKING:
    from pathlib import Path


def written(tmp_path: Path, text: str, mode: int = 0o600, name: str = "mnt-jfs.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refusal(path: str) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        read_config(path)
    assert refused.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(path)
    return refused.value


@pytest.mark.promise(17)
def test_three_lines_suffice(tmp_path: Path) -> None:
    text = 'meta = "redis://db.internal/1"\ncache-size = "20G"\nattr-cache = 5\n'
    read = read_config(written(tmp_path, text))
    assert read.meta_url == "redis://db.internal/1"
    assert read.mountpoint == "/mnt/jfs"
    assert settings_from(read.values) == MountSettings(cache_size_bytes=20 << 30, attr_cache_s=5.0)


def test_an_empty_file_says_nothing_but_where(tmp_path: Path) -> None:
    read = read_config(written(tmp_path, "# nothing\n"))
    assert (read.meta_url, read.mountpoint, dict(read.values)) == ("", "/mnt/jfs", {})


@pytest.mark.parametrize("flag", MOUNT_FLAGS, ids=lambda flag: flag.key)
def test_every_option_can_be_set_by_its_long_name(flag, tmp_path: Path) -> None:
    text = {Kind.WORDS: "noatime,noexec", Kind.PATHS: "/a:/b"}.get(flag.kind, flag.default)
    if flag.kind is Kind.TEXT and not flag.default:
        text = "/file" if flag.name.endswith("-file") else "word"
    path = written(tmp_path, f'meta = "redis://h"\n{flag.key} = {json.dumps(text)}\n')
    assert read_config(path).values == {flag.name: flag.parse(text)}
    assert len(flag.key) > 1


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("buffer-size = 512", 512 << 20),
        ("attr-cache = 0.5", 0.5),
        ("free-space-ratio = 0", 0.0),
        ("read-only = true", True),
        ("enable-xattr = false", False),
        ('no-bgjob = "yes"', True),
        ("upload-limit = 100", 100),
        ('options = ["noatime", "fsname=a,b"]', ("noatime", "fsname=a,b")),
        ('options = "ro,noatime"', ("ro", "noatime")),
        ('cache-dir = ["/a", "/b"]', ("/a", "/b")),
        ('cache-dir = "memory"', ("memory",)),
        ("prefetch = 0x10", 16),
    ],
)
def test_values_may_be_texts_numbers_booleans_and_arrays(line, value, tmp_path: Path) -> None:
    (found,) = read_config(written(tmp_path, line)).values.values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cachesize = 1", "cachesize: is not a key of the configuration; did you mean cache-size?"),
        ("cache_size = 1", "did you mean cache-size?"),
        ("no-enable-xattr = true", "did you mean enable-xattr?"),
        ("no-bgjobs = true", "did you mean no-bgjob?"),
        ("mount-point = 1", "did you mean mountpoint?"),
        ('o = ["ro"]', "o: is not a key of the configuration; did you mean options?"),
        ("quux = 1", "is not a key of the configuration; leave it out, or see jfs.toml(5)"),
        ("[mount]\nread-only = true", "[mount]: the configuration has no tables; put the keys"),
        ('buffer-size = "15M"', 'buffer-size = "15M": is out of range 16M to 1T; give 16M to 1T'),
        ("buffer-size = 1", "buffer-size = 1: is out of range"),
        ("max-uploads = -1", "max-uploads = -1: is not a whole number"),
        ("prefetch = 1.5", "prefetch = 1.5: is not a whole number"),
        ("attr-cache = inf", "attr-cache = inf: is not a number or a text"),
        ("attr-cache = true", 'attr-cache = true: is not a number or a text; write attr-cache = "'),
        ("read-only = 1", "read-only = 1: is not true or false; write read-only = true"),
        ('read-only = "perhaps"', "is not true or false; give true or false"),
        ("storage = 3", "storage = 3: is not a text in quotes"),
        ('storage = "ftp"', 'storage = "ftp": is not one of file, s3, minio'),
        ("subdir = 1979-05-27", "subdir = 1979-05-27: is not a text in quotes"),
        ("cache-dir = 3", "cache-dir = 3: is not an array of texts"),
        ('cache-dir = ["/a:b"]', "has a path with a colon"),
        ("options = [1]", "options = [1]: is not an array of texts"),
        ('options = [""]', "is not an array of texts"),
        ("log-level = {a = 1}", "log-level = a table: is not a text"),
        ('mountpoint = "mnt"', 'mountpoint = "mnt": is not an absolute path; begin it with /'),
        ('secret-key-file = "key"', 'secret-key-file = "key": is not an absolute path'),
        ("mountpoint = 3", "mountpoint = 3: is not a text"),
        ('meta = ""', "meta: is not a text in quotes"),
        ("meta = 5", "meta: is not a text in quotes"),
        ('cache-dir = "rel"', "'rel' is not an absolute path"),
        ('options = ["ro", "rw"]', "-o ro,rw: contradict each other"),
        ('options = ["writeback_cache"]', "is not implemented"),
        ('backup-meta = "1h"', "juicefs dump"),
        ("meta", "is no TOML: "),
        ('meta = "a"\nmeta = "b"', "is no TOML: "),
        ("attr-cache = 1s", "is no TOML: "),
    ],
)
@pytest.mark.promise(16)
def test_a_refusal_names_file_key_value_rule_and_mend(line, said, tmp_path: Path) -> None:
    assert said in str(refusal(written(tmp_path, line)))


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    assert len(str(refusal(written(tmp_path, f'storage = "{"x" * 5000}"')))) < 400
    assert len(str(refusal(written(tmp_path, f"{'x' * 5000} = 1")))) < 400


@pytest.mark.parametrize(
    ("mode", "text", "said"),
    [
        (0o604, 'meta = "redis://:geheim@h"', "holds a password and may be read by every user"),
        (0o644, 'meta = "redis://u:geheim@h"', "keep the password in a credential"),
        (0o602, 'meta = "redis://h"', "may be written by every user; chmod o-w"),
        (0o646, 'meta = "redis://h"', "may be written by every user"),
    ],
)
@pytest.mark.promise(18)
def test_a_file_that_lies_open_is_refused(mode, text, said, tmp_path: Path) -> None:
    error = str(refusal(written(tmp_path, text, mode)))
    assert said in error
    assert "geheim" not in error


@pytest.mark.parametrize(
    ("mode", "text"),
    [(0o640, 'meta = "redis://:pw@h"'), (0o644, 'meta = "redis://h"'), (0o664, "prefetch = 1")],
)
def test_a_file_that_only_its_group_shares_is_read(mode, text, tmp_path: Path) -> None:
    read_config(written(tmp_path, text, mode))


def test_a_password_is_in_no_refusal_and_no_repr(tmp_path: Path) -> None:
    text = 'meta = "redis://:geheim@h"\n'
    assert "geheim" not in str(refusal(written(tmp_path, text + "quux = 1")))
    assert "geheim" not in str(refusal(written(tmp_path, text + "quux")))
    assert "geheim" not in repr(read_config(written(tmp_path, text)))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(str(tmp_path / "none.toml")).rule
    assert "not a file" in refusal(str(tmp_path)).rule
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in refusal(str(tmp_path / "pipe")).rule
    assert "not UTF-8" in refusal(_latin(tmp_path)).rule
    assert "over 1 MiB" in refusal(written(tmp_path, "#" * (2 << 20))).rule


def _latin(tmp_path: Path) -> str:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'meta = "\xe4"')
    return str(path)


@pytest.mark.parametrize(
    ("name", "mountpoint"),
    [
        ("mnt-jfs.toml", "/mnt/jfs"),
        ("-.toml", "/"),
        ("mnt-a\\x2db.toml", "/mnt/a-b"),
        ("mnt-a\\x20b.toml", "/mnt/a b"),
        ("team.toml", "/team"),
        ("mnt-\\xff.toml", os.fsdecode(b"/mnt/\xff")),
        ("jfs.conf", ""),
        ("a b.toml", ""),
        ("mnt--jfs.toml", ""),
    ],
)
def test_the_name_of_the_file_is_the_mount_point(name, mountpoint, tmp_path: Path) -> None:
    assert read_config(written(tmp_path, 'meta = "redis://h"', name=name)).mountpoint == mountpoint


def test_a_mount_point_in_the_file_comes_first(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, 'mountpoint = "/srv/x"')).mountpoint == "/srv/x"


def test_an_instance_and_a_mount_point_name_the_same_file(monkeypatch) -> None:
    monkeypatch.delenv("JFSD_CONFIG_DIR", raising=False)
    assert config_path("mnt-jfs") == config_path("/mnt/jfs") == "/etc/jfs/mnt-jfs.toml"
    monkeypatch.setenv("JFSD_CONFIG_DIR", "/srv/conf")
    assert config_path("/mnt/a-b") == "/srv/conf/mnt-a\\x2db.toml"


def test_a_url_and_a_path_are_no_instance() -> None:
    assert is_instance("mnt-jfs")
    assert not any(map(is_instance, ("", "/mnt/jfs", "redis://h", "host:6379", "./x")))


def test_no_option_has_the_name_of_another_key() -> None:
    assert len(set(KEYS)) == len(KEYS)
