"""The verbs that look at, or end, a mount that is being served."""

import contextlib
import json
import os
import subprocess
import time
from subprocess import PIPE

import pytest
from support import mounts

from jfsd.errors import ExitCode

BLOCK = 4 << 20

pytestmark = pytest.mark.jfsd_only


@pytest.fixture
def volume(new_volume):
    return new_volume("file")


@pytest.fixture
def mounted(volume):
    return volume.mount()


def info(jfsd, *paths):
    """Return what `jfsd info --json` says about paths."""
    return json.loads(jfsd.run("info", "--json", *paths).stdout)


def line_of(done, code):
    """Return the one line of a refusal."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_status_of_a_mount_point_is_that_of_its_volume(jfsd, juicefs, volume, mounted):
    (mounted.path / "file").write_bytes(bytes(10_000))
    shown = jfsd.status(mounted.path)
    assert shown["Setting"] == juicefs.status(volume.meta_url)["Setting"]
    (session,) = shown["Sessions"]
    assert session["MountPoint"] == str(mounted.path)
    assert session["ProcessID"] in mounted.pids()
    deadline = time.monotonic() + 10
    while jfsd.status(mounted.path)["Stat"]["UsedSpace"] != 12288:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert jfsd.status(volume.meta_url)["Sessions"][0]["Sid"] == session["Sid"]


def test_the_record_of_a_mount_is_there_while_it_is_mounted_and_nobody_elses(jfsd, mounted):
    jfsd.status(mounted.path)
    mounted.unmount()
    line = line_of(jfsd.run("status", mounted.path, check=False), ExitCode.NOT_MOUNTED)
    assert str(mounted.path) in line


def test_info_names_the_objects_that_hold_a_file(jfsd, volume, mounted):
    content = os.urandom(2 * BLOCK + 1000)
    path = mounted.path / "file"
    path.write_bytes(content)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    (shown,) = info(jfsd, path)
    status = path.stat()
    assert (shown["inode"], shown["length"]) == (status.st_ino, len(content))
    assert (shown["volume"], shown["path_in_volume"]) == (volume.name, "/file")
    read = b""
    for found in shown["objects"]:
        assert found["pos"] == len(read)
        stored = (volume.storage.directory / found["key"]).read_bytes()
        assert len(stored) == found["size"]
        read += stored[found["offset"] : found["offset"] + found["length"]]
    assert read == content
    kept = {str(p.relative_to(volume.storage.directory)) for p in volume.kept_objects()}
    assert {found["key"] for found in shown["objects"]} == kept


def test_info_shows_overwritten_parts_and_holes_as_they_are_read(jfsd, volume, mounted):
    path = mounted.path / "file"
    with path.open("wb") as file:
        os.pwrite(file.fileno(), b"a" * 10_000, 0)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"b" * 2_000, 4_000)
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), b"c", 70 << 20)
        os.fsync(file.fileno())
    (shown,) = info(jfsd, path)
    parts = [(found["chunk"], found["pos"], found["length"]) for found in shown["objects"]]
    assert parts == [(0, 0, 4000), (0, 4000, 2000), (0, 6000, 4000), (1, 70 << 20, 1)]
    assert [len(chunk["slices"]) for chunk in shown["chunks"]] == [2, 1]
    text = jfsd.run("info", path).stdout
    assert "2 with 3 slices" in text
    assert text.count(f"{volume.name}/chunks/") == 4


def test_info_of_a_huge_sparse_file_is_quick(jfsd, mounted):
    path = mounted.path / "sparse"
    with path.open("wb") as file:
        os.pwrite(file.fileno(), b"x", (1 << 56) - 1)
    (shown,) = info(jfsd, path)
    assert shown["length"] == 1 << 56
    assert [chunk["index"] for chunk in shown["chunks"]] == [(1 << 30) - 1]


def test_info_knows_names_that_are_no_text(jfsd, mounted):
    path = os.fsencode(mounted.path) + b"/\xff\xfe"
    with open(path, "wb"):
        pass
    done = subprocess.run(
        [jfsd.binary, "info", path], capture_output=True, timeout=60, check=True, env=jfsd.env()
    )
    assert done.stdout.startswith(path + b":\n")


def test_info_does_not_follow_a_link_and_knows_the_root(jfsd, mounted):
    (mounted.path / "dir").mkdir()
    (mounted.path / "link").symlink_to("dir")
    paths = [mounted.path, mounted.path / "dir", mounted.path / "link"]
    shown = info(jfsd, *paths)
    assert [entry["type"] for entry in shown] == ["directory", "directory", "symlink"]
    assert [entry["inode"] for entry in shown] == [os.lstat(path).st_ino for path in paths]


def test_info_below_a_subdir_knows_the_volumes_inodes(jfsd, volume, mounted):
    (mounted.path / "team").mkdir()
    (mounted.path / "team" / "file").write_bytes(b"x")
    expected = info(jfsd, mounted.path / "team", mounted.path / "team" / "file")
    below = volume.mount("--subdir", "/team")
    shown = info(jfsd, below.path, below.path / "file")
    assert [entry["inode"] for entry in shown] == [entry["inode"] for entry in expected]
    assert [entry["path_in_volume"] for entry in shown] == ["/team", "/team/file"]


def test_info_of_what_is_not_ours_is_refused(jfsd, tmp_path):
    assert "/" in line_of(jfsd.run("info", tmp_path, check=False), ExitCode.NOT_MOUNTED)
    done = jfsd.run("info", tmp_path / "none", check=False)
    assert "No such file" in line_of(done, ExitCode.USAGE)


def test_umount_waits_until_everything_is_stored_and_the_server_has_ended(volume, mounted, jfsd):
    content = os.urandom(30 << 20)
    with open(mounted.path / "file", "wb") as file:
        file.write(content)
    jfsd.run("umount", mounted.path)
    assert mounted.service.returncode() == 0
    assert sum(path.stat().st_size for path in volume.kept_objects()) == len(content)
    assert jfsd.status(volume.meta_url)["Sessions"] == []


@pytest.mark.promise(15)
def test_umount_tells_what_could_not_be_stored(volume, mounted, jfsd):
    objects, aside = volume.storage.directory, volume.storage.directory.with_name("aside")
    file = open(mounted.path / "file", "wb", buffering=0)  # noqa: SIM115 - its close fails
    file.write(b"lost")
    objects.rename(aside)
    objects.touch()
    try:
        with pytest.raises(OSError, match="Input/output error"):
            file.close()
        line = line_of(jfsd.run("umount", mounted.path, check=False), ExitCode.STORE_UNREACHABLE)
    finally:
        objects.unlink()
        aside.rename(objects)
    assert "could not be stored and is lost" in line
    assert mounted.service.wait(30) == ExitCode.STORE_UNREACHABLE


def test_umount_of_a_busy_mount_is_refused_and_changes_nothing(jfsd, mounted):
    with open(mounted.path / "file", "wb") as file:
        file.write(b"x")
        line = line_of(jfsd.run("umount", mounted.path, check=False), ExitCode.BUSY)
        assert "--force" in line
        assert mounts.at(mounted.path)
    assert (mounted.path / "file").read_bytes() == b"x"


def test_umount_force_detaches_a_busy_mount_and_open_files_go_on(jfsd, volume, mounted):
    with open(mounted.path / "file", "wb") as file:
        file.write(b"before ")
        file.flush()
        jfsd.run("umount", "--force", mounted.path)
        assert not mounts.at(mounted.path)
        file.write(b"after")
    assert mounted.service.wait(30) == 0
    again = volume.mount()
    assert (again.path / "file").read_bytes() == b"before after"


def test_umount_says_who_else_has_the_mount(mounted, jfsd):
    """A mount namespace made meanwhile has a copy; the server ends after the last one."""
    script = 'mount --make-rprivate / && echo ready && read -r _ && umount "$0" && echo done'
    argv = ["unshare", "--mount", "sh", "-euc", script, mounted.path]
    with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        umount = subprocess.Popen(
            [jfsd.binary, "umount", mounted.path], stderr=PIPE, text=True, env=jfsd.env()
        )
        line = umount.stderr.readline()
        assert "to be unmounted in the mount namespace of process" in line
        assert str(other.pid) in line
        other.communicate("\n", timeout=30)
        umount.communicate(timeout=60)
    assert umount.returncode == 0
    assert mounted.service.returncode() == 0


def test_umount_twice_is_refused(jfsd, mounted):
    mounted.unmount()
    line_of(jfsd.run("umount", mounted.path, check=False), ExitCode.NOT_MOUNTED)


def test_umount_takes_a_dead_mount_away(jfsd, mounted):
    mounted.service.kill()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.path)
    line = line_of(jfsd.run("info", mounted.path / "file", check=False), ExitCode.NOT_MOUNTED)
    assert "whose server is gone" in line
    relative = os.path.relpath(mounted.path)
    assert "Setting" in jfsd.status(relative)
    jfsd.run("umount", mounted.path)
    assert not mounts.at(mounted.path)
    assert mounted.path.is_dir()


def test_a_second_mount_on_the_same_place_is_refused(jfsd, volume, mounted):
    done = jfsd.run("mount", volume.meta_url, mounted.path, check=False)
    line = [entry for entry in done.stderr.splitlines() if entry.startswith("jfsd: ")]
    assert done.returncode == ExitCode.ALREADY_MOUNTED
    assert len(line) == 1
    assert len(mounts.at(mounted.path)) == 1


def test_a_mount_over_files_is_possible_on_request(volume, bed):
    path = bed.directory("m")
    (path / "hidden").write_text("x")
    mounted = volume.mount("-o", "nonempty", path=path)
    assert list(path.iterdir()) == []
    mounted.unmount()
    with contextlib.suppress(FileNotFoundError):
        (path / "hidden").unlink()
