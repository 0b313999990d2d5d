"""Files kept open for small reads, so that what the page cache has costs no thread.

Objects never change, so an open one may be read for as long as its key is wanted.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import NamedTuple

from jfsd.clock import monotonic_s
from jfsd.object.nowait import open_cached
from jfsd.object.tree import read_from

_MAX_FILES = 128
_MAX_AGE_S = 10.0
"""After this a file is opened anew: its space must come free if another program deletes it."""


class _OpenFile(NamedTuple):
    descriptor: int
    size: int
    opened_s: float


class OpenFiles:
    """The files of the last reads, few and not for long. Safe to use from threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self._guard = threading.Lock()

    def read_now(self, path: str, offset: int, length: int) -> bytes | None:
        """Return bytes of an open file if no disk is needed for them; never blocks."""
        with self._guard:
            file = self._files.get(path)
            if file is None:
                return None
            if monotonic_s() - file.opened_s > _MAX_AGE_S:
                self._close_old()
                return None
            buffer = bytearray(max(0, min(length, file.size - offset)))
            try:
                done = os.preadv(file.descriptor, [buffer], offset, os.RWF_NOWAIT) if buffer else 0
            except OSError:
                return None
        return bytes(buffer) if done == len(buffer) else None

    def read_whole_now(self, path: str, most: int) -> bytes | None:
        """Return a file of up to `most` bytes if no disk is needed for it; never blocks."""
        try:
            descriptor = open_cached(path)
        except OSError:
            return None
        try:
            size = os.fstat(descriptor).st_size
            buffer = bytearray(min(size, most))
            if size > most or os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT) < size:
                return None
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return bytes(buffer)

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Open the file, return bytes of it, and keep it open for the next ones."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = read_from(descriptor, offset, length)
            size = os.fstat(descriptor).st_size
        except BaseException:
            os.close(descriptor)
            raise
        with self._guard:
            self._drop(path)
            self._files[path] = _OpenFile(descriptor, size, monotonic_s())
            self._close_old()
        return data

    def forget(self, path: str) -> None:
        """Close the file if it is open."""
        if path in self._files:
            with self._guard:
                self._drop(path)

    def close(self) -> None:
        """Close all files."""
        with self._guard:
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
