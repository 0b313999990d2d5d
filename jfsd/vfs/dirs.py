"""Directory listings whose cookies depend on nothing but the name.

The entries of a directory are shown in the order of a hash of their names, and the
cookie of an entry is that hash. A listing that stops and goes on, in this process
or in the next one, in a directory that changes meanwhile, therefore shows each
unchanging entry exactly once (promise 6).
"""

from __future__ import annotations

import bisect
import hashlib
from typing import NamedTuple

from jfsd.types import Attr, Entry, Ino, NodeType

COOKIE_DOT = 1
COOKIE_DOTDOT = 2
_FIRST_COOKIE = 3
_COOKIE_MASK = (1 << 63) - 1


def cookie_of(name: bytes) -> int:
    """Return the cookie of `name`: 63 bits, above those of "." and ".."."""
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return max(int.from_bytes(digest) & _COOKIE_MASK, _FIRST_COOKIE)


class Node(NamedTuple):
    """A node as the kernel knows it: its number and its attributes."""

    ino: Ino
    attr: Attr


class DirEntry(NamedTuple):
    """An entry of a listing; the next call goes on after `next_cookie`."""

    name: bytes
    node: Node
    next_cookie: int


class Snapshot:
    """The entries of a directory at one moment, in cookie order.

    Two names of one cookie (one chance in 10^7 for a million entries) are told apart
    by giving the later one the next free number, which is stable while both stay.
    """

    __slots__ = ("_cookies", "_entries")

    def __init__(self, entries: list[Entry]) -> None:
        keyed = sorted((cookie_of(entry.name), entry.name, entry) for entry in entries)
        self._entries = [entry for _, _, entry in keyed]
        self._cookies: list[int] = []
        last = 0
        for cookie, _, _ in keyed:
            last = max(cookie, last + 1)
            self._cookies.append(last)

    def __len__(self) -> int:
        return len(self._entries)

    def after(self, cookie: int, limit: int) -> list[tuple[int, Entry]]:
        """Return up to `limit` entries with cookies above `cookie`."""
        start = bisect.bisect_right(self._cookies, cookie)
        stop = start + limit
        return list(zip(self._cookies[start:stop], self._entries[start:stop], strict=True))


def blank_attr(type_: NodeType) -> Attr:
    """Return the attributes shown for an entry whose record is missing (format.md §6.1)."""
    return Attr(type=type_, mode=0, nlink=0)
