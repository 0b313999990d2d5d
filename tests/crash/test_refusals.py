"""What cannot be served: requests that kill their servers, and states that are not ours."""

from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.session import wait_until

if TYPE_CHECKING:
    from support.kept import Kept

pytestmark = pytest.mark.timeout(180)
DEADLY = "request.removexattr"


@pytest.mark.promise(9)
def test_a_request_that_kills_three_servers_is_answered_with_eio(kept: Kept) -> None:
    path = kept.path / "file"
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as program:
        file.write(b"before")
        os.setxattr(path, "user.deadly", b"1")
        kept.arm(DEADLY, DEADLY, DEADLY)
        kept.replace(signal.SIGKILL)
        with pytest.raises(OSError, match="Input/output error") as failure:
            program.submit(os.removexattr, path, "user.deadly").result(90)
        assert failure.value.errno == errno.EIO
        assert kept.ended()[1:] == [(-signal.SIGSEGV, DEADLY)] * 3
        assert "killed its servers, answered with EIO" in kept.log()
        assert "user.deadly" in kept.log().partition("answered with EIO")[2].splitlines()[0]
        file.write(b" and after")
        os.removexattr(path, "user.deadly")
    assert path.read_bytes() == b"before and after"
    kept.check()


@pytest.mark.promise(9)
def test_two_deaths_are_no_proof(kept: Kept) -> None:
    path = kept.path / "file"
    path.touch()
    os.setxattr(path, "user.x", b"1")
    kept.arm(DEADLY, DEADLY)
    kept.replace(signal.SIGKILL)
    with ThreadPoolExecutor(1) as program:
        program.submit(os.removexattr, path, "user.x").result(90)
    assert os.listxattr(path) == []
    kept.check()


REFUSALS = {
    "crc": "parked state: has no header with a matching checksum",
    "layout": "parked state: is of layout 99, this version reads 1",
    "magic": "parked state: is the state of another program",
    "volume": "volume was 00000000-0000-0000-0000-000000000000",
    "mountpoint": "mount point was /somewhere/else",
    "arena": "does not fit the write buffer that came with it",
}


@pytest.mark.promise(11)
def test_a_state_that_is_not_ours_is_refused_and_the_mount_left_as_it_is(kept: Kept) -> None:
    """Each refusal is one line with the way out; the way out works: programs never notice."""
    with (kept.path / "file").open("wb", buffering=0) as file:
        file.write(b"kept in the write buffer")
        for how, line in REFUSALS.items():
            kept.arm(f"spoil {how}")
            if how == "crc":
                kept.send(signal.SIGKILL)
            wait_until(lambda line=line: line in kept.log(), 60, f"refusal of {how}")
            told = [each for each in kept.log().splitlines() if line in each]
            assert "unmount and mount again" in told[0]
            assert "Traceback" not in kept.log()
            assert len(mounts.at(kept.path)) == 1
        kept.arm("heal")
        kept.await_served(len(kept.ended()))
        file.write(b", and more")
    assert (kept.path / "file").read_bytes() == b"kept in the write buffer, and more"
    kept.check()


@pytest.mark.promise(11)
def test_a_state_with_more_than_we_know_is_read_and_handed_on(kept: Kept) -> None:
    with (kept.path / "file").open("wb", buffering=0) as file:
        file.write(b"written before")
        kept.arm("spoil newer")
        kept.replace(signal.SIGKILL)
        file.write(b" and after")
        kept.replace(signal.SIGUSR2)
    assert (kept.path / "file").read_bytes() == b"written before and after"
    kept.check()
