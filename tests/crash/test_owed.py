"""An error that no program was told yet is told by the next server."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

import pytest
from support.kept import Kept, KeptJfsd
from support.session import wait_until

from jfsd import failpoint
from jfsd.daemon.state_view import describe, state_kept_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(15), pytest.mark.promise(3), pytest.mark.timeout(180)]
GIB = 1 << 30


@pytest.fixture
def full(new_volume: Callable[..., Volume], bed: Session) -> Kept:
    """A mount of a volume with room for a MiB."""
    kept = KeptJfsd(bed).mount_kept(new_volume("file", "--capacity", "1"))
    (kept.path / "large").touch()
    os.truncate(kept.path / "large", GIB - (1 << 20))
    return kept


def owed(kept: Kept) -> dict[str, int]:
    """Return what the parked state says is to be told, by inode."""
    fd = state_kept_by(kept.server(), str(kept.path))
    if fd is None:
        return {}
    try:
        found: dict[str, int] = describe(fd)["owed"]
        return found
    finally:
        os.close(fd)


def overfill(kept: Kept) -> int:
    """Return a descriptor of a file whose last write was accepted, and finds no room."""
    fd = os.open(kept.path / "file", os.O_CREAT | os.O_WRONLY)
    os.write(fd, b"kept")
    os.fsync(fd)
    os.write(fd, os.urandom(2 << 20))
    return fd


def assert_told_once(kept: Kept, fd: int) -> None:
    """The program that has the file open is told, and the file is as it was."""
    with pytest.raises(OSError, match="No space left") as told:
        os.fsync(fd)
    assert told.value.errno == errno.ENOSPC
    assert owed(kept) == {}
    os.fsync(fd)
    os.close(fd)
    assert (kept.path / "file").read_bytes() == b"kept"
    kept.check()


@pytest.mark.parametrize("by", [signal.SIGUSR2, signal.SIGKILL], ids=["handover", "kill"])
def test_what_nobody_was_told_outlives_the_server(full: Kept, by: int) -> None:
    fd = overfill(full)
    wait_until(lambda: owed(full), 30, "the write finds no room")
    full.replace(by)
    full.replace(by)
    assert owed(full) == {str(os.fstat(fd).st_ino): errno.ENOSPC}
    assert_told_once(full, fd)


@pytest.mark.parametrize("point", failpoint.REFUSAL)
def test_a_kill_while_data_is_given_up(full: Kept, point: str) -> None:
    full.arm(point)
    full.replace(signal.SIGUSR2)
    fd = overfill(full)
    full.await_death(point)
    full.await_served(2)
    assert_told_once(full, fd)


def test_what_was_told_is_not_told_again(full: Kept) -> None:
    fd = overfill(full)
    wait_until(lambda: owed(full), 30, "the write finds no room")
    with pytest.raises(OSError, match="No space left"):
        os.write(fd, b"more")
    full.replace(signal.SIGKILL)
    os.fsync(fd)
    os.close(fd)
    full.check()


def test_nobody_is_told_of_a_file_that_is_closed(full: Kept) -> None:
    fd = overfill(full)
    with pytest.raises(OSError, match="No space left"):
        os.close(fd)
    assert owed(full) == {}
    full.replace(signal.SIGKILL)
    with (full.path / "file").open("ab") as file:
        file.write(b" and more")
    assert (full.path / "file").read_bytes() == b"kept and more"
    full.check()
