"""What the file system needs from the layers below, as it uses it.

`jfsd.meta.client.Meta`, `jfsd.chunk.writer.Writer` and `jfsd.chunk.reader.Reader`
have these methods; tests may put something smaller in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from jfsd.record import Record
from jfsd.types import Attr, Ino


class Opened(NamedTuple):
    """Answer to open and create: the handle, and what the kernel may do with its pages."""

    fh: int
    keep_cache: bool = False
    direct_io: bool = False


class SetAttr(NamedTuple):
    """Attributes to change; None keeps what is there. Times in nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    drop_privileges: bool = False
    """Clear setuid and setgid bits, too, as a change of the contents does."""


class StatFs(NamedTuple):
    """Capacity of the volume as df(1) shows it."""

    total_bytes: int
    avail_bytes: int
    inodes: int
    free_inodes: int


class PosixLock(NamedTuple):
    """A byte-range lock; `end` is inclusive, `type` one of fcntl's F_RDLCK, F_WRLCK, F_UNLCK."""

    type: int
    start: int
    end: int
    pid: int


class Options(Record):
    """What an administrator may choose about the file system's behaviour.

    Cache times in seconds: how long the kernel may answer without asking again.
    """

    attr_timeout_s: float = 1.0
    entry_timeout_s: float = 1.0
    dir_entry_timeout_s: float = 1.0
    open_cache_s: float = 0.0
    read_only: bool = False
    xattrs: bool = False
    acls: bool = False
    root: Ino = 1
    """Inode shown as the root of the mount (`--subdir`)."""


@dataclass(slots=True)
class Seen:
    """When an inode's contents were last known to be as in the kernel's page cache."""

    mtime_ns: int
    length: int


def dirty_attr(attr: Attr, length: int, mtime_ns: int) -> Attr:
    """Return `attr` as it will be once bytes written up to `length` are committed."""
    return replace(
        attr,
        length=max(attr.length, length),
        mtime_ns=max(attr.mtime_ns, mtime_ns),
        ctime_ns=max(attr.ctime_ns, mtime_ns),
    )
