"""Servers come and go, programs do not notice: hand-overs and SIGKILLs under a checked load."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.load import Load
from support.posix import as_user

from jfsd.failpoint import PRIVILEGES_DROPPED

if TYPE_CHECKING:
    from support.kept import Kept


@pytest.mark.promise(1)
@pytest.mark.promise(3)
@pytest.mark.parametrize("by", [signal.SIGUSR2, signal.SIGKILL], ids=["handover", "kill"])
@pytest.mark.timeout(180)
def test_a_checked_load_sees_no_error(kept: Kept, by: int) -> None:
    load = Load(kept.path)
    try:
        for _ in range(6):
            time.sleep(0.7)
            kept.replace(by)
            load.compare()
        time.sleep(0.5)
        reports = load.stop()
    finally:
        load.kill()
    assert all(report.operations > 0 for report in reports.values())
    load.verify(kept.path)
    kept.check()


@pytest.mark.promise(4)
def test_handles_go_on_with_their_bytes(kept: Kept) -> None:
    with (
        (kept.path / "gone").open("w+b", buffering=0) as gone,
        (kept.path / "log").open("ab", buffering=0) as log,
        (kept.path / "kept").open("w+b", buffering=0) as plain,
    ):
        gone.write(b"unlinked")
        os.unlink(kept.path / "gone")
        log.write(b"one\n")
        plain.write(b"never flushed before the kill")
        kept.replace(signal.SIGKILL)
        log.write(b"two\n")
        gone.seek(0)
        assert gone.read() == b"unlinked"
        assert os.fstat(gone.fileno()).st_nlink == 0
        plain.seek(0)
        assert plain.read() == b"never flushed before the kill"
        kept.replace(signal.SIGUSR2)
        gone.seek(0)
        assert gone.read() == b"unlinked"
    assert (kept.path / "log").read_bytes() == b"one\ntwo\n"
    kept.check()


@pytest.mark.promise(2)
@pytest.mark.promise(3)
def test_a_kill_between_a_write_and_the_setuid_bits_that_it_clears(kept: Kept) -> None:
    """The bits are gone, the write is not done: it comes again, and finds nothing to clear."""
    path = kept.path / "file"
    path.touch()
    path.chmod(0o6777)
    kept.arm(PRIVILEGES_DROPPED)
    kept.replace(signal.SIGUSR2)
    ended = len(kept.ended())
    with path.open("r+b", buffering=0) as file:
        done = as_user(999, 999, lambda: file.write(b"written once"))
        kept.await_death(PRIVILEGES_DROPPED, ended)
        kept.await_served(ended + 1)
        assert (done.error, done.result) == (None, 12)
    assert path.stat().st_mode & 0o7777 == 0o777
    assert path.read_bytes() == b"written once"
    kept.check()


@pytest.mark.promise(5)
def test_locks_are_held_and_waited_for_across_a_kill(kept: Kept) -> None:
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
        kept.replace(signal.SIGKILL)
        time.sleep(0.5)
        os.set_blocking(ready, False)
        with pytest.raises(BlockingIOError):
            os.read(ready, 1)
        fcntl.lockf(holder, fcntl.LOCK_UN)
        _, status = os.waitpid(pid, 0)
        assert status == 0
        assert os.read(ready, 1) == b"g"
    kept.check()


@pytest.mark.promise(6)
def test_a_listing_goes_on_in_the_next_server(kept: Kept) -> None:
    steady = {f"file{i}" for i in range(3000)}
    for name in steady:
        (kept.path / name).touch()
    with os.scandir(kept.path) as listing:
        shown = [next(listing).name for _ in range(50)]
        (kept.path / "new").touch()
        kept.replace(signal.SIGKILL)
        shown += [entry.name for entry in listing]
    assert sorted(name for name in shown if name in steady) == sorted(steady)
    kept.check()


@pytest.mark.promise(8)
@pytest.mark.timeout(180)
def test_ten_kills_in_ten_seconds(kept: Kept) -> None:
    load = Load(kept.path, ("names", "writer", "appender"))
    try:
        for _ in range(10):
            time.sleep(1)
            kept.send(signal.SIGKILL)
        kept.await_served(10)
        time.sleep(1)
        load.stop()
    finally:
        load.kill()
    load.verify(kept.path)
    kept.check()
