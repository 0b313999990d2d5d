"""However a mount comes to its end, its server ends too, and its exit status tells how."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support import mounts

from jfsd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.volume import Volume

pytestmark = [pytest.mark.promise(12), pytest.mark.jfsd_only]
END_S = 60


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_aborted_connection(busy: bool, new_volume: Callable[..., Volume]) -> None:
    """Nothing stays mounted, what was written is stored, and it counts as a failure."""
    volume = new_volume("file")
    mounted = volume.mount()
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"written")
    if not busy:
        os.close(fd)
    mounts.abort(mounted.path)
    assert mounted.service.wait(END_S) == ExitCode.FAILURE
    assert not mounts.at(mounted.path)
    [line] = [x for x in mounted.service.tail().splitlines() if x.startswith("jfsd: ")]
    assert f"{mounted.path}: the kernel's connection to it was aborted" in line
    if busy:
        with pytest.raises(OSError, match="not connected"):
            os.write(fd, b"more")
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
    with volume.database() as client:
        assert client.zcard("allSessions") == 0
    again = volume.mount()
    assert (again.path / "f").read_bytes() == b"written"
    again.unmount()


@pytest.mark.parametrize("flags", [[], ["-f"], ["-l"]], ids=["plain", "forced", "lazy"])
def test_umount_by_its_own_program(flags: list[str], new_volume: Callable[..., Volume]) -> None:
    volume = new_volume("file")
    mounted = volume.mount()
    (mounted.path / "f").write_bytes(b"written")
    subprocess.run(["umount", *flags, mounted.path], check=True, timeout=END_S)
    assert mounted.service.wait(END_S) == ExitCode.OK
    assert not mounts.at(mounted.path)
    again = volume.mount()
    assert (again.path / "f").read_bytes() == b"written"
    again.unmount()


def test_a_busy_mount_detached_by_another_program_ends_with_its_last_file(
    new_volume: Callable[..., Volume],
) -> None:
    volume = new_volume("file")
    mounted = volume.mount()
    fd = os.open(mounted.path / "f", os.O_CREAT | os.O_RDWR)
    subprocess.run(["umount", "-l", mounted.path], check=True, timeout=END_S)
    os.write(fd, b"written behind the scenes")
    os.fsync(fd)
    assert mounted.service.returncode() is None
    os.close(fd)
    assert mounted.service.wait(END_S) == ExitCode.OK
    again = volume.mount()
    assert (again.path / "f").read_bytes() == b"written behind the scenes"
    again.unmount()
