"""Records of served mounts: found by commands, seen by nobody else."""

import json
import stat

import pytest

from jfsd.config import runtime
from jfsd.config.runtime import MountRecord, escape, find, register, unescape, unregister
from jfsd.errors import ExitCode, RefusedError


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
    for name in runtime.PASSWORD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run"


def record(mountpoint="/mnt/a b", **fields):
    return MountRecord(
        mountpoint=mountpoint, meta_url="redis://:pw@h/1", name="vol", uuid="u", pid=7, **fields
    )


def test_a_registered_mount_is_found_until_it_is_unregistered():
    register(record())
    assert find("/mnt/a b") == record()
    assert find("/mnt/a") is None
    unregister("/mnt/a b", 7)
    assert find("/mnt/a b") is None
    unregister("/mnt/a b", 7)


def test_a_server_that_ends_late_leaves_the_record_of_the_next_mount():
    register(record())
    unregister("/mnt/a b", 6)
    assert find("/mnt/a b") == record()


def test_the_last_registration_counts():
    register(record())
    register(record(subdir="x"))
    assert find("/mnt/a b").subdir == "x"


def test_only_the_owner_can_read_it(directory):
    path = register(record())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [p.name for p in directory.iterdir()] == [path.name]


def test_a_directory_that_others_can_read_is_refused(directory):
    directory.mkdir(mode=0o755)
    with pytest.raises(RefusedError) as refused:
        register(record())
    assert refused.value.exit_code is ExitCode.NO_PRIVILEGE
    assert list(directory.iterdir()) == []


def test_the_password_is_in_no_repr(monkeypatch):
    monkeypatch.setenv("META_PASSWORD", "geheim")
    assert "pw" not in repr(record())
    assert "geheim" not in repr(record())
    register(record())
    assert find("/mnt/a b").passwords == {"META_PASSWORD": "geheim"}


def test_a_password_file_is_found_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("META_PASSWORD_FILE", "secrets/redis")
    register(record())
    found = find("/mnt/a b")
    assert found.passwords["META_PASSWORD_FILE"] == f"{tmp_path}/secrets/redis"


def test_a_damaged_record_is_no_record():
    register(record()).write_text("{")
    assert find("/mnt/a b") is None


def test_a_path_that_is_no_text_has_a_record():
    path = b"/mnt/\xff\xfe".decode(errors="surrogateescape")
    register(record(path))
    assert find(path) == record(path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "-"),
        ("/mnt/jfs", "mnt-jfs"),
        ("/mnt/a-b", "mnt-a\\x2db"),
        ("/mnt/a b", "mnt-a\\x20b"),
        ("/.hidden", "\\x2ehidden"),
        ("/mnt/\u00e4", "mnt-\\xc3\\xa4"),
        ("/a\\b", "a\\x5cb"),
        ("/mnt/..x", "mnt-..x"),
    ],
)
def test_names_are_escaped_as_systemd_escape_does(path, name):
    assert escape(path) == name
    assert unescape(name) == path


@pytest.mark.parametrize(
    "name", ["", "a b", "mnt--x", "-mnt", "mnt-", "a\\x2", "a\\x61", ".x", "a/b"]
)
def test_what_systemd_escape_does_not_write_is_no_path(name):
    with pytest.raises(ValueError, match="is not the name of a path"):
        unescape(name)


def test_a_record_of_a_newer_version_is_read(directory):
    path = register(record(options={"prefetch": "1"}))
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "hue": "blue"}))
    assert find("/mnt/a b") == record(options={"prefetch": "1"})


def test_two_mount_points_never_share_a_record():
    names = [escape(path) for path in ("/a/b", "/a-b", "/a/b-", "/a\\x2db", "/")]
    assert len(set(names)) == len(names)
