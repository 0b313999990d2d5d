"""The small words that every layer uses: numbers of the format and records of a node.

Nothing here does I/O. Numbers and value conventions are those of the volume
format (format.md §1, §6).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

ReadableBuffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are read and not kept."""

Ino: TypeAlias = int
"""Inode number, 1 … 2^63-1. Those of the trash lie above 2^53."""

ROOT_INO: Ino = 1
TRASH_INO: Ino = 0x7FFFFFFF10000000
"""Root of the trash; an inode is in the trash's own hierarchy iff it is >= this."""

CHUNK_SIZE = 1 << 26
"""Bytes of a file that one chunk covers (64 MiB)."""

MAX_FILE_BYTES = (CHUNK_SIZE << 31) - 1
"""Largest length of a file: 2^57-1 bytes; one more is EFBIG (format.md §20)."""

NOW_NS = -(1 << 63)
"""A time to be set that means the moment of the change itself (UTIME_NOW, utimensat(2))."""

MAX_NAME_BYTES = 255
MAX_SYMLINK_BYTES = 4095
MAX_XATTR_VALUE_BYTES = 65536


class NodeType(IntEnum):
    """Type of a node as stored in attribute records and directory entries (format.md §1)."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    BLOCKDEV = 5
    CHARDEV = 6
    SOCKET = 7


FLAG_IMMUTABLE = 0x01
FLAG_APPEND = 0x02
FLAG_SKIP_TRASH = 0x20


@dataclass(slots=True)
class Attr:
    """Attributes of a node, decoded from its record (format.md §6.1).

    Times are nanoseconds since the epoch. `parent` is 0 for a file that has, or
    had, more than one link. `mode` holds the twelve permission bits only.
    """

    type: NodeType
    mode: int
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    nlink: int = 1
    length: int = 0
    rdev: int = 0
    parent: Ino = 0
    flags: int = 0
    access_acl: int = 0
    default_acl: int = 0
    tier: int = 0


class Entry(NamedTuple):
    """One name in a directory. `attr` is None when the node's record is missing."""

    name: bytes
    ino: Ino
    type: NodeType
    attr: Attr | None


class Slice(NamedTuple):
    """One record of a chunk's list (format.md §6.4); `id` 0 is a hole."""

    pos: int
    id: int
    size: int
    off: int
    len: int


class SliceCommit(NamedTuple):
    """Result of a slice commit: records now in the chunk's list, and the file's attributes."""

    records: int
    attr: Attr


class PackCommit(NamedTuple):
    """Result of a commit of many records: how long the lists are now, and what was refused."""

    records: dict[int, int]
    """Records now in the lists that became longer, by chunk index."""
    attr: Attr
    refused: frozenset[int] = frozenset()
    """Which of the records were not appended: their offsets in the slice."""
    error: int = 0
    """Why: errno of the first of them."""


class Caller(NamedTuple):
    """Who asks, and under which identity the request may be repeated.

    `op` is the request's unique number without bit 63 (handover: FUSE_NOTIFY_RESEND);
    0 marks work of the daemon itself, which is never replayed.
    """

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0
    op: int = 0


def a4k(length: int) -> int:
    """Return the space that `length` bytes are charged for (format.md §0, A4K)."""
    return 4096 if length == 0 else (length + 4095) & ~4095
