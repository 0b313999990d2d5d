"""Both programs on one volume at the same time, against each other on the same names."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest
from support.posix import attempt, record_lock
from support.tree import assert_same, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.clients import Jfsd, JuiceFS, Mounted
    from support.volume import Volume

pytestmark = [pytest.mark.promise(14), pytest.mark.timeout(180)]
CACHES = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0")


class Pair(NamedTuple):
    """The same directory through both programs."""

    volume: Volume
    ours: Path
    theirs: Path

    def sides(self) -> list[Path]:
        """Two processes' worth of places on each side, alternating."""
        return [self.ours, self.theirs, self.ours, self.theirs]


@pytest.fixture
def pair(new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS) -> Iterator[Pair]:
    """A volume that both have mounted; at the end both leave and the tools find it whole."""
    volume = new_volume("file", by=jfsd)
    one: Mounted = volume.mount(*CACHES, client=jfsd)
    two: Mounted = volume.mount(*CACHES, client=juicefs)
    (one.path / "d").mkdir()
    yield Pair(volume, one.path / "d", two.path / "d")
    two.unmount()
    one.unmount()
    volume.check()
    juicefs.dump(volume.meta_url)


def at_once(pair: Pair, job: Callable[[Path, int], int]) -> list[int]:
    """Run a job in four processes, two on each mount, started together; return their results."""
    gate, hold = os.pipe()
    children = []
    for who, top in enumerate(pair.sides()):
        child = os.fork()
        if child == 0:
            status = 255
            try:
                os.close(hold)
                os.read(gate, 1)
                status = job(top, who)
            finally:
                os._exit(status)
        children.append(child)
    os.close(gate)
    os.close(hold)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_each_name_is_created_once(pair: Pair) -> None:
    def job(top: Path, who: int) -> int:
        won = 0
        for index in range(100):
            outcome = attempt(os.open, top / f"n{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            if outcome.error is None:
                os.write(outcome.result, b"%d" % who)
                os.close(outcome.result)
                won += 1
            elif outcome.error != "EEXIST":
                return 255
        return won

    won = at_once(pair, job)
    assert sum(won) == 100
    assert sorted(os.listdir(pair.ours)) == sorted(f"n{i}" for i in range(100))
    owners = [int((pair.theirs / f"n{i}").read_bytes()) for i in range(100)]
    assert [owners.count(who) for who in range(4)] == won


def test_each_directory_and_link_is_made_once(pair: Pair) -> None:
    (pair.ours / "file").write_bytes(b"x")

    def job(top: Path, _: int) -> int:
        won = 0
        for index in range(60):
            won += attempt(os.mkdir, top / f"d{index}").error is None
            won += attempt(os.link, top / "file", top / f"l{index}").error is None
        return won

    assert sum(at_once(pair, job)) == 120
    assert os.stat(pair.theirs / "file").st_nlink == 61
    assert os.stat(pair.ours / "file").st_nlink == 61
    assert os.stat(pair.ours).st_nlink == os.stat(pair.theirs).st_nlink == 62


def test_each_file_is_removed_once(pair: Pair) -> None:
    for index in range(100):
        (pair.ours / f"n{index}").write_bytes(b"x" * 5000)

    def job(top: Path, _: int) -> int:
        outcomes = [attempt(os.unlink, top / f"n{i}").error for i in range(100)]
        return outcomes.count(None) if set(outcomes) <= {None, "ENOENT"} else 255

    assert sum(at_once(pair, job)) == 100
    assert os.listdir(pair.ours) == os.listdir(pair.theirs) == []


def test_one_file_is_renamed_around(pair: Pair) -> None:
    """Many renames of few names: nothing is lost, nothing is doubled."""
    for index in range(6):
        (pair.ours / f"n{index}").write_bytes(b"%d" % index)
    for name in ("x", "y"):
        (pair.ours / name).mkdir()

    def job(top: Path, who: int) -> int:
        import random

        rng = random.Random(who)
        places = [top, top / "x", top / "y"]
        for _ in range(150):
            old = rng.choice(places) / f"n{rng.randrange(6)}"
            new = rng.choice(places) / f"n{rng.randrange(6)}"
            if attempt(os.link, old, new).error is None:
                attempt(os.unlink, old)
            attempt(os.rename, old, rng.choice(places) / f"m{rng.randrange(3)}{who}")
            attempt(os.rename, rng.choice(places) / f"m{rng.randrange(3)}{who}", old)
        return 0

    assert at_once(pair, job) == [0] * 4
    time.sleep(0.2)
    assert_same(snapshot(pair.ours), snapshot(pair.theirs))


def test_renames_over_one_name(pair: Pair) -> None:
    """Both replace one name all the time: it is always there, with one of the contents."""
    (pair.ours / "name").write_bytes(b"start")

    def job(top: Path, who: int) -> int:
        for index in range(60):
            own = top / f"own{who}"
            own.write_bytes(b"%d %d" % (who, index))
            os.rename(own, top / "name")
        return 0

    assert at_once(pair, job) == [0] * 4
    assert os.listdir(pair.ours) == os.listdir(pair.theirs) == ["name"]
    content = (pair.ours / "name").read_bytes()
    assert re.fullmatch(rb"[0-3] 59", content)
    assert (pair.theirs / "name").read_bytes() == content


def test_directories_move_across_each_other(pair: Pair) -> None:
    for name in ("a", "b", "a/sub", "b/sub2"):
        (pair.ours / name).mkdir()
        (pair.ours / name / "file").write_bytes(name.encode())

    def job(top: Path, who: int) -> int:
        for _ in range(60):
            one, other = ("a", "b") if who % 2 else ("b", "a")
            for sub in ("sub", "sub2"):
                attempt(os.rename, top / one / sub, top / other / sub)
        return 0

    at_once(pair, job)
    for top in (pair.ours, pair.theirs):
        found = sorted(p.name for n in ("a", "b") for p in (top / n).iterdir() if p.is_dir())
        assert found == ["sub", "sub2"]
        assert [os.stat(top / n).st_nlink for n in ("a", "b")] == [
            2 + sum(p.is_dir() for p in (top / n).iterdir()) for n in ("a", "b")
        ]


LOCKS = {
    "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_EX),
    "posix": lambda fd: record_lock(fd, fcntl.F_WRLCK, 0, 0, wait=True),
    "ofd": lambda fd: record_lock(fd, fcntl.F_WRLCK, 0, 0, wait=True, ofd=True),
}


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_of_one_holds_for_the_other(kind: str, pair: Pair) -> None:
    """A number is added to by both, read and written under the lock through new opens."""
    (pair.ours / "lock").touch()
    (pair.ours / "number").write_bytes(b"0")

    def job(top: Path, _: int) -> int:
        for _ in range(25):
            fd = os.open(top / "lock", os.O_RDWR)
            LOCKS[kind](fd)
            number = int((top / "number").read_bytes())
            (top / "number").write_bytes(b"%d" % (number + 1))
            os.close(fd)
        return 0

    assert at_once(pair, job) == [0] * 4
    assert (pair.ours / "number").read_bytes() == b"100"
    assert (pair.theirs / "number").read_bytes() == b"100"


def test_appends_under_a_lock_are_all_there(pair: Pair) -> None:
    """O_APPEND of two clients is only safe under a lock; with one nothing is lost."""
    (pair.ours / "log").touch()

    def job(top: Path, who: int) -> int:
        for index in range(30):
            fd = os.open(top / "log", os.O_WRONLY | os.O_APPEND)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.close(os.open(top / "log", os.O_RDONLY))
            again = os.open(top / "log", os.O_WRONLY | os.O_APPEND)
            os.write(again, b"%d %02d\n" % (who, index))
            os.close(again)
            os.close(fd)
        return 0

    assert at_once(pair, job) == [0] * 4
    lines = (pair.ours / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %02d" % (w, i) for w in range(4) for i in range(30))
    assert (pair.theirs / "log").read_bytes().splitlines() == lines


def test_what_one_closed_the_other_opens(pair: Pair) -> None:
    sides = (pair.ours, pair.theirs)
    for index in range(40):
        content = os.urandom(1 + index * 4099)
        writer, reader = sides[index % 2], sides[1 - index % 2]
        (writer / "f").write_bytes(content)
        assert (reader / "f").read_bytes() == content
        with open(reader / "f", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"!", len(content) // 2)
            os.ftruncate(file.fileno(), len(content) + 10)
        expected = bytearray(content + bytes(10))
        expected[len(content) // 2] = ord("!")
        assert (writer / "f").read_bytes() == expected


def test_writes_of_different_parts_add_up(pair: Pair) -> None:
    """Each process writes its own stripes of one file; every stripe is there."""
    size = 40_000
    (pair.ours / "f").touch()

    def job(top: Path, who: int) -> int:
        fd = os.open(top / "f", os.O_RDWR)
        for stripe in range(who, 40, 4):
            os.pwrite(fd, bytes([65 + stripe]) * size, stripe * size)
            if stripe % 3 == 0:
                os.fsync(fd)
        os.close(fd)
        return 0

    assert at_once(pair, job) == [0] * 4
    expected = b"".join(bytes([65 + s]) * size for s in range(40))
    assert (pair.ours / "f").read_bytes() == expected
    assert (pair.theirs / "f").read_bytes() == expected


def test_a_listing_while_the_other_changes_it(pair: Pair) -> None:
    for index in range(600):
        os.symlink("x", pair.ours / f"stays{index}")

    def job(top: Path, who: int) -> int:
        if who == 3:
            for index in range(150):
                os.symlink("x", top / f"comes{index}")
                if index % 2:
                    os.unlink(top / f"comes{index}")
            return 0
        for _ in range(10):
            names = [n for n in os.listdir(top) if n.startswith("stays")]
            if len(names) != 600 or len(set(names)) != 600:
                return 1
        return 0

    results = at_once(pair, job)
    assert (results[0], results[2], results[3]) == (0, 0, 0)
    assert_same(snapshot(pair.ours), snapshot(pair.theirs))


def test_a_client_that_dies_leaves_no_locks(
    new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    """Stale sessions of either are cleaned by the other: locks and unlinked open files."""
    for dies, lives in ((jfsd, juicefs), (juicefs, jfsd)):
        volume = new_volume("file", by=jfsd)
        one = volume.mount("--heartbeat", "1s", client=lives)
        two = volume.mount("--heartbeat", "1s", client=dies)
        (one.path / "f").write_bytes(b"x")
        (one.path / "gone").write_bytes(b"x" * 100_000)
        time.sleep(1.2)
        fd = os.open(two.path / "f", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        record_lock(fd, fcntl.F_WRLCK)
        unlinked = os.open(two.path / "gone", os.O_RDWR)
        os.unlink(two.path / "gone")
        assert os.pread(unlinked, 3, 0) == b"xxx"
        here = os.open(one.path / "f", os.O_RDWR)
        assert attempt(fcntl.flock, here, fcntl.LOCK_EX | fcntl.LOCK_NB).error == "EAGAIN"
        two.kill()
        for dead in (fd, unlinked):
            with contextlib.suppress(OSError):
                os.close(dead)
        end = time.monotonic() + 40
        while attempt(fcntl.flock, here, fcntl.LOCK_EX | fcntl.LOCK_NB).error:
            assert time.monotonic() < end, "the dead client's lock is still there"
            time.sleep(0.2)
        record_lock(here, fcntl.F_WRLCK)
        os.close(here)
        with volume.database() as client:
            _until(lambda: client.zcard("allSessions") == 1)
            assert client.keys("locked*") == []
            assert client.keys("session[0-9]*") == []
        one.unmount()
        volume.check()


def _until(what: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("who", ["jfsd", "juicefs"])
def test_compaction_while_the_other_reads_and_writes(who: str, pair: Pair) -> None:
    """One writes small pieces, which both compact, while the other reads them."""
    writer, reader = (pair.ours, pair.theirs) if who == "jfsd" else (pair.theirs, pair.ours)
    fd = os.open(writer / "f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, bytes(400_000), 0)
    os.fsync(fd)
    for index in range(300):
        os.pwrite(fd, b"%06d" % index, index * 1000)
        os.fsync(fd)
        if index % 10 == 0:
            content = (reader / "f").read_bytes()
            assert content[index * 1000 : index * 1000 + 6] == b"%06d" % index
            assert content[:6] == b"000000"
    os.close(fd)
    assert (reader / "f").read_bytes() == (writer / "f").read_bytes()


def test_redis_scripts_lost_while_mounted(pair: Pair) -> None:
    """The server forgets its scripts (a failover, SCRIPT FLUSH): the next call loads them."""
    with pair.volume.database() as client:
        for index in range(5):
            client.script_flush()
            (pair.ours / f"d{index}").mkdir()
            (pair.theirs / f"e{index}").mkdir()
            os.rename(pair.ours / f"d{index}", pair.ours / f"r{index}")
    assert len(os.listdir(pair.theirs)) == 10
