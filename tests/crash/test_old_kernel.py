"""Kernels before 6.9, which do not send requests again: what jfsd does itself then.

The kernel here is newer; JFSD_PRETEND_OLD_KERNEL lets jfsd not use what it offers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from support.held import Held, HeldJfsd
from support.load import Load
from support.session import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.redis import RedisServer
    from support.volume import Volume

pytestmark = [pytest.mark.timeout(180), pytest.mark.jfsd_only, pytest.mark.promise(1)]

LOCK = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.{how}(f, fcntl.LOCK_EX); print('got it')"
)
WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
try:
    for _ in range(200):
        os.write(fd, b"x" * (1 << 20))
except OSError as error:
    print(error.errno)
os._exit(0)
"""


@pytest.fixture
def volume(new_volume: Callable[..., Volume]) -> Volume:
    return new_volume("file")


@pytest.fixture
def mount_old(volume: Volume) -> Callable[..., Held]:
    def mount(*flags: str) -> Held:
        client = HeldJfsd(volume.session)
        client.extra_env["JFSD_PRETEND_OLD_KERNEL"] = "1"
        held = volume.mount(*flags, client=client)
        assert "this kernel does not send requests again" in held.log_text()
        return held

    return mount


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that are killed if the test leaves them."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for program in started:
        program.kill()
        program.communicate()


def start(programs: list[subprocess.Popen[bytes]], code: str, *words: object) -> subprocess.Popen:
    program = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE
    )
    programs.append(program)
    return program


def kill(held: Held) -> None:
    former = held.serving_pid()
    os.kill(former, signal.SIGKILL)
    held.replaced(former)


def test_planned_ends_are_not_seen_by_a_checked_load(
    mount_old: Callable[..., Held], volume: Volume
) -> None:
    held = mount_old()
    load = Load(held.path)
    try:
        for _ in range(4):
            held.mount_again()
            time.sleep(0.3)
        load.stop()
    finally:
        load.kill()
    load.verify(held.path)
    held.unmount()
    volume.check()


@pytest.mark.promise(5)
@pytest.mark.parametrize("how", ["flock", "lockf"])
@pytest.mark.parametrize("event", ["upgrade", "kill"])
def test_waiters_stay_waiters(
    event: str, how: str, mount_old: Callable[..., Held], programs: list[subprocess.Popen[bytes]]
) -> None:
    held = mount_old()
    path = held.path / "locked"
    with path.open("w") as holder:
        getattr(fcntl, how)(holder, fcntl.LOCK_EX)
        waiter = start(programs, LOCK.format(how=how), path)
        time.sleep(0.5)
        for _ in range(2):
            if event == "kill":
                kill(held)
            else:
                held.mount_again()
        time.sleep(0.3)
        assert waiter.poll() is None
        getattr(fcntl, how)(holder, fcntl.LOCK_UN)
        assert waiter.communicate(timeout=60)[0] == b"got it\n"
    held.unmount()


@pytest.mark.promise(2)
def test_what_was_read_before_a_kill_is_done_once(
    mount_old: Callable[..., Held],
    redis_server: RedisServer,
    programs: list[subprocess.Popen[bytes]],
) -> None:
    held = mount_old()
    former = held.serving_pid()
    redis_server.pause()
    try:
        maker = start(programs, "import os, sys; os.mkdir(sys.argv[1])", held.path / "made")
        time.sleep(0.5)
        os.kill(former, signal.SIGKILL)
        time.sleep(0.5)
    finally:
        redis_server.resume()
    assert maker.wait(60) == 0
    assert (held.path / "made").is_dir()
    held.unmount()


def test_a_write_that_a_kill_interrupts_fails_and_nothing_else_does(
    mount_old: Callable[..., Held], programs: list[subprocess.Popen[bytes]]
) -> None:
    """The buffer is full and the store slow, so the write waits to be accepted."""
    held = mount_old("--buffer-size", "16M", "--upload-limit", "8")
    writer = start(programs, WRITE, held.path / "large")
    time.sleep(2)
    assert writer.poll() is None
    kill(held)
    assert writer.communicate(timeout=60)[0] == b"%d\n" % errno.EIO
    (held.path / "other").write_bytes(b"goes on")
    os.unlink(held.path / "large")
    kill(held)
    assert (held.path / "other").read_bytes() == b"goes on"
    held.unmount()


def test_the_journal_is_kept_as_a_fourth_descriptor(mount_old: Callable[..., Held]) -> None:
    held = mount_old()
    wanted = {"fuse": 1, "state": 1, "arena": 1, "requests": 1}

    def kept() -> bool:
        with held.holder() as holder:
            return holder.status()["descriptors"] == wanted

    wait_until(kept, 20, "four descriptors")
    held.mount_again()
    wait_until(kept, 20, "four descriptors")
    held.unmount()
