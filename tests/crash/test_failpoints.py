"""A SIGKILL at every step (docs/LIFECYCLE.md), under a load that checks itself."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.kept import KeptJfsd
from support.load import Load
from support.session import wait_until

from jfsd import failpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.kept import Kept
    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(1), pytest.mark.promise(3), pytest.mark.promise(8)]

LOAD = ("names", "writer", "appender", "scatter", "unlinked", "contender", "contender", "mapper")


def killed_at(
    kept: Kept, points: Sequence[str], die_at: Callable[[str], object] | None = None
) -> None:
    """Kill a server at each point in turn under one load, and find everything as it should be."""
    die_at = die_at or kept.die_at
    load = Load(kept.path, LOAD)
    try:
        for point in points:
            die_at(point)
            load.compare()
        load.stop()
    finally:
        load.kill()
    load.verify(kept.path)
    kept.check()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", failpoint.START)
def test_killed_in_the_first_start(
    new_volume: Callable[..., Volume], bed: Session, point: str
) -> None:
    kept = KeptJfsd(bed).mount_kept(new_volume("file"), failpoints=(point,))
    assert kept.ended() == [(-signal.SIGKILL, point)]
    (kept.path / "file").write_bytes(b"bytes")
    assert (kept.path / "file").read_bytes() == b"bytes"
    kept.check(dead_starts=1)


@pytest.mark.timeout(180)
def test_killed_while_taking_over(kept: Kept) -> None:
    adopting = [point for point in failpoint.START if point != "start.mounted"]
    killed_at(kept, [*failpoint.ADOPTION, *adopting])


@pytest.mark.timeout(180)
def test_killed_several_times_while_taking_over(kept: Kept) -> None:
    load = Load(kept.path, LOAD)
    try:
        kept.arm("adopt.slices", "start.claimed", "adopt.resent", "start.ready", "adopt.handles")
        ended = kept.send(signal.SIGKILL)
        kept.await_served(ended + 5)
        load.stop()
    finally:
        load.kill()
    load.verify(kept.path)
    kept.check()


@pytest.mark.timeout(180)
def test_killed_while_handing_over(kept: Kept) -> None:
    def die_at(point: str) -> None:
        kept.arm(point)
        kept.replace(signal.SIGKILL)
        ended = kept.send(signal.SIGUSR2)
        kept.await_death(point)
        kept.await_served(ended)

    killed_at(kept, failpoint.HANDOVER, die_at)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("step", ["SCRIPT", "WRITE", "PACK", "UPLOAD", "STORE", "COMMIT"])
def test_killed_in_the_middle_of_work(kept: Kept, step: str) -> None:
    points = getattr(failpoint, step)
    killed_at(kept, [f"{point}:{count}" for point in points for count in (1, 7, 40)])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("point", failpoint.STOP)
def test_killed_while_stopping(new_volume: Callable[..., Volume], bed: Session, point: str) -> None:
    volume = new_volume("file")
    kept = KeptJfsd(bed).mount_kept(volume, "--heartbeat", "1")
    kept.arm(point)
    kept.replace(signal.SIGKILL)
    data = os.urandom(5 << 20)
    (kept.path / "file").write_bytes(data)
    os.kill(kept.server(), signal.SIGTERM)
    kept.await_death(point)
    kept.mounted.service.wait()
    after = KeptJfsd(bed).mount_kept(volume, "--heartbeat", "1", path=kept.path)
    assert len(mounts.at(after.path)) == 1
    assert (after.path / "file").read_bytes() == data
    with volume.database() as database:
        wait_until(lambda: database.zcard("allSessions") == 1, 30, "the dead session is cleaned")
    after.mounted.unmount()
    volume.check()
