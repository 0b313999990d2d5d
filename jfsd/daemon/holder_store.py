"""The descriptors that a holder keeps: systemd's file descriptor store for one mount."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from jfsd.daemon.holder_kernel import same_file

FUSE = "fuse"
"""The name of the descriptor that the mount lives by."""

MAX_KEPT = 64
"""A server that leaks descriptors into the store must not exhaust the holder's."""


class Kept(NamedTuple):
    """A descriptor under its name; names are not unique."""

    name: str
    fd: int


class Store:
    """Descriptors by name, in the order of their coming; it owns them."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []

    def __repr__(self) -> str:
        return f"<Store {' '.join(kept.name for kept in self._kept) or 'empty'}>"

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: object) -> bool:
        return any(kept.name == name for kept in self._kept)

    def all(self) -> list[Kept]:
        """Return what is kept; the store goes on owning it."""
        return list(self._kept)

    def counts(self) -> dict[str, int]:
        """Return how many there are of each name."""
        counts: dict[str, int] = {}
        for kept in self._kept:
            counts[kept.name] = counts.get(kept.name, 0) + 1
        return counts

    def put(self, name: str, fds: Sequence[int]) -> int:
        """Take the descriptors over; duplicates of what is kept, and too many, are closed.

        Returns:
            How many were refused because the store is full.
        """
        refused = 0
        for fd in fds:
            if any(same_file(fd, kept.fd) for kept in self._kept):
                os.close(fd)
            elif len(self._kept) >= MAX_KEPT:
                os.close(fd)
                refused += 1
            else:
                self._kept.append(Kept(name, fd))
        return refused

    def remove(self, name: str) -> int:
        """Close all of this name; return how many there were."""
        gone = [kept for kept in self._kept if kept.name == name]
        self._kept = [kept for kept in self._kept if kept.name != name]
        for kept in gone:
            os.close(kept.fd)
        return len(gone)

    def close(self) -> None:
        """Close everything; if no process has a duplicate, the mount is dead now."""
        for name in self.counts():
            self.remove(name)
