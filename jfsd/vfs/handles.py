"""Open files and directories of this mount: handle numbers and what they stand for.

A handle number is given out once in the life of a mount, so that no handle ever
answers for another file. The table is the only home of "which inodes are open
here", which decides whether an unlinked file lives on until its last close
(format.md §9.3, §10.4).
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass
from typing import Protocol

from jfsd.types import Attr, Ino

_ACCESS_MODE = os.O_ACCMODE

NOBODY: Set[int] = frozenset()
"""Shared by all that have no owner of locks: hundreds of thousands of files may be open."""


@dataclass(slots=True, eq=False)
class OpenInode:
    """One inode with at least one open file handle here.

    `attr` is what the metadata said last, at `seen_s` on the monotonic clock; bytes
    that are written and not yet committed are known to the writer, not to this.
    """

    ino: Ino
    attr: Attr
    seen_s: float
    handles: int = 0
    sustained: bool = False
    posix_owners: Set[int] = NOBODY

    def disown(self, owner: int) -> bool:
        """Forget that `owner` may hold byte-range locks; return whether it might have."""
        if owner not in self.posix_owners:
            return False
        self.posix_owners = self.posix_owners - {owner} or NOBODY
        return True


@dataclass(slots=True, eq=False)
class FileHandle:
    """An open file. `flags` are those of open(2) as the kernel passed them."""

    fh: int
    inode: OpenInode
    flags: int
    wrote: bool = False
    posix_owners: Set[int] = NOBODY

    def own(self, owner: int) -> None:
        """Note that `owner` may hold byte-range locks, through this handle."""
        for holder in (self, self.inode):
            if owner not in holder.posix_owners:
                holder.posix_owners = holder.posix_owners | {owner}

    @property
    def ino(self) -> Ino:
        """Inode of the file."""
        return self.inode.ino

    @property
    def readable(self) -> bool:
        """True unless opened O_WRONLY."""
        return self.flags & _ACCESS_MODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        """True unless opened O_RDONLY."""
        return self.flags & _ACCESS_MODE != os.O_RDONLY


class HandleJournal(Protocol):
    """Is told of every change of handles, before it is answered; must not wait."""

    def opened(self, fh: int, ino: Ino, flags: int, op: int) -> None:
        """Request `op` opened a handle."""

    def closed(self, fh: int) -> None:
        """A handle is closed."""

    def locking(self, fh: int, owner: int) -> None:
        """An owner is about to hold byte-range locks through a handle."""

    def unlocked(self, fh: int, owner: int) -> None:
        """An owner holds none any more."""


class NoHandleJournal:
    """Remembers nothing."""

    def opened(self, fh: int, ino: Ino, flags: int, op: int) -> None:
        """Do nothing."""

    def closed(self, fh: int) -> None:
        """Do nothing."""

    def locking(self, fh: int, owner: int) -> None:
        """Do nothing."""

    def unlocked(self, fh: int, owner: int) -> None:
        """Do nothing."""


class _OpenInos(Collection[Ino]):
    """Inodes that are open or are being opened, at any moment."""

    def __init__(self, inodes: Collection[Ino], opening: Collection[Ino]) -> None:
        self._open = inodes
        self._opening = opening

    def __contains__(self, ino: object) -> bool:
        return ino in self._open or ino in self._opening

    def __iter__(self) -> Iterator[Ino]:
        yield from self._open
        yield from (ino for ino in self._opening if ino not in self._open)

    def __len__(self) -> int:
        return len(self._open) + sum(ino not in self._open for ino in self._opening)


class Handles:
    """All open file handles, by number, by inode, and by the request that opened them.

    A request that comes again after a restart finds the handle that it opened.
    """

    def __init__(self, journal: HandleJournal | None = None) -> None:
        self.journal: HandleJournal = journal or NoHandleJournal()
        self._next = 1
        self._files: dict[int, FileHandle] = {}
        self._inodes: dict[Ino, OpenInode] = {}
        self._opening: Counter[Ino] = Counter()
        self._orphans: set[Ino] = set()
        """Inodes whose last name went while they were being opened."""
        self._restored: dict[int, FileHandle] = {}
        """Handles of earlier processes by request: only these can be asked for again."""

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[FileHandle]:
        return iter(self._files.values())

    def open(self, ino: Ino, attr: Attr, flags: int, now_s: float, op: int = 0) -> FileHandle:
        """Return a handle on `ino`, whose attributes are `attr` as of `now_s`.

        It is new, unless request `op` opened one in an earlier process already.
        """
        known = self._restored.get(op) if op else None
        if known is not None and known.ino == ino:
            return known
        handle = self._add(self._next, ino, attr, flags, now_s)
        self._next += 1
        self.journal.opened(handle.fh, ino, flags, op)
        return handle

    def restore(
        self, fh: int, ino: Ino, attr: Attr, flags: int, op: int, now_s: float
    ) -> FileHandle:
        """Take a handle over from an earlier process; its number is never given out again."""
        self._next = max(self._next, fh + 1)
        handle = self._restored[op] = self._add(fh, ino, attr, flags, now_s)
        handle.wrote = handle.writable
        return handle

    def _add(self, fh: int, ino: Ino, attr: Attr, flags: int, now_s: float) -> FileHandle:
        inode = self._inodes.get(ino)
        if inode is None:
            inode = self._inodes[ino] = OpenInode(ino, attr, now_s)
            inode.sustained = ino in self._orphans
            self._orphans.discard(ino)
        else:
            inode.attr, inode.seen_s = attr, now_s
        inode.handles += 1
        handle = self._files[fh] = FileHandle(fh, inode, flags)
        return handle

    def get(self, fh: int) -> FileHandle:
        """Return the handle.

        Raises:
            OSError: EBADF if there is none of this number.
        """
        try:
            return self._files[fh]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def find(self, ino: Ino) -> OpenInode | None:
        """Return the open inode, or None if no handle is open on it."""
        return self._inodes.get(ino)

    def close(self, fh: int) -> OpenInode | None:
        """Forget the handle; return its inode if that was the last one on it."""
        handle = self._files.pop(fh, None)
        if handle is None:
            return None
        self.journal.closed(fh)
        inode = handle.inode
        inode.handles -= 1
        if inode.handles:
            return None
        del self._inodes[inode.ino]
        return inode

    def open_inos(self) -> Collection[Ino]:
        """Return the inodes that are open here or are being opened, as a view that follows."""
        return _OpenInos(self._inodes, self._opening)

    def begin_opening(self, ino: Ino) -> None:
        """Count `ino` as open from before its record is read: a removal must know of it."""
        self._opening[ino] += 1

    def end_opening(self, ino: Ino) -> bool:
        """Undo `begin_opening`; return whether `ino` is an orphan that nobody opened."""
        self._opening[ino] -= 1
        if self._opening[ino]:
            return False
        del self._opening[ino]
        orphan = ino in self._orphans
        self._orphans.discard(ino)
        return orphan

    def sustain(self, ino: Ino) -> bool:
        """Note that `ino` lost its last name; return whether it is open, or being opened."""
        inode = self._inodes.get(ino)
        if inode is not None:
            inode.sustained = True
        elif ino in self._opening:
            self._orphans.add(ino)
        return inode is not None or ino in self._opening
