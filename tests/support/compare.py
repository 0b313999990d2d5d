"""The same calls on the mount and on the machine's own file system, outcome by outcome."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from support.posix import Outcome, as_user, attempt
from support.tree import assert_same, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Lab:
    """A directory in which a case works, and the record of what its calls did."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record: list[tuple[str, Outcome]] = []

    def path(self, name: str | bytes) -> bytes:
        """Return the absolute path of a name of this lab."""
        return os.path.join(os.fsencode(self.root), os.fsencode(name))

    def do(
        self, call: Callable[..., object], *arguments: object, note: str = "", **named: object
    ) -> object:
        """Make a call, record how it ended, and return its result (None after an error).

        Arguments of type str are names in the lab; bytes are passed as they are.
        """
        real = [self.path(a) if isinstance(a, str) else a for a in arguments]
        outcome = attempt(call, *real, **named)
        self.note(note or f"{call.__name__}{arguments}", outcome)
        return outcome.result

    def do_as(self, uid: int, call: Callable[..., object], *arguments: object) -> object:
        """Like `do`, as another user, whose gid is its uid."""
        real = [self.path(a) if isinstance(a, str) else a for a in arguments]
        outcome = as_user(uid, uid, lambda: call(*real))
        self.note(f"uid {uid}: {call.__name__}{arguments}", outcome)
        return outcome.result

    def note(self, what: str, outcome: object) -> None:
        """Record a value that must be the same on both sides."""
        if isinstance(outcome, Outcome) and isinstance(outcome.result, os.stat_result):
            outcome = Outcome(None, facts(outcome.result))
        self.record.append((what, outcome))

    def make(self, name: str, content: bytes = b"", mode: int = 0o644) -> bytes:
        """Create a file; return its path."""
        path = self.path(name)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode)
        os.write(fd, content)
        os.close(fd)
        os.chmod(path, mode)
        return path

    def open(self, name: str, flags: int, mode: int = 0o644) -> int:
        """Open a file that must open."""
        return os.open(self.path(name), flags, mode)

    def try_open(self, name: str, flags: int, mode: int = 0o644) -> None:
        """Open and close a file, recording only whether that worked."""
        outcome = attempt(os.open, self.path(name), flags, mode)
        if outcome.error is None:
            os.close(outcome.result)
            outcome = Outcome(None)
        self.note(f"open({name}, {flags:#o}, {mode:o})", outcome)


def facts(status: os.stat_result) -> tuple[object, ...]:
    """Return what of a stat result may not depend on the file system."""
    kind = stat.S_IFMT(status.st_mode)
    size = 0 if kind == stat.S_IFDIR else status.st_size
    rdev = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size, rdev)


def compare(case: Callable[[Lab], None], work: Path, ref: Path) -> None:
    """Run a case on both sides; records and trees must be equal.

    The case is run on the reference first: it must be meaningful there.
    """
    theirs, ours = Lab(ref), Lab(work)
    old = os.umask(0o022)
    try:
        case(theirs)
        case(ours)
    finally:
        os.umask(old)
    for index, (expected, got) in enumerate(zip(theirs.record, ours.record, strict=True)):
        assert got == expected, f"step {index}: expected {expected}, got {got}"
    assert theirs.record, "the case recorded nothing"
    assert_same(snapshot(work), snapshot(ref), "the trees differ after the case")
