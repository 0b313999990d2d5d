"""Servers come and go, programs do not notice: hand-overs and SIGKILLs under a checked load."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from support.clients import Jfsd
from support.load import Load
from support.session import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.clients import Mounted
    from support.session import Session
    from support.volume import Volume

KEEPER = Path(__file__).parents[1] / "support" / "keeper.py"


class KeptJfsd(Jfsd):
    """jfsd under a keeper of descriptors."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.extra_env["JFSD_KEPT"] = str(self.binary)
        self.server = self.binary
        self.keeper = str(KEEPER)

    def mount_kept(self, volume: Volume) -> Mounted:
        """Mount under the keeper; every other command stays the program's own."""
        self.binary = self.keeper
        try:
            return volume.mount(client=self)
        finally:
            self.binary = self.server


@pytest.fixture
def kept(new_volume: Callable[..., Volume], bed: Session) -> Mounted:
    """A mount whose descriptors are kept."""
    volume = new_volume("file")
    mounted = KeptJfsd(bed).mount_kept(volume)
    mounted.volume = volume
    return mounted


def await_generation(mounted: Mounted, number: int) -> None:
    """Return when the server of a generation, or a later one, serves."""

    def served() -> bool:
        log = mounted.service.tail(1000)
        return any(f"(generation {n}" in log for n in range(number, number + 50))

    wait_until(served, 30, f"generation {number}")


def replaced(mounted: Mounted, number: int, *, by: int) -> None:
    """End the server by a signal and wait for generation `number`."""
    os.kill(mounted.serving_pid(), by)
    await_generation(mounted, number)


def check(mounted: Mounted) -> None:
    """One mount, clean books, and no key left behind after the unmount."""
    mounted.unmount()
    volume = mounted.volume
    volume.check()
    with redis.Redis.from_url(volume.meta_url) as database:
        assert database.keys("jfsd*") == []


@pytest.mark.promise(1)
@pytest.mark.promise(3)
@pytest.mark.parametrize("by", [signal.SIGUSR2, signal.SIGKILL], ids=["handover", "kill"])
@pytest.mark.timeout(180)
def test_a_checked_load_sees_no_error(kept: Mounted, by: int) -> None:
    load = Load(kept.path)
    try:
        for generation in range(2, 8):
            time.sleep(0.7)
            replaced(kept, generation, by=by)
        time.sleep(0.5)
        reports = load.stop()
    finally:
        load.kill()
    assert all(report.operations > 0 for report in reports.values())
    load.verify(kept.path)
    check(kept)


@pytest.mark.promise(4)
def test_handles_go_on_with_their_bytes(kept: Mounted) -> None:
    with (
        (kept.path / "gone").open("w+b", buffering=0) as gone,
        (kept.path / "log").open("ab", buffering=0) as log,
        (kept.path / "kept").open("w+b", buffering=0) as plain,
    ):
        gone.write(b"unlinked")
        os.unlink(kept.path / "gone")
        log.write(b"one\n")
        plain.write(b"never flushed before the kill")
        replaced(kept, 2, by=signal.SIGKILL)
        log.write(b"two\n")
        gone.seek(0)
        assert gone.read() == b"unlinked"
        assert os.fstat(gone.fileno()).st_nlink == 0
        plain.seek(0)
        assert plain.read() == b"never flushed before the kill"
        replaced(kept, 3, by=signal.SIGUSR2)
        gone.seek(0)
        assert gone.read() == b"unlinked"
    assert (kept.path / "log").read_bytes() == b"one\ntwo\n"
    check(kept)


@pytest.mark.promise(5)
def test_locks_are_held_and_waited_for_across_a_kill(kept: Mounted) -> None:
    path = kept.path / "locked"
    with path.open("w") as holder:
        fcntl.lockf(holder, fcntl.LOCK_EX)
        fcntl.flock(holder, fcntl.LOCK_EX)
        ready, waiter_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with path.open("w") as contender:
                    try:
                        fcntl.lockf(contender, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        os.write(waiter_end, b"w")
                        fcntl.lockf(contender, fcntl.LOCK_EX)
                        os.write(waiter_end, b"g")
                        status = 0
            finally:
                os._exit(status)
        assert os.read(ready, 1) == b"w"
        time.sleep(0.2)
        replaced(kept, 2, by=signal.SIGKILL)
        time.sleep(0.5)
        os.set_blocking(ready, False)
        with pytest.raises(BlockingIOError):
            os.read(ready, 1)
        fcntl.lockf(holder, fcntl.LOCK_UN)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert os.read(ready, 1) == b"g"
    check(kept)


@pytest.mark.promise(6)
def test_a_listing_goes_on_in_the_next_server(kept: Mounted) -> None:
    steady = {f"file{i}" for i in range(3000)}
    for name in steady:
        (kept.path / name).touch()
    with os.scandir(kept.path) as listing:
        shown = [next(listing).name for _ in range(50)]
        (kept.path / "new").touch()
        replaced(kept, 2, by=signal.SIGKILL)
        shown += [entry.name for entry in listing]
    assert sorted(name for name in shown if name in steady) == sorted(steady)
    check(kept)


@pytest.mark.promise(8)
@pytest.mark.timeout(180)
def test_ten_kills_in_ten_seconds(kept: Mounted) -> None:
    load = Load(kept.path, ("names", "writer", "appender"))
    try:
        for _ in range(10):
            time.sleep(1)
            os.kill(kept.serving_pid(), signal.SIGKILL)
        await_generation(kept, 2)
        time.sleep(2)
        load.stop()
    finally:
        load.kill()
    load.verify(kept.path)
    check(kept)
