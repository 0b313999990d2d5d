"""Files kept open for small reads, so that what the page cache has costs no thread.

Objects never change, so an open one may be read for as long as its key is wanted.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import NamedTuple

from jfsd.clock import monotonic_s
from jfsd.object._disk import read_now

_MAX_FILES = 128
_MAX_AGE_S = 10.0
"""After this a file is opened anew: its space must come free if another program deletes it."""


class _OpenFile(NamedTuple):
    descriptor: int
    size: int
    opened_s: float


class OpenFiles:
    """The files of the last reads, few and not for long."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def read_now(self, path: str, offset: int, length: int) -> bytes | None:
        """Return bytes of an open file if no disk is needed for them; never blocks."""
        file = self._files.get(path)
        if file is None:
            return None
        if monotonic_s() - file.opened_s > _MAX_AGE_S:
            self._close_old()
            return None
        return read_now(file.descriptor, offset, min(length, file.size - offset))

    def keep(self, path: str, descriptor: int, size: int) -> None:
        """Take an open file of `size` bytes for the next reads."""
        self._drop(path)
        self._files[path] = _OpenFile(descriptor, size, monotonic_s())
        self._close_old()

    def forget(self, path: str) -> None:
        """Close the file if it is open."""
        self._drop(path)

    def close(self) -> None:
        """Close all files."""
        for path in tuple(self._files):
            self._drop(path)

    def _close_old(self) -> None:
        """Close what is too much or too old; the oldest stand first."""
        oldest_s = monotonic_s() - _MAX_AGE_S
        while self._files:
            path, file = next(iter(self._files.items()))
            if len(self._files) <= _MAX_FILES and file.opened_s >= oldest_s:
                return
            self._drop(path)

    def _drop(self, path: str) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            os.close(file.descriptor)
