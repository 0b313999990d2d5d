"""Directory listings whose cookies depend on nothing but the name.

The entries of a directory are shown in the order of a hash of their names, and the
cookie of an entry is that hash. A listing that stops and goes on, in this process
or in the next one, in a directory that changes meanwhile, therefore shows each
unchanging entry exactly once (promise 6). Two names of one cookie (one chance in 10^7
for a million entries) are told apart by giving the later one the next free number,
which is stable while both stay.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from jfsd.types import Attr, Ino, NodeType
from jfsd.vfs._listing import Snapshot, cookie_of

__all__ = [
    "COOKIE_DOT",
    "COOKIE_DOTDOT",
    "Node",
    "Page",
    "Snapshot",
    "blank_attr",
    "cookie_of",
    "place_after",
]

COOKIE_DOT = 1
COOKIE_DOTDOT = 2


class Node(NamedTuple):
    """A node as the kernel knows it: its number and its attributes."""

    ino: Ino
    attr: Attr


class Page(NamedTuple):
    """Consecutive entries of a directory, by column; the next call goes on after a cookie.

    `types` holds a `NodeType` a byte. `records` are attribute records (format.md §6.1),
    None where one is missing; the column is None if nobody asked for attributes.
    """

    cookies: list[int]
    names: list[bytes]
    inos: list[Ino]
    types: bytes
    records: list[bytes | None] | None


NO_ENTRIES = Page([], [], [], b"", None)


def place_after(page: Page, cookie: int) -> int:
    """Return the index of the first entry after `cookie`."""
    return bisect_right(page.cookies, cookie)


def blank_attr(type_: NodeType) -> Attr:
    """Return the attributes shown for an entry whose record is missing (format.md §6.1)."""
    return Attr(type=type_, mode=0, nlink=0)
