"""`jfsd mount -d`: the holder outside systemd, upgrades of a live mount, and what is refused."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.held import Held, HeldJfsd, mount_held
from support.load import Load
from support.redis import RedisServer
from support.session import wait_until

from jfsd.daemon.holder_place import HolderError
from jfsd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.timeout(180), pytest.mark.jfsd_only]


@pytest.fixture
def volume(new_volume: Callable[..., Volume]) -> Volume:
    return new_volume("file")


@pytest.fixture
def held(volume: Volume) -> Held:
    return mount_held(volume)


def kill(pid: int, number: int = signal.SIGKILL) -> int:
    os.kill(pid, number)
    return pid


@pytest.mark.promise(12)
def test_unmounting_leaves_nothing_but_the_log(held: Held) -> None:
    (held.path / "file").write_bytes(b"kept")
    held.unmount()
    assert [path.name for path in held.client.runtime.iterdir()] == [held.log.name]


@pytest.mark.promise(1)
@pytest.mark.promise(2)
@pytest.mark.promise(3)
def test_mounting_again_hands_over_under_a_checked_load(held: Held, volume: Volume) -> None:
    holder = held.holder_pid()
    load = Load(held.path)
    try:
        for _ in range(4):
            former = held.serving_pid()
            said = held.mount_again().stdout
            assert "has taken over" in said
            assert held.serving_pid() != former
            time.sleep(0.3)
        reports = load.stop()
    finally:
        load.kill()
    assert all(report.operations > 0 for report in reports.values())
    load.verify(held.path)
    assert held.holder_pid() == holder
    assert len(mounts.at(held.path)) == 1
    held.unmount()
    volume.check()


@pytest.mark.promise(8)
def test_servers_and_holders_are_killed_in_turn(held: Held, volume: Volume) -> None:
    load = Load(held.path, ("names", "writer", "appender"))
    try:
        for _ in range(3):
            held.replaced(kill(held.serving_pid()))
            former = kill(held.holder_pid())
            wait_until(lambda former=former: next_holder(held, former), 30, "another holder")
            held.mount_again()
        load.stop()
    finally:
        load.kill()
    load.verify(held.path)
    assert len(mounts.at(held.path)) == 1
    held.unmount()
    volume.check()


def next_holder(held: Held, former: int) -> bool:
    """Return whether another holder than `former` has everything and a server."""
    try:
        with held.holder() as holder:
            status = holder.status()
    except HolderError:
        return False
    kept = status["descriptors"] == {"fuse": 1, "state": 1, "arena": 1}
    return status["holder"] != former and status["stage"] == "serving" and kept


@pytest.mark.promise(11)
def test_what_cannot_change_is_refused_before_the_server_stops(held: Held) -> None:
    server = held.serving_pid()
    done = held.mount_again("--read-only", "--subdir=elsewhere", check=False)
    assert done.returncode == ExitCode.ALREADY_MOUNTED
    assert "--read-only was false, is true" in done.stderr
    assert "--subdir was (none), is elsewhere" in done.stderr
    assert done.stderr.count("\n") == 1
    assert held.serving_pid() == server
    assert len(mounts.at(held.path)) == 1
    (held.path / "goes on").write_bytes(b"")


@pytest.mark.promise(11)
def test_another_volume_is_refused(held: Held, new_volume: Callable[..., Volume]) -> None:
    server, other = held.serving_pid(), new_volume("file")
    words = [*held.again[:-2], other.meta_url, held.again[-1]]
    done = held.client.run(*words, check=False)
    assert done.returncode == ExitCode.ALREADY_MOUNTED
    assert "volume was" in done.stderr
    assert held.serving_pid() == server


@pytest.mark.promise(11)
def test_a_next_server_that_cannot_start_changes_nothing(held: Held) -> None:
    server = held.serving_pid()
    done = held.mount_again("--access-key-file", "/nonexistent", "--storage", "s3", check=False)
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    (held.path / "goes on").write_bytes(b"")
    assert held.serving_pid() == server


@pytest.mark.promise(11)
def test_a_mount_in_the_foreground_is_not_stacked_upon(volume: Volume) -> None:
    mounted = volume.mount()
    done = HeldJfsd(volume.session).run(
        "mount", "-d", volume.meta_url, mounted.path, check=False, limit_s=30
    )
    assert done.returncode == ExitCode.ALREADY_MOUNTED
    assert len(mounts.at(mounted.path)) == 1
    mounted.unmount()


@pytest.mark.promise(16)
def test_a_start_that_fails_says_why_and_leaves_nothing(bed: Session, meta_url: str) -> None:
    client, path = HeldJfsd(bed), bed.directory("m")
    done = client.run("mount", "-d", meta_url, path, check=False)
    assert done.returncode == ExitCode.VOLUME_MISSING
    assert done.stderr.startswith("jfsd: ")
    assert "there is no volume" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not mounts.at(path)
    assert not list(client.runtime.glob("*.d"))


@pytest.fixture
def own_redis(bed: Session) -> Iterator[RedisServer]:
    server = RedisServer(bed)
    yield server
    server.service.end()


@pytest.mark.promise(16)
def test_no_process_shows_the_password(
    own_redis: RedisServer, new_volume: Callable[..., Volume]
) -> None:
    volume = new_volume("file", redis=own_redis)
    with own_redis.client() as admin:
        admin.config_set("requirepass", "p@ss-word")
        volume.meta_url = volume.meta_url.replace("unix://", "unix://:p%40ss-word@")
        held = mount_held(volume)
        for _ in range(2):
            for pid in held.pids():
                assert b"ss-word" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            held.mount_again()
        held.unmount()
        admin.config_set("requirepass", "")


@pytest.mark.promise(7)
def test_the_installed_version_takes_over_on_demand(held: Held) -> None:
    load = Load(held.path, ("names", "writer"))
    try:
        for _ in range(2):
            former = held.serving_pid()
            done = held.client.run("upgrade", held.path)
            now = held.serving_pid()
            assert f"server {now} has taken" in done.stdout
            assert now != former
        load.stop()
    finally:
        load.kill()
    load.verify(held.path)


@pytest.mark.promise(7)
def test_each_start_is_told_with_its_phases(held: Held) -> None:
    (held.path / "file").write_bytes(b"")
    held.mount_again()
    wait_until(lambda: held.log_text().count(" event kind=") == 2, 30, "two events")
    held.replaced(kill(held.serving_pid()))
    wait_until(lambda: held.log_text().count(" event kind=") == 3, 30, "three events")
    kinds = [w.split("=")[1] for w in held.log_text().split() if w.startswith("kind=")]
    assert kinds == ["start", "restart", "crash"]
    [upgrade] = [line for line in held.log_text().splitlines() if "kind=restart" in line]
    for phase in ("load=", "meta=", "standby=", "serve=", "drain_ms=", "gap_ms=", "resent="):
        assert phase in upgrade
