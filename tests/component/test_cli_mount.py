"""`jfsd mount` refuses what it cannot serve, in one line, before anything has changed."""

import os
import pwd
import shutil
import subprocess
import tempfile

import pytest
from support import mounts
from support.clients import Storage
from support.session import Service, free_ports, run, wait_until

from jfsd.config.runtime import escape
from jfsd.errors import ExitCode

pytestmark = pytest.mark.promise(16)


@pytest.fixture
def formatted(juicefs, meta_url, tmp_path):
    """The metadata URL of an empty volume."""
    juicefs.format(meta_url, "vol", Storage(directory=tmp_path / "objects"))
    return meta_url


@pytest.fixture
def place(tmp_path):
    """An empty directory."""
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def refused(jfsd, redis_server, meta_db):
    """A function that runs `jfsd mount`, which must refuse; it returns the line."""

    def run(code, *arguments, env=None, before=(), user=None):
        contents = _contents(redis_server, meta_db)
        done = subprocess.run(
            [*before, jfsd.binary, "mount", "--no-syslog", *arguments],
            capture_output=True,
            timeout=60,
            check=False,
            user=user,
            env={**jfsd.env(), **(env or {})},
        )
        text = done.stderr.decode(errors="surrogateescape")
        assert done.returncode == code, text
        lines = [line for line in text.splitlines() if line.startswith("jfsd: ")]
        assert len(lines) == 1, text
        assert "Traceback" not in text
        assert _contents(redis_server, meta_db) == contents
        return lines[0]

    return run


def _contents(redis_server, db):
    with redis_server.client(db) as client:
        return {key: client.dump(key) for key in client.keys("*")}


def test_a_mount_point_that_is_missing(refused, formatted, tmp_path):
    line = refused(ExitCode.MOUNTPOINT_UNUSABLE, formatted, tmp_path / "none")
    assert "does not exist" in line


def test_a_mount_point_that_is_no_directory(refused, formatted, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused(ExitCode.MOUNTPOINT_UNUSABLE, formatted, tmp_path / "file")
    assert "is not a directory" in line


def test_a_mount_point_that_is_not_empty(refused, formatted, place):
    (place / "file").write_text("x")
    assert "is not empty" in refused(ExitCode.MOUNTPOINT_UNUSABLE, formatted, place)


def test_a_mount_point_whose_name_is_no_text(refused, formatted, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    line = refused(ExitCode.MOUNTPOINT_UNUSABLE, formatted, path)
    assert os.fsdecode(b"\xff\xfe: does not exist") in line


def test_a_mount_point_with_too_long_a_name(refused, formatted, tmp_path):
    refused(ExitCode.MOUNTPOINT_UNUSABLE, formatted, tmp_path / ("n" * 256))


def test_a_mount_point_that_is_mounted_already(refused, formatted, place):
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        assert "is a mount already" in refused(ExitCode.ALREADY_MOUNTED, formatted, place)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_redis_that_is_away(refused, formatted, place, tmp_path):
    refused(ExitCode.META_UNREACHABLE, f"unix://{tmp_path}/none?db=1", place)
    (port,) = free_ports(1)
    refused(ExitCode.META_UNREACHABLE, f"redis://127.0.0.1:{port}/1", place)


def test_a_password_that_is_not_wanted_is_not_shown(refused, formatted, place):
    url = formatted.replace("unix://", "unix://:geheim@")
    assert "geheim" not in refused(ExitCode.META_UNREACHABLE, url, place)


@pytest.mark.parametrize("url", ["", "mysql://h/d", "unix://", "redis://h:x/1"])
def test_a_url_that_does_not_parse(refused, place, url):
    refused(ExitCode.USAGE, url, place)


def test_no_volume(refused, meta_url, place):
    refused(ExitCode.VOLUME_MISSING, meta_url, place)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("MetaVersion", 2, "MetaVersion 2"),
        ("MinClientVersion", '"9.0"', "MinClientVersion is 9.0"),
        ("MaxClientVersion", '"1.0"', "MaxClientVersion is 1.0"),
        ("Compression", '"snappy"', "Compression 'snappy'"),
        ("Storage", '"ceph"', "Storage 'ceph'"),
        ("ChangeLog", "true", "change log"),
    ],
)
def test_a_volume_that_we_do_not_understand(
    refused, formatted, place, redis_server, meta_db, field, value, what
):
    with redis_server.client(meta_db) as client:
        # Of two fields of one name the last counts.
        setting = client.get("setting").rstrip().removesuffix(b"}")
        client.set("setting", setting + f', "{field}": {value}}}'.encode())
    assert what in refused(ExitCode.VOLUME_UNSUPPORTED, formatted, place)


def test_a_database_that_holds_something_else(refused, meta_url, place, redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", "dark mode")
    refused(ExitCode.VOLUME_CONFLICT, meta_url, place)


def test_a_bucket_that_is_gone(refused, formatted, place, tmp_path):
    shutil.rmtree(tmp_path / "objects")
    refused(ExitCode.STORE_REFUSED, formatted, place)


def test_a_bucket_of_another_volume(refused, formatted, place, tmp_path):
    (tmp_path / "objects" / "vol" / "juicefs_uuid").write_text("somebody-else")
    refused(ExitCode.STORE_REFUSED, formatted, place)


def test_a_subdir_that_is_missing(refused, formatted, place):
    line = refused(ExitCode.USAGE, formatted, place, "--subdir", "a/b")
    assert "a" in line


@pytest.mark.parametrize(
    "flags",
    [
        ["--buffer-size", "1"],
        ["--read-only", "-o", "rw"],
        ["-o", "writeback_cache"],
        ["--cache-dir", ""],
        ["--cache-dir", "relative"],
        ["--backup-meta", "1h"],
        ["--writeback"],
        ["--access-key-file", "/nonexistent"],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(refused, formatted, place, flags):
    refused(ExitCode.USAGE, formatted, place, *flags)


def test_a_machine_without_fuse(refused, formatted, place):
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh"]
    assert "/dev/fuse" in refused(ExitCode.NO_PRIVILEGE, formatted, place, before=hidden)


def test_a_user_without_privilege(refused, formatted, jfsd):
    nobody = pwd.getpwnam("nobody").pw_uid
    readable = ["setpriv", f"--reuid={nobody}", "--clear-groups", jfsd.binary, "version"]
    if subprocess.run(readable, check=False, capture_output=True).returncode:
        pytest.skip("this checkout keeps other users out")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o755)
        refused(ExitCode.NO_PRIVILEGE, formatted, place, user=nobody)


def test_root_without_the_capability(refused, formatted, place):
    bare = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    assert "CAP_SYS_ADMIN" in refused(ExitCode.NO_PRIVILEGE, formatted, place, before=bare)


def test_nothing_is_left_mounted(refused, formatted, place):
    refused(ExitCode.USAGE, formatted, place, "--subdir", "none")
    assert not mounts.at(place)


# -- configuration files


@pytest.fixture
def configured(formatted, place, tmp_path):
    """A function that writes a configuration of the volume and returns its path."""

    def write(text="", name="conf.toml"):
        path = tmp_path / name
        path.write_text(f'meta = "{formatted}"\nmountpoint = "{place}"\n{text}')
        path.chmod(0o600)
        return path

    return write


def test_a_configuration_that_is_missing(refused, tmp_path):
    line = refused(ExitCode.USAGE, "--config", tmp_path / "none.toml")
    assert "none.toml: cannot be read (No such file or directory)" in line


def test_an_instance_without_a_configuration(refused, tmp_path):
    env = {"JFSD_CONFIG_DIR": str(tmp_path)}
    line = refused(ExitCode.USAGE, "mnt-jfs", env=env)
    assert f"mnt-jfs: has no configuration {tmp_path}/mnt-jfs.toml; write one" in line
    line = refused(ExitCode.USAGE, "/mnt/a-b", env=env)
    assert f"{tmp_path}/mnt-a\\x2db.toml" in line


def test_an_unknown_key(refused, configured):
    path = configured("attr-cash = 1")
    line = refused(ExitCode.USAGE, "--config", path)
    assert f"{path}: attr-cash: is not a key of the configuration; did you mean attr-cache?" in line


def test_a_subdir_of_the_file_that_is_missing(refused, configured):
    assert "a/b" in refused(ExitCode.USAGE, "--config", configured('subdir = "a/b"'))


def test_the_command_line_counts_more_than_the_file(refused, configured, tmp_path):
    config = configured('subdir = "a/b"')
    assert "--subdir c" in refused(ExitCode.USAGE, "--config", config, "--subdir", "c")
    elsewhere = refused(ExitCode.MOUNTPOINT_UNUSABLE, "--config", config, tmp_path / "none")
    assert f"{tmp_path}/none: does not exist" in elsewhere
    url = f"unix://{tmp_path}/none?db=1"
    assert f"{tmp_path}/none" in refused(ExitCode.META_UNREACHABLE, "--config", config, url)


@pytest.mark.parametrize("words", [["a", "b", "c"], []], ids=["many", "none"])
def test_too_many_words_and_none(refused, words):
    refused(ExitCode.USAGE, *words)


@pytest.mark.parametrize("by", ["instance", "place"])
def test_a_file_alone_is_mounted(jfsd, configured, place, bed, by):
    instance = escape(str(place))
    configured("no-syslog = true\n", f"{instance}.toml")
    runtime = f"{bed.root}/{by}.run"
    env = {**jfsd.env(), "JFSD_CONFIG_DIR": str(place.parent), "JFSD_RUNTIME_DIR": runtime}
    word = instance if by == "instance" else place
    service = Service(bed, [jfsd.binary, "mount", word], bed.root / f"{by}.log", env=env)
    wait_until(lambda: mounts.at(place) or service.returncode() is not None, 60, str(word))
    assert mounts.at(place), service.tail()
    run([jfsd.binary, "umount", place], env=env)
    assert service.wait() == 0
