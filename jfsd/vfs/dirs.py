"""Directory listings whose cookies depend on nothing but the name.

The entries of a directory are shown in the order of a hash of their names, and the
cookie of an entry is that hash. A listing that stops and goes on, in this process
or in the next one, in a directory that changes meanwhile, therefore shows each
unchanging entry exactly once (promise 6).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from jfsd.types import Attr, Entry, Ino, NodeType

COOKIE_DOT = 1
COOKIE_DOTDOT = 2
_FIRST_COOKIE = 3
_COOKIE_MASK = (1 << 63) - 1
_BUCKET_BITS = 9
_BUCKET_SHIFT = 63 - _BUCKET_BITS


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


class _Bucket:
    """Entries whose cookies begin with the same bits, in flat arrays: some 40 bytes each."""

    __slots__ = ("cookies", "ends", "inos", "names", "ordered", "types")

    def __init__(self) -> None:
        self.cookies = array("Q")
        self.inos = array("Q")
        self.types = bytearray()
        self.names = bytearray()
        self.ends = array("Q", (0,))
        self.ordered = True

    def add(self, cookie: int, entry: Entry) -> None:
        """Take in an entry."""
        self.cookies.append(cookie)
        self.inos.append(entry.ino)
        self.types.append(entry.type)
        self.names += entry.name
        self.ends.append(len(self.names))
        self.ordered = False

    def after(self, cookie: int, limit: int) -> list[tuple[int, Entry]]:
        """Return up to `limit` entries with cookies above `cookie`, in order."""
        if not self.ordered:
            self._order()
        start = bisect.bisect_right(self.cookies, cookie)
        stop = min(start + limit, len(self.cookies))
        return [(self.cookies[i], self._entry(i)) for i in range(start, stop)]

    def _order(self) -> None:
        found = sorted((self.cookies[i], *self._entry(i)) for i in range(len(self.cookies)))
        self.cookies = array("Q")
        last = 0
        for cookie, *_ in found:
            last = max(cookie, last + 1)
            self.cookies.append(last)
        self.inos = array("Q", [ino for _, _, ino, *_ in found])
        self.types = bytearray(type_ for *_, type_, _ in found)
        self.names = bytearray(b"".join(name for _, name, *_ in found))
        self.ends = array("Q", itertools.accumulate((len(e[1]) for e in found), initial=0))
        self.ordered = True

    def _entry(self, i: int) -> Entry:
        name = bytes(self.names[self.ends[i] : self.ends[i + 1]])
        return Entry(name, self.inos[i], NodeType(self.types[i]), None)


class Snapshot:
    """The entries of a directory at one moment, in cookie order.

    Built to list directories of a million entries within the memory that a mount may
    use and without stopping everybody else: entries are kept flat, in buckets that are
    put in order when the listing gets to them. Two names of one cookie (one chance in
    10^7 for a million entries) are told apart by giving the later one the next free
    number, which is stable while both stay.
    """

    __slots__ = ("_buckets", "_count")

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._buckets: list[_Bucket | None] = [None] * (1 << _BUCKET_BITS)
        self._count = 0
        self.add(entries)

    def __len__(self) -> int:
        return self._count

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in entries in any order, each name once, before the first `after`."""
        for entry in entries:
            cookie = cookie_of(entry.name)
            number = cookie >> _BUCKET_SHIFT
            bucket = self._buckets[number]
            if bucket is None:
                bucket = self._buckets[number] = _Bucket()
            bucket.add(cookie, entry)
            self._count += 1

    def after(self, cookie: int, limit: int) -> list[tuple[int, Entry]]:
        """Return up to `limit` entries with cookies above `cookie`."""
        found: list[tuple[int, Entry]] = []
        for bucket in self._buckets[cookie >> _BUCKET_SHIFT :]:
            if len(found) == limit:
                break
            if bucket is not None:
                found += bucket.after(cookie, limit - len(found))
        return found


def blank_attr(type_: NodeType) -> Attr:
    """Return the attributes shown for an entry whose record is missing (format.md §6.1)."""
    return Attr(type=type_, mode=0, nlink=0)
