"""The holder as a program: in the foreground, its log, and a mount that nobody served."""

import os
import signal
import subprocess
import sys

import pytest
from support.holding import MOUNTPOINT, held
from support.session import wait_until

from jfsd.daemon import holder_log
from jfsd.daemon.holder import start_holder
from jfsd.daemon.holder_log import LogFile
from jfsd.daemon.holder_place import HolderError, Place
from jfsd.fuse import mount as mounting

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bench(monkeypatch):
    yield from held(monkeypatch)


def foreground(bench, *argv, **server):
    return subprocess.Popen(
        [sys.executable, "-m", "jfsd.daemon.holder", *argv],
        env=bench.env(**server),
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
    )


def test_in_the_foreground_it_ends_with_its_servers_exit_code(bench):
    with foreground(bench, MOUNTPOINT, "--", *bench.argv, FAKE_EXIT=7) as holder:
        bench.holders.add(holder.pid)
        bench.server()
        holder.send_signal(signal.SIGTERM)
        assert holder.wait(10) == 7
        assert "is ready" in holder.stderr.read()
    assert bench.gone()


def test_in_the_foreground_a_server_that_refuses_is_heard_directly(bench):
    with foreground(bench, MOUNTPOINT, "--", *bench.argv, FAKE_FAIL="no; way:9") as holder:
        assert holder.wait(10) == 9
        assert "jfsd: no; way\n" in holder.stderr.read()
    assert bench.gone()


def test_in_the_foreground_a_second_holder_is_refused(bench):
    bench.start()
    with foreground(bench, MOUNTPOINT, "--", *bench.argv) as second:
        assert second.wait(10) == 1
        assert second.stderr.read().startswith("jfsd: ")


@pytest.mark.parametrize("argv", [[], ["/mnt"], ["/mnt", "--"], ["mnt", "--", "x"], ["/mnt", "x"]])
def test_a_wrong_command_line_is_explained(bench, argv):
    with foreground(bench, *argv) as holder:
        assert holder.wait(10) == 2
        assert holder.stderr.read().startswith("usage: ")


MOUNT_AND_FAIL = """
import os, sys
from jfsd.config.fuseopts import FuseOptions
from jfsd.fuse.mount import mount
from jfsd.systemd.notify import Notifier
mounted = mount(sys.argv[1], "vol", FuseOptions())
assert Notifier.from_environ().store("fuse", mounted.fd)
sys.exit("jfsd: Redis has gone; start it")
"""


@pytest.mark.promise(16)
def test_a_mount_whose_first_server_fails_is_not_left_behind(bench):
    mountpoint = str(bench.root / "mnt")
    os.mkdir(mountpoint)
    try:
        with pytest.raises(HolderError, match=r"^Redis has gone; start it$"):
            start_holder(
                mountpoint, [sys.executable, "-c", MOUNT_AND_FAIL, mountpoint], os.environ, 10
            )
        wait_until(lambda: not Place.of(mountpoint).directory.exists(), 5, "the holder ends")
        assert mounting.find(mountpoint) is None
        assert os.listdir(mountpoint) == []
    finally:
        while mounting.find(mountpoint):
            mounting.umount(mountpoint, lazy=True)


def test_last_words_are_the_servers_and_not_ours(tmp_path):
    path = tmp_path / "log"
    log = LogFile(path)
    assert log.size() == 0
    assert log.last_words(0) == ""
    path.write_bytes(b"jfsd: an older failure\n")
    since = log.size()
    assert log.last_words(since) == ""
    with path.open("ab") as file:
        file.write(b"Traceback\n  in x\njfsd: the reason \xff\nexit\n")
        file.write(b"2026 jfsd[1] <INFO>: server 1 ends [jfsd.daemon.holder]\n")
    assert log.last_words(since) == "the reason \\xff"
    path.write_bytes(b"Killed\n")
    assert log.last_words(since) == "Killed"
    assert LogFile(None).last_words(0) == ""


def test_a_log_does_not_grow_without_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(holder_log, "MAX_BYTES", 1000)
    path = tmp_path / "log"
    log = LogFile(path)
    writer = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(writer, b"a" * 1000)
    log.trim()
    assert path.stat().st_size == 1000
    os.write(writer, b"b" * 500)
    log.trim()
    os.write(writer, b"c")  # who has it open goes on unaware
    assert path.read_bytes() == b"c"
    former = tmp_path / "log.1"
    assert former.read_bytes() == b"a" * 500 + b"b" * 500
    assert former.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]
    os.close(writer)
