"""Files as objects: what the `file` store does in Python threads (format.md §13.1).

Writes are atomic, and durable at once or later; see `ObjectTree.write`. The usual ones, and
all reads, are done by jfsd/object/_disk.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import NamedTuple

from jfsd.failpoint import reach
from jfsd.object.base import ObjectInfo
from jfsd.types import ReadableBuffer

_TEMPORARY_NAME_BYTES = 200
_TEMPORARY_PREFIX = ".jfs."
_DESCRIPTORS = "/proc/self/fd"
_MAX_DURABLE = 100_000
_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_UNNAMED = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.EPERM))


class AbandonedError(Exception):
    """Nobody waits for this write any more; nothing was put in place."""


class ObjectTree:
    """The files below `root`, which is put before every key as it is.

    `root` usually ends in a slash; where it does not, its last part begins the names.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.directory = root.rpartition("/")[0] or "/"
        """The directory that has to exist already; what is below is made on demand."""
        self._durable: set[str] = set()
        self._guard = threading.Lock()
        self._unnamed = True

    @property
    def unnamed(self) -> bool:
        """Whether files can have no name at first, as far as is known."""
        return self._unnamed

    def path(self, key: str) -> str | None:
        """Return the file of `key`, or None if the key leads out of the tree or is no file."""
        parts = key.split("/")
        if not parts[-1] or ".." in parts or "." in parts or "\0" in key:
            return None
        return self.root + key

    def write(
        self,
        path: str,
        body: ReadableBuffer,
        abandoned: Callable[[], bool],
        *,
        durable: bool = True,
    ) -> None:
        """Create or replace the file; if `durable`, it is on the disk with all its directories.

        First the content is on the disk, then it gets its name, then the name is on the
        disk. Where the file system can, the file has no name before, so that a kill leaves
        nothing; else a kill may leave a temporary file.

        Raises:
            AbandonedError: `abandoned` said so after the content was copied.
            OSError: Nothing is left, except empty directories.
        """
        directory, name = os.path.split(path)
        try:
            self._write_in(directory, name, body, abandoned, durable=durable)
        except FileNotFoundError:
            self._make_directories(directory)
            self._write_in(directory, name, body, abandoned, durable=durable)

    def settle(self, paths: Sequence[str], abandoned: Callable[[], bool]) -> None:
        """Sync files that were written before, their names and directories; those gone are not.

        Raises:
            AbandonedError: `abandoned` said so on the way.
            OSError: Some may not be on the disk.
        """
        for path in paths:
            if abandoned():
                raise AbandonedError
            with suppress(FileNotFoundError, NotADirectoryError):
                _sync(path, os.O_RDONLY)
        for directory in dict.fromkeys(os.path.dirname(path) for path in paths):  # noqa: PTH120
            with suppress(FileNotFoundError, NotADirectoryError):
                self._make_durable(directory)
                _sync(directory, os.O_RDONLY | os.O_DIRECTORY)

    def knows(self, directories: Iterable[str]) -> bool:
        """Say whether these directories' own names are durable, as far as is known."""
        return all(
            each in self._durable or len(each) <= len(self.directory) for each in directories
        )

    def settle_all(self) -> None:
        """Sync the file system that holds the tree.

        Raises:
            OSError: Something of it is not on the disk.
        """
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _LIBC.syncfs(descriptor):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)

    def walk(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Yield files whose key begins with `prefix` and comes after `start_after`, in order."""
        top = (self.root + prefix).rpartition("/")[0] + "/"
        yield from self._below(top, self.root + prefix, self.root + start_after)

    def is_there(self) -> bool:
        """Say whether the directory that holds everything exists."""
        return os.path.isdir(self.directory)  # noqa: PTH112

    # -- writing

    def _write_in(
        self,
        directory: str,
        name: str,
        body: ReadableBuffer,
        abandoned: Callable[[], bool],
        *,
        durable: bool,
    ) -> None:
        if durable:
            self._make_durable(directory)
        parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fill = _Filling(body, abandoned, durable)
            descriptor = self._open_unnamed(parent)
            if descriptor is None or not self._name(descriptor, parent, name, fill):
                _rename(parent, name, fill)
            if durable:
                os.fsync(parent)
        finally:
            os.close(parent)

    def _open_unnamed(self, parent: int) -> int | None:
        """Return a new file without a name, or None where there can be none."""
        if not self._unnamed:
            return None
        try:
            return os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666, dir_fd=parent)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            self._unnamed = False
            return None

    def _name(self, descriptor: int, parent: int, name: str, fill: _Filling) -> bool:
        """Fill the file and name it; False if files cannot be named here."""
        try:
            fill.into(descriptor)
            try:
                _link(descriptor, parent, name)
            except FileExistsError:
                _replace(descriptor, parent, name)
        except OSError as error:
            no_proc = error.errno == errno.ENOENT and not os.path.lexists(_DESCRIPTORS)
            if not no_proc and error.errno not in (errno.EXDEV, *_NO_UNNAMED):
                raise
            self._unnamed = False
            return False
        finally:
            os.close(descriptor)
        return True

    def _make_directories(self, directory: str) -> None:
        """Create what is missing below the tree's own directory."""
        missing = []
        while len(directory) > len(self.directory) and not os.path.isdir(directory):  # noqa: PTH112
            missing.append(directory)
            directory = os.path.dirname(directory)  # noqa: PTH120
        for each in reversed(missing):
            with self._guard:
                self._durable.discard(each)
            with suppress(FileExistsError):
                os.mkdir(each, 0o777)  # noqa: PTH102

    def _make_durable(self, directory: str) -> None:
        """Sync the names of a directory and of those above it, once in our life each.

        Also of those that were there: another thread or program may have just made them.
        """
        synced = []
        while len(directory) > len(self.directory) and directory not in self._durable:
            parent = os.path.dirname(directory)  # noqa: PTH120
            descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.stat(directory)  # noqa: PTH116
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            synced.append(directory)
            directory = parent
        with self._guard:
            if len(self._durable) >= _MAX_DURABLE:
                self._durable.clear()
            self._durable.update(synced)

    # -- listing

    def _below(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Yield files below `folder`; a directory sorts as its name with a slash."""
        for name in _names(folder):
            path = folder + name
            if name.endswith("/"):
                reaches = path.startswith(prefix) or prefix.startswith(path)
                if reaches and (path > start_after or start_after.startswith(path)):
                    yield from self._below(path, prefix, start_after)
            elif path.startswith(prefix) and path > start_after:
                with suppress(FileNotFoundError):
                    yield describe(path, path[len(self.root) :])


def describe(path: str, key: str) -> ObjectInfo:
    """Return size and time of the file.

    Raises:
        OSError: ENOENT (no file, or something else), and others of stat(2).
    """
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return ObjectInfo(key, status.st_size, status.st_mtime_ns)


def _link(descriptor: int, parent: int, name: str) -> None:
    """Give an unnamed file a name that nothing has yet."""
    os.link(
        f"{_DESCRIPTORS}/{descriptor}",
        name,
        src_dir_fd=parent,  # makes it linkat(2), which can follow the link
        dst_dir_fd=parent,
        follow_symlinks=True,
    )


def _replace(descriptor: int, parent: int, name: str) -> None:
    """Give an unnamed file a name in place of the file that has it.

    On the way it has a name that depends on the other alone, so that whoever repeats this
    after a kill finds what was left, and takes it away. If it was another one's at work,
    that one is done: it has been replaced.
    """
    first = f"{_TEMPORARY_PREFIX}{sha256(os.fsencode(name)).hexdigest()[:32]}.tmp.new"
    try:
        _link(descriptor, parent, first)
    except FileExistsError:
        draft = _temporary(name)
        _link(descriptor, parent, draft)
    else:
        draft = first
        reach("store.replacing")
    try:
        os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
    except FileNotFoundError:
        if draft != first:
            raise
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=parent)
        raise
    if draft != first:
        with suppress(FileNotFoundError):
            os.unlink(first, dir_fd=parent)


def _rename(parent: int, name: str, fill: _Filling) -> None:
    """Write a temporary file and give it its name, in place of what has it."""
    draft = _temporary(name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o666, dir_fd=parent)
    try:
        try:
            fill.into(descriptor)
        finally:
            os.close(descriptor)
        os.rename(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=parent)
        raise


def _temporary(name: str) -> str:
    short = os.fsdecode(os.fsencode(name)[:_TEMPORARY_NAME_BYTES])
    return f"{_TEMPORARY_PREFIX}{short}.tmp.{secrets.token_hex(8)}"


class _Filling(NamedTuple):
    """What a file is to hold, who may not want it any more, and whether power may go."""

    body: ReadableBuffer
    abandoned: Callable[[], bool]
    durable: bool

    def into(self, descriptor: int) -> None:
        """Copy the body. Past the check it is ours, whatever becomes of the buffer."""
        with memoryview(self.body) as view:
            done = 0
            while done < len(view):
                with view[done:] as rest:
                    done += os.write(descriptor, rest)
        if self.abandoned():
            raise AbandonedError
        if self.durable:
            os.fsync(descriptor)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: str) -> list[str]:
    """Return the names in a directory in key order, directories with a slash at their end."""
    try:
        with os.scandir(folder) as found:
            return sorted(
                entry.name + ("/" if entry.is_dir() else "")
                for entry in found
                if not entry.name.startswith(_TEMPORARY_PREFIX)
            )
    except FileNotFoundError:
        return []
