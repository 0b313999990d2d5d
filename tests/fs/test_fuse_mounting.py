"""What can be mounted on, what is refused and how, and unmounting."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fuse_served import Program, Served

from jfsd.config.fuseopts import FuseOptions, parse_fuse_options
from jfsd.errors import ExitCode, RefusedError
from jfsd.fuse import mount as mounting

PLAIN = FuseOptions()


@pytest.fixture
def place(bed):
    path = bed.directory("m")
    yield path
    while mounting.find(str(path)):
        mounting.umount(str(path), lazy=True)


def refused(code, call, *args, **kwargs):
    with pytest.raises(RefusedError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return caught.value


def mount_options(path):
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(path):
            return set(line.split()[5].split(",")), line
    return set(), ""


def test_what_the_mount_table_shows(place):
    words = parse_fuse_options(["ro", "nosuid", "nodev", "noexec", "noatime"])
    mounted = mounting.mount(str(place), "vol", words)
    try:
        options, line = mount_options(place)
        assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= options
        assert " - fuse.jfsd JuiceFS:vol " in line
        for option in ("default_permissions", "allow_other", "max_read=1048576"):
            assert option in line
        entry = mounting.find(str(place))
        assert entry == (str(place), mounted.device, "fuse.jfsd", "JuiceFS:vol")
    finally:
        os.close(mounted.fd)


def test_fsname_and_others_off(place):
    words = parse_fuse_options(["fsname=my volume", "no_allow_other", "max_read=65536"])
    os.close(mounting.mount(str(place), "vol", words).fd)
    assert mounting.find(str(place)).source == "my volume"
    line = mount_options(place)[1]
    assert "allow_other" not in line
    assert "max_read=65536" in line


def test_a_place_that_cannot_be(place, bed):
    code = ExitCode.MOUNTPOINT_UNUSABLE
    missing = refused(code, mounting.mount, str(place / "no"), "vol", PLAIN)
    assert "does not exist; create it" in str(missing)
    (place / "file").touch()
    refused(code, mounting.mount, str(place / "file"), "vol", PLAIN)
    refused(code, mounting.mount, str(place / "file" / "below"), "vol", PLAIN)
    refused(code, mounting.mount, str(place), "vol", PLAIN)  # not empty
    assert mounting.find(str(place)) is None
    os.close(mounting.mount(str(place), "vol", parse_fuse_options(["nonempty"])).fd)


def test_a_mount_is_not_stacked_on_another(bed):
    with Served(bed) as served:
        error = refused(ExitCode.ALREADY_MOUNTED, mounting.mount, str(served.path), "vol", PLAIN)
        assert "JuiceFS:test" in str(error)
    with Served(bed) as served:
        served.kill()  # alive: the descriptor is here, and the next server may come
        began = time.monotonic()
        refused(ExitCode.ALREADY_MOUNTED, mounting.mount, str(served.path), "vol", PLAIN)
        assert time.monotonic() - began < 5
        served.start()


def test_another_file_system_in_the_way(bed):
    refused(ExitCode.ALREADY_MOUNTED, mounting.mount, "/proc", "vol", PLAIN)


def test_a_dead_mount_is_replaced(place):
    os.close(mounting.mount(str(place), "old", PLAIN).fd)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.listdir(place)
    os.close(mounting.mount(str(place), "new", PLAIN).fd)
    entries = [entry for entry in mounting.mounts() if entry.path == str(place)]
    assert [entry.source for entry in entries] == ["JuiceFS:new"]


def test_links_on_the_way_are_followed_and_odd_names_are_read(bed, place):
    odd = place / "a b\tc\\d"
    odd.mkdir()
    (place / "link").symlink_to("a b\tc\\d")
    (place / "round").symlink_to("round")
    with pytest.raises(RefusedError, match="symbolic links"):
        mounting.resolve(str(place / "round"))
    mounted = mounting.mount(str(place / "link" / ".." / "link"), "vol", PLAIN)
    assert mounted.path == str(odd)
    os.close(mounted.fd)
    mounting.umount(str(place / "link"), lazy=True)
    assert mounting.find(str(odd)) is None


def as_nobody(code, *args):
    program = f"""if 1:
        import os, sys
        from jfsd.config.fuseopts import FuseOptions
        from jfsd.errors import RefusedError
        from jfsd.fuse import mount as mounting
        os.setgid(65534); os.setuid(65534)
        try:
            {code}
        except RefusedError as error:
            print(error)
            sys.exit(int(error.exit_code))
    """
    return subprocess.run(
        [sys.executable, "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_without_privilege(place, bed):
    os.chown(place, 65534, 65534)
    done = as_nobody("mounting.mount(sys.argv[1], 'vol', FuseOptions())", place)
    assert done.returncode == ExitCode.NO_PRIVILEGE, done.stderr
    assert "run as root" in done.stdout
    os.close(mounting.mount(str(place), "vol", PLAIN).fd)
    done = as_nobody("mounting.umount(sys.argv[1])", place)
    assert done.returncode == ExitCode.NO_PRIVILEGE, done.stderr


def test_without_a_fuse_device(bed):
    error = refused(ExitCode.NO_PRIVILEGE, mounting.open_device, bed.root / "no-such-device")
    assert "modprobe fuse" in str(error)


def test_umount_refuses_what_is_in_use(bed):
    with Served(bed) as served, Program() as program:
        program.do(f"fd = os.open({str(served.path)!r}, os.O_RDONLY)")
        refused(ExitCode.BUSY, mounting.umount, str(served.path))
        assert os.listdir(served.path) == []
        mounting.umount(str(served.path), lazy=True)
        assert mounting.find(str(served.path)) is None
        assert program.do("os.listdir(fd)") == []  # detached, and served to the last
        program.do("os.close(fd)")
        assert served.said()["ended"]


def test_umount_of_what_is_not_a_mount(place):
    refused(ExitCode.NOT_MOUNTED, mounting.umount, str(place))
    refused(ExitCode.NOT_MOUNTED, mounting.umount, "/proc")
    refused(ExitCode.MOUNTPOINT_UNUSABLE, mounting.umount, str(place / "no"))


def test_nothing_here_waits_for_a_server_that_is_away(bed):
    with Served(bed) as served:
        served.kill()
        began = time.monotonic()
        assert mounting.resolve(str(served.path) + "/.") == str(served.path)
        mounting.umount(str(served.path), force=True, lazy=True)
        assert time.monotonic() - began < 1
