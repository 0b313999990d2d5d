"""Handles: a number is never used twice, and the last close is known."""

from __future__ import annotations

import errno
import os

import pytest

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
