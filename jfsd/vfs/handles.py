"""Open files and directories of this mount: handle numbers and what they stand for.

A handle number is given out once in the life of a mount, so that no handle ever
answers for another file. The table is the only home of "which inodes are open
here", which decides whether an unlinked file lives on until its last close
(format.md §9.3, §10.4).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, KeysView
from dataclasses import dataclass, field

from jfsd.types import Attr, Ino

_ACCESS_MODE = os.O_ACCMODE


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
    posix_owners: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class FileHandle:
    """An open file. `flags` are those of open(2) as the kernel passed them."""

    fh: int
    inode: OpenInode
    flags: int
    wrote: bool = False
    posix_owners: set[int] = field(default_factory=set)

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


class Handles:
    """All open file handles, by number and by inode."""

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._files: dict[int, FileHandle] = {}
        self._inodes: dict[Ino, OpenInode] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[FileHandle]:
        return iter(self._files.values())

    def open(self, ino: Ino, attr: Attr, flags: int, now_s: float) -> FileHandle:
        """Return a new handle on `ino`, whose attributes are `attr` as of `now_s`."""
        inode = self._inodes.get(ino)
        if inode is None:
            inode = self._inodes[ino] = OpenInode(ino, attr, now_s)
        else:
            inode.attr, inode.seen_s = attr, now_s
        inode.handles += 1
        handle = self._files[self._next] = FileHandle(self._next, inode, flags)
        self._next += 1
        return handle

    def next_fh(self) -> int:
        """Return a number for a handle of another kind, never given out again."""
        self._next += 1
        return self._next - 1

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
        inode = handle.inode
        inode.handles -= 1
        if inode.handles:
            return None
        del self._inodes[inode.ino]
        return inode

    def open_inos(self) -> KeysView[Ino]:
        """Return the inodes that are open here, as a view that follows."""
        return self._inodes.keys()
