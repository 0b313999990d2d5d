"""Handles: a number is never used twice, and the last close is known."""

from __future__ import annotations

import errno
import os
import tracemalloc

import pytest

from jfsd.meta import codec
from jfsd.types import Attr, NodeType
from jfsd.vfs.handles import Handles

FILE = Attr(NodeType.FILE, 0o644)


@pytest.mark.promise(4)
def test_a_handle_number_is_never_given_out_again() -> None:
    handles = Handles()
    numbers = set()
    for _ in range(100):
        fh = handles.open(5, FILE, os.O_RDONLY, 0.0).fh
        numbers.add(fh)
        handles.close(fh)
    assert len(numbers) == 100


def test_a_closed_handle_is_ebadf() -> None:
    handles = Handles()
    fh = handles.open(5, FILE, os.O_RDONLY, 0.0).fh
    handles.close(fh)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        handles.get(fh)


def test_only_the_last_close_of_an_inode_returns_it() -> None:
    handles = Handles()
    first = handles.open(5, FILE, os.O_RDONLY, 0.0).fh
    second = handles.open(5, FILE, os.O_RDWR, 0.0).fh
    assert set(handles.open_inos()) == {5}
    assert handles.close(first) is None
    inode = handles.close(second)
    assert inode is not None
    assert inode.ino == 5
    assert not handles.open_inos()
    assert handles.close(second) is None


def test_access_modes() -> None:
    handles = Handles()
    modes = {
        flags: (handle.readable, handle.writable)
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        for handle in [handles.open(1, FILE, flags | os.O_APPEND, 0.0)]
    }
    assert modes == {
        os.O_RDONLY: (True, False),
        os.O_WRONLY: (False, True),
        os.O_RDWR: (True, True),
    }


@pytest.mark.promise(19)
def test_a_hundred_thousand_open_files_have_room_in_the_memory_that_is_promised() -> None:
    """A handle, its inode and its attributes; the reader and writer keep nothing of the idle."""
    now_ns = 1_795_355_547_972_207_456
    attr = Attr(NodeType.FILE, 0o644, 0, 0, now_ns, now_ns, now_ns, parent=1025)
    record = codec.encode_attr(attr)
    handles, count = Handles(), 5000
    tracemalloc.start()
    try:
        for number in range(count):
            handles.open(1000 + number, codec.decode_attr(record), os.O_RDWR, number + 0.5)
        each = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert each < 700


def test_owners_of_locks_are_known_to_the_handle_and_to_the_inode() -> None:
    handles = Handles()
    first, second = (handles.open(5, FILE, os.O_RDWR, 0.0) for _ in range(2))
    first.own(7)
    first.own(7)
    second.own(8)
    assert (first.posix_owners, second.posix_owners) == ({7}, {8})
    assert first.inode.posix_owners == {7, 8}
    assert first.inode.disown(7)
    assert not first.inode.disown(7)
    assert first.inode.posix_owners == {8}
    assert handles.open(6, FILE, os.O_RDWR, 0.0).posix_owners == set()


def test_an_inode_counts_as_open_while_it_is_being_opened() -> None:
    handles = Handles()
    opened = handles.open_inos()
    handles.begin_opening(5)
    handles.begin_opening(5)
    assert (5 in opened, list(opened), len(opened)) == (True, [5], 1)
    fh = handles.open(5, FILE, os.O_RDONLY, 0.0).fh
    assert (list(opened), len(opened)) == ([5], 1)
    assert not handles.end_opening(5)
    assert not handles.end_opening(5)
    handles.close(fh)
    assert (5 in opened, list(opened), len(opened)) == (False, [], 0)


@pytest.mark.promise(4)
def test_an_orphan_of_an_open_that_failed_is_told() -> None:
    handles = Handles()
    assert not handles.sustain(5)
    handles.begin_opening(5)
    assert handles.sustain(5)
    assert handles.end_opening(5), "nobody opened it: it is to be deleted"
    handles.begin_opening(5)
    assert not handles.end_opening(5)
    handles.begin_opening(5)
    handles.sustain(5)
    inode = handles.open(5, FILE, os.O_RDONLY, 0.0).inode
    assert inode.sustained
    assert not handles.end_opening(5), "its last close will delete it"
