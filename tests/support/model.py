"""Random operations on a tree, the same ones on a mount and on a reference directory."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from support.compare import facts
from support.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, attempt, renameat2
from support.tree import assert_same, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = st.sampled_from(["a", "b", "c", "d"])


class TreeMachine(RuleBasedStateMachine):
    """The same name operations on the mount and on the reference directory."""

    work: Path
    ref: Path
    count = 0

    directories = Bundle("directories")

    def __init__(self) -> None:
        super().__init__()
        type(self).count += 1
        self.tops = [side / f"run{self.count}" for side in (self.work, self.ref)]
        for top in self.tops:
            top.mkdir()

    def both(self, call: Callable[..., object], *arguments: object) -> None:
        outcomes = []
        for top in self.tops:
            real = [f"{top}{a.removeprefix('@')}" if _is_name(a) else a for a in arguments]
            outcomes.append(attempt(call, *real))
        ours, theirs = outcomes
        assert ours == theirs, f"{call.__name__}{arguments}: got {ours}, expected {theirs}"

    @rule(target=directories)
    def top(self) -> str:
        return "@"

    @rule(target=directories, parent=directories, name=NAMES)
    def mkdir(self, parent: str, name: str) -> str:
        path = f"{parent}/{name}"
        self.both(os.mkdir, path)
        return path

    @rule(parent=directories, name=NAMES, content=st.binary(max_size=20))
    def write(self, parent: str, name: str, content: bytes) -> None:
        self.both(_write, f"{parent}/{name}", content)

    @rule(parent=directories, name=NAMES)
    def symlink(self, parent: str, name: str) -> None:
        self.both(_symlink, f"{parent}/{name}")

    @rule(a=directories, b=directories, x=NAMES, y=NAMES)
    def link(self, a: str, b: str, x: str, y: str) -> None:
        self.both(_link, f"{a}/{x}", f"{b}/{y}")

    @rule(a=directories, b=directories, x=NAMES, y=NAMES)
    def rename(self, a: str, b: str, x: str, y: str) -> None:
        self.both(os.rename, f"{a}/{x}", f"{b}/{y}")

    @rule(
        a=directories,
        b=directories,
        x=NAMES,
        y=NAMES,
        flags=st.sampled_from([RENAME_EXCHANGE, RENAME_NOREPLACE]),
    )
    def rename_with(self, a: str, b: str, x: str, y: str, flags: int) -> None:
        self.both(renameat2, f"{a}/{x}", f"{b}/{y}", flags)

    @rule(parent=directories, name=NAMES)
    def unlink(self, parent: str, name: str) -> None:
        self.both(os.unlink, f"{parent}/{name}")

    @rule(path=consumes(directories))
    def rmdir(self, path: str) -> None:
        if path != "@":
            self.both(os.rmdir, path)

    @rule(parent=directories, name=NAMES, mode=st.integers(0, 0o7777))
    def chmod(self, parent: str, name: str, mode: int) -> None:
        self.both(os.chmod, f"{parent}/{name}", mode)

    @rule(parent=directories, name=NAMES)
    def stat(self, parent: str, name: str) -> None:
        self.both(lambda p: facts(os.lstat(p)), f"{parent}/{name}")

    @rule(parent=directories)
    def listdir(self, parent: str) -> None:
        self.both(lambda p: sorted(os.listdir(p)), parent)

    @invariant()
    def counts(self) -> None:
        for ours, theirs in [[os.stat(t).st_nlink for t in self.tops]]:
            assert ours == theirs

    def teardown(self) -> None:
        assert_same(snapshot(self.tops[0]), snapshot(self.tops[1]))


def _is_name(argument: object) -> bool:
    return isinstance(argument, str) and argument.startswith("@")


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
    os.write(fd, content)
    os.close(fd)


def _symlink(path: str) -> None:
    os.symlink("nowhere", path)


def _link(old: str, new: str) -> None:
    os.link(old, new, follow_symlinks=False)


class HandleMachine(TreeMachine):
    """Also keeps files open, with and without a name, and works on them through descriptors."""

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.open_pairs: list[tuple[int, int]] = []

    def on_both(
        self, pair: tuple[int, int] | None, call: Callable[[int], object], what: str
    ) -> None:
        if pair is None:
            return
        ours, theirs = (attempt(call, fd) for fd in pair)
        assert ours == theirs, f"{what}: got {ours}, expected {theirs}"

    @rule(
        target=handles,
        parent=TreeMachine.directories,
        name=NAMES,
        flags=st.sampled_from([0, os.O_APPEND, os.O_TRUNC, os.O_EXCL]),
    )
    def open(self, parent: str, name: str, flags: int) -> tuple[int, int] | None:
        flags |= os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
        path = f"{parent}/{name}".removeprefix("@")
        outcomes = [attempt(os.open, f"{top}{path}", flags) for top in self.tops]
        errors = [outcome.error for outcome in outcomes]
        assert errors[0] == errors[1], f"open {path}: got {errors[0]}, expected {errors[1]}"
        if errors[0]:
            return None
        pair = outcomes[0].result, outcomes[1].result
        self.open_pairs.append(pair)
        return pair

    @rule(pair=handles, at=st.integers(0, 200_000), data=st.binary(max_size=50))
    def pwrite(self, pair: tuple[int, int] | None, at: int, data: bytes) -> None:
        self.on_both(pair, lambda fd: os.pwrite(fd, data * 100, at), f"pwrite at {at}")

    @rule(pair=handles, seed=st.integers(0, 1 << 30), count=st.integers(2, 40))
    def scatter(self, pair: tuple[int, int] | None, seed: int, count: int) -> None:
        """Small writes at many places, which overlap now and then."""

        def write_all(fd: int) -> list[int]:
            rng = random.Random(seed)
            pieces = [
                (rng.randbytes(rng.randint(1, 300)), rng.randrange(3000)) for _ in range(count)
            ]
            return [os.pwrite(fd, data, at) for data, at in pieces]

        self.on_both(pair, write_all, f"{count} writes")

    @rule(pair=handles, data=st.binary(max_size=50))
    def append(self, pair: tuple[int, int] | None, data: bytes) -> None:
        self.on_both(pair, lambda fd: os.write(fd, data), "write")

    @rule(pair=handles, at=st.integers(0, 200_000), size=st.integers(1, 70_000))
    def pread(self, pair: tuple[int, int] | None, at: int, size: int) -> None:
        self.on_both(pair, lambda fd: os.pread(fd, size, at), f"pread {size} at {at}")

    @rule(pair=handles, size=st.integers(0, 200_000))
    def ftruncate(self, pair: tuple[int, int] | None, size: int) -> None:
        self.on_both(pair, lambda fd: os.ftruncate(fd, size), f"ftruncate {size}")

    @rule(pair=handles)
    def fsync(self, pair: tuple[int, int] | None) -> None:
        self.on_both(pair, os.fsync, "fsync")

    @rule(pair=handles)
    def fstat(self, pair: tuple[int, int] | None) -> None:
        self.on_both(pair, lambda fd: facts(os.fstat(fd)), "fstat")

    @rule(pair=consumes(handles))
    def close(self, pair: tuple[int, int] | None) -> None:
        self.on_both(pair, os.close, "close")
        if pair is not None:
            self.open_pairs.remove(pair)

    def teardown(self) -> None:
        for pair in self.open_pairs:
            self.on_both(pair, lambda fd: os.pread(fd, 1 << 20, 0), "the whole file")
            for fd in pair:
                os.close(fd)
        super().teardown()
