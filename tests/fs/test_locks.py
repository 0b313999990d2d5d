"""flock, POSIX and open-file-description locks between processes, and between mounts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import time
from typing import TYPE_CHECKING

import pytest
from support.posix import Lock, attempt, conflicting_lock, record_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.clients import Mounted
    from support.volume import Volume

pytestmark = pytest.mark.promise(13)
SH, EX, UN, NB = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN, fcntl.LOCK_NB
RD, WR, UL = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK


@pytest.fixture
def path(work: Path) -> Path:
    path = work / "f"
    path.write_bytes(b"x" * 100)
    return path


class Helper:
    """A forked process that runs calls one after the other, and can be waited for."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._out, sink = os.pipe()
        source, self._in = os.pipe()
        self.ended = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._out)
            os.close(self._in)
            try:
                for step in steps:
                    outcome = attempt(step)
                    os.write(sink, (outcome.error or "ok").ljust(16).encode())
                    if not os.read(source, 1):
                        break
            finally:
                os._exit(0)
        os.close(sink)
        os.close(source)

    def says(self, limit_s: float = 20) -> str:
        """Wait for the outcome of the step that it is at."""
        ready, _, _ = select.select([self._out], [], [], limit_s)
        assert ready, "the other process still waits"
        return os.read(self._out, 16).decode().strip()

    def waits(self, for_s: float = 0.3) -> bool:
        """True if it has not finished its step yet."""
        return not select.select([self._out], [], [], for_s)[0]

    def go(self) -> None:
        os.write(self._in, b"x")

    def end(self) -> None:
        if self.ended:
            return
        self.ended = True
        for fd in (self._in, self._out):
            os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def helper() -> Iterator[Callable[..., Helper]]:
    made: list[Helper] = []

    def make(*steps: Callable[[], object]) -> Helper:
        made.append(Helper(*steps))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture
def fds(path: Path) -> Iterator[list[int]]:
    opened = [os.open(path, os.O_RDWR) for _ in range(3)]
    yield opened
    for fd in opened:
        with contextlib.suppress(OSError):
            os.close(fd)


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR)


def test_flock_excludes_other_descriptions(fds: list[int]) -> None:
    one, two, three = fds
    fcntl.flock(one, EX)
    assert attempt(fcntl.flock, two, EX | NB).error == "EAGAIN"
    assert attempt(fcntl.flock, two, SH | NB).error == "EAGAIN"
    fcntl.flock(one, SH)
    fcntl.flock(two, SH | NB)
    assert attempt(fcntl.flock, three, EX | NB).error == "EAGAIN"
    fcntl.flock(one, UN)
    fcntl.flock(two, EX | NB)
    assert attempt(fcntl.flock, one, SH | NB).error == "EAGAIN"


def test_flock_belongs_to_the_description_and_ends_with_it(path: Path, fds: list[int]) -> None:
    one, two, _ = fds
    copy = os.dup(one)
    fcntl.flock(copy, EX)
    fcntl.flock(one, EX | NB)
    os.close(one)
    assert attempt(fcntl.flock, two, EX | NB).error == "EAGAIN"
    os.close(copy)
    fcntl.flock(two, EX | NB)


def test_flock_waits(path: Path, fds: list[int], helper: Callable[..., Helper]) -> None:
    fcntl.flock(fds[0], EX)
    other = helper(lambda: fcntl.flock(opened(path), EX))
    assert other.waits()
    fcntl.flock(fds[0], UN)
    assert other.says() == "ok"
    assert attempt(fcntl.flock, fds[0], SH | NB).error == "EAGAIN"
    other.end()
    _until(lambda: attempt(fcntl.flock, fds[0], EX | NB).error is None)


def test_flock_of_a_killed_process_is_released(
    path: Path, fds: list[int], helper: Callable[..., Helper]
) -> None:
    other = helper(lambda: fcntl.flock(opened(path), EX))
    assert other.says() == "ok"
    assert attempt(fcntl.flock, fds[0], EX | NB).error == "EAGAIN"
    os.kill(other.pid, signal.SIGKILL)
    _until(lambda: attempt(fcntl.flock, fds[0], EX | NB).error is None)


def _until(what: Callable[[], bool], limit_s: float = 10) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_flock_on_a_directory(work: Path) -> None:
    one, two = os.open(work, os.O_RDONLY), os.open(work, os.O_RDONLY)
    outcome = attempt(fcntl.flock, one, EX | NB)
    if outcome.error is None:
        assert attempt(fcntl.flock, two, EX | NB).error == "EAGAIN"
    os.close(one)
    os.close(two)


def test_record_locks_of_ranges(path: Path, fds: list[int], helper: Callable[..., Helper]) -> None:
    fd = fds[0]
    record_lock(fd, WR, 10, 10)
    record_lock(fd, RD, 30, 10)
    other = helper(
        lambda: record_lock(opened(path), WR, 0, 10),
        lambda: record_lock(opened(path), RD, 19, 1),
        lambda: record_lock(opened(path), RD, 30, 5),
        lambda: record_lock(opened(path), WR, 30, 5),
        lambda: record_lock(opened(path), WR, 40, 0),
        lambda: record_lock(opened(path), RD, 0, 0),
    )
    expected = ["ok", "EAGAIN", "ok", "EAGAIN", "ok", "EAGAIN"]
    for outcome in expected:
        assert other.says() == outcome
        other.go()


def test_record_locks_split_and_join(
    path: Path, fds: list[int], helper: Callable[..., Helper]
) -> None:
    fd = fds[0]
    record_lock(fd, WR, 0, 100)
    record_lock(fd, UL, 40, 20)
    record_lock(fd, RD, 10, 10)
    asked = helper(*[_ask(path, WR, s, n) for s, n in ((0, 5), (15, 1), (45, 5), (70, 0))])
    assert [_next(asked) for _ in range(4)] == ["WR 0+10", "RD 10+10", "none", "WR 60+40"]


def _next(helper: Helper) -> str:
    said = helper.says()
    helper.go()
    return said


def _ask(path: Path, kind: int, start: int, length: int) -> Callable[[], None]:
    def ask() -> None:
        found = conflicting_lock(opened(path), kind, start, length)
        if found:
            name = {RD: "RD", WR: "WR"}[found.type]
            raise _SaidError(f"{name} {found.start}+{found.length}")
        raise _SaidError("none")

    return ask


class _SaidError(OSError):
    """Carries a word through `attempt`."""

    def __init__(self, word: str) -> None:
        super().__init__(0, word)
        self.errno = word


def test_getlk_names_the_holder(path: Path, fds: list[int], helper: Callable[..., Helper]) -> None:
    other = helper(lambda: record_lock(opened(path), WR, 5, 10))
    assert other.says() == "ok"
    assert conflicting_lock(fds[0], RD, 0, 0) == Lock(WR, 5, 10, other.pid)
    assert conflicting_lock(fds[0], RD, 15, 0) is None
    assert conflicting_lock(fds[0], WR, 0, 5) is None


def test_a_record_lock_waits_and_is_interrupted(
    path: Path, fds: list[int], helper: Callable[..., Helper]
) -> None:
    record_lock(fds[0], WR, 0, 0)

    def interrupted() -> None:
        def ring(*_: object) -> None:
            raise InterruptedError(4, "alarm")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        record_lock(opened(path), WR, 0, 0, wait=True)

    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        record_lock(opened(path), WR, 0, 0, wait=True)

    other = helper(interrupted, wait, lambda: None)
    assert other.says(10) == "EINTR"
    other.go()
    assert other.waits()
    record_lock(fds[0], UL, 0, 0)
    assert other.says() == "ok"
    assert attempt(record_lock, fds[0], RD).error == "EAGAIN"


@pytest.mark.jfsd_only
def test_record_locks_end_with_any_close_of_the_process(
    path: Path, fds: list[int], helper: Callable[..., Helper]
) -> None:
    """The reference looks only at the locks taken through the descriptor that is closed."""
    record_lock(fds[0], WR, 0, 0)
    take = lambda: record_lock(opened(path), WR, 0, 0)  # noqa: E731
    other = helper(take, take)
    assert other.says() == "EAGAIN"
    os.close(os.open(path, os.O_RDONLY))
    other.go()
    assert other.says() == "ok"


def test_ofd_locks_belong_to_the_description(path: Path, fds: list[int]) -> None:
    one, two, three = fds
    record_lock(one, WR, 0, 10, ofd=True)
    assert attempt(record_lock, two, RD, 5, 1, ofd=True).error == "EAGAIN"
    record_lock(two, WR, 10, 10, ofd=True)
    found = conflicting_lock(three, WR, 0, 10, ofd=True)
    assert (found.type, found.start, found.length) == (WR, 0, 10)
    os.close(os.open(path, os.O_RDONLY))
    assert attempt(record_lock, three, WR, 0, 1, ofd=True).error == "EAGAIN"
    os.close(one)
    record_lock(three, WR, 0, 10, ofd=True)


def test_ofd_and_posix_locks_conflict(path: Path, fds: list[int]) -> None:
    record_lock(fds[0], WR, 0, 10, ofd=True)
    assert attempt(record_lock, fds[1], RD, 0, 1).error == "EAGAIN"
    record_lock(fds[0], UL, 0, 10, ofd=True)
    record_lock(fds[1], WR, 0, 10)
    assert attempt(record_lock, fds[0], RD, 0, 1, ofd=True).error == "EAGAIN"


def test_locks_count_right_under_contention(work: Path) -> None:
    """Four processes add to one number under a lock, each kind of lock for one number."""
    kinds = {"flock": _flocked, "posix": _posix, "ofd": _ofd}
    for name in kinds:
        (work / name).write_bytes(b"0".rjust(8))
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            for _ in range(25):
                for name, locked in kinds.items():
                    locked(work / name)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(c, 0)[1] for c in children] == [0] * 4
    assert {n: int((work / n).read_bytes()) for n in kinds} == dict.fromkeys(kinds, 100)


def _add(fd: int) -> None:
    number = int(os.pread(fd, 8, 0))
    os.pwrite(fd, str(number + 1).rjust(8).encode(), 0)


def _flocked(path: Path) -> None:
    fd = opened(path)
    fcntl.flock(fd, EX)
    _add(fd)
    os.close(fd)


def _posix(path: Path) -> None:
    fd = opened(path)
    record_lock(fd, WR, 0, 0, wait=True)
    _add(fd)
    record_lock(fd, UL)
    os.close(fd)


def _ofd(path: Path) -> None:
    fd = opened(path)
    record_lock(fd, WR, 0, 0, wait=True, ofd=True)
    _add(fd)
    os.close(fd)


@pytest.mark.promise(14)
@pytest.mark.parametrize("kind", ["flock", "posix", "ofd"])
def test_locks_hold_between_mounts(
    kind: str, shared_volume: Volume, shared_mount: Mounted, path: Path
) -> None:
    other = shared_volume.mount()
    there = opened(other.path / path.relative_to(shared_mount.path))
    here = opened(path)

    def take(fd: int) -> str | None:
        if kind == "flock":
            return attempt(fcntl.flock, fd, EX | NB).error
        return attempt(record_lock, fd, WR, 3, 5, ofd=kind == "ofd").error

    assert take(here) is None
    assert take(there) == "EAGAIN"
    os.close(here)
    _until(lambda: take(there) is None)
    here = opened(path)
    assert take(here) == "EAGAIN"
    os.close(there)
    _until(lambda: take(here) is None)
    os.close(here)
    other.unmount()
    shared_volume.mounted.remove(other)


@pytest.mark.promise(14)
def test_locks_of_a_mount_end_when_it_is_unmounted(
    shared_volume: Volume, shared_mount: Mounted, path: Path, helper: Callable[..., Helper]
) -> None:
    other = shared_volume.mount()
    there = other.path / path.relative_to(shared_mount.path)
    one = helper(lambda: fcntl.flock(opened(there), EX))
    assert one.says() == "ok"
    here = opened(path)
    assert attempt(fcntl.flock, here, EX | NB).error == "EAGAIN"
    one.end()
    other.unmount()
    shared_volume.mounted.remove(other)
    assert attempt(fcntl.flock, here, EX | NB).error is None
    os.close(here)
